package netstack

import (
	"bytes"
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// verdict is what becomes of an inbound packet.
type verdict int

const (
	accept      verdict = iota
	malformed           // lengths that contradict each other
	foreign             // to an address that is not ours
	unsupported         // not TCP directly on IPv6
	unasked             // would open a flow, and none may be opened
	tooBig              // says what size passes to its sender
)

// judge looks at a packet that WireGuard has authenticated, cut to the length
// its IPv6 header says and found to come from its peer's address. It is still
// an admitted peer's, who may be anybody's puppet.
func judge(b []byte, own *[16]byte, dropSYN bool) verdict {
	if len(b) < ipSize || b[0]>>4 != 6 || int(binary.BigEndian.Uint16(b[offPayloadLen:])) != len(b)-ipSize {
		return malformed
	}
	if !bytes.Equal(b[offDst:ipSize], own[:]) {
		return foreign
	}
	if isTooBig(b) {
		return tooBig
	}
	if b[offNextHeader] != protoTCP {
		return unsupported
	}
	if len(b) < offOptions {
		return malformed
	}
	if n := headerSize(b); n < offOptions || n > len(b) {
		return malformed
	}
	if dropSYN && b[offFlags]&(flagSYN|flagACK) == flagSYN {
		return unasked
	}
	return accept
}

// headerSize is the length of the IPv6 and TCP headers of b.
func headerSize(b []byte) int { return ipSize + int(b[offData]>>4)*4 }

const (
	maxParts = 64     // of a train
	maxTrain = 0xffff // bytes: the largest chunk that gVisor pools, less one
)

// train collects in-order segments of one flow to deliver them as one packet.
// It merges what was cut from one super-segment, and no more: one segment's
// acknowledgement, window and options must not stand for another's. Its parts
// alias the caller's buffers.
type train struct {
	parts [maxParts][]byte
	n     int
	total int    // bytes of the merged packet
	head  int    // bytes of its headers
	seq   uint32 // of the segment that would come next
	open  bool   // more may follow
}

// begin makes b, which judge accepted, the first of an empty train.
func (t *train) begin(b []byte) {
	t.parts[0], t.n, t.total = b, 1, len(b)
	t.head = headerSize(b)
	payload := len(b) - t.head
	t.seq = binary.BigEndian.Uint32(b[offSeq:]) + uint32(payload)
	t.open = b[offFlags] == flagACK && payload > 0
}

// add appends b, which judge accepted, if it continues the train.
func (t *train) add(b []byte) bool {
	if !t.open || t.n == maxParts {
		return false
	}
	a := t.parts[0]
	payload := len(b) - t.head
	segment := len(a) - t.head
	if payload <= 0 || payload > segment || t.total+payload > maxTrain ||
		binary.BigEndian.Uint32(b[offSeq:]) != t.seq ||
		b[offFlags]&^flagPSH != flagACK ||
		!bytes.Equal(a[:offPayloadLen], b[:offPayloadLen]) || // traffic class (ECN), flow label
		!bytes.Equal(a[offNextHeader:offSeq], b[offNextHeader:offSeq]) || // hop limit, addresses, ports
		!bytes.Equal(a[offAck:offFlags], b[offAck:offFlags]) || // acknowledgement, header length, reserved bits
		!bytes.Equal(a[offWindow:offChecksum], b[offWindow:offChecksum]) ||
		!bytes.Equal(a[offUrgent:t.head], b[offUrgent:t.head]) { // options, timestamps among them
		return false
	}
	t.parts[t.n] = b
	t.n++
	t.total += payload
	t.seq += uint32(payload)
	t.open = payload == segment && b[offFlags] == flagACK
	return true
}

// packet copies the train into one packet, which is the caller's to release,
// and empties it. It returns nil for an empty train. The checksum of a merged
// packet is not made anew: link.Capabilities says that nobody looks.
//
// Headers and payload are two views. gVisor (20260905) parses a packet while it
// holds copies of its buffer, and whoever then reads a header has the whole chunk
// behind it copied: three times 64 KiB a train, were they one.
func (t *train) packet() *stack.PacketBuffer {
	if t.n == 0 {
		return nil
	}
	head := buffer.NewView(t.head)
	first := t.parts[0]
	head.Write(first[:t.head])
	if t.n > 1 {
		b := head.AsSlice()
		binary.BigEndian.PutUint16(b[offPayloadLen:], uint16(t.total-ipSize))
		b[offFlags] |= t.parts[t.n-1][offFlags] & flagPSH
	}
	var whole buffer.Buffer
	if payload := t.total - t.head; payload > 0 {
		v := buffer.NewView(payload)
		for _, p := range t.parts[:t.n] {
			v.Write(p[t.head:])
		}
		whole = buffer.MakeWithView(v)
	}
	_ = whole.Prepend(head) // fails beyond 2 GiB
	clear(t.parts[:t.n])
	t.n, t.open = 0, false
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: whole})
	p.NetworkProtocolNumber = header.IPv6ProtocolNumber
	p.RXChecksumValidated = true
	return p
}
