package auth

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

func TestVerifyStatement(t *testing.T) {
	s := newScene(t)
	d := s.draft()
	g, b := d.build()
	v := s.verifier(t, []Issuer{s.issuer}, nil)
	first, err := v.Verify(t.Context(), b, d.channel)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(issued time.Duration, change func(*Statement)) SignedStatement {
		st := d.statement
		st.Issued = s.now.Add(issued)
		st.Expires = st.Issued.Add(time.Hour)
		if change != nil {
			change(&st)
		}
		return SignStatement(st, g.IDToken, s.login)
	}
	s.now = s.now.Add(30 * time.Minute)
	renewed, err := v.VerifyStatement(g, first, sign(0, nil))
	if err != nil {
		t.Fatal(err)
	}
	if !renewed.StatementEnds.Equal(s.now.Add(time.Hour)) || renewed.Subject != "alice" || renewed.Addr != first.Addr {
		t.Errorf("renewed: %+v", renewed)
	}
	if !first.StatementEnds.Equal(s.now.Add(30 * time.Minute)) {
		t.Error("the former identity was changed")
	}
	if refused := v.Recheck(renewed); refused != nil {
		t.Errorf("renewed identity: %v", refused)
	}
	otherEK := newScene(t).ek
	for _, c := range []struct {
		name string
		s    SignedStatement
		want Reason
	}{
		{"the same again", sign(0, nil), ""},
		{"newer", sign(time.Second, nil), ""},
		{"newer with another encapsulation key", sign(time.Second, func(s *Statement) { s.Encapsulation = otherEK }), ""},
		{"older", sign(-time.Millisecond, nil), ReasonStatementOlder},
		{"the first again", g.Statement, ReasonStatementOlder},
		{"equal and different in its end", sign(0, func(s *Statement) { s.Expires = s.Expires.Add(-time.Minute) }), ReasonStatementConflict},
		{"equal and different in its key", sign(0, func(s *Statement) { s.Key = key.NewWireGuard().Public() }), ReasonStatementConflict},
		{"equal and different in its flags", sign(0, func(s *Statement) { s.Flags = 4 }), ReasonStatementConflict},
		{"end, newer", sign(time.Second, func(s *Statement) { s.End = true }), ReasonEnded},
		{"end, at the same time", sign(0, func(s *Statement) { s.End = true }), ReasonEnded},
		{"end, already over", sign(time.Second, func(s *Statement) { s.End = true; s.Expires = s.Issued }), ReasonEnded},
		{"end, older: a replay", sign(-time.Second, func(s *Statement) { s.End = true }), ReasonStatementOlder},
		{"end, signed by a stranger", SignStatement(Statement{End: true, Key: d.channel, Issued: s.now.Add(time.Second)}, g.IDToken, key.NewLogin()), ReasonStatementSignature},
		{"another WireGuard key", sign(time.Second, func(s *Statement) { s.Key = key.NewWireGuard().Public() }), ReasonChannelKey},
		{"two hours", sign(time.Second, func(s *Statement) { s.Expires = s.Issued.Add(2 * time.Hour) }), ReasonStatementLifetime},
		{"of the future", sign(2*time.Minute, nil), ReasonClock},
		{"no encapsulation key", sign(time.Second, func(s *Statement) {
			copy(s.Encapsulation[:], bytes.Repeat([]byte{0xff}, EncapsulationSize))
		}), ReasonEncapsulation},
		{"for another ID token", SignStatement(sign(time.Second, nil).Statement, "x.y.z", s.login), ReasonStatementSignature},
	} {
		t.Run(c.name, func(t *testing.T) {
			id, err := v.VerifyStatement(g, renewed, c.s)
			if c.want == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			wantReason(t, err, c.want)
			if id != nil {
				t.Error("a refused statement gave an identity")
			}
		})
	}

	other, _ := s.draft().build()
	_, err = v.VerifyStatement(other, renewed, sign(time.Second, nil))
	wantReason(t, err, ReasonInternal)
	_, err = v.VerifyStatement(g, nil, sign(time.Second, nil))
	wantReason(t, err, ReasonInternal)

	late := sign(11*time.Hour+45*time.Minute, nil)
	s.now = s.now.Add(11*time.Hour + 45*time.Minute)
	_, err = v.VerifyStatement(g, renewed, late)
	wantReason(t, err, ReasonExpired)
}

