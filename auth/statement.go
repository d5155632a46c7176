package auth

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

const (
	statementDomain = "zt-stmt-v1"

	// EncapsulationSize is the length of an ML-KEM-768 encapsulation key (FIPS 203).
	EncapsulationSize = 1184

	// StatementSize is the length of an encoded statement without its signature.
	StatementSize = 1 + 4 + key.DHSize + EncapsulationSize + 8 + 8
	// SignedStatementSize is the length with it.
	SignedStatementSize = StatementSize + key.SignatureSize

	// StatementMaxAge is how long a statement may live.
	StatementMaxAge = time.Hour

	statementVersion = 1
	statementEnd     = 1 // bit 0 of the flags

	maxUnixMilli = maxUnixSeconds*1000 + 999
)

// Statement says, for at most an hour, which WireGuard key and which ML-KEM-768
// encapsulation key belong to a login key. Times have milliseconds and are UTC.
type Statement struct {
	End           bool   // the login ends now; nothing newer follows
	Flags         uint32 // the other flag bits: signed and carried, not understood; bit 0 is End's
	Key           key.WireGuardPublic
	Encapsulation [EncapsulationSize]byte
	Issued        time.Time
	Expires       time.Time
}

// Append appends u8 1 ‖ u32 flags ‖ WireGuard key 32 ‖ encapsulation key 1184 ‖
// u64 issued ‖ u64 expires: 1,237 bytes, integers big-endian, times in
// milliseconds since 1970.
func (s Statement) Append(dst []byte) []byte {
	flags := s.Flags &^ statementEnd
	if s.End {
		flags |= statementEnd
	}
	dst = append(dst, statementVersion)
	dst = binary.BigEndian.AppendUint32(dst, flags)
	dst = s.Key.Append(dst)
	dst = append(dst, s.Encapsulation[:]...)
	dst = appendMilli(dst, s.Issued)
	return appendMilli(dst, s.Expires)
}

// SignedStatement is a statement as its login key signed it.
type SignedStatement struct {
	Statement
	Signature [key.SignatureSize]byte
}

// SignStatement signs s for the grant that holds idToken. Times are cut to
// milliseconds.
func SignStatement(s Statement, idToken string, k key.LoginPrivate) SignedStatement {
	s.Issued = time.UnixMilli(s.Issued.UnixMilli()).UTC()
	s.Expires = time.UnixMilli(s.Expires.UnixMilli()).UTC()
	s.Flags &^= statementEnd
	return SignedStatement{Statement: s, Signature: k.Sign(s.message(sha256.Sum256([]byte(idToken))))}
}

// message is what is signed: "zt-stmt-v1" ‖ SHA-256(ID token) ‖ statement.
func (s Statement) message(token [sha256.Size]byte) []byte {
	b := make([]byte, 0, len(statementDomain)+sha256.Size+StatementSize)
	b = append(b, statementDomain...)
	b = append(b, token[:]...)
	return s.Append(b)
}

// Verify reports whether k signed s for the grant that holds idToken. It says
// nothing about times.
func (s SignedStatement) Verify(idToken string, k key.LoginPublic) bool {
	return s.verify(sha256.Sum256([]byte(idToken)), k)
}

func (s SignedStatement) verify(token [sha256.Size]byte, k key.LoginPublic) bool {
	return k.Verify(s.message(token), s.Signature[:])
}

// Append appends the statement and its signature, 1,301 bytes.
func (s SignedStatement) Append(dst []byte) []byte {
	return append(s.Statement.Append(dst), s.Signature[:]...)
}

// ParseSignedStatement reads what Append wrote, exactly. It checks the form
// only: signature, times and the encapsulation key are the verifier's.
func ParseSignedStatement(b []byte) (SignedStatement, error) {
	var s SignedStatement
	if len(b) != SignedStatementSize {
		return s, fmt.Errorf("statement is %d bytes, want %d", len(b), SignedStatementSize)
	}
	r := byteReader{b: b}
	if v := r.u8(); v != statementVersion {
		return s, fmt.Errorf("statement version %d, want %d", v, statementVersion)
	}
	flags := binary.BigEndian.Uint32(r.take(4))
	s.End, s.Flags = flags&statementEnd != 0, flags&^statementEnd
	var err error
	if s.Key, err = key.ParseWireGuard(r.take(key.DHSize)); err != nil {
		return SignedStatement{}, fmt.Errorf("statement: %v", err)
	}
	copy(s.Encapsulation[:], r.take(EncapsulationSize))
	s.Issued, s.Expires = r.milli(), r.milli()
	copy(s.Signature[:], r.take(key.SignatureSize))
	if !r.done() {
		return SignedStatement{}, errors.New("statement is not of the documented form")
	}
	return s, nil
}

// checkLive holds the statement's times against now: at most an hour long, not
// issued in the future, not over.
func (s Statement) checkLive(now time.Time) *RefusedError {
	if life := s.Expires.Sub(s.Issued); life <= 0 || life > StatementMaxAge {
		return refuse(ReasonStatementLifetime, "%s, want at most %s", life, Duration(StatementMaxAge))
	}
	if ahead := s.Issued.Sub(now); ahead > clockSkew {
		return refuse(ReasonClock, "statement signed %s in the future", aboutDuration(ahead))
	}
	if !s.Expires.After(now) {
		return refuse(ReasonStatementExpired, "%s ago", aboutDuration(now.Sub(s.Expires)))
	}
	return nil
}
