package netstack

import (
	"encoding/binary"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// gVisor's TCP takes three packets that overtook another for a loss, halves its
// window for it, and does not take that back when the late one arrives. Its RACK
// (RFC 8985) would wait, but only once it has seen reordering, and it never does:
// it looks for a late segment that was not sent again, and by then the late one
// was; its receiver sends no DSACK (RFC 2883), the other way to learn of it. With
// one packet in a thousand 1 to 5 ms late a flow kept a twentieth of its goodput.
//
// So packets are put in order before the stack sees them, by the counter that
// WireGuard writes into every transport message in clear. What is behind a gap
// waits, as long as packets of this peer were seen to be late, and longer if
// nothing of it arrives meanwhile: where gaps are losses, that soon is not at all.
//
// The wait is timed by a clock that goes on as messages are received. It stands
// while the receiver does not run: what arrived then lies in the socket, and what a
// held message waits for is among it.
const (
	holdFirst  = 8 * time.Millisecond    // until a peer's path is known: the first late packet costs most
	holdMost   = 10 * time.Millisecond   // more would delay what TCP does about a loss
	holdLeast  = 250 * time.Microsecond  // a shorter wait is none
	holdTick   = time.Millisecond        // the most that the clock goes on between two looks
	holdQuiet  = 2                       // so many times as long again, if nothing of the peer arrives
	holdForget = 10 * time.Second        // without a loss: the path may be another
	heldBytes  = 1536                    // of one message: MaxMTU's, padded, is 1,456
	heldMost   = 8192                    // messages, over all peers: 12 MiB, 4 Gbit/s for 20 ms
	heldSpare  = 2 * conn.IdealBatchSize // gaps are given up when only so many are left
	heldKept   = 512                     // messages whose places a run keeps when it holds none
	farthest   = 8128                    // counters so far behind WireGuard takes for replays
)

// Where things are in a transport message: little-endian (WireGuard §5.4.6).
const (
	offReceiver = device.MessageTransportOffsetReceiver
	offCounter  = device.MessageTransportOffsetCounter
)

// A Waker is a Transport whose ReceiveFuncs can be had to return without a
// message. Only of such a transport are messages put in order: held ones must
// come out when nothing else arrives.
type Waker interface {
	// WakeAt has a ReceiveFunc that waits at t, or begins to wait later, return
	// 0 and no error. Zero: none does. It is called again for each time.
	WakeAt(t time.Time)
}

// order is where one peer's messages are. It is the resequencer's.
type order struct {
	runs [2]run // sessions overlap when keys change
	last int    // the run used last
	wait time.Duration
	lost time.Time // when a gap was given up last
}

// run is where one session's messages are.
type run struct {
	begun    bool
	receiver uint32 // index of the session
	next     uint64 // counter of the message that is next in order
	held     []heldMessage
	heard    time.Duration // by the clock, when something arrived last while anything is held
	ep       *endpoint
	gaps     [4]gap // given up, the latest before at
	at       int
}

// heldMessage waits for those before it.
type heldMessage struct {
	counter    uint64
	since, due time.Duration // by the clock
	arrived    time.Time     // the clock stands while nothing is held: a gap given up is timed by this
	limit      time.Time     // when nothing is waited for any longer, whatever the clock says
	size       int
	buf        *[heldBytes]byte
	spared     bool // limit was passed unnoticed once, since this goroutine did not run
}

// gap is the counters from first to before end, missed since then.
type gap struct {
	first, end uint64
	since      time.Time
}

// resequencer puts the messages of each peer in order. It belongs to the one
// goroutine that receives.
type resequencer struct {
	waker   Waker  // nil: nothing is held
	holding []*run // those with held messages
	count   int    // held messages
	wake    time.Time

	// clock goes on while anything is held, by holdTick at most between two looks.
	clock  time.Duration
	looked time.Time
	pool   sync.Pool // of *[heldBytes]byte
}

func newResequencer(t Transport) *resequencer {
	w, _ := t.(Waker)
	return &resequencer{waker: w, pool: sync.Pool{New: func() any { return new([heldBytes]byte) }}}
}

// arrange takes n messages that were just received. Those that must wait are
// copied and their sizes set to 0, which wireguard-go passes over; those whose
// turn has come follow behind the n. It returns how many there are now.
func (r *resequencer) arrange(bufs [][]byte, sizes []int, eps []conn.Endpoint, n int) int {
	if r.waker == nil {
		return n
	}
	var now time.Time // read where anything is held or out of order
	if len(r.holding) > 0 {
		now = time.Now()
		r.clock += min(now.Sub(r.looked), holdTick)
		r.looked = now
	}
	for i, size := range sizes[:n] {
		b := bufs[i]
		if size < device.MessageTransportSize || b[0] != device.MessageTransportType {
			continue
		}
		ep, ok := eps[i].(*endpoint)
		if !ok {
			continue
		}
		counter := binary.LittleEndian.Uint64(b[offCounter:])
		s := ep.order.run(binary.LittleEndian.Uint32(b[offReceiver:]), counter)
		if s == nil {
			continue
		}
		if counter == s.next && len(s.held) == 0 {
			s.next++
			continue
		}
		if now.IsZero() {
			now = time.Now()
			r.looked = now
		}
		s.ep, s.heard = ep, r.clock
		if r.hold(s, b[:size], counter, now) {
			sizes[i] = 0
		}
	}
	if len(r.holding) == 0 {
		return n
	}
	return r.release(bufs, sizes, eps, n, now)
}

// ready hands out messages whose turn has come, without others.
func (r *resequencer) ready(bufs [][]byte, sizes []int, eps []conn.Endpoint) int {
	if r.waker == nil {
		return 0
	}
	if len(r.holding) == 0 {
		return 0
	}
	return r.release(bufs, sizes, eps, 0, time.Now())
}

// run finds the place of a session; nil if the message is to pass unseen. The
// receiver's index is not authenticated here: a made-up one costs the order of
// messages, not the messages.
func (o *order) run(receiver uint32, counter uint64) *run {
	if s := &o.runs[o.last]; s.begun && s.receiver == receiver {
		return s
	}
	o.last = 1 - o.last
	s := &o.runs[o.last]
	if s.begun && s.receiver == receiver {
		return s
	}
	if len(s.held) > 0 {
		return nil
	}
	if !o.runs[1-o.last].begun {
		o.wait = holdFirst
	}
	*s = run{begun: true, receiver: receiver, next: counter, held: s.held}
	return s
}

// hold decides on a message that is out of order, or comes while others are
// held. It reports whether it took the message.
func (r *resequencer) hold(s *run, b []byte, counter uint64, now time.Time) bool {
	o := &s.ep.order
	switch {
	case counter == s.next:
		o.seen(r.clock - s.held[0].since)
		s.next++
		return false
	case counter < s.next:
		if len(s.held) == 0 && s.next-counter > farthest {
			s.next = counter + 1
		}
		for _, g := range s.gaps {
			if g.first <= counter && counter < g.end {
				o.seen(now.Sub(g.since))
			}
		}
		return false
	case counter-s.next > farthest:
		if len(s.held) == 0 {
			s.next = counter + 1
		}
		return false
	}
	if o.wait < holdFirst && now.Sub(o.lost) > holdForget {
		o.wait = holdFirst
	}
	if len(s.held) == 0 && o.wait < holdLeast || r.count >= heldMost || len(b) > heldBytes {
		if len(s.held) == 0 {
			s.giveUp(counter, now)
			s.next = counter + 1
		}
		return false
	}
	at := len(s.held)
	for at > 0 && s.held[at-1].counter > counter {
		at--
	}
	if at > 0 && s.held[at-1].counter == counter {
		return false // one of the two is not the peer's: WireGuard knows which
	}
	h := heldMessage{
		counter: counter, since: r.clock, due: r.clock + o.wait, arrived: now, limit: now.Add((1 + holdQuiet) * o.wait),
		size: len(b), buf: r.pool.Get().(*[heldBytes]byte),
	}
	copy(h.buf[:], b)
	if at < len(s.held) { // its gap has been missed since that one came
		h.due = min(h.due, s.held[at].due)
		if limit := s.held[at].limit; limit.Before(h.limit) {
			h.limit, h.spared = limit, s.held[at].spared
		}
	}
	if len(s.held) == 0 {
		r.holding = append(r.holding, s)
	}
	s.held = append(s.held, heldMessage{})
	copy(s.held[at+1:], s.held[at:])
	s.held[at] = h
	r.count++
	return true
}

// giveUp notes that what is missing before end is not waited for.
func (s *run) giveUp(end uint64, since time.Time) {
	s.ep.order.lost = since
	s.gaps[s.at] = gap{s.next, end, since}
	s.at = (s.at + 1) % len(s.gaps)
}

// seen learns from a message that came late. Later ones are to find those behind
// them still held.
func (o *order) seen(late time.Duration) {
	if late <= holdMost {
		o.wait = max(o.wait, min(late+late/2+holdLeast, holdMost))
	}
}

// missed learns from a message that did not come.
func (o *order) missed() { o.wait -= o.wait / 8 }

// release hands out held messages: those that are next in order, and those whose
// time is over. It says when it wants to be called again.
func (r *resequencer) release(bufs [][]byte, sizes []int, eps []conn.Endpoint, n int, now time.Time) int {
	wake := time.Time{}
	full := r.count >= heldMost-heldSpare
	kept := r.holding[:0]
	for _, s := range r.holding {
		out := 0
		for out < len(s.held) && n < len(bufs) {
			h := &s.held[out]
			if h.counter > s.next {
				many := full && len(s.held) > heldMost/4 || s.held[len(s.held)-1].counter-s.next > farthest-heldSpare
				if !many && s.heard < h.due && (now.Before(h.limit) || s.spare(out, now)) {
					break
				}
				s.giveUp(h.counter, h.arrived)
				s.ep.order.missed()
			}
			s.next = max(s.next, h.counter+1)
			sizes[n] = copy(bufs[n], h.buf[:h.size])
			eps[n] = s.ep
			n++
			r.pool.Put(h.buf)
			out++
		}
		r.count -= out
		rest := copy(s.held, s.held[out:])
		clear(s.held[rest:])
		s.held = s.held[:rest]
		if rest == 0 {
			if cap(s.held) > heldKept {
				s.held = nil
			}
			continue
		}
		kept = append(kept, s)
		limit := s.held[0].limit
		if s.held[0].counter <= s.next { // there was no room
			limit = now
		}
		if wake.IsZero() || limit.Before(wake) {
			wake = limit
		}
	}
	clear(r.holding[len(kept):])
	r.holding = kept
	if !wake.Equal(r.wake) {
		r.wake = wake
		r.waker.WakeAt(wake)
	}
	return n
}

// spare gives what s holds, from the first that waits, another while, once, if its
// limit was passed unnoticed: what it waits for may lie in the socket. It reports
// whether it did.
func (s *run) spare(first int, now time.Time) bool {
	waiting := s.held[first:]
	if waiting[0].spared || now.Sub(waiting[0].limit) <= holdTick {
		return false
	}
	limit := now.Add(s.ep.order.wait)
	for i := range waiting {
		if h := &waiting[i]; h.limit.Before(limit) {
			h.spared, h.limit = true, limit
		}
	}
	return true
}

// reset forgets what is held.
func (r *resequencer) reset() {
	for _, s := range r.holding {
		for _, h := range s.held {
			r.pool.Put(h.buf)
		}
		clear(s.held)
		s.held = s.held[:0]
	}
	clear(r.holding)
	r.holding, r.count, r.wake = r.holding[:0], 0, time.Time{}
}
