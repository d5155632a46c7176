package netstack

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Where things are in a packet of IPv6 (RFC 8200 §3) and TCP (RFC 9293 §3.1)
// without extension headers: bytes from the packet's beginning, big-endian.
const (
	offPayloadLen = 4
	offNextHeader = 6
	offSrc        = 8
	offDst        = 24
	ipSize        = header.IPv6MinimumSize

	offPorts    = ipSize
	offSeq      = ipSize + 4
	offAck      = ipSize + 8
	offData     = ipSize + 12 // header length in 32-bit words, upper four bits
	offFlags    = ipSize + 13
	offWindow   = ipSize + 14
	offChecksum = ipSize + 16
	offUrgent   = ipSize + 18
	offOptions  = ipSize + header.TCPMinimumSize

	maxHeader = ipSize + header.TCPHeaderMaximumSize

	protoTCP = 6

	flagFIN = byte(header.TCPFlagFin)
	flagSYN = byte(header.TCPFlagSyn)
	flagRST = byte(header.TCPFlagRst)
	flagPSH = byte(header.TCPFlagPsh)
	flagACK = byte(header.TCPFlagAck)
	flagCWR = byte(header.TCPFlagCwr)
)

// cutter cuts one packet of the stack, at most a super-segment, into packets
// that fit the MTU, straight into the buffers they are sealed in. It stops and
// goes on between any two of them.
type cutter struct {
	pkt    *stack.PacketBuffer // nil: nothing left; ours to release
	head   [maxHeader]byte
	size   int // of head
	mss    int
	whole  bool   // head is all of it, its checksum made
	rest   int    // payload bytes not cut yet
	addrs  uint16 // checksum of the addresses and the protocol
	view   *buffer.View
	offset int // in view
}

// load begins p, whose reference passes to c. It returns false, and releases
// p, if p is not what this device sends: TCP on IPv6, or its own Packet Too Big.
func (c *cutter) load(p *stack.PacketBuffer, path *pathMTU) bool {
	ip, tcp := p.NetworkHeader().Slice(), p.TransportHeader().Slice()
	if len(ip) == ipSize && ip[offNextHeader] == protoICMPv6 && len(ip)+len(tcp) == tooBigSize {
		c.pkt, c.whole, c.rest = p, true, 0
		c.size = copy(c.head[:], ip)
		c.size += copy(c.head[c.size:], tcp)
		return true
	}
	if p.NetworkProtocolNumber != header.IPv6ProtocolNumber || len(ip) != ipSize || ip[offNextHeader] != protoTCP ||
		len(tcp) < header.TCPMinimumSize || len(tcp) > header.TCPHeaderMaximumSize {
		p.DecRef()
		return false
	}
	c.pkt, c.whole = p, false
	c.size = copy(c.head[:], ip)
	c.size += copy(c.head[c.size:], tcp)
	c.rest = p.Data().Size()
	c.mss = c.rest
	if p.GSOOptions.Type == stack.GSOTCPv6 && p.GSOOptions.MSS > 0 {
		c.mss = int(p.GSOOptions.MSS)
	}
	c.mss = min(c.mss, path.to(c.head[offDst:ipSize])-c.size)
	path.clamp(c.head[:c.size])
	c.addrs = checksum.Combine(checksum.Checksum(c.head[offSrc:ipSize], 0), protoTCP)

	views, skip := p.AsViewList()
	skip += c.size
	for c.view = views.Front(); c.view != nil && skip >= c.view.Size(); c.view = c.view.Next() {
		skip -= c.view.Size()
	}
	c.offset = skip
	return true
}

// parts is how many packets are left.
func (c *cutter) parts() int {
	if c.pkt == nil {
		return 0
	}
	return max(1, (c.rest+c.mss-1)/max(1, c.mss))
}

// next writes the next packet to dst and returns its size, or 0 if dst is too
// small. It releases the super-segment after the last one.
func (c *cutter) next(dst []byte) int {
	n := min(c.rest, c.mss)
	total := c.size + n
	if total > len(dst) {
		return 0
	}
	dst = dst[:total]
	copy(dst, c.head[:c.size])
	if c.whole {
		c.release()
		return total
	}
	for at := c.size; at < total; {
		b := c.view.AsSlice()[c.offset:]
		m := copy(dst[at:], b)
		at += m
		if m < len(b) {
			c.offset += m
		} else {
			c.view, c.offset = c.view.Next(), 0
		}
	}
	c.rest -= n

	binary.BigEndian.PutUint16(dst[offPayloadLen:], uint16(total-ipSize))
	if c.rest > 0 { // what concerns the end of the data goes with the end
		dst[offFlags] &^= flagPSH | flagFIN
	}
	dst[offChecksum], dst[offChecksum+1] = 0, 0
	sum := checksum.Checksum(dst[ipSize:], checksum.Combine(c.addrs, uint16(total-ipSize)))
	binary.BigEndian.PutUint16(dst[offChecksum:], ^sum)

	if c.rest == 0 {
		c.release()
		return total
	}
	seq := binary.BigEndian.Uint32(c.head[offSeq:])
	binary.BigEndian.PutUint32(c.head[offSeq:], seq+uint32(n))
	c.head[offFlags] &^= flagCWR // said once, with the first (RFC 3168 §6.1.2)
	return total
}

// release drops what is left.
func (c *cutter) release() {
	if c.pkt != nil {
		c.pkt.DecRef()
	}
	c.pkt, c.view, c.rest = nil, nil, 0
}
