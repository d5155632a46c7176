// Package wire is the bytes that participants and relays exchange.
//
// Control messages travel on a WebSocket at /v1/session, each one Noise
// transport message in one binary WebSocket message:
//
//	2 bytes  type, big-endian
//	4 bytes  number, big-endian: the sender's count; an answer names it as Re
//	…        the type's fields in fixed order; bytes after the known fields are ignored
//
// An unknown type of 0x8000 or above is skipped, any other closes the session.
// Variable fields are a 16-bit length and that many bytes.
//
// On UDP/443 travel WireGuard's own messages, whose three reserved bytes carry a
// channel between a participant and its relay (packet.go), and the messages that
// bind a session to a UDP address (bind.go).
//
// It owns formats: bytes in, values out. It must not know who sends or why, and
// does no I/O, reads no clock and starts no goroutine.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// Version is the protocol version in Welcome and Hello.
	Version = 1
	// MaxMessage is the largest WebSocket message on a session, in bytes: one
	// Noise message (Noise specification §3).
	MaxMessage = 65535
	// MaxPlaintext is the largest control message, in bytes.
	MaxPlaintext = MaxMessage - 16
	// MaxDocument is the largest signed document a session carries, in bytes.
	MaxDocument = 60000
)

// ErrSkip says that a message has an unknown type which may be skipped.
var ErrSkip = errors.New("unknown message type that may be skipped")

// errShort says that a message ends before its known fields do.
var errShort = errors.New("message is shorter than its fields")

// UnknownTypeError says that a message has a type this version does not know
// and may not skip.
type UnknownTypeError struct{ Type Type }

func (e *UnknownTypeError) Error() string {
	return fmt.Sprintf("unknown message type 0x%04x", uint16(e.Type))
}

// A Message is one control message: a pointer to one of this package's structs.
type Message interface {
	messageType() Type
	append(dst []byte) []byte
	parse(r *reader)
}

// Append appends m, numbered, to dst.
func Append(dst []byte, number uint32, m Message) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(m.messageType()))
	dst = binary.BigEndian.AppendUint32(dst, number)
	return m.append(dst)
}

// Parse reads one control message. Its byte slices alias b. The error is
// ErrSkip, an *UnknownTypeError, or says what is malformed.
func Parse(b []byte) (number uint32, m Message, err error) {
	r := reader{b: b}
	typ := Type(r.u16())
	number = r.u32()
	if r.err != nil {
		return 0, nil, r.err
	}
	m = newMessage(typ)
	if m == nil {
		if typ >= 0x8000 {
			return number, nil, ErrSkip
		}
		return number, nil, &UnknownTypeError{typ}
	}
	m.parse(&r)
	if r.err != nil {
		return number, nil, fmt.Errorf("%s: %w", typ, r.err)
	}
	return number, m, nil
}

// A reader takes fields from the front of b and remembers the first fault.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err == nil && len(r.b) < n {
		r.err = errShort
	}
	if r.err != nil {
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) array(dst []byte) { copy(dst, r.take(len(dst))) }

func (r *reader) bytes() []byte { return r.take(int(r.u16())) }

// text takes a string of at most limit bytes.
func (r *reader) text(limit int) string {
	n := int(r.u16())
	if n > limit && r.err == nil {
		r.err = fmt.Errorf("text of %d bytes, at most %d are allowed", n, limit)
	}
	return string(r.take(n))
}

// optional takes the bytes of a field that a message may end before: versions
// from before it was added do not send it, and do not read it.
func (r *reader) optional(limit int) []byte {
	if r.err != nil || len(r.b) == 0 {
		return nil
	}
	b := r.bytes()
	if len(b) > limit && r.err == nil {
		r.err = fmt.Errorf("field of %d bytes, at most %d are allowed", len(b), limit)
	}
	if len(b) == 0 {
		return nil
	}
	return b
}

func appendU16(dst []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(dst, v) }
func appendU32(dst []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(dst, v) }
func appendU64(dst []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(dst, v) }

// appendBytes appends a length and b. Senders keep fields under 64 KiB: Seal
// refuses a message that is larger as a whole.
func appendBytes[B []byte | string](dst []byte, b B) []byte {
	if len(b) > MaxMessage {
		b = b[:MaxMessage]
	}
	return append(appendU16(dst, uint16(len(b))), b...)
}

// appendOptional appends a field that is left out when it is empty.
func appendOptional(dst, b []byte) []byte {
	if len(b) == 0 {
		return dst
	}
	return appendBytes(dst, b)
}

// appendText cuts s to limit bytes, at the border of a character.
func appendText(dst []byte, s string, limit int) []byte {
	if len(s) > limit {
		for limit > 0 && s[limit]&0xC0 == 0x80 {
			limit--
		}
		s = s[:limit]
	}
	return appendBytes(dst, s)
}
