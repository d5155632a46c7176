package lab

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// virtio's names for what a super-packet is made of (linux/virtio_net.h).
const (
	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDP   = 5
	gsoECN   = 0x80

	needsChecksum = 1
)

// super is a frame of a TUN device with a virtio header: n packets on the wire,
// of which the kernel made one. It aliases what it was parsed from.
type super struct {
	data      []byte
	n         int
	size      int // payload bytes of each packet but the last
	header    int // bytes of the packet's headers, which every packet repeats
	transport int // where TCP or UDP begins, from the packet's beginning
	protocol  byte
}

// parseSuper takes a frame apart; false: too short to be one. What is not a
// super-packet of TCP or UDP counts as one packet.
func parseSuper(data []byte) (super, bool) {
	if len(data) <= vnetHeaderBytes {
		return super{}, false
	}
	s := super{data: data, n: 1}
	packet := data[vnetHeaderBytes:]
	kind := data[1] &^ gsoECN
	size := int(binary.NativeEndian.Uint16(data[4:]))
	// The kernel leaves checksums of a super-packet to whoever cuts it.
	if kind == gsoNone || size == 0 || data[0]&needsChecksum == 0 {
		return s, true
	}
	s.transport = int(binary.NativeEndian.Uint16(data[6:]))
	if s.transport < 20 || len(packet) < s.transport+20 {
		return s, true
	}
	switch kind {
	case gsoTCPv4, gsoTCPv6:
		s.protocol, s.header = unix.IPPROTO_TCP, s.transport+int(packet[s.transport+12]>>4)*4
	case gsoUDP:
		s.protocol, s.header = unix.IPPROTO_UDP, s.transport+8
	default:
		return s, true
	}
	if payload := len(packet) - s.header; payload > size {
		s.size, s.n = size, (payload+size-1)/size
	}
	return s, true
}

// cut copies packets i to j of s into a frame of their own.
func (s super) cut(i, j int) frame {
	if i == 0 && j == s.n {
		f := newFrame(len(s.data))
		copy(f.data, s.data)
		return f
	}
	packet := s.data[vnetHeaderBytes:]
	payload := packet[s.header:]
	payload = payload[i*s.size : min(j*s.size, len(payload))]
	f := newFrame(vnetHeaderBytes + s.header + len(payload))
	copy(f.data, s.data[:vnetHeaderBytes])
	b := f.data[vnetHeaderBytes:]
	copy(b, packet[:s.header])
	copy(b[s.header:], payload)
	if j-i == 1 {
		f.data[1] = gsoNone
		binary.NativeEndian.PutUint16(f.data[4:], 0)
	}
	body := b[s.transport:]
	sumAt := 6
	if s.protocol == unix.IPPROTO_TCP {
		sumAt = 16
		binary.BigEndian.PutUint32(body[4:], binary.BigEndian.Uint32(body[4:])+uint32(i*s.size))
		const fin, psh, cwr = 0x01, 0x08, 0x80
		if j < s.n { // what concerns the end of the data goes with the end
			body[13] &^= fin | psh
		}
		if i > 0 {
			body[13] &^= cwr
		}
	} else {
		binary.BigEndian.PutUint16(body[4:], uint16(len(body)))
	}
	var sum uint32
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[4:], binary.BigEndian.Uint16(b[4:])+uint16(i))
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^fold(add(0, b[:s.transport])))
		sum = add(0, b[12:20])
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		sum = add(0, b[8:40])
	}
	// With needsChecksum the field holds the pseudo-header's sum, not inverted.
	sum += uint32(s.protocol) + uint32(len(body))
	binary.BigEndian.PutUint16(body[sumAt:], fold(sum))
	return f
}

// add and fold are the Internet checksum (RFC 1071) of an even number of bytes.
func add(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
