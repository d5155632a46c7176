package daemon

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// fakeRelay speaks a relay's side of one participant's sessions and does what a
// test tells it to, well-behaved or not.
type fakeRelay struct {
	t       *testing.T
	key     key.RelayPrivate
	network auth.NetworkID
	server  *httptest.Server
	udp     *net.UDPConn
	wg      sync.WaitGroup

	// answer says what the relay sends for a message; nil: the default answers.
	answer func(s *fakeSession, number uint32, m wire.Message) []wire.Message
	status int    // instead of a session, an HTTP status
	head   []byte // for GET /v1/head

	sessions chan *fakeSession
	packets  chan fakePacket

	mu      sync.Mutex // guards what follows
	current *fakeSession
	addr    netip.AddrPort // bound
	mute    bool           // answers nothing on UDP and reads nothing on control
	moves   int            // Answers that moved the address
	padded  int            // Binds of full size
}

type fakePacket struct {
	data []byte
	from netip.AddrPort
}

type fakeSession struct {
	relay    *fakeRelay
	ws       *websocket.Conn
	cipher   *wire.Cipher
	id       uint64
	mac      *wire.BindMAC
	peer     key.WireGuardPublic
	received chan wire.Message
	sendMu   sync.Mutex
	number   uint32
}

func newFakeRelay(t *testing.T) *fakeRelay {
	t.Helper()
	checkLeaks(t)
	r := &fakeRelay{
		t: t, key: key.NewRelay(), sessions: make(chan *fakeSession, 16), packets: make(chan fakePacket, 1024),
	}
	rand.Read(r.network[:])
	var err error
	if r.udp, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	r.server = httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	r.server.Config.ErrorLog = log.New(io.Discard, "", 0) // refused certificates are part of the tests
	r.server.StartTLS()
	r.wg.Go(r.serveUDP)
	t.Cleanup(func() {
		r.udp.Close()
		r.drop()
		r.server.Close()
		r.wg.Wait()
	})
	return r
}

// checkLeaks fails the test if it leaves goroutines behind. Call it before what
// has cleanups of its own.
func checkLeaks(t testing.TB) {
	leak := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leak) })
}

func (r *fakeRelay) pin() string { return SPKIPin(r.server.Certificate()) }

// entry is the relay as the head would name it.
func (r *fakeRelay) entry() auth.Relay {
	return auth.Relay{URL: r.server.URL, Key: r.key.Public(), Pins: []string{r.pin()}}
}

func (r *fakeRelay) udpAddr() netip.AddrPort { return r.udp.LocalAddr().(*net.UDPAddr).AddrPort() }

// drop ends the current session's connection.
func (r *fakeRelay) drop() {
	r.mu.Lock()
	s := r.current
	r.mu.Unlock()
	if s != nil {
		s.ws.CloseNow()
	}
}

func (r *fakeRelay) setMute(mute bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mute = mute
}

func (r *fakeRelay) muted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mute
}

func (r *fakeRelay) serve(w http.ResponseWriter, req *http.Request) {
	switch {
	case r.status != 0:
		http.Error(w, "not now", r.status)
	case req.URL.Path == "/v1/head":
		w.Write(r.head)
	case req.URL.Path == "/v1/session":
		ws, err := websocket.Accept(w, req, nil)
		if err != nil {
			return
		}
		defer ws.CloseNow()
		ws.SetReadLimit(wire.MaxMessage)
		if err := r.session(req.Context(), ws); err != nil && !errors.Is(err, net.ErrClosed) {
			r.t.Logf("fake relay: %v", err)
		}
	}
}

