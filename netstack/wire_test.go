package netstack

import (
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

// wire carries messages between the ports of one test, in memory and in
// order. Like a UDP socket it drops what does not fit.
type wire struct {
	mu    sync.Mutex // guards ports
	ports map[key.WireGuardPublic]*port
}

// wireMessages is how many messages wait at a port: a socket buffer of 2 MB.
const wireMessages = 1536

var messages = sync.Pool{New: func() any { return new([2048]byte) }}

type message struct {
	b    *[2048]byte
	n    int
	from key.WireGuardPublic
}

// port is one device's Transport.
type port struct {
	w    *wire
	self key.WireGuardPublic

	sent, dropped atomic.Uint64
	opens         atomic.Int32
	cut           atomic.Bool  // drop all that is sent from here
	lose          atomic.Int32 // drop one message in so many
	largest       atomic.Int32 // drop what is larger, to here and from here; 0: nothing
	largestSent   atomic.Int32

	mu    sync.Mutex // guards the rest
	some  *sync.Cond
	queue []message
	open  bool
}

func newWire() *wire { return &wire{ports: make(map[key.WireGuardPublic]*port)} }

func (w *wire) port(self key.WireGuardPublic) *port {
	p := &port{w: w, self: self}
	p.some = sync.NewCond(&p.mu)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ports[self] = p
	return p
}

func (p *port) Open() (ReceiveFunc, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = true
	p.opens.Add(1)
	return p.receive, nil
}

func (p *port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = false
	p.queue = nil
	p.some.Broadcast()
	return nil
}

func (p *port) BatchSize() int { return 64 }

func (p *port) Send(to key.WireGuardPublic, bufs [][]byte) error {
	if p.cut.Load() {
		return nil
	}
	p.w.mu.Lock()
	q := p.w.ports[to]
	p.w.mu.Unlock()
	if q == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	lose := p.lose.Load()
	for _, b := range bufs {
		large := func(p *port) bool { n := p.largest.Load(); return n > 0 && len(b) > int(n) }
		if !q.open || len(q.queue) >= wireMessages || lose > 0 && rand.Int32N(lose) == 0 || large(p) || large(q) {
			p.dropped.Add(1)
			continue
		}
		m := message{b: messages.Get().(*[2048]byte), from: p.self}
		m.n = copy(m.b[:], b)
		p.largestSent.Store(max(p.largestSent.Load(), int32(len(b))))
		q.queue = append(q.queue, m)
		p.sent.Add(1)
	}
	q.some.Signal()
	return nil
}

func (p *port) receive(bufs [][]byte, sizes []int, from []key.WireGuardPublic) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) == 0 && p.open {
		p.some.Wait()
	}
	if !p.open {
		return 0, net.ErrClosed
	}
	n := min(len(p.queue), len(bufs))
	for i, m := range p.queue[:n] {
		sizes[i] = copy(bufs[i], m.b[:m.n])
		from[i] = m.from
		messages.Put(m.b)
	}
	p.queue = append(p.queue[:0], p.queue[n:]...)
	return n, nil
}

// side is one device of a test.
type side struct {
	*Device
	key  key.WireGuardPrivate
	port *port
}

func overlay(n byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x7a, 15: n})
}

func newSide(tb testing.TB, w *wire, n byte, change func(*Config)) *side {
	tb.Helper()
	s := &side{key: key.NewWireGuard()}
	s.port = w.port(s.key.Public())
	cfg := Config{
		PrivateKey: s.key,
		Addr:       overlay(n),
		Transport:  s.port,
		Log:        slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	s.Device = d
	if err := d.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { d.Close() })
	return s
}

// pair makes two devices that are each other's peers.
func pair(tb testing.TB) (a, b *side) {
	tb.Helper()
	w := newWire()
	a, b = newSide(tb, w, 1, nil), newSide(tb, w, 2, nil)
	join(tb, a, b, [32]byte{7}, [32]byte{7})
	return a, b
}

func join(tb testing.TB, a, b *side, pskA, pskB [32]byte) {
	tb.Helper()
	for _, x := range []struct {
		at, peer *side
		psk      [32]byte
	}{{a, b, pskA}, {b, a, pskB}} {
		err := x.at.SetPeer(Peer{PublicKey: x.peer.PublicKey(), Preshared: key.PresharedFrom(x.psk), Addr: x.peer.Addr()})
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// listen serves each flow with serve until the test ends.
func listen(tb testing.TB, s *side, port uint16, serve func(*Conn)) netip.AddrPort {
	tb.Helper()
	l, err := s.Listen(netip.AddrPortFrom(s.Addr(), port))
	if err != nil {
		tb.Fatal(err)
	}
	var wg sync.WaitGroup
	tb.Cleanup(func() { l.Close(); s.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.AcceptFlow()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); serve(c) })
		}
	})
	return l.AddrPort()
}

func echo(c *Conn) { io.Copy(c, c); c.CloseWrite() }

func dialTo(tb testing.TB, s *side, to netip.AddrPort) *Conn {
	tb.Helper()
	c, err := s.DialContext(within(tb, 10*time.Second), to)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}
