package daemon_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/relay"
	"github.com/zt-daemon/zt/relay/wire"
	"github.com/zt-daemon/zt/test/issuer"
)

// overlay is a whole network on loopback: issuer, relay, one cluster with one
// node before an HTTPS server that stands where an API server would, and laptops.
type overlay struct {
	t        *testing.T
	ctx      context.Context
	log      *slog.Logger
	issuer   *issuer.Issuer
	relayDir string
	relay    *relay.Server
	stop     func() // ends the relay
	network  key.NetworkPrivate
	head     *auth.Head
	nodeDir  string
	audit    *syncBuffer // the node's
	upstream *httptest.Server
	behind   *delayLine // nil: participants reach the relay directly
	kube     *fakeKube  // nil: the node is not in a pod
	node     *daemon.Node
	grace    time.Duration // the node's
	stopNode func()
	nodeName string
	nodeHTTP daemon.HTTPConfig
	relayNow func() time.Time                         // nil: time.Now
	relayUDP string                                   // where the relay says its UDP is; empty: where it is
	spoil    func(o *overlay, s *daemon.NodeSettings) // changes what the node is started with
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *syncBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

func newOverlay(t *testing.T) *overlay {
	t.Helper()
	return newOverlayBehind(t, nil)
}

// newOverlayBehind makes an overlay whose participants reach the relay through d.
func newOverlayBehind(t *testing.T, d *delayLine) *overlay {
	t.Helper()
	return newOverlayWith(t, &overlay{behind: d})
}

// newOverlayWith completes o.
func newOverlayWith(t *testing.T, o *overlay) *overlay {
	t.Helper()
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, ignore) })
	ctx, cancel := context.WithCancel(context.Background())
	o.t, o.ctx, o.relayDir, o.nodeDir, o.audit = t, ctx, t.TempDir(), t.TempDir(), &syncBuffer{}
	o.log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	var stopIssuer func()
	o.issuer, stopIssuer = issuer.Local(t, issuer.Config{})
	o.upstream = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/watch" { // a stream without an end
			w.WriteHeader(http.StatusOK)
			io.WriteString(w, "begun\n")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		}
		io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, "hello from the API server")
	}))
	o.startRelay("127.0.0.1:0", "127.0.0.1:0")
	o.claim()
	var nodes sync.WaitGroup
	o.startNode(&nodes)
	t.Cleanup(func() {
		cancel()
		nodes.Wait()
		o.stop()
		o.upstream.CloseClientConnections()
		o.upstream.Close()
		stopIssuer()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	return o
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// startRelay starts the relay on addresses, and sets stop.
func (o *overlay) startRelay(tcp, udp string) {
	o.t.Helper()
	ln, err := net.Listen("tcp", tcp)
	if err != nil {
		o.t.Fatal(err)
	}
	addr, err := net.ResolveUDPAddr("udp", udp)
	if err != nil {
		o.t.Fatal(err)
	}
	conn, err := net.ListenUDP("udp", addr)
	if err != nil {
		o.t.Fatal(err)
	}
	cfg := relay.Config{
		StateDir: o.relayDir, Listener: ln, UDP: []*net.UDPConn{conn}, TLS: relay.TLS{SelfSigned: []string{"127.0.0.1"}},
		Log: o.log.With("at", "relay"), Now: o.relayNow, AdvertiseUDP: o.relayUDP,
	}
	if o.behind != nil {
		cfg.URL, cfg.AdvertiseUDP = o.behind.before(ln.Addr().String(), conn.LocalAddr().String())
	}
	o.relay, err = relay.New(cfg)
	if err != nil {
		o.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(o.ctx)
	done := make(chan error, 1)
	go func() { done <- o.relay.Run(ctx) }()
	var once sync.Once
	o.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				o.t.Errorf("relay: %v", err)
			}
		})
	}
}

func (o *overlay) overlayIssuer() auth.Issuer {
	return auth.Issuer{URL: o.issuer.URL(), ClientID: issuer.OverlayClient}.WithDefaults()
}

