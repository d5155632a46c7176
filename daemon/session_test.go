package daemon

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

func TestSessionUp(t *testing.T) {
	r := newFakeRelay(t)
	tr, _ := openTransport(t, TransportConfig{Metrics: prometheus.NewRegistry()})
	ups := make(chan Admitted, 1)
	static := key.NewWireGuard()
	s, done := startSession(t, r, SessionConfig{
		Transport: tr, Static: static,
		Handler: Handler{Up: func(_ context.Context, a Admitted) { ups <- a }},
	})
	rs := r.next()
	if rs.peer != static.Public() {
		t.Errorf("relay saw the key %v, want %v", rs.peer, static.Public())
	}
	if g := expect[*wire.Grant](t, rs); g.Kind != wire.GrantPerson || string(g.Body) != "grant" {
		t.Errorf("got grant %+v", g)
	}
	if a := receive(t, ups, "Up"); time.Until(a.Expires) < 50*time.Minute {
		t.Errorf("lease expires %v, want in an hour", a.Expires)
	}
	eventually(t, "bound", func() bool { return s.Status().Path.Bound })
	st := s.Status()
	if st.Path.Observed.Port() != tr.Status().Local.Port() || st.Path.Relay != r.udpAddr() {
		t.Errorf("path %+v, want our port %d and the relay's address %v", st.Path, tr.Status().Local.Port(), r.udpAddr())
	}
	if !st.Up || st.Path.RTT <= 0 || st.Connects != 1 || st.Err != nil {
		t.Errorf("status %+v", st)
	}
	if _, _, padded := r.binding(); padded == 0 {
		t.Error("no Bind of full size proved the path")
	}
	head, records, err := s.Documents(t.Context())
	if err != nil || string(head) != "head" || len(records) != 2 || string(records[1]) != "two" {
		t.Errorf("documents: %q, %q, %v", head, records, err)
	}
	if _, err := s.SendStatement(t.Context(), []byte("newer")); err != nil {
		t.Error(err)
	}
	if m := expect[*wire.Statement](t, rs); string(m.Body) != "newer" {
		t.Errorf("relay got the statement %q", m.Body)
	}
	rs.send(&wire.Ping{})
	expect[*wire.Pong](t, rs)
	select {
	case err := <-done:
		t.Errorf("Run returned %v", err)
	default:
	}
}

func TestSessionRefused(t *testing.T) {
	r := newFakeRelay(t)
	r.answer = func(s *fakeSession, number uint32, m wire.Message) []wire.Message {
		if g, ok := m.(*wire.Grant); ok && string(g.Body) == "old" {
			return []wire.Message{&wire.Refused{Re: number, Reason: "expired", Detail: "12 h\x1b[2J ago"}}
		}
		return defaultAnswer(s, number, m)
	}
	tr, _ := openTransport(t, TransportConfig{})
	grant := make(chan string, 2)
	proof := func(ctx context.Context) (wire.GrantKind, []byte, error) {
		return wire.GrantPerson, []byte(<-grant), nil
	}

	t.Run("Run returns it", func(t *testing.T) {
		grant <- "old"
		_, done := startSession(t, r, SessionConfig{Transport: tr, Proof: proof, RefusedRetry: -1})
		err := receive(t, done, "end of Run")
		refused, ok := errors.AsType[*RefusedError](err)
		if !ok || refused.Reason != "expired" || refused.Class() != auth.ClassLogin || !strings.Contains(refused.Hint(), "login") {
			t.Errorf("got %v (%#v)", err, err)
		}
		if strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("the relay's text is not escaped: %q", err)
		}
	})
	t.Run("Retry", func(t *testing.T) {
		grant <- "old"
		downs := make(chan error, 4)
		s, _ := startSession(t, r, SessionConfig{Transport: tr, Proof: proof, Handler: Handler{Down: func(err error) { downs <- err }}})
		if err := receive(t, downs, "Down"); !errors.Is(err, &RefusedError{Reason: "expired"}) {
			t.Errorf("Down was told %v", err)
		}
		if _, err := s.RequestEdge(t.Context(), "c1"); !isRefused(err) {
			t.Errorf("RequestEdge while refused: %v", err)
		}
		grant <- "new"
		s.Retry()
		if _, err := s.RequestEdge(t.Context(), "c1"); err != nil {
			t.Errorf("RequestEdge after Retry: %v", err)
		}
	})
}

