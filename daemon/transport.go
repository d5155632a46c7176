package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/netstack"
	"github.com/zt-daemon/zt/relay/wire"
)

const (
	// batchSize is the most packets that one receive hands out, and what
	// wireguard-go calls ideal.
	batchSize = 128
	// maxDatagram is what one read may bring: a whole train of coalesced packets.
	maxDatagram = 64 << 10
	// socketBuffer is asked of the kernel for each direction, in bytes; it may
	// give less (net.core.rmem_max).
	socketBuffer = 7 << 20
)

// ErrNoPath says that no session has a channel for a peer.
var ErrNoPath = errors.New("no relay has a channel for this peer")

// TransportConfig says how a Transport is made. The zero value serves.
type TransportConfig struct {
	Local   netip.AddrPort        // where to listen; zero: any address and port
	Plain   bool                  // one system call a packet, as where the kernel cannot do better
	Log     *slog.Logger          // default: none
	Metrics prometheus.Registerer // default: none
}

// Transport carries sealed WireGuard messages between a netstack.Device and the
// relays of its participant's sessions, over one UDP socket. It implements
// netstack.Transport.
//
// The reserved bytes of each message carry a channel on the way to a relay and
// from it (see package wire). What arrives is handed on only if it comes from the
// UDP address of a session's relay and names a channel of that session; anything
// else is counted and dropped without an answer. A hostile relay that swaps
// channels achieves loss: WireGuard does not open what another peer sealed.
//
// Whoever reads the ReceiveFunc that Open returns also serves the sessions, whose
// address binding arrives by the same socket. Nothing is bound while nobody reads.
type Transport struct {
	cfg     TransportConfig
	log     *slog.Logger
	metrics *transportMetrics
	start   time.Time // what link.unanswered counts from

	mu     sync.Mutex // guards writes of the fields below
	socket atomic.Pointer[openSocket]
	links  atomic.Pointer[[]*link]
	mtu    atomic.Int32                        // see MTU
	sized  atomic.Pointer[func()]              // is told of changes of mtu; nil: nobody
	routes shards[key.WireGuardPublic, []*hop] // newest first
}

// openSocket boxes a socket, so that an atomic pointer holds it.
type openSocket struct {
	socket
	closed chan struct{}
}

// A socket is how a platform reads and writes UDP. One goroutine reads; any
// number write.
type socket interface {
	// read waits for datagrams and returns how many trains it took, none with an
	// error.
	read() (int, error)
	// train returns what read took, valid until the next read: b is packets of
	// segment bytes each, of which the last may be shorter.
	train(i int) (b []byte, segment int, from netip.AddrPort)
	// write sends packets, in order, to one address.
	write(packets [][]byte, to netip.AddrPort) error
	// writeWhole sends one packet that no router may cut in two. It returns
	// errors.ErrUnsupported where the system cannot promise that.
	writeWhole(packet []byte, to netip.AddrPort) error
	// offload says whether packets travel to and from the kernel in trains.
	offload() (send, receive bool)
	// wakeAt has read return os.ErrDeadlineExceeded at t; never, if t is zero.
	wakeAt(t time.Time)
	// relearn tries trains again that failed on another path.
	relearn()
	local() netip.AddrPort
	close() error
}

// NewTransport checks cfg. It opens nothing: Open does.
func NewTransport(cfg TransportConfig) (*Transport, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	t := &Transport{cfg: cfg, log: cfg.Log, start: time.Now()}
	t.links.Store(new([]*link))
	t.mtu.Store(netstack.DefaultMTU)
	var err error
	if t.metrics, err = newTransportMetrics(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("transport metrics: %w", err)
	}
	return t, nil
}

// Open opens the socket, unless it is open, and returns the function that
// receives. Only one goroutine may call that function at a time.
func (t *Transport) Open() (netstack.ReceiveFunc, error) {
	t.mu.Lock()
	s := t.socket.Load()
	if s == nil {
		raw, err := t.listen()
		if err != nil {
			t.mu.Unlock()
			return nil, fmt.Errorf("open UDP socket: %w", err)
		}
		s = &openSocket{raw, make(chan struct{})}
		t.socket.Store(s)
	}
	t.mu.Unlock()
	t.Rebind()
	r := receiver{t: t, socket: s}
	return r.receive, nil
}

