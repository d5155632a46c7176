package daemon

import (
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestIssuerClientRoots: an issuer is believed by the roots that a command gives.
func TestIssuerClientRoots(t *testing.T) {
	issuer := httptest.NewTLSServer(http.NotFoundHandler())
	defer issuer.Close()
	pool := x509.NewCertPool()
	pool.AddCert(issuer.Certificate())
	for _, test := range []struct {
		name  string
		roots *x509.CertPool
		ok    bool
	}{{"the system's", nil, false}, {"its own", pool, true}, {"none", x509.NewCertPool(), false}} {
		c := HTTPConfig{RootCAs: test.roots}.issuerClient()
		resp, err := c.Get(issuer.URL)
		if err == nil {
			resp.Body.Close()
		}
		c.CloseIdleConnections()
		if (err == nil) != test.ok {
			t.Errorf("roots %s: %v", test.name, err)
		}
	}
}
