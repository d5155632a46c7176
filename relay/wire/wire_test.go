package wire

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/zt-daemon/zt/auth/key"
)

func messages() []Message {
	peer := key.NewWireGuard().Public()
	edge := EdgeID{1, 2, 3}
	return []Message{
		&Welcome{Version: 1, Features: 2, Session: 3, Bind: key.NewBind(), UDP: "relay.example:443", Time: 9},
		&Hello{Version: 1, Features: 1 << 63}, &Grant{Kind: GrantNode, Body: []byte("g")},
		&Admitted{Re: 7, Expires: 8, Addr: [16]byte{0xfd}}, &OK{Re: 1},
		&Refused{Re: 1, Reason: ReasonTooMany, Detail: "d", Hint: "h"}, &Statement{Body: []byte("s")},
		&PeerStatement{Peer: peer, Body: []byte("s")}, &Claim{Code: "c", Head: []byte("h")},
		&AdminProof{Key: [65]byte{4}, Signature: [64]byte{5}}, &PutDocument{Kind: DocumentHead, Raw: []byte("r")},
		&DocumentsRequest{}, &Document{Re: 1, Kind: DocumentRecord, Raw: []byte("r")}, &DocumentsEnd{Re: 1},
		&DocumentsChanged{}, &EdgeRequest{Edge: edge, Cluster: "c1", AccessRequest: []byte("r")},
		&EdgeOffer{Edge: edge, Grant: []byte("g"), AccessRequest: []byte("r")},
		&EdgeAnswer{Re: 1, Edge: edge, Answer: []byte("a")}, &EdgeOpen{Edge: edge, Peer: peer, Channel: 1},
		&EdgeReady{Re: 1, Edge: edge, Peer: peer, Channel: MaxChannel, Answer: []byte("a")},
		&EdgeHold{Edge: edge, Peer: peer, Cluster: "c1"}, &EdgeKept{Edge: edge, Channel: 9}, &EdgePending{Edge: edge},
		&EdgeRefused{Edge: edge, Reason: "revoked", Detail: "d"}, &EdgeClose{Edge: edge, Reason: "idle"},
		&EdgeClosed{Edge: edge, Reason: "idle"}, &Ping{}, &Pong{Re: 3},
		&NodeStatus{Flags: NodeUpstreamUp | 1<<7, Policy: PolicyBroken, Name: "zt-1", Version: "v1.2.3", Why: "line 3"}, &NodesRequest{},
		&ClusterNode{Re: 1, Cluster: "c1", Peer: peer, Since: 2, Seen: 3, Here: 1, Status: NodeStatus{Flags: NodeDraining, Policy: PolicyAbsent, Name: "n"}},
		&EdgeMove{Edge: edge},
	}
}

func TestMessages(t *testing.T) {
	seen := map[Type]bool{}
	for _, m := range messages() {
		seen[m.messageType()] = true
		b := Append(nil, 77, m)
		number, got, err := Parse(append(b, "bytes of a later version"...))
		if err != nil || number != 77 || !reflect.DeepEqual(got, m) {
			t.Errorf("%s: got %d %+v (%v), want %+v", m.messageType(), number, got, err, m)
		}
		for n := range b {
			if _, _, err := Parse(b[:n]); err == nil && n != endOfFirst(m) {
				t.Errorf("%s cut to %d of %d bytes was accepted", m.messageType(), n, len(b))
			}
		}
	}
	for typ := Type(0); typ < 0x100; typ++ {
		if newMessage(typ) != nil && !seen[typ] {
			t.Errorf("%s is not tested", typ)
		}
	}
}

// endOfFirst is where a message ends that a version before its optional field
// sends; 0 if it has none.
func endOfFirst(m Message) int {
	switch m := m.(type) {
	case *EdgeRequest:
		return len(Append(nil, 1, &EdgeRequest{Edge: m.Edge, Cluster: m.Cluster}))
	case *EdgeOffer:
		return len(Append(nil, 1, &EdgeOffer{Edge: m.Edge, Grant: m.Grant}))
	}
	return 0
}

