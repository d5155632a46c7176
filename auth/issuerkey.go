package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

const (
	maxIssuerKeys = 256
	minRSABits    = 2048 // RFC 7518 §3.3
	maxRSABits    = 8192 // a larger one is only slow
)

// keyThumbprint is RFC 7638's, with SHA-256.
type keyThumbprint [32]byte

// issuerKey is one public key of an issuer.
type issuerKey struct {
	kid    string // "" = the issuer gave none
	alg    string // "" = any that fits the key
	public crypto.PublicKey
	thumb  keyThumbprint
}

type issuerKeys []issuerKey

// signatureKinds says for each algorithm (RFC 7518 §3.1, RFC 8037) whether a
// public key is of its kind.
var signatureKinds = map[string]func(crypto.PublicKey) bool{
	"RS256": isRSA, "RS384": isRSA, "RS512": isRSA,
	"PS256": isRSA, "PS384": isRSA, "PS512": isRSA,
	"ES256": isEC(elliptic.P256()), "ES384": isEC(elliptic.P384()), "ES512": isEC(elliptic.P521()),
	"EdDSA": func(k crypto.PublicKey) bool { _, ok := k.(ed25519.PublicKey); return ok },
}

func isRSA(k crypto.PublicKey) bool { _, ok := k.(*rsa.PublicKey); return ok }

func isEC(c elliptic.Curve) func(crypto.PublicKey) bool {
	return func(k crypto.PublicKey) bool {
		e, ok := k.(*ecdsa.PublicKey)
		return ok && e.Curve == c
	}
}

// maxTriedKeys bounds the work that one token can ask for.
const maxTriedKeys = 8

// fit returns the keys that may have signed token; none and no refusal when
// the set has no key of its id, so that a newer set may.
func (keys issuerKeys) fit(token compactToken) (fitting issuerKeys, refused *RefusedError) {
	kind, named := signatureKinds[token.alg], false
	for _, k := range keys {
		if token.kid != "" && k.kid != token.kid {
			continue
		}
		named = named || token.kid != ""
		if (k.alg == "" || k.alg == token.alg) && kind != nil && kind(k.public) {
			fitting = append(fitting, k)
		}
	}
	switch {
	case len(fitting) > maxTriedKeys:
		return nil, refuse(ReasonUnknownKey, "%d keys fit, key id %q does not choose one", len(fitting), token.kid)
	case len(fitting) == 0 && named:
		return nil, refuse(ReasonAlgorithm, "the issuer's key %q is not for %s signatures", token.kid, token.alg)
	}
	return fitting, nil
}

// privateMembers are the members of a JWK which only its owner may hold
// (RFC 7518 §6). A key published with one is everybody's.
var privateMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"}

// parseJWKS reads a JWK set (RFC 7517 §5): keys that are not for signatures, of
// a kind or size not used here, or published with their private half, are left
// out. A set without any usable key is an error, so that an issuer's bad day
// does not read as the withdrawal of everything.
func parseJWKS(b []byte) (issuerKeys, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("not a JWK set: %v", err)
	}
	if len(set.Keys) > maxIssuerKeys {
		return nil, fmt.Errorf("%d keys, want at most %d", len(set.Keys), maxIssuerKeys)
	}
	var keys issuerKeys
	for _, raw := range set.Keys {
		if k, ok := parseJWK(raw); ok {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no usable key")
	}
	return keys, nil
}

func parseJWK(raw []byte) (issuerKey, bool) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return issuerKey{}, false
	}
	for _, m := range privateMembers {
		if _, ok := members[m]; ok {
			return issuerKey{}, false
		}
	}
	if ops, ok := members["key_ops"]; ok {
		var list []string
		if json.Unmarshal(ops, &list) != nil || !slices.Contains(list, "verify") {
			return issuerKey{}, false
		}
	}
	// Certificates say nothing here, and one that does not parse must not cost
	// the key beside it.
	for _, m := range []string{"x5c", "x5t", "x5t#S256", "x5u"} {
		delete(members, m)
	}
	plain, err := json.Marshal(members)
	if err != nil {
		return issuerKey{}, false
	}
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(plain); err != nil || !jwk.Valid() || !jwk.IsPublic() {
		return issuerKey{}, false
	}
	if jwk.Use != "" && jwk.Use != "sig" {
		return issuerKey{}, false
	}
	switch k := jwk.Key.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return issuerKey{}, false
		}
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return issuerKey{}, false
	}
	thumb, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return issuerKey{}, false
	}
	return issuerKey{kid: jwk.KeyID, alg: jwk.Algorithm, public: jwk.Key, thumb: keyThumbprint(thumb)}, true
}
