package netstack

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/zt-daemon/zt/auth/key"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// ReceiveFunc fills up to len(bufs) of bufs with messages, sets their sizes
// and whom they are said to come from, and returns how many there are. It
// blocks until there is one, and returns net.ErrClosed once the transport is
// closed. It keeps none of its arguments. What from says is not trusted: a
// wrong key costs that message.
type ReceiveFunc func(bufs [][]byte, sizes []int, from []key.WireGuardPublic) (n int, err error)

// Transport carries sealed WireGuard messages (their reserved bytes zero)
// between this device and peers named by key.
type Transport interface {
	// Open returns what receives; one goroutine calls it. It may be called again
	// after Close.
	Open() (ReceiveFunc, error)
	// Send sends messages to a peer, at most BatchSize of them, and keeps
	// none. Like a UDP socket it drops rather than wait long: a device is not
	// closed, and no peer removed, while Send has not returned. It may be
	// called by several goroutines, also during Close and after it.
	Send(to key.WireGuardPublic, bufs [][]byte) error
	// Close makes every ReceiveFunc and Send return.
	Close() error
	// BatchSize is the most messages that one call carries; it is constant.
	BatchSize() int
}

// bind is a Transport in wireguard-go's form. Each peer has one endpoint,
// whose "address" is made from the peer's key. wireguard-go asks an endpoint
// for an address in two places: cookies are bound to it, and handshakes are
// limited by it, per address. With the relay's address, a flood in the name
// of one peer would lock out all of them.
type bind struct {
	transport Transport
	batch     int
	in, out   *flight
	order     *resequencer // the receiving goroutine's

	peers atomic.Pointer[map[key.WireGuardPublic]*endpoint] // an immutable snapshot

	mu     sync.Mutex    // guards closed and changes of peers
	closed chan struct{} // closed by Close; nil: not open
}

var _ conn.Bind = (*bind)(nil)

func newBind(t Transport, in, out *flight) *bind {
	b := &bind{transport: t, batch: t.BatchSize(), in: in, out: out, order: newResequencer(t)}
	b.peers.Store(&map[key.WireGuardPublic]*endpoint{})
	return b
}

// add makes an endpoint for k known.
func (b *bind) add(k key.WireGuardPublic) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := maps.Clone(*b.peers.Load())
	next[k] = newEndpoint(k)
	b.peers.Store(&next)
}

// remove forgets k: its messages are no longer looked at.
func (b *bind) remove(k key.WireGuardPublic) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := maps.Clone(*b.peers.Load())
	delete(next, k)
	b.peers.Store(&next)
}

func (b *bind) peer(k key.WireGuardPublic) *endpoint { return (*b.peers.Load())[k] }

// Open implements conn.Bind. The port has no meaning.
func (b *bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	fn, err := b.transport.Open()
	if err != nil {
		return nil, 0, err
	}
	b.closed = make(chan struct{})
	b.order.reset() // no goroutine receives between Close and Open
	return []conn.ReceiveFunc{b.receive(fn, b.closed)}, 0, nil
}

// receive wraps one ReceiveFunc, for the one goroutine that will call it.
func (b *bind) receive(fn ReceiveFunc, closed <-chan struct{}) conn.ReceiveFunc {
	from := make([]key.WireGuardPublic, b.batch)
	var thin thinner
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		if !b.in.wait(closed) {
			return 0, net.ErrClosed
		}
		thin.look(bufs)
		n := b.order.ready(bufs, sizes, eps)
		if n == 0 {
			var err error
			if n, err = fn(bufs, sizes, from[:min(len(from), len(bufs))]); err != nil {
				return 0, err
			}
			b.name(sizes, eps, from[:n])
			n = b.order.arrange(bufs, sizes, eps, n)
		}
		data := 0
		for i, size := range sizes[:n] {
			if isData(bufs[i][:size]) {
				data++
			}
		}
		b.in.enter(data)
		return n, nil
	}
}

