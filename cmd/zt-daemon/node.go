package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/daemon"
)

const nodeLong = `Run a node: beside an API server, it verifies by itself who may reach it, and
forwards their TCP bytes. It opens connections to relays and to its API server,
and listens on nothing but its overlay address.

DIR holds what ` + "`zt-daemon cluster add --out DIR`" + ` wrote:

  node.yaml     network, cluster, relay, upstream (host:port of the API server);
                in a pod also what is watched there: policyConfigMap, accessGrants
  cluster.key   the cluster key, mode 0600; or a mounted Secret
  policy.yaml   issuers, rules, denials; read again when it changes; not used
                where node.yaml names a ConfigMap
  head.jws      optional: the oldest head to accept

One JSON line goes to standard output for each edge, flow and refusal. With
--metrics also /livez (the process runs) and /readyz (a relay, the API server,
the policy and an issuer's keys are there; its body says which part is not).

On SIGTERM it takes no laptop any more, lets open flows go on for --grace, and
then cuts them.`

func nodeCommand(env *environment) *cobra.Command {
	var dir, metrics, audit string
	var grace time.Duration
	var level slog.Level
	cmd := &cobra.Command{
		Use:     "node --dir DIR",
		Short:   "Run a node beside an API server",
		Long:    nodeLong,
		Example: "  zt-daemon node --dir /etc/zt\n  zt-daemon node --dir /etc/zt --metrics 127.0.0.1:9090 --audit /var/log/zt/audit.jsonl",
		Args:    withArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usagef("give it with --dir or ZT_NODE_DIR", "the node's directory is not named")
			}
			log := newLog(env.stderr, level)
			return runNode(cmd.Context(), env, metrics, audit, daemon.NodeConfig{
				Dir: dir, HTTP: daemon.HTTPConfig{Proxy: http.ProxyFromEnvironment}, Log: log, Grace: grace,
				APIServer: apiServer(env), Pod: env.getenv("POD_NAME"), Host: env.getenv("NODE_NAME"),
				Name: nodeName(env), Version: programVersion().Version,
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", env.getenv("ZT_NODE_DIR"), "directory of the node's files (ZT_NODE_DIR)")
	f.StringVar(&metrics, "metrics", env.getenv("ZT_METRICS"), "serve /metrics, /livez and /readyz on this host:port (ZT_METRICS)")
	f.StringVar(&audit, "audit", env.getenv("ZT_AUDIT"), "append the audit log to this file instead of standard output; \"none\" writes none (ZT_AUDIT)")
	f.DurationVar(&grace, "grace", 20*time.Second, "how long open flows may go on after SIGTERM; a pod's terminationGracePeriodSeconds must be longer")
	for _, name := range []string{"dir", "metrics", "audit"} {
		f.Lookup(name).DefValue = ""
	}
	addLogLevel(cmd, env, &level)
	return cmd
}

// nodeName is what people call the node: its pod's name, or the machine's.
func nodeName(env *environment) string {
	if pod := env.getenv("POD_NAME"); pod != "" {
		return pod
	}
	host, err := os.Hostname()
	if err != nil {
		return ""
	}
	return host
}

// apiServer is where the kubelet says the API server is; empty outside a pod.
func apiServer(env *environment) string {
	host := env.getenv("KUBERNETES_SERVICE_HOST")
	if host == "" {
		return ""
	}
	return net.JoinHostPort(host, cmp.Or(env.getenv("KUBERNETES_SERVICE_PORT"), "443"))
}

func runNode(ctx context.Context, env *environment, metrics, audit string, cfg daemon.NodeConfig) error {
	cfg.Audit = env.stdout
	switch audit {
	case "":
	case "none":
		cfg.Audit = nil
	default:
		f, err := os.OpenFile(audit, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
		defer f.Close()
		cfg.Audit = f
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	cfg.Metrics = registry
	roots, err := rootCAs()
	if err != nil {
		return err
	}
	cfg.HTTP.RootCAs = roots
	n, err := daemon.NewNode(cfg)
	if err != nil {
		return err
	}
	limitProcessors(env)
	defer keepMemorySmall(env)()
	if metrics == "" {
		return n.Run(ctx)
	}
	ln, err := net.Listen("tcp", metrics)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	// Probes are answered while the node drains: its pod must not be taken for dead.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, serving := errgroup.WithContext(serving)
	g.Go(func() error { return serveHealth(serving, ln, registry, n.ServeReady) })
	running, fail := context.WithCancel(ctx)
	defer context.AfterFunc(serving, fail)()
	g.Go(func() error {
		defer stop()
		return n.Run(running)
	})
	return g.Wait()
}

// serveHealth serves /metrics, /livez and /readyz on ln until ctx is done.
func serveHealth(ctx context.Context, ln net.Listener, registry *prometheus.Registry, ready http.HandlerFunc) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", ready)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}
