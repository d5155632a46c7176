package lab

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"sync"

	"github.com/zt-daemon/zt/test/issuer"
)

// Issuer is the test issuer serving TLS in a network of the lab. It runs in
// this process, so that a test may change users and keys.
type Issuer struct {
	*issuer.Issuer
	CA  []byte // PEM
	Pin string // of its certificate's public key

	namespace *Namespace
	address   string
	mu        sync.Mutex // guards stop
	stop      func() error
}

// StartIssuer serves an issuer on address (HOST:PORT, port 0 without a
// namespace only) with a certificate of ca. c.URL and c.Certificate are filled
// in.
func (l *Lab) StartIssuer(ca *Authority, namespace *Namespace, address string, c issuer.Config) (*Issuer, error) {
	ln, err := namespace.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("start the issuer: %w", err)
	}
	host, _, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		return nil, fmt.Errorf("start the issuer: %w", err)
	}
	cert, err := ca.Server(host, "localhost")
	if err != nil {
		return nil, fmt.Errorf("start the issuer: %w", err)
	}
	pair, err := tls.X509KeyPair(cert.Certificate, cert.Key)
	if err != nil {
		return nil, fmt.Errorf("start the issuer: %w", err)
	}
	c.URL, c.Certificate = "https://"+ln.Addr().String(), &pair
	server, err := issuer.New(c)
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("start the issuer: %w", err)
	}
	i := &Issuer{Issuer: server, CA: ca.PEM, Pin: cert.Pin, namespace: namespace, address: ln.Addr().String()}
	i.serve(ln)
	l.Cleanup(i.Stop)
	l.Say("the issuer serves %s", i.URL())
	return i, nil
}

func (i *Issuer) serve(ln net.Listener) {
	ctx, cancel := context.WithCancel(context.Background()) // ends by Stop
	done := make(chan error, 1)
	go func() { done <- i.Run(ctx, ln) }()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.stop = sync.OnceValue(func() error { cancel(); return <-done })
}

// Stop takes the issuer off the air. Its users, sessions and keys stay.
func (i *Issuer) Stop() error {
	i.mu.Lock()
	stop := i.stop
	i.mu.Unlock()
	return stop()
}

// Start serves again after a Stop.
func (i *Issuer) Start() error {
	ln, err := i.namespace.Listen("tcp", i.address)
	if err != nil {
		return fmt.Errorf("start the issuer again: %w", err)
	}
	i.serve(ln)
	return nil
}

// For is the issuer as the relying party with this client id knows it.
func (i *Issuer) For(clientID string) TrustedIssuer {
	return TrustedIssuer{URL: i.URL(), ClientID: clientID, CA: i.CA}
}

// Browser is an HTTP client that is a browser in a network: it keeps cookies
// and believes the issuer's certificate.
func (i *Issuer) Browser(namespace *Namespace) (*http.Client, error) {
	b, err := issuer.NewBrowser(i.CA)
	if err != nil {
		return nil, err
	}
	t, ok := b.Transport.(*http.Transport)
	if !ok {
		return nil, fmt.Errorf("the issuer's browser has a transport of type %T", b.Transport)
	}
	t.DialContext = namespace.DialContext
	return b, nil
}
