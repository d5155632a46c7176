package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/netstack"
	"github.com/zt-daemon/zt/relay/wire"
)

var (
	_ netstack.Transport = (*Transport)(nil)
	_ netstack.Waker     = (*Transport)(nil)
)

// bothSockets runs a test with the platform's socket and with the plain one.
func bothSockets(t *testing.T, test func(t *testing.T, cfg TransportConfig)) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) { test(t, TransportConfig{Plain: plain}) })
	}
}

// relaySocket is where a test plays relay.
func relaySocket(t testing.TB, network string) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	ip := net.IPv4(127, 0, 0, 1)
	if network == "udp6" {
		ip = net.IPv6loopback
	}
	c, err := net.ListenUDP(network, &net.UDPAddr{IP: ip})
	if err != nil {
		if network == "udp6" {
			t.Skipf("no IPv6 here: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// to sends from c to the transport.
func to(t testing.TB, c *net.UDPConn, tr *Transport, b []byte) {
	t.Helper()
	addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), tr.Status().Local.Port())
	if c.LocalAddr().(*net.UDPAddr).IP.To4() == nil {
		addr = netip.AddrPortFrom(netip.IPv6Loopback(), addr.Port())
	}
	if _, err := c.WriteToUDPAddrPort(b, addr); err != nil {
		t.Fatal(err)
	}
}

// withChannel is a packet as a relay sends it.
func withChannel(n int, fill byte, channel uint32) []byte {
	b := packet(n, fill)
	wire.PutChannel(b, channel)
	return b
}

func TestTransportBothFamilies(t *testing.T) {
	for _, network := range []string{"udp4", "udp6"} {
		t.Run(network, func(t *testing.T) {
			bothSockets(t, func(t *testing.T, cfg TransportConfig) {
				checkLeaks(t)
				c, addr := relaySocket(t, network)
				tr, got := openTransport(t, cfg)
				if network == "udp6" && tr.Status().Local.Addr().Is4() {
					t.Skip("this system has no socket of both families")
				}
				l := attached(tr)
				l.remote.Store(&addr)
				peer := peerOf("c1")
				tr.addHop(&hop{l, 0x010203, peer})
				if err := tr.Send(peer, [][]byte{packet(100, 1), packet(80, 2)}); err != nil {
					t.Fatal(err)
				}
				buf := make([]byte, 2048)
				for _, want := range [][]byte{withChannel(100, 1, 0x010203), withChannel(80, 2, 0x010203)} {
					n, err := c.Read(buf)
					if err != nil || !bytes.Equal(buf[:n], want) {
						t.Errorf("got %d bytes, %v, want %x…", n, err, want[:8])
					}
				}
				to(t, c, tr, withChannel(90, 3, 0x010203))
				if g := receive(t, got, "packet"); g.from != peer || !bytes.Equal(g.data, packet(90, 3)) {
					t.Errorf("got %x… from %v", g.data[:8], g.from)
				}
			})
		})
	}
}

// Everything that is not a packet of a session's relay with a channel of that
// session is dropped, and counted by its reason.
func TestTransportDrops(t *testing.T) {
	bothSockets(t, func(t *testing.T, cfg TransportConfig) {
		checkLeaks(t)
		reg := prometheus.NewRegistry()
		cfg.Metrics = reg
		relay, addr := relaySocket(t, "udp4")
		stranger, _ := relaySocket(t, "udp4")
		tr, got := openTransport(t, cfg)
		l := attached(tr)
		l.remote.Store(&addr)
		k := key.NewBind()
		mac := wire.NewBindMAC(k)
		l.keys.Store(&linkKeys{42, mac})
		tr.addHop(&hop{l, 5, peerOf("c1")})

		spoof := wire.NewBindMAC(key.NewBind())
		steps := []struct {
			reason int
			from   *net.UDPConn
			b      []byte
		}{
			{dropSource, stranger, withChannel(64, 1, 5)},
			{dropSource, stranger, mac.AppendBound(nil, 42, 1, addr)},
			{dropChannel, relay, withChannel(64, 1, 6)},
			{dropChannel, relay, withChannel(64, 1, 0)},
			{dropMalformed, relay, []byte{4}},
			{dropMalformed, relay, withChannel(64, 1, 5)[:31]},
			{dropMalformed, relay, append([]byte{1}, make([]byte, 100)...)}, // no initiation has this length
			{dropMalformed, relay, append([]byte{9}, make([]byte, 100)...)},
			{dropMalformed, relay, mac.AppendRequest(nil, 42, 1, wire.BindSize)}, // ours, reflected
			{dropMalformed, relay, withChannel(3000, 1, 5)},                      // longer than the device takes
			{dropBindTag, relay, spoof.AppendBound(nil, 42, 1, addr)},
			{dropBindTag, relay, mac.AppendBound(nil, 43, 1, addr)},
		}
		for i, step := range steps {
			before := tr.Status().Dropped[dropNames[step.reason]]
			to(t, step.from, tr, step.b)
			eventually(t, fmt.Sprintf("step %d counted as %s", i, dropNames[step.reason]), func() bool {
				return tr.Status().Dropped[dropNames[step.reason]] == before+1
			})
		}
		to(t, relay, tr, withChannel(64, 7, 5)) // still works
		if g := receive(t, got, "packet"); !bytes.Equal(g.data, packet(64, 7)) {
			t.Errorf("got %x", g.data)
		}
		select {
		case r := <-l.replies:
			t.Errorf("a forged bind message passed: %+v", r)
		default:
		}
		if err := tr.Send(peerOf("nobody"), [][]byte{packet(64, 1)}); !errors.Is(err, ErrNoPath) {
			t.Errorf("send to a peer without a channel: %v", err)
		}
		want := fmt.Sprintf(`# HELP zt_daemon_dropped_packets_total Packets between this participant and its relays that were dropped, by reason.
# TYPE zt_daemon_dropped_packets_total counter
zt_daemon_dropped_packets_total{reason="bad_bind_tag"} 2
zt_daemon_dropped_packets_total{reason="bind_queue_full"} 0
zt_daemon_dropped_packets_total{reason="malformed"} %d
zt_daemon_dropped_packets_total{reason="no_path"} 1
zt_daemon_dropped_packets_total{reason="send_error"} 0
zt_daemon_dropped_packets_total{reason="unknown_channel"} 2
zt_daemon_dropped_packets_total{reason="unknown_source"} 2
`, 6)
		if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "zt_daemon_dropped_packets_total"); err != nil {
			t.Error(err)
		}
	})
}

