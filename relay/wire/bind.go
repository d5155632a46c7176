package wire

import (
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"net/netip"
	"sync"

	"golang.org/x/crypto/blake2s"

	"github.com/zt-daemon/zt/auth/key"
)

// BindType is the first byte of the messages that bind a session to a UDP
// address. Layout of all four, integers big-endian:
//
//	1 byte    type
//	1 byte    flags, 0
//	2 bytes   0
//	8 bytes   session
//	8 bytes   counter
//	…         body
//	16 bytes  tag: BLAKE2s-128 keyed with the session's bind key over all before it
type BindType uint8

// The messages that bind an address. From the address that is bound already, a
// Bind with a newer counter is answered by Bound: keepalive and RTT probe. From
// another, by Challenge, and only the Answer moves the address.
const (
	BindRequest   BindType = 0x80 // body: zeros
	BindChallenge BindType = 0x81 // body: a cookie, 32 bytes
	BindAnswer    BindType = 0x82 // body: the cookie, then zeros
	BindBound     BindType = 0x83 // body: the observed address, 16 bytes, and port, 2 bytes
)

const (
	bindHeader = 20
	bindTag    = 16
	// CookieLen is the length of a challenge's cookie, in bytes.
	CookieLen = 32
	// BindSize is the length of a Bind on a known path, and of every Answer.
	BindSize = 96
	// BindPaddedSize is the length of a Bind on a new path: a full packet of the
	// overlay MTU, so that it also proves that those pass.
	BindPaddedSize = 1312
	// BindWideSize is the length of a Bind that asks whether the largest packets
	// pass, those of an overlay MTU of 1,420.
	BindWideSize = 1452
	// What a relay answers is shorter than what draws it.
	challengeSize = bindHeader + CookieLen + bindTag
	boundSize     = bindHeader + 18 + bindTag
)

// IsBind reports whether b has the type and a length of a bind message.
func IsBind(b []byte) bool {
	if len(b) == 0 {
		return false
	}
	switch BindType(b[0]) {
	case BindRequest:
		return len(b) >= BindSize && len(b) <= BindWideSize
	case BindChallenge:
		return len(b) == challengeSize
	case BindAnswer:
		return len(b) == BindSize
	case BindBound:
		return len(b) == boundSize
	}
	return false
}

// BindFields reads the clear fields of a bind message for which IsBind holds.
// Nothing in it is to be believed before BindMAC.Verify.
func BindFields(b []byte) (t BindType, session, counter uint64) {
	return BindType(b[0]), binary.BigEndian.Uint64(b[4:]), binary.BigEndian.Uint64(b[12:])
}

// BindCookie reads the cookie of a Challenge or an Answer. It aliases b.
func BindCookie(b []byte) []byte { return b[bindHeader : bindHeader+CookieLen] }

// BindObserved reads the address of a Bound.
func BindObserved(b []byte) netip.AddrPort {
	addr := netip.AddrFrom16([16]byte(b[bindHeader : bindHeader+16]))
	return netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(b[bindHeader+16:]))
}

// BindMAC makes and checks bind messages of one session, without allocating.
// It is safe for concurrent use.
type BindMAC struct {
	mu  sync.Mutex // guards h, sum
	h   hash.Hash
	sum [bindTag]byte
}

// NewBindMAC makes a BindMAC of a session's bind key.
func NewBindMAC(k key.Bind) *BindMAC {
	b := k.Bytes()
	h, err := blake2s.New128(b[:])
	if err != nil {
		panic("BLAKE2s: " + err.Error()) // only for keys of another length
	}
	return &BindMAC{h: h}
}

// Verify reports whether the tag of b, for which IsBind holds, is the key's.
func (m *BindMAC) Verify(b []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(b) - bindTag
	return subtle.ConstantTimeCompare(m.tag(b[:n]), b[n:]) == 1
}

// tag returns the tag of b, valid until the lock is given up.
func (m *BindMAC) tag(b []byte) []byte {
	m.h.Reset()
	m.h.Write(b)
	return m.h.Sum(m.sum[:0])
}

// AppendRequest appends a Bind of size bytes, BindSize to BindWideSize.
func (m *BindMAC) AppendRequest(dst []byte, session, counter uint64, size int) []byte {
	return m.append(dst, BindRequest, session, counter, nil, size)
}

// AppendChallenge appends a Challenge with a cookie of CookieLen bytes.
func (m *BindMAC) AppendChallenge(dst []byte, session, counter uint64, cookie []byte) []byte {
	return m.append(dst, BindChallenge, session, counter, cookie, challengeSize)
}

// AppendAnswer appends an Answer with a challenge's counter and cookie.
func (m *BindMAC) AppendAnswer(dst []byte, session, counter uint64, cookie []byte) []byte {
	return m.append(dst, BindAnswer, session, counter, cookie, BindSize)
}

// AppendBound appends a Bound with the counter of its cause and the address that
// it came from.
func (m *BindMAC) AppendBound(dst []byte, session, counter uint64, observed netip.AddrPort) []byte {
	var body [18]byte
	addr := observed.Addr().As16()
	copy(body[:], addr[:])
	binary.BigEndian.PutUint16(body[16:], observed.Port())
	return m.append(dst, BindBound, session, counter, body[:], boundSize)
}

func (m *BindMAC) append(dst []byte, t BindType, session, counter uint64, body []byte, size int) []byte {
	start := len(dst)
	dst = append(dst, byte(t), 0, 0, 0)
	dst = appendU64(appendU64(dst, session), counter)
	dst = append(dst, body...)
	for len(dst)-start < size-bindTag {
		dst = append(dst, 0)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return append(dst, m.tag(dst[start:])...)
}
