package netstack

import (
	"encoding/binary"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// rawPeer speaks TCP by hand to a stack behind a tunDevice.
type rawPeer struct {
	t        *testing.T
	tun      *tunDevice
	packet   tcpPacket
	ack      uint32
	window   int // the stack's, in bytes
	scale    uint8
	received int // payload bytes in order
}

// send delivers one segment with the right acknowledgement.
func (r *rawPeer) send(seq uint32, flags header.TCPFlags, options, payload []byte) {
	p := r.packet
	p.seq, p.flags, p.options, p.payload = seq, flags, options, payload
	b := p.bytes(r.t)
	binary.BigEndian.PutUint32(b[offAck:], r.ack)
	binary.BigEndian.PutUint16(b[offWindow:], 0xffff)
	r.tun.Write(padded(b), writeOffset)
}

// next returns the stack's next packet.
func (r *rawPeer) next() header.TCP {
	b := readAll(r.t, r.tun, 1, 1)[0]
	tcp := header.TCP(b[ipSize:])
	if n := len(tcp.Payload()); n > 0 && tcp.SequenceNumber() == r.ack {
		r.ack += uint32(n)
		r.received += n
	}
	r.window = int(tcp.WindowSize()) << r.scale
	return tcp
}

// TestAckToClosedWindow fills a flow's receive window, sends fewer bytes more
// than its scale can say, and then acknowledges what the flow sent. Without
// zeroWindows the stack never sees the acknowledgement.
func TestAckToClosedWindow(t *testing.T) {
	l := newLink(DefaultMTU)
	s, err := newStack(l, overlay(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); s.Close(); s.Wait() })
	ln, err := listenStack(s, newBudget(), netip.AddrPortFrom(overlay(1), 443))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	r := &rawPeer{t: t, tun: newTun(l, overlay(1), false, new(drops), newFlight(), newFlight()), packet: tcpPacket{src: overlay(2), dst: overlay(1)}}

	const start = 1000
	options := []byte{header.TCPOptionMSS, 4, 4, 0xc4, header.TCPOptionWS, 3, 7, header.TCPOptionNOP}
	r.send(start, header.TCPFlagSyn, options, nil)
	synAck := r.next()
	r.ack = synAck.SequenceNumber() + 1
	opts := header.ParseSynOptions(synAck.Options(), true)
	seq := uint32(start + 1)
	r.send(seq, header.TCPFlagAck, nil, nil)
	c, err := ln.AcceptFlow()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Reset()
	r.scale = uint8(opts.WS)
	if r.scale < 4 {
		t.Fatalf("window scale %d: the test needs rounding", r.scale)
	}
	for r.window = 1208; r.window > 0; { // nobody reads: it fills
		n := min(r.window, 1208)
		r.send(seq, header.TCPFlagAck, nil, make([]byte, n))
		for seq += uint32(n); r.next().AckNumber() != seq; {
		}
	}
	r.send(seq, header.TCPFlagAck, nil, make([]byte, 5)) // rounding: the sender had seen a larger window
	watchdog := time.AfterFunc(5*time.Second, l.Close)   // next then fails the test
	defer watchdog.Stop()
	const size = 256 << 10 // more than goes out before an acknowledgement
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { c.Write(make([]byte, size)) })
	for r.received < size {
		r.next()
		if r.window != 0 {
			t.Fatalf("the window is %d, want 0: the test shows nothing", r.window)
		}
		r.send(seq+5, header.TCPFlagAck, nil, nil)
	}
	if n := r.tun.zero.n.Load(); n != 1 {
		t.Errorf("%d flows in the table, want 1", n)
	}
	if n, err := io.CopyN(io.Discard, c, int64(seq-start-1)); err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	for r.window == 0 { // reading opened it
		r.next()
	}
	if n := r.tun.zero.n.Load(); n != 0 {
		t.Errorf("%d flows in the table after the window opened, want 0", n)
	}
}

func TestZeroWindowsIsNarrow(t *testing.T) {
	var z zeroWindows
	out := tcpPacket{src: overlay(1), dst: overlay(2), flags: header.TCPFlagAck}.bytes(t)
	binary.BigEndian.PutUint32(out[offAck:], 5000)
	binary.BigEndian.PutUint16(out[offWindow:], 0)
	copy(out[offPorts:], []byte{1, 187, 156, 64}) // 443 to 40000
	z.sending(out)
	for name, c := range map[string]struct {
		seq, want uint32
		change    func(*tcpPacket)
	}{
		"a little ahead": {5016, 5000, nil},
		"as expected":    {5000, 5000, nil},
		"behind":         {4999, 4999, nil},
		"far ahead":      {5000 + scaleLimit, 5000 + scaleLimit, nil},
		"with payload":   {5016, 5016, func(p *tcpPacket) { p.payload = []byte("x") }},
		"FIN":            {5016, 5016, func(p *tcpPacket) { p.flags |= header.TCPFlagFin }},
		"RST":            {5016, 5016, func(p *tcpPacket) { p.flags |= header.TCPFlagRst }},
		"SYN":            {5016, 5016, func(p *tcpPacket) { p.flags |= header.TCPFlagSyn }},
		"another flow":   {5016, 5016, func(p *tcpPacket) { p.src = overlay(3) }},
	} {
		p := tcpPacket{src: overlay(2), dst: overlay(1), seq: c.seq, flags: header.TCPFlagAck}
		if c.change != nil {
			c.change(&p)
		}
		b := p.bytes(t)
		z.receiving(b)
		if got := binary.BigEndian.Uint32(b[offSeq:]); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	out[offFlags] |= flagRST
	z.sending(out)
	if z.n.Load() != 0 {
		t.Error("a reset flow stays in the table")
	}
	out[offFlags] = flagACK
	for i := range maxZeroWindows + 10 {
		binary.BigEndian.PutUint16(out[offPorts:], uint16(i))
		z.sending(out)
	}
	if n := z.n.Load(); n > maxZeroWindows {
		t.Errorf("%d flows in the table", n)
	}
}
