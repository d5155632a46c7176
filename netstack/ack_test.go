package netstack

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// said is a packet that a flow of the test sends, or hears.
type said struct {
	heard  int // so many segments that came, and nothing sent
	port   uint16
	flags  header.TCPFlags // beside ACK
	seq    uint32
	ack    uint32
	window uint16 // 0: 5000; 1: none
	more   int    // bytes of options beyond timestamps
	data   int
}

// to has l send it, or take note that it came.
func (s said) to(tb testing.TB, l *link) {
	if s.heard > 0 {
		b := tcpPacket{src: overlay(2), dst: overlay(1), flags: header.TCPFlagAck, payload: make([]byte, 9)}.bytes(tb)
		binary.BigEndian.PutUint16(b[offPorts:], 443)
		binary.BigEndian.PutUint16(b[offPorts+2:], 40000+s.port)
		l.acks.arrived(b, s.heard)
		return
	}
	p := tcpPacket{
		src: overlay(1), dst: overlay(2), seq: s.seq, flags: s.flags | header.TCPFlagAck,
		options: make([]byte, timestampsSize+s.more), payload: make([]byte, s.data),
	}.outbound()
	tcp := header.TCP(p.TransportHeader().Slice())
	tcp.SetAckNumber(s.ack)
	tcp.SetSourcePort(40000 + s.port)
	if s.window > 0 {
		tcp.SetWindowSize(s.window - 1)
	}
	var list stack.PacketBufferList
	list.PushBack(p)
	l.WritePackets(list)
	list.DecRef()
}

// newNearLink is a link with one flow, whose other side answered a SYN at once and
// has been told of 100.
func newNearLink(tb testing.TB) *link {
	l := newLink(DefaultMTU)
	tb.Cleanup(l.Close)
	for _, s := range []said{{flags: header.TCPFlagSyn}, {heard: 1}, {ack: 100, data: 1}} {
		s.to(tb, l)
	}
	leaves(l)
	return l
}

// leaves is what left since the last time: acknowledgement number, and how much
// data.
func leaves(l *link) (text []string) {
	got, _ := l.take(nil, false)
	for _, p := range got {
		text = append(text, fmt.Sprintf("%d+%d", header.TCP(p.TransportHeader().Slice()).AckNumber(), p.Data().Size()))
		p.DecRef()
	}
	return text
}

// TestAcksWaitForData holds the link to which acknowledgements it keeps back and
// what makes them go.
func TestAcksWaitForData(t *testing.T) {
	const full = DefaultMTU - 72
	ack := func(n uint32) said { return said{ack: n} }
	one := said{heard: 1}
	for name, c := range map[string]struct {
		say  []said
		want []string
	}{
		"a request's goes with the answer":            {[]said{one, ack(200), {ack: 200, data: 9}}, []string{"200+9"}},
		"a newer one stands for an older one":         {[]said{one, ack(200), one, ack(300), {ack: 300, data: 9}}, []string{"300+9"}},
		"the third segment is told of at once":        {[]said{one, ack(200), one, ack(300), one, ack(400)}, []string{"400+0"}},
		"also of small ones that came together":       {[]said{{heard: 3}, ack(130)}, []string{"130+0"}},
		"and then it begins anew":                     {[]said{{heard: 3}, ack(130), one, ack(140)}, []string{"130+0"}},
		"more than a full segment is told of at once": {[]said{one, ack(101 + full)}, []string{fmt.Sprintf("%d+0", 101+full)}},
		"and so are two that come to more":            {[]said{one, ack(200), one, ack(101 + full)}, []string{fmt.Sprintf("%d+0", 101+full)}},
		"what is said twice is news":                  {[]said{one, ack(100)}, []string{"100+0"}},
		"also of what is kept, and however often":     {[]said{one, ack(200), ack(200), ack(200)}, []string{"200+0", "200+0", "200+0"}},
		"a closed window does not wait":               {[]said{one, {ack: 200, window: 1}}, []string{"200+0"}},
		"what tells of a gap does not wait":           {[]said{one, {ack: 200, more: 12}}, []string{"200+0"}},
		"an end carries it":                           {[]said{one, ack(300), {flags: header.TCPFlagFin, ack: 300}}, []string{"300+0"}},
		"so does a reset":                             {[]said{one, ack(300), {flags: header.TCPFlagRst, ack: 300}}, []string{"300+0"}},
		"what is sent again does not":                 {[]said{one, {seq: 50, ack: 200}, {seq: 49, ack: 200, data: 1}}, []string{"200+0", "200+1"}},
		"numbers wrap":                                {[]said{{ack: ^uint32(9), data: 1}, one, ack(90), {ack: 90, data: 9}}, []string{"4294967286+1", "90+9"}},
		"another flow's, whose beginning nobody saw":  {[]said{{port: 1, ack: 7, data: 1}, {port: 1, heard: 1}, {port: 1, ack: 8}}, []string{"7+1", "8+0"}},
		"the third packet of a handshake":             {[]said{{port: 1, flags: header.TCPFlagSyn}, {port: 1, heard: 1}, {port: 1, ack: 1 << 20}}, []string{"0+0", "1048576+0"}},
		"flows do not mix":                            {[]said{one, ack(200), {port: 1, ack: 200, data: 1}}, []string{"200+1"}},
		"a port that is used again":                   {[]said{one, ack(200), {flags: header.TCPFlagSyn}}, []string{"200+0", "0+0"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newNearLink(t)
			l.acks.armed = true // no period ends
			for _, s := range c.say {
				s.to(t, l)
			}
			if got := leaves(l); !slices.Equal(got, c.want) {
				t.Errorf("left %v, want %v", got, c.want)
			}
		})
	}
}

