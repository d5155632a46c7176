package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/relay"
)

const (
	auditFileSize  = 64 << 20 // bytes; then a new one begins
	auditFilesKept = 8

	// gcPercent trades a little CPU of admissions for memory: what a relay holds is
	// sessions, and packets allocate nothing. With 10,000 idle sessions the default
	// of 100 takes 462 MiB and 2.5 ms a session's joining; 50: 369 MiB, 2.75 ms;
	// 25: 313 MiB, 2.9 ms.
	gcPercent = 25
)

// serveOptions are the flags of serve.
type serveOptions struct {
	domain, listen, udpListen, advertiseUDP, url string
	certFile, keyFile                            string
	selfSigned                                   []string
	stateDir, socket, metrics, auditFile, format string
}

const serveLong = `Run the relay: TCP and UDP on port 443, one network, no database.

TLS is one of three:
  --domain NAME              a certificate from Let's Encrypt for NAME; port 443
                             of NAME must lead here
  --tls-cert F --tls-key F   PEM files, read again when they change
  --self-signed HOST,…       a certificate of the relay's own; its pin goes into
                             the network's head, so nobody has to trust it

The first start prints a claim code, once, and the line for the platform
engineer to type. Nothing that is stored in --state-dir opens a cluster.`

const serveExample = `  zt-relay serve --domain relay.example.com
  zt-relay serve --self-signed 203.0.113.7 --state-dir /var/lib/zt-relay
  zt-relay serve --listen :8443 --url https://relay.example.com --tls-cert cert.pem --tls-key key.pem`

func serveCommand(env *environment) *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the relay", Long: serveLong, Example: serveExample, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), env, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.domain, "domain", env.getenv("ZT_RELAY_DOMAIN"), "the relay's public name (ZT_RELAY_DOMAIN)")
	f.StringVar(&o.listen, "listen", ":443", "TCP address to listen on")
	f.StringVar(&o.udpListen, "udp-listen", "", "UDP address to listen on (default: that of --listen)")
	f.StringVar(&o.advertiseUDP, "advertise-udp", "", "host:port where participants reach UDP (default: that of --url)")
	f.StringVar(&o.url, "url", "", "how participants reach TCP (default: https://DOMAIN)")
	f.StringVar(&o.certFile, "tls-cert", "", "certificate chain, PEM")
	f.StringVar(&o.keyFile, "tls-key", "", "its private key, PEM")
	f.StringSliceVar(&o.selfSigned, "self-signed", nil, "make a certificate for these names or addresses")
	addStateDir(cmd, env, &o.stateDir)
	addSocket(cmd, env, &o.socket)
	f.StringVar(&o.metrics, "metrics", "", "serve /healthz, /readyz and /metrics on this host:port")
	f.StringVar(&o.auditFile, "audit-file", "", "append the audit log here (default: audit.jsonl in the state directory)")
	f.StringVar(&o.format, "log-format", "text", "text or json, on standard error")
	return cmd
}

func addStateDir(cmd *cobra.Command, env *environment, dir *string) {
	def := "/var/lib/zt-relay"
	if e := env.getenv("ZT_RELAY_STATE_DIR"); e != "" {
		def = e
	} else if e := env.getenv("STATE_DIRECTORY"); filepath.IsAbs(e) { // systemd's StateDirectory=
		def = e
	}
	cmd.Flags().StringVar(dir, "state-dir", def, "directory of the relay's state (ZT_RELAY_STATE_DIR)")
}

func addSocket(cmd *cobra.Command, env *environment, socket *string) {
	cmd.Flags().StringVar(socket, "socket", env.getenv("ZT_RELAY_SOCKET"), "Unix socket of the operator's commands (default: relay.sock in the state directory; ZT_RELAY_SOCKET)")
	cmd.Flags().Lookup("socket").DefValue = ""
}

func socketPath(socket, stateDir string) string {
	if socket != "" {
		return socket
	}
	return filepath.Join(stateDir, "relay.sock")
}

func (o serveOptions) check() error {
	ways := 0
	for _, on := range []bool{o.domain != "", o.certFile != "" || o.keyFile != "", len(o.selfSigned) > 0} {
		if on {
			ways++
		}
	}
	switch {
	case ways == 0:
		return usagef("for a host with a public name: zt-relay serve --domain relay.example.com", "how the relay gets its TLS certificate is not said")
	case ways > 1:
		return usagef("give --domain, or --tls-cert with --tls-key, or --self-signed", "more than one way to a TLS certificate is given")
	case (o.certFile == "") != (o.keyFile == ""):
		return usagef("zt-relay serve --tls-cert cert.pem --tls-key key.pem", "--tls-cert and --tls-key go together")
	case o.format != "text" && o.format != "json":
		return usagef("give --log-format text or --log-format json", "--log-format is %q, want text or json", o.format)
	}
	return nil
}

