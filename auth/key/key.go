// Package key gives every key of the overlay a type of its own, one for each
// role, so that a compiler refuses a relay's key where a peer's is meant.
//
// It owns their text forms, comparison in constant time, and that private keys
// and shared secrets never print. It must not know what a key is used for.
package key

import (
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[private key]"

// SecretSize is the length of shared secrets.
const SecretSize = 32

// Bind authenticates the UDP address of one session with a relay. It dies with
// the control connection that gave it.
type Bind struct{ secret }

// Preshared is WireGuard's preshared key of one pair of peers.
type Preshared struct{ secret }

// NewBind makes a bind key.
func NewBind() Bind {
	var b Bind
	rand.Read(b.b[:])
	return b
}

// BindFrom takes a bind key that was received.
func BindFrom(b [SecretSize]byte) Bind { return Bind{secret{b: b}} }

// PresharedFrom takes a preshared key that was derived.
func PresharedFrom(b [SecretSize]byte) Preshared { return Preshared{secret{b: b}} }

// Equal compares in constant time.
func (b Bind) Equal(c Bind) bool { return b.equal(c.secret) }

// Equal compares in constant time.
func (p Preshared) Equal(q Preshared) bool { return p.equal(q.secret) }

type secret struct{ b [SecretSize]byte }

func (s secret) equal(t secret) bool { return subtle.ConstantTimeCompare(s.b[:], t.b[:]) == 1 }

// Bytes returns the secret for a library that computes with it. Do not print it.
func (s secret) Bytes() [SecretSize]byte { return s.b }

// IsZero reports whether s is no secret.
func (s secret) IsZero() bool { return s.b == [SecretSize]byte{} }

// Format prints a fixed text for every verb.
func (secret) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue logs a fixed text.
func (secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText refuses, so that no encoder writes the secret by accident.
func (secret) MarshalText() ([]byte, error) {
	return nil, errors.New("a shared secret is not marshalled")
}
