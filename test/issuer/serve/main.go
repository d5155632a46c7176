// Command serve runs the test issuer as a process of its own, for end-to-end
// tests and the demo. It is no identity provider for anybody: every password is
// right.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/test/issuer"
)

type options struct {
	listen, control, certFile, keyFile, caOut string
	selfSigned                                bool
	config                                    issuer.Config
}

func main() {
	var o options
	fs := flag.NewFlagSet("serve", flag.ExitOnError)
	fs.StringVar(&o.listen, "listen", "127.0.0.1:0", "TCP `address` of the issuer")
	fs.StringVar(&o.config.URL, "url", "", "issuer `URL`; default: http(s) and the address listened on")
	fs.StringVar(&o.certFile, "tls-cert", "", "certificate chain, PEM `file`")
	fs.StringVar(&o.keyFile, "tls-key", "", "its key, PEM `file`")
	fs.BoolVar(&o.selfSigned, "self-signed", false, "serve TLS under a CA made now; see --ca-out")
	fs.StringVar(&o.caOut, "ca-out", "", "`file` to write that CA to, PEM")
	fs.StringVar(&o.control, "control", "", "`address` (host:port, or unix:PATH) of the control endpoint; default: none")
	fs.Func("mode", "deviation `NAME[=VALUE]`, may be given often: "+issuer.ModeHelp(), o.config.SetMode)
	fs.Func("client", "client `id`, may be given often; default: zt and kubernetes", func(s string) error {
		o.config.Clients = append(o.config.Clients, s)
		return nil
	})
	fs.Parse(os.Args[1:]) // ExitOnError
	if fs.NArg() != 0 {
		fmt.Fprintf(os.Stderr, "serve: %q is no flag\n", fs.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	ln, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	defer ln.Close()
	if err := o.loadCertificate(ln.Addr()); err != nil {
		return err
	}
	i, err := issuer.New(o.config)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	if o.control != "" {
		cl, err := listenControl(o.control)
		if err != nil {
			return err
		}
		g.Go(func() error { return issuer.Serve(ctx, cl, i.Control()) })
		fmt.Printf("control %s\n", cl.Addr())
	}
	g.Go(func() error { return i.Run(ctx, ln) })
	fmt.Printf("issuer %s\n", i.URL()) // listening already: a parent may go on when it reads this line
	return g.Wait()
}

// loadCertificate fills the certificate and, if it is empty, the URL.
func (o *options) loadCertificate(addr net.Addr) error {
	switch {
	case o.selfSigned && o.certFile != "", (o.certFile == "") != (o.keyFile == ""):
		return errors.New("give either --tls-cert and --tls-key, or --self-signed, or none")
	case o.certFile != "":
		c, err := tls.LoadX509KeyPair(o.certFile, o.keyFile)
		if err != nil {
			return fmt.Errorf("certificate: %w", err)
		}
		o.config.Certificate = &c
	case o.selfSigned:
		hosts := []string{"127.0.0.1", "localhost"}
		for _, at := range []string{o.config.URL, "//" + addr.String()} {
			if u, err := url.Parse(at); err == nil && u.Hostname() != "" {
				hosts = append(hosts, u.Hostname())
			}
		}
		c, ca, err := issuer.SelfSigned(hosts...)
		if err != nil {
			return err
		}
		o.config.Certificate = &c
		if o.caOut != "" {
			if err := os.WriteFile(o.caOut, ca, 0o644); err != nil {
				return err
			}
		}
	}
	if o.config.URL == "" && o.config.Certificate != nil {
		o.config.URL = "https://" + addr.String()
	} else if o.config.URL == "" {
		o.config.URL = "http://" + addr.String()
	}
	return nil
}

func listenControl(at string) (net.Listener, error) {
	path, ok := strings.CutPrefix(at, "unix:")
	if !ok {
		return net.Listen("tcp", at)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket != 0 {
		os.Remove(path) // left by one that was killed; Listen says what is wrong otherwise
	}
	return net.Listen("unix", path)
}
