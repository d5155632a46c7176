package daemon

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// claimCode is what the holder of k would print.
func claimCode(t testing.TB, k key.RelayPublic) ClaimCode {
	t.Helper()
	b := make([]byte, claimRandomSize, claimRandomSize+claimKeySize)
	rand.Read(b)
	h := sha256.Sum256(k.Append(nil))
	c, err := ParseClaimCode(claimEncoding.EncodeToString(append(b, h[:claimKeySize]...)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClaimRelay(t *testing.T) {
	refusal := func(_ *fakeSession, number uint32, _ wire.Message) []wire.Message {
		return []wire.Message{&wire.Refused{Re: number, Reason: wire.ReasonWrongCode}}
	}
	for name, c := range map[string]struct {
		answer  func(*fakeSession, uint32, wire.Message) []wire.Message // nil: the connection breaks
		serves  string                                                  // the head afterwards: "", "mine" or "other"
		lost    bool
		refused bool
	}{
		"taken": {answer: func(_ *fakeSession, number uint32, _ wire.Message) []wire.Message {
			return []wire.Message{&wire.OK{Re: number}}
		}},
		"refused":                {answer: refusal, refused: true},
		"refused, though served": {answer: refusal, serves: "mine", refused: true},
		"lost, and was taken":    {serves: "mine"},
		"lost, nothing served":   {lost: true},
		"lost, another served":   {serves: "other", lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t)
			r := newFakeRelay(t)
			r.network = auth.NetworkID{} // unclaimed
			network := key.NewNetwork()
			sign := func(version uint64) *auth.Head {
				h, err := auth.SignHead(auth.Head{Version: version, Relays: []auth.Relay{r.entry()},
					Issuers: []auth.Issuer{{URL: "https://login.example.com", ClientID: "zt"}}}, network)
				if err != nil {
					t.Fatal(err)
				}
				return h
			}
			head := sign(1)
			switch c.serves {
			case "mine":
				r.head = head.Raw()
			case "other":
				r.head = sign(2).Raw()
			}
			code := claimCode(t, r.key.Public())
			r.answer = func(s *fakeSession, number uint32, m wire.Message) []wire.Message {
				claim, ok := m.(*wire.Claim)
				if !ok {
					return defaultAnswer(s, number, m)
				}
				if claim.Code != code.text || string(claim.Head) != string(head.Raw()) {
					t.Errorf("claim is %q with %d bytes of head", claim.Code, len(claim.Head))
				}
				if c.answer == nil {
					s.ws.CloseNow()
					return nil
				}
				return c.answer(s, number, m)
			}
			err := ClaimRelay(t.Context(), r.entry(), code, head, HTTPConfig{})
			lost, isLost := errors.AsType[*ClaimLostError](err)
			if isLost != c.lost || isRefused(err) != c.refused || (err == nil) == (c.lost || c.refused) {
				t.Fatalf("got %v; want lost %v, refused %v", err, c.lost, c.refused)
			}
			if isLost && (!errors.Is(err, ErrUnreachable) || !strings.Contains(lost.Hint(), head.Network.String())) {
				t.Errorf("%v, hint %q", err, lost.Hint())
			}
		})
	}
	t.Run("another relay's code", func(t *testing.T) {
		r := newFakeRelay(t)
		_, ok := errors.AsType[*ClaimKeyError](ClaimRelay(t.Context(), r.entry(), claimCode(t, key.NewRelay().Public()), nil, HTTPConfig{}))
		if !ok {
			t.Error("a claim code was sent to a relay that it does not name")
		}
	})
}

func TestClaimCode(t *testing.T) {
	k := key.NewRelay().Public()
	c := claimCode(t, k)
	if !c.Names(k) || c.Names(key.NewRelay().Public()) || (ClaimCode{}).Names(k) {
		t.Error("Names is wrong")
	}
	pasted, err := ParseClaimCode(" " + strings.ToLower(c.text) + "\n")
	if err != nil || pasted != c {
		t.Errorf("pasted code: %v", err)
	}
	if got := fmt.Sprintf("%v %+v %s %q %x", c, c, c, c, c); strings.Contains(got, c.text) {
		t.Errorf("a claim code was printed: %s", got)
	}
}

// FuzzParseClaimCode: the attacker writes the line that an administrator pastes.
func FuzzParseClaimCode(f *testing.F) {
	f.Add(claimCode(f, key.NewRelay().Public()).text)
	f.Add(strings.Repeat("A", 52))
	f.Add(strings.Repeat("7", 52))
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseClaimCode(s)
		if err == nil && c.text != strings.ToUpper(strings.TrimSpace(s)) {
			t.Errorf("%q reads as %q", s, c.text)
		}
	})
}