func (t *Transport) listen() (socket, error) {
	if t.cfg.Plain {
		return listenPlain(t.cfg.Local)
	}
	return listenUDP(t.cfg.Local)
}

// listen opens a UDP socket for both address families where the system can.
func listen(local netip.AddrPort) (*net.UDPConn, error) {
	var addr *net.UDPAddr // nil: any, and both families where there are both
	if local.Addr().IsValid() {
		addr = net.UDPAddrFromAddrPort(local)
	} else if local.Port() != 0 {
		addr = &net.UDPAddr{Port: int(local.Port())}
	}
	c, err := net.ListenUDP("udp", addr)
	if err != nil {
		return nil, err
	}
	// A kernel that gives less has said no more than that bursts may be lost.
	_ = c.SetReadBuffer(socketBuffer)
	_ = c.SetWriteBuffer(socketBuffer)
	return c, nil
}

// Close closes the socket; the receive function then returns net.ErrClosed. It
// may be called twice, and Open may follow.
func (t *Transport) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.socket.Swap(nil)
	if s == nil {
		return nil
	}
	close(s.closed)
	return s.close()
}

// BatchSize is how many packets at most a receive hands out.
func (t *Transport) BatchSize() int { return batchSize }

// Rebind has every session prove its UDP address again at once. Call it when the
// machine's links have changed or it woke up.
func (t *Transport) Rebind() {
	if s := t.socket.Load(); s != nil {
		s.relearn()
	}
	for _, l := range *t.links.Load() {
		notify(l.rebind)
	}
}

// MTU implements netstack.Measurer: what every relay's path takes on which
// packets pass now, or did when any last did.
func (t *Transport) MTU() int { return int(t.mtu.Load()) }

// WatchMTU implements netstack.Measurer.
func (t *Transport) WatchMTU(changed func()) {
	if changed == nil {
		t.sized.Store(nil)
	} else {
		t.sized.Store(&changed)
	}
}

// measure looks at the paths again.
func (t *Transport) measure() {
	mtu := 0
	for _, l := range *t.links.Load() {
		switch {
		case !l.bound.Load():
		case !l.wide.Load():
			mtu = netstack.DefaultMTU
		case mtu == 0:
			mtu = netstack.MaxMTU
		}
	}
	if mtu == 0 || int(t.mtu.Swap(int32(mtu))) == mtu {
		return
	}
	if changed := t.sized.Load(); changed != nil {
		(*changed)()
	}
}

// WakeAt implements netstack.Waker.
func (t *Transport) WakeAt(at time.Time) {
	if s := t.socket.Load(); s != nil {
		s.wakeAt(at)
	}
}

// Send sends sealed messages to a peer by the newest session that works. It
// writes into the reserved bytes of each. The error is ErrNoPath, net.ErrClosed
// or the system's.
func (t *Transport) Send(to key.WireGuardPublic, packets [][]byte) error {
	s := t.socket.Load()
	if s == nil {
		return net.ErrClosed
	}
	h := t.route(to)
	if h == nil {
		t.metrics.dropped.add(dropNoPath, len(packets))
		return ErrNoPath
	}
	remote := h.link.remote.Load()
	if remote == nil { // the session ended meanwhile
		t.metrics.dropped.add(dropNoPath, len(packets))
		return ErrNoPath
	}
	for _, p := range packets {
		if len(p) < wire.MinTransportSize {
			return fmt.Errorf("packet of %d bytes is no WireGuard message", len(p))
		}
		wire.PutChannel(p, h.channel)
	}
	h.link.noteSent()
	if err := s.write(packets, *remote); err != nil {
		t.metrics.dropped.add(dropSend, len(packets))
		return fmt.Errorf("send to relay %s: %w", remote, err)
	}
	return nil
}

// A receiver hands out what a socket reads, in batches.
type receiver struct {
	t      *Transport
	socket *openSocket

	trains int // how many the last read brought
	next   int // the train that is next, below trains
	rest   []byte
	size   int // of each packet in rest
	link   *link
	last   *hop // of the packet before, in the same read: the next most likely has its channel
	now    time.Time
}

