// Package netstack is one participant's place on the overlay: a WireGuard
// device on a TCP/IP stack in user space, with Dial and Listen.
//
// It owns the stack, the WireGuard engine (which one is nobody else's
// business), its peers, and how packets pass between the two in batches. It
// carries TCP over IPv6 and nothing else. It must not know OIDC, relays or
// Kubernetes: sealed messages leave and arrive through a Transport, and peers
// are named by their public keys.
package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth/key"
	"golang.zx2c4.com/wireguard/device"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// workersEnd bounds the wait for wireguard-go's workers after it was
	// closed. They hold nothing and need microseconds.
	workersEnd = time.Second
)

// ErrNotStarted is returned by what needs a running device, before Start.
var ErrNotStarted = errors.New("the overlay device is not started")

// Config says what a Device is.
type Config struct {
	PrivateKey key.WireGuardPrivate
	// Addr is the overlay address: IPv6, unicast. It is the only one that
	// packets may come to or leave from.
	Addr      netip.Addr
	Transport Transport // a Measurer, if it knows what size passes
	// DropInboundSYN drops what would open a flow towards this device before
	// the stack sees it: for a laptop, which only dials.
	DropInboundSYN bool
	// Log takes wireguard-go's lines at debug level; nil is slog.Default().
	Log *slog.Logger
}

// Device is a WireGuard device on a TCP/IP stack. Make it with New, then
// Start it and Close it. Its methods may be called from several goroutines.
type Device struct {
	cfg    Config
	public key.WireGuardPublic
	drops  drops
	closed chan struct{} // closed by Close

	lifeMu sync.Mutex // guards begun, ended; held while starting and closing
	begun  bool
	ended  bool

	peerMu sync.Mutex // guards peers, and makes sets of the engine's peers atomic
	peers  map[key.WireGuardPublic]Peer

	mtuMu sync.Mutex  // guards tell, and makes changes of the MTU follow each other
	tell  *time.Timer // tells peers of it again

	readyMu sync.RWMutex // guards eng, which is set once, by Start
	eng     *engine
}

// engine is what Start builds. Its fields do not change.
type engine struct {
	stack  *stack.Stack
	link   *link
	bind   *bind
	budget *budget
	wg     *device.Device
	log    *engineLog
}

