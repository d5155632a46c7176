package netstack

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// DefaultMTU is the size of the largest packet inside the overlay where
	// nothing is known of the path: the least that IPv6 allows (RFC 8200 §5), so
	// 1,312 bytes of UDP payload.
	DefaultMTU = 1280
	// MaxMTU is the largest packet that is sent or taken, wireguard-go's own
	// default: 1,452 bytes of UDP payload, a full packet of Ethernet under IPv6.
	MaxMTU = 1420
)

// Measurer is a Transport that knows what size passes on its path. A device
// whose Transport is none sends packets of DefaultMTU.
type Measurer interface {
	// MTU is the largest packet inside the overlay that passes now, DefaultMTU to
	// MaxMTU; between them a multiple of 16, to which WireGuard pads. It may be
	// called at any time.
	MTU() int
	// WatchMTU has changed called, by one goroutine or several, after each change
	// of MTU. nil ends it.
	WatchMTU(changed func())
}

// pathMTU is what fits the path between this device and a peer: two legs, each
// measured by the side at its end. A flow that begins learns the smaller of the
// two from the MSS option of its SYNs, which are clamped as they pass (RFC 4821
// §5.2 has the idea); gVisor then sends segments of that size and nothing else
// is done. When a leg changes under a flow, its side cuts what it sends anew and
// tells the peer, by Packet Too Big (RFC 4443 §3.2), to do the same.
type pathMTU struct {
	own atomic.Int32 // of this side's leg

	mu    sync.Mutex                       // guards changes of peers
	peers atomic.Pointer[map[[16]byte]int] // legs of peers, by overlay address; an immutable snapshot
}

func newPathMTU(own int) *pathMTU {
	p := &pathMTU{}
	p.own.Store(int32(own))
	p.peers.Store(&map[[16]byte]int{})
	return p
}

// to is the largest packet that passes to a peer.
func (p *pathMTU) to(peer []byte) int {
	own := int(p.own.Load())
	if m := *p.peers.Load(); len(m) > 0 {
		if leg, ok := m[[16]byte(peer)]; ok {
			return min(own, leg)
		}
	}
	return own
}

// told takes what a peer says of its leg. Only a peer's own address is concerned:
// WireGuard let nobody else say it.
func (p *pathMTU) told(peer [16]byte, leg int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := *p.peers.Load()
	if was, ok := now[peer]; was == leg || !ok && leg >= MaxMTU {
		return
	}
	next := maps.Clone(now)
	if leg >= MaxMTU {
		delete(next, peer)
	} else {
		next[peer] = max(leg, DefaultMTU)
	}
	p.peers.Store(&next)
}

// clamp lowers the MSS option of a SYN, which judge or the stack made sure is
// well-formed up to its options, to what fits this side's leg.
func (p *pathMTU) clamp(b []byte) {
	if b[offFlags]&flagSYN == 0 {
		return
	}
	most := uint16(p.own.Load()) - header.IPv6MinimumSize - header.TCPMinimumSize + sackSpace
	for o := b[offOptions:headerSize(b)]; len(o) > 1 && o[0] != header.TCPOptionEOL; {
		if o[0] == header.TCPOptionNOP {
			o = o[1:]
			continue
		}
		size := int(o[1])
		if size < 2 || size > len(o) {
			return
		}
		if o[0] == header.TCPOptionMSS && size == header.TCPOptionMSSLength && binary.BigEndian.Uint16(o[2:]) > most {
			binary.BigEndian.PutUint16(o[2:], most)
		}
		o = o[size:]
	}
}

// A Packet Too Big that concerns every packet quotes none of them.
const (
	tooBigSize  = ipSize + 8
	protoICMPv6 = 58
	offICMPType = ipSize
	offICMPSum  = ipSize + 2
	offICMPMTU  = ipSize + 4
)

// isTooBig reports whether b, an IPv6 packet, is one.
func isTooBig(b []byte) bool {
	return len(b) == tooBigSize && b[offNextHeader] == protoICMPv6 && header.ICMPv6Type(b[offICMPType]) == header.ICMPv6PacketTooBig && b[offICMPType+1] == 0
}

// tooBig tells to, a peer, of this side's leg.
func (p *pathMTU) tooBig(from, to netip.Addr) *stack.PacketBuffer {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: tooBigSize})
	icmp := pkt.TransportHeader().Push(tooBigSize - ipSize)
	icmp[0] = byte(header.ICMPv6PacketTooBig)
	binary.BigEndian.PutUint32(icmp[offICMPMTU-ipSize:], uint32(p.own.Load()))
	ip := header.IPv6(pkt.NetworkHeader().Push(ipSize))
	ip.Encode(&header.IPv6Fields{
		PayloadLength: uint16(len(icmp)), TransportProtocol: protoICMPv6, HopLimit: 64,
		SrcAddr: tcpip.AddrFrom16(from.As16()), DstAddr: tcpip.AddrFrom16(to.As16()),
	})
	sum := checksum.Combine(checksum.Checksum(ip[offSrc:ipSize], 0), protoICMPv6+uint16(len(icmp)))
	binary.BigEndian.PutUint16(icmp[offICMPSum-ipSize:], ^checksum.Checksum(icmp, sum))
	pkt.NetworkProtocolNumber = header.IPv6ProtocolNumber
	return pkt
}

// tellAgain is when peers are told of a change, after it: a message may be lost,
// and one that says less than before must arrive.
var tellAgain = [...]time.Duration{0, 300 * time.Millisecond, 2 * time.Second, 10 * time.Second}

// measure takes the size that passes now, and tells the peers that have flows.
func (d *Device) measure() {
	e, err := d.engine()
	m, ok := d.cfg.Transport.(Measurer)
	if err != nil || !ok {
		return
	}
	d.mtuMu.Lock()
	defer d.mtuMu.Unlock()
	mtu := min(max(m.MTU(), DefaultMTU), MaxMTU)
	if int(e.link.mtu.own.Swap(int32(mtu))) == mtu {
		return
	}
	if d.tell != nil {
		d.tell.Stop()
	}
	d.tellLocked(e, 0)
}

// tellLocked tells them now and, by a timer, again. mtuMu is held.
func (d *Device) tellLocked(e *engine, times int) {
	if _, err := d.engine(); err != nil {
		return
	}
	for _, peer := range e.remotes() {
		e.link.tell(e.link.mtu.tooBig(d.cfg.Addr, peer))
	}
	times++
	if times == len(tellAgain) {
		return
	}
	d.tell = time.AfterFunc(tellAgain[times]-tellAgain[times-1], func() {
		d.mtuMu.Lock()
		defer d.mtuMu.Unlock()
		d.tellLocked(e, times)
	})
}