func TestIdentitySupersedes(t *testing.T) {
	s := newScene(t)
	admit := func(change func(*draft)) *Identity {
		d := s.draft()
		change(d)
		id, err := d.verify(t)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	old := admit(func(*draft) {})
	if err := admit(func(d *draft) { d.statement.Issued = d.statement.Issued.Add(time.Second) }).Supersedes(old); err != nil {
		t.Errorf("newer: %v", err)
	}
	if err := old.Supersedes(old); err != nil {
		t.Errorf("the same: %v", err)
	}
	wantReason(t, admit(func(d *draft) {
		d.statement.Issued = d.statement.Issued.Add(-time.Second)
		d.statement.Expires = d.now.Add(time.Minute)
	}).Supersedes(old), ReasonStatementOlder)
	wantReason(t, admit(func(d *draft) { d.statement.Expires = d.statement.Expires.Add(-time.Second) }).Supersedes(old), ReasonStatementConflict)
}

func TestGrantSizes(t *testing.T) {
	s := newScene(t)
	g, b := s.draft().build()
	if n := len(g.Statement.Statement.Append(nil)); n != 1237 || StatementSize != 1237 {
		t.Errorf("statement is %d bytes, want 1237", n)
	}
	if n := len(g.Statement.Append(nil)); n != 1301 {
		t.Errorf("signed statement is %d bytes, want 1301", n)
	}
	if AnswerSize != 1221 {
		t.Errorf("answer is %d bytes, want 1221", AnswerSize)
	}
	if n := len(g.Commitment); n != commitmentSize {
		t.Errorf("commitment is %d bytes, want %d", n, commitmentSize)
	}
	parsed, err := ParseGrant(b)
	if err != nil {
		t.Fatal(err)
	}
	clear(b) // what was parsed shares nothing with its input
	if parsed.IDToken != g.IDToken || !bytes.Equal(parsed.Commitment, g.Commitment) || parsed.Statement != g.Statement {
		t.Error("the grant changed on its way")
	}
}

func TestGrantDoesNotPrint(t *testing.T) {
	g, _ := newScene(t).draft().build()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if out := fmt.Sprintf(verb, g); strings.Contains(out, g.IDToken[:20]) {
			t.Errorf("%s printed the ID token", verb)
		}
	}
	if _, err := g.MarshalText(); err == nil {
		t.Error("a grant was marshalled")
	}
}

func FuzzParseGrant(f *testing.F) { // attacker: whoever reaches a relay, and a relay that feeds nodes
	_, b := newScene(f).draft().build()
	f.Add(b)
	f.Add(b[:len(b)-SignedStatementSize])
	f.Add([]byte{grantVersion, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := ParseGrant(b)
		if err == nil && !bytes.Equal(g.Append(nil), b) {
			t.Errorf("got %x, want %x", g.Append(nil), b)
		}
	})
}

func FuzzParseSignedStatement(f *testing.F) { // attacker: a laptop that renews, and a relay that carries it
	g, _ := newScene(f).draft().build()
	f.Add(g.Statement.Append(nil))
	f.Add(make([]byte, SignedStatementSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSignedStatement(b)
		if err == nil && !bytes.Equal(s.Append(nil), b) {
			t.Errorf("got %x, want %x", s.Append(nil), b)
		}
	})
}

func FuzzParseCommitment(f *testing.F) { // attacker: whoever sends a grant
	f.Add(NewCommitment(IDOf(key.NewNetwork().Public()), key.NewLogin().Public()).Append(nil))
	f.Add(make([]byte, commitmentSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCommitment(b)
		if err == nil && !bytes.Equal(c.Append(nil), b) {
			t.Errorf("got %x, want %x", c.Append(nil), b)
		}
	})
}
