package netstack

import (
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// ackPeriod is how often kept acknowledgements are looked through: one waits at
	// most twice as long. An API server answers most requests within it.
	ackPeriod = 10 * time.Millisecond
	// ackSegments is of how many segments one may wait to be told; of the next it is
	// at once. Small ones count too, as they do in a sender's window: of full ones
	// every second is told of (RFC 9293 §3.8.6.3).
	ackSegments = 2
	// ackNear is the round trip below which one may wait. gVisor sends again after
	// the larger of 200 ms and a little more than the round trip: on a long path
	// that little may be less than the wait.
	ackNear = 100 * time.Millisecond
	// ackFlows is of how many flows one can wait. Of two that fall on one place the
	// later has it.
	ackFlows = 1024
)

// acks keep acknowledgements of little data back for a moment (RFC 9293
// §3.8.6.3): most often an answer follows that carries them. gVisor (20260905)
// sends one at once for all that it is given, which doubles the packets of a
// request and its answer, and what arrives waits for what leaves.
type acks struct {
	seed  maphash.Seed
	start time.Time
	flows [ackFlows]ackFlow

	// Guarded by link.mu, as what flows say.
	kept  int
	tick  uint64 // periods that have ended
	timer *time.Timer
	armed bool
}

// An ackFlow is one flow, by both of its sides.
type ackFlow struct {
	id    atomic.Uint64
	asked atomic.Int64 // when its SYN left, in nanoseconds after start; 0: that was answered
	near  atomic.Bool  // its round trip is known to be short
	heard atomic.Int32 // segments that have come since it was last told

	told uint32 // acknowledged by what left
	kept *stack.PacketBuffer
	ack  uint32 // of kept
	seq  uint32 // of kept
	tick uint64 // since when something is kept
}

// flow finds a flow's place by its other side's address and the ports, theirs
// first.
func (a *acks) flow(addr []byte, theirs, ours []byte) (*ackFlow, uint64) {
	var b [16 + 2 + 2]byte
	copy(b[:], addr)
	copy(b[16:], theirs)
	copy(b[18:], ours)
	id := maphash.Bytes(a.seed, b[:])
	return &a.flows[id%ackFlows], id
}

// arrived takes note of a packet that came in so many segments, which judge
// accepted. It takes no lock.
func (a *acks) arrived(b []byte, segments int) {
	f, id := a.flow(b[offSrc:offDst], b[offPorts:offPorts+2], b[offPorts+2:offSeq])
	if f.id.Load() != id {
		return
	}
	if at := f.asked.Load(); at != 0 {
		f.near.Store(time.Since(a.start)-time.Duration(at) < ackNear)
		f.asked.Store(0)
	}
	if len(b) > headerSize(b) {
		f.heard.Add(int32(segments))
	}
}

// look takes note of a packet that is about to leave. It reports whether p is
// kept back instead, and what must leave before p, if anything. References pass
// with both. most is the payload of a full segment. link.mu is held.
func (a *acks) look(p *stack.PacketBuffer, most int) (keep bool, before *stack.PacketBuffer) {
	const (
		atSeq, atAck, atFlags, atWindow = offSeq - ipSize, offAck - ipSize, offFlags - ipSize, offWindow - ipSize
		plainSize                       = header.TCPMinimumSize + timestampsSize // more would be SACK
	)
	ip, tcp := p.NetworkHeader().Slice(), p.TransportHeader().Slice()
	if len(ip) != ipSize || ip[offNextHeader] != protoTCP || len(tcp) < header.TCPMinimumSize {
		return false, nil
	}
	flags, seq, ack := tcp[atFlags], binary.BigEndian.Uint32(tcp[atSeq:]), binary.BigEndian.Uint32(tcp[atAck:])
	f, id := a.flow(ip[offDst:ipSize], tcp[2:4], tcp[:2])
	if f.id.Load() != id || flags&flagSYN != 0 {
		before = a.release(f)
		f.near.Store(false)
		f.asked.Store(0)
		if flags&flagSYN != 0 {
			f.asked.Store(max(1, int64(time.Since(a.start))))
		}
		f.id.Store(id)
		f.tell(ack)
		return false, before
	}
	empty := flags == flagACK && p.Data().Size() == 0
	news := ack - f.told
	if empty && news != 0 && news <= uint32(most) && (f.kept == nil || f.ack != ack) && f.near.Load() && f.heard.Load() <= ackSegments &&
		len(tcp) <= plainSize && tcp[atWindow]|tcp[atWindow+1] != 0 {
		if old := a.release(f); old != nil {
			old.DecRef()
		} else {
			f.tick = a.tick
		}
		f.kept, f.ack, f.seq = p, ack, seq
		a.kept++
		return true, nil
	}
	switch old := a.release(f); {
	case old == nil:
	case empty && f.ack == ack, int32(seq-f.seq) < 0:
		// What is said twice is meant to be. What was sent before may be had already:
		// then nothing in it is looked at.
		before = old
	default:
		old.DecRef()
	}
	f.tell(ack)
	return false, before
}

// tell notes that ack leaves.
func (f *ackFlow) tell(ack uint32) {
	f.told = ack
	f.heard.Store(0)
}

// release takes what is kept of f away from it; nil: nothing is.
func (a *acks) release(f *ackFlow) *stack.PacketBuffer {
	p := f.kept
	if p != nil {
		f.kept = nil
		a.kept--
	}
	return p
}

// arm has due called when a period ends, as long as something is kept.
func (a *acks) arm(due func()) {
	switch {
	case a.armed || a.kept == 0:
		return
	case a.timer == nil:
		a.timer = time.AfterFunc(ackPeriod, due)
	default:
		a.timer.Reset(ackPeriod)
	}
	a.armed = true
}

// due ends a period and returns what has waited for a whole one, or with all
// whatever is kept.
func (a *acks) due(all bool) (out []*stack.PacketBuffer) {
	a.armed = false
	for i := range a.flows {
		f := &a.flows[i]
		if f.kept == nil || f.tick == a.tick && !all {
			continue
		}
		f.tell(f.ack)
		out = append(out, a.release(f))
	}
	a.tick++
	return out
}
