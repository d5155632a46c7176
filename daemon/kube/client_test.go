package kube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// boundToken looks like the token of a pod's service account.
func boundToken(pod string) string {
	claims, _ := json.Marshal(map[string]any{"kubernetes.io": map[string]any{
		"namespace": "zt", "pod": map[string]string{"name": pod, "uid": "uid-" + pod}, "node": map[string]string{"name": "worker-1"},
	}})
	return "e30." + base64.RawURLEncoding.EncodeToString(claims) + ".c2ln"
}

// writeAccount makes a service account's directory.
func writeAccount(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// selfSigned makes a certificate for an IP address or a name.
func selfSigned(t *testing.T, host string) (tls.Certificate, string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// apiServer serves with a certificate for host, and returns it with its CA.
func apiServer(t *testing.T, host string, h http.HandlerFunc) (*httptest.Server, string) {
	t.Helper()
	cert, ca := selfSigned(t, host)
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = nil
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s, ca
}

func TestClient(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	var got []string
	server, ca := apiServer(t, "127.0.0.1", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = append(got, r.Method+" "+r.URL.String()+" "+r.Header.Get("Authorization")+" "+r.Header.Get("Content-Type")+" "+string(body))
	})
	dir := writeAccount(t, map[string]string{"token": boundToken("zt-1") + "\n", "namespace": "zt", "ca.crt": ca})
	c, err := New(Config{Address: server.Listener.Addr().String(), Account: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if c.Pod() != "zt-1" || c.pod.UID != "uid-zt-1" || c.node != "worker-1" || c.Namespace() != "zt" {
		t.Errorf("pod %+v on %q, want zt-1 of zt on worker-1, with its uid", c.pod, c.node)
	}
	grants := Resource{Group: "access.zt-daemon.io", Version: "v1alpha1", Kind: "AccessGrant", Plural: "accessgrants", Cluster: true}
	if err := c.ApplyStatus(t.Context(), grants, "a/../b", "u1", "zt-daemon/zt-1", map[string]string{"phase": "Active"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.ApplyStatus(t.Context(), grants, "g", "", "m", nil); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"PATCH /apis/access.zt-daemon.io/v1alpha1/accessgrants/a%2F..%2Fb/status?fieldManager=zt-daemon%2Fzt-1&force=true Bearer " + boundToken("zt-1") +
			` application/apply-patch+yaml {"apiVersion":"access.zt-daemon.io/v1alpha1","kind":"AccessGrant","metadata":{"name":"a/../b","uid":"u1"},"status":{"phase":"Active"}}`,
		"PATCH /apis/access.zt-daemon.io/v1alpha1/accessgrants/g/status?fieldManager=m&force=true Bearer second" +
			` application/apply-patch+yaml {"apiVersion":"access.zt-daemon.io/v1alpha1","kind":"AccessGrant","metadata":{"name":"g"},"status":null}`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("requests\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	t.Run("a CA that was replaced", func(t *testing.T) {
		_, other := selfSigned(t, "127.0.0.1")
		c.Close()
		if err := os.WriteFile(filepath.Join(dir, "ca.crt"), []byte(other), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.ApplyStatus(t.Context(), grants, "g", "", "m", nil); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("got %v, want that the authority is unknown", err)
		}
		if err := os.WriteFile(filepath.Join(dir, "ca.crt"), []byte(ca), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.ApplyStatus(t.Context(), grants, "g", "", "m", nil); err != nil {
			t.Error(err)
		}
	})

	t.Run("a certificate for another host", func(t *testing.T) {
		server, ca := apiServer(t, "elsewhere.test", func(http.ResponseWriter, *http.Request) { t.Error("it was asked") })
		c, err := New(Config{Address: server.Listener.Addr().String(), Account: writeAccount(t, map[string]string{"token": "t", "namespace": "zt", "ca.crt": ca}), Pod: "zt-1"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		if err := c.ApplyStatus(t.Context(), grants, "g", "", "m", nil); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "127.0.0.1") {
			t.Errorf("got %v, want that the certificate is not for 127.0.0.1", err)
		}
	})
}

func TestNew(t *testing.T) {
	_, ca := selfSigned(t, "127.0.0.1")
	whole := map[string]string{"token": boundToken("zt-1"), "namespace": "zt", "ca.crt": ca}
	with := func(name, text string) map[string]string {
		files := map[string]string{}
		for k, v := range whole {
			files[k] = v
		}
		files[name] = text
		return files
	}
	for _, tc := range []struct {
		name  string
		files map[string]string
		cfg   Config
		want  string // in the error; empty: none
	}{
		{"whole", whole, Config{Address: "10.96.0.1:443"}, ""},
		{"another pod than the token's", whole, Config{Address: "10.96.0.1:443", Pod: "other"}, ""},
		{"no mount", nil, Config{Address: "10.96.0.1:443"}, "namespace: no such file"},
		{"an empty token", with("token", " \n"), Config{Address: "10.96.0.1:443"}, "token: it is empty"},
		{"a CA that is none", with("ca.crt", "x"), Config{Address: "10.96.0.1:443"}, "it holds no certificate"},
		{"an unbound token and no name", with("token", "opaque"), Config{Address: "10.96.0.1:443"}, "POD_NAME"},
		{"no port", whole, Config{Address: "10.96.0.1"}, "host:port"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.cfg.Account = writeAccount(t, tc.files)
			c, err := New(tc.cfg)
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if tc.cfg.Pod != "" && (c.Pod() != tc.cfg.Pod || c.pod.UID != "") {
					t.Errorf("pod %+v, want %s, without another's uid", c.pod, tc.cfg.Pod)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestErrorSaysWhatIsMissing(t *testing.T) {
	grants := Resource{Group: "access.zt-daemon.io", Version: "v1alpha1", Kind: "AccessGrant", Plural: "accessgrants", Cluster: true}
	for _, tc := range []struct {
		name       string
		err        Error
		says, hint string
	}{
		{"no right to the policy", Error{Code: 403, request: request{verb: "watch", resource: ConfigMaps, only: "zt-policy"}},
			"watch configmaps zt-policy in namespace zt: the pod's service account has no right to it",
			`add to the Role of the service account in namespace zt the rule {apiGroups: [""], resources: [configmaps], resourceNames: [zt-policy], verbs: [get, list, watch]}`},
		{"no right to a status", Error{Code: 403, request: request{verb: "patch", resource: grants, name: "g", subresource: "status"}},
			"patch accessgrants.access.zt-daemon.io/status g: the pod's service account has no right to it",
			`add to the ClusterRole of the service account the rule {apiGroups: ["access.zt-daemon.io"], resources: [accessgrants/status], verbs: [patch]}`},
		{"a quota", Error{Code: 403, Message: `events "zt-1.2" is forbidden: exceeded quota: few, requested: count/events=1`, request: request{verb: "create", resource: events}},
			"create events in namespace zt: events \"zt-1.2\" is forbidden: exceeded quota", "ResourceQuota"},
		{"a right that RBAC denies", Error{Code: 403, Message: `events is forbidden: User "u" cannot create resource "events"`, request: request{verb: "create", resource: events}},
			"has no right to it", `verbs: [create, patch]}`},
		{"no right to events", Error{Code: 403, request: request{verb: "create", resource: events}},
			"create events in namespace zt", `resources: [events], verbs: [create, patch]}`},
		{"no CRD", Error{Code: 404, request: request{verb: "list", resource: grants}},
			"list accessgrants.access.zt-daemon.io: the API server knows no such resource", "CustomResourceDefinition accessgrants.access.zt-daemon.io"},
		{"no API server", Error{Err: errors.New("connection refused"), request: request{verb: "list", resource: grants}},
			"list accessgrants.access.zt-daemon.io: connection refused", "NetworkPolicy"},
		{"a fault of it", Error{Code: 500, Message: "etcd is away", request: request{verb: "list", resource: grants}},
			"etcd is away (HTTP status 500)", "the API server's log"},
		{"a token of before", Error{Code: 401, request: request{verb: "list", resource: grants}}, "does not accept", "clocks"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.err.namespace = "zt"
			if !strings.Contains(tc.err.Error(), tc.says) || !strings.Contains(tc.err.Hint(), tc.hint) {
				t.Errorf("got %q, hint %q\nwant %q, hint %q", tc.err.Error(), tc.err.Hint(), tc.says, tc.hint)
			}
		})
	}
}
