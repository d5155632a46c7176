package netstack

import (
	"encoding/binary"
	"io"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// leg is a Transport whose path takes packets of a size that a test changes. What
// is larger is lost without a word, both ways.
type leg struct {
	*port
	mtu     atomic.Int32
	changed atomic.Pointer[func()]
}

func newLeg(c *Config, mtu int) *leg {
	l := &leg{port: c.Transport.(*port)}
	l.resize(mtu)
	c.Transport = l
	return l
}

func (l *leg) MTU() int { return int(l.mtu.Load()) }

func (l *leg) WatchMTU(changed func()) {
	if changed == nil {
		l.changed.Store(nil)
	} else {
		l.changed.Store(&changed)
	}
}

// resize is the network's change; the device is told of it afterwards.
func (l *leg) resize(mtu int) {
	l.mtu.Store(int32(mtu))
	l.port.largest.Store(int32(mtu + messageOverhead))
	if f := l.changed.Load(); f != nil {
		(*f)()
	}
}

// Flows that begin take what both legs take.
func TestFlowsTakeTheSmallerLeg(t *testing.T) {
	for _, row := range []struct{ a, b, want int }{
		{DefaultMTU, DefaultMTU, DefaultMTU},
		{MaxMTU, DefaultMTU, DefaultMTU},
		{DefaultMTU, MaxMTU, DefaultMTU},
		{1392, MaxMTU, 1392},
		{MaxMTU, MaxMTU, MaxMTU},
	} {
		w := newWire()
		a := newSide(t, w, 1, func(c *Config) { newLeg(c, row.a) })
		b := newSide(t, w, 2, func(c *Config) { newLeg(c, row.b) })
		join(t, a, b, [32]byte{}, [32]byte{})
		transfer(t, a, listen(t, b, 443, echo), 1<<20, 1)
		for name, p := range map[string]*port{"a": a.port, "b": b.port} {
			if got, want := int(p.largestSent.Load()), row.want+messageOverhead; got != want || p.dropped.Load() != 0 {
				t.Errorf("legs %d and %d: the largest message of %s has %d bytes, want %d; %d lost", row.a, row.b, name, got, row.want+messageOverhead, p.dropped.Load())
			}
		}
	}
}

// A flow outlives a leg that shrinks under it, whichever side's it is, also while
// the other side does not hear of it at once, and uses the leg that grows again.
func TestFlowOutlivesAShrinkingLeg(t *testing.T) {
	for _, dialler := range []bool{true, false} {
		w := newWire()
		var la, lb *leg
		a := newSide(t, w, 1, func(c *Config) { la = newLeg(c, MaxMTU) })
		b := newSide(t, w, 2, func(c *Config) { lb = newLeg(c, MaxMTU) })
		join(t, a, b, [32]byte{}, [32]byte{})
		c, err := a.DialContext(within(t, 10*time.Second), listen(t, b, 443, echo))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		exchange := func() {
			t.Helper()
			sent := make(chan error, 1)
			go func() { _, err := c.Write(make([]byte, 200_000)); sent <- err }()
			if _, err := io.ReadFull(c, make([]byte, 200_000)); err != nil {
				t.Fatal(err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
		}
		exchange()
		changing, other := la, b.port
		if !dialler {
			changing, other = lb, a.port
		}
		changing.port.lose.Store(1) // the first word of it is lost
		changing.resize(DefaultMTU)
		changing.port.lose.Store(0)
		exchange()
		other.largestSent.Store(0)
		exchange()
		if got := other.largestSent.Load(); got != DefaultMTU+messageOverhead {
			t.Errorf("the other side still sends %d bytes", got)
		}
		changing.resize(MaxMTU)
		exchange()
		if got := changing.port.largestSent.Load(); got != MaxMTU+messageOverhead {
			t.Errorf("after it grew, messages of %d bytes", got)
		}
	}
}

func TestClamp(t *testing.T) {
	p := newPathMTU(1300)
	for _, row := range []struct {
		name    string
		flags   header.TCPFlags
		options []byte
		want    []byte
	}{
		{"larger", header.TCPFlagSyn, []byte{2, 4, 5, 180}, []byte{2, 4, 4, 244}},
		{"smaller", header.TCPFlagSyn, []byte{2, 4, 4, 0}, []byte{2, 4, 4, 0}},
		{"behind others", header.TCPFlagSyn | header.TCPFlagAck, []byte{1, 1, 4, 2, 2, 4, 255, 255}, []byte{1, 1, 4, 2, 2, 4, 4, 244}},
		{"no SYN", header.TCPFlagAck, []byte{2, 4, 5, 180}, []byte{2, 4, 5, 180}},
		{"after the end", header.TCPFlagSyn, []byte{0, 0, 0, 0, 2, 4, 5, 180}, []byte{0, 0, 0, 0, 2, 4, 5, 180}},
		{"cut off", header.TCPFlagSyn, []byte{3, 3, 7, 2}, []byte{3, 3, 7, 2}},
		{"without length", header.TCPFlagSyn, []byte{3, 0, 2, 4, 5, 180, 0, 0}, []byte{3, 0, 2, 4, 5, 180, 0, 0}},
		{"too long", header.TCPFlagSyn, []byte{3, 9, 2, 4}, []byte{3, 9, 2, 4}},
	} {
		b := tcpPacket{src: overlay(2), dst: overlay(1), flags: row.flags, options: row.options}.bytes(t)
		copy(b[offOptions:], row.options) // the cutter has clamped them to its own path
		p.clamp(b)
		if got := b[offOptions:]; string(got) != string(row.want) {
			t.Errorf("%s: % x, want % x", row.name, got, row.want)
		}
	}
}

// A peer can change what is sent to itself, between the least and the most that
// may be, and nothing else.
func TestToldOfALeg(t *testing.T) {
	d, _ := bareTun(false)
	d.link.mtu.own.Store(MaxMTU)
	say := func(from netip.Addr, mtu uint32) {
		p := newPathMTU(DefaultMTU)
		pkt := p.tooBig(from, overlay(1))
		defer pkt.DecRef()
		b := pkt.ToView().AsSlice()
		if !header.ICMPv6(b[ipSize:]).Type().IsErrorType() || !isTooBig(b) {
			t.Fatalf("no Packet Too Big: % x", b)
		}
		binary.BigEndian.PutUint32(b[offICMPMTU:], mtu)
		if _, err := d.Write(padded(b), writeOffset); err != nil {
			t.Fatal(err)
		}
	}
	to := func(a netip.Addr) int { b := a.As16(); return d.link.mtu.to(b[:]) }
	for _, row := range []struct {
		mtu  uint32
		want int
	}{{1300, 1300}, {0, DefaultMTU}, {1279, DefaultMTU}, {1 << 31, MaxMTU}, {1281, 1281}, {MaxMTU, MaxMTU}} {
		say(overlay(2), row.mtu)
		if got := to(overlay(2)); got != row.want || to(overlay(3)) != MaxMTU {
			t.Errorf("told %d: %d to it and %d to another, want %d and %d", row.mtu, got, to(overlay(3)), row.want, MaxMTU)
		}
	}
	if n := len(*d.link.mtu.peers.Load()); n != 0 {
		t.Errorf("%d peers are remembered whose legs take everything", n)
	}
}
