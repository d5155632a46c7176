package auth

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// clockSkew is how far two honest clocks may differ.
	clockSkew = 60 * time.Second

	maxClaimDepth   = 32   // of nested objects and arrays in a token
	maxSubjectBytes = 1024 // OIDC Core §2 says 255; workload issuers write more
	maxUnixSeconds  = 253402300799

	replacementRune = "\uFFFD" // what JSON decoding makes of a lone surrogate
)

// compactToken is a JWS in compact serialization (RFC 7515 §7.1) whose header
// was read strictly and whose signature was not looked at.
type compactToken struct {
	raw     string
	alg     string
	kid     string // "" = the header names none
	payload []byte
}

// refusedHeaders name a key, an encoding or an extension of the sender's own
// choice (RFC 7515 §4.1, RFC 7797, RFC 7516). None serves an ID token.
var refusedHeaders = []string{"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc", "epk"}

// idTokenTypes are values of typ that an ID token may carry, in lower case.
// RFC 9068's at+jwt, logout+jwt and their like are other things (RFC 8725 §3.11).
var idTokenTypes = []string{"jwt", "application/jwt", "dpop+id_token"}

// parseCompact reads a JWS of exactly three segments: sizes first, then the
// alphabet, then the header. The algorithm must be one of algorithms.
func parseCompact(raw string, algorithms []string) (compactToken, *RefusedError) {
	var t compactToken
	if len(raw) > GrantMaxBytes {
		return t, refuse(ReasonTooLarge, "ID token of %d bytes, want at most %d", len(raw), GrantMaxBytes)
	}
	if n := strings.Count(raw, "."); n != 2 {
		return t, refuse(ReasonMalformed, "ID token has %d segments, want 3", n+1)
	}
	segments := strings.SplitN(raw, ".", 3)
	var decoded [3][]byte
	for i, s := range segments {
		if s == "" || strings.ContainsAny(s, "\r\n") { // the decoder would skip line ends
			return t, refuse(ReasonMalformed, "ID token's segment %d is not base64url", i+1)
		}
		b, err := base64.RawURLEncoding.Strict().DecodeString(s)
		if err != nil {
			return t, refuse(ReasonMalformed, "ID token's segment %d is not base64url", i+1)
		}
		decoded[i] = b
	}
	header, err := claimObject(decoded[0])
	if err != nil {
		return t, refuse(ReasonMalformed, "ID token's header: %v", err)
	}
	for _, name := range refusedHeaders {
		if _, ok := header[name]; ok {
			return t, refuse(ReasonHeader, "parameter %q", name)
		}
	}
	alg, ok := header["alg"].(string)
	if !ok {
		return t, refuse(ReasonHeader, "no algorithm")
	}
	if _, known := signatureKinds[alg]; !known || !slices.Contains(algorithms, alg) {
		return t, refuse(ReasonAlgorithm, "%q, want one of %q", alg, algorithms)
	}
	if v, ok := header["kid"]; ok {
		if t.kid, ok = v.(string); !ok || t.kid == "" {
			return t, refuse(ReasonHeader, "kid is not a text")
		}
	}
	if v, ok := header["typ"]; ok {
		if typ, ok := v.(string); !ok || !slices.Contains(idTokenTypes, strings.ToLower(typ)) {
			return t, refuse(ReasonHeader, "typ %v is not an ID token's", v)
		}
	}
	t.raw, t.alg, t.payload = raw, alg, decoded[1]
	return t, nil
}

// tokenClaims is an ID token whose signature was verified.
type tokenClaims struct {
	claims map[string]any // numbers are json.Number
	hash   [sha256.Size]byte
	key    keyThumbprint // of the issuer's key that signed
	iat    time.Time
}

// parseClaims reads the payload of a verified token strictly.
func parseClaims(payload []byte) (map[string]any, *RefusedError) {
	claims, err := claimObject(payload)
	if err != nil {
		return nil, refuse(ReasonClaims, "%v", err)
	}
	return claims, nil
}

