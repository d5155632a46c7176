package daemon

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestUpstreamProbe holds a probe's result against what an API server answers.
func TestUpstreamProbe(t *testing.T) {
	var status atomic.Int64
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" || r.Header.Get("Authorization") != "" {
			t.Errorf("asked for %s with %v", r.URL, r.Header)
		}
		w.WriteHeader(int(status.Load()))
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	known := x509.NewCertPool()
	known.AddCert(s.Certificate())
	for _, tc := range []struct {
		name   string
		status int64
		roots  *x509.CertPool
		host   string
		fault  string // in the error; empty: it answers
	}{
		{"ready", 200, known, "example.com", ""},
		{"wants to know who asks", 401, known, "example.com", ""},
		{"lets nobody ask", 403, known, "example.com", ""},
		{"not ready", 500, known, "example.com", "HTTP status 500"},
		{"another name", 200, known, "api.test", "certificate"},
		{"another authority", 200, x509.NewCertPool(), "example.com", "unknown authority"},
		{"no authority is known", 200, nil, "api.test", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			status.Store(tc.status)
			p := &upstreamProbe{upstream: s.Listener.Addr().String(), trust: func() (*x509.CertPool, string) { return tc.roots, tc.host }}
			results := make(chan error, 1)
			p.changed = func(err error) { results <- err }
			if p.state() == nil {
				t.Error("it is up before it was asked")
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); p.run(ctx) }()
			err := <-results
			cancel()
			<-done
			if (err == nil) != (tc.fault == "") || err != nil && !strings.Contains(err.Error(), tc.fault) || !errors.Is(p.state(), err) {
				t.Errorf("got %v, state %v, want %q", err, p.state(), tc.fault)
			}
		})
	}
}

// TestUpstreamProbeRecovers shows that one lost connection is no outage, that an
// outage is noticed in seconds, and that its end is.
func TestUpstreamProbeRecovers(t *testing.T) {
	var down atomic.Bool
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer s.Close()
	p := &upstreamProbe{upstream: s.Listener.Addr().String(), trust: func() (*x509.CertPool, string) { return nil, "" }}
	results := make(chan error, 8)
	p.changed = func(err error) { results <- err }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.run(ctx) }()
	defer func() { cancel(); <-done }()
	next := func(within time.Duration) error {
		t.Helper()
		select {
		case err := <-results:
			return err
		case <-time.After(within):
			t.Fatalf("no news within %v", within)
			return nil
		}
	}
	if err := next(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	s.CloseClientConnections()
	down.Store(true)
	if err := next(probeInterval + 3*probeSick); err == nil {
		t.Error("told twice that it is up")
	}
	down.Store(false)
	if err := next(3 * probeSick); err != nil {
		t.Errorf("it is back: %v", err)
	}
}
