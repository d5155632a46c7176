//go:build e2e && linux

package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/test/issuer"
	"github.com/zt-daemon/zt/test/lab"
)

// patience is how long a command may take to say that something is wrong.
const patience = 15 * time.Second

// badInput gives commands what they must refuse: one clear message, a stable
// exit code, in time. Each case has a laptop of its own, unless it says
// otherwise.
func (s *stage) badInput(t *testing.T) {
	rogue := s.rogueRelay(t)
	real := s.fetchHead(t)
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, p *lab.Laptop) lab.Result
		code int
		says []string // in stderr, lower case
	}{
		{"no argument", func(t *testing.T, p *lab.Laptop) lab.Result {
			return p.ZT(s.within(t, patience), "login")
		}, 2, []string{"login"}},
		{"an unknown command", func(t *testing.T, p *lab.Laptop) lab.Result {
			return p.ZT(s.within(t, patience), "frobnicate")
		}, 2, []string{"frobnicate"}},
		{"a URL that is none", func(t *testing.T, p *lab.Laptop) lab.Result {
			return s.login(t, p, "ftp://relay/x")
		}, 2, []string{"https"}},
		{"another network's id", func(t *testing.T, p *lab.Laptop) lab.Result {
			return s.login(t, p, s.Relay.URL+"/"+otherNetwork(t).String())
		}, 1, []string{s.NetworkID, otherNetwork(t).String()}},
		{"an id with a typing error", func(t *testing.T, p *lab.Laptop) lab.Result {
			return s.login(t, p, s.LoginURL[:len(s.LoginURL)-1])
		}, 2, []string{"network id"}},
		{"no id and no terminal", func(t *testing.T, p *lab.Laptop) lab.Result {
			return s.login(t, p, s.Relay.URL)
		}, 2, []string{"terminal"}},
		{"nobody listens at the relay's address", func(t *testing.T, p *lab.Laptop) lab.Result {
			return s.login(t, p, "https://"+lab.RelayHost+":4444/"+s.NetworkID)
		}, 4, []string{lab.RelayHost + ":4444"}},
		{"the relay's address is silent", func(t *testing.T, p *lab.Laptop) lab.Result {
			return s.login(t, p, "https://"+lab.ClusterNAT+"/"+s.NetworkID)
		}, 4, []string{lab.ClusterNAT}},
		{"a head with an altered byte", func(t *testing.T, p *lab.Laptop) lab.Result {
			rogue.serve(bytes.Replace(real, []byte("."), []byte(".A"), 1))
			return s.login(t, p, rogue.url+"/"+s.NetworkID)
		}, 1, []string{"head"}},
		{"a head with another's signature", func(t *testing.T, p *lab.Laptop) lab.Result {
			rogue.serve(forgedHead(t, real))
			return s.login(t, p, rogue.url+"/"+s.NetworkID)
		}, 1, []string{"head"}},
		{"a page that is no head", func(t *testing.T, p *lab.Laptop) lab.Result {
			rogue.serve([]byte("<!doctype html><title>Welcome to the café's network</title>"))
			return s.login(t, p, rogue.url+"/"+s.NetworkID)
		}, 1, []string{"head"}},
		{"a head without end", func(t *testing.T, p *lab.Laptop) lab.Result {
			rogue.serve(bytes.Repeat([]byte("A"), 64<<20))
			return s.login(t, p, rogue.url+"/"+s.NetworkID)
		}, 1, []string{"head"}},
		{"the identity provider is down", func(t *testing.T, p *lab.Laptop) lab.Result {
			if err := s.Issuer.Stop(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := s.Issuer.Start(); err != nil {
					t.Fatal(err)
				}
			}()
			return s.login(t, p, s.LoginURL)
		}, 4, []string{s.Issuer.URL()}},
		{"the login is cancelled in the browser", func(t *testing.T, p *lab.Laptop) lab.Result {
			g, err := p.BeginLogin(s.within(t, patience), s.LoginURL)
			if err != nil {
				t.Fatal(err)
			}
			browser, err := s.Issuer.Browser(p.Namespace)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := issuer.VisitCancel(s.within(t, patience), browser, g.URL); err != nil {
				t.Fatal(err)
			}
			return g.Wait(s.within(t, patience))
		}, 1, []string{"cancelled in the browser"}},
		{"Ctrl-C during the login", func(t *testing.T, p *lab.Laptop) lab.Result {
			g, err := p.BeginLogin(s.within(t, patience), s.LoginURL)
			if err != nil {
				t.Fatal(err)
			}
			g.Process.Interrupt()
			return g.Wait(s.within(t, 3*time.Second))
		}, 1, []string{"cancel"}},
		{"an unknown cluster", func(t *testing.T, _ *lab.Laptop) lab.Result {
			return s.alice.ZT(s.within(t, patience), "credential", "no-such-cluster")
		}, 1, []string{"no-such-cluster"}},
		{"a kubeconfig for an unknown cluster", func(t *testing.T, _ *lab.Laptop) lab.Result {
			return s.alice.ZT(s.within(t, patience), "kubeconfig", "no-such-cluster")
		}, 1, []string{"no-such-cluster"}},
		{"a credential without a login", func(t *testing.T, p *lab.Laptop) lab.Result {
			return p.ZT(s.within(t, patience), "credential", s.ClusterName())
		}, 3, []string{"login"}},
		{"a broken kubeconfig", func(t *testing.T, p *lab.Laptop) lab.Result {
			if err := os.WriteFile(p.Kubeconfig, []byte("clusters: [\n"), 0o666); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if b, err := os.ReadFile(p.Kubeconfig); err != nil || string(b) != "clusters: [\n" {
					t.Errorf("the file was touched: %q, %v", b, err)
				}
			}()
			if err := os.Chown(p.Kubeconfig, aliceUID, aliceUID); err != nil {
				t.Fatal(err)
			}
			return s.visitAndWait(t, p)
		}, 1, []string{"config"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := s.NewLaptop("bad-"+strings.Map(dashes, tc.name), aliceUID)
			if err != nil {
				t.Fatal(err)
			}
			r := tc.run(t, p)
			p.ZT(s.within(t, patience), "down")
			s.expectRefusal(t, r, tc.code, tc.says...)
		})
	}
	t.Run("a head that was rolled back", func(t *testing.T) { s.rolledBackHead(t, rogue, real) })
	t.Run("a corrupt state directory", s.corruptState)
	t.Run("a loopback port that is taken", s.portTaken)
	t.Run("a corrupt node directory", s.corruptNode)
}