// receive is a netstack.ReceiveFunc. It returns without a packet when WakeAt says.
// Its error is net.ErrClosed and no other: the
// device would stop reading for good after any.
func (r *receiver) receive(packets [][]byte, sizes []int, from []key.WireGuardPublic) (int, error) {
	for faults := 0; ; {
		n := 0
		for n < len(packets) && r.advance() {
			b := r.rest[:min(r.size, len(r.rest))]
			r.rest = r.rest[len(b):]
			peer, ok := r.accept(b, packets[n])
			if ok {
				sizes[n], from[n] = len(b), peer
				n++
			}
		}
		if n > 0 {
			return n, nil
		}
		if err := r.read(); err == nil {
			faults = 0
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, nil
		} else if errors.Is(err, net.ErrClosed) {
			return 0, net.ErrClosed
		} else {
			// Windows reports a peer's ICMP here, others a full buffer table.
			faults++
			if faults == 1 {
				r.t.log.Debug("UDP receive", "err", err)
			}
			select {
			case <-r.socket.closed:
				return 0, net.ErrClosed
			case <-time.After(min(time.Duration(faults)*time.Millisecond, 100*time.Millisecond)):
			}
		}
	}
}

func (r *receiver) read() error {
	r.trains, r.next, r.rest, r.link, r.last = 0, 0, nil, nil, nil
	n, err := r.socket.read()
	if err != nil {
		return err
	}
	r.trains, r.now = n, time.Now() // one reading of the clock for all of them
	return nil
}

// advance makes rest non-empty, if there is anything left of the last read. It
// passes over what does not come from a session's relay.
func (r *receiver) advance() bool {
	for len(r.rest) == 0 {
		if r.next == r.trains {
			return false
		}
		b, size, from := r.socket.train(r.next)
		r.next++
		if size <= 0 {
			continue
		}
		if r.link == nil || !r.link.isRemote(from) {
			if r.link = r.t.linkOf(from); r.link == nil {
				r.t.metrics.dropped.add(dropSource, (len(b)+size-1)/size)
				continue
			}
			r.last = nil
		}
		r.rest, r.size = b, size
	}
	return true
}

// accept takes one packet of r.link's relay: it copies a WireGuard message with a
// channel of that session into dst, or consumes what concerns the binding.
func (r *receiver) accept(b, dst []byte) (peer key.WireGuardPublic, ok bool) {
	if !wire.IsPacket(b) {
		if wire.IsBind(b) {
			r.t.acceptBind(b, r.now)
		} else {
			r.t.metrics.dropped.add(dropMalformed, 1)
		}
		return peer, false
	}
	channel := wire.Channel(b)
	if r.last == nil || r.last.channel != channel {
		if r.last = r.t.hopOf(r.link, channel); r.last == nil {
			r.t.metrics.dropped.add(dropChannel, 1)
			return peer, false
		}
	}
	if len(b) > len(dst) {
		r.t.metrics.dropped.add(dropMalformed, 1)
		return peer, false
	}
	wire.PutChannel(dst[:copy(dst, b)], 0)
	r.last.link.noteHeard()
	return r.last.peer, true
}

// hopOf finds what a channel means, at first for l, then for other sessions with
// the same relay address.
func (t *Transport) hopOf(l *link, channel uint32) *hop {
	if h, ok := l.channels.get(byte(channel), channel); ok {
		return h
	}
	remote := l.remote.Load()
	if remote == nil {
		return nil
	}
	for _, other := range *t.links.Load() {
		if other == l || !other.isRemote(*remote) {
			continue
		}
		if h, ok := other.channels.get(byte(channel), channel); ok {
			return h
		}
	}
	return nil
}

func (t *Transport) linkOf(from netip.AddrPort) *link {
	for _, l := range *t.links.Load() {
		if l.isRemote(from) {
			return l
		}
	}
	return nil
}

// TransportStatus is for people.
type TransportStatus struct {
	Local   netip.AddrPort    `json:"local"` // invalid: closed
	GSO     bool              `json:"gso"`   // trains are sent whole
	GRO     bool              `json:"gro"`   // trains are received whole
	Dropped map[string]uint64 `json:"dropped"`
}

// Status says what the transport uses, and what it dropped by reason.
func (t *Transport) Status() TransportStatus {
	st := TransportStatus{Dropped: t.metrics.dropped.byReason()}
	if s := t.socket.Load(); s != nil {
		st.Local = s.local()
		st.GSO, st.GRO = s.offload()
	}
	return st
}

// notify wakes whoever waits on c, a channel of one, and does not wait.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
