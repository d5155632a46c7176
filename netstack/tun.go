package netstack

import (
	"encoding/binary"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// tunDevice is the link in wireguard-go's form: what the stack sends is read
// from it, what peers sent is written to it, in batches both ways.
type tunDevice struct {
	link    *link
	own     [16]byte // the overlay address
	dropSYN bool
	drops   *drops
	in, out *flight // inside the engine, from peers and to them
	zero    zeroWindows

	events    chan tun.Event // nothing happens; closed by Close
	closeOnce sync.Once

	// The rest belongs to the one goroutine that reads.
	waiting []*stack.PacketBuffer // taken from the link; ours to release
	next    int                   // the first of waiting not cut yet
	cut     cutter
	done    uint64 // packets that were cut, or dropped
	thin    thinner
}

var _ tun.Device = (*tunDevice)(nil)

func newTun(l *link, own netip.Addr, dropSYN bool, d *drops, in, out *flight) *tunDevice {
	return &tunDevice{link: l, own: own.As16(), dropSYN: dropSYN, drops: d, in: in, out: out, events: make(chan tun.Event)}
}

// Read implements tun.Device: it fills as many buffers as there are packets,
// and waits only for the first. A super-segment that would not fit whole is left
// for the next call. One goroutine reads.
func (t *tunDevice) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	t.link.handed.Store(t.done) // the batch before is WireGuard's now
	if !t.out.wait(t.link.done) {
		t.release()
		return 0, os.ErrClosed
	}
	defer func() { t.out.enter(n) }()
	t.thin.look(bufs)
	for n < len(bufs) {
		for t.cut.pkt == nil {
			more, open := t.load(n == 0)
			if !open {
				t.release()
				return 0, os.ErrClosed
			}
			if !more || t.cut.parts() > len(bufs)-n && n > 0 {
				return n, nil
			}
		}
		size := t.cut.next(bufs[n][offset:])
		if size == 0 { // larger than the largest message: not from this stack's MTU
			t.cut.release()
			t.drops.outbound.Add(1)
		} else {
			if b := bufs[n][offset : offset+size]; b[offNextHeader] == protoTCP {
				t.zero.sending(b)
			}
			sizes[n] = size
			n++
		}
		if t.cut.pkt == nil {
			t.done++
		}
	}
	return n, nil
}

// load puts the next packet under the cutter. It reports whether it did, or at
// least took something from the link, and whether the link is open.
func (t *tunDevice) load(wait bool) (more, open bool) {
	if t.next == len(t.waiting) {
		clear(t.waiting)
		t.waiting, open = t.link.take(t.waiting[:0], wait)
		t.next = 0
		return len(t.waiting) > 0, open
	}
	p := t.waiting[t.next]
	t.next++
	if !t.cut.load(p, t.link.mtu) {
		t.drops.outbound.Add(1)
		t.done++
	}
	return true, true
}

// release gives back what was taken and is not cut.
func (t *tunDevice) release() {
	t.cut.release()
	for _, p := range t.waiting[t.next:] {
		p.DecRef()
	}
	t.waiting, t.next = nil, 0
}

// Write implements tun.Device: it delivers a batch of one peer's packets to
// the stack, in order, consecutive segments of one flow as one packet.
// Several goroutines write, one for each peer.
func (t *tunDevice) Write(bufs [][]byte, offset int) (int, error) {
	defer t.in.leave(len(bufs))
	if !t.link.IsAttached() {
		return 0, os.ErrClosed
	}
	var run train
	for _, b := range bufs {
		b = b[offset:]
		if v := judge(b, &t.own, t.dropSYN); v == tooBig {
			t.link.mtu.told([16]byte(b[offSrc:offDst]), int(min(binary.BigEndian.Uint32(b[offICMPMTU:]), MaxMTU)))
			continue
		} else if v != accept {
			t.drops.inbound(v)
			continue
		}
		t.link.mtu.clamp(b)
		t.zero.receiving(b)
		if run.n > 0 && run.add(b) {
			continue
		}
		t.deliver(&run)
		run.begin(b)
	}
	t.deliver(&run)
	return len(bufs), nil
}

func (t *tunDevice) deliver(run *train) {
	if run.n > 0 {
		t.link.acks.arrived(run.parts[0], run.n)
	}
	if p := run.packet(); p != nil {
		t.link.deliver(p)
	}
}

// BatchSize implements tun.Device.
func (t *tunDevice) BatchSize() int { return conn.IdealBatchSize }

// MTU implements tun.Device: what wireguard-go pads no packet beyond.
func (t *tunDevice) MTU() (int, error) { return MaxMTU, nil }

// Name implements tun.Device.
func (t *tunDevice) Name() (string, error) { return "zt", nil }

// File implements tun.Device: there is none.
func (t *tunDevice) File() *os.File { return nil }

// Events implements tun.Device.
func (t *tunDevice) Events() <-chan tun.Event { return t.events }

// Close implements tun.Device: Read returns os.ErrClosed.
func (t *tunDevice) Close() error {
	t.closeOnce.Do(func() {
		t.link.Close()
		close(t.events)
	})
	return nil
}

// drops counts what did not pass.
type drops struct {
	malformed, foreign, unsupported, unasked, outbound atomic.Uint64
}

func (d *drops) inbound(v verdict) {
	switch v {
	case malformed:
		d.malformed.Add(1)
	case foreign:
		d.foreign.Add(1)
	case unsupported:
		d.unsupported.Add(1)
	case unasked:
		d.unasked.Add(1)
	}
}

// Drops counts packets that a device dropped, since New, by reason.
type Drops struct {
	Malformed   uint64 // inbound: lengths that contradict each other
	Foreign     uint64 // inbound: to another address than the device's
	Unsupported uint64 // inbound: not TCP on IPv6
	Unasked     uint64 // inbound: would open a flow (Config.DropInboundSYN)
	Outbound    uint64 // outbound: not TCP on IPv6
}

// Drops returns the counts so far.
func (d *Device) Drops() Drops {
	return Drops{
		Malformed:   d.drops.malformed.Load(),
		Foreign:     d.drops.foreign.Load(),
		Unsupported: d.drops.unsupported.Load(),
		Unasked:     d.drops.unasked.Load(),
		Outbound:    d.drops.outbound.Load(),
	}
}
