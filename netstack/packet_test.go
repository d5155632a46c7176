package netstack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// tcpPacket says what a test's packet is like.
type tcpPacket struct {
	src, dst netip.Addr
	seq      uint32
	flags    header.TCPFlags
	options  []byte
	payload  []byte
	mss      int // of a super-segment; 0: none
	views    int // into how many views the payload is divided
}

// outbound builds p as gVisor's TCP and IPv6 do.
func (p tcpPacket) outbound() *stack.PacketBuffer {
	var data buffer.Buffer
	for rest, i := p.payload, max(p.views, 1); len(rest) > 0; i-- {
		n := (len(rest) + i - 1) / i
		data.Append(buffer.NewViewWithData(rest[:n]))
		rest = rest[n:]
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: 120, Payload: data})
	tcp := header.TCP(pkt.TransportHeader().Push(header.TCPMinimumSize + len(p.options)))
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	tcp.Encode(&header.TCPFields{
		SrcPort: 40000, DstPort: 443, SeqNum: p.seq, AckNum: 77,
		DataOffset: uint8(len(tcp)), Flags: p.flags, WindowSize: 5000,
	})
	copy(tcp[header.TCPMinimumSize:], p.options)
	src, dst := tcpip.AddrFrom16(p.src.As16()), tcpip.AddrFrom16(p.dst.As16())
	if p.mss > 0 {
		pkt.GSOOptions = stack.GSO{Type: stack.GSOTCPv6, NeedsCsum: true, MSS: uint16(p.mss), L3HdrLen: header.IPv6MinimumSize}
		tcp.SetChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(pkt.Size())))
	}
	n := pkt.Size()
	header.IPv6(pkt.NetworkHeader().Push(header.IPv6MinimumSize)).Encode(&header.IPv6Fields{
		PayloadLength: uint16(n), TransportProtocol: header.TCPProtocolNumber, HopLimit: 64,
		TrafficClass: 0, SrcAddr: src, DstAddr: dst,
	})
	pkt.NetworkProtocolNumber = header.IPv6ProtocolNumber
	return pkt
}

// bytes is p as one packet on the wire, its checksum right.
func (p tcpPacket) bytes(tb testing.TB) []byte {
	var c cutter
	p.mss = 0
	if !c.load(p.outbound(), newPathMTU(0xffff)) {
		tb.Fatal("the cutter refuses the packet")
	}
	b := make([]byte, 70000)
	return b[:c.next(b)]
}

// checkPacket holds b to what IPv6 and TCP ask of it.
func checkPacket(t *testing.T, b []byte) {
	t.Helper()
	ip := header.IPv6(b)
	if !ip.IsValid(len(b)) || int(ip.PayloadLength()) != len(b)-header.IPv6MinimumSize {
		t.Fatalf("IPv6 header %x is not valid for %d bytes", b[:40], len(b))
	}
	tcp := header.TCP(ip.Payload())
	payload := tcp.Payload()
	if !tcp.IsChecksumValid(ip.SourceAddress(), ip.DestinationAddress(), checksum.Checksum(payload, 0), uint16(len(payload))) {
		t.Fatalf("TCP checksum %#x is wrong", tcp.Checksum())
	}
}

// capture is a stack.NetworkDispatcher that keeps what is delivered.
type capture struct {
	got  [][]byte
	next stack.NetworkDispatcher
}

func (c *capture) DeliverNetworkPacket(proto tcpip.NetworkProtocolNumber, p *stack.PacketBuffer) {
	v := p.ToView()
	c.got = append(c.got, bytes.Clone(v.AsSlice()))
	v.Release()
	if c.next != nil {
		c.next.DeliverNetworkPacket(proto, p)
	}
}

func (c *capture) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// bareTun is a tunDevice whose link delivers to a capture.
func bareTun(dropSYN bool) (*tunDevice, *capture) {
	l, c := newLink(MaxMTU), &capture{}
	l.Attach(c)
	return newTun(l, overlay(1), dropSYN, new(drops), newFlight(), newFlight()), c
}

const writeOffset = 16

// padded copies packets behind room for WireGuard's header.
func padded(packets ...[]byte) [][]byte {
	out := make([][]byte, len(packets))
	for i, p := range packets {
		out[i] = append(make([]byte, writeOffset), p...)
	}
	return out
}

