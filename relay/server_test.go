package relay

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// leftOfRun is the stack of a goroutine that a Server began; empty: there is none.
func leftOfRun() string {
	stacks := make([]byte, 1<<20)
	for g := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
		for _, ours := range []string{"relay.(*Server).", "relay.(*session).", "relay.(*hub).", "relay.(*batch).", "relay.(*audit).", "relay.(*certificates)."} {
			if strings.Contains(g, ours) {
				return g
			}
		}
	}
	return ""
}

func TestRunEndsAllItBegan(t *testing.T) {
	w := newWorld(t)
	laptop, node := w.login("alice"), w.node("c1")
	join(laptop, node, "c1")
	laptop.bind()
	half, err := w.connect() // no grant
	if err != nil {
		t.Fatal(err)
	}
	idle, err := net.Dial("tcp", w.tcp) // no TLS
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	w.stop()
	w.stop()
	if err := w.relay.Close(); err != nil {
		t.Errorf("Close after Run: %v", err)
	}
	laptop.ended()
	node.ended()
	half.c.CloseNow()
	// One that has said that it is done may need a moment to be gone.
	for limit := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		left := leftOfRun()
		if left == "" {
			break
		}
		if time.Now().After(limit) {
			t.Errorf("a goroutine is left after Run:\n%s", left)
			break
		}
	}
	if _, err := net.Dial("tcp", w.tcp); err == nil {
		t.Error("the listener is open after Run")
	}
}

// TestSlowStrangers: each step of a session has an end.
func TestSlowStrangers(t *testing.T) {
	w := newWorld(t)
	w.edit = func(s *Server) { s.stepTimeout = 300 * time.Millisecond }
	w.restart()
	raw := func() net.Conn {
		c, err := net.Dial("tcp", w.tcp)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	secure := func() net.Conn { return tls.Client(raw(), w.tls()) }
	closed := func(name string, c net.Conn) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection is open after 5 s", name)
		}
	}
	closed("no TLS", raw())
	c := raw()
	fmt.Fprint(c, "\x16\x03\x01")
	closed("half a ClientHello", c)
	c = secure()
	fmt.Fprint(c, "GET /v1/session HTTP/1.1\r\nHost: x\r\n")
	closed("half a request", c)

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	silent, err := w.connect()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := silent.c.Read(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("a WebSocket without Noise: %v", err)
	}
	// Noise done, hello said, no grant.
	p := w.dial(key.NewWireGuard(), w.id, w.relay.Key())
	p.ended()
	for deadline := time.Now().Add(5 * time.Second); w.relay.gate.waiting() != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v sessions are half open, want none", w.relay.gate.waiting())
		}
	}
	// A first message that is replayed gets no further than the hello.
	first := make([]byte, 96)
	rand.Read(first)
	c2, err := w.connect()
	if err != nil {
		t.Fatal(err)
	}
	c2.c.Write(ctx, websocket.MessageBinary, first)
	if _, _, err := c2.c.Read(ctx); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("garbage for a handshake: %v", err)
	}
}

func TestHalfOpenIsCapped(t *testing.T) {
	var g gate
	for range maxHalfOpen {
		if !g.enter() {
			t.Fatal("the gate is closed too early")
		}
	}
	if g.enter() {
		t.Error("the gate has no cap")
	}
	g.admitted()
	if !g.enter() {
		t.Error("an admitted session still counts")
	}
	for range maxHalfOpen + 1 {
		g.all.Done()
	}
	g.close()
	if g.enter() {
		t.Error("a closed gate lets sessions in")
	}
}