// The newest session that works carries a peer; if it fails, the other does.
func TestTransportRoutes(t *testing.T) {
	tr, err := NewTransport(TransportConfig{})
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort("192.0.2.1:443")
	one, two := attached(tr), attached(tr)
	one.remote.Store(&addr)
	two.remote.Store(&addr)
	peer := peerOf("c1")
	a, b := &hop{one, 1, peer}, &hop{two, 2, peer}
	set := func(l *link, up, bound bool) { l.setUp(up); l.setBound(bound) }
	tr.addHop(a)
	if tr.route(peer) != a {
		t.Error("a session that is not bound yet is better than none")
	}
	tr.addHop(b)
	for _, row := range []struct {
		oneUp, oneBound, twoUp, twoBound bool
		want                             *hop
	}{
		{true, true, true, true, b},
		{true, true, true, false, a},
		{true, true, false, true, a},
		{false, false, false, false, b},
		{false, false, true, true, b},
	} {
		set(one, row.oneUp, row.oneBound)
		set(two, row.twoUp, row.twoBound)
		if got := tr.route(peer); got != row.want {
			t.Errorf("%+v: got channel %v", row, got)
		}
	}
	tr.removeHop(b)
	tr.removeHop(b)
	if tr.route(peer) != a {
		t.Error("removing one way removed the other")
	}
	// A number that the relay gives out again means the newer edge only.
	c := &hop{one, 1, peerOf("c2")}
	tr.addHop(c)
	if tr.route(peer) != nil || tr.route(peerOf("c2")) != c || tr.hopOf(one, 1) != c {
		t.Error("a channel that was given out again still leads to its old peer")
	}
	tr.removeHop(a) // long gone: must not take c's channel along
	if tr.hopOf(one, 1) != c {
		t.Error("an old edge's end took a newer edge's channel")
	}
	tr.removeHop(c)
	if tr.route(peerOf("c2")) != nil || tr.hopOf(one, 1) != nil {
		t.Error("something is left")
	}
}

