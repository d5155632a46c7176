package relay

import (
	"bytes"
	"context"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A world is a network with one relay on loopback, an issuer and a cluster c1.
type world struct {
	t       *testing.T
	dir     string
	network key.NetworkPrivate
	id      auth.NetworkID
	cluster key.ClusterPrivate
	issuer  *testIssuer
	head    *auth.Head
	skew    atomic.Int64 // nanoseconds that the relay's clock is ahead
	audit   lockedBuffer

	tcp, udp string // addresses, the same after a restart
	relay    *Server
	stop     func()
	edit     func(*Server) // before Run; may be nil
	features uint64        // of participants' hellos
}

// newWorld starts a relay and claims it, unless unclaimed.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := newUnclaimed(t)
	w.claim()
	w.put(wire.DocumentRecord, w.record("c1", 1).Raw())
	return w
}

func newUnclaimed(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), network: key.NewNetwork(), cluster: key.NewCluster(), tcp: "127.0.0.1:0", udp: "127.0.0.1:0"}
	w.id = auth.IDOf(w.network.Public())
	w.issuer = newIssuer(t)
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.skew.Load())) }

// start runs the relay in w.dir.
func (w *world) start() {
	w.t.Helper()
	tcp, err := net.Listen("tcp", w.tcp)
	if err != nil {
		w.t.Fatal(err)
	}
	udp, err := ListenUDP(w.udp)
	if err != nil {
		w.t.Fatal(err)
	}
	w.tcp, w.udp = tcp.Addr().String(), udp[0].LocalAddr().String()
	w.relay, err = New(Config{
		StateDir: w.dir, Listener: tcp, UDP: udp, TLS: TLS{SelfSigned: []string{"127.0.0.1"}},
		Metrics: prometheus.NewRegistry(), Audit: &w.audit, Now: w.now,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if w.edit != nil {
		w.edit(w.relay)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.relay.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			w.t.Error("Run did not return 10 s after its context ended")
		}
	})
}

func (w *world) restart() {
	w.stop()
	w.start()
}

// signHead makes the head of a version.
func (w *world) signHead(version uint64, edit ...func(*auth.Head)) *auth.Head {
	w.t.Helper()
	h := auth.Head{Version: version, Relays: []auth.Relay{w.relay.Entry()}, Issuers: []auth.Issuer{w.issuer.entry()}}
	for _, e := range edit {
		e(&h)
	}
	signed, err := auth.SignHead(h, w.network)
	if err != nil {
		w.t.Fatal(err)
	}
	return signed
}

func (w *world) record(name string, version uint64, edit ...func(*auth.Record)) *auth.Record {
	w.t.Helper()
	return w.recordBy(auth.NetworkSigner(w.network), name, version, edit...)
}

func (w *world) recordBy(by auth.DocumentSigner, name string, version uint64, edit ...func(*auth.Record)) *auth.Record {
	w.t.Helper()
	r := auth.Record{
		Network: w.id, Name: name, Version: version, TLSName: "kubernetes", KeepUser: true,
		CAs:  []auth.Dated[string]{{Value: w.issuer.ca}},
		Keys: []auth.Dated[key.ClusterPublic]{{Value: w.cluster.Public()}},
	}
	for _, e := range edit {
		e(&r)
	}
	signed, err := auth.SignRecord(r, by)
	if err != nil {
		w.t.Fatal(err)
	}
	return signed
}

func (w *world) claim() {
	w.t.Helper()
	w.head = w.signHead(1)
	a := w.dial(key.NewWireGuard(), auth.NetworkID{}, w.relay.Key())
	a.send(&wire.Claim{Code: w.relay.ClaimCode(), Head: w.head.Raw()})
	expect[*wire.OK](a)
	a.close()
}

// admin is an administrator's session, by the network key.
func (w *world) admin() *participant {
	w.t.Helper()
	a := w.dial(key.NewWireGuard(), w.id, w.relay.Key())
	proof := &wire.AdminProof{}
	copy(proof.Key[:], w.network.Public().Bytes())
	proof.Signature = w.network.Sign(wire.AdminProofMessage(w.id, a.l.cipher.HandshakeHash()))
	a.send(proof)
	expect[*wire.OK](a)
	return a
}

// put stores a document as administrator; it must be taken.
func (w *world) put(kind wire.DocumentKind, raw []byte) {
	w.t.Helper()
	a := w.admin()
	a.send(&wire.PutDocument{Kind: kind, Raw: raw})
	expect[*wire.OK](a)
	a.close()
}