// readAll reads what waits at the link of t, batch packets a call.
func readAll(t *testing.T, d *tunDevice, batch, want int) (out [][]byte) {
	t.Helper()
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	for i := range bufs {
		bufs[i] = make([]byte, 2000)
	}
	for len(out) < want {
		n, err := d.Read(bufs, sizes, 16)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			t.Fatal("Read returned nothing")
		}
		for i := range n {
			out = append(out, bytes.Clone(bufs[i][16:16+sizes[i]]))
		}
	}
	return out
}

// TestCutAndMerge sends random super-segments through Read, and what comes out
// through Write: the same bytes arrive, in as few packets.
func TestCutAndMerge(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 500 {
		p := tcpPacket{
			src: overlay(2), dst: overlay(1), seq: rng.Uint32(), mss: 1 + rng.IntN(MaxMTU-maxHeader), views: 1 + rng.IntN(5),
			flags: header.TCPFlagAck, options: make([]byte, 4*rng.IntN(11)),
		}
		if i%4 != 0 {
			p.mss = 1208
		}
		if i%3 == 0 {
			p.seq = ^uint32(rng.IntN(10000)) // wraps within
		}
		p.payload = make([]byte, rng.IntN(min(60000, maxParts*p.mss)))
		for j := range p.payload {
			p.payload[j] = byte(rng.Uint32())
		}
		if rng.IntN(2) == 0 {
			p.flags |= header.TCPFlagPsh
		}
		t.Run(fmt.Sprintf("%d bytes by %d", len(p.payload), p.mss), func(t *testing.T) {
			d, got := bareTun(false)
			pkts := stack.PacketBufferList{}
			pkts.PushBack(p.outbound())
			if n, err := d.link.WritePackets(pkts); n != 1 || err != nil {
				t.Fatalf("WritePackets: %d, %v", n, err)
			}
			pkts.DecRef()
			want := max(1, (len(p.payload)+p.mss-1)/p.mss)
			segments := readAll(t, d, 1+rng.IntN(130), want)
			if len(segments) != want {
				t.Fatalf("%d segments, want %d", len(segments), want)
			}
			seq, payload := p.seq, []byte(nil)
			for j, s := range segments {
				checkPacket(t, s)
				tcp := header.TCP(s[ipSize:])
				if tcp.SequenceNumber() != seq {
					t.Fatalf("segment %d begins at %d, want %d", j, tcp.SequenceNumber(), seq)
				}
				wantFlags := p.flags
				if j < want-1 {
					wantFlags &^= header.TCPFlagPsh
				}
				if tcp.Flags() != wantFlags || !bytes.Equal(tcp.Options(), p.options) {
					t.Fatalf("segment %d has flags %v and options %x", j, tcp.Flags(), tcp.Options())
				}
				seq += uint32(len(tcp.Payload()))
				payload = append(payload, tcp.Payload()...)
			}
			if !bytes.Equal(payload, p.payload) {
				t.Fatal("the segments hold other bytes")
			}
			if n, err := d.Write(padded(segments...), writeOffset); n != len(segments) || err != nil {
				t.Fatalf("Write: %d, %v", n, err)
			}
			if len(got.got) != 1 {
				t.Fatalf("%d packets delivered, want 1", len(got.got))
			}
			original := p.bytes(t)
			merged := got.got[0]
			copy(merged[offChecksum:offChecksum+2], original[offChecksum:]) // not made anew
			if !bytes.Equal(merged, original) {
				t.Error("what was merged is not what was cut")
			}
		})
	}
}

func TestCutKeepsTheEndAtTheEnd(t *testing.T) {
	p := tcpPacket{
		src: overlay(1), dst: overlay(2), mss: 100, payload: make([]byte, 250),
		flags: header.TCPFlagAck | header.TCPFlagFin | header.TCPFlagPsh | header.TCPFlagCwr,
	}
	var c cutter
	c.load(p.outbound(), newPathMTU(MaxMTU))
	var got []header.TCPFlags
	for c.pkt != nil {
		b := make([]byte, 2000)
		b = b[:c.next(b)]
		checkPacket(t, b)
		got = append(got, header.TCP(b[ipSize:]).Flags())
	}
	want := []header.TCPFlags{
		header.TCPFlagAck | header.TCPFlagCwr,
		header.TCPFlagAck,
		header.TCPFlagAck | header.TCPFlagFin | header.TCPFlagPsh,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("flags %v, want %v", got, want)
	}
}