func TestOptionalFields(t *testing.T) {
	id := EdgeID{1, 2, 3}
	before := appendText(append([]byte{0, byte(TypeEdgeRequest), 0, 0, 0, 7}, id[:]...), "c1", maxName)
	if b := Append(nil, 7, &EdgeRequest{Edge: id, Cluster: "c1"}); !bytes.Equal(b, before) {
		t.Errorf("without an access request: got %x, want %x", b, before)
	}
	for name, c := range map[string]struct {
		after []byte
		want  []byte
		ok    bool
	}{
		"left out":             {nil, nil, true},
		"empty":                {[]byte{0, 0}, nil, true},
		"empty, and a later":   {[]byte{0, 0, 9, 9, 9}, nil, true},
		"cut":                  {[]byte{0}, nil, false},
		"shorter than it says": {[]byte{0, 2, 1}, nil, false},
		"the largest":          {appendBytes(nil, bytes.Repeat([]byte{5}, maxAccessRequest)), bytes.Repeat([]byte{5}, maxAccessRequest), true},
		"too large":            {appendBytes(nil, bytes.Repeat([]byte{5}, maxAccessRequest+1)), nil, false},
	} {
		_, m, err := Parse(append(bytes.Clone(before), c.after...))
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		} else if c.ok && !bytes.Equal(m.(*EdgeRequest).AccessRequest, c.want) {
			t.Errorf("%s: got %x", name, m.(*EdgeRequest).AccessRequest)
		}
	}
}

func TestUnknownTypes(t *testing.T) {
	if _, _, err := Parse([]byte{0x80, 0, 0, 0, 0, 1, 9}); err != ErrSkip {
		t.Errorf("type 0x8000: got %v, want ErrSkip", err)
	}
	var unknown *UnknownTypeError
	if _, _, err := Parse([]byte{0x7f, 0xff, 0, 0, 0, 1}); !errors.As(err, &unknown) {
		t.Errorf("type 0x7fff: got %v, want an UnknownTypeError", err)
	}
}

func TestTextIsCutAtACharacter(t *testing.T) {
	in := &Refused{Detail: strings.Repeat("a", maxText-1) + "é"}
	_, m, err := Parse(Append(nil, 1, in))
	if err != nil {
		t.Fatal(err)
	}
	if got := m.(*Refused).Detail; got != strings.Repeat("a", maxText-1) {
		t.Errorf("got %q", got)
	}
	long := appendBytes(appendU32(Append(nil, 1, &OK{})[:0], 0), strings.Repeat("x", 64))
	if _, _, err := Parse(append([]byte{0, byte(TypeRefused), 0, 0, 0, 1}, long...)); err == nil {
		t.Error("a reason of 64 bytes was accepted")
	}
}

