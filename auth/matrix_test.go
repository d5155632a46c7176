package auth

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

// setClaim, dropClaim and others make the rows of the tables short.
func setClaim(name string, v any) func(*draft) { return func(d *draft) { d.claims[name] = v } }
func dropClaim(name string) func(*draft)       { return func(d *draft) { delete(d.claims, name) } }
func rawClaim(name, json string) func(*draft) {
	return func(d *draft) {
		delete(d.claims, name)
		d.payloadRaw = func(s string) string { return fmt.Sprintf(`{%q:%s,`, name, json) + s[1:] }
	}
}
func header(name string, v any) func(*draft) { return func(d *draft) { d.header[name] = v } }
func claimAt(name string, offset time.Duration) func(*draft) {
	return func(d *draft) { d.claims[name] = d.now.Add(offset).Unix() }
}

type verifyCase struct {
	name   string
	change func(*draft)
	want   Reason // "" = accepted
}

var refusedGrants = []verifyCase{
	// The bytes.
	{"empty grant", func(d *draft) { d.grant = func([]byte) []byte { return nil } }, ReasonMalformed},
	{"version 2", func(d *draft) { d.grant = func(b []byte) []byte { b[0] = 2; return b } }, ReasonMalformed},
	{"one byte more", func(d *draft) { d.grant = func(b []byte) []byte { return append(b, 0) } }, ReasonMalformed},
	{"one byte less", func(d *draft) { d.grant = func(b []byte) []byte { return b[:len(b)-1] } }, ReasonMalformed},
	{"over 16 KiB", func(d *draft) { d.grant = func(b []byte) []byte { return append(b, make([]byte, GrantMaxBytes)...) } }, ReasonTooLarge},
	{"over 16 KiB of ID token", setClaim("big", strings.Repeat("x", GrantMaxBytes)), ReasonTooLarge},
	{"length past the end", func(d *draft) { d.grant = func(b []byte) []byte { b[1], b[2] = 0xff, 0xff; return b } }, ReasonMalformed},
	{"commitment of another length", func(d *draft) { d.cic = func(b []byte) []byte { return b[:len(b)-1] } }, ReasonMalformed},
	{"commitment of another kind of key", func(d *draft) {
		d.cic = func(b []byte) []byte { b[len(grantDomain)+22] = 2; return b }
	}, ReasonMalformed},
	{"commitment to no point of the curve", func(d *draft) { d.cic = func(b []byte) []byte { b[len(b)-40] ^= 1; return b } }, ReasonMalformed},
	{"commitment under another name", func(d *draft) { d.cic = func(b []byte) []byte { b[0] = 'Z'; return b } }, ReasonMalformed},
	{"statement version 2", func(d *draft) {
		d.grant = func(b []byte) []byte { b[len(b)-SignedStatementSize] = 2; return b }
	}, ReasonMalformed},
	{"time past year 9999", func(d *draft) {
		d.grant = func(b []byte) []byte { b[len(b)-key.SignatureSize-8] = 0x80; return b }
	}, ReasonMalformed},
	{"zero WireGuard key", func(d *draft) { d.statement.Key = key.WireGuardPublic{} }, ReasonMalformed},

	// The JWS.
	{"two segments", func(d *draft) { d.token = func(s string) string { return s[:strings.LastIndex(s, ".")] } }, ReasonMalformed},
	{"four segments", func(d *draft) { d.token = func(s string) string { return s + ".e30" } }, ReasonMalformed},
	{"five segments, a JWE", func(d *draft) { d.token = func(s string) string { return s + ".e30.e30" } }, ReasonMalformed},
	{"no token", func(d *draft) { d.token = func(string) string { return "" } }, ReasonMalformed},
	{"only dots", func(d *draft) { d.token = func(string) string { return strings.Repeat(".", 8000) } }, ReasonMalformed},
	{"three empty segments", func(d *draft) { d.token = func(string) string { return ".." } }, ReasonMalformed},
	{"JSON serialization with two signatures", func(d *draft) {
		d.token = func(s string) string {
			p := strings.Split(s, ".")
			one := fmt.Sprintf(`{"protected":%q,"signature":%q}`, p[0], p[2])
			return fmt.Sprintf(`{"payload":%q,"signatures":[%s,%s]}`, p[1], one, one)
		}
	}, ReasonMalformed},
	{"JSON serialization with dots", func(d *draft) {
		d.token = func(s string) string {
			p := strings.Split(s, ".")
			return fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q,"x":".."}`, p[1], p[0], p[2])
		}
	}, ReasonMalformed},
	{"padding", func(d *draft) { d.token = func(s string) string { return s + "==" } }, ReasonMalformed},
	{"standard alphabet", func(d *draft) { d.token = func(s string) string { return s[:len(s)-2] + "+/" } }, ReasonMalformed},
	{"line end inside", func(d *draft) { d.token = func(s string) string { return s[:20] + "\n" + s[20:] } }, ReasonMalformed},
	{"space before", func(d *draft) { d.token = func(s string) string { return " " + s } }, ReasonMalformed},
	{"spare bits set", func(d *draft) {
		d.token = func(s string) string { // 64 bytes end in a character with 4 spare bits
			const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
			return s[:len(s)-1] + string(alphabet[strings.IndexByte(alphabet, s[len(s)-1])|1])
		}
	}, ReasonMalformed},
	{"header is no object", func(d *draft) { d.headerRaw = `["ES256"]` }, ReasonMalformed},
	{"header is no JSON", func(d *draft) { d.headerRaw = `{alg:ES256}` }, ReasonMalformed},
	{"alg twice", func(d *draft) { d.headerRaw = `{"alg":"ES256","alg":"none","kid":"e1"}` }, ReasonMalformed},
	{"alg twice, once escaped", func(d *draft) { d.headerRaw = `{"alg":"ES256","\u0061lg":"none","kid":"e1"}` }, ReasonMalformed},
	{"no alg", func(d *draft) { delete(d.header, "alg") }, ReasonHeader},
	{"Alg in place of alg", func(d *draft) { delete(d.header, "alg"); d.header["Alg"] = "ES256" }, ReasonHeader},
	{"alg is a list", header("alg", []string{"ES256"}), ReasonHeader},
	{"alg none", func(d *draft) { d.header["alg"] = "none"; d.signWith = nil }, ReasonMalformed}, // an empty segment
	{"alg none with a signature", header("alg", "none"), ReasonAlgorithm},
	{"alg NONE", header("alg", "NONE"), ReasonAlgorithm},
	{"alg es256", header("alg", "es256"), ReasonAlgorithm},
	{"HS256 with the public key", func(d *draft) {
		d.header["alg"], d.header["kid"] = "HS256", "r1"
		d.signWith = []byte(mustKey(json.Marshal(jwkOf(testRSA(), "r1", "", "sig"))))
	}, ReasonAlgorithm},
	{"alg not listed for the issuer", func(d *draft) { d.entry.Algorithms = []string{"RS256"} }, ReasonAlgorithm},
	{"PS256 not listed", func(d *draft) { d.header["alg"], d.header["kid"], d.signWith = "PS256", "r1", testRSA() }, ReasonAlgorithm},
	{"alg of another key", func(d *draft) { d.header["alg"] = "RS256"; d.signWith = testRSA() }, ReasonAlgorithm},
	{"jwk", header("jwk", jwkOf(testEC(), "e1", "", "")), ReasonHeader},
	{"jku", header("jku", "https://evil.example.com/keys"), ReasonHeader},
	{"x5u", header("x5u", "https://evil.example.com/cert"), ReasonHeader},
	{"x5c", header("x5c", []string{"AA"}), ReasonHeader},
	{"crit", header("crit", []string{"exp"}), ReasonHeader},
	{"empty crit", header("crit", []string{}), ReasonHeader},
	{"b64", header("b64", false), ReasonHeader},
	{"zip", header("zip", "DEF"), ReasonHeader},
	{"kid is a number", header("kid", 1), ReasonHeader},
	{"kid is empty", header("kid", ""), ReasonHeader},
	{"an access token's typ", header("typ", "at+jwt"), ReasonHeader},
	{"a logout token's typ", header("typ", "logout+jwt"), ReasonHeader},
	{"typ is a list", header("typ", []string{"JWT"}), ReasonHeader},
	{"another issuer's kid", header("kid", "foreign"), ReasonUnknownKey},
	{"another key under our kid", func(d *draft) { d.header["alg"], d.header["kid"], d.signWith = "RS256", "r1", testRSA2() }, ReasonSignature},
	{"changed payload", func(d *draft) {
		d.token = func(s string) string {
			p := strings.Split(s, ".")
			b := mustKey(base64.RawURLEncoding.DecodeString(p[1]))
			b = bytes.Replace(b, []byte(`"alice"`), []byte(`"mally"`), 1)
			return p[0] + "." + base64.RawURLEncoding.EncodeToString(b) + "." + p[2]
		}
	}, ReasonSignature},
	{"changed header", func(d *draft) {
		d.token = func(s string) string {
			_, rest, _ := strings.Cut(s, ".")
			return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","kid":"e1"}`)) + "." + rest
		}
	}, ReasonSignature},
	{"signature of zeros", func(d *draft) {
		d.token = func(s string) string { return s[:strings.LastIndex(s, ".")+1] + strings.Repeat("A", 86) }
	}, ReasonSignature},
	{"short signature", func(d *draft) {
		d.token = func(s string) string { return s[:strings.LastIndex(s, ".")+1] + "AAAA" }
	}, ReasonSignature},

	// The payload.
	{"payload is no object", func(d *draft) { d.payloadRaw = func(string) string { return `"x"` } }, ReasonClaims},
	{"payload is no JSON", func(d *draft) { d.payloadRaw = func(string) string { return `{` } }, ReasonClaims},
	{"payload with a tail", func(d *draft) { d.payloadRaw = func(s string) string { return s + "{}" } }, ReasonClaims},
	{"sub twice", func(d *draft) { d.payloadRaw = func(s string) string { return `{"sub":"root",` + s[1:] } }, ReasonClaims},
	{"nonce twice, once escaped", func(d *draft) {
		d.payloadRaw = func(s string) string { return `{"\u006eonce":"x",` + s[1:] }
	}, ReasonClaims},
	{"a name twice, deep inside", rawClaim("x", `{"y":[{"z":1,"z":2}]}`), ReasonClaims},
	{"nested too deep", rawClaim("x", strings.Repeat("[", 40)+strings.Repeat("]", 40)), ReasonClaims},
	{"not UTF-8", rawClaim("x", "\"\xff\""), ReasonClaims},

	// Whom it is for, and from whom.
	{"issuer that nobody listed", func(d *draft) { d.issuerText = "https://evil.example.com" }, ReasonUnknownIssuer},
	{"issuer field in another case", func(d *draft) { d.issuerText = strings.ToUpper(d.issuerText) }, ReasonUnknownIssuer},
	{"issuer field is empty", func(d *draft) { d.issuerText = "" }, ReasonUnknownIssuer},
	{"iss with a slash more", func(d *draft) { d.claims["iss"] = d.issuer.URL + "/" }, ReasonIssuer},
	{"iss in another case", func(d *draft) { d.claims["iss"] = strings.ToUpper(d.issuer.URL) }, ReasonIssuer},
	{"iss of another issuer", setClaim("iss", "https://login.example.com"), ReasonIssuer},
	{"no iss", dropClaim("iss"), ReasonClaims},
	{"iss is a list", func(d *draft) { d.claims["iss"] = []string{d.issuer.URL} }, ReasonClaims},
	{"no aud", dropClaim("aud"), ReasonAudience},
	{"aud of another client", setClaim("aud", "kubernetes"), ReasonAudience},
	{"aud list with a foreign one", setClaim("aud", []string{"zt", "kubernetes"}), ReasonAudience},
	{"aud list without the client", setClaim("aud", []string{"zt-also"}), ReasonAudience},
	{"aud is an empty list", setClaim("aud", []string{}), ReasonAudience},
	{"aud is empty", setClaim("aud", ""), ReasonAudience},
	{"aud in another case", setClaim("aud", "ZT"), ReasonAudience},
	{"aud is a number", setClaim("aud", 1), ReasonClaims},
	{"aud is null", setClaim("aud", nil), ReasonClaims},
	{"aud list with a number", setClaim("aud", []any{"zt", 1}), ReasonClaims},
	{"aud is an object", setClaim("aud", map[string]any{"zt": true}), ReasonClaims},
	{"a workload's audience", func(d *draft) { d.claims["aud"] = d.commitment.WorkloadAudience() }, ReasonAudience},
	{"azp of another client", setClaim("azp", "kubernetes"), ReasonAudience},
	{"azp of an audience that is no client", func(d *draft) {
		d.claims["aud"], d.claims["azp"] = []string{"zt", "zt-also"}, "zt-also"
	}, ReasonAudience},
	{"azp is empty", setClaim("azp", ""), ReasonAudience},
	{"azp is null", setClaim("azp", nil), ReasonClaims},
	{"required claim missing", dropClaim("tid"), ReasonRequire},
	{"required claim of another value", setClaim("tid", "t2"), ReasonRequire},
	{"required claim is a list", setClaim("tid", []string{"t1"}), ReasonRequire},
	{"required claim is null", setClaim("tid", nil), ReasonRequire},
	{"required number of another value", func(d *draft) { d.entry.Require = map[string]string{"n": "12"}; d.claims["n"] = 123 }, ReasonRequire},
	{"required bool of another value", func(d *draft) { d.entry.Require = map[string]string{"b": "true"}; d.claims["b"] = false }, ReasonRequire},
	{"no nonce (device flow)", dropClaim("nonce"), ReasonNoNonce},
	{"nonce is a list", func(d *draft) { d.claims["nonce"] = []string{d.commitment.Nonce()} }, ReasonClaims},
	{"nonce is null", setClaim("nonce", nil), ReasonClaims},
	{"nonce is empty", setClaim("nonce", ""), ReasonNonce},
	{"nonce with padding", func(d *draft) { d.claims["nonce"] = d.commitment.Nonce() + "=" }, ReasonNonce},
	{"nonce of another login", func(d *draft) { d.claims["nonce"] = NewCommitment(d.net, d.login.Public()).Nonce() }, ReasonNonce},
	{"commitment with other random bytes", func(d *draft) { d.commitment.Rand[0] ^= 1 }, ReasonNonce},
	{"commitment to the thief's key", func(d *draft) {
		d.stmtKey = key.NewLogin()
		d.commitment.Key = d.stmtKey.Public()
	}, ReasonNonce},
	{"another network", func(d *draft) {
		d.commitment = NewCommitment(IDOf(key.NewNetwork().Public()), d.login.Public())
		d.claims["nonce"] = d.commitment.Nonce()
	}, ReasonNetwork},

	// Time.
	{"no iat", dropClaim("iat"), ReasonClaims},
	{"iat is a text", setClaim("iat", "1700000000"), ReasonClaims},
	{"iat is null", setClaim("iat", nil), ReasonClaims},
	{"iat is negative", setClaim("iat", -1), ReasonClaims},
	{"iat overflows int64", rawClaim("iat", "99999999999999999999"), ReasonClaims},
	{"iat overflows float64", rawClaim("iat", "1e999"), ReasonClaims},
	{"iat past year 9999", rawClaim("iat", "1e15"), ReasonClaims},
	{"iat in milliseconds", func(d *draft) { d.claims["iat"] = d.now.UnixMilli() }, ReasonClaims},
	{"iat two minutes ahead", claimAt("iat", 2*time.Minute), ReasonClock},
	{"iat 61 s ahead", claimAt("iat", 61*time.Second), ReasonClock},
	{"nbf ahead", claimAt("nbf", 5*time.Minute), ReasonClock},
	{"nbf is a text", setClaim("nbf", "now"), ReasonClaims},
	{"grantAge over", claimAt("iat", -12*time.Hour-time.Second), ReasonExpired},
	{"a short grantAge over", func(d *draft) { d.entry.GrantAge = Duration(30 * time.Second) }, ReasonExpired},
	{"iat 1970", setClaim("iat", 0), ReasonExpired},
	{"auth_time missing", func(d *draft) { d.entry.AuthTimeRequired = true; delete(d.claims, "auth_time") }, ReasonNoAuthTime},
	{"auth_time is a text", setClaim("auth_time", "x"), ReasonClaims},
	{"auth_time is null", setClaim("auth_time", nil), ReasonClaims},
	{"login too old", func(d *draft) { d.entry.LoginAge = Duration(time.Hour); claimAt("auth_time", -3*time.Hour)(d) }, ReasonLoginTooOld},
	{"auth_time after iat", claimAt("auth_time", time.Hour), ReasonClock},

	// Who.
	{"no sub", dropClaim("sub"), ReasonClaims},
	{"sub is empty", setClaim("sub", ""), ReasonClaims},
	{"sub is a number", setClaim("sub", 7), ReasonClaims},
	{"sub is too long", setClaim("sub", strings.Repeat("s", maxSubjectBytes+1)), ReasonClaims},
	{"sub with a lone surrogate", rawClaim("sub", `"a\ud800"`), ReasonClaims},
	{"uid claim missing", func(d *draft) { d.entry.SubjectClaim = "oid" }, ReasonClaims},
	{"uid claim is a list", func(d *draft) { d.entry.SubjectClaim = "groups" }, ReasonClaims},
	{"groups is an object", setClaim("groups", map[string]any{"a": 1}), ReasonClaims},
	{"groups is a number", setClaim("groups", 7), ReasonClaims},
	{"groups with a number", setClaim("groups", []any{"a", 1}), ReasonClaims},
	{"group overage, hasgroups", func(d *draft) { delete(d.claims, "groups"); d.claims["hasgroups"] = true }, ReasonGroupOverage},
	{"group overage, hasgroups as text", func(d *draft) { delete(d.claims, "groups"); d.claims["hasgroups"] = "true" }, ReasonGroupOverage},
	{"group overage, _claim_names", func(d *draft) {
		delete(d.claims, "groups")
		d.claims["_claim_names"] = map[string]any{"groups": "src1"}
	}, ReasonGroupOverage},
	{"group overage under another claim", func(d *draft) {
		d.entry.GroupsClaim = "https://example.com/roles"
		d.claims["_claim_names"] = map[string]any{"https://example.com/roles": "src1"}
	}, ReasonGroupOverage},
	{"_claim_names is a text", setClaim("_claim_names", "groups"), ReasonClaims},

	// The statement.
	{"statement of another login key", func(d *draft) { d.stmtKey = key.NewLogin() }, ReasonStatementSignature},
	{"statement for another ID token", func(d *draft) { d.stmtToken = "x.y.z" }, ReasonStatementSignature},
	{"statement changed", func(d *draft) { d.signature = func(s *SignedStatement) { s.Expires = s.Expires.Add(-time.Second) } }, ReasonStatementSignature},
	{"flags changed", func(d *draft) { d.signature = func(s *SignedStatement) { s.Flags ^= 2 } }, ReasonStatementSignature},
	{"end flag removed", func(d *draft) {
		d.statement.End = true
		d.signature = func(s *SignedStatement) { s.End = false }
	}, ReasonStatementSignature},
	{"signature of zeros on the statement", func(d *draft) { d.signature = func(s *SignedStatement) { clear(s.Signature[:]) } }, ReasonStatementSignature},
	{"the thief's WireGuard key", func(d *draft) { d.channel = key.NewWireGuard().Public() }, ReasonChannelKey},
	{"no channel key", func(d *draft) { d.channel = key.WireGuardPublic{} }, ReasonChannelKey},
	{"statement of two hours", func(d *draft) { d.statement.Expires = d.now.Add(2 * time.Hour) }, ReasonStatementLifetime},
	{"statement of an hour and 1 ms", func(d *draft) { d.statement.Expires = d.now.Add(time.Hour + time.Millisecond) }, ReasonStatementLifetime},
	{"statement that ends before it begins", func(d *draft) { d.statement.Expires = d.now.Add(-time.Second) }, ReasonStatementLifetime},
	{"statement without a life", func(d *draft) { d.statement.Expires = d.statement.Issued }, ReasonStatementLifetime},
	{"statement over", func(d *draft) {
		d.statement.Issued, d.statement.Expires = d.now.Add(-time.Hour), d.now
	}, ReasonStatementExpired},
	{"statement of the future", func(d *draft) {
		d.statement.Issued, d.statement.Expires = d.now.Add(61*time.Second), d.now.Add(time.Hour)
	}, ReasonClock},
	{"logged out", func(d *draft) { d.statement.End = true }, ReasonEnded},
	{"no encapsulation key", func(d *draft) {
		for i := range d.statement.Encapsulation {
			d.statement.Encapsulation[i] = 0xff
		}
	}, ReasonEncapsulation},

	// Kinds of proof.
	{"a workload's proof for a person", func(d *draft) { d.asWorkload(); d.workload = false }, ReasonAudience},
	{"a person's proof for a workload", func(d *draft) { d.workload = true }, ReasonKind},
	{"workload for another login key", func(d *draft) {
		d.asWorkload()
		d.claims["aud"] = NewCommitment(d.net, key.NewLogin().Public()).WorkloadAudience()
	}, ReasonAudience},
	{"workload with a second audience", func(d *draft) {
		d.asWorkload()
		d.claims["aud"] = []string{d.commitment.WorkloadAudience(), "zt"}
	}, ReasonAudience},
	{"workload with the client's audience", func(d *draft) { d.asWorkload(); d.claims["aud"] = "zt" }, ReasonAudience},
	{"workload without aud", func(d *draft) { d.asWorkload(); delete(d.claims, "aud") }, ReasonAudience},
	{"workload's aud is a number", func(d *draft) { d.asWorkload(); d.claims["aud"] = 1 }, ReasonClaims},
	{"workload past exp", func(d *draft) { d.asWorkload(); claimAt("exp", 0)(d) }, ReasonExpired},
	{"workload without exp", func(d *draft) { d.asWorkload(); delete(d.claims, "exp") }, ReasonClaims},
	{"workload's exp is a text", func(d *draft) { d.asWorkload(); d.claims["exp"] = "x" }, ReasonClaims},
	{"workload past grantAge", func(d *draft) { d.asWorkload(); claimAt("iat", -13*time.Hour)(d) }, ReasonExpired},
	{"workload without a required claim", func(d *draft) { d.asWorkload(); delete(d.claims, "tid") }, ReasonRequire},
	{"workload of another network", func(d *draft) {
		d.commitment.Network = IDOf(key.NewNetwork().Public())
		d.asWorkload()
	}, ReasonNetwork},
}

