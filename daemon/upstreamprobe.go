package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

const (
	probeInterval = 5 * time.Second // while the API server answers
	probeSick     = time.Second     // while it does not
	probeTimeout  = 3 * time.Second
	// probeFaults is how many probes in a row fail before the API server is taken
	// to be down: one lost connection is none of that.
	probeFaults = 2
)

// upstreamProbe asks a node's API server whether it is ready.
type upstreamProbe struct {
	upstream string // host:port
	// trust says which roots and name its certificate is held against; nil roots:
	// none, an answer is enough.
	trust   func() (roots *x509.CertPool, name string)
	changed func(err error) // at the first result and each change between up and down

	mu    sync.Mutex // guards below
	known bool
	fault error
}

// UpstreamError says that the API server behind a node does not answer as it should.
type UpstreamError struct {
	Upstream string
	Err      error
}

func (e *UpstreamError) Error() string {
	return fmt.Sprintf("API server %s does not serve: %v", e.Upstream, e.Err)
}

// Unwrap returns the cause.
func (e *UpstreamError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *UpstreamError) Hint() string {
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	if errors.As(e.Err, &authority) || errors.As(e.Err, &name) {
		return "compare `upstream` of " + NodeConfigFile + " with the cluster; if the API server's certificate was replaced, run `zt-daemon cluster add` again"
	}
	return "see that it runs and that the node may reach it (`upstream` of " + NodeConfigFile + ", NetworkPolicy)"
}

// errNotProbed is the state before the first result.
var errNotProbed = errors.New("it has not been asked yet")

// state is nil while the API server answers.
func (p *upstreamProbe) state() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.known {
		return &UpstreamError{Upstream: p.upstream, Err: errNotProbed}
	}
	return p.fault
}

// run probes until ctx is done, over one connection that is kept.
func (p *upstreamProbe) run(ctx context.Context) {
	transport := &http.Transport{
		DialTLSContext: p.dial,
		MaxIdleConns:   1, IdleConnTimeout: 4 * probeInterval, MaxResponseHeaderBytes: 16 << 10, DisableCompression: true,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	faults := 0
	for {
		err := p.ask(ctx, client)
		if ctx.Err() != nil {
			return
		}
		wait := probeInterval
		if err != nil {
			faults++
			wait = probeSick
		} else {
			faults = 0
		}
		p.mu.Lock()
		news := err == nil && (!p.known || p.fault != nil) || faults == probeFaults || faults > 0 && !p.known
		if news || faults > probeFaults {
			p.known, p.fault = true, err
		}
		p.mu.Unlock()
		if news {
			p.changed(err)
		}
		sleep(ctx, wait)
	}
}

// dial connects and shakes hands. What the certificate is held against may
// change between one connection and the next.
func (p *upstreamProbe) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	roots, name := p.trust()
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, RootCAs: roots, ServerName: name, InsecureSkipVerify: roots == nil}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: probeTimeout}, Config: config}
	return dialer.DialContext(ctx, network, addr)
}

// ask is one probe. An API server that wants to know who asks answers too.
func (p *upstreamProbe) ask(ctx context.Context, client *http.Client) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.upstream+"/readyz", nil)
	if err != nil {
		return &UpstreamError{Upstream: p.upstream, Err: err}
	}
	resp, err := client.Do(req)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok { // its text repeats the URL
			err = wrapped.Err
		}
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %v", probeTimeout)
		}
		return &UpstreamError{Upstream: p.upstream, Err: err}
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 16<<10)) // so that the connection serves again
	if resp.StatusCode >= 500 {
		return &UpstreamError{Upstream: p.upstream, Err: fmt.Errorf("/readyz says HTTP status %d", resp.StatusCode)}
	}
	return nil
}