// name finds the peers that messages are said to be from. Nobody's get size 0:
// wireguard-go skips what is too short.
func (b *bind) name(sizes []int, eps []conn.Endpoint, from []key.WireGuardPublic) {
	peers := *b.peers.Load()
	var last *endpoint // of a train, most often
	for i, k := range from {
		if last == nil || last.key != k {
			last = peers[k]
		}
		if last == nil {
			sizes[i] = 0
			continue
		}
		eps[i] = last
	}
}

// isData reports whether a sealed message carries a packet: a transport message
// that is no keepalive.
func isData(b []byte) bool {
	return len(b) > device.MessageKeepaliveSize && b[0] == device.MessageTransportType
}

// Close implements conn.Bind. wireguard-go calls it before the first Open too.
func (b *bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed == nil {
		return nil
	}
	close(b.closed)
	b.closed = nil
	return b.transport.Close()
}

// Send implements conn.Bind. wireguard-go's batches are the TUN's, which may
// be larger than the transport's.
func (b *bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	e, ok := ep.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	if n := countData(bufs); n > 0 { // also what the transport refuses is out
		defer b.out.leave(n)
	}
	for chunk := bufs; len(chunk) > 0; {
		n := min(len(chunk), b.batch)
		if err := b.transport.Send(e.key, chunk[:n]); err != nil {
			return err
		}
		chunk = chunk[n:]
	}
	e.sent(bufs)
	return nil
}

func countData(bufs [][]byte) (n int) {
	for _, b := range bufs {
		if isData(b) {
			n++
		}
	}
	return n
}

// ParseEndpoint implements conn.Bind: the text is a key in hexadecimal.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	raw, err := hex.DecodeString(s)
	if err != nil {
		return nil, errors.New("an endpoint is a public key in hexadecimal")
	}
	k, err := key.ParseWireGuard(raw)
	if err != nil {
		return nil, err
	}
	if e := b.peer(k); e != nil {
		return e, nil
	}
	return newEndpoint(k), nil
}

// BatchSize implements conn.Bind.
func (b *bind) BatchSize() int { return b.batch }

// SetMark implements conn.Bind: there is no socket here.
func (b *bind) SetMark(uint32) error { return nil }

// endpoint stands for one peer.
type endpoint struct {
	key  key.WireGuardPublic
	text string
	raw  []byte // 32 bytes
	ip   netip.Addr

	watched atomic.Pointer[chan struct{}]
	order   order
}

var _ conn.Endpoint = (*endpoint)(nil)

func newEndpoint(k key.WireGuardPublic) *endpoint {
	raw := k.Bytes()
	hash := sha256.Sum256(raw[:])
	ip := [16]byte(hash[:16])
	ip[0] = 0xfd // RFC 4193: an address that is nobody's
	return &endpoint{key: k, text: hex.EncodeToString(raw[:]), raw: raw[:], ip: netip.AddrFrom16(ip)}
}

// watchKeepalive returns a channel that is closed once a keepalive was sent.
func (e *endpoint) watchKeepalive() <-chan struct{} {
	ch := make(chan struct{})
	e.watched.Store(&ch)
	return ch
}

func (e *endpoint) sent(bufs [][]byte) {
	if e.watched.Load() == nil {
		return
	}
	for _, b := range bufs {
		if len(b) == device.MessageKeepaliveSize && b[0] == device.MessageTransportType {
			if ch := e.watched.Swap(nil); ch != nil {
				close(*ch)
			}
			return
		}
	}
}

// ClearSrc implements conn.Endpoint.
func (e *endpoint) ClearSrc() {}

// SrcToString implements conn.Endpoint.
func (e *endpoint) SrcToString() string { return "" }

// SrcIP implements conn.Endpoint.
func (e *endpoint) SrcIP() netip.Addr { return netip.Addr{} }

// DstToString implements conn.Endpoint, in the form that ParseEndpoint reads.
func (e *endpoint) DstToString() string { return e.text }

// DstToBytes implements conn.Endpoint: what a cookie is bound to. The callee
// does not write to it.
func (e *endpoint) DstToBytes() []byte { return e.raw }

// DstIP implements conn.Endpoint: what handshakes are limited by.
func (e *endpoint) DstIP() netip.Addr { return e.ip }
