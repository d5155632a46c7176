package auth

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// GrantMaxBytes caps an encoded grant. ID tokens are mostly 1–4 KiB.
const GrantMaxBytes = 16 << 10

const grantVersion = 1

// Grant is the proof that a login stands behind a WireGuard key: an ID token as
// its issuer gave it, the commitment it was asked for with, and the newest
// statement. The ID token is a bearer token: a grant never prints.
type Grant struct {
	Issuer     string // chooses among the verifier's entries; proves nothing
	IDToken    string
	Commitment []byte // encoded; its hash is the nonce
	Statement  SignedStatement
}

// Append appends u8 1 ‖ lp(issuer URL) ‖ lp(ID token) ‖ lp(commitment) ‖
// statement ‖ signature. What it writes parses if each text is below 64 KiB
// and the whole at most GrantMaxBytes.
func (g Grant) Append(dst []byte) []byte {
	dst = append(dst, grantVersion)
	dst = appendLP(dst, []byte(g.Issuer))
	dst = appendLP(dst, []byte(g.IDToken))
	dst = appendLP(dst, g.Commitment)
	return g.Statement.Append(dst)
}

// ParseGrant reads what Append wrote, exactly, and nothing above
// GrantMaxBytes. The result shares no memory with b. It checks the form only.
func ParseGrant(b []byte) (Grant, error) {
	var g Grant
	if len(b) > GrantMaxBytes {
		return g, refuse(ReasonTooLarge, "grant of %d bytes, want at most %d", len(b), GrantMaxBytes)
	}
	r := byteReader{b: b}
	if v := r.u8(); r.short || v != grantVersion {
		return g, refuse(ReasonMalformed, "grant version %d, want %d", v, grantVersion)
	}
	issuer, token, cic := r.lp(), r.lp(), r.lp()
	statement := r.take(SignedStatementSize)
	if !r.done() {
		return g, refuse(ReasonMalformed, "grant is not of the documented form")
	}
	s, err := ParseSignedStatement(statement)
	if err != nil {
		return g, refuse(ReasonMalformed, "%v", err)
	}
	return Grant{Issuer: string(issuer), IDToken: string(token), Commitment: append([]byte{}, cic...), Statement: s}, nil
}

// Format prints a fixed text for every verb.
func (Grant) Format(f fmt.State, _ rune) { io.WriteString(f, "[grant]") }

// LogValue logs a fixed text.
func (Grant) LogValue() slog.Value { return slog.StringValue("[grant]") }

// MarshalText refuses, so that no encoder writes the ID token by accident.
func (Grant) MarshalText() ([]byte, error) {
	return nil, errors.New("a grant is not marshalled: use Append")
}

// appendLP appends lp(x) = u16 length, big-endian, ‖ x. x is shorter than 64 KiB.
func appendLP(dst, x []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(x)))
	return append(dst, x...)
}

// appendMilli appends u64 milliseconds since 1970, big-endian.
func appendMilli(dst []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(t.UnixMilli()))
}

// byteReader takes fields off the front of b. Past the end every take gives
// zeros of the length asked for and done is false, so callers check once.
type byteReader struct {
	b     []byte
	short bool
}

// take returns the next n bytes; they alias b. n is at most SignedStatementSize
// or a length read from b, so what it allocates when b is short is bounded.
func (r *byteReader) take(n int) []byte {
	if r.short || len(r.b) < n {
		r.short = true
		return make([]byte, n)
	}
	x := r.b[:n:n]
	r.b = r.b[n:]
	return x
}

func (r *byteReader) u8() byte { return r.take(1)[0] }

func (r *byteReader) lp() []byte {
	n := int(binary.BigEndian.Uint16(r.take(2)))
	if r.short || len(r.b) < n {
		r.short = true
		return nil
	}
	return r.take(n)
}

// milli reads a time. A year past 9999 is no time.
func (r *byteReader) milli() time.Time {
	ms := binary.BigEndian.Uint64(r.take(8))
	if ms > maxUnixMilli {
		r.short = true
		return time.Time{}
	}
	return time.UnixMilli(int64(ms)).UTC()
}

// done reports that every byte was taken and none was missing.
func (r *byteReader) done() bool { return !r.short && len(r.b) == 0 }