func TestSessionNoProof(t *testing.T) {
	r := newFakeRelay(t)
	tr, _ := openTransport(t, TransportConfig{})
	none := errors.New("not logged in")
	proofs := make(chan error, 2)
	proofs <- none
	s, _ := startSession(t, r, SessionConfig{Transport: tr, Proof: func(context.Context) (wire.GrantKind, []byte, error) {
		return wire.GrantPerson, nil, <-proofs
	}})
	eventually(t, "down", func() bool { return errors.Is(s.Status().Err, none) })
	if _, err := s.RequestEdge(t.Context(), "c1"); !errors.Is(err, none) {
		t.Errorf("got %v, want %v", err, none)
	}
	proofs <- nil
	s.Retry()
	eventually(t, "up", func() bool { return s.Status().Up })
}

func TestConnectErrors(t *testing.T) {
	r := newFakeRelay(t)
	tr, _ := openTransport(t, TransportConfig{})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	other := r.entry()
	other.Key = key.NewRelay().Public()
	rows := []struct {
		name  string
		relay func() auth.Relay
		id    auth.NetworkID
		check func(error) bool
		text  string
	}{
		{"other relay key", func() auth.Relay { return other }, r.network,
			func(err error) bool { _, ok := errors.AsType[*RelayKeyError](err); return ok }, other.Key.String()},
		{"other network", r.entry, auth.NetworkID{1},
			func(err error) bool { _, ok := errors.AsType[*RelayKeyError](err); return ok }, auth.NetworkID{1}.String()},
		{"no pin", func() auth.Relay { e := r.entry(); e.Pins = nil; return e }, r.network,
			func(err error) bool { _, ok := errors.AsType[*UntrustedError](err); return ok }, "not trusted"},
		{"other pin", func() auth.Relay { e := r.entry(); e.Pins = []string{"AAAA"}; return e }, r.network,
			func(err error) bool { u, ok := errors.AsType[*UntrustedError](err); return ok && u.Pin == r.pin() }, r.pin()},
		{"nobody listens", func() auth.Relay { e := r.entry(); e.URL = "https://" + closed.Addr().String(); return e }, r.network,
			func(err error) bool { return errors.Is(err, ErrUnreachable) }, "unreachable"},
		{"unknown host", func() auth.Relay { e := r.entry(); e.URL = "https://relay.invalid"; return e }, r.network,
			func(err error) bool { return errors.Is(err, ErrUnreachable) }, "relay.invalid"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			downs := make(chan error, 8)
			startSession(t, r, SessionConfig{
				Transport: tr, Relay: row.relay(), Network: row.id,
				Handler: Handler{Down: func(err error) {
					select {
					case downs <- err:
					default:
					}
				}},
			})
			err := receive(t, downs, "Down")
			if !row.check(err) || !strings.Contains(err.Error(), row.text) {
				t.Errorf("got %v (%T), want it to name %q", err, err, row.text)
			}
			if h, ok := err.(interface{ Hint() string }); !ok || h.Hint() == "" {
				t.Errorf("%v has no hint", err)
			}
		})
	}
	t.Run("next relay key", func(t *testing.T) {
		next := other
		next.NextKey = r.key.Public()
		s, _ := startSession(t, r, SessionConfig{Transport: tr, Relay: next})
		eventually(t, "up", func() bool { return s.Status().Up })
	})
}

func TestConnectHTTPStatus(t *testing.T) {
	r := newFakeRelay(t)
	r.status = http.StatusServiceUnavailable
	tr, _ := openTransport(t, TransportConfig{})
	s, _ := startSession(t, r, SessionConfig{Transport: tr})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := s.RequestEdge(ctx, "c1")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "503") {
		t.Errorf("got %v, want an unreachable relay with status 503", err)
	}
}

