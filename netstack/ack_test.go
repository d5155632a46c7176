package netstack

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// said is a packet that a flow of the test sends.
type said struct {
	port   uint16 // of its other side; 0: 443
	flags  header.TCPFlags
	ack    uint32
	window uint16 // 0: 5000; 1: none
	more   int    // bytes of options beyond timestamps
	data   int
}

func (s said) packet() *stack.PacketBuffer {
	p := tcpPacket{
		src: overlay(1), dst: overlay(2), flags: s.flags | header.TCPFlagAck,
		options: make([]byte, timestampsSize+s.more), payload: make([]byte, s.data),
	}
	if s.flags == header.TCPFlagSyn && s.ack == 0 {
		p.flags = header.TCPFlagSyn
	}
	pkt := p.outbound()
	tcp := header.TCP(pkt.TransportHeader().Slice())
	tcp.SetAckNumber(s.ack)
	if s.port != 0 {
		tcp.SetDestinationPort(s.port)
	}
	if s.window > 0 {
		tcp.SetWindowSize(s.window - 1)
	}
	return pkt
}

// TestAcksWaitForData holds the link to which acknowledgements it keeps back and
// what makes them go.
func TestAcksWaitForData(t *testing.T) {
	const full = DefaultMTU - 72
	syn, ack := said{flags: header.TCPFlagSyn, ack: 0}, func(n uint32) said { return said{ack: n} }
	fin := said{flags: header.TCPFlagFin, ack: 300}
	for name, c := range map[string]struct {
		say  []said
		want string // what left: acknowledgement number, and how much data
	}{
		"the third packet of a handshake goes with the first data": {[]said{syn, ack(100), {ack: 100, data: 9}}, "0+0 100+9"},
		"a request's acknowledgement goes with the answer":         {[]said{{ack: 100, data: 1}, ack(200), {ack: 200, data: 9}}, "100+1 200+9"},
		"a newer one stands for an older one":                      {[]said{{ack: 100, data: 1}, ack(200), ack(300), {ack: 300, data: 9}}, "100+1 300+9"},
		"the fourth small segment is told of at once":              {[]said{{ack: 100, data: 1}, ack(200), ack(300), ack(400), ack(500)}, "100+1 500+0"},
		"more than a full segment is told of at once":              {[]said{{ack: 100, data: 1}, ack(101 + full)}, fmt.Sprintf("100+1 %d+0", 101+full)},
		"and so are two that come to more":                         {[]said{{ack: 100, data: 1}, ack(200), ack(101 + full)}, fmt.Sprintf("100+1 %d+0", 101+full)},
		"what is said twice is news":                               {[]said{{ack: 100, data: 1}, ack(100)}, "100+1 100+0"},
		"also of what is kept":                                     {[]said{{ack: 100, data: 1}, ack(200), ack(200)}, "100+1 200+0 200+0"},
		"a closed window does not wait":                            {[]said{{ack: 100, data: 1}, {ack: 200, window: 1}}, "100+1 200+0"},
		"what tells of a gap does not wait":                        {[]said{{ack: 100, data: 1}, {ack: 200, more: 12}}, "100+1 200+0"},
		"an end carries it":                                        {[]said{{ack: 100, data: 1}, ack(300), fin}, "100+1 300+0"},
		"so does a reset":                                          {[]said{{ack: 100, data: 1}, ack(300), {flags: header.TCPFlagRst, ack: 300}}, "100+1 300+0"},
		"numbers wrap":                                             {[]said{{ack: ^uint32(9), data: 1}, ack(90), {ack: 90, data: 9}}, "4294967286+1 90+9"},
		"an unknown flow's goes at once":                           {[]said{ack(100)}, "100+0"},
		"flows in one place do not wait for each other": {
			[]said{{ack: 100, data: 1}, ack(200), {port: 443<<8&0xff00 | 1, ack: 7, data: 1}, ack(300)}, "100+1 200+0 7+1 300+0"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLink(DefaultMTU)
			defer l.Close()
			l.acks.armed = true // no period ends
			var got []*stack.PacketBuffer
			for _, s := range c.say {
				var list stack.PacketBufferList
				list.PushBack(s.packet())
				l.WritePackets(list)
				list.DecRef()
				got, _ = l.take(got, false)
			}
			var text []string
			for _, p := range got {
				text = append(text, fmt.Sprintf("%d+%d", header.TCP(p.TransportHeader().Slice()).AckNumber(), p.Data().Size()))
				p.DecRef()
			}
			if got := fmt.Sprint(text); got != "["+c.want+"]" {
				t.Errorf("left %s, want [%s]", got, c.want)
			}
		})
	}
}

// TestAcksLeaveInTheEnd shows that what nothing carries leaves by itself, once.
func TestAcksLeaveInTheEnd(t *testing.T) {
	l := newLink(DefaultMTU)
	defer l.Close()
	write := func(s said) {
		var list stack.PacketBufferList
		list.PushBack(s.packet())
		l.WritePackets(list)
		list.DecRef()
	}
	write(said{ack: 100, data: 1})
	began := time.Now()
	write(said{ack: 200})
	var left []uint32
	for len(left) < 2 {
		got, _ := l.take(nil, true)
		for _, p := range got {
			left = append(left, header.TCP(p.TransportHeader().Slice()).AckNumber())
			p.DecRef()
		}
	}
	if took := time.Since(began); took < ackPeriod || !slices.Equal(left, []uint32{100, 200}) {
		t.Errorf("%v left after %v, want 100 and, after %v at least, 200", left, took, ackPeriod)
	}
	time.Sleep(3 * ackPeriod)
	if got, _ := l.take(nil, false); len(got) > 0 {
		t.Errorf("%d packets more", len(got))
	}
	write(said{ack: 300}) // told again, it is kept as before
	if got, _ := l.take(nil, false); len(got) > 0 {
		t.Error("an acknowledgement did not wait")
	}
}