// TestUDPSilence is TestSilence on a real socket, beside live sessions.
func TestUDPSilence(t *testing.T) {
	w := newWorld(t)
	laptop, node := w.login("alice"), w.node("c1")
	_, c, n := join(laptop, node, "c1")
	u, v := laptop.bind(), node.bind()
	conn, err := net.Dial("udp", w.udp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stranger := &binding{p: laptop, c: conn.(*net.UDPConn)}
	b := make([]byte, 1500)
	for i := range 4 * len(b) {
		m := b[:i%len(b)]
		rand.Read(m)
		if len(m) > 0 {
			m[0] = []byte{0x80, 0x82, 1, 4}[i/len(b)]
		}
		conn.Write(m)
		if i%50 == 0 {
			u.passes(c, v, n) // keeps pace, so that the kernel drops none
		}
	}
	conn.Write(laptop.mac().AppendRequest(nil, laptop.welcome.Session, 1, wire.BindSize)) // an old counter
	stranger.silent()
	u.passes(c, v, n)
}

func (p *participant) mac() *wire.BindMAC { return wire.NewBindMAC(p.welcome.Bind) }

// config is that of a relay which is not to run.
func config(t *testing.T, dir string) Config {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close(); udp.Close() })
	return Config{StateDir: dir, Listener: tcp, UDP: []*net.UDPConn{udp}, TLS: TLS{SelfSigned: []string{"127.0.0.1"}}, Metrics: prometheus.NewRegistry()}
}