func (r *fakeRelay) session(ctx context.Context, ws *websocket.Conn) error {
	_, first, err := ws.Read(ctx)
	if err != nil {
		return err
	}
	second, peer, cipher, err := wire.Respond(r.key, r.network, first)
	if err != nil {
		return err
	}
	if err := ws.Write(ctx, websocket.MessageBinary, second); err != nil {
		return err
	}
	bind := key.NewBind()
	var id [8]byte
	rand.Read(id[:])
	s := &fakeSession{
		relay: r, ws: ws, cipher: cipher, mac: wire.NewBindMAC(bind), peer: peer,
		received: make(chan wire.Message, 1024),
	}
	for _, b := range id {
		s.id = s.id<<8 | uint64(b)
	}
	r.mu.Lock()
	r.current = s
	r.addr = netip.AddrPort{}
	r.mu.Unlock()
	s.send(&wire.Welcome{Version: wire.Version, Session: s.id, Bind: bind, UDP: r.udpAddr().String(), Time: uint64(time.Now().UnixMilli())})
	r.sessions <- s
	for {
		_, sealed, err := ws.Read(ctx)
		if err != nil {
			return err
		}
		plain, err := cipher.Open(nil, sealed)
		if err != nil {
			return err
		}
		number, m, err := wire.Parse(plain)
		if err != nil {
			return err
		}
		if r.muted() {
			continue
		}
		answer := r.answer
		if answer == nil {
			answer = defaultAnswer
		}
		for _, a := range answer(s, number, m) {
			s.send(a)
		}
		s.received <- m
	}
}

// defaultAnswer consents to everything.
func defaultAnswer(s *fakeSession, number uint32, m wire.Message) []wire.Message {
	switch m := m.(type) {
	case *wire.Grant, *wire.Statement:
		return []wire.Message{&wire.Admitted{Re: number, Expires: uint64(time.Now().Add(time.Hour).UnixMilli())}}
	case *wire.Ping:
		return []wire.Message{&wire.Pong{Re: number}}
	case *wire.Claim, *wire.PutDocument, *wire.AdminProof:
		return []wire.Message{&wire.OK{Re: number}}
	case *wire.DocumentsRequest:
		return []wire.Message{
			&wire.Document{Re: number, Kind: wire.DocumentHead, Raw: []byte("head")},
			&wire.Document{Re: number, Kind: wire.DocumentRecord, Raw: []byte("one")},
			&wire.Document{Re: number, Kind: wire.DocumentRecord, Raw: []byte("two")},
			&wire.DocumentsEnd{Re: number},
		}
	case *wire.EdgeRequest:
		return []wire.Message{&wire.EdgeReady{Re: number, Edge: m.Edge, Peer: peerOf(m.Cluster), Channel: channelOf(m.Cluster, 0), Answer: []byte("answer")}}
	case *wire.EdgeHold:
		return []wire.Message{&wire.EdgeKept{Edge: m.Edge, Channel: channelOf(m.Cluster, 1)}}
	}
	return nil
}

// peerOf is the key of a cluster's node.
func peerOf(cluster string) key.WireGuardPublic {
	h := sha256.Sum256([]byte(cluster))
	p, err := key.ParseWireGuard(h[:])
	if err != nil {
		panic(err)
	}
	return p
}

// channelOf is a channel for a cluster's node; another for each round.
func channelOf(cluster string, round uint32) uint32 {
	b := peerOf(cluster).Bytes()
	return (uint32(b[0])<<8|uint32(b[1]))<<4 | 1 + round
}

func (s *fakeSession) send(m wire.Message) {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	s.number++
	sealed, err := s.cipher.Seal(nil, wire.Append(nil, s.number, m))
	if err != nil {
		s.relay.t.Errorf("seal: %v", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = s.ws.Write(ctx, websocket.MessageBinary, sealed) // the other end may be gone
}

// serveUDP answers bind messages as a relay does, and keeps packets.
func (r *fakeRelay) serveUDP() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := r.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		b := buf[:n]
		if wire.IsPacket(b) {
			select {
			case r.packets <- fakePacket{append([]byte(nil), b...), from}:
			default:
			}
			continue
		}
		if wire.IsBind(b) {
			r.bind(b, from)
		}
	}
}