type numbered struct {
	number uint32
	m      wire.Message
}

// A participant is the other end of a session.
type participant struct {
	t       *testing.T
	w       *world
	wg      key.WireGuardPrivate
	l       *link
	welcome *wire.Welcome
	number  uint32
	in      chan numbered // closed when the session has ended
	re      uint32        // number of the message that expect returned last
	quit    context.CancelFunc

	// Of a person.
	login key.LoginPrivate
	token string
	grant auth.Grant
}

func (w *world) tls() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true} // the relay proves itself by Noise
}

// connect upgrades to a WebSocket.
func (w *world) connect() (*link, error) {
	var conn net.Conn
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	transport := &http.Transport{DialTLSContext: func(ctx context.Context, network, addr string) (_ net.Conn, err error) {
		conn, err = (&tls.Dialer{Config: w.tls()}).DialContext(ctx, network, addr)
		return conn, err
	}}
	defer transport.CloseIdleConnections()
	c, _, err := websocket.Dial(ctx, "wss://"+w.tcp+"/v1/session", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
	if err == nil {
		c.SetReadLimit(wire.MaxMessage)
		w.t.Cleanup(func() { c.CloseNow() })
	}
	return &link{c: c, conn: conn}, err
}

func (w *world) dial(wg key.WireGuardPrivate, network auth.NetworkID, relay key.RelayPublic) *participant {
	w.t.Helper()
	p, err := w.tryDial(wg, network, relay)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) tryDial(wg key.WireGuardPrivate, network auth.NetworkID, relay key.RelayPublic) (*participant, error) {
	l, err := w.connect()
	if err != nil {
		return nil, err
	}
	i, first, err := wire.NewInitiator(wg, relay, network)
	if err != nil {
		return nil, err
	}
	if err := l.write(first); err != nil {
		return nil, err
	}
	second, err := l.read()
	if err != nil {
		return nil, err
	}
	if l.cipher, err = i.Finish(second); err != nil {
		return nil, err
	}
	p := &participant{t: w.t, w: w, wg: wg, l: l, in: make(chan numbered, 1000)}
	_, m, err := l.receive(10 * time.Second)
	if err != nil {
		return nil, err
	}
	p.welcome = m.(*wire.Welcome)
	p.send(&wire.Hello{Version: wire.Version, Features: w.features})
	rctx, quit := context.WithCancel(context.Background())
	p.quit = quit
	done := make(chan struct{})
	w.t.Cleanup(func() { quit(); <-done })
	l.conn.SetReadDeadline(time.Time{})
	go func() {
		defer close(done)
		defer close(p.in)
		for {
			_, b, err := l.c.Read(rctx)
			if err != nil {
				return
			}
			// A buffer of its own for each: messages outlive the next read.
			if b, err = l.cipher.Open(nil, b); err != nil {
				return
			}
			n, m, err := wire.Parse(b)
			if err != nil {
				p.t.Errorf("the relay sent %x: %v", b, err)
				return
			}
			p.in <- numbered{n, m}
		}
	}()
	return p, nil
}

func (p *participant) send(m wire.Message) uint32 {
	p.t.Helper()
	p.number++
	if err := p.l.send(p.number, m); err != nil {
		p.t.Logf("send %T: %v", m, err)
	}
	return p.number
}

// close goes away without a word, as a laptop does.
func (p *participant) close() { p.quit(); p.l.c.CloseNow() }

// ended waits until the relay has closed the session.
func (p *participant) ended() {
	p.t.Helper()
	for {
		select {
		case m, ok := <-p.in:
			if !ok {
				return
			}
			p.t.Logf("before the end: %T", m.m)
		case <-time.After(10 * time.Second):
			p.t.Fatal("the session did not end")
		}
	}
}

// expect waits for a message of one type and fails for another, but for those
// that may come at any time.
func expect[M wire.Message](p *participant) M {
	p.t.Helper()
	var want M
	timeout := time.After(10 * time.Second)
	for {
		select {
		case in, ok := <-p.in:
			if !ok {
				p.t.Fatalf("the session ended, want %T", want)
			}
			p.re = in.number
			if m, ok := in.m.(M); ok {
				return m
			}
			switch in.m.(type) {
			case *wire.DocumentsChanged, *wire.PeerStatement, *wire.Ping:
				continue
			}
			p.t.Fatalf("got %T %+v, want %T", in.m, in.m, want)
		case <-timeout:
			p.t.Fatalf("no %T came", want)
		}
	}
}

func (p *participant) expectRefused(reason string) *wire.Refused {
	p.t.Helper()
	m := expect[*wire.Refused](p)
	if m.Reason != reason {
		p.t.Fatalf("refused as %q (%s), want %q", m.Reason, m.Detail, reason)
	}
	return m
}

// nothing checks that nothing came.
func (p *participant) nothing() {
	p.t.Helper()
	n := p.send(&wire.Ping{})
	if m := expect[*wire.Pong](p); m.Re != n {
		p.t.Fatalf("pong to %d, want %d", m.Re, n)
	}
}

// person dials and makes a grant for a subject's login key.
func (w *world) person(subject string, login key.LoginPrivate, wg key.WireGuardPrivate) *participant {
	w.t.Helper()
	p := w.dial(wg, w.id, w.relay.Key())
	p.login = login
	p.newGrant(subject)
	return p
}

func (p *participant) newGrant(subject string, edit ...func(map[string]any)) {
	p.t.Helper()
	c := auth.NewCommitment(p.w.id, p.login.Public())
	claims := p.w.issuer.claims(subject, c.Nonce(), p.w.now())
	for _, e := range edit {
		e(claims)
	}
	p.token = p.w.issuer.sign(p.t, claims)
	p.grant = auth.Grant{Issuer: p.w.issuer.url, IDToken: p.token, Commitment: c.Append(nil)}
	p.grant.Statement = p.statement(p.w.now(), time.Hour)
}

func (p *participant) statement(issued time.Time, life time.Duration) auth.SignedStatement {
	return auth.SignStatement(auth.Statement{
		Key: p.wg.Public(), Encapsulation: encapsulation(), Issued: issued, Expires: issued.Add(life),
	}, p.token, p.login)
}

var encapsulation = sync.OnceValue(func() (ek [auth.EncapsulationSize]byte) {
	dk, err := mlkem.GenerateKey768()
	if err != nil {
		panic(err)
	}
	copy(ek[:], dk.EncapsulationKey().Bytes())
	return ek
})

// login admits a person.
func (w *world) login(subject string) *participant {
	w.t.Helper()
	return w.loginWith(subject, key.NewLogin(), key.NewWireGuard())
}

func (w *world) loginWith(subject string, login key.LoginPrivate, wg key.WireGuardPrivate) *participant {
	w.t.Helper()
	p := w.person(subject, login, wg)
	p.present()
	return p
}

// present sends the grant, which must be admitted.
func (p *participant) present() *wire.Admitted {
	p.t.Helper()
	n := p.send(&wire.Grant{Kind: wire.GrantPerson, Body: p.grant.Append(nil)})
	m := expect[*wire.Admitted](p)
	if m.Re != n || netip.AddrFrom16(m.Addr) != p.w.id.PersonAddr(p.login.Public()) {
		p.t.Errorf("admitted %d as %s, want %d as %s", m.Re, netip.AddrFrom16(m.Addr), n, p.w.id.PersonAddr(p.login.Public()))
	}
	return m
}

// node admits a node of a cluster.
func (w *world) node(cluster string) *participant {
	w.t.Helper()
	return w.nodeWith(cluster, key.NewWireGuard())
}

func (w *world) nodeWith(cluster string, wg key.WireGuardPrivate) *participant {
	w.t.Helper()
	p := w.dial(wg, w.id, w.relay.Key())
	p.send(&wire.Grant{Kind: wire.GrantNode, Body: p.nodeGrant(cluster, w.cluster)})
	expect[*wire.Admitted](p)
	return p
}

func (p *participant) nodeGrant(cluster string, k key.ClusterPrivate) []byte {
	now := p.w.now()
	return auth.SignNodeGrant(p.w.id, cluster, p.wg.Public(), now, now.Add(time.Hour), k).Append(nil)
}

// join makes an edge and returns both channels.
func join(laptop, node *participant, cluster string) (id wire.EdgeID, ofLaptop, ofNode uint32) {
	laptop.t.Helper()
	rand.Read(id[:])
	n := laptop.send(&wire.EdgeRequest{Edge: id, Cluster: cluster})
	node.consent(id)
	ready := expect[*wire.EdgeReady](laptop)
	open := expect[*wire.EdgeOpen](node)
	if ready.Re != n || ready.Edge != id || open.Edge != id || ready.Peer != node.wg.Public() || open.Peer != laptop.wg.Public() ||
		string(ready.Answer) != "answer" || ready.Channel == 0 || open.Channel == 0 {
		laptop.t.Fatalf("ready %+v, open %+v", ready, open)
	}
	return id, ready.Channel, open.Channel
}

// consent answers the next offer, which must be of edge id.
func (p *participant) consent(id wire.EdgeID) {
	p.t.Helper()
	if offer := expect[*wire.EdgeOffer](p); offer.Edge != id {
		p.t.Fatalf("offer of edge %s, want %s", offer.Edge, id)
	}
	p.send(&wire.EdgeAnswer{Re: p.re, Edge: id, Answer: []byte("answer")})
}

// A binding is a participant's UDP socket.
type binding struct {
	p       *participant
	c       *net.UDPConn
	mac     *wire.BindMAC
	counter uint64
}

// bind binds the session to a new socket.
func (p *participant) bind() *binding {
	p.t.Helper()
	relay, err := net.ResolveUDPAddr("udp", p.w.udp)
	if err != nil {
		p.t.Fatal(err)
	}
	c, err := net.DialUDP("udp", nil, relay)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	b := &binding{p: p, c: c, mac: wire.NewBindMAC(p.welcome.Bind), counter: uint64(time.Now().UnixNano())}
	b.again()
	return b
}

func (b *binding) again() {
	t := b.p.t
	t.Helper()
	b.counter++
	b.write(b.mac.AppendRequest(nil, b.p.welcome.Session, b.counter, wire.BindPaddedSize))
	m := b.read()
	if typ, _, _ := wire.BindFields(m); typ == wire.BindChallenge && b.mac.Verify(m) {
		b.write(b.mac.AppendAnswer(nil, b.p.welcome.Session, b.counter, wire.BindCookie(m)))
		m = b.read()
	}
	if typ, _, _ := wire.BindFields(m); typ != wire.BindBound || !b.mac.Verify(m) {
		t.Fatalf("got %x, want Bound", m)
	}
	if got, want := wire.BindObserved(m), b.c.LocalAddr().(*net.UDPAddr).AddrPort(); got != want {
		t.Errorf("observed %s, want %s", got, want)
	}
}

func (b *binding) write(m []byte) {
	b.p.t.Helper()
	if _, err := b.c.Write(m); err != nil {
		b.p.t.Fatal(err)
	}
}

func (b *binding) read() []byte {
	b.p.t.Helper()
	b.c.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 2048)
	n, err := b.c.Read(buf)
	if err != nil {
		b.p.t.Fatal(err)
	}
	return buf[:n]
}

