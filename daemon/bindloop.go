package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/zt-daemon/zt/relay/wire"
)

const (
	bindFast      = 250 * time.Millisecond // between the first tries on a new path
	bindFastTries = 4
	bindSlow      = time.Second // between the next ones
	bindSlowTries = 10
	bindRare      = 10 * time.Second // once UDP seems not to pass at all
	bindWideTries = 3                // whether the largest packets pass, on a path where full ones do
	bindKeepalive = 20 * time.Second // below NATs' 30 s (RFC 4787 §4.3 asks for two minutes; many give less)
	silenceBefore = time.Second      // what is sent and not answered for so long is looked into
	pingIdle      = time.Minute      // control messages pass at least so often
	lostBusy      = 3 * time.Second  // no answer for so long is a lost relay while flows are open
	lostIdle      = 10 * time.Second
	wakeAfter     = 5 * time.Second // the wall clock ran ahead of the monotonic one by so much: the machine slept
)

// errLost says that a relay stopped answering.
var errLost = errors.New("no answer from the relay")

// PathStatus says how packets reach a relay.
type PathStatus struct {
	Relay    netip.AddrPort `json:"relay"`    // its UDP address that is in use or tried; invalid: none
	Bound    bool           `json:"bound"`    // packets pass, of full size too
	Wide     bool           `json:"wide"`     // and the largest, of an overlay MTU of 1,420
	Observed netip.AddrPort `json:"observed"` // our address as the relay sees it
	RTT      time.Duration  `json:"rtt"`      // of the latest Bind
	Since    time.Time      `json:"since"`    // bound, or not, since then
}

// A binder proves one connection's UDP address to the relay, keeps it proved, and
// notices when the relay is gone. step and the other methods belong to the bind
// loop; status may be called by anybody.
type binder struct {
	link *link
	keys *linkKeys
	busy func() bool
	ping func()           // sends a control Ping
	last func() time.Time // when a control message was last received

	addrs   []netip.AddrPort
	addr    int    // index of the one in use
	counter uint64 // of the latest Bind
	bound   uint64 // of the latest Bound
	sent    [16]sentBind
	tries   int       // on this path, unanswered
	due     time.Time // of the next Bind
	full    bool      // full packets were proved on this path
	wide    bool      // and the largest
	asked   int       // how often the largest were tried on this path
	probe   time.Time // the oldest Bind or Ping after which nothing was heard; zero: none
	pinged  time.Time // the latest Ping
	stepped time.Time // the last step
	buf     []byte

	mu    sync.Mutex // guards state
	state PathStatus
}

type sentBind struct {
	counter uint64
	at      time.Time
	size    int // bytes
}

func (b *binder) status() PathStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

// run binds until ctx ends or the relay is lost. It owns the link's replies.
func (b *binder) run(ctx context.Context) error {
	b.link.keys.Store(b.keys)
	defer func() {
		b.link.keys.Store(nil)
		b.link.setBound(false)
		b.link.watched.Store(false)
	}()
	now := time.Now()
	b.pinged, b.stepped = now, now
	b.restart(now)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.link.rebind:
			b.restart(time.Now())
		case r := <-b.link.replies:
			if r.keys == b.keys {
				b.reply(r)
			}
		case <-b.link.wake:
		case <-timer.C:
		}
		now := time.Now()
		next, err := b.step(now)
		if err != nil {
			return err
		}
		timer.Reset(next)
	}
}

// restart looks at the path as a new one: links changed, or the machine woke.
func (b *binder) restart(now time.Time) {
	b.tries, b.full = 0, false
	b.narrow()
	b.due = now
	b.use(b.addr)
}

// use sends to the i-th of the relay's addresses.
func (b *binder) use(i int) {
	b.addr = i
	if len(b.addrs) == 0 {
		return
	}
	a := b.addrs[i%len(b.addrs)]
	b.link.remote.Store(&a)
	b.mu.Lock()
	b.state.Relay = a
	b.mu.Unlock()
}