// Attacker: anyone who completes a Noise handshake, and a hostile relay.
func FuzzParse(f *testing.F) {
	for _, m := range messages() {
		f.Add(Append(nil, 1, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		number, m, err := Parse(b)
		if err != nil {
			return
		}
		again := Append(nil, number, m)
		if !bytes.HasPrefix(b, again) {
			t.Fatalf("%s: %x appends as %x", m.messageType(), b, again)
		}
	})
}

func TestChannel(t *testing.T) {
	b := []byte{4, 0, 0, 0, 9}
	PutChannel(b, 0xABCDEF)
	if got := Channel(b); got != 0xABCDEF || b[0] != 4 || b[4] != 9 {
		t.Errorf("got channel %x in %x", got, b)
	}
	for _, c := range []struct {
		typ, size int
		want      bool
	}{{1, 148, true}, {1, 147, false}, {2, 92, true}, {2, 93, false}, {3, 64, true}, {3, 32, false}, {4, 32, true}, {4, 31, false}, {4, 1452, true}, {5, 148, false}, {0, 148, false}} {
		b := make([]byte, c.size)
		b[0] = byte(c.typ)
		if got := IsPacket(b); got != c.want {
			t.Errorf("type %d of %d bytes: got %v, want %v", c.typ, c.size, got, c.want)
		}
	}
}

func TestBind(t *testing.T) {
	m, other := NewBindMAC(key.NewBind()), NewBindMAC(key.NewBind())
	cookie := bytes.Repeat([]byte{7}, CookieLen)
	observed := netip.MustParseAddrPort("192.0.2.1:1234")
	cases := map[BindType][]byte{
		BindRequest:   m.AppendRequest(nil, 1, 2, BindSize),
		BindChallenge: m.AppendChallenge(nil, 1, 2, cookie),
		BindAnswer:    m.AppendAnswer(nil, 1, 2, cookie),
		BindBound:     m.AppendBound(nil, 1, 2, observed),
	}
	for typ, b := range cases {
		gotType, session, counter := BindFields(b)
		if !IsBind(b) || gotType != typ || session != 1 || counter != 2 {
			t.Errorf("%#x: IsBind %v, fields %#x %d %d", typ, IsBind(b), gotType, session, counter)
		}
		if !m.Verify(b) || other.Verify(b) {
			t.Errorf("%#x: tag: own key %v, other key %v", typ, m.Verify(b), other.Verify(b))
		}
		for i := range b {
			b[i] ^= 1
			if m.Verify(b) {
				t.Errorf("%#x: byte %d changed, and the tag still holds", typ, i)
			}
			b[i] ^= 1
		}
		if typ == BindChallenge || typ == BindBound {
			if len(b) > BindSize {
				t.Errorf("%#x has %d bytes, more than what draws it", typ, len(b))
			}
		}
	}
	if len(cases[BindRequest]) != 96 || len(m.AppendRequest(nil, 1, 2, BindPaddedSize)) != 1312 {
		t.Error("sizes of Bind")
	}
	if got := BindObserved(cases[BindBound]); got != observed {
		t.Errorf("observed %v, want %v", got, observed)
	}
	if !bytes.Equal(BindCookie(cases[BindChallenge]), cookie) || !bytes.Equal(BindCookie(cases[BindAnswer]), cookie) {
		t.Error("the cookie changed")
	}
	buf := make([]byte, 0, BindPaddedSize)
	b := cases[BindRequest]
	if n := testing.AllocsPerRun(100, func() {
		buf = m.AppendRequest(buf[:0], 1, 2, BindPaddedSize)
		m.Verify(b)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// Attacker: anyone who can send UDP to a relay or a participant.
func FuzzBind(f *testing.F) {
	m := NewBindMAC(key.BindFrom([32]byte{1}))
	f.Add(m.AppendRequest(nil, 1, 2, BindSize))
	f.Add(m.AppendChallenge(nil, 1, 2, make([]byte, CookieLen)))
	f.Add(m.AppendAnswer(nil, 1, 2, make([]byte, CookieLen)))
	f.Add(m.AppendBound(nil, 1, 2, netip.AddrPort{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if !IsBind(b) {
			return
		}
		BindFields(b)
		BindCookie(b)
		if BindType(b[0]) == BindBound {
			BindObserved(b)
		}
		m.Verify(b)
	})
}

func TestNoise(t *testing.T) {
	relay, static := key.NewRelay(), key.NewWireGuard()
	network := [20]byte{1}
	i, first, err := NewInitiator(static, relay.Public(), network)
	if err != nil {
		t.Fatal(err)
	}
	second, peer, rc, err := Respond(relay, network, first)
	if err != nil {
		t.Fatal(err)
	}
	pc, err := i.Finish(second)
	if err != nil {
		t.Fatal(err)
	}
	if peer != static.Public() {
		t.Errorf("relay sees %v, want %v", peer, static.Public())
	}
	if pc.HandshakeHash() != rc.HandshakeHash() {
		t.Error("the handshake hashes differ")
	}
	for range 3 {
		sealed, err := pc.Seal(nil, []byte("up"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := rc.Open(nil, sealed); err != nil || string(got) != "up" {
			t.Errorf("got %q, %v", got, err)
		}
		if _, err := rc.Open(nil, sealed); err == nil {
			t.Error("a replayed message was accepted")
		}
	}
	if _, err := pc.Seal(nil, make([]byte, MaxPlaintext+1)); err == nil {
		t.Error("a message over the limit was sealed")
	}

	if _, _, _, err := Respond(key.NewRelay(), network, first); err != ErrHandshake {
		t.Errorf("another relay key: got %v, want ErrHandshake", err)
	}
	if _, _, _, err := Respond(relay, [20]byte{2}, first); err != ErrHandshake {
		t.Errorf("another network: got %v, want ErrHandshake", err)
	}
	i, _, _ = NewInitiator(static, relay.Public(), network)
	if _, err := i.Finish(second); err != ErrHandshake {
		t.Errorf("a replayed answer: got %v, want ErrHandshake", err)
	}
}

// Attacker: anyone who can reach a relay's TCP port.
func FuzzRespond(f *testing.F) {
	relay, network := key.NewRelay(), [20]byte{1}
	_, first, _ := NewInitiator(key.NewWireGuard(), relay.Public(), network)
	f.Add(first)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, peer, _, err := Respond(relay, network, b); err == nil && peer.IsZero() {
			t.Error("a handshake without a key was accepted")
		}
	})
}
