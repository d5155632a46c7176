package relay

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zt-daemon/zt/relay/wire"
)

// udp is a loopback socket; joins lets it receive and send trains itself.
func udp(t testing.TB) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// sendTrain sends b as datagrams of seg bytes in one system call.
func sendTrain(t testing.TB, c *net.UDPConn, to netip.AddrPort, b []byte, seg int) {
	t.Helper()
	var ctl control
	n := ctl.put(0, unix.IPPROTO_UDP, unix.UDP_SEGMENT, binary.NativeEndian.AppendUint16(nil, uint16(seg)))
	oob := ctl.bytes()[:n]
	if _, _, err := c.WriteMsgUDPAddrPort(b, oob, to); err != nil {
		t.Skipf("this kernel sends no trains (UDP_SEGMENT): %v", err)
	}
}

// relayed is a socket that forwards between two bound sessions, step by step.
func relayed(t testing.TB) (b *batch, f *forwarder, left, right *net.UDPConn) {
	t.Helper()
	conn := udp(t)
	left, right = udp(t), udp(t)
	s, err := newSocket(conn)
	if err != nil {
		t.Fatal(err)
	}
	f, l, r := joined(t)
	bindTo := func(ses *session, c *net.UDPConn) {
		f.move(ses, pathOn(s, local(c)))
	}
	bindTo(l, left)
	bindTo(r, right)
	return newBatch(s), f, left, right
}

// pathOn is the path of an IPv4 address as s would read it.
func pathOn(s *socket, addr netip.AddrPort) *path {
	p := &path{addr: addr, via: s}
	b4 := addr.Addr().As4()
	binary.NativeEndian.PutUint16(p.name.b[:], unix.AF_INET)
	binary.BigEndian.PutUint16(p.name.b[2:], addr.Port())
	copy(p.name.b[4:], b4[:])
	p.name.n = unix.SizeofSockaddrInet4
	return p
}

func local(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// readAll reads want bytes in datagrams.
func readAll(t testing.TB, c *net.UDPConn, want int) (datagrams [][]byte) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 65535)
	for want > 0 {
		n, err := c.Read(buf)
		if err != nil {
			t.Fatalf("%d bytes are missing: %v", want, err)
		}
		datagrams = append(datagrams, bytes.Clone(buf[:n]))
		want -= n
	}
	return datagrams
}

func TestTrainThroughKernel(t *testing.T) {
	for name, split := range map[string]bool{"with UDP_SEGMENT": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			b, f, left, right := relayed(t)
			b.socket.segments.Store(split && b.socket.segments.Load())
			const seg, count = 1312, 40
			train := bytes.Repeat(message(wire.PacketTransport, seg, 0xa), count)
			wire.PutChannel(train[7*seg:], 0xf) // a stranger's, in the middle
			train = append(train, message(wire.PacketTransport, 500, 0xa)...)
			done := make(chan error, 1)
			var total tally
			f.counter = func(c *tally) { total.packets += c.packets; total.dropped[dropChannel] += c.dropped[dropChannel] }
			go func() {
				for total.packets < count {
					if err := b.step(f); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
			sendTrain(t, left, local(b.socket.conn), train, seg)
			got := readAll(t, right, len(train)-seg)
			if len(got) != count {
				t.Errorf("%d datagrams, want %d", len(got), count)
			}
			for i, d := range got {
				n := seg
				if i == count-1 {
					n = 500
				}
				if want := message(wire.PacketTransport, n, 0xb); !bytes.Equal(d, want) {
					t.Errorf("datagram %d: %d bytes on channel %#x", i, len(d), wire.Channel(d))
				}
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if total.dropped[dropChannel] != 1 {
				t.Errorf("%d drops, want 1", total.dropped[dropChannel])
			}
		})
	}
}

func TestStepDoesNotAllocate(t *testing.T) {
	b, f, left, right := relayed(t)
	to := local(b.socket.conn)
	m := message(wire.PacketTransport, 1312, 0xa)
	buf := make([]byte, 2048)
	right.SetReadDeadline(time.Now().Add(30 * time.Second))
	allocs := testing.AllocsPerRun(500, func() {
		if _, err := left.WriteToUDPAddrPort(m, to); err != nil {
			t.Fatal(err)
		}
		if err := b.step(f); err != nil {
			t.Fatal(err)
		}
		if _, _, err := right.ReadFromUDPAddrPort(buf); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations a batch, want 0", allocs)
	}
}

func BenchmarkTrain(b *testing.B) {
	f, _, _ := joined(b)
	const seg, count = 1312, 49
	train := bytes.Repeat(message(wire.PacketTransport, seg, 0xa), count)
	from := &path{addr: addrA}
	var t tally
	var out discard
	b.SetBytes(int64(len(train)))
	for b.Loop() {
		for off := 0; off < len(train); off += seg {
			wire.PutChannel(train[off:], 0xa)
		}
		f.train(train, seg, from, 0, out, &t)
	}
	b.ReportMetric(float64(b.N)*count/b.Elapsed().Seconds(), "pkts/s")
}

// BenchmarkForward moves trains through the kernel: one system call in, one out.
func BenchmarkForward(b *testing.B) {
	batch, f, left, right := relayed(b)
	right.SetReadBuffer(1 << 20)
	const seg, count = 1312, 49
	train := bytes.Repeat(message(wire.PacketTransport, seg, 0xa), count)
	to := local(batch.socket.conn)
	buf := make([]byte, 65535)
	raw, err := newSocket(right) // joins what it receives
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(train)))
	for b.Loop() {
		sendTrain(b, left, to, train, seg)
		if err := batch.step(f); err != nil {
			b.Fatal(err)
		}
		if _, _, err := raw.conn.ReadFromUDPAddrPort(buf); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*count/b.Elapsed().Seconds(), "pkts/s")
}