func dashes(r rune) rune {
	if r >= 'a' && r <= 'z' {
		return r
	}
	return '-'
}

// expectRefusal checks a command that had to fail.
func (s *stage) expectRefusal(t *testing.T, r lab.Result, code int, says ...string) {
	t.Helper()
	t.Logf("%v", r)
	if r.Err != nil || r.Elapsed > patience {
		t.Errorf("it took %s: %v", r.Elapsed, r.Err)
	}
	if r.Code != code {
		t.Errorf("exit code %d, want %d", r.Code, code)
	}
	text := r.Stderr + r.Stdout
	if !strings.Contains(text, "zt-daemon: ") {
		t.Error("no message of the form `zt-daemon: what happened`")
	}
	for _, want := range says {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(want)) {
			t.Errorf("the message does not say %q", want)
		}
	}
	for _, never := range []string{"panic", "goroutine ", "DATA RACE", "eyJ", "%!"} {
		if strings.Contains(text, never) {
			t.Errorf("the message holds %q", never)
		}
	}
}

// login runs a login that must fail before there is a browser.
func (s *stage) login(t *testing.T, p *lab.Laptop, address string) lab.Result {
	t.Helper()
	return p.ZT(s.within(t, patience+5*time.Second), "login", "--no-browser", address)
}

// visitAndWait logs alice in on p and gives what the command came to.
func (s *stage) visitAndWait(t *testing.T, p *lab.Laptop) lab.Result {
	t.Helper()
	g, err := p.BeginLogin(s.within(t, patience), s.LoginURL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Visit(s.within(t, patience), g.URL, "alice"); err != nil {
		t.Fatal(err)
	}
	return g.Wait(s.within(t, patience))
}

// fetchHead is the network's head as the relay publishes it.
func (s *stage) fetchHead(t *testing.T) []byte {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{
		DialContext: s.Network.Laptop.DialContext, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the head proves itself
	}}
	req, err := http.NewRequestWithContext(s.within(t, patience), http.MethodGet, s.Relay.URL+"/v1/head", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET /v1/head: %s, %v", resp.Status, err)
	}
	return bytes.TrimSpace(b)
}

// rogueRelay serves any bytes as a head, beside the real relay.
type rogueRelay struct {
	url  string
	head atomic.Pointer[[]byte]
}

func (r *rogueRelay) serve(head []byte) { r.head.Store(&head) }

func (s *stage) rogueRelay(t *testing.T) *rogueRelay {
	t.Helper()
	ca, err := lab.NewAuthority("somebody's CA")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Server(lab.RelayHost)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert.Certificate, cert.Key)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort(lab.RelayHost, "9443")
	ln, err := s.Network.Relay.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	r := &rogueRelay{url: "https://" + address}
	server := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if head := r.head.Load(); req.URL.Path == "/v1/head" && head != nil {
				_, _ = w.Write(*head)
				return
			}
			http.NotFound(w, req)
		}),
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ServeTLS(ln, "", "") }()
	t.Cleanup(func() { server.Close(); <-done })
	return r
}

