package daemon_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/test/lab"
)

// TestRelayCertificate shows that a relay's certificate must be for the relay, by
// name or by address, also where its chain is good.
func TestRelayCertificate(t *testing.T) {
	ca, err := lab.NewAuthority("a CA that everybody trusts")
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM)
	for _, tc := range []struct {
		host string // of the certificate
		ok   bool
	}{{"127.0.0.1", true}, {"elsewhere.test", false}, {"192.0.2.1", false}} {
		cert, err := ca.Server(tc.host)
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(cert.Certificate, cert.Key)
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "no head") }))
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
		s.StartTLS()
		_, err = daemon.FetchHead(t.Context(), s.URL, auth.NetworkID{}, daemon.HTTPConfig{RootCAs: roots})
		s.Close()
		if _, untrusted := errors.AsType[*daemon.UntrustedError](err); untrusted == tc.ok || err == nil {
			t.Errorf("a certificate for %s: %v, want it trusted: %v", tc.host, err, tc.ok)
		}
	}
}