// A listener that never answers must not hold an attempt for longer than it may take.
func TestConnectHangs(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	checkLeaks(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody reads
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	began := time.Now()
	_, err = FetchHead(t.Context(), "https://"+ln.Addr().String(), auth.NetworkID{1}, HTTPConfig{})
	if !errors.Is(err, ErrUnreachable) || time.Since(began) > attemptTimeout+time.Second {
		t.Errorf("got %v after %v", err, time.Since(began))
	}
}

func TestReconnectKeepsEdges(t *testing.T) {
	r := newFakeRelay(t)
	tr, got := openTransport(t, TransportConfig{})
	opened, refused := make(chan Edge, 8), make(chan *RefusedError, 8)
	s, _ := startSession(t, r, SessionConfig{Transport: tr, Handler: Handler{
		EdgeOpen:    func(_ context.Context, e Edge) { opened <- e },
		EdgeRefused: func(_ context.Context, _ Edge, err *RefusedError) { refused <- err },
	}})
	r.next()
	edge, err := s.RequestEdge(t.Context(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	if edge.Peer != peerOf("c1") || string(edge.Answer) != "answer" || edge.Cluster != "c1" {
		t.Errorf("got %+v", edge)
	}
	eventually(t, "bound", func() bool { return s.Status().Path.Bound })
	exchange(t, r, tr, got, "c1", 0)

	r.drop()
	second := r.next()
	if h := expect[*wire.EdgeHold](t, second); h.Edge != edge.ID || h.Peer != edge.Peer || h.Cluster != "c1" {
		t.Errorf("held %+v, want %+v", h, edge.Edge)
	}
	if e := receive(t, opened, "EdgeOpen"); e != edge.Edge {
		t.Errorf("opened %+v, want %+v", e, edge.Edge)
	}
	eventually(t, "bound", func() bool { return s.Status().Path.Bound })
	exchange(t, r, tr, got, "c1", 1)

	second.send(&wire.EdgePending{Edge: edge.ID})
	eventually(t, "no channel", func() bool { return errors.Is(tr.Send(edge.Peer, [][]byte{packet(64, 1)}), ErrNoPath) })
	if len(s.Edges()) != 1 {
		t.Error("a pending edge was dropped")
	}
	second.send(&wire.EdgeRefused{Edge: edge.ID, Reason: "revoked"})
	if err := receive(t, refused, "EdgeRefused"); err.Class() != auth.ClassDenied {
		t.Errorf("got %v", err)
	}
	if len(s.Edges()) != 0 {
		t.Error("a refused edge is still held")
	}
	// A revocation that is the connection's last word still counts.
	edge, err = s.RequestEdge(t.Context(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	second.send(&wire.EdgeRefused{Edge: edge.ID, Reason: "revoked"})
	r.drop()
	receive(t, refused, "EdgeRefused")
}

// exchange sends a packet each way along the edge to a cluster's node.
func exchange(t *testing.T, r *fakeRelay, tr *Transport, got <-chan gotPacket, cluster string, round uint32) {
	t.Helper()
	out := packet(200, 7)
	if err := tr.Send(peerOf(cluster), [][]byte{out}); err != nil {
		t.Fatal(err)
	}
	p := receive(t, r.packets, "packet at the relay")
	if wire.Channel(p.data) != channelOf(cluster, round) || p.data[0] != wire.PacketTransport || !bytes.Equal(p.data[4:], packet(200, 7)[4:]) {
		t.Errorf("relay got %x…, want channel %06x", p.data[:8], channelOf(cluster, round))
	}
	back := packet(300, 9)
	wire.PutChannel(back, channelOf(cluster, round))
	if _, err := r.udp.WriteToUDPAddrPort(back, p.from); err != nil {
		t.Fatal(err)
	}
	if g := receive(t, got, "packet from the relay"); g.from != peerOf(cluster) || !bytes.Equal(g.data, packet(300, 9)) {
		t.Errorf("device got %x… from %v", g.data[:8], g.from)
	}
}

func TestRequestEdgeSurvivesLoss(t *testing.T) {
	r := newFakeRelay(t)
	first := true
	r.answer = func(s *fakeSession, number uint32, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.EdgeRequest); ok && first {
			first = false
			s.ws.CloseNow()
			return nil
		}
		return defaultAnswer(s, number, m)
	}
	tr, _ := openTransport(t, TransportConfig{})
	s, _ := startSession(t, r, SessionConfig{Transport: tr})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := s.RequestEdge(ctx, "c1"); err != nil {
		t.Error(err)
	}
	if n := s.Status().Connects; n != 2 {
		t.Errorf("%d connects, want 2", n)
	}
}

func TestRequestEdgeRefused(t *testing.T) {
	r := newFakeRelay(t)
	r.answer = func(s *fakeSession, number uint32, m wire.Message) []wire.Message {
		if _, ok := m.(*wire.EdgeRequest); ok {
			return []wire.Message{&wire.Refused{Re: number, Reason: "denied_by_policy", Detail: "no rule", Hint: "ask alice"}}
		}
		return defaultAnswer(s, number, m)
	}
	tr, _ := openTransport(t, TransportConfig{})
	s, _ := startSession(t, r, SessionConfig{Transport: tr})
	_, err := s.RequestEdge(t.Context(), "c1")
	refused, ok := errors.AsType[*RefusedError](err)
	if !ok || refused.Class() != auth.ClassDenied || refused.Hint() != "ask alice" {
		t.Errorf("got %v", err)
	}
}

// A request that its caller gave up must not leave an edge, nor end the session.
func TestRequestEdgeGivenUp(t *testing.T) {
	r := newFakeRelay(t)
	asked := make(chan *wire.EdgeReady, 1)
	r.answer = func(s *fakeSession, number uint32, m wire.Message) []wire.Message {
		if m, ok := m.(*wire.EdgeRequest); ok {
			asked <- &wire.EdgeReady{Re: number, Edge: m.Edge, Peer: peerOf("c1"), Channel: 5}
			return nil
		}
		return defaultAnswer(s, number, m)
	}
	tr, _ := openTransport(t, TransportConfig{})
	s, _ := startSession(t, r, SessionConfig{Transport: tr})
	rs := r.next()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.RequestEdge(ctx, "c1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	ready := receive(t, asked, "request")
	rs.send(ready)
	if m := expect[*wire.EdgeClose](t, rs); m.Edge != ready.Edge {
		t.Errorf("closed %v, want %v", m.Edge, ready.Edge)
	}
	if len(s.Edges()) != 0 || s.Status().Connects != 1 || !s.Status().Up {
		t.Errorf("status %+v", s.Status())
	}
}

func TestNodeOffers(t *testing.T) {
	r := newFakeRelay(t)
	tr, got := openTransport(t, TransportConfig{})
	offers, opened := make(chan EdgeOffer, 4), make(chan Edge, 4)
	statements, closed := make(chan []byte, 4), make(chan string, 4)
	s, _ := startSession(t, r, SessionConfig{Transport: tr, Cluster: "c1", Handler: Handler{
		EdgeOffer:     func(_ context.Context, o EdgeOffer) { offers <- o },
		EdgeOpen:      func(_ context.Context, e Edge) { opened <- e },
		EdgeClosed:    func(_ context.Context, _ Edge, reason string) { closed <- reason },
		PeerStatement: func(_ context.Context, _ key.WireGuardPublic, b []byte) { statements <- b },
	}})
	rs := r.next()
	expect[*wire.Grant](t, rs)
	laptop := peerOf("laptop")
	id := wire.EdgeID{1}
	rs.send(&wire.EdgeOffer{Edge: id, Grant: []byte("grant of alice")})
	o := receive(t, offers, "offer")
	if o.ID != id || string(o.Grant) != "grant of alice" {
		t.Errorf("got %+v", o)
	}
	if err := s.AnswerOffer(t.Context(), o, laptop, []byte("yes")); err != nil {
		t.Fatal(err)
	}
	if m := expect[*wire.EdgeAnswer](t, rs); m.Re != o.number || m.Edge != id || string(m.Answer) != "yes" {
		t.Errorf("got %+v", m)
	}
	// A relay cannot open an edge for another key than the one that was judged,
	// nor one that was not judged.
	rs.send(&wire.EdgeOpen{Edge: id, Peer: peerOf("mallory"), Channel: 3})
	expect[*wire.EdgeClose](t, rs)
	rs.send(&wire.EdgeOpen{Edge: wire.EdgeID{2}, Peer: laptop, Channel: 4})
	expect[*wire.EdgeClose](t, rs)
	rs.send(&wire.EdgeOpen{Edge: id, Peer: laptop, Channel: channelOf("laptop", 0)})
	if e := receive(t, opened, "EdgeOpen"); e != (Edge{id, "c1", laptop}) {
		t.Errorf("opened %+v", e)
	}
	eventually(t, "bound", func() bool { return s.Status().Path.Bound })
	exchange(t, r, tr, got, "laptop", 0)

	rs.send(&wire.PeerStatement{Peer: laptop, Body: []byte("newer")})
	if b := receive(t, statements, "PeerStatement"); string(b) != "newer" {
		t.Errorf("got %q", b)
	}
	rs.send(&wire.EdgeClosed{Edge: id, Reason: "idle"})
	if reason := receive(t, closed, "EdgeClosed"); reason != "idle" || len(s.Edges()) != 0 {
		t.Errorf("reason %q, edges %v", reason, s.Edges())
	}

	rs.send(&wire.EdgeOffer{Edge: wire.EdgeID{3}})
	if err := s.RefuseOffer(t.Context(), receive(t, offers, "offer"), "denied_by_policy", "no rule", ""); err != nil {
		t.Error(err)
	}
	if m := expect[*wire.Refused](t, rs); m.Reason != "denied_by_policy" {
		t.Errorf("got %+v", m)
	}
}

func TestCloseEdge(t *testing.T) {
	r := newFakeRelay(t)
	tr, _ := openTransport(t, TransportConfig{})
	s, _ := startSession(t, r, SessionConfig{Transport: tr})
	rs := r.next()
	edge, err := s.RequestEdge(t.Context(), "c1")
	if err != nil {
		t.Fatal(err)
	}
	s.CloseEdge(t.Context(), edge.ID, wire.ReasonIdle)
	s.CloseEdge(t.Context(), edge.ID, wire.ReasonIdle)
	if m := expect[*wire.EdgeClose](t, rs); m.Edge != edge.ID || m.Reason != wire.ReasonIdle {
		t.Errorf("got %+v", m)
	}
	if err := tr.Send(edge.Peer, [][]byte{packet(64, 1)}); !errors.Is(err, ErrNoPath) {
		t.Errorf("send after close: %v", err)
	}
}

func TestReconnect(t *testing.T) {
	r := newFakeRelay(t)
	tr, _ := openTransport(t, TransportConfig{})
	s, _ := startSession(t, r, SessionConfig{Transport: tr, Busy: func() bool { return false }})
	expect[*wire.Grant](t, r.next())
	eventually(t, "up", func() bool { return s.Status().Up })
	s.Reconnect()
	expect[*wire.Grant](t, r.next())
	eventually(t, "up again", func() bool { return s.Status().Up && s.Status().Connects == 2 })
}

// What a relay may not say ends the connection, and the next one begins anew.
func TestRelayOutOfTurn(t *testing.T) {
	r := newFakeRelay(t)
	tr, _ := openTransport(t, TransportConfig{})
	s, _ := startSession(t, r, SessionConfig{Transport: tr})
	expect[*wire.Grant](t, r.next())
	eventually(t, "up", func() bool { return s.Status().Up })
	r.mu.Lock()
	rs := r.current
	r.mu.Unlock()
	rs.send(&wire.Claim{Code: "x"})
	expect[*wire.Grant](t, r.next())
	eventually(t, "up again", func() bool { return s.Status().Connects == 2 })
}

func TestAdmin(t *testing.T) {
	r := newFakeRelay(t)
	network := key.NewNetwork()
	var proofs []*wire.AdminProof
	r.answer = func(s *fakeSession, number uint32, m wire.Message) []wire.Message {
		if p, ok := m.(*wire.AdminProof); ok {
			if !network.Public().Verify(wire.AdminProofMessage(r.network, s.cipher.HandshakeHash()), p.Signature[:]) {
				return []wire.Message{&wire.Refused{Re: number, Reason: "bad_signature"}}
			}
			proofs = append(proofs, p)
		}
		return defaultAnswer(s, number, m)
	}
	a, err := DialAdmin(t.Context(), r.entry(), r.network, HTTPConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.ProveNetwork(t.Context(), network); err != nil {
		t.Error(err)
	}
	if err := a.ProveSigner(t.Context(), key.NewSigner()); !errors.Is(err, &RefusedError{Reason: "bad_signature"}) {
		t.Errorf("another key's proof: %v", err)
	}
	if err := a.Put(t.Context(), wire.DocumentRecord, []byte("record")); err != nil {
		t.Error(err)
	}
	if err := a.Put(t.Context(), wire.DocumentRecord, make([]byte, wire.MaxDocument+1)); err == nil {
		t.Error("a document that does not fit was sent")
	}
	if head, records, err := a.Documents(t.Context()); err != nil || string(head) != "head" || len(records) != 2 {
		t.Errorf("documents: %q, %q, %v", head, records, err)
	}
	if err := a.Claim(t.Context(), "code", nil); err == nil {
		t.Error("claimed in the session of a network")
	}
	if err := errors.Join(a.Close(), a.Close()); err != nil {
		t.Error(err)
	}
	if err := a.Put(t.Context(), wire.DocumentHead, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("after Close: %v", err)
	}
	if len(proofs) != 1 {
		t.Errorf("%d proofs, want 1", len(proofs))
	}

	r.network = auth.NetworkID{}
	c, err := DialAdmin(t.Context(), r.entry(), auth.NetworkID{}, HTTPConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Claim(t.Context(), "code", []byte("head")); err != nil {
		t.Error(err)
	}
}

func TestFetchHead(t *testing.T) {
	r := newFakeRelay(t)
	k := key.NewNetwork()
	head, err := auth.SignHead(auth.Head{Version: 1, NotAfter: time.Now().Add(time.Hour), Relays: []auth.Relay{r.entry()},
		Issuers: []auth.Issuer{{URL: "https://issuer.example.com", ClientID: "overlay"}}}, k)
	if err != nil {
		t.Fatal(err)
	}
	r.head = head.Raw()
	got, err := FetchHead(t.Context(), r.server.URL+"/", auth.IDOf(k.Public()), HTTPConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Hash() != head.Hash() {
		t.Errorf("got head %s, want %s", got.Hash(), head.Hash())
	}
	if _, err := FetchHead(t.Context(), r.server.URL, auth.NetworkID{1}, HTTPConfig{}); err == nil {
		t.Error("a head of another network was taken")
	} else if wrong, ok := errors.AsType[*WrongNetworkError](err); !ok || wrong.Got != auth.IDOf(k.Public()) {
		t.Errorf("got %v", err)
	}
	// Without an id only the certificate vouches.
	if _, err := FetchHead(t.Context(), r.server.URL, auth.NetworkID{}, HTTPConfig{}); err == nil {
		t.Error("a head was taken from an untrusted relay without a network id")
	} else if _, ok := errors.AsType[*UntrustedError](err); !ok {
		t.Errorf("got %v", err)
	}
	r.head = bytes.Repeat([]byte("x"), maxHead+1)
	if _, err := FetchHead(t.Context(), r.server.URL, auth.IDOf(k.Public()), HTTPConfig{}); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an endless head: %v", err)
	}
	for _, url := range []string{"http://relay.example.com", "relay.example.com", "https://", "https://u@h", "https://h?x"} {
		if _, err := FetchHead(t.Context(), url, auth.NetworkID{1}, HTTPConfig{}); err == nil {
			t.Errorf("URL %q was accepted", url)
		}
	}
}
