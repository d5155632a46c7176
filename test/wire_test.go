//go:build e2e && linux

package test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/zt-daemon/zt/test/lab"
)

// wire looks at all that crossed the relay's interface during the whole test.
func (s *stage) wire(t *testing.T) {
	tokens, err := s.alice.IDTokens()
	if err != nil {
		t.Fatal(err)
	}
	if len(tokens) == 0 {
		t.Fatal("alice's laptop holds no ID token to look for")
	}
	packets, err := s.capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	relay := netip.MustParseAddr(lab.RelayHost)
	kinds := map[string]int{}
	for _, p := range packets {
		switch p.Protocol {
		case lab.UDP:
			for _, d := range p.Datagrams() {
				kind, err := datagramKind(p, relay, d)
				if err != nil {
					t.Errorf("%s > %s: %v: %d bytes, %x…", p.From, p.To, err, len(d), d[:min(16, len(d))])
				}
				kinds[kind]++
			}
		case lab.OtherProtocol:
			if err := harmlessFrame(p.Frame); err != nil {
				t.Error(err)
			}
		}
	}
	for _, want := range []string{"handshake initiation", "handshake response", "transport data", "BIND", "CHALLENGE", "ANSWER", "BOUND"} {
		if kinds[want] == 0 {
			t.Errorf("the capture has no %s: %v", want, kinds)
		}
	}
	streams := lab.Streams(packets)
	records := 0
	for _, stream := range streams {
		if len(stream.Bytes) == 0 { // a refused connection: RST alone
			continue
		}
		n, err := tlsRecords(stream)
		if err != nil {
			t.Errorf("TCP %s > %s: %v", stream.From, stream.To, err)
		}
		records += n
	}
	if records == 0 {
		t.Error("the capture has no TLS")
	}
	t.Logf("%d packets: %v; %d TLS records in %d directions of TCP", len(packets), kinds, records, len(streams))
	s.lookForCanaries(t, packets, streams, tokens)
}

// datagramKind names a UDP datagram at the relay, which must be WireGuard's with
// a channel or one of the four that bind an address.
func datagramKind(p lab.Packet, relay netip.Addr, d []byte) (string, error) {
	at, port := p.To, p.To.Port()
	if p.From.Addr() == relay {
		at, port = p.From, p.From.Port()
	}
	if at.Addr() != relay || port != 443 {
		return "stranger", fmt.Errorf("UDP that is not the relay's port 443")
	}
	if len(d) < 4 {
		return "short", fmt.Errorf("too short")
	}
	// Each type with the exact length, or the least one, of its message.
	wireguard := map[byte]struct {
		name          string
		length, least int
	}{1: {name: "handshake initiation", length: 148}, 2: {name: "handshake response", length: 92}, 3: {name: "cookie reply", length: 64}, 4: {name: "transport data", least: 32}}
	ours := map[byte]string{0x80: "BIND", 0x81: "CHALLENGE", 0x82: "ANSWER", 0x83: "BOUND"}
	if m, ok := wireguard[d[0]]; ok {
		channel := binary.BigEndian.Uint32(d) & 0xffffff
		switch {
		case channel == 0:
			return m.name, fmt.Errorf("%s without a channel", m.name)
		case m.length > 0 && len(d) != m.length, len(d) < m.least:
			return m.name, fmt.Errorf("%s of a wrong length", m.name)
		}
		return m.name, nil
	}
	if name, ok := ours[d[0]]; ok {
		return name, nil
	}
	return "unknown", fmt.Errorf("unknown type %#x", d[0])
}

