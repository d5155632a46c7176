// Package relay is one relay of a network: it admits sessions, joins them by
// edges, forwards their sealed packets, and serves the network's signed
// documents.
//
// It owns sessions, leases, edges, channels, revocations, its state directory
// and its audit log. It must not know policy, nor what is inside a sealed
// packet, and no message of it names an address or host to reach.
package relay

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
)

const maxTCP = 8192 // TCP connections that are no sessions yet

// Config says what a relay is made of. The zero value of an optional field is
// its default.
type Config struct {
	StateDir string         // kept from start to start, 0700
	Listener net.Listener   // TCP; TLS is put on it
	UDP      []*net.UDPConn // at least one
	TLS      TLS
	// URL is how a head names this relay; empty = https://DOMAIN, or the first
	// self-signed host with Listener's port.
	URL string
	// AdvertiseUDP is "host:port" where participants reach UDP; empty = the
	// URL's host and port, or, if URL is empty too, its host and the port of UDP.
	AdvertiseUDP string
	// Health serves /healthz, /readyz and /metrics; nil = nothing does.
	Health net.Listener
	// Local serves `zt-relay status` and its like; nil = nothing does. Whoever
	// reaches it may revoke: see ListenLocal.
	Local   net.Listener
	Metrics *prometheus.Registry // nil = one of its own
	Audit   io.Writer            // whole JSON lines; nil = only the newest stay, in memory
	HTTP    *http.Client         // fetches issuers' keys; nil = the default
	Log     *slog.Logger         // nil = none
	Now     func() time.Time     // nil = time.Now
}

// Server is one relay process. Make it with New.
type Server struct {
	cfg       Config
	log       *slog.Logger
	now       func() time.Time
	store     *store
	keys      keys
	claimCode string // made by this process; else ""
	certs     *certificates
	metrics   *metrics
	audit     *audit
	forwarder *forwarder
	sockets   []*socket
	hub       *hub
	documents *documents
	gate      gate
	started   time.Time

	stepTimeout     time.Duration
	admissions      chan struct{} // a slot for each grant being verified
	verifier        atomic.Pointer[auth.Verifier]
	verifierChanged chan struct{}
	recheckNow      chan struct{}
	revocationMu    sync.Mutex // one write of revocations at a time
	serving         atomic.Bool
}

// New checks cfg, locks and reads the state directory, and starts nothing. On
// the first start it makes the relay's keys and its claim code. Call Run or
// Close.
func New(cfg Config) (_ *Server, err error) {
	if cfg.StateDir == "" || cfg.Listener == nil || len(cfg.UDP) == 0 {
		return nil, errors.New("a relay needs a state directory, a TCP listener and a UDP socket")
	}
	s := &Server{
		cfg: cfg, log: cfg.Log, now: cfg.Now, stepTimeout: stepTimeout,
		admissions: make(chan struct{}, maxAdmissions), verifierChanged: make(chan struct{}, 1), recheckNow: make(chan struct{}, 1),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if cfg.Metrics == nil {
		s.cfg.Metrics = prometheus.NewRegistry()
	}
	if cfg.AdvertiseUDP != "" {
		if host, port, err := net.SplitHostPort(cfg.AdvertiseUDP); err != nil || host == "" || port == "" {
			return nil, fmt.Errorf("advertised UDP address %q is not host:port", cfg.AdvertiseUDP)
		}
	}
	if s.cfg.URL == "" {
		s.cfg.URL = defaultURL(cfg)
		if s.cfg.AdvertiseUDP == "" {
			s.cfg.AdvertiseUDP = defaultUDP(s.cfg)
		}
	}
	if err := auth.ValidRelayURL(s.cfg.URL); err != nil {
		return nil, fmt.Errorf("relay URL %q: %w", s.cfg.URL, err)
	}
	if s.store, err = openStore(cfg.StateDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.store.close()
		}
	}()
	if s.keys, err = s.store.loadKeys(); err != nil {
		return nil, err
	}
	if s.certs, err = newCertificates(cfg.TLS, s.store, s.log, s.now); err != nil {
		return nil, err
	}
	s.forwarder = newForwarder(func(t *tally) { s.metrics.count(t) })
	s.hub = newHub(s.forwarder, s.log, s.now)
	if s.metrics, err = newMetrics(s.cfg.Metrics, s.hub.gauges(s.gate.waiting)); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	s.audit = newAudit(cfg.Audit, s.log, s.metrics.auditFailures)
	s.hub.metrics, s.hub.audit = s.metrics, s.audit
	s.documents = &documents{store: s.store}
	if err = s.loadDocuments(); err != nil {
		return nil, err
	}
	if err = s.loadRevocations(); err != nil {
		return nil, err
	}
	if h := s.documents.head; h != nil {
		if err = s.buildVerifier(h); err != nil {
			return nil, fmt.Errorf("issuers of the head: %w", err)
		}
	}
	s.sockets, err = newSockets(cfg.UDP)
	return s, err
}

