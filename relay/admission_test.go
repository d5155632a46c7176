package relay

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

func TestClaim(t *testing.T) {
	w := newUnclaimed(t)
	code, k := w.relay.ClaimCode(), w.relay.Key()
	head := w.signHead(1)
	if len(code) != 52 || w.relay.Claimed() {
		t.Fatalf("claim code %q, claimed %v", code, w.relay.Claimed())
	}
	if status, _ := w.get("/v1/head"); status != 404 {
		t.Errorf("GET /v1/head of an unclaimed relay: %d, want 404", status)
	}
	if _, err := w.tryDial(key.NewWireGuard(), w.id, k); err == nil {
		t.Error("a session for a network began on an unclaimed relay")
	}
	elsewhere := w.signHead(1, func(h *auth.Head) {
		h.Relays[0].Key, h.Relays[0].NextKey = key.NewRelay().Public(), key.RelayPublic{}
	})
	forged := bytes.Clone(head.Raw())
	forged[len(forged)-10] ^= 1
	for _, tc := range []struct {
		name, code string
		head       []byte
		reason     string
	}{
		{"another code", newClaimCode(k), head.Raw(), wire.ReasonWrongCode},
		{"no code", "", head.Raw(), wire.ReasonWrongCode},
		{"forged head", code, forged, wire.ReasonBadDocument},
		{"garbage", code, []byte("x"), wire.ReasonBadDocument},
		{"head of other relays", code, elsewhere.Raw(), wire.ReasonBadDocument},
	} {
		a := w.dial(key.NewWireGuard(), auth.NetworkID{}, k)
		a.send(&wire.Claim{Code: tc.code, Head: tc.head})
		a.expectRefused(tc.reason)
		a.ended()
	}
	w.restart() // the code outlives a restart, and is told once only
	if w.relay.ClaimCode() != "" || w.relay.Claimed() || w.relay.Key() != k {
		t.Fatal("after a restart: another key, claimed, or the code again")
	}
	a := w.dial(key.NewWireGuard(), auth.NetworkID{}, k)
	a.send(&wire.Claim{Code: " " + strings.ToLower(code) + "\n", Head: head.Raw()})
	expect[*wire.OK](a)
	for range 2 {
		b := w.dial(key.NewWireGuard(), auth.NetworkID{}, k)
		b.send(&wire.Claim{Code: code, Head: head.Raw()})
		b.expectRefused(wire.ReasonWrongCode)
		b.ended()
		if status, raw := w.get("/v1/head"); status != 200 || !bytes.Equal(raw, head.Raw()) {
			t.Errorf("GET /v1/head: %d, %d bytes; want 200, %d bytes", status, len(raw), len(head.Raw()))
		}
		w.restart()
	}
	if got := w.events(EventRefused, 7); len(got) < 7 {
		t.Errorf("%d refusals in the audit log, want 7", len(got))
	}
}

