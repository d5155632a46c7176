package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/netstack"
	"github.com/zt-daemon/zt/relay/wire"
)

// The relay sees another address, challenges it, and packets flow again.
func TestRoam(t *testing.T) {
	r := newFakeRelay(t)
	tr, got := openTransport(t, TransportConfig{})
	s, _ := startSession(t, r, SessionConfig{Transport: tr})
	if _, err := s.RequestEdge(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bound", func() bool { return s.Status().Path.Bound })
	before, _, _ := r.binding()
	exchange(t, r, tr, got, "c1", 0)

	if err := tr.Close(); err != nil { // as a device does when links change
		t.Fatal(err)
	}
	again := make(chan gotPacket, 16)
	read := readTransport(t, tr, again)
	ended := make(chan struct{})
	go func() { read(); close(ended) }()
	defer func() { tr.Close(); <-ended }()
	eventually(t, "another address", func() bool { now, moves, _ := r.binding(); return now != before && moves == 2 })
	eventually(t, "observed", func() bool { now, _, _ := r.binding(); return s.Status().Path.Observed == now })
	exchange(t, r, tr, again, "c1", 0)
	if n := s.Status().Connects; n != 1 {
		t.Errorf("%d connects, want 1: the control connection does not move", n)
	}
}

// Rebind makes no new path of a path that still is one.
func TestRebind(t *testing.T) {
	r := newFakeRelay(t)
	tr, _ := openTransport(t, TransportConfig{})
	s, _ := startSession(t, r, SessionConfig{Transport: tr})
	eventually(t, "bound", func() bool { return s.Status().Path.Bound })
	_, _, before := r.binding()
	s.Rebind()
	eventually(t, "another padded Bind", func() bool { _, moves, padded := r.binding(); return padded > before && moves == 1 })
}

// With flows open, a relay that falls silent is left within seconds.
func TestSilentRelayIsLost(t *testing.T) {
	r := newFakeRelay(t)
	tr, _ := openTransport(t, TransportConfig{})
	s, _ := startSession(t, r, SessionConfig{Transport: tr})
	edge, err := s.RequestEdge(t.Context(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "bound", func() bool { return s.Status().Path.Bound })
	r.setMute(true)
	began := time.Now()
	if err := tr.Send(edge.Peer, [][]byte{packet(64, 1)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "lost", func() bool { return errors.Is(s.Status().Err, errLost) })
	if d := time.Since(began); d < lostBusy || d > lostBusy+3*time.Second {
		t.Errorf("lost after %v, want some 4 s", d)
	}
	r.setMute(false)
	eventually(t, "up again", func() bool { st := s.Status(); return st.Up && st.Path.Bound })
}

// binding is a binder with a clock of the test's and a relay that answers what
// the test lets through.
type binding struct {
	t     *testing.T
	b     *binder
	relay *wire.BindMAC
	now   time.Time
	pings int
	heard time.Time
	busy  bool
	seen  uint64 // the counter of the last Bind that was looked at
}

func newBinding(t *testing.T) *binding {
	tr, err := NewTransport(TransportConfig{})
	if err != nil {
		t.Fatal(err)
	}
	tr.socket.Store(&openSocket{&scriptedSocket{}, make(chan struct{})})
	k := key.NewBind()
	x := &binding{t: t, relay: wire.NewBindMAC(k), now: time.Now(), busy: true}
	x.heard = x.now
	x.b = &binder{
		link: attached(tr), keys: &linkKeys{1, wire.NewBindMAC(k)},
		addrs: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:443"), netip.MustParseAddrPort("[2001:db8::1]:443")},
		busy:  func() bool { return x.busy }, last: func() time.Time { return x.heard }, ping: func() { x.pings++ },
	}
	x.b.pinged, x.b.stepped = x.now, x.now
	x.b.restart(x.now)
	return x
}

// step lets the clock reach the next thing that is due, at most d from now, and
// says whether a Bind was sent and how large. It ends with the relay's loss.
func (x *binding) step(d time.Duration) (sent int, err error) {
	next, err := x.b.step(x.now)
	if err != nil {
		return 0, err
	}
	if x.b.counter != x.seen {
		x.seen = x.b.counter
		sent = len(x.b.buf)
	}
	x.now = x.now.Add(min(next, d))
	return sent, nil
}

// bound answers the latest Bind.
func (x *binding) bound(observed string) {
	x.b.reply(bindReply{keys: x.b.keys, typ: wire.BindBound, counter: x.b.counter, observed: netip.MustParseAddrPort(observed), at: x.now})
}

func TestBindTimes(t *testing.T) {
	x := newBinding(t)
	x.busy = false
	start := x.now
	var times []time.Duration
	for range 200 {
		at := x.now
		sent, err := x.step(time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if sent != 0 {
			if sent != wire.BindPaddedSize {
				t.Errorf("Bind of %d bytes on an unproved path", sent)
			}
			times = append(times, at.Sub(start).Round(time.Millisecond))
		}
		x.heard = x.now // control lives
	}
	want := []time.Duration{0, 250e6, 500e6, 750e6, 1000e6, 2000e6, 3000e6, 4000e6, 5000e6, 6000e6, 7000e6, 8000e6, 9000e6, 10000e6, 11000e6, 21000e6, 31000e6}
	if got := fmt.Sprint(times[:len(want)]); got != fmt.Sprint(want) {
		t.Errorf("Binds at %v, want %v", got, want)
	}
	if x.b.status().Bound {
		t.Error("bound without an answer")
	}

	x.bound("198.51.100.1:1000")
	if !x.b.status().Bound {
		t.Fatal("not bound after Bound")
	}
	if sent, _ := x.step(time.Millisecond); sent != wire.BindWideSize {
		t.Errorf("Bind of %d bytes on a path that takes full packets, want %d", sent, wire.BindWideSize)
	}
	x.bound("198.51.100.1:1000")
	at := x.now
	for {
		sent, err := x.step(time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if sent != 0 {
			if sent != wire.BindSize {
				t.Errorf("keepalive of %d bytes, want %d", sent, wire.BindSize)
			}
			break
		}
		x.heard = x.now
	}
	if d := x.now.Sub(at); d < bindKeepalive-time.Second || d > bindKeepalive+bindSlow {
		t.Errorf("keepalive after %v, want %v", d, bindKeepalive)
	}
}

// A Bound says nothing of what was sent after its Bind: if that is all that is
// heard, the relay is asked again.
func TestBoundAnswersWhatWasBefore(t *testing.T) {
	for name, c := range map[string]struct {
		sent   time.Duration // before the Bind; negative: after
		silent bool
	}{"before": {time.Millisecond, false}, "after": {-time.Millisecond, true}} {
		t.Run(name, func(t *testing.T) {
			x := newBinding(t)
			x.now = x.now.Add(time.Second)
			if sent, err := x.step(time.Millisecond); err != nil || sent == 0 {
				t.Fatalf("a Bind of %d bytes, %v", sent, err)
			}
			at := x.b.lastSent().Add(-c.sent)
			x.b.link.unanswered.Store(int64(at.Sub(x.b.link.t.start)))
			x.bound("198.51.100.1:1000")
			if silent := !x.b.link.silence().IsZero(); silent != c.silent {
				t.Errorf("a packet is unanswered: %v, want %v", silent, c.silent)
			}
		})
	}
}

// A relay with two addresses is tried at the second when the first is silent.
func TestBindTriesOtherAddress(t *testing.T) {
	x := newBinding(t)
	tried := map[netip.AddrPort]int{}
	for range 40 {
		if sent, err := x.step(time.Hour); err != nil {
			t.Fatal(err)
		} else if sent != 0 {
			tried[x.b.status().Relay]++
		}
		x.heard = x.now
	}
	if len(tried) != 2 {
		t.Errorf("tried %v, want both", tried)
	}
}

// Only answers to our latest Binds, newer than what was answered, count.
func TestBindReplies(t *testing.T) {
	x := newBinding(t)
	x.step(time.Millisecond)
	x.b.reply(bindReply{keys: x.b.keys, typ: wire.BindBound, counter: 2, observed: netip.MustParseAddrPort("198.51.100.9:9"), at: x.now})
	x.b.reply(bindReply{keys: x.b.keys, typ: wire.BindBound, counter: 0, observed: netip.MustParseAddrPort("198.51.100.9:9"), at: x.now})
	if st := x.b.status(); st.Bound || st.Observed.IsValid() {
		t.Errorf("a Bound to nothing counted: %+v", st)
	}
	x.bound("198.51.100.1:1")
	old := x.b.counter
	x.step(time.Millisecond) // whether the largest packets pass
	x.b.due = x.now
	x.step(time.Millisecond)
	x.b.reply(bindReply{keys: x.b.keys, typ: wire.BindBound, counter: old, observed: netip.MustParseAddrPort("198.51.100.9:9"), at: x.now})
	if st := x.b.status(); st.Observed.String() != "198.51.100.1:1" {
		t.Errorf("a replayed Bound moved the observed address to %v", st.Observed)
	}
	// Observed elsewhere in answer to a small Bind: full packets are to be proved again.
	x.bound("198.51.100.2:2")
	if sent, _ := x.step(time.Millisecond); sent != wire.BindPaddedSize {
		t.Errorf("Bind of %d bytes after a move, want %d", sent, wire.BindPaddedSize)
	}
}

// Whether the largest packets pass is asked on each new path, and again with every
// keepalive while flows are open.
func TestBindWide(t *testing.T) {
	const here, there = "198.51.100.1:1", "198.51.100.2:2"
	mtu := func(x *binding, want int) {
		t.Helper()
		if got := x.b.link.t.MTU(); got != want || x.b.status().Wide != (want == netstack.MaxMTU) {
			t.Errorf("overlay MTU %d, wide %v; want %d", got, x.b.status().Wide, want)
		}
	}
	sizes := func(x *binding, answer int, most time.Duration) (sent []int) {
		t.Helper()
		for end := x.now.Add(most); x.now.Before(end); {
			size, err := x.step(end.Sub(x.now))
			if err != nil {
				t.Fatal(err)
			}
			if size > 0 {
				sent = append(sent, size)
			}
			if size > 0 && size <= answer {
				x.bound(here)
			}
			x.heard = x.now
		}
		return sent
	}
	const small, full, wide = wire.BindSize, wire.BindPaddedSize, wire.BindWideSize
	for _, row := range []struct {
		name   string
		answer int // the largest Bind that passes
		busy   bool
		want   []int
		mtu    int
	}{
		{"passes, idle", wide, false, []int{full, wide, small, small}, netstack.MaxMTU},
		{"passes, busy", wide, true, []int{full, wide, wide, wide}, netstack.MaxMTU},
		{"does not pass", full, true, []int{full, wide, small, wide, small, wide, small, small, small}, netstack.DefaultMTU},
	} {
		x := newBinding(t)
		x.busy = row.busy
		if got := sizes(x, row.answer, 50*time.Second); !slices.Equal(got, row.want) {
			t.Errorf("%s: Binds of %v bytes, want %v", row.name, got, row.want)
		}
		mtu(x, row.mtu)
	}

	x := newBinding(t)
	sizes(x, wide, time.Second)
	if got, want := sizes(x, full, 25*time.Second), []int{wide, small, wide, small, wide, small, wide, small}; !slices.Equal(got, want) {
		t.Errorf("on a path that shrank: Binds of %v bytes, want %v", got, want)
	}
	mtu(x, netstack.DefaultMTU)
	x.b.restart(x.now)
	sizes(x, wide, 5*time.Second)
	mtu(x, netstack.MaxMTU)
	x.busy = false
	sizes(x, 0, bindKeepalive)
	x.bound(there) // in answer to a small one
	mtu(x, netstack.DefaultMTU)
}

// A device may send as much as the path of every relay takes that it may use.
func TestTransportMTU(t *testing.T) {
	tr, err := NewTransport(TransportConfig{})
	if err != nil {
		t.Fatal(err)
	}
	changes := 0
	tr.WatchMTU(func() { changes++ })
	a, b := attached(tr), attached(tr)
	for i, row := range []struct {
		change func()
		want   int
	}{
		{func() { a.setBound(true) }, netstack.DefaultMTU},
		{func() { a.setWide(true) }, netstack.MaxMTU},
		{func() { b.setBound(true) }, netstack.DefaultMTU},
		{func() { b.setWide(true) }, netstack.MaxMTU},
		{func() { a.setBound(false) }, netstack.MaxMTU},
		{func() { b.setBound(false) }, netstack.MaxMTU}, // nothing passes, nothing is learnt
		{func() { a.setWide(false); a.setBound(true) }, netstack.DefaultMTU},
	} {
		row.change()
		if got := tr.MTU(); got != row.want {
			t.Errorf("step %d: %d, want %d", i, got, row.want)
		}
	}
	if changes != 4 {
		t.Errorf("told of %d changes, want 4", changes)
	}
}

func TestLost(t *testing.T) {
	for _, row := range []struct {
		name    string
		busy    bool
		control bool // answers pings
		min     time.Duration
		max     time.Duration // 0: never lost
	}{
		{"busy", true, false, lostBusy, lostBusy + 2*time.Second},
		{"idle", false, false, lostIdle, lostIdle + bindKeepalive},
		{"busy, control answers", true, true, 0, 0},
		{"idle, control answers", false, true, 0, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			x := newBinding(t)
			x.busy = row.busy
			x.step(time.Millisecond)
			x.bound("198.51.100.1:1")
			start := x.now
			x.b.link.unanswered.Store(max(1, int64(x.now.Sub(x.b.link.t.start)))) // a packet was sent
			var err error
			for x.now.Sub(start) < 2*time.Minute && err == nil {
				pings := x.pings
				if _, err = x.step(time.Hour); row.control && x.pings > pings {
					x.heard = x.now
				}
			}
			d := x.now.Sub(start)
			switch {
			case row.max == 0 && err != nil:
				t.Errorf("lost after %v: %v", d, err)
			case row.max != 0 && (!errors.Is(err, errLost) || d < row.min || d > row.max):
				t.Errorf("%v after %v, want lost after %v to %v", err, d, row.min, row.max)
			}
			if x.b.status().Bound && row.max == 0 {
				t.Error("still bound though no Bind was answered")
			}
		})
	}
}

func TestResolveUDP(t *testing.T) {
	if _, err := net.DefaultResolver.LookupNetIP(t.Context(), "ip", "localhost"); err != nil {
		t.Skipf("cannot resolve localhost: %v", err)
	}
	got, err := resolveUDP(t.Context(), "127.0.0.1:443")
	if err != nil || len(got) != 1 || got[0] != netip.MustParseAddrPort("127.0.0.1:443") {
		t.Errorf("got %v, %v", got, err)
	}
	got, err = resolveUDP(t.Context(), "localhost:5", netip.MustParseAddr("127.0.0.1"))
	if err != nil || got[0].Addr() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("got %v, %v: want what is preferred first", got, err)
	}
	for _, bad := range []string{"", "host", "127.0.0.1:0", "127.0.0.1:x", "0.0.0.0:443", "[ff02::1]:443", "[fe80::1%lo]:443"} {
		if got, err := resolveUDP(t.Context(), bad); err == nil {
			t.Errorf("%q gave %v", bad, got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := resolveUDP(ctx, "relay.invalid:443"); err == nil {
		t.Error("resolved after the context ended")
	}
}
