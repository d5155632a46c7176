package netstack

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// linkBytes is how much may wait on the link: sixteen full super-segments
	// keep the TUN reader busy while flows refill. A flow that finds it full
	// waits: inside one machine, back-pressure beats loss.
	linkBytes = 1 << 20
	// linkPackets bounds the same for acknowledgements.
	linkPackets = 512

	// trainBytes bounds the UDP payload of one train of equal segments:
	// past 65,494 bytes the kernel gives up segmentation offload and sends
	// six times slower (measured on Linux 6.18).
	trainBytes = 65_000
	// messageOverhead is a WireGuard transport message's header and tag.
	messageOverhead = 32
	// stackSlack is what gVisor takes off GSOMaxSize to get the payload of
	// one super-segment (header.TCPTotalHeaderMaximumSize + 1).
	stackSlack = header.TCPTotalHeaderMaximumSize + 1
	// timestampsSize is the TCP option that gVisor puts into every segment.
	timestampsSize = 12
	// sackSpace is what gVisor leaves free in every segment for SACK blocks, which
	// few have. Its MSS is given so much more; the cutter cuts those few.
	sackSpace = header.TCPOptionsMaximumSize - timestampsSize
)

// link is the stack's interface. Packets that the stack sends queue here until
// the TUN side takes them, all that wait at once.
type link struct {
	mtu *pathMTU

	done   chan struct{} // closed by Close
	up     atomic.Pointer[dispatcher]
	handed atomic.Uint64 // packets that the TUN reader passed on to WireGuard

	mu     sync.Mutex // guards the rest
	room   sync.Cond  // the queue went below its bounds, or nobody waits any more
	some   sync.Cond  // the queue is not empty, or closed
	queue  []*stack.PacketBuffer
	bytes  int
	in     uint64 // packets ever queued
	noWait bool   // a full queue is not waited for
	closed bool
	acks   acks // arrived and what it writes need no lock
}

type dispatcher struct{ stack.NetworkDispatcher }

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

func newLink(mtu int) *link {
	l := &link{done: make(chan struct{}), mtu: newPathMTU(mtu)}
	l.acks.seed, l.acks.start = maphash.MakeSeed(), time.Now()
	l.room.L, l.some.L = &l.mu, &l.mu
	return l
}

// WritePackets queues what the stack sends. It waits while the queue is full,
// until the TUN side has taken it or stopWaiting or Close. A closed link loses
// packets as a cut cable does: an error would only end in gVisor's own log.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return pkts.Len(), nil
	}
	segment := int(l.mtu.own.Load()) - offOptions - timestampsSize
	for _, p := range pkts.AsSlice() {
		// Who acknowledges does not wait: it would hold up what arrives because of
		// what leaves, and of two directions one would starve.
		for (l.bytes >= linkBytes || len(l.queue) >= linkPackets) && !l.noWait && p.Data().Size() > 0 {
			l.room.Wait()
		}
		keep, before := l.acks.look(p, segment)
		if before != nil {
			l.enqueue(before)
		}
		if p.IncRef(); !keep {
			l.enqueue(p)
		}
	}
	l.acks.arm(l.tellKept)
	return pkts.Len(), nil
}

// enqueue takes p's reference, and loses p where the link is closed or too full:
// so many packets are only acknowledgements, or there once nobody waits. mu is
// held.
func (l *link) enqueue(p *stack.PacketBuffer) {
	if l.closed || len(l.queue) >= 2*linkPackets {
		p.DecRef()
		return
	}
	l.queue = append(l.queue, p)
	l.bytes += p.Size()
	l.in++
	if len(l.queue) == 1 {
		l.some.Signal()
	}
}

// tellKept sends the acknowledgements that nothing has carried.
func (l *link) tellKept() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.acks.due(l.closed) {
		l.enqueue(p)
	}
	l.acks.arm(l.tellKept)
}

// tell queues what this side itself has to say. It takes the reference.
func (l *link) tell(p *stack.PacketBuffer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.enqueue(p)
}