func TestDocuments(t *testing.T) {
	w := newWorld(t)
	signer := key.NewSigner()
	w.put(wire.DocumentHead, w.signHead(2, func(h *auth.Head) {
		h.Signers = []auth.Signer{{Name: "ops", Key: signer.Public(), NotAfter: time.Now().Add(time.Hour)}}
	}).Raw())
	laptop, node := w.login("alice"), w.node("c1")

	// A signer of the head may bring records.
	a := w.dial(key.NewWireGuard(), w.id, w.relay.Key())
	proof := &wire.AdminProof{}
	copy(proof.Key[:], signer.Public().Bytes())
	proof.Signature = signer.Sign(wire.AdminProofMessage(w.id, a.l.cipher.HandshakeHash()))
	a.send(proof)
	expect[*wire.OK](a)
	a.send(&wire.PutDocument{Kind: wire.DocumentRecord, Raw: w.recordBy(auth.RecordSigner("ops", signer), "c2", 1).Raw()})
	expect[*wire.OK](a)
	expect[*wire.DocumentsChanged](laptop)

	h3 := w.signHead(3)
	for _, tc := range []struct {
		name   string
		kind   wire.DocumentKind
		raw    []byte
		reason string // "": taken
	}{
		{"newer record", wire.DocumentRecord, w.record("c1", 2).Raw(), ""},
		{"older record", wire.DocumentRecord, w.record("c1", 1).Raw(), wire.ReasonStale},
		{"conflicting record", wire.DocumentRecord, w.record("c1", 2, func(r *auth.Record) { r.TLSName = "other" }).Raw(), wire.ReasonStale},
		{"record of a stranger", wire.DocumentRecord, w.recordBy(auth.RecordSigner("ops", key.NewSigner()), "c3", 1).Raw(), wire.ReasonBadDocument},
		{"older head", wire.DocumentHead, w.head.Raw(), wire.ReasonStale},
		{"conflicting head", wire.DocumentHead, w.signHead(2).Raw(), wire.ReasonStale},
		{"newer head", wire.DocumentHead, h3.Raw(), ""},
		{"that head again", wire.DocumentHead, h3.Raw(), ""},
		{"head as record", wire.DocumentRecord, h3.Raw(), wire.ReasonBadDocument},
		{"garbage", wire.DocumentHead, []byte("{}"), wire.ReasonBadDocument},
		{"no kind", 9, h3.Raw(), wire.ReasonMalformed},
	} {
		a.send(&wire.PutDocument{Kind: tc.kind, Raw: tc.raw})
		if tc.reason == "" {
			expect[*wire.OK](a)
		} else if m := a.expectRefused(tc.reason); m.Detail == "" {
			t.Errorf("%s: no detail", tc.name)
		}
	}

	documents := func(p *participant) (names []string) {
		n := p.send(&wire.DocumentsRequest{})
		for {
			m, ok := expectEither[*wire.Document, *wire.DocumentsEnd](p)
			if ok {
				r := m.(*wire.Document)
				if r.Re != n {
					t.Errorf("document of request %d, want %d", r.Re, n)
				}
				name := "head"
				if r.Kind == wire.DocumentRecord {
					rec, err := auth.ParseRecord(r.Raw, h3, time.Now())
					if err != nil {
						t.Fatal(err)
					}
					name = rec.Name
				}
				names = append(names, name)
				continue
			}
			return names
		}
	}
	// Head 3 has no signers any more: c2's record is withdrawn.
	for who, tc := range map[string]struct {
		p    *participant
		want string
	}{"laptop": {laptop, "head c1"}, "node": {node, "head c1"}, "admin": {a, "head c1"}} {
		if got := strings.Join(documents(tc.p), " "); got != tc.want {
			t.Errorf("%s got %q, want %q", who, got, tc.want)
		}
	}
	w.put(wire.DocumentRecord, w.record("c3", 1).Raw())
	if got := strings.Join(documents(laptop), " "); got != "head c1 c3" {
		t.Errorf("laptop got %q", got)
	}
	if got := strings.Join(documents(node), " "); got != "head c1" {
		t.Errorf("node got %q", got)
	}

	// Nobody else may put anything.
	laptop.send(&wire.PutDocument{Kind: wire.DocumentHead, Raw: w.signHead(9).Raw()})
	laptop.expectRefused(wire.ReasonMalformed)
	for name, forge := range map[string]func(*wire.AdminProof, *participant){
		"unknown key": func(m *wire.AdminProof, p *participant) {
			k := key.NewNetwork()
			copy(m.Key[:], k.Public().Bytes())
			m.Signature = k.Sign(wire.AdminProofMessage(w.id, p.l.cipher.HandshakeHash()))
		},
		"of another session": func(m *wire.AdminProof, p *participant) {
			copy(m.Key[:], w.network.Public().Bytes())
			m.Signature = w.network.Sign(wire.AdminProofMessage(w.id, a.l.cipher.HandshakeHash()))
		},
		"signer of an old head": func(m *wire.AdminProof, p *participant) {
			copy(m.Key[:], signer.Public().Bytes())
			m.Signature = signer.Sign(wire.AdminProofMessage(w.id, p.l.cipher.HandshakeHash()))
		},
	} {
		p := w.dial(key.NewWireGuard(), w.id, w.relay.Key())
		m := &wire.AdminProof{}
		forge(m, p)
		p.send(m)
		if r := p.expectRefused(wire.ReasonNotAllowed); r.Hint == "" {
			t.Errorf("%s: no hint", name)
		}
		p.ended()
	}

	w.restart()
	if _, raw := w.get("/v1/head"); !bytes.Equal(raw, h3.Raw()) {
		t.Error("another head after a restart")
	}
	if _, ok := w.relay.documents.cluster("c3"); !ok {
		t.Error("a record is missing after a restart")
	}
	if _, ok := w.relay.documents.cluster("c2"); ok {
		t.Error("a withdrawn record is served after a restart")
	}
}