// otherNetwork is an id that is not the scene's.
func otherNetwork(t *testing.T) auth.NetworkID {
	t.Helper()
	id, err := auth.ParseNetworkID(strings.Repeat("abcdefgh", 4))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// forgedHead is the real head's content under another network key that claims
// the network's id.
func forgedHead(t *testing.T, real []byte) []byte {
	t.Helper()
	head, err := auth.ParseHead(real)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := auth.SignHead(*head, key.NewNetwork())
	if err != nil {
		t.Fatal(err)
	}
	// The header of the forger's, the payload of the real one, the signature of the forger's.
	mine, theirs := strings.Split(string(forged.Raw()), "."), strings.Split(string(real), ".")
	return []byte(mine[0] + "." + theirs[1] + "." + mine[2])
}

// rolledBackHead shows an old head to a laptop that has seen a newer one.
func (s *stage) rolledBackHead(t *testing.T, rogue *rogueRelay, old []byte) {
	if r := s.Admin.ZT(s.within(t, patience), "network", "sign"); r.OK() != nil {
		t.Fatalf("sign a newer head: %v", r)
	}
	if bytes.Equal(s.fetchHead(t), old) {
		t.Fatal("the relay still serves the old head")
	}
	p, err := s.NewLaptop("rolled-back", aliceUID)
	if err != nil {
		t.Fatal(err)
	}
	defer p.ZT(s.within(t, patience), "down")
	if _, err := p.Login(s.within(t, time.Minute), "alice"); err != nil {
		t.Fatal(err)
	}
	rogue.serve(old)
	s.expectRefusal(t, s.login(t, p, rogue.url+"/"+s.NetworkID), 1, "version")
}

// corruptState breaks each of a laptop's state files in turn.
func (s *stage) corruptState(t *testing.T) {
	p, err := s.NewLaptop("corrupt", aliceUID)
	if err != nil {
		t.Fatal(err)
	}
	defer p.ZT(s.within(t, patience), "down")
	if _, err := p.Login(s.within(t, time.Minute), "alice"); err != nil {
		t.Fatal(err)
	}
	if r := p.ZT(s.within(t, patience), "down"); r.OK() != nil {
		t.Fatal(r)
	}
	heads, err := filepath.Glob(filepath.Join(p.Home, ".local/state/zt/networks/*/head.jws"))
	if err != nil || len(heads) != 1 {
		t.Fatalf("%d heads in the state directory, %v", len(heads), err)
	}
	if err := os.WriteFile(heads[0], []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := p.ZT(s.within(t, patience), "credential", s.ClusterName())
	s.expectRefusal(t, r, 1, "head.jws")
	if b, err := os.ReadFile(heads[0]); err == nil && string(b) != "garbage" {
		t.Errorf("the broken file was silently replaced by %q", b)
	}
}

// portTaken has somebody else listen on a cluster's loopback port.
func (s *stage) portTaken(t *testing.T) {
	p, err := s.NewLaptop("port", aliceUID)
	if err != nil {
		t.Fatal(err)
	}
	defer p.ZT(s.within(t, patience), "down")
	if _, err := p.Login(s.within(t, time.Minute), "alice"); err != nil {
		t.Fatal(err)
	}
	r := p.ZT(s.within(t, patience), "clusters", "-o", "json")
	var clusters []struct {
		Name string
		Port int
	}
	if err := json.Unmarshal([]byte(r.Stdout), &clusters); err != nil || len(clusters) != 1 {
		t.Fatalf("clusters: %v, %v", r, err)
	}
	if r := p.ZT(s.within(t, patience), "down"); r.OK() != nil {
		t.Fatal(r)
	}
	address := fmt.Sprintf("127.0.0.1:%d", clusters[0].Port)
	var ln net.Listener
	if err := lab.Eventually(s.within(t, patience), func(context.Context) (err error) {
		ln, err = p.Namespace.Listen("tcp", address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s.expectRefusal(t, p.ZT(s.within(t, patience), "credential", s.ClusterName()), 1, fmt.Sprint(clusters[0].Port))
}

// corruptNode starts a node from directories that are not whole.
func (s *stage) corruptNode(t *testing.T) {
	for _, tc := range []struct{ name, file, content, says string }{
		{"a broken cluster key", "cluster.key", "garbage", "cluster.key"},
		{"an unknown setting", "node.yaml", "colour: red\n", "colour"},
		{"a missing setting", "node.yaml", "cluster: c1\n", "node.yaml"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(filepath.Join(dir, "node"), os.DirFS(s.Node.Dir)); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "node", tc.file), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			r := s.Admin.ZT(s.within(t, patience), "node", "--dir", filepath.Join(dir, "node"))
			s.expectRefusal(t, r, 1, tc.says)
		})
	}
}