// claim makes the network, and the record of cluster c1.
func (o *overlay) claim() {
	o.t.Helper()
	o.network = key.NewNetwork()
	head, err := auth.SignHead(auth.Head{
		Version: 1, NotAfter: time.Now().Add(time.Hour), Relays: []auth.Relay{o.relay.Entry()}, Issuers: []auth.Issuer{o.overlayIssuer()},
	}, o.network)
	if err != nil {
		o.t.Fatal(err)
	}
	o.head = head
	code, err := daemon.ParseClaimCode(o.relay.ClaimCode())
	if err != nil {
		o.t.Fatal(err)
	}
	if err := daemon.ClaimRelay(o.ctx, o.relay.Entry(), code, head, daemon.HTTPConfig{}); err != nil {
		o.t.Fatal(err)
	}
	cluster := key.NewCluster()
	api := auth.Issuer{URL: o.issuer.URL(), ClientID: issuer.APIServerClient}.WithDefaults()
	record, err := auth.SignRecord(auth.Record{
		Network: head.Network, Name: "c1", Version: 1, NotAfter: time.Now().Add(time.Hour),
		CAs:  []auth.Dated[string]{{Value: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.upstream.Certificate().Raw}))}},
		Keys: []auth.Dated[key.ClusterPublic]{{Value: cluster.Public()}}, TLSName: "example.com", Issuer: &api,
	}, auth.NetworkSigner(o.network))
	if err != nil {
		o.t.Fatal(err)
	}
	o.put(record)
	settings := daemon.NodeSettings{Network: head.Network, Cluster: "c1", Relay: o.relay.URL(), Upstream: o.upstream.Listener.Addr().String()}
	if o.kube != nil {
		settings.Kubernetes = &daemon.NodeKubernetes{PolicyConfigMap: "zt-policy", AccessGrants: true}
	}
	o.write(daemon.ClusterKeyFile, cluster.PEM())
	o.policy("groups: [developers]")
	if o.spoil != nil {
		o.spoil(o, &settings)
	}
	text, err := settings.Marshal()
	if err != nil {
		o.t.Fatal(err)
	}
	o.write(daemon.NodeConfigFile, text)
}

// put has the relay serve a record.
func (o *overlay) put(r *auth.Record) {
	o.t.Helper()
	a, err := daemon.DialAdmin(o.ctx, o.relay.Entry(), o.head.Network, daemon.HTTPConfig{})
	if err != nil {
		o.t.Fatal(err)
	}
	defer a.Close()
	if err := a.ProveNetwork(o.ctx, o.network); err != nil {
		o.t.Fatal(err)
	}
	if err := a.Put(o.ctx, wire.DocumentRecord, r.Raw()); err != nil {
		o.t.Fatal(err)
	}
}

// remove takes the cluster out of the network.
func (o *overlay) remove() {
	o.t.Helper()
	r, err := auth.SignRecord(auth.Record{Network: o.head.Network, Name: "c1", Version: 2, Removed: true}, auth.NetworkSigner(o.network))
	if err != nil {
		o.t.Fatal(err)
	}
	o.put(r)
}

func (o *overlay) write(name string, b []byte) {
	o.t.Helper()
	path := filepath.Join(o.nodeDir, name)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		o.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		o.t.Fatal(err)
	}
}

// policy replaces the cluster's policy: who is what a rule admits.
func (o *overlay) policy(who string) {
	o.t.Helper()
	text := fmt.Appendf(nil, "issuers: [{url: %q, clientID: %s}]\nrules: [{name: people, issuer: %q, %s}]\n",
		o.issuer.URL(), issuer.OverlayClient, o.issuer.URL(), who)
	if o.kube != nil {
		o.kube.policy(string(text))
		return
	}
	o.write(daemon.PolicyFile, text)
}

func (o *overlay) startNode(wg *sync.WaitGroup) {
	o.t.Helper()
	cfg := daemon.NodeConfig{Dir: o.nodeDir, Audit: o.audit, Log: o.log.With("at", "node"), Grace: o.grace, Name: o.nodeName, Version: "v1.2.3", HTTP: o.nodeHTTP}
	if o.kube != nil {
		cfg.APIServer, cfg.Account, cfg.Pod = o.kube.server.Listener.Addr().String(), o.kube.account, "zt-1"
	}
	n, err := daemon.NewNode(cfg)
	if err != nil {
		o.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(o.ctx)
	o.node, o.stopNode = n, stop
	wg.Go(func() {
		if err := n.Run(ctx); err != nil {
			o.t.Errorf("node: %v", err)
		}
	})
}

// laptop is one person's daemon.
type laptop struct {
	*daemon.Laptop
	o    *overlay
	dir  string
	stop func()
}

func (o *overlay) laptop(dir string) *laptop {
	o.t.Helper()
	state, err := daemon.OpenState(dir)
	if err != nil {
		o.t.Fatal(err)
	}
	secrets, err := daemon.NewSecrets(daemon.SecretsConfig{Dir: state.SecretsDir()})
	if err != nil {
		o.t.Fatal(err)
	}
	sockets, err := os.MkdirTemp("", "zt") // a Unix socket's path is short
	if err != nil {
		o.t.Fatal(err)
	}
	l, err := daemon.NewLaptop(daemon.LaptopConfig{
		State: state, Secrets: secrets, Socket: filepath.Join(sockets, "run", "s"), UID: os.Geteuid(), Log: o.log.With("at", "laptop"),
	})
	if err != nil {
		o.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(o.ctx)
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				o.t.Errorf("laptop: %v", err)
			}
			os.RemoveAll(sockets)
		})
	}
	o.t.Cleanup(stop)
	client := daemon.NewLocalClient(filepath.Join(sockets, "run", "s"), os.Geteuid())
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := client.Status(o.ctx); err == nil {
			break
		} else if time.Now().After(end) {
			o.t.Fatalf("the laptop's socket does not answer: %v", err)
		}
	}
	return &laptop{Laptop: l, o: o, dir: dir, stop: stop}
}