// expectEither waits for an A (true) or a B (false).
func expectEither[A, B wire.Message](p *participant) (wire.Message, bool) {
	p.t.Helper()
	for in := range p.in {
		switch m := in.m.(type) {
		case A:
			return m, true
		case B:
			return m, false
		case *wire.DocumentsChanged, *wire.PeerStatement:
		default:
			p.t.Fatalf("got %T", m)
		}
	}
	p.t.Fatal("the session ended")
	return nil, false
}

func TestStolenClusterKey(t *testing.T) {
	w := newWorld(t)
	laptop, node := w.login("alice"), w.node("c1")
	id, _, _ := join(laptop, node, "c1")
	w.cluster = key.NewCluster()
	w.put(wire.DocumentRecord, w.record("c1", 2).Raw())
	node.expectEnd(string(auth.ReasonClusterKey))
	if m := expect[*wire.EdgeRefused](laptop); m.Edge != id || m.Reason != string(auth.ReasonClusterKey) {
		t.Errorf("got %+v", m)
	}
	w.node("c1")
}

// expectEnd waits for the session's end, for a reason.
func (p *participant) expectEnd(reason string) {
	p.t.Helper()
	for in := range p.in {
		if m, ok := in.m.(*wire.Refused); ok && m.Re == 0 {
			if m.Reason != reason {
				p.t.Errorf("the session ended as %q (%s), want %q", m.Reason, m.Detail, reason)
			}
			p.ended()
			return
		}
	}
	p.t.Errorf("the session ended without a word, want %q", reason)
}

func TestWrongHandshake(t *testing.T) {
	w := newWorld(t)
	if _, err := w.tryDial(key.NewWireGuard(), w.id, key.NewRelay().Public()); err == nil {
		t.Error("a session began with another relay key")
	} else if !strings.Contains(err.Error(), "another relay key or network") {
		t.Errorf("the close says %v", err)
	}
	other := auth.IDOf(key.NewNetwork().Public())
	if _, err := w.tryDial(key.NewWireGuard(), other, w.relay.Key()); err == nil {
		t.Error("a session began for another network")
	}
	if p, err := w.tryDial(key.NewWireGuard(), w.id, w.relay.NextKey()); err != nil {
		t.Errorf("the next relay key is refused: %v", err)
	} else {
		p.close()
	}
	p := w.dial(key.NewWireGuard(), w.id, w.relay.Key())
	p.send(&wire.EdgeRequest{Cluster: "c1"})
	p.expectRefused(wire.ReasonMalformed)
	p.ended()
}

