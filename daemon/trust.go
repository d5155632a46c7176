package daemon

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// HTTPConfig says how HTTP requests leave this machine. The zero value serves.
type HTTPConfig struct {
	Proxy   func(*http.Request) (*url.URL, error) // default: none; commands pass http.ProxyFromEnvironment
	RootCAs *x509.CertPool                        // default: the system's
}

// transport makes an HTTP/1.1 transport: a WebSocket's upgrade is of that
// version. verify decides about the relay's certificate.
func (c HTTPConfig) transport(verify func(tls.ConnectionState) error) *http.Transport {
	dialer := &net.Dialer{Timeout: attemptTimeout}
	return &http.Transport{
		Proxy:                 c.Proxy,
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   attemptTimeout,
		ResponseHeaderTimeout: attemptTimeout,
		MaxIdleConns:          1,
		IdleConnTimeout:       time.Second,
		TLSClientConfig: &tls.Config{
			// verify does what is skipped here, on resumed connections too.
			InsecureSkipVerify: true,
			VerifyConnection:   verify,
			MinVersion:         tls.VersionTLS12,
			NextProtos:         []string{"http/1.1"},
			ClientSessionCache: tls.NewLRUClientSessionCache(2),
		},
	}
}

// verifyRelay accepts a certificate that is valid for the relay's name, or whose
// key the network's head pins. A pinned key is the identity: a self-signed
// certificate's name and dates say nothing more. (Only the leaf's key is looked
// at: it alone is proved by the handshake.)
//
// With neither, Noise still proves the relay's key inside the TLS, so that what
// is lost is only that an eavesdropper sees the messages' lengths; but a relay
// that is not what it seems is to be noticed, so the session does not begin.
func (c HTTPConfig) verifyRelay(relay string, pins []string) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("relay sent no certificate")
		}
		pin := SPKIPin(cs.PeerCertificates[0])
		if slices.Contains(pins, pin) {
			return nil
		}
		if err := c.verifyChain(relay, cs); err != nil {
			return &UntrustedError{Relay: relay, Pin: pin, Pins: len(pins), Err: err}
		}
		return nil
	}
}

// verifyChain holds a certificate against the roots and the name that was asked
// for. That is the connection's ServerName, which may be a proxy's, but for an
// address: then it is empty, and the relay's URL says it.
func (c HTTPConfig) verifyChain(relay string, cs tls.ConnectionState) error {
	name := cs.ServerName
	if name == "" {
		u, err := relayURL(relay)
		if err != nil {
			return err
		}
		name = u.Hostname()
	}
	between := x509.NewCertPool()
	for _, cert := range cs.PeerCertificates[1:] {
		between.AddCert(cert)
	}
	_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: name, Roots: c.RootCAs, Intermediates: between})
	return err
}

// trustAnyone is for what proves itself: a head that is asked for by network id.
func trustAnyone(tls.ConnectionState) error { return nil }

// SPKIPin is how a head names a relay's TLS key: base64 of SHA-256 over the
// certificate's SubjectPublicKeyInfo, as in RFC 7469 §2.4.
func SPKIPin(cert *x509.Certificate) string {
	h := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(h[:])
}

// relayURL checks a relay's URL and returns it without a slash at its end.
func relayURL(s string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimRight(s, "/"))
	if err != nil {
		return nil, fmt.Errorf("relay URL %q: %v", s, err)
	}
	if u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("relay URL %q is not of the form https://HOST[:PORT]", s)
	}
	return u, nil
}

// hostPort is where a URL's host listens.
func hostPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), "443")
}
