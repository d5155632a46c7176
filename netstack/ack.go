package netstack

import (
	"encoding/binary"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// ackPeriod is how often kept acknowledgements are looked through: one waits at
	// most twice as long. An API server answers most requests within it, and it is
	// far from the 200 ms after which a sender sends again, and from the 500 ms
	// that RFC 1122 §4.2.3.2 allows.
	ackPeriod = 10 * time.Millisecond
	// ackMost is for how many acknowledgements one stands at most: a sender's window
	// counts segments, small ones too, and begins with ten.
	ackMost = 4
	// ackFlows is of how many flows one can wait. Of two that fall on one place the
	// later has it.
	ackFlows = 256
)

// acks keep acknowledgements of little data back for a moment (RFC 9293
// §3.8.6.3): most often an answer follows that carries them. gVisor (20260905)
// sends one at once for all that it is given, which doubles the packets of a
// request and its answer, and what arrives waits for what leaves. Guarded by
// link.mu.
type acks struct {
	flows [ackFlows]ackFlow
	kept  int
	tick  uint64 // periods that have ended
	timer *time.Timer
	armed bool
}

// An ackFlow is what one flow said last.
type ackFlow struct {
	id    flowID
	asked bool   // for a connection, and nothing since
	told  uint32 // acknowledged by what was sent
	skip  int    // acknowledgements since

	kept *stack.PacketBuffer
	ack  uint32 // of kept
	tick uint64 // when it was kept
}

// look takes note of a packet that is about to leave. It reports whether p is
// kept back instead, and what must leave before p, if anything. References pass
// with both.
func (a *acks) look(p *stack.PacketBuffer, most int) (keep bool, before *stack.PacketBuffer) {
	const (
		atAck, atFlags, atWindow = offAck - ipSize, offFlags - ipSize, offWindow - ipSize
		plainSize                = header.TCPMinimumSize + timestampsSize // more would be SACK
	)
	ip, tcp := p.NetworkHeader().Slice(), p.TransportHeader().Slice()
	if len(ip) != ipSize || ip[offNextHeader] != protoTCP || len(tcp) < header.TCPMinimumSize {
		return false, nil
	}
	flags, ack := tcp[atFlags], binary.BigEndian.Uint32(tcp[atAck:])
	id := flowID{src: [16]byte(ip[offDst:ipSize]), ports: [4]byte(tcp)}
	f := &a.flows[id.src[15]^id.ports[0]^id.ports[1]^id.ports[2]^id.ports[3]]
	if f.id != id || flags&flagSYN != 0 {
		before = a.release(f)
		*f = ackFlow{id: id, asked: flags&(flagSYN|flagACK) == flagSYN, told: ack}
		return false, before
	}
	if empty := flags == flagACK && p.Data().Size() == 0; empty {
		if f.kept != nil && f.ack == ack { // what is said again is news: something is missing, or the window opened
			return false, a.release(f)
		}
		news := f.asked || ack != f.told && ack-f.told <= uint32(most)
		if news && f.skip < ackMost-1 && len(tcp) <= plainSize && tcp[atWindow]|tcp[atWindow+1] != 0 {
			if old := a.release(f); old != nil {
				old.DecRef()
			}
			f.kept, f.ack, f.tick = p, ack, a.tick
			f.skip++
			a.kept++
			return true, nil
		}
	}
	if old := a.release(f); old != nil {
		old.DecRef()
	}
	f.asked, f.told, f.skip = false, ack, 0
	return false, nil
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
		f.asked, f.told, f.skip = false, f.ack, 0
		out = append(out, a.release(f))
	}
	a.tick++
	return out
}
