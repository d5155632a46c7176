package relay

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// sent is a sender that remembers.
type sent struct {
	trains []sentTrain
}

type sentTrain struct {
	b   []byte
	seg int
	to  netip.AddrPort
}

func (s *sent) send(b []byte, seg int, to *path) {
	s.trains = append(s.trains, sentTrain{bytes.Clone(b), seg, to.addr})
}

var (
	addrA = netip.MustParseAddrPort("192.0.2.1:1000")
	addrB = netip.MustParseAddrPort("[2001:db8::2]:2000")
	addrC = netip.MustParseAddrPort("198.51.100.3:3000")
)

// joined is a forwarder with two sessions bound to addrA and addrB. Channel 0xa
// of the first is 0xb of the second.
func joined(t testing.TB) (f *forwarder, a, b *session) {
	t.Helper()
	f = newForwarder(func(*tally) {})
	a, b = testSession(f), testSession(f)
	if !f.move(a, &path{addr: addrA}) || !f.move(b, &path{addr: addrB}) {
		t.Fatal("a live session was not bound")
	}
	var bytes atomic.Uint64
	a.hop(0xa, &hop{to: b, channel: 0xb, bytes: &bytes})
	b.hop(0xb, &hop{to: a, channel: 0xa, bytes: &bytes})
	return f, a, b
}

func testSession(f *forwarder) *session {
	s := newSession(key.NewWireGuard().Public(), nil, netip.AddrPort{}, time.Now())
	f.add(s)
	return s
}

// message is a WireGuard message of n bytes on a channel.
func message(typ byte, n int, channel uint32) []byte {
	b := make([]byte, n)
	b[0] = typ
	wire.PutChannel(b, channel)
	for i := 4; i < n; i++ {
		b[i] = byte(i)
	}
	return b
}