// login logs a user in as a browser would.
func (l *laptop) login(user string) (daemon.LoginResult, error) {
	browser, err := issuer.NewBrowser(nil)
	if err != nil {
		l.o.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(l.o.ctx, 30*time.Second)
	defer cancel()
	var visit sync.WaitGroup
	defer visit.Wait()
	return l.Login(ctx, daemon.LoginRequest{Relay: l.o.relay.URL(), Network: l.o.head.Network.String()}, func(e daemon.LoginEvent) {
		if e.Type == daemon.LoginBrowser {
			visit.Go(func() {
				if _, err := issuer.Visit(ctx, browser, e.URL, user); err != nil {
					l.o.t.Logf("visit as %s: %v", user, err)
				}
			})
		}
	})
}

// client is an HTTPS client of the API server through the laptop's listener.
func (l *laptop) client() (*http.Client, string) {
	l.o.t.Helper()
	clusters, err := l.Clusters(l.o.ctx)
	if err != nil || len(clusters) != 1 {
		l.o.t.Fatalf("clusters: %v, %v; want one", clusters, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(clusters[0].CA)) {
		l.o.t.Fatal("the cluster has no CA")
	}
	c := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: clusters[0].TLSName}, DisableKeepAlives: true,
	}, Timeout: time.Minute}
	return c, clusters[0].Server
}

