package key

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
)

// The roles of P-256 keys. They keep one role's key from being passed where
// another's is meant; they hold nothing.
type (
	network struct{}
	signer  struct{}
	cluster struct{}
	login   struct{}
)

type role interface {
	network | signer | cluster | login
}

type (
	// NetworkPublic names a network: its hash is the network id.
	NetworkPublic = Public[network]
	// NetworkPrivate signs heads. It stays with the platform engineer.
	NetworkPrivate = Private[network]
	// SignerPublic is admitted by a head to sign records.
	SignerPublic = Public[signer]
	// SignerPrivate signs records on a machine that does not hold the network key.
	SignerPrivate = Private[signer]
	// ClusterPublic is how a record names a cluster's nodes.
	ClusterPublic = Public[cluster]
	// ClusterPrivate proves that a node is of its cluster, and signs edge answers.
	ClusterPrivate = Private[cluster]
	// LoginPublic is what the nonce of a person's ID token commits to.
	LoginPublic = Public[login]
	// LoginPrivate signs a person's statements. It stays on one laptop.
	LoginPrivate = Private[login]
)

const (
	// PublicSize is the length of a P-256 public key: SEC1, uncompressed.
	PublicSize = 65
	// SignatureSize is the length of a P-256 signature: r ‖ s, 32 bytes each,
	// big-endian (the form of RFC 7518 §3.4).
	SignatureSize = 64
)

// Public is a P-256 public key of one role. It is comparable and may be a map
// key; the zero value is no key.
type Public[R role] struct {
	sec1 [PublicSize]byte
	_    [0]R
}

// ParsePublic reads a SEC1 uncompressed point of 65 bytes, which must lie on
// the curve.
func ParsePublic[R role](sec1 []byte) (Public[R], error) {
	var p Public[R]
	if len(sec1) != PublicSize {
		return p, fmt.Errorf("P-256 public key is %d bytes, want %d (SEC1 uncompressed)", len(sec1), PublicSize)
	}
	if _, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), sec1); err != nil {
		return p, fmt.Errorf("P-256 public key: %v", err)
	}
	copy(p.sec1[:], sec1)
	return p, nil
}

// IsZero reports whether p is no key.
func (p Public[R]) IsZero() bool { return p.sec1 == [PublicSize]byte{} }

// Bytes returns the SEC1 uncompressed form, 65 bytes, the caller's to keep.
func (p Public[R]) Bytes() []byte { return append([]byte(nil), p.sec1[:]...) }

// Append appends the 65 bytes of the SEC1 uncompressed form.
func (p Public[R]) Append(dst []byte) []byte { return append(dst, p.sec1[:]...) }

// Equal compares in constant time.
func (p Public[R]) Equal(q Public[R]) bool {
	return subtle.ConstantTimeCompare(p.sec1[:], q.sec1[:]) == 1
}

// ECDSA returns the key in the standard library's form; nil for the zero value.
func (p Public[R]) ECDSA() *ecdsa.PublicKey {
	k, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), p.sec1[:])
	if err != nil {
		return nil
	}
	return k
}

// Thumbprint is base64url(SHA-256(SEC1)), the `kid` of a signed document.
func (p Public[R]) Thumbprint() string {
	h := sha256.Sum256(p.sec1[:])
	return base64.RawURLEncoding.EncodeToString(h[:])
}

// Verify reports whether sig (r ‖ s, 64 bytes) signs SHA-256(message).
func (p Public[R]) Verify(message, sig []byte) bool {
	k := p.ECDSA()
	if k == nil || len(sig) != SignatureSize {
		return false
	}
	digest := sha256.Sum256(message)
	return ecdsa.Verify(k, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
}

// String is base64url of the SEC1 form, without padding.
func (p Public[R]) String() string {
	if p.IsZero() {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(p.sec1[:])
}

// MarshalText gives String's form.
func (p Public[R]) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads String's form.
func (p *Public[R]) UnmarshalText(text []byte) error {
	b, err := base64.RawURLEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("P-256 public key: not base64url: %v", err)
	}
	q, err := ParsePublic[R](b)
	if err != nil {
		return err
	}
	*p = q
	return nil
}

// Private is a P-256 private key of one role. It never prints. The zero value
// is no key and must not be used to sign.
type Private[R role] struct {
	k *ecdsa.PrivateKey
	_ [0]R
}

// NewNetwork makes a network key.
func NewNetwork() NetworkPrivate { return newPrivate[network]() }

// NewSigner makes a signer's key.
func NewSigner() SignerPrivate { return newPrivate[signer]() }

// NewCluster makes a cluster key.
func NewCluster() ClusterPrivate { return newPrivate[cluster]() }

// NewLogin makes a login key.
func NewLogin() LoginPrivate { return newPrivate[login]() }

func newPrivate[R role]() Private[R] {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil { // crypto/rand does not fail (Go 1.24)
		panic("P-256: " + err.Error())
	}
	return Private[R]{k: k}
}

// IsZero reports whether p is no key.
func (p Private[R]) IsZero() bool { return p.k == nil }

// Public returns the public half.
func (p Private[R]) Public() Public[R] {
	var pub Public[R]
	if p.k == nil {
		return pub
	}
	b, err := p.k.PublicKey.Bytes()
	if err != nil {
		panic("P-256: " + err.Error()) // p.k was generated or parsed, so it is on the curve
	}
	copy(pub.sec1[:], b)
	return pub
}

// Sign signs SHA-256(message) and returns r ‖ s.
func (p Private[R]) Sign(message []byte) [SignatureSize]byte {
	digest := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, p.k, digest[:])
	if err != nil {
		panic("P-256: " + err.Error())
	}
	var sig [SignatureSize]byte
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return sig
}

// ECDSA returns the key for a library that signs with it. Do not print it.
func (p Private[R]) ECDSA() *ecdsa.PrivateKey { return p.k }

const pemType = "PRIVATE KEY" // RFC 7468 §10

// PEM returns the PKCS #8 form, for a file of mode 0600 or a Kubernetes Secret.
func (p Private[R]) PEM() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(p.k)
	if err != nil {
		panic("P-256: " + err.Error())
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})
}

// ParseNetworkPEM reads what NetworkPrivate.PEM wrote.
func ParseNetworkPEM(b []byte) (NetworkPrivate, error) { return parsePEM[network](b) }

// ParseSignerPEM reads what SignerPrivate.PEM wrote.
func ParseSignerPEM(b []byte) (SignerPrivate, error) { return parsePEM[signer](b) }

// ParseClusterPEM reads what ClusterPrivate.PEM wrote.
func ParseClusterPEM(b []byte) (ClusterPrivate, error) { return parsePEM[cluster](b) }

// ParseLoginPEM reads what LoginPrivate.PEM wrote.
func ParseLoginPEM(b []byte) (LoginPrivate, error) { return parsePEM[login](b) }

func parsePEM[R role](b []byte) (Private[R], error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(rest) != 0 {
		return Private[R]{}, errors.New("not one PEM block of type PRIVATE KEY")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil { // the parser's text may describe the key: leave it out
		return Private[R]{}, errors.New("not a PKCS #8 private key")
	}
	e, ok := k.(*ecdsa.PrivateKey)
	if !ok || e.Curve != elliptic.P256() {
		return Private[R]{}, errors.New("not a P-256 private key")
	}
	return Private[R]{k: e}, nil
}

// Format prints a fixed text for every verb.
func (Private[R]) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue logs a fixed text.
func (Private[R]) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText refuses, so that no encoder writes the key by accident.
func (Private[R]) MarshalText() ([]byte, error) {
	return nil, errors.New("a private key is not marshalled: use PEM")
}