func serve(ctx context.Context, env *environment, o serveOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	cfg := relay.Config{
		StateDir: o.stateDir, AdvertiseUDP: o.advertiseUDP, URL: o.url, Metrics: prometheus.NewRegistry(),
		TLS:  relay.TLS{CertFile: o.certFile, KeyFile: o.keyFile, SelfSigned: o.selfSigned},
		HTTP: &http.Client{Transport: http.DefaultTransport},
	}
	if o.certFile == "" && len(o.selfSigned) == 0 {
		cfg.TLS.Domain = o.domain
	}
	if cfg.URL == "" && o.domain != "" {
		cfg.URL = "https://" + o.domain
	}
	handler := slog.Handler(slog.NewTextHandler(env.stderr, nil))
	if o.format == "json" {
		handler = slog.NewJSONHandler(env.stderr, nil)
	}
	cfg.Log = slog.New(handler)
	cfg.Metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	if env.getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}

	var opened closers
	defer opened.close() // those that Run did not take over
	var err error
	if cfg.Listener, err = net.Listen("tcp", o.listen); err != nil {
		return listenError(o.listen, err)
	}
	opened.add(cfg.Listener)
	udp := o.udpListen
	if udp == "" {
		udp = cfg.Listener.Addr().String()
	}
	if cfg.UDP, err = relay.ListenUDP(udp); err != nil {
		return listenError(udp, err)
	}
	for _, c := range cfg.UDP {
		opened.add(c)
	}
	if o.metrics != "" {
		if cfg.Health, err = net.Listen("tcp", o.metrics); err != nil {
			return listenError(o.metrics, err)
		}
		opened.add(cfg.Health)
	}
	if err := os.MkdirAll(o.stateDir, 0o700); err != nil {
		return stateDirError(o.stateDir, err)
	}
	auditFile := o.auditFile
	if auditFile == "" {
		auditFile = filepath.Join(o.stateDir, "audit.jsonl")
	}
	audit, err := relay.OpenAuditFile(auditFile, auditFileSize, auditFilesKept)
	if err != nil {
		return stateDirError(o.stateDir, err)
	}
	defer audit.Close()
	cfg.Audit = audit
	if cfg.Local, err = relay.ListenLocal(socketPath(o.socket, o.stateDir)); err != nil {
		return &commandError{text: err.Error(), code: exitFailure, hint: "stop the relay that runs there, or choose another place with --state-dir or --socket"}
	}
	opened.add(cfg.Local)
	s, err := relay.New(cfg)
	if err != nil {
		return err
	}
	greet(env.stdout, s, cfg.UDP[0].LocalAddr())
	opened = nil
	return s.Run(ctx)
}

// closers are what was opened, closed in reverse.
type closers []io.Closer

func (c *closers) add(x io.Closer) { *c = append(*c, x) }

func (c *closers) close() {
	for i := len(*c) - 1; i >= 0; i-- {
		(*c)[i].Close()
	}
}

// greet says where the relay is, and what to do next.
func greet(w io.Writer, s *relay.Server, udp net.Addr) {
	fmt.Fprintf(w, "relay %s, UDP on %s\nrelay key %s\n", s.URL(), udp, s.Key())
	if s.Pin() != "" {
		fmt.Fprintf(w, "TLS pin %s\n", s.Pin())
	}
	switch {
	case s.ClaimCode() != "":
		pin := ""
		if s.Pin() != "" {
			pin = " --pin " + s.Pin()
		}
		fmt.Fprintf(w, `
No network has claimed this relay yet. The platform engineer types this on their
own machine, with the issuer and client of your identity provider; the code works
once and is not shown again:

  zt-daemon network create --relay %s --claim %s%s --issuer https://ISSUER --client-id CLIENT

`, s.URL(), s.ClaimCode(), pin)
	case !s.Claimed():
		fmt.Fprintf(w, "No network has claimed this relay yet; the claim code was printed at its first start. To get another, stop it and remove the file claim in its state directory.\n")
	}
}

func listenError(addr string, err error) error {
	e := &commandError{text: fmt.Sprintf("listen on %s: %v", addr, err), code: exitFailure}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		e.hint = "another program holds the port: `ss -lnptu` names it; or choose another with --listen"
	case errors.Is(err, fs.ErrPermission):
		e.hint = "ports below 1024 need root or CAP_NET_BIND_SERVICE: systemd gives it with AmbientCapabilities=, or choose a port with --listen"
	}
	return e
}

func stateDirError(dir string, err error) error {
	e := &commandError{text: fmt.Sprintf("state directory: %v", err), code: exitFailure}
	if errors.Is(err, fs.ErrPermission) {
		e.hint = "choose a directory of your own with --state-dir"
	}
	return e
}