func TestAdmissionRefusals(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name   string
		edit   func(p *participant)
		kind   wire.GrantKind
		reason auth.Reason
	}{
		{"expired", func(p *participant) {
			p.newGrant("alice", func(c map[string]any) { c["iat"] = time.Now().Add(-13 * time.Hour).Unix() })
		}, wire.GrantPerson, auth.ReasonExpired},
		{"statement expired", func(p *participant) {
			p.grant.Statement = p.statement(time.Now().Add(-2*time.Hour), time.Hour)
		}, wire.GrantPerson, auth.ReasonStatementExpired},
		{"another audience", func(p *participant) {
			p.newGrant("alice", func(c map[string]any) { c["aud"] = "kubernetes" })
		}, wire.GrantPerson, auth.ReasonAudience},
		{"another login key", func(p *participant) {
			p.login = key.NewLogin()
			p.grant.Statement = p.statement(time.Now(), time.Hour)
		}, wire.GrantPerson, auth.ReasonStatementSignature},
		{"another nonce", func(p *participant) {
			p.newGrant("alice", func(c map[string]any) { c["nonce"] = "x" })
		}, wire.GrantPerson, auth.ReasonNonce},
		{"statement for another WireGuard key", func(p *participant) {
			p.wg = key.NewWireGuard()
			p.grant.Statement = p.statement(time.Now(), time.Hour)
		}, wire.GrantPerson, auth.ReasonChannelKey},
		{"unknown issuer", func(p *participant) { p.grant.Issuer = "https://evil.example" }, wire.GrantPerson, auth.ReasonUnknownIssuer},
		{"a person as workload", func(*participant) {}, wire.GrantWorkload, auth.ReasonKind},
		{"a person as node", func(*participant) {}, wire.GrantNode, auth.ReasonTooLarge},
		{"no kind", func(*participant) {}, 77, wire.ReasonMalformed},
	} {
		p := w.person("alice", key.NewLogin(), key.NewWireGuard())
		tc.edit(p)
		n := p.send(&wire.Grant{Kind: tc.kind, Body: p.grant.Append(nil)})
		if m := p.expectRefused(string(tc.reason)); m.Re != n {
			t.Errorf("%s: refused %d, want %d", tc.name, m.Re, n)
		}
		p.ended()
	}

	p := w.dial(key.NewWireGuard(), w.id, w.relay.Key())
	for name, tc := range map[string]struct {
		body   []byte
		reason string
	}{
		"unknown cluster":       {p.nodeGrant("nowhere", w.cluster), wire.ReasonUnknownCluster},
		"wrong cluster key":     {p.nodeGrant("c1", key.NewCluster()), string(auth.ReasonClusterKey)},
		"another WireGuard key": {w.dial(key.NewWireGuard(), w.id, w.relay.Key()).nodeGrant("c1", w.cluster), string(auth.ReasonChannelKey)},
		"garbage":               {[]byte{1, 2, 3}, string(auth.ReasonMalformed)},
	} {
		q := w.dial(p.wg, w.id, w.relay.Key())
		q.send(&wire.Grant{Kind: wire.GrantNode, Body: tc.body})
		if m := expect[*wire.Refused](q); m.Reason != tc.reason {
			t.Errorf("node, %s: refused as %q, want %q", name, m.Reason, tc.reason)
		}
		q.ended()
	}
	if strings.Contains(w.audit.String(), "eyJ") {
		t.Error("a token is in the audit log")
	}
}

