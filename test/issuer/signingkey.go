package issuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// signingKey is a key pair that signs ID tokens; it is op.SigningKey.
type signingKey struct {
	id        string
	algorithm jose.SignatureAlgorithm
	private   crypto.Signer
}

func newSigningKey(algorithm string) (*signingKey, error) {
	k := &signingKey{id: rand.Text(), algorithm: jose.SignatureAlgorithm(algorithm)}
	var err error
	switch algorithm {
	case "RS256":
		k.private, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ES256":
		k.private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		return nil, fmt.Errorf("algorithm %q: want RS256 or ES256", algorithm)
	}
	return k, err
}

func (k *signingKey) ID() string                                  { return k.id }
func (k *signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k *signingKey) Key() any                                    { return k.private }

// verifyKey is the public half, as served; it is op.Key.
type verifyKey struct{ *signingKey }

func (k verifyKey) Algorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k verifyKey) Use() string                        { return "sig" }
func (k verifyKey) Key() any                           { return k.private.Public() }

// RotateKeys makes a new key that signs from now on. The old keys stay in the
// served set, or leave it at once if withdrawOld: then nothing they signed can
// be verified by who looks again.
func (i *Issuer) RotateKeys(withdrawOld bool) error {
	k, err := newSigningKey(i.config.Algorithm)
	if err != nil {
		return err
	}
	s := i.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if withdrawOld {
		s.keys = nil
	}
	s.keys = append([]*signingKey{k}, s.keys...)
	return nil
}

// Sign signs an ID token with the current key and any claims: for tests that
// need a token no login gives.
func (i *Issuer) Sign(claims []byte) (string, error) {
	i.store.mu.Lock()
	k := i.store.keys[0]
	i.store.mu.Unlock()
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: k.algorithm, Key: &jose.JSONWebKey{Key: k.private, KeyID: k.id}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	sig, err := signer.Sign(claims)
	if err != nil {
		return "", err
	}
	return sig.CompactSerialize()
}