// New checks cfg. It starts nothing.
func New(cfg Config) (*Device, error) {
	if cfg.PrivateKey.IsZero() {
		return nil, errors.New("overlay device: no private key")
	}
	if !usable(cfg.Addr) {
		return nil, fmt.Errorf("overlay device: %v is not a unicast IPv6 address", cfg.Addr)
	}
	if cfg.Transport == nil {
		return nil, errors.New("overlay device: no transport")
	}
	if n := cfg.Transport.BatchSize(); n < 1 {
		return nil, fmt.Errorf("overlay device: the transport's batch size is %d", n)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Device{
		cfg:    cfg,
		public: cfg.PrivateKey.Public(),
		closed: make(chan struct{}),
		peers:  make(map[key.WireGuardPublic]Peer),
	}, nil
}

// usable reports whether a may be an overlay address.
func usable(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback()
}

// PublicKey is the key by which peers know this device.
func (d *Device) PublicKey() key.WireGuardPublic { return d.public }

// Addr is the overlay address.
func (d *Device) Addr() netip.Addr { return d.cfg.Addr }

// Start opens the transport and brings the device up. Whoever calls it calls
// Close. A device starts once.
func (d *Device) Start() error {
	d.lifeMu.Lock()
	defer d.lifeMu.Unlock()
	if d.ended {
		return net.ErrClosed
	}
	if d.begun {
		return errors.New("the overlay device was started before")
	}
	d.begun = true

	l := newLink(DefaultMTU)
	s, err := newStack(l, d.cfg.Addr)
	if err != nil {
		return fmt.Errorf("overlay device: %w", err)
	}
	in, out := newFlight(), newFlight()
	e := &engine{stack: s, link: l, bind: newBind(d.cfg.Transport, in, out), budget: newBudget(), log: newEngineLog(d.cfg.Log)}
	e.wg = device.NewDevice(newTun(l, d.cfg.Addr, d.cfg.DropInboundSYN, &d.drops, in, out), e.bind, e.log.logger())
	e.wg.DisableSomeRoamingForBrokenMobileSemantics() // before the first peer: endpoints are ours to say
	err = e.wg.SetPrivateKey(device.NoisePrivateKey(d.cfg.PrivateKey.Bytes()))
	if err == nil {
		err = e.wg.Up()
	}
	if err != nil {
		e.close()
		return fmt.Errorf("overlay device: %w", err)
	}
	d.readyMu.Lock()
	d.eng = e
	d.readyMu.Unlock()
	if m, ok := d.cfg.Transport.(Measurer); ok {
		m.WatchMTU(d.measure)
		d.measure()
	}
	return nil
}

// Close resets every flow (its other side sees a RST), closes the transport
// and returns once all that the device started has ended. Later calls return
// at once, or when the first one does.
func (d *Device) Close() error {
	d.lifeMu.Lock()
	defer d.lifeMu.Unlock()
	if d.ended {
		return nil
	}
	d.ended = true
	close(d.closed)
	if m, ok := d.cfg.Transport.(Measurer); ok {
		m.WatchMTU(nil)
	}
	d.mtuMu.Lock()
	if d.tell != nil {
		d.tell.Stop()
	}
	d.mtuMu.Unlock()
	// Take the lock: a SetPeer under way ends first, a later one sees closed.
	d.peerMu.Lock()
	keys := make([]key.WireGuardPublic, 0, len(d.peers))
	for k := range d.peers {
		keys = append(keys, k)
	}
	clear(d.peers)
	d.peerMu.Unlock()
	if e, _ := d.engine(); e != nil {
		e.link.stopWaiting() // from here on the stack is never held up
		if e.abortAll() > 0 {
			e.flush(keys)
		}
		e.close()
	}
	return nil
}

// close ends everything of e, in an order in which nobody waits for a
// goroutine that waits for it.
func (e *engine) close() {
	e.link.Close()     // releases the stack's writers and the TUN reader
	_ = e.bind.Close() // before wg: it would first wait for a Send under way
	e.wg.Close()
	e.log.waitWorkers(workersEnd)
	e.stack.Close()
	e.stack.Wait()
}

// engine returns what runs. After Close it returns the engine beside
// net.ErrClosed.
func (d *Device) engine() (*engine, error) {
	d.readyMu.RLock()
	e := d.eng
	d.readyMu.RUnlock()
	select {
	case <-d.closed:
		return e, net.ErrClosed
	default:
	}
	if e == nil {
		return nil, ErrNotStarted
	}
	return e, nil
}

// Done is closed when Close was called.
func (d *Device) Done() <-chan struct{} { return d.closed }

// DialContext opens a flow to an overlay address. It waits for a WireGuard
// handshake if there is none yet, so give ctx a deadline. It returns
// ErrNoPeer, as what it wraps, if no peer holds the address.
func (d *Device) DialContext(ctx context.Context, to netip.AddrPort) (*Conn, error) {
	c, err := d.dial(ctx, to)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	return c, nil
}

func (d *Device) dial(ctx context.Context, to netip.AddrPort) (*Conn, error) {
	e, err := d.engine()
	if err != nil {
		return nil, err
	}
	if !usable(to.Addr()) || to.Port() == 0 {
		return nil, fmt.Errorf("%v is not an overlay address with a port", to)
	}
	if !d.holds(to.Addr()) {
		return nil, ErrNoPeer
	}
	return dialStack(ctx, e.stack, e.budget, d.closed, to)
}

// Listen accepts flows on the overlay address, which at must name (or be
// unspecified); port 0 takes a free one.
func (d *Device) Listen(at netip.AddrPort) (*Listener, error) {
	l, err := d.listen(at)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: net.TCPAddrFromAddrPort(at), Err: err}
	}
	return l, nil
}

func (d *Device) listen(at netip.AddrPort) (*Listener, error) {
	e, err := d.engine()
	if err != nil {
		return nil, err
	}
	if at.Addr().IsValid() && !at.Addr().IsUnspecified() && at.Addr() != d.cfg.Addr {
		return nil, fmt.Errorf("%v is not this device's overlay address", at.Addr())
	}
	if d.cfg.DropInboundSYN {
		return nil, errors.New("this device drops inbound flows")
	}
	return listenStack(e.stack, e.budget, netip.AddrPortFrom(d.cfg.Addr, at.Port()))
}