func TestReplacedAndTakenOver(t *testing.T) {
	w := newWorld(t)
	login, wg := key.NewLogin(), key.NewWireGuard()
	first := w.loginWith("alice", login, wg)
	node := w.node("c1")
	id, c1, n1 := join(first, node, "c1")
	u, v := first.bind(), node.bind()
	u.passes(c1, v, n1)

	// The same key again: at once, and the edge goes on.
	second := w.loginWith("alice", login, wg)
	first.expectEnd(wire.ReasonReplaced)
	second.send(&wire.EdgeHold{Edge: id, Peer: node.wg.Public(), Cluster: "c1"})
	kept := expect[*wire.EdgeKept](second)
	if kept.Edge != id || kept.Channel == c1 {
		t.Errorf("kept %+v, channel was %d", kept, c1)
	}
	u.write(message(wire.PacketTransport, 64, c1)) // the old session's address
	v.silent()
	u2 := second.bind()
	u2.passes(kept.Channel, v, n1)
	v.passes(n1, u2, kept.Channel)
	node.nothing()

	// A newer key of the same login: the old peer is over.
	third := w.loginWith("alice", login, key.NewWireGuard())
	second.expectEnd(wire.ReasonReplaced)
	if m := expect[*wire.EdgeRefused](node); m.Edge != id || m.Reason != wire.ReasonReplaced {
		t.Errorf("node got %+v", m)
	}
	u2.write(message(wire.PacketTransport, 64, kept.Channel))
	v.silent()

	// An older statement cannot replace a newer one.
	old := w.person("alice", login, key.NewWireGuard())
	old.grant.Statement = old.statement(time.Now().Add(-time.Minute), time.Hour)
	old.send(&wire.Grant{Kind: wire.GrantPerson, Body: old.grant.Append(nil)})
	old.expectRefused(string(auth.ReasonStatementOlder))

	// Nobody may have another's WireGuard key, whoever they are.
	thief := w.person("mallory", key.NewLogin(), third.wg)
	thief.send(&wire.Grant{Kind: wire.GrantPerson, Body: thief.grant.Append(nil)})
	thief.expectRefused(string(auth.ReasonKeyHeld))
	n := w.dial(third.wg, w.id, w.relay.Key())
	n.send(&wire.Grant{Kind: wire.GrantNode, Body: n.nodeGrant("c1", w.cluster)})
	n.expectRefused(string(auth.ReasonKeyHeld))
	third.nothing()
	if got := w.events(EventRefused, 4); len(got) < 4 { // the holder's line too
		t.Errorf("%d refusals in the audit log", len(got))
	}
}

func TestStatements(t *testing.T) {
	w := newWorld(t)
	laptop, node := w.login("alice"), w.node("c1")
	id, _, _ := join(laptop, node, "c1")

	// Renewed: the node is told.
	next := laptop.statement(time.Now().Add(time.Second), time.Hour)
	n := laptop.send(&wire.Statement{Body: next.Append(nil)})
	if m := expect[*wire.Admitted](laptop); m.Re != n || m.Expires != uint64(next.Expires.UnixMilli()) {
		t.Errorf("admitted %+v, want until %d", m, next.Expires.UnixMilli())
	}
	if m := expect[*wire.PeerStatement](node); m.Peer != laptop.wg.Public() || !bytes.Equal(m.Body, next.Append(nil)) {
		t.Error("the node got another statement")
	}
	// Refused, and the lease stays.
	older := laptop.statement(time.Now().Add(-time.Minute), time.Hour)
	laptop.send(&wire.Statement{Body: older.Append(nil)})
	laptop.expectRefused(string(auth.ReasonStatementOlder))
	laptop.send(&wire.Statement{Body: []byte("x")})
	laptop.expectRefused(string(auth.ReasonMalformed))
	laptop.nothing()
	node.nothing()

	n = node.send(&wire.Statement{Body: node.nodeGrant("c1", w.cluster)})
	if m := expect[*wire.Admitted](node); m.Re != n {
		t.Errorf("admitted %+v", m)
	}
	node.send(&wire.Statement{Body: node.nodeGrant("c1", key.NewCluster())})
	node.expectRefused(string(auth.ReasonClusterKey))

	// A logout.
	end := auth.SignStatement(auth.Statement{End: true, Key: laptop.wg.Public(), Encapsulation: encapsulation(),
		Issued: time.Now().Add(2 * time.Second), Expires: time.Now().Add(time.Minute)}, laptop.token, laptop.login)
	n = laptop.send(&wire.Statement{Body: end.Append(nil)})
	if m := expect[*wire.OK](laptop); m.Re != n {
		t.Errorf("OK to %d, want %d", m.Re, n)
	}
	laptop.expectEnd(wire.ReasonEnded)
	if m := expect[*wire.PeerStatement](node); !bytes.Equal(m.Body, end.Append(nil)) {
		t.Error("the node got another statement than the last")
	}
	if m := expect[*wire.EdgeRefused](node); m.Edge != id || m.Reason != wire.ReasonEnded {
		t.Errorf("node got %+v", m)
	}
}