func defaultURL(cfg Config) string {
	host := cfg.TLS.Domain
	if host == "" && len(cfg.TLS.SelfSigned) > 0 {
		host = cfg.TLS.SelfSigned[0]
	}
	if host == "" {
		host = "localhost"
	}
	_, port, err := net.SplitHostPort(cfg.Listener.Addr().String())
	if err == nil && port != "443" {
		return (&url.URL{Scheme: "https", Host: net.JoinHostPort(host, port)}).String()
	}
	return (&url.URL{Scheme: "https", Host: host}).String()
}

// defaultUDP is empty if UDP has the port of the URL, as it should.
func defaultUDP(cfg Config) string {
	u, err := url.Parse(cfg.URL)
	_, port, perr := net.SplitHostPort(cfg.UDP[0].LocalAddr().String())
	if err != nil || perr != nil || port == u.Port() || u.Port() == "" && port == "443" {
		return ""
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// Key is what participants must expect of this relay.
func (s *Server) Key() key.RelayPublic { return s.keys.current.Public() }

// NextKey is the key that will follow.
func (s *Server) NextKey() key.RelayPublic { return s.keys.next.Public() }

// ClaimCode is the code that gives this relay its network. It is empty unless
// this process made it: only its hash is kept.
func (s *Server) ClaimCode() string { return s.claimCode }

// Claimed reports whether the relay serves a network.
func (s *Server) Claimed() bool { return s.documents.newest() != nil }

// URL is how a head names this relay.
func (s *Server) URL() string { return s.cfg.URL }

// Pin is the base64 SHA-256 of the self-signed certificate's public key; empty
// for a certificate that WebPKI is to vouch for.
func (s *Server) Pin() string { return s.certs.pin }

// Entry is this relay as a head would list it.
func (s *Server) Entry() auth.Relay {
	r := auth.Relay{URL: s.cfg.URL, Key: s.Key(), NextKey: s.NextKey(), UDP: s.cfg.AdvertiseUDP}
	if s.certs.pin != "" {
		r.Pins = []string{s.certs.pin}
	}
	return r
}

// Close releases the state directory of a server that does not run. Run does so
// itself.
func (s *Server) Close() error { return s.store.close() }

// Run serves until ctx is done, and returns once all it started has ended and
// every socket is closed. A Server runs once.
func (s *Server) Run(ctx context.Context) error {
	defer s.store.close()
	stopAudit, audited := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(audited)
		s.audit.run(stopAudit)
	}()
	defer func() { close(stopAudit); <-audited }() // after all who write

	s.started = s.now()
	g, ctx := errgroup.WithContext(ctx)
	for _, u := range s.sockets {
		g.Go(func() error { <-ctx.Done(); return u.conn.Close() })
		g.Go(func() error {
			err := u.run(s.forwarder)
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("UDP %s: %w", u.conn.LocalAddr(), err)
		})
	}
	g.Go(func() error { s.hub.sweep(ctx); return nil })
	g.Go(func() error { s.certs.run(ctx); return nil })
	g.Go(func() error { return s.runVerifier(ctx) })
	s.serve(ctx, g, tls.NewListener(s.cfg.Listener, s.certs.config), s.public(ctx))
	if s.cfg.Health != nil {
		s.serve(ctx, g, s.cfg.Health, s.health())
	}
	if s.cfg.Local != nil {
		s.serve(ctx, g, s.cfg.Local, s.local())
	}
	s.serving.Store(true)
	g.Go(func() error { <-ctx.Done(); s.serving.Store(false); s.gate.close(); return nil })
	return g.Wait()
}

// serve runs an HTTP server on ln as part of g. Sessions are hijacked from it:
// the gate waits for them.
func (s *Server) serve(ctx context.Context, g *errgroup.Group, ln net.Listener, h http.Handler) {
	var open atomic.Int64
	srv := &http.Server{
		Handler:           h,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: s.stepTimeout, // of TLS too
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // strangers' TLS faults
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ConnState: func(c net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				if open.Add(1) > maxTCP {
					s.metrics.handshakes.WithLabelValues("full").Inc()
					c.Close()
				}
			case http.StateHijacked, http.StateClosed:
				open.Add(-1)
			}
		},
	}
	g.Go(func() error { <-ctx.Done(); srv.Close(); return nil })
	g.Go(func() error {
		if err := srv.Serve(ln); ctx.Err() == nil {
			return fmt.Errorf("serve %s: %w", ln.Addr(), err)
		}
		return nil
	})
}

// public is what the world sees.
func (s *Server) public(ctx context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/session", s.serveSession(ctx))
	mux.HandleFunc("GET /v1/head", func(w http.ResponseWriter, _ *http.Request) {
		h := s.documents.newest()
		if h == nil {
			http.Error(w, "this relay serves no network yet", http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/jose")
		w.Header().Set("Cache-Control", "no-store")
		w.Write(h.Raw())
	})
	// What a head would say of this relay, for whoever claims it: the claim code
	// proves the key, and nothing here is to be believed before that.
	mux.HandleFunc("GET /v1/relay", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		json.NewEncoder(w).Encode(s.Entry())
	})
	return mux
}