// TestMergeOnlyWhatWasOne changes every byte of a second segment's headers: no
// change but of PSH, and of what depends on the payload, leaves it mergeable.
func TestMergeOnlyWhatWasOne(t *testing.T) {
	first := tcpPacket{src: overlay(2), dst: overlay(1), seq: 1000, flags: header.TCPFlagAck, options: make([]byte, 12), payload: make([]byte, 100)}
	second := first
	second.seq += 100
	a, b := first.bytes(t), second.bytes(t)
	merges := func(a, b []byte) bool {
		var run train
		own := overlay(1).As16()
		if judge(a, &own, false) != accept || judge(b, &own, false) != accept {
			return false
		}
		run.begin(a)
		return run.add(b)
	}
	if !merges(a, b) {
		t.Fatal("the plain case is not merged")
	}
	for at := range headerSize(a) {
		for bit := range 8 {
			change := bytes.Clone(b)
			change[at] ^= 1 << bit
			free := at == offChecksum || at == offChecksum+1 || at == offFlags && byte(1<<bit) == flagPSH
			if got := merges(a, change); got != free {
				t.Errorf("byte %d bit %d: merged %v, want %v", at, bit, got, free)
			}
		}
	}
	for _, flags := range []header.TCPFlags{0, header.TCPFlagSyn, header.TCPFlagFin | header.TCPFlagAck, header.TCPFlagRst, header.TCPFlagPsh | header.TCPFlagAck, header.TCPFlagUrg | header.TCPFlagAck} {
		p, q := first, second
		p.flags, q.flags = flags, flags
		if merges(p.bytes(t), q.bytes(t)) {
			t.Errorf("two segments with flags %v were merged", flags)
		}
	}
	longer := second
	longer.payload = make([]byte, 101)
	if merges(a, longer.bytes(t)) {
		t.Error("a segment longer than the first was merged")
	}
	empty := second
	empty.payload = nil
	if merges(a, empty.bytes(t)) {
		t.Error("an acknowledgement was merged")
	}

	var run train // a short one ends a train
	short, third := second, second
	short.payload = make([]byte, 50)
	third.seq += 50
	run.begin(a)
	if !run.add(short.bytes(t)) || run.add(third.bytes(t)) {
		t.Error("a train goes on behind a short segment")
	}
}

func TestTrainBounds(t *testing.T) {
	var run train
	p := tcpPacket{src: overlay(2), dst: overlay(1), flags: header.TCPFlagAck, payload: make([]byte, 1348)}
	run.begin(p.bytes(t))
	n := 1
	for p.seq += 1348; run.add(p.bytes(t)); p.seq += 1348 {
		n++
	}
	if run.total > maxTrain || n < 40 {
		t.Errorf("a train of %d segments and %d bytes", n, run.total)
	}
	pkt := run.packet()
	if pkt.Size() > maxTrain {
		t.Errorf("a packet of %d bytes", pkt.Size())
	}
	pkt.DecRef()
}