func TestLeaseEnds(t *testing.T) {
	w := newWorld(t)
	laptop, node := w.login("alice"), w.node("c1")
	id, c, _ := join(laptop, node, "c1")
	u, v := laptop.bind(), node.bind()
	w.skew.Store(int64(50 * time.Minute))
	node.send(&wire.Statement{Body: node.nodeGrant("c1", w.cluster)})
	expect[*wire.Admitted](node)
	laptop.nothing()
	w.skew.Store(int64(61 * time.Minute))
	laptop.expectEnd(wire.ReasonExpired)
	if m := expect[*wire.EdgeRefused](node); m.Edge != id || m.Reason != wire.ReasonExpired {
		t.Errorf("node got %+v", m)
	}
	u.write(message(wire.PacketTransport, 64, c))
	v.silent()
	node.nothing() // it was renewed
	if got := w.events(EventSessionEnd, 1); got[0].Reason != wire.ReasonExpired {
		t.Errorf("audit says %+v", got)
	}
}

func TestRevoke(t *testing.T) {
	w := newWorld(t)
	login := key.NewLogin()
	laptop, other, node := w.loginWith("alice", login, key.NewWireGuard()), w.login("bob"), w.node("c1")
	id, _, _ := join(laptop, node, "c1")
	if _, _, err := w.relay.Revoke(Revocation{UID: "alice"}); err == nil {
		t.Error("a revocation without issuer was taken")
	}
	sessions, edges, err := w.relay.Revoke(Revocation{Issuer: w.issuer.url, UID: "alice"})
	if sessions != 1 || edges != 1 || err != nil {
		t.Errorf("cut %d sessions and %d edges (%v), want 1, 1", sessions, edges, err)
	}
	laptop.expectEnd(wire.ReasonRevoked)
	if m := expect[*wire.EdgeRefused](node); m.Edge != id || m.Reason != wire.ReasonRevoked {
		t.Errorf("node got %+v", m)
	}
	other.nothing()

	refusedNow := func() {
		t.Helper()
		again := w.person("alice", login, key.NewWireGuard())
		again.grant, again.token = laptop.grant, laptop.token
		again.grant.Statement = again.statement(w.now(), time.Hour)
		again.send(&wire.Grant{Kind: wire.GrantPerson, Body: again.grant.Append(nil)})
		again.expectRefused(wire.ReasonRevoked)
	}
	refusedNow()
	w.restart()
	refusedNow()

	// A login after the revocation is another matter.
	w.skew.Store(int64(3 * time.Second))
	fresh := w.loginWith("alice", login, key.NewWireGuard())
	if sessions, _, err := w.relay.Revoke(Revocation{Key: login.Public()}); sessions != 1 || err != nil {
		t.Errorf("revoke by key cut %d sessions (%v)", sessions, err)
	}
	fresh.expectEnd(wire.ReasonRevoked)

	// When no grant of before can live, the revocation is gone.
	w.skew.Store(int64(auth.MaxGrantAge + time.Hour))
	w.relay.hub.expire(w.now(), true)
	if n := len(w.relay.Status().Revoked); n != 0 {
		t.Errorf("%d revocations are kept for ever", n)
	}
	w.events(EventRevoke, 2)
}

func TestRevokedWhileAway(t *testing.T) {
	w := newWorld(t)
	laptop, node := w.login("alice"), w.node("c1")
	id, _, _ := join(laptop, node, "c1")
	laptop.close()
	w.events(EventSessionEnd, 1)
	node.nothing() // its going tells the node nothing
	if _, edges, err := w.relay.Revoke(Revocation{Issuer: w.issuer.url, UID: "alice"}); edges != 1 || err != nil {
		t.Errorf("%d edges cut (%v), want 1", edges, err)
	}
	if m := expect[*wire.EdgeRefused](node); m.Edge != id || m.Reason != wire.ReasonRevoked {
		t.Errorf("node got %+v", m)
	}
}
