package auth

import (
	"crypto/hkdf"
	"crypto/mlkem"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

const (
	answerDomain    = "zt-answer-v1"
	presharedDomain = "zt-psk-v1"
	answerVersion   = 1

	// CiphertextSize is the length of an ML-KEM-768 ciphertext (FIPS 203).
	CiphertextSize = 1088

	// AnswerSize is the length of an encoded answer with its signature.
	AnswerSize = 1 + 4 + 16 + CiphertextSize + key.DHSize + 8 + 8 + key.SignatureSize
)

// Answer is a node's *ready* to one edge request: which WireGuard key it has,
// and its half of the preshared key. Times have milliseconds and are UTC.
type Answer struct {
	Flags      uint32   // signed and carried, none understood yet
	Nonce      [16]byte // of the request
	Ciphertext [CiphertextSize]byte
	Key        key.WireGuardPublic // the node's
	Issued     time.Time
	Until      time.Time // when the node will cut
	Signature  [key.SignatureSize]byte
}

// Edge is everything that a laptop and a node must agree on to talk: whose
// keys these are. The laptop fills it from its own login and the record it
// trusts, the node from the Identity it verified and its own keys.
type Edge struct {
	Network         NetworkID
	Issuer, Subject string
	LoginKey        key.LoginPublic
	LaptopKey       key.WireGuardPublic
	Encapsulation   [EncapsulationSize]byte
	Cluster         string
	ClusterKey      key.ClusterPublic
	NodeKey         key.WireGuardPublic
}

// EdgeOf is the edge between a verified laptop and a node of cluster.
func EdgeOf(network NetworkID, id *Identity, cluster string, clusterKey key.ClusterPublic, node key.WireGuardPublic) Edge {
	return Edge{
		Network: network, Issuer: id.Issuer, Subject: id.Subject,
		LoginKey: id.LoginKey, LaptopKey: id.WireGuardKey, Encapsulation: id.Encapsulation,
		Cluster: cluster, ClusterKey: clusterKey, NodeKey: node,
	}
}

// Answer signs the node's answer to the request with this nonce. k must be the
// private half of e.ClusterKey. Times are cut to milliseconds.
func (e Edge) Answer(k key.ClusterPrivate, nonce [16]byte, ct [CiphertextSize]byte, issued, until time.Time) Answer {
	a := Answer{
		Nonce:      nonce,
		Ciphertext: ct,
		Key:        e.NodeKey,
		Issued:     time.UnixMilli(issued.UnixMilli()).UTC(),
		Until:      time.UnixMilli(until.UnixMilli()).UTC(),
	}
	a.Signature = k.Sign(a.message(e))
	return a
}

// message is what is signed: "zt-answer-v1" ‖ network id 20 ‖ cluster ‖
// SHA-256(laptop WireGuard key ‖ encapsulation key) ‖ the encoded answer
// without its signature. Only the cluster's length varies, so no two inputs
// give one message.
func (a Answer) message(e Edge) []byte {
	b := append([]byte(answerDomain), e.Network[:]...)
	b = append(b, e.Cluster...)
	laptop := sha256.Sum256(append(e.LaptopKey.Append(nil), e.Encapsulation[:]...))
	b = append(b, laptop[:]...)
	return a.appendFields(b)
}

func (a Answer) appendFields(dst []byte) []byte {
	dst = append(dst, answerVersion)
	dst = binary.BigEndian.AppendUint32(dst, a.Flags)
	dst = append(dst, a.Nonce[:]...)
	dst = append(dst, a.Ciphertext[:]...)
	dst = a.Key.Append(dst)
	dst = appendMilli(dst, a.Issued)
	return appendMilli(dst, a.Until)
}

// Append appends u8 1 ‖ u32 flags ‖ nonce 16 ‖ ciphertext 1088 ‖ node WireGuard
// key 32 ‖ u64 issued ‖ u64 until ‖ signature 64: 1,221 bytes.
func (a Answer) Append(dst []byte) []byte {
	return append(a.appendFields(dst), a.Signature[:]...)
}

// ParseAnswer reads what Append wrote, exactly. It checks the form only.
func ParseAnswer(b []byte) (Answer, error) {
	var a Answer
	if len(b) != AnswerSize {
		return a, refuse(ReasonMalformed, "edge answer is %d bytes, want %d", len(b), AnswerSize)
	}
	r := byteReader{b: b}
	if v := r.u8(); v != answerVersion {
		return a, refuse(ReasonMalformed, "edge answer version %d, want %d", v, answerVersion)
	}
	a.Flags = binary.BigEndian.Uint32(r.take(4))
	copy(a.Nonce[:], r.take(len(a.Nonce)))
	copy(a.Ciphertext[:], r.take(CiphertextSize))
	k, err := key.ParseWireGuard(r.take(key.DHSize))
	if err != nil {
		return Answer{}, refuse(ReasonMalformed, "edge answer: %v", err)
	}
	a.Key = k
	a.Issued, a.Until = r.milli(), r.milli()
	copy(a.Signature[:], r.take(key.SignatureSize))
	if !r.done() {
		return Answer{}, refuse(ReasonMalformed, "edge answer is not of the documented form")
	}
	return a, nil
}

// Verify accepts a as the answer to the request with this nonce if one of keys,
// the live keys of the cluster's record, signed it for e's laptop and it is
// live. It returns that key, for e.ClusterKey; e.ClusterKey and e.NodeKey are
// not read. Every error is a *RefusedError.
func (a Answer) Verify(e Edge, keys []key.ClusterPublic, nonce [16]byte, now time.Time) (key.ClusterPublic, error) {
	k, ok := signedByCluster(a.message(e), a.Signature[:], keys)
	if !ok {
		return k, refuse(ReasonClusterKey, "edge answer of cluster %q", e.Cluster)
	}
	if subtle.ConstantTimeCompare(a.Nonce[:], nonce[:]) != 1 {
		return key.ClusterPublic{}, refuse(ReasonEdgeNonce, "edge answer of cluster %q", e.Cluster)
	}
	if refused := checkNodeTimes("edge answer", a.Issued, a.Until, 0, now); refused != nil {
		return key.ClusterPublic{}, refused
	}
	return k, nil
}

// Encapsulate makes a shared secret for the laptop's encapsulation key. The
// node keeps ct and the preshared key for as long as it holds the peer, and
// answers again with the same.
func (e Edge) Encapsulate() (ct [CiphertextSize]byte, shared []byte, err error) {
	ek, err := mlkem.NewEncapsulationKey768(e.Encapsulation[:])
	if err != nil {
		return ct, nil, fmt.Errorf("encapsulation key: %w", err)
	}
	shared, c := ek.Encapsulate()
	if copy(ct[:], c) != CiphertextSize {
		return ct, nil, errors.New("ML-KEM ciphertext of another size")
	}
	return ct, shared, nil
}

// context is what both ends must agree on: lp of network id, iss, sub, login
// key, laptop WireGuard key, encapsulation key, cluster, cluster key, node
// WireGuard key, ciphertext.
func (e Edge) context(ct [CiphertextSize]byte) []byte {
	b := appendLP(nil, e.Network[:])
	b = appendLP(b, []byte(e.Issuer))
	b = appendLP(b, []byte(e.Subject))
	b = appendLP(b, e.LoginKey.Bytes())
	b = appendLP(b, e.LaptopKey.Append(nil))
	b = appendLP(b, e.Encapsulation[:])
	b = appendLP(b, []byte(e.Cluster))
	b = appendLP(b, e.ClusterKey.Bytes())
	b = appendLP(b, e.NodeKey.Append(nil))
	return appendLP(b, ct[:])
}

// Preshared derives WireGuard's preshared key from the ML-KEM secret that both
// ends have and everything that they must agree on: HKDF-SHA256 (RFC 5869)
// with salt SHA-256(context) and info "zt-psk-v1". If a single field differs
// there is no handshake. shared is the 32 bytes of ML-KEM, else it panics.
func (e Edge) Preshared(shared []byte, ct [CiphertextSize]byte) key.Preshared {
	if len(shared) != mlkem.SharedKeySize {
		panic("preshared key from a secret of the wrong size")
	}
	salt := sha256.Sum256(e.context(ct))
	psk, err := hkdf.Key(sha256.New, shared, salt[:], presharedDomain, key.SecretSize)
	if err != nil { // 32 bytes from 32 bytes are within every bound
		panic("preshared key: " + err.Error())
	}
	return key.PresharedFrom([key.SecretSize]byte(psk))
}