// take moves all that waits to dst, which it returns with whether the link is
// open. With wait it returns at least one packet, or that the link is closed.
// The caller owns a reference to each packet.
func (l *link) take(dst []*stack.PacketBuffer, wait bool) ([]*stack.PacketBuffer, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for wait && len(l.queue) == 0 && !l.closed {
		l.some.Wait()
	}
	if l.closed {
		return dst, false
	}
	dst = append(dst, l.queue...)
	clear(l.queue)
	l.queue, l.bytes = l.queue[:0], 0
	l.room.Broadcast()
	return dst, true
}

// queued is how many packets were ever queued.
func (l *link) queued() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.in
}

// taken reports whether n packets were passed on to WireGuard.
func (l *link) taken(n uint64) bool { return l.handed.Load() >= n }

// stopWaiting makes WritePackets never wait.
func (l *link) stopWaiting() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noWait = true
	l.room.Broadcast()
}

// Close drops what waits and releases everybody. The stack calls it too.
func (l *link) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		close(l.done)
	}
	l.noWait, l.closed = true, true
	for _, p := range append(l.queue, l.acks.due(true)...) {
		p.DecRef()
	}
	l.queue, l.bytes = nil, 0
	l.room.Broadcast()
	l.some.Broadcast()
}

// deliver hands the stack a packet of IPv6, and its reference.
func (l *link) deliver(p *stack.PacketBuffer) {
	if up := l.up.Load(); up != nil {
		up.DeliverNetworkPacket(header.IPv6ProtocolNumber, p)
	}
	p.DecRef()
}

// Attach implements stack.NetworkLinkEndpoint.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.up.Store(nil)
		return
	}
	l.up.Store(&dispatcher{d})
}

// IsAttached implements stack.NetworkLinkEndpoint.
func (l *link) IsAttached() bool { return l.up.Load() != nil }

// Capabilities implements stack.NetworkLinkEndpoint. Inbound checksums are
// not looked at: WireGuard has authenticated every byte. Outbound ones are
// written when packets are cut.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityTXChecksumOffload | stack.CapabilityRXChecksumOffload
}

// GSOMaxSize implements stack.GSOEndpoint: as many whole segments as one UDP
// train holds, so that a super-segment becomes one train and not one and a bit.
func (l *link) GSOMaxSize() uint32 {
	mtu := int(l.mtu.own.Load())
	segments := trainBytes / (mtu + messageOverhead)
	return uint32(segments*(mtu-header.IPv6MinimumSize-header.TCPMinimumSize-timestampsSize) + stackSlack)
}

// SupportedGSO implements stack.GSOEndpoint.
func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// MTU implements stack.NetworkLinkEndpoint. What the path takes is looked after
// by pathMTU: a stack that saw it shrink would cut packets into fragments.
func (l *link) MTU() uint32 { return MaxMTU + sackSpace }

// SetMTU implements stack.NetworkLinkEndpoint; the MTU is fixed.
func (l *link) SetMTU(uint32) {}

// MaxHeaderLength implements stack.NetworkLinkEndpoint: there is no link header.
func (l *link) MaxHeaderLength() uint16 { return 0 }

// LinkAddress implements stack.NetworkLinkEndpoint: there is none.
func (l *link) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress implements stack.NetworkLinkEndpoint.
func (l *link) SetLinkAddress(tcpip.LinkAddress) {}

// Wait implements stack.NetworkLinkEndpoint: the link has no goroutine.
func (l *link) Wait() {}

// ARPHardwareType implements stack.NetworkLinkEndpoint.
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader implements stack.NetworkLinkEndpoint.
func (l *link) AddHeader(*stack.PacketBuffer) {}

// ParseHeader implements stack.NetworkLinkEndpoint.
func (l *link) ParseHeader(*stack.PacketBuffer) bool { return true }

// SetOnCloseAction implements stack.NetworkLinkEndpoint.
func (l *link) SetOnCloseAction(func()) {}