func TestTransportClose(t *testing.T) {
	bothSockets(t, func(t *testing.T, cfg TransportConfig) {
		checkLeaks(t)
		tr, err := NewTransport(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := tr.Close(); err != nil { // before Open, as a device does
			t.Error(err)
		}
		for range 3 {
			done := make(chan struct{})
			read := readTransport(t, tr, nil)
			go func() { read(); close(done) }()
			if err := tr.Close(); err != nil {
				t.Error(err)
			}
			receive(t, done, "end of the receive function")
		}
		if err := tr.Send(peerOf("c1"), [][]byte{packet(64, 1)}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("send after close: %v", err)
		}
	})
}

// hotTransport is a transport with one peer, and the relay's socket.
func hotTransport(t testing.TB, cfg TransportConfig) (tr *Transport, relay *net.UDPConn, peer key.WireGuardPublic) {
	relay, addr := relaySocket(t, "udp4")
	tr, err := NewTransport(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	l := attached(tr)
	l.remote.Store(&addr)
	l.watched.Store(true)
	peer = peerOf("c1")
	tr.addHop(&hop{l, 5, peer})
	return tr, relay, peer
}

func TestTransportAllocates(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool allocate")
	}
	bothSockets(t, func(t *testing.T, cfg TransportConfig) {
		tr, relay, peer := hotTransport(t, cfg)
		receive, err := tr.Open()
		if err != nil {
			t.Fatal(err)
		}
		packets := make([][]byte, 8)
		for i := range packets {
			packets[i] = packet(1312, byte(i))
		}
		if n := testing.AllocsPerRun(200, func() {
			if err := tr.Send(peer, packets); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("Send allocates %v times", n)
		}
		bufs, sizes, from := make([][]byte, 16), make([]int, 16), make([]key.WireGuardPublic, 16)
		for i := range bufs {
			bufs[i] = make([]byte, 2048)
		}
		in := withChannel(1312, 1, 5)
		dst := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), tr.Status().Local.Port())
		if n := testing.AllocsPerRun(200, func() {
			if _, err := relay.WriteToUDPAddrPort(in, dst); err != nil {
				t.Fatal(err)
			}
			if n, err := receive(bufs, sizes, from); err != nil || n != 1 || sizes[0] != 1312 || from[0] != peer {
				t.Fatalf("got %d packets, %v", n, err)
			}
		}); n > 0 {
			t.Errorf("receive allocates %v times", n)
		}
	})
}

// scriptedSocket is a socket that reads what a fuzzer says.
type scriptedSocket struct {
	data    []byte
	segment int
	from    netip.AddrPort
	read1   bool
}

func (s *scriptedSocket) read() (int, error) {
	if s.read1 {
		return 0, net.ErrClosed
	}
	s.read1 = true
	return 1, nil
}
func (s *scriptedSocket) train(int) ([]byte, int, netip.AddrPort) { return s.data, s.segment, s.from }
func (s *scriptedSocket) write([][]byte, netip.AddrPort) error    { return nil }
func (s *scriptedSocket) writeWhole([]byte, netip.AddrPort) error { return nil }
func (s *scriptedSocket) offload() (bool, bool)                   { return false, false }
func (s *scriptedSocket) relearn()                                {}
func (s *scriptedSocket) local() netip.AddrPort                   { return netip.AddrPort{} }
func (s *scriptedSocket) wakeAt(time.Time)                        {}
func (s *scriptedSocket) close() error                            { return nil }