// claimObject decodes one JSON object and nothing after it. Unlike
// encoding/json it refuses a name that stands twice in one object, at any
// depth, invalid UTF-8, and nesting deeper than maxClaimDepth: what two readers
// could read differently. Numbers stay json.Number.
func claimObject(b []byte) (map[string]any, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("not UTF-8")
	}
	if !json.Valid(b) {
		return nil, errors.New("not JSON")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := claimValue(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("more than one JSON value")
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("not a JSON object")
	}
	return object, nil
}

func claimValue(d *json.Decoder, depth int) (any, error) {
	if depth > maxClaimDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxClaimDepth)
	}
	tok, err := d.Token()
	if err != nil {
		return nil, errors.New("not JSON")
	}
	switch tok {
	case json.Delim('{'):
		object := map[string]any{}
		for d.More() {
			nameTok, err := d.Token()
			if err != nil {
				return nil, errors.New("not JSON")
			}
			name, ok := nameTok.(string)
			if !ok {
				return nil, errors.New("not JSON")
			}
			if _, twice := object[name]; twice {
				return nil, fmt.Errorf("%q stands there twice", name)
			}
			if object[name], err = claimValue(d, depth+1); err != nil {
				return nil, err
			}
		}
		_, err := d.Token() // the closing brace
		return object, err
	case json.Delim('['):
		array := []any{}
		for d.More() {
			v, err := claimValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			array = append(array, v)
		}
		_, err := d.Token()
		return array, err
	}
	return tok, nil
}

// claimText is the text form of a claim that is a single value: a text itself,
// a number or a bool in canonical JSON. ok is false for anything else.
func claimText(v any) (text string, ok bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		s := v.String()
		if !strings.ContainsAny(s, ".eE") {
			if s == "-0" {
				return "0", true
			}
			return s, true // JSON forbids leading zeros: already canonical
		}
		f, err := v.Float64()
		if err != nil {
			return "", false
		}
		b, err := json.Marshal(f)
		return string(b), err == nil
	}
	return "", false
}

// claimTrue reports a bool that is true, or the text that some issuers write
// in its place.
func claimTrue(v any) bool { return v == true || v == "true" }

// claimTime reads a NumericDate (RFC 7519 §2), which may have a fraction.
// present is false when the claim is absent.
func claimTime(claims map[string]any, name string) (t time.Time, present bool, refused *RefusedError) {
	v, ok := claims[name]
	if !ok {
		return t, false, nil
	}
	n, ok := v.(json.Number)
	if !ok {
		return t, true, refuse(ReasonClaims, "%s is not a number", name)
	}
	if sec, err := n.Int64(); err == nil {
		if sec < 0 || sec > maxUnixSeconds {
			return t, true, refuse(ReasonClaims, "%s is out of range", name)
		}
		return time.Unix(sec, 0).UTC(), true, nil
	}
	f, err := n.Float64()
	if err != nil || !(f >= 0 && f <= maxUnixSeconds) {
		return t, true, refuse(ReasonClaims, "%s is out of range", name)
	}
	return time.UnixMilli(int64(f * 1000)).UTC(), true, nil
}

// claimList reads a text or an array of texts: aud (RFC 7519 §4.1.3) and groups.
func claimList(v any) (list []string, ok bool) {
	switch v := v.(type) {
	case string:
		return []string{v}, true
	case []any:
		list = make([]string, 0, len(v))
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			list = append(list, s)
		}
		return list, true
	}
	return nil, false
}

// checkIssuer: the token's own iss must be the entry's URL, byte for byte.
func (t *tokenClaims) checkIssuer(entry Issuer) *RefusedError {
	iss, ok := t.claims["iss"].(string)
	if !ok {
		return refuse(ReasonClaims, "no iss")
	}
	if iss != entry.URL {
		return refuse(ReasonIssuer, "iss %q, want %q", iss, entry.URL)
	}
	return nil
}

