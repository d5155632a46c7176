package wire

import "errors"

// The first byte of WireGuard's messages; three reserved zero bytes follow
// (WireGuard paper §5.4). Between a participant and its relay those three carry
// the channel, big-endian.
const (
	PacketInitiation = 1
	PacketResponse   = 2
	PacketCookie     = 3
	PacketTransport  = 4
)

// Lengths of WireGuard's messages in bytes; transport data has a least one.
const (
	InitiationSize   = 148
	ResponseSize     = 92
	CookieSize       = 64
	MinTransportSize = 32
)

// MaxChannel is the largest channel: 24 bits. 0 is no channel.
const MaxChannel = 1<<24 - 1

var errChannel = errors.New("channel is 0 or has more than 24 bits")

// IsPacket reports whether b has the type and a length of a WireGuard message.
func IsPacket(b []byte) bool {
	if len(b) < MinTransportSize {
		return false
	}
	switch b[0] {
	case PacketTransport:
		return true
	case PacketInitiation:
		return len(b) == InitiationSize
	case PacketResponse:
		return len(b) == ResponseSize
	case PacketCookie:
		return len(b) == CookieSize
	}
	return false
}

// IsHandshake reports whether a packet is of WireGuard's handshake.
func IsHandshake(b []byte) bool { return b[0] < PacketTransport }

// Channel reads the channel of a packet of at least 4 bytes.
func Channel(b []byte) uint32 {
	_ = b[3]
	return uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// PutChannel writes the channel of a packet of at least 4 bytes; 0 gives back
// WireGuard's own message.
func PutChannel(b []byte, channel uint32) {
	_ = b[3]
	b[1], b[2], b[3] = byte(channel>>16), byte(channel>>8), byte(channel)
}
