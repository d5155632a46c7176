package auth

import (
	"bytes"
	"context"
	"crypto/mlkem"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

// scene is one laptop's login at one issuer, and a verifier which knows that
// issuer over a real socket.
type scene struct {
	now    time.Time
	server *keyServer
	keys   *KeySet
	issuer Issuer
	net    NetworkID
	login  key.LoginPrivate
	wg     key.WireGuardPrivate
	ek     [EncapsulationSize]byte
}

func newScene(t testing.TB) *scene {
	s := &scene{
		now:    time.Now().Truncate(time.Second),
		server: newKeyServer(t, jwksOf(jwkOf(testRSA(), "r1", "", "sig"), jwkOf(testEC(), "e1", "ES256", "sig"))),
		net:    IDOf(key.NewNetwork().Public()),
		login:  key.NewLogin(),
		wg:     key.NewWireGuard(),
	}
	copy(s.ek[:], mustKey(mlkem.GenerateKey768()).EncapsulationKey().Bytes())
	s.issuer = Issuer{URL: s.server.url, ClientID: "zt", Audiences: []string{"zt-also"}, Require: map[string]string{"tid": "t1"}}
	var err error
	if s.keys, err = NewKeySet(KeySetConfig{Issuer: s.issuer, Now: func() time.Time { return s.now }}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *scene) verifier(t testing.TB, persons, workloads []Issuer) *Verifier {
	v, err := NewVerifier(VerifierConfig{
		Network: s.net, Issuers: persons, Workloads: workloads,
		Keys: func(string) *KeySet { return s.keys },
		Now:  func() time.Time { return s.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// draft is everything that goes into a grant and its verification; a case
// changes one thing.
type draft struct {
	*scene
	header     map[string]any
	headerRaw  string // replaces header
	claims     map[string]any
	payloadRaw func(json string) string
	signWith   any
	token      func(string) string // the last word on the ID token
	issuerText string
	commitment Commitment
	cic        func([]byte) []byte
	statement  Statement
	stmtToken  string // what the statement is signed for, if not the ID token
	stmtKey    key.LoginPrivate
	signature  func(*SignedStatement)
	grant      func([]byte) []byte
	channel    key.WireGuardPublic
	entry      Issuer
	workload   bool
}

func (s *scene) draft() *draft {
	d := &draft{
		scene:      s,
		header:     map[string]any{"alg": "ES256", "kid": "e1", "typ": "JWT"},
		signWith:   testEC(),
		issuerText: s.issuer.URL,
		commitment: NewCommitment(s.net, s.login.Public()),
		stmtKey:    s.login,
		channel:    s.wg.Public(),
		entry:      s.issuer,
		statement: Statement{
			Key: s.wg.Public(), Encapsulation: s.ek,
			Issued: s.now, Expires: s.now.Add(time.Hour),
		},
	}
	d.claims = map[string]any{
		"iss": s.issuer.URL, "aud": "zt", "sub": "alice", "tid": "t1",
		"nonce": d.commitment.Nonce(),
		"iat":   s.now.Add(-time.Minute).Unix(), "exp": s.now.Add(4 * time.Minute).Unix(),
		"auth_time": s.now.Add(-2 * time.Minute).Unix(),
		"email":     "alice@example.com", "email_verified": true, "name": "Alice", "sid": "s1", "jti": "j1",
		"groups": []string{"developers", "on-call"},
	}
	return d
}

// asWorkload turns d into what a CI job would present.
func (d *draft) asWorkload() {
	d.workload = true
	delete(d.claims, "nonce")
	d.claims["aud"] = d.commitment.WorkloadAudience()
}

func (d *draft) idToken() string {
	header := d.headerRaw
	if header == "" {
		header = string(mustKey(json.Marshal(d.header)))
	}
	payload := string(mustKey(json.Marshal(d.claims)))
	if d.payloadRaw != nil {
		payload = d.payloadRaw(payload)
	}
	token := signJWS(header, payload, d.signWith)
	if d.token != nil {
		token = d.token(token)
	}
	return token
}

func (d *draft) build() (Grant, []byte) {
	g := Grant{Issuer: d.issuerText, IDToken: d.idToken(), Commitment: d.commitment.Append(nil)}
	if d.cic != nil {
		g.Commitment = d.cic(g.Commitment)
	}
	signedFor := g.IDToken
	if d.stmtToken != "" {
		signedFor = d.stmtToken
	}
	g.Statement = SignStatement(d.statement, signedFor, d.stmtKey)
	if d.signature != nil {
		d.signature(&g.Statement)
	}
	b := g.Append(nil)
	if d.grant != nil {
		b = d.grant(b)
	}
	return g, b
}

func (d *draft) verify(t testing.TB) (*Identity, error) {
	_, b := d.build()
	if d.workload {
		return d.verifier(t, nil, []Issuer{d.entry}).VerifyWorkload(t.Context(), b, d.channel)
	}
	return d.verifier(t, []Issuer{d.entry}, nil).Verify(t.Context(), b, d.channel)
}

func TestVerifyIdentity(t *testing.T) {
	s := newScene(t)
	d := s.draft()
	d.entry.SubjectClaim, d.claims["oid"] = "oid", "0a1b"
	id, err := d.verify(t)
	if err != nil {
		t.Fatal(err)
	}
	if id.Issuer != s.issuer.URL || id.Subject != "alice" || id.UID != "0a1b" || id.Name != "Alice" || id.Email != "alice@example.com" ||
		strings.Join(id.Groups, " ") != "developers on-call" || id.SID != "s1" || id.JTI != "j1" || id.Workload {
		t.Errorf("got %+v", id)
	}
	if !id.AuthTime.Equal(s.now.Add(-2*time.Minute)) || !id.IssuedAt.Equal(s.now.Add(-time.Minute)) ||
		!id.GrantEnds.Equal(s.now.Add(12*time.Hour-time.Minute)) || !id.StatementEnds.Equal(s.now.Add(time.Hour)) {
		t.Errorf("got times %s %s %s %s", id.AuthTime, id.IssuedAt, id.GrantEnds, id.StatementEnds)
	}
	if id.Addr != s.net.PersonAddr(s.login.Public()) || !s.net.Prefix().Contains(id.Addr) {
		t.Errorf("got address %s", id.Addr)
	}
	if id.Encapsulation != s.ek {
		t.Error("got another encapsulation key")
	}
	if got := id.Ends(); !got.Equal(id.StatementEnds) {
		t.Errorf("ends %s, want the statement's end", got)
	}
	if got, ok := id.Claim("iat"); !ok || got != fmt.Sprint(id.IssuedAt.Unix()) {
		t.Errorf("claim iat is %q, %v", got, ok)
	}
	if _, ok := id.Claim("groups"); ok {
		t.Error("a list was taken for a single value")
	}
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "subject", id)
	if !strings.Contains(log.String(), "subject=alice@example.com") || strings.Contains(log.String(), "on-call") {
		t.Errorf("got log %s", log.String())
	}

	for _, c := range []struct {
		name   string
		change func(*draft)
		want   string // String
	}{
		{"e-mail not verified", setClaim("email_verified", false), "Alice"},
		{"e-mail verified as text", setClaim("email_verified", "true"), "alice@example.com"},
		{"e-mail verified as number", setClaim("email_verified", 1), "Alice"},
		{"e-mail not said to be verified", dropClaim("email_verified"), "Alice"},
		{"name from preferred_username", func(d *draft) {
			delete(d.claims, "email")
			delete(d.claims, "name")
			d.claims["preferred_username"] = "al"
		}, "al"},
		{"subject only", func(d *draft) { delete(d.claims, "email"); delete(d.claims, "name") }, "alice"},
		{"a hostile name", func(d *draft) { delete(d.claims, "email"); d.claims["name"] = "\x1b[31mroot\r\n\u202e" }, `\x1b[31mroot\r\n\u202e`},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := s.draft()
			c.change(d)
			id, err := d.verify(t)
			if err != nil {
				t.Fatal(err)
			}
			if got := id.String(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}

	d = s.draft()
	d.entry.GroupsClaim, d.claims["https://example.com/roles"] = "https://example.com/roles", []string{"ops"}
	if id, err = d.verify(t); err != nil || len(id.Groups) != 1 || id.Groups[0] != "ops" {
		t.Errorf("namespaced groups: %v, %v", id, err)
	}
	d = s.draft()
	d.asWorkload()
	if id, err = d.verify(t); err != nil || !id.Workload || !id.GrantEnds.Equal(s.now.Add(4*time.Minute)) || !id.Ends().Equal(id.GrantEnds) {
		t.Errorf("workload: %+v, %v", id, err)
	}
}

// A token of one kind of issuer does not enter through the other table.
func TestVerifyKinds(t *testing.T) {
	s := newScene(t)
	d := s.draft()
	_, b := d.build()
	_, err := s.verifier(t, nil, []Issuer{s.issuer}).Verify(t.Context(), b, d.channel)
	wantReason(t, err, ReasonKind)
	d.asWorkload()
	_, b = d.build()
	_, err = s.verifier(t, []Issuer{s.issuer}, nil).VerifyWorkload(t.Context(), b, d.channel)
	wantReason(t, err, ReasonKind)
	entry := s.issuer
	entry.ClientID, entry.Audiences = "", nil
	if _, err := s.verifier(t, []Issuer{s.issuer}, []Issuer{entry}).VerifyWorkload(t.Context(), b, d.channel); err != nil {
		t.Errorf("an issuer of both kinds: %v", err)
	}
}

// Another pinned issuer's key must not sign for this one.
func TestVerifyForeignIssuerKey(t *testing.T) {
	ours := newKeyServer(t, jwksOf(jwkOf(testEC(), "e1", "", "")))
	theirs := newKeyServer(t, jwksOf(jwkOf(testRSA(), "r1", "", "")))
	s := newScene(t)
	v, err := NewVerifier(VerifierConfig{Network: s.net, Issuers: []Issuer{{URL: ours.url, ClientID: "zt"}, {URL: theirs.url, ClientID: "zt"}}})
	if err != nil {
		t.Fatal(err)
	}
	d := s.draft()
	d.header, d.signWith = map[string]any{"alg": "RS256", "kid": "r1"}, testRSA()
	d.issuerText, d.claims["iss"] = ours.url, ours.url
	_, b := d.build()
	_, err = v.Verify(t.Context(), b, d.channel)
	wantReason(t, err, ReasonUnknownKey)
	d.issuerText = theirs.url // their key, our iss
	_, b = d.build()
	_, err = v.Verify(t.Context(), b, d.channel)
	wantReason(t, err, ReasonIssuer)
	d.claims["iss"] = theirs.url
	_, b = d.build()
	if _, err = v.Verify(t.Context(), b, d.channel); err != nil {
		t.Error(err)
	}
	if n := len(v.KeySets()); n != 2 {
		t.Errorf("%d key sets, want 2", n)
	}
}

func TestVerifyUnreachableIssuer(t *testing.T) {
	s := newScene(t)
	s.server.set(func(k *keyServer) { k.discovery = "down" })
	d := s.draft()
	_, err := d.verify(t)
	wantReason(t, err, ReasonIssuerUnreachable)
	s.server.set(func(k *keyServer) { k.discovery = "" })
	_, err = d.verify(t) // within the minute
	wantReason(t, err, ReasonIssuerUnreachable)
	s.now = s.now.Add(time.Minute)
	if _, err = d.verify(t); err != nil {
		t.Errorf("a minute later: %v", err)
	}
}

func TestRecheck(t *testing.T) {
	s := newScene(t)
	admitted := func() *Identity {
		id, err := s.draft().verify(t)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	check := func(name string, id *Identity, entry Issuer, want Reason) {
		t.Helper()
		refused := s.verifier(t, []Issuer{entry}, nil).Recheck(id)
		switch {
		case want == "" && refused != nil:
			t.Errorf("%s: refused: %v", name, refused)
		case want != "" && (refused == nil || refused.Reason != want):
			t.Errorf("%s: got %v, want %s", name, refused, want)
		}
	}
	id := admitted()
	check("at once", id, s.issuer, "")

	for _, c := range []struct {
		name   string
		change func(*Issuer)
		want   Reason
	}{
		{"client replaced", func(i *Issuer) { i.ClientID, i.Audiences = "zt2", nil }, ReasonAudience},
		{"claim required", func(i *Issuer) { i.Require = map[string]string{"tid": "t2"} }, ReasonRequire},
		{"grantAge shortened", func(i *Issuer) { i.GrantAge = Duration(time.Second) }, ReasonExpired},
		{"grantAge lengthened", func(i *Issuer) { i.GrantAge = Duration(24 * time.Hour) }, ""},
		{"groups from another claim", func(i *Issuer) { i.GroupsClaim = "roles" }, ReasonEntryChanged},
		{"uid from another claim", func(i *Issuer) { i.SubjectClaim = "tid" }, ReasonEntryChanged},
	} {
		entry := s.issuer
		entry.Require = maps.Clone(s.issuer.Require)
		c.change(&entry)
		check(c.name, id, entry, c.want)
	}
	if refused := s.verifier(t, nil, []Issuer{s.issuer}).Recheck(id); refused == nil || refused.Reason != ReasonUnknownIssuer {
		t.Errorf("issuer removed: got %v", refused)
	}
	check("made by hand", &Identity{Issuer: s.issuer.URL}, s.issuer, ReasonInternal)
	check("nil", nil, s.issuer, ReasonInternal)

	// The same key under another id is still the issuer's key; another key
	// under the same id is not.
	s.now = s.now.Add(2 * time.Minute)
	s.server.set(func(k *keyServer) { k.jwks = jwksOf(jwkOf(testEC(), "renamed", "", "")) })
	s.keys.refresh(t.Context())
	check("key renamed", id, s.issuer, "")
	s.now = s.now.Add(2 * time.Minute)
	s.server.set(func(k *keyServer) { k.jwks = jwksOf(jwkOf(testRSA(), "e1", "", "")) })
	s.keys.refresh(t.Context())
	check("key withdrawn", id, s.issuer, ReasonWithdrawnKey)

	s.now = s.now.Add(2 * time.Minute)
	s.server.set(func(k *keyServer) { k.jwks = jwksOf(jwkOf(testEC(), "e1", "", "")) })
	s.keys.refresh(t.Context())
	id = admitted()
	s.now = s.now.Add(time.Hour - time.Millisecond)
	check("before the statement's end", id, s.issuer, "")
	s.now = s.now.Add(time.Millisecond)
	check("at the statement's end", id, s.issuer, ReasonStatementExpired)
	s.now = s.now.Add(12 * time.Hour)
	check("after the grant's end", id, s.issuer, ReasonExpired)
}

// A newer entry does not lengthen what an older one granted.
func TestRecheckGrantEnd(t *testing.T) {
	s := newScene(t)
	d := s.draft()
	g, b := d.build()
	id, err := s.verifier(t, []Issuer{s.issuer}, nil).Verify(t.Context(), b, d.channel)
	if err != nil {
		t.Fatal(err)
	}
	longer := s.issuer
	longer.GrantAge = Duration(MaxGrantAge)
	v := s.verifier(t, []Issuer{longer}, nil)
	s.now = id.GrantEnds.Add(-time.Minute)
	st := d.statement
	st.Issued, st.Expires = s.now, s.now.Add(time.Hour)
	if id, err = v.VerifyStatement(g, id, SignStatement(st, g.IDToken, s.login)); err != nil {
		t.Fatal(err)
	}
	if refused := v.Recheck(id); refused != nil {
		t.Errorf("before the grant's end: %v", refused)
	}
	s.now = s.now.Add(2 * time.Minute)
	wantReason(t, v.Recheck(id), ReasonExpired)
}

// New key sets, made when a policy changes, know nothing yet: that must cut
// nobody.
func TestRecheckBeforeKeysAreKnown(t *testing.T) {
	s := newScene(t)
	id, err := s.draft().verify(t)
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(VerifierConfig{Network: s.net, Issuers: []Issuer{s.issuer}, Now: func() time.Time { return s.now }})
	if err != nil {
		t.Fatal(err)
	}
	if refused := v.Recheck(id); refused != nil {
		t.Errorf("refused: %v", refused)
	}
}

// A captured grant is worth nothing to anybody else (T08).
func TestReplay(t *testing.T) {
	s := newScene(t)
	d := s.draft()
	g, b := d.build()
	v := s.verifier(t, []Issuer{s.issuer}, nil)
	thief := key.NewWireGuard().Public()

	_, err := v.Verify(t.Context(), b, thief)
	wantReason(t, err, ReasonChannelKey)

	g2 := g // with the thief's own statement
	g2.Statement = SignStatement(Statement{Key: thief, Encapsulation: s.ek, Issued: s.now, Expires: s.now.Add(time.Hour)}, g.IDToken, key.NewLogin())
	_, err = v.Verify(t.Context(), g2.Append(nil), thief)
	wantReason(t, err, ReasonStatementSignature)

	own := key.NewLogin() // and a commitment to the thief's key
	g2.Commitment = NewCommitment(s.net, own.Public()).Append(nil)
	g2.Statement = SignStatement(g2.Statement.Statement, g.IDToken, own)
	_, err = v.Verify(t.Context(), g2.Append(nil), thief)
	wantReason(t, err, ReasonNonce)

	other := *s
	other.net = IDOf(key.NewNetwork().Public())
	_, err = other.verifier(t, []Issuer{s.issuer}, nil).Verify(t.Context(), b, d.channel)
	wantReason(t, err, ReasonNetwork)

	// A later login's token does not revive an earlier statement, nor the reverse.
	g3, _ := s.draft().build()
	g3.Statement = g.Statement
	_, err = v.Verify(t.Context(), g3.Append(nil), d.channel)
	wantReason(t, err, ReasonStatementSignature)

	s.now = s.now.Add(time.Hour)
	_, err = v.Verify(t.Context(), b, d.channel)
	wantReason(t, err, ReasonStatementExpired)
}

func TestNewVerifierRefuses(t *testing.T) {
	s := newScene(t)
	other := newKeyServer(t, "")
	for name, cfg := range map[string]VerifierConfig{
		"no network":      {Issuers: []Issuer{s.issuer}},
		"issuer twice":    {Network: s.net, Issuers: []Issuer{s.issuer, s.issuer}},
		"workload twice":  {Network: s.net, Workloads: []Issuer{s.issuer, s.issuer}},
		"invalid issuer":  {Network: s.net, Issuers: []Issuer{{URL: "http://login.example.com", ClientID: "zt"}}},
		"no key set":      {Network: s.net, Issuers: []Issuer{s.issuer}, Keys: func(string) *KeySet { return nil }},
		"foreign key set": {Network: s.net, Issuers: []Issuer{{URL: other.url, ClientID: "zt"}}, Keys: func(string) *KeySet { return s.keys }},
	} {
		if _, err := NewVerifier(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestVerifierRun(t *testing.T) {
	s := newScene(t)
	before := runtime.NumGoroutine()
	v, err := NewVerifier(VerifierConfig{Network: s.net, Issuers: []Issuer{s.issuer}, Workloads: []Issuer{s.issuer}})
	if err != nil {
		t.Fatal(err)
	}
	if n := runtime.NumGoroutine(); n != before {
		t.Errorf("NewVerifier started %d goroutines", n-before)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	for deadline := time.Now().Add(5 * time.Second); v.KeySets()[0].Keys == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("Run fetched no keys")
		}
	}
	if n := s.server.fetches.Load(); n != 1 {
		t.Errorf("%d fetches for one issuer in two tables, want 1", n)
	}
	d := s.draft()
	_, b := d.build()
	if _, err := v.Verify(t.Context(), b, d.channel); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A megabyte of dots costs a size check, not a megabyte of slices.
func TestHugeTokenIsRefusedBySize(t *testing.T) {
	s := newScene(t)
	dots := strings.Repeat(".", 1<<20)
	v, grant := s.verifier(t, []Issuer{s.issuer}, nil), []byte(dots)
	for name, refuse := range map[string]func() error{
		"key set":  func() error { _, err := s.keys.Verify(t.Context(), dots); return err },
		"verifier": func() error { _, err := v.Verify(t.Context(), grant, s.wg.Public()); return err },
	} {
		wantReason(t, refuse(), ReasonTooLarge)
		var err error
		res := testing.Benchmark(func(b *testing.B) {
			for b.Loop() {
				err = refuse()
			}
		})
		if !errors.Is(err, &RefusedError{Reason: ReasonTooLarge}) {
			t.Errorf("%s: got %v", name, err)
		}
		if got := res.AllocedBytesPerOp(); got > 4<<10 {
			t.Errorf("%s: %d bytes allocated, want at most 4 KiB", name, got)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	s := newScene(b)
	for name, change := range map[string]func(*draft){
		"ES256": func(*draft) {},
		"RS256": func(d *draft) { d.header["alg"], d.header["kid"], d.signWith = "RS256", "r1", testRSA() },
	} {
		b.Run(name, func(b *testing.B) {
			d := s.draft()
			change(d)
			_, grant := d.build()
			v := s.verifier(b, []Issuer{s.issuer}, nil)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), grant, d.channel); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