func (r *fakeRelay) bind(b []byte, from netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.current
	typ, session, counter := wire.BindFields(b)
	if s == nil || r.mute || session != s.id || !s.mac.Verify(b) {
		return
	}
	if len(b) == wire.BindPaddedSize {
		r.padded++
	}
	var reply []byte
	switch {
	case typ == wire.BindRequest && r.addr == from:
		reply = s.mac.AppendBound(nil, session, counter, from)
	case typ == wire.BindRequest:
		cookie := sha256.Sum256([]byte(from.String()))
		reply = s.mac.AppendChallenge(nil, session, counter, cookie[:])
	case typ == wire.BindAnswer:
		if want := sha256.Sum256([]byte(from.String())); string(wire.BindCookie(b)) != string(want[:]) {
			r.t.Errorf("answer with another cookie")
			return
		}
		if r.addr != from {
			r.addr = from
			r.moves++
		}
		reply = s.mac.AppendBound(nil, session, counter, from)
	default:
		r.t.Errorf("participant sent a bind message of type %#x", typ)
		return
	}
	if len(reply) > len(b) {
		r.t.Errorf("reply of %d bytes to %d", len(reply), len(b))
	}
	r.udp.WriteToUDPAddrPort(reply, from)
}

// binding is the address that the relay has for the session, how often an Answer
// moved it, and how many Binds were of full size.
func (r *fakeRelay) binding() (addr netip.AddrPort, moves, padded int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addr, r.moves, r.padded
}

// next returns the next session that got through its handshake.
func (r *fakeRelay) next() *fakeSession {
	r.t.Helper()
	return receive(r.t, r.sessions, "session")
}

// expect returns the next message of type M that the session received.
func expect[M wire.Message](t *testing.T, s *fakeSession) M {
	t.Helper()
	for {
		if m, ok := receive(t, s.received, "message").(M); ok {
			return m
		}
	}
}

// receive waits for a value for a time that only a fault exceeds.
func receive[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("no %s within 10 s", what)
		panic("unreachable")
	}
}

// eventually waits until claim holds.
func eventually(t testing.TB, what string, claim func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !claim(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// attached is a link without a session.
func attached(tr *Transport) *link {
	l := tr.newLink()
	tr.attach(l)
	return l
}

// A received packet, as the device would get it.
type gotPacket struct {
	data []byte
	from key.WireGuardPublic
}

// openTransport makes a transport and plays the device that reads it.
func openTransport(t testing.TB, cfg TransportConfig) (*Transport, <-chan gotPacket) {
	t.Helper()
	tr, err := NewTransport(cfg)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan gotPacket, 1024)
	var wg sync.WaitGroup
	wg.Go(readTransport(t, tr, got))
	t.Cleanup(func() {
		if err := errors.Join(tr.Close(), tr.Close()); err != nil { // twice is safe
			t.Error(err)
		}
		wg.Wait()
	})
	return tr, got
}

func readTransport(t testing.TB, tr *Transport, got chan<- gotPacket) func() {
	receive, err := tr.Open()
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		bufs, sizes := make([][]byte, tr.BatchSize()), make([]int, tr.BatchSize())
		from := make([]key.WireGuardPublic, tr.BatchSize())
		for i := range bufs {
			bufs[i] = make([]byte, 2048)
		}
		for {
			n, err := receive(bufs, sizes, from)
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("receive: %v", err)
				}
				return
			}
			for i := range n {
				select {
				case got <- gotPacket{append([]byte(nil), bufs[i][:sizes[i]]...), from[i]}:
				default:
				}
			}
		}
	}
}

// startSession runs a session until the test ends, with defaults for what cfg
// leaves out, and returns what Run returned.
func startSession(t testing.TB, r *fakeRelay, cfg SessionConfig) (*Session, <-chan error) {
	t.Helper()
	if cfg.Network.IsZero() {
		cfg.Network = r.network
	}
	if cfg.Relay.URL == "" {
		cfg.Relay = r.entry()
	}
	if cfg.Static.IsZero() {
		cfg.Static = key.NewWireGuard()
	}
	if cfg.Proof == nil {
		cfg.Proof = func(context.Context) (wire.GrantKind, []byte, error) { return wire.GrantPerson, []byte("grant"), nil }
	}
	if cfg.Busy == nil {
		cfg.Busy = func() bool { return true }
	}
	s, err := NewSession(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	ended := make(chan struct{})
	go func() { done <- s.Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	return s, done
}

// packet is a WireGuard message of n bytes with its reserved bytes zero.
func packet(n int, fill byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = fill
	}
	b[0], b[1], b[2], b[3] = wire.PacketTransport, 0, 0, 0
	return b
}
