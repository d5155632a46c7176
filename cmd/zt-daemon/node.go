package main

import (
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

  node.yaml     network, cluster, relay, upstream (host:port of the API server)
  cluster.key   the cluster key, mode 0600; or a mounted Secret
  policy.yaml   issuers, rules, denials; read again when it changes
  head.jws      optional: the oldest head to accept

One JSON line goes to standard output for each edge, flow and refusal.`

func nodeCommand(env *environment) *cobra.Command {
	var dir, metrics, audit string
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
			return runNode(cmd.Context(), env, dir, metrics, audit, newLog(env.stderr, level))
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", env.getenv("ZT_NODE_DIR"), "directory of the node's files (ZT_NODE_DIR)")
	f.StringVar(&metrics, "metrics", env.getenv("ZT_METRICS"), "serve /metrics and /healthz on this host:port (ZT_METRICS)")
	f.StringVar(&audit, "audit", env.getenv("ZT_AUDIT"), "append the audit log to this file instead of standard output; \"none\" writes none (ZT_AUDIT)")
	for _, name := range []string{"dir", "metrics", "audit"} {
		f.Lookup(name).DefValue = ""
	}
	addLogLevel(cmd, env, &level)
	return cmd
}

func runNode(ctx context.Context, env *environment, dir, metrics, audit string, log *slog.Logger) error {
	var lines io.Writer = env.stdout
	switch audit {
	case "":
	case "none":
		lines = nil
	default:
		f, err := os.OpenFile(audit, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
		defer f.Close()
		lines = f
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	n, err := daemon.NewNode(daemon.NodeConfig{
		Dir:     dir,
		HTTP:    daemon.HTTPConfig{Proxy: http.ProxyFromEnvironment},
		Audit:   lines,
		Log:     log,
		Metrics: registry,
	})
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
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.Run(ctx) })
	g.Go(func() error { return serveMetrics(ctx, ln, registry) })
	return g.Wait()
}

// serveMetrics serves /metrics and /healthz on ln until ctx is done.
func serveMetrics(ctx context.Context, ln net.Listener, registry *prometheus.Registry) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}