func (l *laptop) get() (string, error) {
	c, url := l.client()
	resp, err := c.Get(url + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// watch opens a stream that does not end, and returns what its end brings.
func (l *laptop) watch() <-chan error {
	l.o.t.Helper()
	c, url := l.client()
	resp, err := c.Get(url + "/watch")
	if err != nil {
		l.o.t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, len("begun\n"))); err != nil {
		l.o.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		defer resp.Body.Close()
		_, err := resp.Body.Read(make([]byte, 1))
		ended <- err
	}()
	return ended
}

func (o *overlay) within(d time.Duration, what string, ended <-chan error) {
	o.t.Helper()
	began := time.Now()
	select {
	case err := <-ended:
		if err == nil || errors.Is(err, io.EOF) {
			o.t.Errorf("%s: the stream ended with %v, want a reset", what, err)
		}
		o.t.Logf("%s: cut after %v: %v", what, time.Since(began).Round(time.Millisecond), err)
	case <-time.After(d):
		o.t.Fatalf("%s: the stream still lives after %v", what, d)
	}
}

func TestOverlay(t *testing.T) {
	o := newOverlay(t)
	alice := o.laptop(t.TempDir())
	if _, err := alice.Credential(t.Context(), daemon.CredentialRequest{Cluster: "c1"}); daemon.AsLocalError(err).ExitCode() != 3 {
		t.Fatalf("credential before login: %v, want exit code 3", err)
	}
	result, err := alice.login("alice")
	if err != nil {
		t.Fatalf("login: %v", err)
	}
	if len(result.Clusters) != 1 || result.Clusters[0].Name != "c1" || result.Whoami.Email != "alice@example.test" {
		t.Errorf("login result %+v, want alice and cluster c1", result)
	}
	credential, err := alice.Credential(t.Context(), daemon.CredentialRequest{Cluster: "c1"})
	if err != nil {
		t.Fatalf("credential: %v", err)
	}
	if _, err := credential.ExecCredential(time.Now()); err != nil {
		t.Error(err)
	}
	if got, err := alice.get(); err != nil || got != "hello from the API server" {
		t.Fatalf("get through the overlay: %q, %v", got, err)
	}

	t.Run("bob is refused by name and reason", func(t *testing.T) {
		bob := o.laptop(t.TempDir())
		if _, err := bob.login("bob"); err != nil {
			t.Fatalf("login: %v", err)
		}
		_, err := bob.Credential(t.Context(), daemon.CredentialRequest{Cluster: "c1"})
		local := daemon.AsLocalError(err)
		if local.ExitCode() != 5 || !strings.Contains(local.Error(), "bob@example.test") || local.Hint() == "" {
			t.Errorf("got %v (exit code %d, hint %q), want bob's name, code 5 and a hint", err, local.ExitCode(), local.Hint())
		}
		if got, err := bob.get(); err == nil {
			t.Errorf("bob read %q", got)
		}
		bob.stop()
	})

	t.Run("a relay that is away leaves a stream alive, whoever asks for another", func(t *testing.T) {
		ended := alice.watch()
		tcp, udp := o.relay.Entry().URL, o.relay.Entry().UDP
		if udp == "" {
			udp = strings.TrimPrefix(tcp, "https://")
		}
		o.stop()
		alice.DropSpare("c1")
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			alice.get() // its node does not answer, and is not dead
		}()
		time.Sleep(8 * time.Second) // longer than a live node may take to answer
		o.startRelay(strings.TrimPrefix(tcp, "https://"), udp)
		<-asked
		deadline := time.Now().Add(20 * time.Second)
		for {
			st, _ := alice.Status(t.Context())
			if len(st.Networks) == 1 && len(st.Networks[0].Relays) == 1 && st.Networks[0].Relays[0].Path == "udp" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the laptop did not come back: %+v", st)
			}
			time.Sleep(50 * time.Millisecond)
		}
		for { // the node comes back in its own time
			if got, err := alice.get(); err == nil && got == "hello from the API server" {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("get after the restart: %q, %v", got, err)
			}
		}
		select {
		case err := <-ended:
			t.Errorf("the stream ended: %v", err)
		default:
		}
	})

	t.Run("a right that ends cuts the stream", func(t *testing.T) {
		ended := alice.watch()
		o.policy("groups: [others]")
		o.within(10*time.Second, "policy", ended)
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			// The reset may come before the relay's word that the edge is over.
			_, err := alice.Credential(t.Context(), daemon.CredentialRequest{Cluster: "c1"})
			if err != nil && daemon.AsLocalError(err).ExitCode() == 5 {
				break
			} else if time.Now().After(end) {
				t.Fatalf("credential after it: %v, want exit code 5", err)
			}
		}
		o.write(daemon.PolicyFile, []byte("rules: nonsense"))
		time.Sleep(2 * time.Second)
		o.policy("groups: [developers]")
		deadline := time.Now().Add(40 * time.Second) // relays remember a refusal for 30 s
		for {
			if got, err := alice.get(); err == nil && got != "" {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("not admitted again: %v", err)
			}
			time.Sleep(500 * time.Millisecond)
		}
	})

	t.Run("a port that the policy closes cuts the stream", func(t *testing.T) {
		ended := alice.watch()
		o.policy("groups: [developers], ports: [8443]")
		o.within(10*time.Second, "port", ended)
		o.policy("groups: [developers]")
		for end := time.Now().Add(40 * time.Second); ; time.Sleep(500 * time.Millisecond) {
			if got, err := alice.get(); err == nil && got != "" {
				break
			} else if time.Now().After(end) {
				t.Fatalf("not admitted again: %v", err)
			}
		}
	})

	t.Run("a daemon that starts again needs no login", func(t *testing.T) {
		alice.stop()
		alice = o.laptop(alice.dir)
		if got, err := alice.get(); err != nil || got == "" {
			t.Fatalf("get after the restart: %q, %v", got, err)
		}
	})

	t.Run("revocation at the relay cuts the stream", func(t *testing.T) {
		ended := alice.watch()
		who, _ := alice.Whoami(t.Context())
		if _, _, err := o.relay.Revoke(relay.Revocation{Issuer: who[0].Issuer, UID: who[0].Subject, Before: time.Now()}); err != nil {
			t.Fatal(err)
		}
		o.within(10*time.Second, "revocation", ended)
		time.Sleep(1100 * time.Millisecond) // iat has whole seconds
		if _, err := alice.login("alice"); err != nil {
			t.Fatalf("a newer login: %v", err)
		}
		if got, err := alice.get(); err != nil || got == "" {
			t.Fatalf("get after a newer login: %q, %v", got, err)
		}
	})

	t.Run("logout cuts the stream", func(t *testing.T) {
		ended := alice.watch()
		if err := alice.Logout(t.Context(), daemon.LogoutRequest{}); err != nil {
			t.Fatal(err)
		}
		o.within(10*time.Second, "logout", ended)
		if _, err := alice.Credential(t.Context(), daemon.CredentialRequest{Cluster: "c1"}); daemon.AsLocalError(err).ExitCode() != 3 {
			t.Errorf("credential after logout: %v, want exit code 3", err)
		}
		if strings.Contains(o.audit.String(), "eyJ") {
			t.Error("a token is in the node's audit log")
		}
	})
	alice.stop()
}