// silent checks that nothing arrives.
func (b *binding) silent() {
	b.p.t.Helper()
	b.c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := b.c.Read(make([]byte, 2048)); err == nil {
		b.p.t.Errorf("%d bytes arrived, want none", n)
	}
}

// passes checks that packets go from b's channel to other's.
func (b *binding) passes(channel uint32, other *binding, arrives uint32) {
	b.p.t.Helper()
	b.write(message(wire.PacketTransport, 200, channel))
	if got, want := other.read(), message(wire.PacketTransport, 200, arrives); !bytes.Equal(got, want) {
		b.p.t.Errorf("got %d bytes on channel %#x, want %d on %#x", len(got), wire.Channel(got), len(want), arrives)
	}
}

// lockedBuffer is a bytes.Buffer that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// events waits until the audit log has n events of a kind and returns them.
func (w *world) events(event string, n int) []Event {
	w.t.Helper()
	var found []Event
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		found = nil
		for line := range strings.Lines(w.audit.String()) {
			var e struct {
				Event  string `json:"event"`
				Reason string `json:"reason"`
				Detail string `json:"detail"`
				Sent   uint64 `json:"bytes_to_node"`
				Edge   string `json:"edge"`
				UID    string `json:"uid"`
			}
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				w.t.Fatalf("audit line %q: %v", line, err)
			}
			if e.Event == event {
				found = append(found, Event{Event: e.Event, Reason: e.Reason, Detail: e.Detail, Sent: e.Sent, UID: e.UID})
			}
		}
		if len(found) >= n {
			return found
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d audit lines of %s, want %d:\n%s", len(found), event, n, w.audit.String())
		}
	}
}

// get fetches a public page.
func (w *world) get(path string) (int, []byte) {
	w.t.Helper()
	transport := &http.Transport{TLSClientConfig: w.tls(), DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get("https://" + w.tcp + path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, b
}