func TestWriteDrops(t *testing.T) {
	good := tcpPacket{src: overlay(2), dst: overlay(1), flags: header.TCPFlagAck, payload: []byte("x")}
	syn := good
	syn.flags = header.TCPFlagSyn
	foreignPacket := good
	foreignPacket.dst = overlay(3)
	mangle := func(f func(b []byte)) []byte { b := good.bytes(t); f(b); return b }
	for name, c := range map[string]struct {
		b    []byte
		want verdict
	}{
		"good":                 {good.bytes(t), accept},
		"empty":                {nil, malformed},
		"IPv4":                 {mangle(func(b []byte) { b[0] = 0x45 }), malformed},
		"cut IPv6 header":      {good.bytes(t)[:39], malformed},
		"cut TCP header":       {good.bytes(t)[:59], malformed},
		"IPv6 length too long": {mangle(func(b []byte) { b[offPayloadLen+1]++ }), malformed},
		"data offset too long": {mangle(func(b []byte) { b[offData] = 0xf0 }), malformed},
		"data offset 4":        {mangle(func(b []byte) { b[offData] = 0x40 }), malformed},
		"UDP":                  {mangle(func(b []byte) { b[offNextHeader] = 17 }), unsupported},
		"ICMPv6":               {mangle(func(b []byte) { b[offNextHeader] = 58 }), unsupported},
		"fragment":             {mangle(func(b []byte) { b[offNextHeader] = 44 }), unsupported},
		"hop by hop":           {mangle(func(b []byte) { b[offNextHeader] = 0 }), unsupported},
		"foreign":              {foreignPacket.bytes(t), foreign},
		"SYN":                  {syn.bytes(t), unasked},
	} {
		own := overlay(1).As16()
		if got := judge(c.b, &own, true); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	d, got := bareTun(true)
	d.Write(padded(good.bytes(t), nil, syn.bytes(t), foreignPacket.bytes(t), mangle(func(b []byte) { b[offNextHeader] = 17 })), writeOffset)
	if len(got.got) != 1 {
		t.Errorf("%d packets delivered, want 1", len(got.got))
	}
	n := d.drops
	if n.malformed.Load() != 1 || n.unasked.Load() != 1 || n.foreign.Load() != 1 || n.unsupported.Load() != 1 {
		t.Errorf("counts %d %d %d %d, want 1 each", n.malformed.Load(), n.unasked.Load(), n.foreign.Load(), n.unsupported.Load())
	}
}

func TestReadDropsOthers(t *testing.T) {
	d, _ := bareTun(false)
	udp := tcpPacket{src: overlay(1), dst: overlay(2), payload: []byte("x")}.outbound()
	udp.NetworkHeader().Slice()[offNextHeader] = 17
	good := tcpPacket{src: overlay(1), dst: overlay(2), flags: header.TCPFlagAck, payload: []byte("y")}.outbound()
	pkts := stack.PacketBufferList{}
	for _, p := range []*stack.PacketBuffer{udp, good} {
		pkts.PushBack(p)
	}
	d.link.WritePackets(pkts)
	pkts.DecRef()
	got := readAll(t, d, 8, 1)
	if len(got) != 1 || !bytes.HasSuffix(got[0], []byte("y")) {
		t.Errorf("got %q", got)
	}
	if n := d.drops.outbound.Load(); n != 1 {
		t.Errorf("%d dropped, want 1", n)
	}
	if d.link.taken(2) {
		t.Error("a batch counts as handed over before it is")
	}
	d.Close()
	if _, err := d.Read(make([][]byte, 1), make([]int, 1), 16); err != os.ErrClosed {
		t.Errorf("Read after Close: %v", err)
	}
	d.Close()
}

func TestSuperSegmentIsOneTrain(t *testing.T) {
	for _, mtu := range []int{DefaultMTU, 1400, MaxMTU} {
		l := newLink(mtu)
		payload := int(l.GSOMaxSize()) - stackSlack // gVisor's limit
		mss := mtu - 72                             // with timestamps
		if payload%mss != 0 {
			t.Errorf("MTU %d: %d bytes are not whole segments of %d", mtu, payload, mss)
		}
		if n := payload / mss; n*(mtu+messageOverhead) > trainBytes || (n+1)*(mtu+messageOverhead) <= trainBytes || n > maxParts {
			t.Errorf("MTU %d: %d segments", mtu, n)
		}
	}
}

// TestAllocations holds the packet path to its promise.
func TestAllocations(t *testing.T) {
	p := tcpPacket{src: overlay(2), dst: overlay(1), flags: header.TCPFlagAck, options: make([]byte, 12), payload: make([]byte, 49*1208), mss: 1208, views: 3}
	pkt := p.outbound()
	bufs, sizes := make([][]byte, 128), make([]int, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 2000)
	}
	var c cutter
	path := newPathMTU(DefaultMTU)
	n := 0
	if got := testing.AllocsPerRun(100, func() {
		c.load(pkt.IncRef(), path)
		for n = 0; c.pkt != nil; n++ {
			sizes[n] = c.next(bufs[n][writeOffset:])
		}
	}); got != 0 {
		t.Errorf("cutting allocates %v times", got)
	}
	if n != 49 {
		t.Fatalf("%d segments, want 49", n)
	}
	d, _ := bareTun(false)
	d.link.Attach(discard{})
	in := make([][]byte, n)
	for i := range in {
		in[i] = bufs[i][:writeOffset+sizes[i]]
	}
	most := 1.0 // pools may be emptied by a collection in between
	if raceEnabled {
		most = 3
	}
	if got := testing.AllocsPerRun(100, func() { d.Write(in, writeOffset) }); got > most {
		t.Errorf("merging allocates %v times", got)
	}
}

