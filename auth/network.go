package auth

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"

	"github.com/zt-daemon/zt/auth/key"
)

const (
	networkIDSize     = 20 // bytes of SHA-256, as in hashes and Noise prologues
	networkIDTextSize = 32 // base32 characters

	// What each hash of this file begins with, so that none can stand for another.
	networkIDDomain     = "zt-net-v1"
	networkPrefixDomain = "zt-prefix-v1"
	networkAddrDomain   = "zt-addr-v1"

	networkPrefixBits = 48 // fd (RFC 4193 §3.1) and 40 bits of hash
)

var networkIDEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NetworkID names a network: the first 20 bytes of SHA-256("zt-net-v1" ‖ the
// network key, SEC1 uncompressed). Its text is 32 characters of lower-case
// base32 (RFC 4648 §6) without padding. It is comparable; the zero value is no
// network.
type NetworkID [networkIDSize]byte

// IDOf returns the id of the network whose key this is.
func IDOf(k key.NetworkPublic) NetworkID {
	h := sha256.Sum256(k.Append([]byte(networkIDDomain)))
	return NetworkID(h[:networkIDSize])
}

// ParseNetworkID reads the text form, exactly: lower case, 32 characters.
func ParseNetworkID(s string) (NetworkID, error) {
	var id NetworkID
	if len(s) != networkIDTextSize {
		return id, fmt.Errorf("network id is %d characters, want %d", len(s), networkIDTextSize)
	}
	// 32 characters are 160 bits: no spare bits, so each id has one text. The
	// decoder skips line ends, so a short result is possible.
	b, err := networkIDEncoding.DecodeString(s)
	if err != nil || len(b) != networkIDSize {
		return id, fmt.Errorf("network id %q is not lower-case base32 (a–z, 2–7)", s)
	}
	return NetworkID(b), nil
}

// IsZero reports whether id is no network.
func (id NetworkID) IsZero() bool { return id == NetworkID{} }

// String is the text form.
func (id NetworkID) String() string { return networkIDEncoding.EncodeToString(id[:]) }

// MarshalText gives String's form.
func (id NetworkID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads String's form.
func (id *NetworkID) UnmarshalText(text []byte) error {
	parsed, err := ParseNetworkID(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// Prefix is where the network's overlay addresses lie: fd ‖ 40 bits of
// SHA-256("zt-prefix-v1" ‖ network id), a /48 of RFC 4193.
func (id NetworkID) Prefix() netip.Prefix {
	h := sha256.Sum256(append([]byte(networkPrefixDomain), id[:]...))
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:6], h[:])
	return netip.PrefixFrom(netip.AddrFrom16(a), networkPrefixBits)
}

// PersonAddr is the overlay address of whoever holds login key k. It outlives
// restarts of the laptop's daemon.
func (id NetworkID) PersonAddr(k key.LoginPublic) netip.Addr {
	return id.addr(k.Append(nil))
}

// NodeAddr is the overlay address of the node whose WireGuard key is k.
func (id NetworkID) NodeAddr(k key.WireGuardPublic) netip.Addr {
	return id.addr(k.Append(nil))
}

// addr is Prefix ‖ 80 bits of SHA-256("zt-addr-v1" ‖ network id ‖ k). A login
// key is 65 bytes and a WireGuard key 32, so the two kinds never share an input.
func (id NetworkID) addr(k []byte) netip.Addr {
	h := sha256.Sum256(append(append([]byte(networkAddrDomain), id[:]...), k...))
	a := id.Prefix().Addr().As16()
	copy(a[networkPrefixBits/8:], h[:])
	return netip.AddrFrom16(a)
}