var acceptedGrants = []verifyCase{
	{"as it is", func(*draft) {}, ""},
	{"RS256", func(d *draft) { d.header["alg"], d.header["kid"], d.signWith = "RS256", "r1", testRSA() }, ""},
	{"no kid, no typ", func(d *draft) { delete(d.header, "kid"); delete(d.header, "typ") }, ""},
	{"a header that means nothing", header("x5t", "abc"), ""},
	{"aud list", setClaim("aud", []string{"zt"}), ""},
	{"aud list with an accepted one", setClaim("aud", []string{"zt-also", "zt"}), ""},
	{"azp is the client", setClaim("azp", "zt"), ""},
	{"exp long past: it does not end a person's grant", claimAt("exp", -time.Hour), ""},
	{"no exp", dropClaim("exp"), ""},
	{"no auth_time where it is not required", dropClaim("auth_time"), ""},
	{"iat with a fraction", rawClaim("iat", fmt.Sprintf("%d.25", time.Now().Unix()-60)), ""},
	{"iat 59 s ahead", claimAt("iat", 59*time.Second), ""},
	{"a minute before the grant's end", func(d *draft) {
		claimAt("iat", -12*time.Hour+time.Minute)(d)
		claimAt("auth_time", -12*time.Hour)(d)
	}, ""},
	{"auth_time long ago within loginAge", claimAt("auth_time", -11*time.Hour), ""},
	{"statement 59 s ahead", func(d *draft) {
		d.statement.Issued, d.statement.Expires = d.now.Add(59*time.Second), d.now.Add(time.Hour)
	}, ""},
	{"unknown flags", func(d *draft) { d.statement.Flags = 0x80000000 }, ""},
	{"required number", func(d *draft) {
		d.entry.Require = map[string]string{"n": "9007199254740993"}
		rawClaim("n", "9007199254740993")(d)
	}, ""},
	{"required number in another form", func(d *draft) { d.entry.Require = map[string]string{"n": "100"}; rawClaim("n", "1.0e2")(d) }, ""},
	{"required bool", func(d *draft) { d.entry.Require = map[string]string{"b": "true"}; d.claims["b"] = true }, ""},
	{"groups is one text", setClaim("groups", "developers"), ""},
	{"no groups", dropClaim("groups"), ""},
	{"hasgroups false", setClaim("hasgroups", false), ""},
	{"overage of another claim", func(d *draft) {
		d.entry.GroupsClaim = "roles"
		d.claims["hasgroups"], d.claims["_claim_names"] = true, map[string]any{"groups": "src1"}
	}, ""},
	{"workload", (*draft).asWorkload, ""},
}

func TestVerifyMatrix(t *testing.T) {
	if n := len(refusedGrants); n < 60 {
		t.Fatalf("only %d refusals are tried", n)
	}
	s := newScene(t)
	seen := map[string]bool{}
	for _, c := range append(append([]verifyCase{}, acceptedGrants...), refusedGrants...) {
		if seen[c.name] {
			t.Errorf("two cases are called %q", c.name)
		}
		seen[c.name] = true
		t.Run(c.name, func(t *testing.T) {
			d := s.draft()
			c.change(d)
			id, err := d.verify(t)
			if c.want == "" {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				if id.Subject != "alice" || id.WireGuardKey != d.channel || id.LoginKey != d.login.Public() {
					t.Errorf("got identity %+v", id)
				}
				return
			}
			wantReason(t, err, c.want)
			if id != nil {
				t.Error("a refused grant gave an identity")
			}
			if token := d.idToken(); len(token) > 40 && strings.Contains(err.Error(), token[len(token)-40:]) {
				t.Errorf("the message holds the ID token: %s", err)
			}
		})
	}
	if n := s.server.fetches.Load(); n != 1 {
		t.Errorf("%d fetches for all cases within one minute, want 1", n)
	}
}