type discard struct{}

func (discard) DeliverNetworkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}
func (discard) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer)    {}

// FuzzWrite: the attacker is an admitted peer, who sends a batch of packets of
// their own making. What is delivered is TCP to us, whole, and holds exactly
// the payload of the packets that pass; and the stack survives it.
func FuzzWrite(f *testing.F) {
	frame := func(packets ...[]byte) (b []byte) {
		for _, p := range packets {
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(p))), p...)
		}
		return b
	}
	p := tcpPacket{src: overlay(2), dst: overlay(1), seq: 5, flags: header.TCPFlagAck, options: make([]byte, 12), payload: []byte("some payload")}
	q := p
	q.seq += uint32(len(p.payload))
	q.flags |= header.TCPFlagPsh
	syn := p
	syn.flags, syn.payload = header.TCPFlagSyn, nil
	syn.options = []byte{2, 4, 4, 0xc4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7}
	rst := p
	rst.flags = header.TCPFlagRst
	f.Add(frame(p.bytes(f), q.bytes(f)), false)
	f.Add(frame(syn.bytes(f)), true)
	f.Add(frame(syn.bytes(f), p.bytes(f), rst.bytes(f)), false)
	f.Add(frame(p.bytes(f), nil, []byte{0x60}, q.bytes(f)[:60]), false)

	l := newLink(DefaultMTU)
	s, err := newStack(l, overlay(1))
	if err != nil {
		f.Fatal(err)
	}
	l.stopWaiting() // nobody reads what it answers
	f.Cleanup(func() { l.Close(); s.Close(); s.Wait() })
	if _, err := listenStack(s, newBudget(), netip.AddrPortFrom(overlay(1), 443)); err != nil {
		f.Fatal(err)
	}
	up := l.up.Load().NetworkDispatcher

	f.Fuzz(func(t *testing.T, in []byte, dropSYN bool) {
		var packets [][]byte
		for len(in) >= 2 && len(packets) < 128 {
			n := min(int(binary.BigEndian.Uint16(in)), len(in)-2)
			packets = append(packets, in[2:2+n])
			in = in[2+n:]
		}
		d, got := bareTun(dropSYN)
		got.next = up
		d.Write(padded(packets...), writeOffset)
		var want, have []byte
		own := overlay(1).As16()
		for _, b := range packets {
			if judge(b, &own, dropSYN) == accept {
				want = append(want, b[headerSize(b):]...)
			}
		}
		for _, b := range got.got {
			ip := header.IPv6(b)
			if !ip.IsValid(len(b)) || int(ip.PayloadLength())+ipSize != len(b) || len(b) > maxTrain+ipSize ||
				ip.DestinationAddress() != tcpip.AddrFrom16(own) || ip.NextHeader() != uint8(header.TCPProtocolNumber) {
				t.Fatalf("delivered %x", b)
			}
			tcp := header.TCP(ip.Payload())
			if len(tcp) < header.TCPMinimumSize || int(tcp.DataOffset()) > len(tcp) {
				t.Fatalf("delivered a TCP header of %d bytes in %d", tcp.DataOffset(), len(tcp))
			}
			if dropSYN && tcp.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) == header.TCPFlagSyn {
				t.Fatal("delivered a SYN")
			}
			have = append(have, tcp.Payload()...)
		}
		if !bytes.Equal(have, want) {
			t.Fatalf("delivered %x, want %x", have, want)
		}
	})
}

// FuzzParseEndpoint: wireguard-go alone calls it, with our own text; the
// property is that what parses prints the same.
func FuzzParseEndpoint(f *testing.F) {
	f.Add("0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20")
	f.Add("")
	b := newBind(&port{}, newFlight(), newFlight())
	f.Fuzz(func(t *testing.T, s string) {
		e, err := b.ParseEndpoint(s)
		if err == nil && !bytes.EqualFold([]byte(e.DstToString()), []byte(s)) {
			t.Errorf("got %q, want %q", e.DstToString(), s)
		}
	})
}