// narrow forgets that the largest packets pass.
func (b *binder) narrow() {
	b.asked = 0
	b.setWide(false)
}

func (b *binder) setWide(wide bool) {
	b.wide = wide
	b.link.setWide(wide)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state.Wide = wide
}

func (b *binder) setBound(bound bool, now time.Time) {
	b.link.setBound(bound)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state.Bound != bound || b.state.Since.IsZero() {
		b.state.Bound, b.state.Since = bound, now
	}
}

// reply takes an answer that authenticated.
func (b *binder) reply(r bindReply) {
	sent := b.sent[r.counter%uint64(len(b.sent))]
	if r.counter > b.counter || sent.counter != r.counter {
		return // not a Bind of ours, or one from long ago
	}
	b.heard()
	switch r.typ {
	case wire.BindChallenge:
		if r.counter <= b.bound {
			return
		}
		// The relay does not know this address: a new path, whatever was proved before.
		b.full = b.full && sent.size >= wire.BindPaddedSize
		if sent.size < wire.BindWideSize {
			b.narrow()
		}
		b.buf = b.keys.mac.AppendAnswer(b.buf[:0], b.keys.session, r.counter, r.cookie[:])
		b.link.sendBind(b.buf)
	case wire.BindBound:
		if r.counter <= b.bound {
			return
		}
		b.bound = r.counter
		if !b.link.silence().After(sent.at) { // what was sent after that Bind is not answered by this
			b.link.noteHeard()
		}
		b.full = b.full || sent.size >= wire.BindPaddedSize
		b.mu.Lock()
		moved := b.state.Observed != r.observed
		b.state.Observed, b.state.RTT = r.observed, r.at.Sub(sent.at)
		b.mu.Unlock()
		if moved && sent.size < wire.BindPaddedSize {
			b.full = false
		}
		if moved && sent.size < wire.BindWideSize {
			b.narrow()
		}
		b.tries = 0
		switch {
		case !b.full:
			b.due = r.at // prove at once that full packets pass here too
		case sent.size == wire.BindWideSize:
			b.setWide(true)
			fallthrough
		case b.wide || b.asked == bindWideTries:
			b.setBound(true, r.at)
			b.due = r.at.Add(bindKeepalive)
		default:
			b.setBound(true, r.at)
			b.due = r.at // ask whether the largest do
		}
	}
}

// heard notes that the relay lives.
func (b *binder) heard() { b.probe = time.Time{} }

// step does what is due and says for how long nothing will be.
func (b *binder) step(now time.Time) (time.Duration, error) {
	// The monotonic clock that Sub uses stands still while the machine sleeps, on
	// most systems; the wall clock does not. A clock set forward costs one Bind.
	if slept := now.Round(0).Sub(b.stepped.Round(0)) - now.Sub(b.stepped); slept > wakeAfter {
		b.restart(now)
	}
	b.stepped = now

	if b.last().After(b.probe) {
		b.heard()
	}
	next := bindKeepalive
	silent := b.link.silence()
	if !silent.IsZero() {
		// Look again in a second, instead of being woken by each first packet.
		next = min(next, bindSlow)
		if now.Sub(silent) >= silenceBefore && now.Sub(b.lastSent()) >= bindSlow {
			b.due = now
		}
	}
	b.link.watched.Store(!silent.IsZero())

	if !now.Before(b.due) {
		b.bind(now)
	}
	next = min(next, b.due.Sub(now))

	if now.Sub(later(b.last(), b.pinged)) >= pingIdle || b.probing(now, bindSlow) && now.Sub(b.pinged) >= bindSlow {
		b.pinged = now
		b.probed(now)
		b.ping()
	}
	if b.probing(now, b.patience()) {
		return 0, fmt.Errorf("%w for %v", errLost, now.Sub(b.probe).Round(time.Millisecond))
	}
	if !b.probe.IsZero() {
		next = min(next, bindSlow, b.probe.Add(b.patience()).Sub(now))
	}
	return max(next, time.Millisecond), nil
}