// TestAcksOfAFarPeer shows that nothing waits where the other side is far.
func TestAcksOfAFarPeer(t *testing.T) {
	l := newLink(DefaultMTU)
	defer l.Close()
	said{flags: header.TCPFlagSyn}.to(t, l)
	l.acks.start = l.acks.start.Add(-ackNear) // the answer takes so long
	for _, s := range []said{{heard: 1}, {ack: 100, data: 1}, {heard: 1}, {ack: 200}} {
		s.to(t, l)
	}
	if got, want := leaves(l), []string{"0+0", "100+1", "200+0"}; !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
}

// TestAcksShareAPlace shows that of two flows on one place the earlier loses
// nothing.
func TestAcksShareAPlace(t *testing.T) {
	l := newNearLink(t)
	l.acks.armed = true
	said{heard: 1}.to(t, l)
	said{ack: 200}.to(t, l)
	place := func(port uint16) *ackFlow {
		b := tcpPacket{src: overlay(2), dst: overlay(1)}.bytes(t)
		binary.BigEndian.PutUint16(b[offPorts:], 443)
		binary.BigEndian.PutUint16(b[offPorts+2:], 40000+port)
		f, _ := l.acks.flow(b[offSrc:offDst], b[offPorts:offPorts+2], b[offPorts+2:offSeq])
		return f
	}
	other := uint16(1)
	for place(other) != place(0) {
		other++
	}
	said{port: other, ack: 7, data: 1}.to(t, l)
	said{heard: 1}.to(t, l)
	said{ack: 300}.to(t, l)
	if got, want := leaves(l), []string{"200+0", "7+1", "300+0"}; !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
}

// TestAcksLeaveInTheEnd shows that what nothing carries leaves by itself, once,
// and that one which stands for an older one does not wait anew.
func TestAcksLeaveInTheEnd(t *testing.T) {
	l := newNearLink(t)
	l.acks.armed = true // periods end when the test says so
	period := func() (out []*stack.PacketBuffer) {
		l.mu.Lock()
		defer l.mu.Unlock()
		defer func() { l.acks.armed = true }()
		return l.acks.due(false)
	}
	say := func(ack uint32) {
		said{heard: 1}.to(t, l)
		said{ack: ack}.to(t, l)
	}
	say(200)
	if out := period(); len(out) > 0 {
		t.Error("one that was kept just now left")
	}
	say(300)
	out := period()
	if len(out) != 1 || header.TCP(out[0].TransportHeader().Slice()).AckNumber() != 300 {
		t.Fatalf("%d left, want 300 alone", len(out))
	}
	out[0].DecRef()
	if out := period(); len(out) > 0 {
		t.Error("it left twice")
	}
	l.acks.armed = false
	began := time.Now()
	say(400)
	got, _ := l.take(nil, true)
	if took := time.Since(began); took < ackPeriod || len(got) != 1 {
		t.Errorf("%d left after %v, want one after %v at least", len(got), took, ackPeriod)
	}
	got[0].DecRef()
}
