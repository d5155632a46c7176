package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/zt-daemon/zt/auth/key"
)

const (
	grantDomain = "zt-grant-v1"

	keyTypeP256 = 1 // SEC1 uncompressed, 65 bytes

	commitmentSize = len(grantDomain) + 2 + networkIDSize + 1 + 2 + key.PublicSize + 32

	workloadAudiencePrefix = "zt:"
)

// Commitment is what the nonce of a person's ID token, or the audience of a
// workload's, is the hash of: it binds a login to a login key and a network.
type Commitment struct {
	Network NetworkID
	Key     key.LoginPublic
	Rand    [32]byte // makes every login's nonce another
}

// NewCommitment commits to k in network id, with fresh random bytes.
func NewCommitment(id NetworkID, k key.LoginPublic) Commitment {
	c := Commitment{Network: id, Key: k}
	rand.Read(c.Rand[:])
	return c
}

// Append appends "zt-grant-v1" ‖ lp(network id) ‖ u8 key type ‖ lp(login key) ‖
// 32 random bytes, where lp(x) is a u16 length, big-endian, and x.
func (c Commitment) Append(dst []byte) []byte {
	dst = append(dst, grantDomain...)
	dst = appendLP(dst, c.Network[:])
	dst = append(dst, keyTypeP256)
	dst = appendLP(dst, c.Key.Bytes())
	return append(dst, c.Rand[:]...)
}

// ParseCommitment reads what Append wrote, exactly.
func ParseCommitment(b []byte) (Commitment, error) {
	var c Commitment
	if len(b) != commitmentSize {
		return c, fmt.Errorf("commitment is %d bytes, want %d", len(b), commitmentSize)
	}
	r := byteReader{b: b}
	if string(r.take(len(grantDomain))) != grantDomain {
		return c, errors.New("commitment does not begin with " + grantDomain)
	}
	id := r.lp()
	kind := r.u8()
	k := r.lp()
	random := r.take(len(c.Rand))
	if !r.done() || len(id) != networkIDSize || kind != keyTypeP256 {
		return c, errors.New("commitment is not of the documented form")
	}
	var parseKey func([]byte) (key.LoginPublic, error) = key.ParsePublic
	var err error
	if c.Key, err = parseKey(k); err != nil {
		return Commitment{}, fmt.Errorf("commitment: %v", err)
	}
	c.Network = NetworkID(id)
	copy(c.Rand[:], random)
	return c, nil
}

// Hash is SHA-256 of the encoded commitment.
func (c Commitment) Hash() [sha256.Size]byte { return sha256.Sum256(c.Append(nil)) }

// Nonce is what a person's ID token must carry: base64url(Hash), 43 characters.
func (c Commitment) Nonce() string {
	h := c.Hash()
	return base64.RawURLEncoding.EncodeToString(h[:])
}

// WorkloadAudience is the one audience of a workload's ID token: "zt:" ‖ Nonce.
func (c Commitment) WorkloadAudience() string { return workloadAudiencePrefix + c.Nonce() }
