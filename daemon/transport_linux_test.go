package daemon

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/zt-daemon/zt/auth/key"

	"golang.org/x/sys/unix"
)

func TestTrainLength(t *testing.T) {
	sizes := func(n ...int) [][]byte {
		p := make([][]byte, len(n))
		for i := range p {
			p[i] = make([]byte, n[i])
		}
		return p
	}
	many := func(n, size int) []int {
		s := make([]int, n)
		for i := range s {
			s[i] = size
		}
		return s
	}
	for _, row := range []struct {
		name string
		in   []int
		want int
	}{
		{"one", []int{100}, 1},
		{"equal", []int{100, 100, 100}, 3},
		{"shorter last", []int{100, 100, 40}, 3},
		{"nothing after the shorter", []int{100, 40, 40}, 2},
		{"longer begins anew", []int{40, 100}, 1},
		{"segments", many(100, 96), maxSegments},
		{"overlay MTU 1280", many(64, 1312), 49},
		{"bytes", many(64, 1452), 44},
	} {
		if got := trainLength(sizes(row.in...)); got != row.want {
			t.Errorf("%s: got %d, want %d", row.name, got, row.want)
		}
		total := 0
		for _, n := range row.in[:row.want] {
			total += n
		}
		if total > maxTrain {
			t.Errorf("%s: %d bytes, at most %d are fast", row.name, total, maxTrain)
		}
	}
}

// Trains must stay whole from one transport to another: that is most of the
// speed. The receiving end sees how the kernel delivered them.
func TestTrainsStayWhole(t *testing.T) {
	checkLeaks(t)
	raw, err := listenUDP(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.close()
	relay := raw.(*offloadSocket)
	tr, peer := trainTransport(t, relay.local())
	if _, err := tr.Open(); err != nil {
		t.Fatal(err)
	}
	if st := tr.Status(); !st.GSO || !st.GRO || !relay.gro {
		t.Skipf("this kernel has no UDP segmentation offload: %+v", st)
	}
	packets := make([][]byte, 128)
	for i := range packets {
		packets[i] = packet(1312, byte(i))
	}
	if err := tr.Send(peer, packets); err != nil {
		t.Fatal(err)
	}
	reads, segments := 0, 0
	for segments < len(packets) {
		n, err := relay.read()
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			b, size, _ := relay.train(i)
			reads++
			if size != 1312 || len(b)%1312 != 0 || len(b) > maxTrain {
				t.Fatalf("train of %d bytes with segments of %d", len(b), size)
			}
			for ; len(b) > 0; b = b[size:] {
				if want := withChannel(1312, byte(segments), 5); !bytes.Equal(b[:size], want) {
					t.Fatalf("packet %d is %x…, want %x…", segments, b[:8], want[:8])
				}
				segments++
			}
		}
	}
	if reads > 3 {
		t.Errorf("%d packets came in %d trains, want 3", segments, reads)
	}

	// And back: the transport cuts what the kernel joined.
	back := make([][]byte, 49)
	for i := range back {
		back[i] = withChannel(1312, byte(i), 5)
	}
	dst := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), tr.Status().Local.Port())
	if err := relay.write(back, dst); err != nil {
		t.Fatal(err)
	}
	r := receiver{t: tr, socket: tr.socket.Load()}
	bufs, sizes, from := make([][]byte, 30), make([]int, 30), make([]key.WireGuardPublic, 30)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	got := 0
	for _, want := range []int{30, 19} { // the cursor resumes within a train
		n, err := r.receive(bufs, sizes, from)
		if err != nil || n != want {
			t.Fatalf("got %d packets, %v, want %d", n, err, want)
		}
		for i := range n {
			if !bytes.Equal(bufs[i][:sizes[i]], packet(1312, byte(got))) || from[i] != peer {
				t.Fatalf("packet %d is wrong", got)
			}
			got++
		}
	}
}

// Where a path refuses trains, the same packets go one by one.
func TestFallbackWithoutSegmentation(t *testing.T) {
	checkLeaks(t)
	c, addr := relaySocket(t, "udp4")
	tr, peer := trainTransport(t, addr)
	if _, err := tr.Open(); err != nil {
		t.Fatal(err)
	}
	s := tr.socket.Load().socket.(*offloadSocket)
	if !s.canGSO {
		t.Skip("this kernel has no UDP segmentation offload")
	}
	// A segment larger than the loopback's MTU allows cannot be cut: EINVAL, as
	// on a link whose MTU is too small. The kernel fragments single packets.
	const size = 60000
	if err := s.conn.SetWriteBuffer(4 << 20); err != nil {
		t.Fatal(err)
	}
	packets := [][]byte{packet(size, 1), packet(4000, 2)}
	if err := tr.Send(peer, packets); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	for i, want := range []int{size, 4000} {
		n, err := c.Read(buf)
		if err != nil || n != want || !bytes.Equal(buf[4:n], packets[i][4:]) {
			t.Errorf("packet %d: got %d bytes, %v, want %d", i, n, err, want)
		}
	}
	t.Logf("GSO afterwards: %v", tr.Status().GSO)
	s.gso.Store(false)
	if err := tr.Send(peer, [][]byte{packet(100, 1), packet(100, 2)}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n, err := c.Read(buf); err != nil || n != 100 {
			t.Errorf("got %d bytes, %v", n, err)
		}
	}
	tr.Rebind()
	if !tr.Status().GSO {
		t.Error("trains are not tried again on another path")
	}
}

func trainTransport(t *testing.T, relay netip.AddrPort) (*Transport, key.WireGuardPublic) {
	t.Helper()
	tr, err := NewTransport(TransportConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	l := attached(tr)
	l.remote.Store(&relay)
	peer := peerOf("c1")
	tr.addHop(&hop{l, 5, peer})
	return tr, peer
}

// A packet that must arrive in one piece is sent, on both families, and ordinary
// ones may be cut again afterwards. That a path refuses it is TestBindWide's.
func TestWriteWhole(t *testing.T) {
	checkLeaks(t)
	for _, network := range []string{"udp4", "udp6"} {
		c, addr := relaySocket(t, network)
		s, err := listenUDP(netip.AddrPort{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		const mtu = 65536 // of the loopback
		if err := s.writeWhole(packet(mtu-200, 1), addr); err != nil {
			t.Errorf("%s: %v", network, err)
		}
		if n, err := c.Read(make([]byte, mtu)); n != mtu-200 || err != nil {
			t.Errorf("%s: read %d, %v", network, n, err)
		}
		how := 0
		s.(*offloadSocket).raw.Control(func(fd uintptr) {
			how, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER)
		})
		if how != unix.IP_PMTUDISC_WANT || err != nil {
			t.Errorf("%s: afterwards the socket discovers MTUs by %d, %v", network, how, err)
		}
	}
}