// patience is how long a relay may take to answer.
func (b *binder) patience() time.Duration {
	if b.busy() {
		return lostBusy
	}
	return lostIdle
}

func (b *binder) probed(now time.Time) {
	if b.probe.IsZero() {
		b.probe = now
	}
}

func (b *binder) probing(now time.Time, atLeast time.Duration) bool {
	return !b.probe.IsZero() && now.Sub(b.probe) >= atLeast
}

func (b *binder) lastSent() time.Time { return b.sent[b.counter%uint64(len(b.sent))].at }

// size is the next Bind's. Where the largest packets pass, those that keep the
// path alive under open flows are of that size too: a path that has changed
// without a sign would swallow the flows' packets and let small Binds through. An
// unanswered one is followed by a small one.
func (b *binder) size() int {
	switch {
	case !b.full:
		return wire.BindPaddedSize
	case b.tries > 0:
		if b.wide {
			b.narrow()
		}
	case b.wide && b.busy() || !b.wide && b.asked < bindWideTries:
		return wire.BindWideSize
	}
	return wire.BindSize
}

// bind sends a Bind, padded while full packets are not proved on this path, and
// says when the next is due.
func (b *binder) bind(now time.Time) {
	if b.tries > 0 && b.link.bound.Load() && b.tries >= int(lostBusy/bindSlow) {
		b.full = false // the path may have changed under us
		b.setBound(false, now)
		b.tries = 1
	}
	if !b.full && b.tries > 0 && b.tries%bindFastTries == 0 && len(b.addrs) > 1 {
		b.use(b.addr + 1)
	}
	if len(b.addrs) == 0 {
		b.due = now.Add(bindRare)
		return
	}
	size := b.size()
	b.counter++
	b.sent[b.counter%uint64(len(b.sent))] = sentBind{b.counter, now, size}
	b.buf = b.keys.mac.AppendRequest(b.buf[:0], b.keys.session, b.counter, size)
	b.tries++
	if size == wire.BindWideSize {
		b.asked++
		b.due = now.Add(bindFast)
		if !b.link.sendWide(b.buf) {
			b.asked, b.due = bindWideTries, now // this machine cannot: no more of it on this path
		}
		return
	}
	b.link.sendBind(b.buf)
	b.probed(now)
	switch {
	case b.link.bound.Load():
		b.due = now.Add(bindSlow) // until it is answered
	case b.tries <= bindFastTries:
		b.due = now.Add(bindFast)
	case b.tries <= bindFastTries+bindSlowTries:
		b.due = now.Add(bindSlow)
	default:
		b.due = now.Add(bindRare)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// resolveUDP finds the UDP addresses of a relay: what it said itself, else the
// host and port of its URL. Those of prefer come first, the last of them before
// the others: where the control connection's TCP ends, since that family passes,
// and what was bound before.
func resolveUDP(ctx context.Context, hostport string, prefer ...netip.Addr) ([]netip.AddrPort, error) {
	host, portText, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, fmt.Errorf("relay's UDP address %q: %v", hostport, err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("relay's UDP address %q has no valid port", hostport)
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("relay's UDP address: %w", err)
	}
	var addrs []netip.AddrPort
	for _, a := range found {
		a = a.Unmap()
		if a.IsUnspecified() || a.IsMulticast() || a.Is6() && a.IsLinkLocalUnicast() {
			continue // the last needs a zone, which a name cannot give
		}
		addrs = append(addrs, netip.AddrPortFrom(a, uint16(port)))
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("relay's UDP address %q: no usable address", hostport)
	}
	for _, p := range prefer {
		if i := slices.IndexFunc(addrs, func(a netip.AddrPort) bool { return a.Addr() == p }); i > 0 {
			first := addrs[i]
			copy(addrs[1:], addrs[:i])
			addrs[0] = first
		}
	}
	return addrs, nil
}