func TestState(t *testing.T) {
	w := newWorld(t)
	w.login("alice")
	if _, _, err := w.relay.Revoke(Revocation{Issuer: w.issuer.url, UID: "alice"}); err != nil {
		t.Fatal(err)
	}
	if s, err := New(config(t, w.dir)); err == nil {
		s.Close()
		t.Error("two relays share a state directory")
	} else if e, ok := errors.AsType[*StateError](err); !ok || e.Hint() == "" {
		t.Errorf("a second relay fails with %v, without a hint", err)
	}
	pin := w.relay.Pin()
	w.stop()

	filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		info, err := d.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is for others too: %v", path, info.Mode())
		}
		return nil
	})

	// What a crash leaves of a write.
	for _, name := range []string{".new-1", "records/.new-2"} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := New(config(t, w.dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.documents.cluster("c1"); !ok || len(s.hub.revoked) != 1 || s.Pin() != pin {
		t.Errorf("record %v, %d revocations, pin %s (was %s)", ok, len(s.hub.revoked), s.Pin(), pin)
	}
	s.Close()

	for _, name := range []string{fileKeys, fileHead, fileRevocations, fileTLSKey} {
		path := filepath.Join(w.dir, name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for what, bad := range map[string][]byte{"cut": good[:len(good)/2], "empty": nil, "garbage": []byte("\x00\x01"), "huge": make([]byte, maxStateFile+1)} {
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if s, err := New(config(t, w.dir)); err == nil {
				s.Close()
				t.Errorf("%s, %s: the relay starts", name, what)
			} else if !strings.Contains(err.Error(), name) && name != fileTLSKey {
				t.Errorf("%s, %s: the error does not name the file: %v", name, what, err)
			}
			if kept, _ := os.ReadFile(path); !bytes.Equal(kept, bad) {
				t.Errorf("%s, %s: the file was changed", name, what)
			}
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(filepath.Join(w.dir, fileKeys), filepath.Join(w.dir, "moved")); err != nil {
		t.Fatal(err)
	}
	if s, err := New(config(t, w.dir)); err == nil {
		s.Close()
		t.Error("a claimed relay makes new keys")
	}
	os.Rename(filepath.Join(w.dir, "moved"), filepath.Join(w.dir, fileKeys))

	// What can be had again is put aside.
	for _, name := range []string{fileTickets, recordFile("c1")} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = New(config(t, w.dir)); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, ok := s.documents.cluster("c1"); ok || !s.Claimed() {
		t.Error("a corrupt record is served, or the relay lost its head")
	}
	for _, name := range []string{fileTickets, recordFile("c1")} {
		if aside, _ := filepath.Glob(filepath.Join(w.dir, name) + ".corrupt-*"); len(aside) != 1 {
			t.Errorf("%s was not put aside: %v", name, aside)
		}
	}
}

// TestFullDisk: serving goes on, a change is refused.
func TestFullDisk(t *testing.T) {
	w := newWorld(t)
	laptop, node := w.login("alice"), w.node("c1")
	_, c, n := join(laptop, node, "c1")
	u, v := laptop.bind(), node.bind()
	admin := w.admin()
	// No write of any file can begin in what is not a directory, not even root's.
	moved := w.dir + "-moved"
	if err := os.Rename(w.dir, moved); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, put := range []*wire.PutDocument{{Kind: wire.DocumentRecord, Raw: w.record("c1", 2).Raw()}, {Kind: wire.DocumentHead, Raw: w.signHead(2).Raw()}} {
		admin.send(put)
		admin.expectRefused(wire.ReasonStorage)
	}
	if r, _ := w.relay.documents.cluster("c1"); r.Version != 1 || w.relay.documents.newest().Version != 1 {
		t.Error("what was not stored is served")
	}
	u.passes(c, v, n)
	sessions, _, err := w.relay.Revoke(Revocation{Issuer: w.issuer.url, UID: "alice"})
	if _, ok := errors.AsType[*StateError](err); !ok || sessions != 1 {
		t.Errorf("revoke cut %d sessions, %v; want 1 and a StateError", sessions, err)
	}
	laptop.expectEnd(wire.ReasonRevoked)
	if err := errors.Join(os.Remove(w.dir), os.Rename(moved, w.dir)); err != nil {
		t.Fatal(err)
	}
	admin.send(&wire.PutDocument{Kind: wire.DocumentRecord, Raw: w.record("c1", 2).Raw()})
	expect[*wire.OK](admin)
}

func TestLocalAndHealth(t *testing.T) {
	w := newWorld(t)
	laptop, node := w.login("alice"), w.node("c1")
	join(laptop, node, "c1")
	laptop.bind()
	call := func(h http.Handler, method, path, body string) (int, string) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(method, path, strings.NewReader(body)))
		return rec.Code, rec.Body.String()
	}
	local, health := w.relay.local(), w.relay.health()
	if code, body := call(health, "GET", "/readyz", ""); code != 200 || body != "ok\n" {
		t.Errorf("/readyz: %d %q", code, body)
	}
	_, metrics := call(health, "GET", "/metrics", "")
	for _, line := range []string{
		`zt_relay_sessions{kind="person"} 1`, `zt_relay_sessions{kind="node"} 1`, `zt_relay_edges 1`,
		`zt_relay_admissions_total{kind="person"} 1`, `zt_relay_bind_bound_total 1`, `zt_relay_dropped_packets_total{reason="unknown_source"} 0`,
	} {
		if !strings.Contains(metrics, line) {
			t.Errorf("/metrics lacks %s", line)
		}
	}
	var st Status
	_, body := call(local, "GET", "/status", "")
	if err := json.Unmarshal([]byte(body), &st); err != nil || st.Network != w.id.String() || len(st.Clusters["c1"]) != 1 || st.Issuers[w.issuer.url] != "ok" || st.Edges != 1 {
		t.Errorf("/status: %s (%v)", body, err)
	}
	var peers []Peer
	_, body = call(local, "GET", "/peers", "")
	if err := json.Unmarshal([]byte(body), &peers); err != nil || len(peers) != 2 || peers[0].UID != "alice" || peers[0].Endpoint == "" || peers[1].Cluster != "c1" {
		t.Errorf("/peers: %s (%v)", body, err)
	}
	if code, body := call(local, "POST", "/revoke", `{"uid":"alice"}`); code != 400 || !strings.Contains(body, "hint") {
		t.Errorf("/revoke of half a person: %d %s", code, body)
	}
	if code, body := call(local, "POST", "/revoke", fmt.Sprintf(`{"uid":"alice","issuer":%q}`, w.issuer.url)); code != 200 || body != `{"sessions":1,"edges":1}`+"\n" {
		t.Errorf("/revoke: %d %s", code, body)
	}
	w.events(EventRevoke, 1)
	if _, body := call(local, "GET", "/audit", ""); !strings.Contains(body, `"event":"revoke"`) || strings.Contains(body, laptop.token) {
		t.Errorf("/audit: %s", body)
	}
	w.stop()
	if code, _ := call(health, "GET", "/readyz", ""); code != 503 {
		t.Errorf("/readyz of a relay that stopped: %d", code)
	}
}

func TestListenLocal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dir", "relay.sock")
	ln, err := ListenLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
	}
	if _, err := ListenLocal(path); err == nil {
		t.Error("a live socket was taken")
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // as a crash leaves it
	ln.Close()
	if ln, err = ListenLocal(path); err != nil {
		t.Fatalf("a dead socket was not taken: %v", err)
	}
	ln.Close()
}

func TestCertificateReload(t *testing.T) {
	dir := t.TempDir()
	st, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	now := time.Now()
	issue := func(host string) {
		t.Helper()
		os.Remove(filepath.Join(dir, fileTLSKey))
		os.Remove(filepath.Join(dir, fileTLSCert))
		if _, err := selfSigned(st, []string{host}, now); err != nil {
			t.Fatal(err)
		}
	}
	issue("one.test")
	c, err := newCertificates(TLS{CertFile: filepath.Join(dir, fileTLSCert), KeyFile: filepath.Join(dir, fileTLSKey)}, st, slog.New(slog.DiscardHandler), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	name := func() string {
		t.Helper()
		cert, err := c.config.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return cert.Leaf.DNSNames[0]
	}
	issue("two.test")
	if got := name(); got != "one.test" {
		t.Errorf("read again at once: %s", got)
	}
	now = now.Add(certCheck)
	if got := name(); got != "two.test" {
		t.Errorf("got %s, want the new certificate", got)
	}
	if err := os.WriteFile(filepath.Join(dir, fileTLSKey), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(certCheck)
	if got := name(); got != "two.test" {
		t.Errorf("got %s, want the last that fits together", got)
	}

	// Ticket keys outlive the process, and are replaced after a day.
	first := slices.Clone(c.tickets)
	again, err := newCertificates(TLS{SelfSigned: []string{"x"}}, openedStore(t), slog.New(slog.DiscardHandler), func() time.Time { return now })
	if err != nil || len(again.tickets) != 1 {
		t.Fatalf("%d ticket keys (%v)", len(again.tickets), err)
	}
	c.tickets = nil
	if err := c.loadTickets(); err != nil || len(c.tickets) != 1 || !bytes.Equal(c.tickets[0].Key, first[0].Key) {
		t.Errorf("another ticket key after a restart (%v)", err)
	}
	for range ticketKeep + 2 {
		now = now.Add(ticketRotate)
		if err := c.loadTickets(); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.tickets) != ticketKeep || bytes.Equal(c.tickets[0].Key, first[0].Key) {
		t.Errorf("%d ticket keys, want %d and a new one first", len(c.tickets), ticketKeep)
	}
	for _, bad := range []TLS{{}, {Domain: "x", SelfSigned: []string{"x"}}, {CertFile: "nowhere", KeyFile: "nowhere"}} {
		if _, err := newCertificates(bad, st, slog.New(slog.DiscardHandler), time.Now); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

func openedStore(t *testing.T) *store {
	t.Helper()
	st, err := openStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.close() })
	return st
}

func TestAuditFileRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	a, err := OpenAuditFile(path, 20, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for i := range 8 {
		if _, err := fmt.Fprintf(a, "line %d....\n", i); err != nil { // 11 bytes: one a file
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{path: "line 7", path + ".1": "line 6", path + ".2": "line 5"} {
		if b, err := os.ReadFile(name); err != nil || !strings.HasPrefix(string(b), want) {
			t.Errorf("%s: %q (%v), want %s", name, b, err, want)
		}
	}
	if _, err := os.Stat(path + ".3"); err == nil {
		t.Error("a third old file is kept")
	}
}
