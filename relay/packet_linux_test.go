package relay

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
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
	s, err := newSocket(conn, nil)
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
	p := &path{addr: addr, via: s.port}
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
			b.socket.port.segments.Store(split && b.socket.port.segments.Load())
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
	raw, err := newSocket(right, nil) // joins what it receives
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
	if !b.socket.port.segments.Load() {
		t.Skip("this kernel sends no trains (UDP_SEGMENT)")
	}
	err := b.socket.raw.Control(func(fd uintptr) { // no train without checksums: EINVAL
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
			t.Fatal(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	const seg, count = 100, 200
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
	if n := b.tally.dropped[dropSend]; n != 0 || !b.socket.port.segments.Load() {
		t.Errorf("%d drops, trains still sent: %v; want none, true", n, b.socket.port.segments.Load())
	}
	b.socket.conn.Close()
	b.send(train, seg, to)
	b.flush()
	if n := b.tally.dropped[dropSend]; n != count {
		t.Errorf("%d drops on a closed socket, want %d", n, count)
	}
}

// TestTrainsLeaveWhole counts the datagrams of each train that arrives. A train
// of more than some 65,494 bytes would arrive in pieces, split in software, and
// what is queued for one address leaves together as far as it may.
func TestTrainsLeaveWhole(t *testing.T) {
	data := func(n, count int) []byte {
		return bytes.Repeat(message(wire.PacketTransport, n, 0xb), count)
	}
	type piece struct {
		b   []byte
		seg int
	}
	for _, tc := range []struct {
		name string
		sent []piece
		want []int // datagrams of each train
	}{
		{"a full train", []piece{{data(1312, 49), 1312}}, []int{49}},
		{"more bytes than a train has", []piece{{data(1424, 46), 1424}}, []int{45, 1}},
		{"the most that a socket receives", []piece{{data(1040, 63)[:65507], 1040}}, []int{62, 1}},
		{"more datagrams than a train has", []piece{{data(100, 200), 100}}, []int{64, 64, 64, 8}},
		{"singles", []piece{{data(96, 1), 96}, {data(96, 1), 96}, {data(96, 1), 96}}, []int{3}},
		{"trains", []piece{{data(1312, 20), 1312}, {data(1312, 20), 1312}, {data(1312, 20), 1312}}, []int{40, 20}},
		{"a short end, and what follows", []piece{{data(1312, 4), 1312}, {data(1312, 1)[:500], 1312}, {data(1312, 4), 1312}}, []int{5, 4}},
		{"a larger one", []piece{{data(96, 2), 96}, {data(1312, 1), 1312}}, []int{2, 1}},
		{"one that ended", []piece{{data(1312, 3)[:3000], 1312}, {data(1312, 2), 1312}}, []int{3, 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, f, _, right := relayed(t)
			if !b.socket.port.segments.Load() {
				t.Skip("this kernel sends no trains (UDP_SEGMENT)")
			}
			in, err := newSocket(right, nil) // joins what it receives
			if err != nil {
				t.Fatal(err)
			}
			r := newBatch(in)
			var all []byte
			to := f.byAddr.get(local(right)).path.Load()
			for _, p := range tc.sent {
				all = append(all, p.b...)
				b.send(p.b, p.seg, to)
			}
			b.flush()
			var got []byte
			var counts []int
			right.SetReadDeadline(time.Now().Add(5 * time.Second))
			for len(got) < len(all) {
				for i := range r.in {
					r.in[i].Namelen = uint32(len(r.from[i].name.b))
					r.in[i].SetControllen(len(r.inCtl[i].bytes()))
				}
				if err := in.raw.Read(r.readFunc); err != nil || r.errno != 0 {
					t.Fatalf("%d of %d bytes arrived: %v, %v", len(got), len(all), err, r.errno)
				}
				for i := range r.n {
					size := int(r.in[i].n)
					seg, _ := r.inCtl[i].read(int(r.in[i].Controllen), &r.from[i].name)
					if seg == 0 {
						seg = size
					}
					counts = append(counts, (size+seg-1)/seg)
					got = append(got, r.slabs[i][:size]...)
				}
			}
			if !bytes.Equal(got, all) {
				t.Errorf("%d bytes arrived, not those %d that were sent", len(got), len(all))
			}
			if !slices.Equal(counts, tc.want) {
				t.Errorf("trains of %d datagrams, want %d", counts, tc.want)
			}
		})
	}
}

// TestOverflowIsCounted: what the kernel has no room for is dropped by nobody we
// see; it tells with the next datagram.
func TestOverflowIsCounted(t *testing.T) {
	b, f, left, right := relayed(t)
	const size = 1312
	m := message(wire.PacketTransport, size, 0xa)
	b.socket.conn.SetReadBuffer(1)
	right.SetReadBuffer(socketBuffer)
	var total tally
	f.counter = func(c *tally) {
		total.packets += c.packets
		total.dropped[dropOverflow] += c.dropped[dropOverflow]
	}
	const count = 20
	for range count {
		if _, err := left.WriteToUDPAddrPort(m, local(b.socket.conn)); err != nil {
			t.Fatal(err)
		}
	}
	for total.packets+total.dropped[dropOverflow] < count {
		if err := b.step(f); err != nil {
			t.Fatal(err)
		}
		if total.packets < count { // the one that tells of those before it
			left.WriteToUDPAddrPort(m, local(b.socket.conn))
		}
	}
	if total.dropped[dropOverflow] == 0 || total.packets == 0 {
		t.Errorf("%d forwarded, %d dropped; want some of each", total.packets, total.dropped[dropOverflow])
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