// The attacker sends UDP with any source, the relay's too, but sees neither the
// session's bind key nor, off the path, its number.
func FuzzReceive(f *testing.F) {
	relay := netip.MustParseAddrPort("192.0.2.1:443")
	k := key.NewBind()
	forged := wire.NewBindMAC(key.NewBind())
	f.Add(withChannel(64, 1, 5), 0, true)
	f.Add(withChannel(64, 1, 6), 0, true)
	f.Add(bytes.Repeat(withChannel(96, 1, 5), 3), 96, true)
	f.Add(append(bytes.Repeat(withChannel(96, 1, 5), 3), 4, 0, 0), 96, true)
	f.Add(forged.AppendBound(nil, 42, 1, relay), 0, true)
	f.Add(forged.AppendChallenge(nil, 42, 1, make([]byte, wire.CookieLen)), 0, true)
	f.Add([]byte{}, 0, true)
	f.Add(withChannel(64, 1, 5), -1, false)
	f.Fuzz(func(t *testing.T, data []byte, segment int, fromRelay bool) {
		tr, err := NewTransport(TransportConfig{})
		if err != nil {
			t.Fatal(err)
		}
		l := attached(tr)
		l.remote.Store(&relay)
		l.keys.Store(&linkKeys{42, wire.NewBindMAC(k)})
		peer := peerOf("c1")
		tr.addHop(&hop{l, 5, peer})
		if segment <= 0 {
			segment = len(data)
		}
		from := relay
		if !fromRelay {
			from = netip.MustParseAddrPort("198.51.100.1:443")
		}
		s := &openSocket{&scriptedSocket{data: bytes.Clone(data), segment: segment, from: from}, make(chan struct{})}
		r := receiver{t: tr, socket: s}
		bufs, sizes, peers := make([][]byte, 4), make([]int, 4), make([]key.WireGuardPublic, 4)
		for i := range bufs {
			bufs[i] = make([]byte, 1500)
		}
		rest := data
		for {
			n, err := r.receive(bufs, sizes, peers)
			if err != nil {
				break
			}
			for i := range n {
				b := bufs[i][:sizes[i]]
				if peers[i] != peer || !fromRelay || wire.Channel(b) != 0 || !wire.IsPacket(b) {
					t.Fatalf("delivered %x from %v", b, peers[i])
				}
				// What is delivered was sent, in order, with channel 5.
				wire.PutChannel(b, 5)
				at := bytes.Index(rest, b)
				if at < 0 {
					t.Fatalf("delivered %x, which was not sent", b)
				}
				rest = rest[at+len(b):]
			}
		}
		select {
		case r := <-l.replies:
			t.Fatalf("a forged bind message passed: %+v", r)
		default:
		}
	})
}

func BenchmarkTransportSend(b *testing.B) {
	for _, plain := range []bool{false, true} {
		b.Run(fmt.Sprintf("plain=%v", plain), func(b *testing.B) {
			tr, relay, peer := hotTransport(b, TransportConfig{Plain: plain})
			if _, err := tr.Open(); err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			go func() { // what nobody reads would only be dropped, but sooner
				buf := make([]byte, 64<<10)
				for ctx.Err() == nil {
					if _, err := relay.Read(buf); err != nil {
						return
					}
				}
			}()
			packets := make([][]byte, 49)
			for i := range packets {
				packets[i] = packet(1312, byte(i))
			}
			b.SetBytes(49 * 1312)
			b.ReportAllocs()
			for b.Loop() {
				if err := tr.Send(peer, packets); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)*49/b.Elapsed().Seconds(), "pkts/s")
		})
	}
}

// A receive that waits returns at the time that WakeAt said, and the next one
// waits again.
func TestTransportWakes(t *testing.T) {
	bothSockets(t, func(t *testing.T, cfg TransportConfig) {
		tr, relay, _ := hotTransport(t, cfg)
		receive, err := tr.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		bufs, sizes, from := [][]byte{make([]byte, 2048)}, make([]int, 1), make([]key.WireGuardPublic, 1)
		at := time.Now().Add(20 * time.Millisecond)
		tr.WakeAt(at)
		if n, err := receive(bufs, sizes, from); n != 0 || err != nil || time.Now().Before(at) {
			t.Fatalf("got %d packets, %v, %v early", n, err, time.Until(at))
		}
		tr.WakeAt(time.Time{})
		to(t, relay, tr, withChannel(1312, 1, 5))
		if n, err := receive(bufs, sizes, from); n != 1 || err != nil {
			t.Fatalf("got %d packets, %v", n, err)
		}
	})
}