// harmlessFrame accepts what keeps a link alive: ARP, ICMP, and IPv6's
// neighbour discovery and its like.
func harmlessFrame(frame []byte) error {
	const ethernet, ipv4, ipv6 = 14, 20, 40
	switch kind := binary.BigEndian.Uint16(frame[12:]); {
	case kind == 0x0806: // ARP
		return nil
	case kind == 0x0800 && len(frame) >= ethernet+ipv4 && frame[ethernet+9] == 1: // ICMP
		return nil
	case kind == 0x0800 && len(frame) >= ethernet+ipv4 && frame[ethernet+9] == 2: // IGMP, of a bridge
		return nil
	case kind == 0x86dd && len(frame) >= ethernet+ipv6 && (frame[ethernet+6] == 58 || frame[ethernet+6] == 0): // ICMPv6, MLD's hop-by-hop options
		return nil
	}
	return fmt.Errorf("a frame of another protocol: %x…", frame[:min(40, len(frame))])
}

// tlsRecords walks a direction of a TCP connection, which must be TLS records
// from its first byte to its last whole one.
func tlsRecords(s *lab.Stream) (n int, err error) {
	if !s.Begun {
		return 0, fmt.Errorf("its beginning was not captured")
	}
	const header, most = 5, 16384 + 256 // RFC 8446 §5.2
	for b := s.Bytes; len(b) >= header; n++ {
		length := int(binary.BigEndian.Uint16(b[3:]))
		if b[0] < 20 || b[0] > 23 || b[1] != 3 || length > most {
			return n, fmt.Errorf("byte %d: no TLS record: %x…", len(s.Bytes)-len(b), b[:min(16, len(b))])
		}
		if n == 0 && b[0] != 22 && b[0] != 21 {
			return n, fmt.Errorf("it does not begin with a TLS handshake or alert: %x…", b[:header])
		}
		if len(b) < header+length {
			break // cut in the middle of a record
		}
		b = b[header+length:]
	}
	return n, nil
}

// lookForCanaries fails when a secret or a name is in captured bytes: in a frame,
// or in a TCP stream across frames.
func (s *stage) lookForCanaries(t *testing.T, packets []lab.Packet, streams []*lab.Stream, tokens []string) {
	canaries := map[string][]byte{}
	for _, name := range []string{canaryCluster, canaryNamespace, canaryPod, canaryConfigMap, canaryEmail, "canary-value", "canary.example", "kube-system", "oidc:developers", s.NetworkID} {
		canaries[name] = []byte(name)
	}
	for i, token := range tokens {
		signature := lab.Signature(token)
		raw, err := base64.RawURLEncoding.DecodeString(signature)
		if err != nil {
			t.Fatalf("signature of ID token %d: %v", i, err)
		}
		canaries[fmt.Sprintf("signature of ID token %d", i)] = []byte(signature[:32])
		canaries[fmt.Sprintf("raw signature of ID token %d", i)] = raw[:24]
		canaries[fmt.Sprintf("claims of ID token %d", i)] = []byte(token[len(token)/3 : len(token)/3+32])
	}
	look := func(where string, b []byte) {
		for name, canary := range canaries {
			if at := bytes.Index(b, canary); at >= 0 {
				t.Errorf("%s holds %s at byte %d", where, name, at)
			}
		}
	}
	for _, p := range packets {
		look(fmt.Sprintf("a frame %s > %s", p.From, p.To), p.Frame)
	}
	for _, stream := range streams {
		look(fmt.Sprintf("TCP %s > %s", stream.From, stream.To), stream.Bytes)
	}
}

// revoke is what an operator does when a laptop was stolen.
func (s *stage) revoke(t *testing.T) {
	w := s.watch(t, "watch-revoke")
	begin := s.revokeAlice(t)
	s.expectCut(t, w, begin)
	r := s.alice.Kubectl(s.within(t, 30*time.Second), "--context", s.KubeContext(), "get", "namespaces")
	if r.Code == 0 {
		t.Errorf("after the revocation: %v", r)
	}
	t.Logf("%v", r)
	// A new login opens the way again: the person is not banned, the login is.
	if _, err := s.alice.Login(s.within(t, time.Minute), "alice"); err != nil {
		t.Fatal(err)
	}
	s.kubectl(t, "get", "namespaces")
}