// checkPersonAudience holds every audience against the entry, and azp.
func (t *tokenClaims) checkPersonAudience(entry Issuer) *RefusedError {
	v, ok := t.claims["aud"]
	if !ok {
		return refuse(ReasonAudience, "no aud")
	}
	audiences, ok := claimList(v)
	if !ok {
		return refuse(ReasonClaims, "aud is neither a text nor a list of texts")
	}
	for _, a := range audiences {
		if a != entry.ClientID && !slices.Contains(entry.Audiences, a) {
			return refuse(ReasonAudience, "%q is not accepted", a)
		}
	}
	if !slices.Contains(audiences, entry.ClientID) {
		return refuse(ReasonAudience, "%q, want %q among them", audiences, entry.ClientID)
	}
	if v, ok := t.claims["azp"]; ok {
		azp, ok := v.(string)
		if !ok {
			return refuse(ReasonClaims, "azp is not a text")
		}
		if azp != entry.ClientID {
			return refuse(ReasonAudience, "azp %q, want %q", azp, entry.ClientID)
		}
	}
	return nil
}

// checkRequired holds the claims that the entry requires, in their text form.
func (t *tokenClaims) checkRequired(entry Issuer) *RefusedError {
	for name, want := range entry.Require {
		v, ok := t.claims[name]
		if !ok {
			return refuse(ReasonRequire, "no claim %q, want %q", name, want)
		}
		if got, ok := claimText(v); !ok || got != want {
			return refuse(ReasonRequire, "claim %q is %v, want %q", name, v, want)
		}
	}
	return nil
}

// readIssuedAt sets iat.
func (t *tokenClaims) readIssuedAt() *RefusedError {
	iat, present, refused := claimTime(t.claims, "iat")
	if refused != nil {
		return refused
	}
	if !present {
		return refuse(ReasonClaims, "no iat")
	}
	t.iat = iat
	return nil
}

// checkTimes holds iat and nbf against now, iat against grantAge, and for a
// person auth_time against loginAge. It returns when the grant ends.
func (t *tokenClaims) checkTimes(entry Issuer, now time.Time) (ends time.Time, refused *RefusedError) {
	if ahead := t.iat.Sub(now); ahead > clockSkew {
		return ends, refuse(ReasonClock, "ID token issued %s in the future", aboutDuration(ahead))
	}
	nbf, present, refused := claimTime(t.claims, "nbf")
	if refused != nil {
		return ends, refused
	}
	if present && nbf.Sub(now) > clockSkew {
		return ends, refuse(ReasonClock, "ID token valid in %s only", aboutDuration(nbf.Sub(now)))
	}
	ends = t.iat.Add(entry.GrantAge.Std())
	if now.After(ends) {
		return ends, refuse(ReasonExpired, "ID token issued %s ago, grants of this issuer live %s",
			aboutDuration(now.Sub(t.iat)), entry.GrantAge)
	}
	return ends, nil
}

// checkLogin holds auth_time: how old the login was when the ID token was
// issued. The bound is max_age's (OIDC Core §3.1.2.1), not the grant's: the
// grant's end follows from iat.
func (t *tokenClaims) checkLogin(entry Issuer) (authTime time.Time, refused *RefusedError) {
	authTime, present, refused := claimTime(t.claims, "auth_time")
	switch {
	case refused != nil:
		return authTime, refused
	case !present && entry.AuthTimeRequired:
		return authTime, refuse(ReasonNoAuthTime, "")
	case !present:
		return authTime, nil
	case authTime.Sub(t.iat) > clockSkew:
		return authTime, refuse(ReasonClock, "auth_time lies %s after iat", aboutDuration(authTime.Sub(t.iat)))
	case entry.LoginAge > 0 && t.iat.Sub(authTime) > entry.LoginAge.Std()+clockSkew:
		return authTime, refuse(ReasonLoginTooOld, "%s when the ID token was issued, want at most %s",
			aboutDuration(t.iat.Sub(authTime)), entry.LoginAge)
	}
	return authTime, nil
}

// aboutDuration is d for people: to the second below an hour, else the minute.
func aboutDuration(d time.Duration) string {
	unit := time.Minute
	if d < time.Hour {
		unit = time.Second
	}
	return Duration(d.Round(unit)).String()
}
