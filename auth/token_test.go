package auth

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestClaimText(t *testing.T) {
	for in, want := range map[string]string{
		`"a"`: "a", `true`: "true", `false`: "false", `0`: "0", `-0`: "0", `12`: "12", `-7`: "-7",
		`12345678901234567890`: "12345678901234567890", `1e2`: "100", `1.50`: "1.5", `-2.0`: "-2", `0.1`: "0.1", `1e400`: "",
		`null`: "", `[]`: "", `["a"]`: "", `{}`: "",
	} {
		d := json.NewDecoder(strings.NewReader(in))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			t.Fatal(err)
		}
		got, ok := claimText(v)
		if got != want || ok != (want != "") {
			t.Errorf("%s: got %q, %v, want %q", in, got, ok, want)
		}
	}
}

func TestClaimTime(t *testing.T) {
	for in, want := range map[string]int64{ // milliseconds; -1 = refused
		`0`: 0, `1700000000`: 1700000000000, `1700000000.5`: 1700000000500, `1.7e9`: 1700000000000, `253402300799`: 253402300799000,
		`-1`: -1, `253402300800`: -1, `1e300`: -1, `1e999`: -1, `-0.5`: -1, `"1"`: -1, `null`: -1, `true`: -1, `[1]`: -1,
	} {
		claims, refused := parseClaims([]byte(`{"t":` + in + `}`))
		if refused != nil {
			t.Fatal(refused)
		}
		got, present, refused := claimTime(claims, "t")
		if !present || (refused != nil) != (want < 0) || refused == nil && got.UnixMilli() != want {
			t.Errorf("%s: got %s, %v, want %d", in, got, refused, want)
		}
	}
	if _, present, refused := claimTime(nil, "t"); present || refused != nil {
		t.Error("an absent time was found")
	}
}

func TestAboutDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		90*time.Second + 400*time.Millisecond: "1m30s", 13*time.Hour + 5*time.Second: "13h", 25*time.Hour + 90*time.Second: "25h2m", 0: "0s",
	} {
		if got := aboutDuration(d); got != want {
			t.Errorf("%s: got %q, want %q", d, got, want)
		}
	}
}

// FuzzParseCompact feeds the token's outside.
func FuzzParseCompact(f *testing.F) { // attacker: whoever sends a grant
	for _, h := range []string{
		`{"alg":"ES256","kid":"e1","typ":"JWT"}`, `{"alg":"none"}`, `{"alg":"ES256","alg":"none"}`, `{"alg":"ES256","crit":["b64"],"b64":false}`, `[]`,
	} {
		f.Add(signJWS(h, `{"sub":"a"}`, testEC()))
	}
	f.Add("..")
	f.Add(strings.Repeat(".", 100))
	algorithms := []string{"ES256", "RS256"}
	f.Fuzz(func(t *testing.T, raw string) {
		c, refused := parseCompact(raw, algorithms)
		if refused != nil {
			return
		}
		if strings.Count(raw, ".") != 2 || len(raw) > GrantMaxBytes || strings.ContainsAny(raw, "\r\n= ") {
			t.Errorf("accepted %q", raw)
		}
		if !slices.Contains(algorithms, c.alg) {
			t.Errorf("accepted algorithm %q", c.alg)
		}
		// The encoding is canonical: the payload has one text only.
		p := strings.Split(raw, ".")
		if again := signJWS("", string(c.payload), nil); strings.Split(again, ".")[1] != p[1] {
			t.Errorf("payload %q encodes to %q", p[1], again)
		}
	})
}

// FuzzParseClaims feeds the token's inside; encoding/json is the oracle for
// what is JSON at all.
func FuzzParseClaims(f *testing.F) { // attacker: a user of a pinned issuer who chooses some claims
	for _, s := range []string{
		`{"iss":"https://login.example.com","aud":["a","b"],"iat":1700000000,"sub":"x","groups":["g"],"email_verified":"true"}`,
		`{"a":1,"a":2}`, `{"a":{"b":[{"c":1,"c":1}]}}`, `{"iat":1e999}`, `{"\u0061":1,"a":2}`, `{"a":"\ud800"}`, `[1]`, `{} {}`,
		strings.Repeat(`{"a":`, 40) + `1` + strings.Repeat(`}`, 40),
	} {
		f.Add([]byte(s))
	}
	entry := Issuer{URL: "https://login.example.com", ClientID: "a", AuthTimeRequired: true}.WithDefaults()
	f.Fuzz(func(t *testing.T, b []byte) {
		claims, refused := parseClaims(b)
		if refused != nil {
			return
		}
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		var want map[string]any
		if err := d.Decode(&want); err != nil || !reflect.DeepEqual(claims, want) {
			t.Errorf("got %v, encoding/json reads %v, %v", claims, want, err)
		}
		// No shape of claims makes the checks panic.
		tok := &tokenClaims{claims: claims}
		tok.checkIssuer(entry)
		tok.checkPerson(entry, Commitment{})
		tok.checkWorkload(entry, Commitment{})
		tok.readIssuedAt()
		tok.checkTimes(entry, time.Unix(1700000000, 0))
		tok.checkLogin(entry)
		tok.checkExpiry(time.Unix(1700000000, 0), time.Unix(1700000000, 0))
		if id, refused := tok.identify(entry); refused == nil && (id.Subject == "" || id.UID == "") {
			t.Error("an identity without a subject")
		}
	})
}
