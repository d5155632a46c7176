package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// superPacket is as the kernel reads one from a TUN device: IPv4, of n payload
// bytes cut every size.
func superPacket(protocol byte, n, size int) []byte {
	transport := 8
	kind := byte(gsoUDP)
	if protocol == unix.IPPROTO_TCP {
		transport, kind = 32, gsoTCPv4
	}
	b := make([]byte, vnetHeaderBytes+20+transport+n)
	b[0], b[1] = needsChecksum, kind
	binary.NativeEndian.PutUint16(b[2:], uint16(20+transport))
	binary.NativeEndian.PutUint16(b[4:], uint16(size))
	binary.NativeEndian.PutUint16(b[6:], 20)
	ip := b[vnetHeaderBytes:]
	ip[0], ip[8], ip[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	copy(ip[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	if body := ip[20:]; protocol == unix.IPPROTO_TCP {
		binary.BigEndian.PutUint32(body[4:], 0xfffffff0) // wraps
		body[12], body[13] = 8<<4, 0x80|0x10|0x08|0x01   // CWR, ACK, PSH, FIN
	} else {
		binary.BigEndian.PutUint16(body[4:], uint16(len(body)))
	}
	for i := range n {
		b[len(b)-n+i] = byte(i * 7)
	}
	return b
}

func TestCutSuperPacket(t *testing.T) {
	const n, size = 10*1208 + 100, 1208
	for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		whole := superPacket(protocol, n, size)
		s, ok := parseSuper(whole)
		if !ok || s.n != 11 {
			t.Fatalf("protocol %d: %d packets, %v; want 11", protocol, s.n, ok)
		}
		var payload []byte
		for _, c := range [][2]int{{0, 1}, {1, 4}, {4, 5}, {5, 11}} {
			t.Run(fmt.Sprintf("protocol %d, %v", protocol, c), func(t *testing.T) {
				f := s.cut(c[0], c[1])
				ip := f.data[vnetHeaderBytes:]
				body := ip[20:]
				if got := int(binary.BigEndian.Uint16(ip[2:])); got != len(ip) {
					t.Errorf("IPv4 length %d, want %d", got, len(ip))
				}
				if got := fold(add(0, ip[:20])); got != 0xffff {
					t.Errorf("IPv4 header's sum is %#x", got)
				}
				header, at := 8, 6
				if protocol == unix.IPPROTO_TCP {
					header, at = 32, 16
					if got, want := binary.BigEndian.Uint32(body[4:]), 0xfffffff0+uint32(c[0]*size); got != want {
						t.Errorf("sequence number %#x, want %#x", got, want)
					}
					if last := body[13]&0x09 == 0x09; last != (c[1] == s.n) {
						t.Errorf("PSH and FIN: %v", last)
					}
					if first := body[13]&0x80 != 0; first != (c[0] == 0) {
						t.Errorf("CWR: %v", first)
					}
				} else if got := int(binary.BigEndian.Uint16(body[4:])); got != len(body) {
					t.Errorf("UDP length %d, want %d", got, len(body))
				}
				if got, want := binary.BigEndian.Uint16(body[at:]), fold(add(0, ip[12:20])+uint32(protocol)+uint32(len(body))); got != want {
					t.Errorf("pseudo-header's sum %#x, want %#x", got, want)
				}
				if single := f.data[1] == gsoNone; single != (c[1]-c[0] == 1) {
					t.Errorf("segmentation type %d", f.data[1])
				}
				payload = append(payload, body[header:]...)
			})
		}
		if !bytes.Equal(payload, whole[len(whole)-n:]) {
			t.Errorf("protocol %d: the payload is not what it was", protocol)
		}
	}
}