func TestTrain(t *testing.T) {
	data := func(n int, channel uint32) []byte { return message(wire.PacketTransport, n, channel) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, tc := range []struct {
		name string
		b    []byte
		seg  int
		from netip.AddrPort
		want []sentTrain
		drop map[drop]uint64
	}{
		{"one", data(64, 0xa), 64, addrA, []sentTrain{{data(64, 0xb), 64, addrB}}, nil},
		{"the other way", data(64, 0xb), 64, addrB, []sentTrain{{data(64, 0xa), 64, addrA}}, nil},
		{"keepalive", data(32, 0xa), 32, addrA, []sentTrain{{data(32, 0xb), 32, addrB}}, nil},
		{"initiation", message(1, 148, 0xa), 148, addrA, []sentTrain{{message(1, 148, 0xb), 148, addrB}}, nil},
		{"response", message(2, 92, 0xa), 92, addrA, []sentTrain{{message(2, 92, 0xb), 92, addrB}}, nil},
		{"cookie", message(3, 64, 0xa), 64, addrA, []sentTrain{{message(3, 64, 0xb), 64, addrB}}, nil},
		{"train", join(data(100, 0xa), data(100, 0xa), data(40, 0xa)), 100, addrA,
			[]sentTrain{{join(data(100, 0xb), data(100, 0xb), data(40, 0xb)), 100, addrB}}, nil},
		{"train with a stranger inside", join(data(100, 0xa), data(100, 0xf), data(100, 0xa), data(100, 0xa)), 100, addrA,
			[]sentTrain{{data(100, 0xb), 100, addrB}, {join(data(100, 0xb), data(100, 0xb)), 100, addrB}}, map[drop]uint64{dropChannel: 1}},
		{"train that begins with garbage", join(make([]byte, 100), data(100, 0xa)), 100, addrA,
			[]sentTrain{{data(100, 0xb), 100, addrB}}, map[drop]uint64{dropMalformed: 1}},
		{"short end of a train", join(data(100, 0xa), data(100, 0xa)[:31]), 100, addrA,
			[]sentTrain{{data(100, 0xb), 100, addrB}}, map[drop]uint64{dropMalformed: 1}},
		{"unknown source", join(data(100, 0xa), data(100, 0xa)), 100, addrC, nil, map[drop]uint64{dropSource: 2}},
		{"another's channel", data(64, 0xb), 64, addrA, nil, map[drop]uint64{dropChannel: 1}},
		{"no channel", data(64, 0), 64, addrA, nil, map[drop]uint64{dropChannel: 1}},
		{"wrong length of an initiation", message(1, 147, 0xa), 147, addrA, nil, map[drop]uint64{dropMalformed: 1}},
		{"type 5", message(5, 64, 0xa), 64, addrA, nil, map[drop]uint64{dropMalformed: 1}},
		{"empty", nil, 0, addrA, nil, map[drop]uint64{dropMalformed: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, _, _ := joined(t)
			var out sent
			var got tally
			f.train(bytes.Clone(tc.b), tc.seg, &path{addr: tc.from}, 0, &out, &got)
			if len(out.trains) != len(tc.want) {
				t.Fatalf("got %d trains, want %d", len(out.trains), len(tc.want))
			}
			for i, w := range tc.want {
				if g := out.trains[i]; !bytes.Equal(g.b, w.b) || g.seg != w.seg || g.to != w.to {
					t.Errorf("train %d: got %d bytes of %d to %s, want %d of %d to %s\n%x", i, len(g.b), g.seg, g.to, len(w.b), w.seg, w.to, g.b)
				}
			}
			for d := range drops {
				if got.dropped[d] != tc.drop[d] {
					t.Errorf("%s: got %d drops, want %d", dropNames[d], got.dropped[d], tc.drop[d])
				}
			}
		})
	}
}

func TestPeerUnbound(t *testing.T) {
	f, _, b := joined(t)
	f.remove(b)
	var out sent
	var got tally
	f.train(message(wire.PacketTransport, 64, 0xa), 64, &path{addr: addrA}, 0, &out, &got)
	if len(out.trains) != 0 || got.dropped[dropUnbound] != 1 {
		t.Errorf("got %d trains, %d drops of unbound peers; want 0, 1", len(out.trains), got.dropped[dropUnbound])
	}
}

func TestHandshakesAreLimited(t *testing.T) {
	f, _, _ := joined(t)
	var out sent
	var got tally
	for range 80 {
		f.train(message(1, 148, 0xa), 148, &path{addr: addrA}, 0, &out, &got)
	}
	if len(out.trains) != 50 || got.dropped[dropHandshakeRate] != 30 {
		t.Errorf("got %d passed, %d dropped; want 50, 30", len(out.trains), got.dropped[dropHandshakeRate])
	}
	f.train(message(wire.PacketTransport, 64, 0xa), 64, &path{addr: addrA}, 0, &out, &got)
	f.train(message(1, 148, 0xa), 148, &path{addr: addrA}, int64(time.Second), &out, &got)
	if len(out.trains) != 52 {
		t.Errorf("data, or a handshake a second later, was dropped too")
	}
}

func TestBind(t *testing.T) {
	f := newForwarder(func(*tally) {})
	s := testSession(f)
	bind := func(from netip.AddrPort, now time.Duration, b []byte) ([]byte, tally) {
		t.Helper()
		var out sent
		var got tally
		size := len(b)
		f.train(bytes.Clone(b), len(b), &path{addr: from}, int64(now), &out, &got)
		if len(out.trains) == 0 {
			return nil, got
		}
		if len(out.trains) > 1 || len(out.trains[0].b) >= size || out.trains[0].to != from {
			t.Fatalf("%d bytes drew %d replies, the first of %d bytes to %s", size, len(out.trains), len(out.trains[0].b), out.trains[0].to)
		}
		if r := out.trains[0].b; !wire.IsBind(r) || !s.mac.Verify(r) {
			t.Fatalf("a reply is no authentic bind message: %x", r)
		}
		return out.trains[0].b, got
	}
	typ := func(b []byte) wire.BindType {
		if b == nil {
			return 0
		}
		typ, _, _ := wire.BindFields(b)
		return typ
	}

	first := s.mac.AppendRequest(nil, s.id, 7, wire.BindPaddedSize)
	challenge, _ := bind(addrA, 0, first)
	if typ(challenge) != wire.BindChallenge || s.path.Load() != nil {
		t.Fatalf("a new address drew %v, want a challenge and no move", typ(challenge))
	}
	answer := s.mac.AppendAnswer(nil, s.id, 7, wire.BindCookie(challenge))
	if got, tally := bind(addrB, 0, answer); got != nil || tally.dropped[dropBindCookie] != 1 {
		t.Errorf("an answer from another address drew %v", typ(got))
	}
	if f.cookieValid(wire.BindCookie(challenge), s.id, addrA, 7, int64(20*time.Second)) {
		t.Error("a cookie is good for 20 s")
	}
	bound, _ := bind(addrA, 9*time.Second, answer)
	if typ(bound) != wire.BindBound || wire.BindObserved(bound) != addrA || s.path.Load().addr != addrA {
		t.Fatalf("the answer drew %v", typ(bound))
	}
	for name, b := range map[string][]byte{"request": first, "answer": answer} {
		if got, tally := bind(addrA, 10*time.Second, b); got != nil || tally.dropped[dropBindCounter] != 1 {
			t.Errorf("a replayed %s drew %v", name, typ(got))
		}
		if got, _ := bind(addrC, 10*time.Second, b); got != nil {
			t.Errorf("a %s replayed from elsewhere drew %v", name, typ(got))
		}
	}
	keep := s.mac.AppendRequest(nil, s.id, 8, wire.BindSize)
	if got, _ := bind(addrA, 10*time.Second, keep); typ(got) != wire.BindBound {
		t.Errorf("a newer request from the bound address drew %v, want Bound", typ(got))
	}

	forged := wire.NewBindMAC(key.NewBind()).AppendRequest(nil, s.id, 9, wire.BindSize)
	if got, tally := bind(addrA, 10*time.Second, forged); got != nil || tally.dropped[dropBindTag] != 1 {
		t.Errorf("a forged request drew %v", typ(got))
	}
	if got, tally := bind(addrA, 10*time.Second, s.mac.AppendRequest(nil, s.id+1, 9, wire.BindSize)); got != nil || tally.dropped[dropBindSession] != 1 {
		t.Errorf("a request of no session drew %v", typ(got))
	}
	if got, _ := bind(addrA, 10*time.Second, s.mac.AppendChallenge(nil, s.id, 9, make([]byte, wire.CookieLen))); got != nil {
		t.Errorf("a participant's challenge drew %v", typ(got))
	}

	// One session an address: the latest answer wins.
	other := testSession(f)
	f.move(other, &path{addr: addrA})
	if s.path.Load() != nil || f.byAddr.get(addrA) != other {
		t.Error("two sessions share an address")
	}
	f.remove(other)
	if f.byAddr.get(addrA) != nil || f.move(other, &path{addr: addrA}) {
		t.Error("a session that ended is bound")
	}
}

// TestSilence is I4: whatever a stranger sends, UDP answers nothing.
func TestSilence(t *testing.T) {
	f, a, _ := joined(t)
	random := rand.New(rand.NewPCG(1, 2))
	var out sent
	var got tally
	buf := make([]byte, 1501)
	for typ := range 256 {
		for n := range 1501 {
			for i := range buf[:n] {
				buf[i] = byte(random.Uint32())
			}
			if n > 0 {
				buf[0] = byte(typ)
			}
			if n > 20 && n%3 == 0 { // a session's id is no secret
				binary.BigEndian.PutUint64(buf[4:], a.id)
			}
			f.train(buf[:n], n, &path{addr: addrC}, int64(n), &out, &got)
		}
	}
	if len(out.trains) != 0 {
		t.Errorf("a stranger drew %d replies, the first %x", len(out.trains), out.trains[0].b)
	}
	if got.dropped[dropBindTag] == 0 || got.dropped[dropMalformed] == 0 || got.dropped[dropSource] == 0 {
		t.Errorf("the test reached too little: %v", got.dropped)
	}
}

type discard struct{}

func (discard) send([]byte, int, *path) {}

func TestNoAllocations(t *testing.T) {
	f, a, _ := joined(t)
	const seg = 1312
	train := bytes.Repeat(message(wire.PacketTransport, seg, 0xa), 49)
	single := message(wire.PacketTransport, 100, 0xa)
	stranger := message(wire.PacketTransport, 100, 0xa)
	forged := wire.NewBindMAC(key.NewBind()).AppendRequest(nil, a.id, 9, wire.BindSize)
	unknown := wire.NewBindMAC(key.NewBind()).AppendRequest(nil, 1, 9, wire.BindSize)
	fresh := a.mac.AppendRequest(nil, a.id, 9, wire.BindSize)
	from, elsewhere := &path{addr: addrA}, &path{addr: addrC}
	var out discard
	var got tally
	buf := make([]byte, len(train))
	now := int64(0)
	for name, tc := range map[string]struct {
		b    []byte
		seg  int
		from *path
	}{
		"train": {train, seg, from}, "single": {single, len(single), from}, "unknown source": {stranger, len(stranger), elsewhere},
		"forged bind": {forged, len(forged), elsewhere}, "bind of no session": {unknown, len(unknown), elsewhere},
		"challenged bind": {fresh, len(fresh), elsewhere},
	} {
		allocs := testing.AllocsPerRun(200, func() {
			now += int64(time.Second)
			b := buf[:copy(buf, tc.b)]
			f.train(b, tc.seg, tc.from, now, out, &got)
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations, want 0", name, allocs)
		}
	}
	if got.challenged == 0 || got.packets == 0 {
		t.Errorf("nothing was challenged (%d) or forwarded (%d)", got.challenged, got.packets)
	}
}

// FuzzTrain: the attacker is anybody who can send UDP to the relay, and a
// participant with a bound address.
func FuzzTrain(f *testing.F) {
	f.Add(message(wire.PacketTransport, 64, 0xa), 32, true)
	f.Add(message(1, 148, 0xa), 148, true)
	f.Add(bytes.Repeat(message(wire.PacketTransport, 40, 0xa), 3)[:101], 40, true)                             // an odd last segment
	f.Add(append(message(wire.PacketTransport, 40, 0xa), message(wire.PacketTransport, 40, 0xb)...), 40, true) // mixed channels
	f.Add(message(wire.PacketTransport, 40, 0xa), 3, true)                                                     // segments too short for a channel
	f.Add(message(wire.PacketTransport, 40, 0xa), 65535, true)                                                 // a segment larger than all
	f.Add([]byte{wire.PacketTransport, 0, 0}, 3, true)
	f.Add(wire.NewBindMAC(key.NewBind()).AppendRequest(nil, 1, 2, wire.BindSize), 96, false)
	f.Fuzz(func(t *testing.T, b []byte, seg int, bound bool) {
		if len(b) > 65535 || seg < 0 || seg > 65535 {
			return
		}
		fw, _, _ := joined(t)
		from := addrC
		if bound {
			from = addrA
		}
		var out sent
		var got tally
		in := bytes.Clone(b)
		fw.train(b, seg, &path{addr: from}, 0, &out, &got)
		if !bound && len(out.trains) > 0 {
			t.Fatalf("a stranger drew %x", out.trains[0].b)
		}
		total := uint64(0)
		for _, train := range out.trains {
			if train.to != addrB {
				t.Fatalf("a packet went to %s", train.to)
			}
			for off := 0; off < len(train.b); off += train.seg {
				m := train.b[off:min(off+train.seg, len(train.b))]
				total++
				if !wire.IsPacket(m) || wire.Channel(m) != 0xb {
					t.Fatalf("forwarded %x", m)
				}
				wire.PutChannel(m, 0xa)
				if !bytes.Contains(in, m) {
					t.Fatalf("more than the channel was changed: %x", m)
				}
			}
		}
		if total != got.packets {
			t.Fatalf("%d packets were sent, %d counted", total, got.packets)
		}
	})
}

func TestSnapshot(t *testing.T) {
	var s snapshot[netip.AddrPort, int]
	s.hash = shardOfAddr
	want := map[netip.AddrPort]int{}
	random := rand.New(rand.NewPCG(3, 4))
	for i := range 5000 {
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(random.UintN(8))}), uint16(random.UintN(64)))
		if random.UintN(3) == 0 {
			s.remove(a)
			delete(want, a)
		} else {
			s.put(a, i)
			want[a] = i
		}
		if got := s.get(a); got != want[a] {
			t.Fatalf("%s: got %d, want %d", a, got, want[a])
		}
	}
	used := map[uint8]bool{}
	for a := range want {
		used[shardOfAddr(a)] = true
	}
	if len(used) < 64 {
		t.Errorf("%d addresses lie in %d shards only", len(want), len(used))
	}
}

func TestChannelsRest(t *testing.T) {
	var c channels
	now := time.Now()
	seen := map[uint32]bool{}
	for range 1000 {
		n := c.take(now, 0)
		if n == 0 || n > wire.MaxChannel || seen[n] {
			t.Fatalf("channel %d", n)
		}
		seen[n] = true
		c.give(n, now)
	}
	c.take(now.Add(channelRest), 0)
	if len(c.used) != 1 || len(c.resting) != 0 {
		t.Errorf("after %s, %d channels are in use and %d rest; want 1, 0", channelRest, len(c.used), len(c.resting))
	}
}

func TestChannelsShareAByte(t *testing.T) {
	var c channels
	now := time.Now()
	for range 1000 {
		if n := c.take(now, 0x123400); n == 0 || n&0xff != 0 {
			t.Fatalf("channel %#x does not have the low byte of the other side's", n)
		}
	}
}