// TestRefusedTrain: what the kernel does not split, we send singly.
func TestRefusedTrain(t *testing.T) {
	b, f, _, right := relayed(t)
	if !b.socket.segments.Load() {
		t.Skip("this kernel sends no trains (UDP_SEGMENT)")
	}
	const seg, count = 100, 200 // more than UDP_MAX_SEGMENTS, 128 in Linux 6.18: EINVAL
	train := bytes.Repeat(message(wire.PacketTransport, seg, 0xb), count)
	to := f.byAddr.get(local(right)).path.Load()
	b.send(message(wire.PacketTransport, 50, 1), 50, to)
	b.send(train, seg, to)
	b.send(message(wire.PacketTransport, 60, 2), 60, to)
	b.flush()
	got := readAll(t, right, 50+len(train)+60)
	if len(got) != count+2 || len(got[0]) != 50 || len(got[1]) != seg || len(got[count+1]) != 60 {
		t.Errorf("%d datagrams, want %d in order", len(got), count+2)
	}
	if n := b.tally.dropped[dropSend]; n != 0 || !b.socket.segments.Load() {
		t.Errorf("%d drops, trains still sent: %v; want none, true", n, b.socket.segments.Load())
	}
	b.socket.conn.Close()
	b.send(train, seg, to)
	b.flush()
	if n := b.tally.dropped[dropSend]; n != count {
		t.Errorf("%d drops on a closed socket, want %d", n, count)
	}
}

// TestDualStack: one socket of both families joins a laptop on IPv4 and a node
// on IPv6.
func TestDualStack(t *testing.T) {
	probe, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Skipf("this machine has no IPv6 loopback: %v", err)
	}
	probe.Close()
	w := newWorld(t)
	w.udp = "[::]:0"
	w.restart()
	_, port, err := net.SplitHostPort(w.udp)
	if err != nil {
		t.Fatal(err)
	}
	laptop, node := w.login("alice"), w.node("c1")
	_, c, n := join(laptop, node, "c1")
	w.udp = "127.0.0.1:" + port
	u := laptop.bind()
	w.udp = "[::1]:" + port
	v := node.bind()
	u.passes(c, v, n)
	v.passes(n, u, c)
}

// TestRepliesFromTheAddressWrittenTo: a host with several addresses must answer
// from the one that a participant's NAT knows.
func TestRepliesFromTheAddressWrittenTo(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", "[::]:0"} {
		t.Run(listen, func(t *testing.T) {
			w := newWorld(t)
			w.udp = listen
			w.restart()
			_, port, err := net.SplitHostPort(w.udp)
			if err != nil {
				t.Fatal(err)
			}
			laptop, node := w.login("alice"), w.node("c1")
			_, c, n := join(laptop, node, "c1")
			w.udp = "127.0.0.5:" + port // bind connects: it hears no other address
			u := laptop.bind()
			w.udp = "127.0.0.6:" + port
			v := node.bind()
			u.passes(c, v, n)
			v.passes(n, u, c)
			train := bytes.Repeat(message(wire.PacketTransport, 200, c), 120)
			for len(train) > 0 {
				k := min(len(train), 200*40)
				sendConnected(t, u.c, train[:k], 200)
				for range k / 200 {
					if got := v.read(); !bytes.Equal(got, message(wire.PacketTransport, 200, n)) {
						t.Fatalf("got %d bytes", len(got))
					}
				}
				train = train[k:]
			}
		})
	}
}

// sendConnected is sendTrain on a connected socket.
func sendConnected(t testing.TB, c *net.UDPConn, b []byte, seg int) {
	t.Helper()
	var ctl control
	n := ctl.put(0, unix.IPPROTO_UDP, unix.UDP_SEGMENT, binary.NativeEndian.AppendUint16(nil, uint16(seg)))
	if _, _, err := c.WriteMsgUDP(b, ctl.bytes()[:n], nil); err != nil {
		t.Skipf("this kernel sends no trains (UDP_SEGMENT): %v", err)
	}
}
