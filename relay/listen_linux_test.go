package relay

import (
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// shared are n sockets of one loopback address.
func shared(t *testing.T, n int) []*net.UDPConn {
	t.Helper()
	conns := share(udp(t), n)
	for _, c := range conns {
		t.Cleanup(func() { c.Close() })
	}
	if len(conns) != n {
		t.Skipf("this system gives %d sockets of one address, want %d (SO_REUSEPORT)", len(conns), n)
	}
	return conns
}

// TestOneSocketAnEdge: both directions of an edge arrive at one socket, whoever
// sends, the edges of one sender at all of them, and bind messages by session.
func TestOneSocketAnEdge(t *testing.T) {
	const n = 3
	conns := shared(t, n)
	arrivals := make(chan int) // sockets
	for i, c := range conns {
		go func() {
			b := make([]byte, 2048)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
				arrivals <- i
			}
		}()
	}
	left, right := udp(t), udp(t)
	at := func(from *net.UDPConn, m []byte) int {
		t.Helper()
		if _, err := from.WriteToUDPAddrPort(m, local(conns[0])); err != nil {
			t.Fatal(err)
		}
		select {
		case i := <-arrivals:
			return i
		case <-time.After(5 * time.Second):
			t.Fatal("nothing arrived")
			return 0
		}
	}
	used := map[int]bool{}
	var laptop, node channels
	for range 50 {
		c := laptop.take(time.Now(), 0)
		d := node.take(time.Now(), c)
		one, other := at(left, message(wire.PacketTransport, 64, c)), at(right, message(wire.PacketTransport, 100, d))
		if one != other || one != int(c&0xff)%n {
			t.Errorf("channels %#x and %#x arrive at sockets %d and %d", c, d, one, other)
		}
		used[one] = true
	}
	if len(used) != n {
		t.Errorf("50 edges use %d of %d sockets", len(used), n)
	}
	mac := wire.NewBindMAC(key.NewBind())
	for id := range uint64(2 * n) {
		if got, want := at(left, mac.AppendRequest(nil, id<<56, 1, wire.BindSize)), 0; got != want {
			t.Errorf("a bind message of session %x arrives at socket %d, want %d", id<<56, got, want)
		}
		if got, want := at(left, mac.AppendRequest(nil, id, 1, wire.BindSize)), int(id)%n; got != want {
			t.Errorf("a bind message of session %x arrives at socket %d, want %d", id, got, want)
		}
	}
	at(left, []byte{wire.PacketTransport}) // too short for the program: it goes somewhere
}

// TestPortIsNotStolen: another relay cannot have the port, as without sharing.
func TestPortIsNotStolen(t *testing.T) {
	conns := shared(t, 2)
	if more, err := ListenUDP(local(conns[0]).String()); err == nil {
		for _, c := range more {
			c.Close()
		}
		t.Error("a second listener got the port")
	}
}

// TestSocketsOfOnePort: packets that arrive at any of the sockets leave, and an
// address that was bound through one of them stays bound through all.
func TestSocketsOfOnePort(t *testing.T) {
	conns := shared(t, 4)
	sockets, err := newSockets(conns)
	if err != nil {
		t.Fatal(err)
	}
	f, l, r := joined(t)
	left, right := udp(t), udp(t)
	f.move(l, pathOn(sockets[0], local(left)))
	f.move(r, pathOn(sockets[3], local(right)))
	for c := range uint32(8) {
		l.hop(0x100+c, &hop{to: r, channel: 0x200 + c, bytes: new(atomic.Uint64)})
		r.hop(0x200+c, &hop{to: l, channel: 0x100 + c, bytes: new(atomic.Uint64)})
	}
	done := make(chan error)
	for _, s := range sockets {
		go func() { done <- s.run(f) }()
	}
	to := local(conns[0])
	pass := func(from, at *net.UDPConn, sent, want []byte, via netip.AddrPort) {
		t.Helper()
		if _, err := from.WriteToUDPAddrPort(sent, to); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 2048)
		at.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, source, err := at.ReadFromUDPAddrPort(b)
		if err != nil || string(b[:n]) != string(want) || source != via {
			t.Fatalf("got %d bytes from %s, %v", n, source, err)
		}
	}
	for c := range uint32(8) {
		pass(left, right, message(wire.PacketTransport, 64, 0x100+c), message(wire.PacketTransport, 64, 0x200+c), to)
		pass(right, left, message(wire.PacketTransport, 64, 0x200+c), message(wire.PacketTransport, 64, 0x100+c), to)
	}
	for _, s := range sockets {
		s.conn.Close()
		<-done
	}
}
