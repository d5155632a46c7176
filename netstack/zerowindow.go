package netstack

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
)

// flowID names a flow by what stands in the packets its other side sends.
type flowID struct {
	src   [16]byte
	ports [4]byte // theirs ‖ ours
}

// zeroWindows lets acknowledgements through to flows whose receive window the
// stack has closed. RFC 9293 §3.10.7.4 asks for it ("special allowance should
// be made to accept valid ACKs"); gVisor (20260905) drops them.
//
// It matters because gVisor rounds the window it advertises, and tests
// against, down to the window scale: the last few bytes of a window, rightly
// sent, come to a window of zero and are dropped. From then on everything the
// other side sends has a sequence number beyond that, its acknowledgements
// included. A flow full in both directions, whose application reads only
// after it could write, then stands still for ever: 1 in 20 transfers of
// 64 MiB to an echo server did.
//
// So: while the stack says "window 0, I expect N", an empty acknowledgement a
// little beyond N is delivered as if it were at N.
type zeroWindows struct {
	n atomic.Int32 // len(expect): most often 0, and nothing else is looked at

	mu     sync.Mutex // guards expect
	expect map[flowID]uint32
}

const (
	// maxZeroWindows bounds the table. Only our own stack's flows get into it,
	// and they leave when their window opens or they end.
	maxZeroWindows = 4096
	// scaleLimit is more than any window scale rounds away (RFC 7323 §2.3).
	scaleLimit = 1 << 14
)

// sending looks at a packet that leaves.
func (z *zeroWindows) sending(b []byte) {
	closed := b[offWindow] == 0 && b[offWindow+1] == 0 && b[offFlags]&(flagSYN|flagRST|flagACK) == flagACK
	if !closed && z.n.Load() == 0 {
		return
	}
	var id flowID
	copy(id.src[:], b[offDst:ipSize])
	copy(id.ports[:2], b[offPorts+2:])
	copy(id.ports[2:], b[offPorts:])
	z.mu.Lock()
	defer z.mu.Unlock()
	if !closed {
		delete(z.expect, id)
	} else {
		if z.expect == nil || len(z.expect) >= maxZeroWindows {
			z.expect = make(map[flowID]uint32)
		}
		z.expect[id] = binary.BigEndian.Uint32(b[offAck:])
	}
	z.n.Store(int32(len(z.expect)))
}

// receiving looks at a packet that judge accepted, and may change its
// sequence number. The checksum is not made anew: nobody looks at it.
func (z *zeroWindows) receiving(b []byte) {
	if z.n.Load() == 0 || b[offFlags]&^flagPSH != flagACK || headerSize(b) != len(b) {
		return
	}
	var id flowID
	copy(id.src[:], b[offSrc:offDst])
	copy(id.ports[:], b[offPorts:offSeq])
	z.mu.Lock()
	want, ok := z.expect[id]
	z.mu.Unlock()
	if seq := b[offSeq:offAck]; ok {
		if ahead := binary.BigEndian.Uint32(seq) - want; ahead > 0 && ahead < scaleLimit {
			binary.BigEndian.PutUint32(seq, want)
		}
	}
}
