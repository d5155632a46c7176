package key

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"golang.org/x/crypto/curve25519"
)

// The roles of X25519 keys.
type (
	wireGuard struct{}
	relay     struct{}
)

type dhRole interface{ wireGuard | relay }

type (
	// WireGuardPublic is a peer's public key.
	WireGuardPublic = DHPublic[wireGuard]
	// WireGuardPrivate is a participant's WireGuard key: made at every start, kept in memory.
	WireGuardPrivate = DHPrivate[wireGuard]
	// RelayPublic is how a head names a relay.
	RelayPublic = DHPublic[relay]
	// RelayPrivate is what a relay proves itself with.
	RelayPrivate = DHPrivate[relay]
)

// DHSize is the length of X25519 keys.
const DHSize = 32

// DHPublic is an X25519 public key of one role. It is comparable and may be a
// map key; the zero value is no key.
type DHPublic[R dhRole] struct {
	k [DHSize]byte
	_ [0]R
}

// ParseWireGuard reads a WireGuard public key of 32 bytes.
func ParseWireGuard(b []byte) (WireGuardPublic, error) { return parseDH[wireGuard](b) }

// ParseRelay reads a relay's public key of 32 bytes.
func ParseRelay(b []byte) (RelayPublic, error) { return parseDH[relay](b) }

func parseDH[R dhRole](b []byte) (DHPublic[R], error) {
	var p DHPublic[R]
	if len(b) != DHSize {
		return p, fmt.Errorf("X25519 public key is %d bytes, want %d", len(b), DHSize)
	}
	copy(p.k[:], b)
	if p.IsZero() {
		return p, errors.New("X25519 public key is all zero")
	}
	return p, nil
}

// IsZero reports whether p is no key.
func (p DHPublic[R]) IsZero() bool { return p.k == [DHSize]byte{} }

// Bytes returns the 32 bytes of the key.
func (p DHPublic[R]) Bytes() [DHSize]byte { return p.k }

// Append appends the 32 bytes of the key.
func (p DHPublic[R]) Append(dst []byte) []byte { return append(dst, p.k[:]...) }

// Equal compares in constant time.
func (p DHPublic[R]) Equal(q DHPublic[R]) bool {
	return subtle.ConstantTimeCompare(p.k[:], q.k[:]) == 1
}

// String is standard base64, the form of `wg show`.
func (p DHPublic[R]) String() string {
	if p.IsZero() {
		return ""
	}
	return base64.StdEncoding.EncodeToString(p.k[:])
}

// MarshalText gives String's form.
func (p DHPublic[R]) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads String's form.
func (p *DHPublic[R]) UnmarshalText(text []byte) error {
	b, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("X25519 public key: not base64: %v", err)
	}
	q, err := parseDH[R](b)
	if err != nil {
		return err
	}
	*p = q
	return nil
}

// DHPrivate is an X25519 private key of one role. It never prints. The zero
// value is no key.
type DHPrivate[R dhRole] struct {
	k [DHSize]byte
	_ [0]R
}

// NewWireGuard makes a WireGuard key.
func NewWireGuard() WireGuardPrivate { return newDH[wireGuard]() }

// NewRelay makes a relay key.
func NewRelay() RelayPrivate { return newDH[relay]() }

func newDH[R dhRole]() DHPrivate[R] {
	var p DHPrivate[R]
	rand.Read(p.k[:])
	p.k[0] &= 248 // clamped as in RFC 7748 §5, so that every holder agrees on its text
	p.k[31] = p.k[31]&127 | 64
	return p
}

// ParseRelayText reads what RelayPrivate.Text wrote.
func ParseRelayText(text []byte) (RelayPrivate, error) {
	var p RelayPrivate
	b, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil || len(b) != DHSize {
		return p, errors.New("not an X25519 private key in base64")
	}
	copy(p.k[:], b)
	return p, nil
}

// IsZero reports whether p is no key.
func (p DHPrivate[R]) IsZero() bool { return p.k == [DHSize]byte{} }

// Text returns the key in base64, for a file of mode 0600.
func (p DHPrivate[R]) Text() []byte {
	return base64.StdEncoding.AppendEncode(nil, p.k[:])
}

// Bytes returns the key for a library that computes with it. Do not print it.
func (p DHPrivate[R]) Bytes() [DHSize]byte { return p.k }

// Public returns the public half.
func (p DHPrivate[R]) Public() DHPublic[R] {
	var pub DHPublic[R]
	b, err := curve25519.X25519(p.k[:], curve25519.Basepoint)
	if err != nil {
		panic("X25519: " + err.Error()) // the base point is not of low order
	}
	copy(pub.k[:], b)
	return pub
}

// Format prints a fixed text for every verb.
func (DHPrivate[R]) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue logs a fixed text.
func (DHPrivate[R]) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText refuses, so that no encoder writes the key by accident.
func (DHPrivate[R]) MarshalText() ([]byte, error) {
	return nil, errors.New("a private key is not marshalled: use Text")
}
