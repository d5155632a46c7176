package daemon

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/zt-daemon/zt/relay/wire"
)

// A link is one session's side of the Transport. Packets read it without a lock.
type link struct {
	t        *Transport
	channels shards[uint32, *hop]
	remote   atomic.Pointer[netip.AddrPort] // the relay's UDP address; nil: not known yet
	keys     atomic.Pointer[linkKeys]       // nil: no session
	up       atomic.Bool                    // the session is admitted
	bound    atomic.Bool                    // the relay takes packets from our address
	wide     atomic.Bool                    // the largest packets pass
	turns    atomic.Uint64                  // how often up or bound changed

	// When a packet was first sent after the last one was heard, in nanoseconds
	// after t.start; 0: what was sent was answered. Only the first send reads a clock.
	unanswered atomic.Int64
	watched    atomic.Bool   // the bind loop will look at unanswered within a second
	wake       chan struct{} // tells it to, when it is not watched
	rebind     chan struct{}
	replies    chan bindReply // of the relay, authenticated
}

// linkKeys are what the relay gave one connection.
type linkKeys struct {
	session uint64
	mac     *wire.BindMAC
}

// A bindReply is a Challenge or a Bound whose tag is right.
type bindReply struct {
	keys     *linkKeys
	typ      wire.BindType
	counter  uint64
	cookie   [wire.CookieLen]byte // of a Challenge
	observed netip.AddrPort       // of a Bound
	at       time.Time
}

// newLink makes a link for a session to come. It takes part once it is attached.
func (t *Transport) newLink() *link {
	return &link{
		t: t, wake: make(chan struct{}, 1), rebind: make(chan struct{}, 1), replies: make(chan bindReply, 16),
	}
}

// attach has the transport look for packets of l's relay.
func (t *Transport) attach(l *link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := append(slices.Clone(*t.links.Load()), l)
	t.links.Store(&next)
}

// detach takes l away. Its hops must be gone.
func (t *Transport) detach(l *link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := slices.DeleteFunc(slices.Clone(*t.links.Load()), func(x *link) bool { return x == l })
	t.links.Store(&next)
}

func (l *link) working() bool { return l.up.Load() && l.bound.Load() }

func (l *link) isRemote(a netip.AddrPort) bool {
	r := l.remote.Load()
	return r != nil && *r == a
}

// setBound keeps the gauge.
func (l *link) setBound(bound bool) {
	if l.bound.Swap(bound) == bound {
		return
	}
	l.turns.Add(1)
	if bound {
		l.t.metrics.bound.Inc()
	} else {
		l.t.metrics.bound.Dec()
	}
	l.t.measure()
}

func (l *link) setWide(wide bool) {
	if l.wide.Swap(wide) != wide {
		l.t.measure()
	}
}

func (l *link) setUp(up bool) {
	if l.up.Swap(up) == up {
		return
	}
	l.turns.Add(1)
	if up {
		l.t.metrics.sessions.Inc()
	} else {
		l.t.metrics.sessions.Dec()
	}
}

func (l *link) noteSent() {
	if l.unanswered.Load() == 0 && l.unanswered.CompareAndSwap(0, max(1, int64(time.Since(l.t.start)))) && !l.watched.Load() {
		notify(l.wake)
	}
}

func (l *link) noteHeard() {
	if l.unanswered.Load() != 0 {
		l.unanswered.Store(0)
	}
}

// silence is since when what was sent has drawn nothing; zero: it has.
func (l *link) silence() time.Time {
	if ns := l.unanswered.Load(); ns != 0 {
		return l.t.start.Add(time.Duration(ns))
	}
	return time.Time{}
}

// acceptBind takes a message for which wire.IsBind holds. An attacker who does
// not see our traffic must guess a session of 64 random bits to cost us so much
// as one hash.
func (t *Transport) acceptBind(b []byte, now time.Time) {
	typ, session, counter := wire.BindFields(b)
	if typ != wire.BindChallenge && typ != wire.BindBound {
		t.metrics.dropped.add(dropMalformed, 1)
		return
	}
	for _, l := range *t.links.Load() {
		k := l.keys.Load()
		if k == nil || k.session != session {
			continue
		}
		if !k.mac.Verify(b) {
			break
		}
		reply := bindReply{keys: k, typ: typ, counter: counter, at: now}
		if typ == wire.BindChallenge {
			copy(reply.cookie[:], wire.BindCookie(b))
		} else {
			reply.observed = wire.BindObserved(b)
		}
		select {
		case l.replies <- reply:
		default:
			t.metrics.dropped.add(dropBindQueue, 1)
		}
		return
	}
	t.metrics.dropped.add(dropBindTag, 1)
}

// sendWide sends a bind message of BindWideSize in one piece, and reports
// whether this machine could.
func (l *link) sendWide(b []byte) bool {
	s, remote := l.t.socket.Load(), l.remote.Load()
	return s != nil && remote != nil && s.writeWhole(b, *remote) == nil
}

// sendBind sends one bind message to the link's relay.
func (l *link) sendBind(b []byte) {
	s, remote := l.t.socket.Load(), l.remote.Load()
	if s == nil || remote == nil {
		return // tried again when there is a socket
	}
	if err := s.write([][]byte{b}, *remote); err != nil {
		l.t.metrics.dropped.add(dropSend, 1)
	}
}
