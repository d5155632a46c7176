package netstack

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zt-daemon/zt/auth/key"
	"golang.zx2c4.com/wireguard/device"
)

// flushLimit bounds how long removing peers waits for their RSTs to leave.
const flushLimit = 50 * time.Millisecond

// ErrNoPeer says that no peer holds an overlay address.
var ErrNoPeer = errors.New("no peer holds this overlay address")

// AddrTakenError says that a peer was not set because another holds its address.
type AddrTakenError struct {
	Addr   netip.Addr
	Holder key.WireGuardPublic // the device's own key, if it is its own address
}

func (e *AddrTakenError) Error() string {
	return fmt.Sprintf("overlay address %v is held by peer %v", e.Addr, e.Holder)
}

// Peer is whom a device exchanges packets with.
type Peer struct {
	PublicKey key.WireGuardPublic
	// Preshared must be the same on both sides, or no handshake succeeds.
	// The zero value is WireGuard's "none".
	Preshared key.Preshared
	// Addr is the overlay address that this peer alone may send from and is
	// sent to: its allowed IP, a /128.
	Addr netip.Addr
}

func (p Peer) equal(q Peer) bool {
	return p.PublicKey == q.PublicKey && p.Addr == q.Addr && p.Preshared.Equal(q.Preshared)
}

// PeerStatus is what the engine knows of a peer.
type PeerStatus struct {
	PublicKey     key.WireGuardPublic
	Addr          netip.Addr
	LastHandshake time.Time // zero: none
	RxBytes       uint64    // of WireGuard messages
	TxBytes       uint64
}

// SetPeer adds a peer, or replaces the one of that key; what is the same
// already is left alone. A peer whose preshared key or address differs is
// removed first, with its sessions and flows. It returns *AddrTakenError if
// another peer holds the address: WireGuard itself would move it silently.
func (d *Device) SetPeer(p Peer) error {
	if p.PublicKey.IsZero() || p.PublicKey == d.public {
		return fmt.Errorf("set peer %v: not another's key", p.PublicKey)
	}
	if !usable(p.Addr) {
		return fmt.Errorf("set peer %v: %v is not a unicast IPv6 address", p.PublicKey, p.Addr)
	}
	d.peerMu.Lock()
	defer d.peerMu.Unlock()
	e, err := d.engine()
	if err != nil {
		return fmt.Errorf("set peer %v: %w", p.PublicKey, err)
	}
	if p.Addr == d.cfg.Addr {
		return &AddrTakenError{p.Addr, d.public}
	}
	for _, q := range d.peers {
		if q.Addr == p.Addr && q.PublicKey != p.PublicKey {
			return &AddrTakenError{p.Addr, q.PublicKey}
		}
	}
	if q, ok := d.peers[p.PublicKey]; ok {
		if q.equal(p) {
			return nil
		}
		e.removePeers([]Peer{q})
		delete(d.peers, p.PublicKey)
	}
	e.bind.add(p.PublicKey)
	if err := e.addPeer(p); err != nil {
		e.wg.RemovePeer(noiseKey(p.PublicKey)) // it may be half made
		e.bind.remove(p.PublicKey)
		return fmt.Errorf("set peer %v: %w", p.PublicKey, err)
	}
	d.peers[p.PublicKey] = p
	return nil
}

// RemovePeer resets the flows of these peers (the other side sees a RST if a
// session is up), then forgets them and their sessions. Keys that are no
// peer's are ignored.
func (d *Device) RemovePeer(keys ...key.WireGuardPublic) {
	d.peerMu.Lock()
	defer d.peerMu.Unlock()
	e, err := d.engine()
	if err != nil {
		return
	}
	var gone []Peer
	for _, k := range keys {
		if p, ok := d.peers[k]; ok {
			gone = append(gone, p)
			delete(d.peers, k)
		}
	}
	e.removePeers(gone)
}

// Peers returns the status of every peer, ordered by address.
func (d *Device) Peers() []PeerStatus {
	d.peerMu.Lock()
	defer d.peerMu.Unlock()
	e, err := d.engine()
	if err != nil {
		return nil
	}
	all := e.status()
	out := make([]PeerStatus, 0, len(d.peers))
	for k, p := range d.peers {
		s := all[k]
		s.PublicKey, s.Addr = k, p.Addr
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return a.Addr.Compare(b.Addr) })
	return out
}

// Peer returns the status of one peer, and whether it is one.
func (d *Device) Peer(k key.WireGuardPublic) (PeerStatus, bool) {
	for _, s := range d.Peers() {
		if s.PublicKey == k {
			return s, true
		}
	}
	return PeerStatus{}, false
}

// Handshake gives up the sessions with a peer and begins a handshake at once:
// for when the machine woke up, or the other side is known to have restarted.
// It does not wait for the answer. It returns ErrNoPeer if k is no peer's.
func (d *Device) Handshake(k key.WireGuardPublic) error {
	e, err := d.engine()
	if err != nil {
		return err
	}
	p := e.wg.LookupPeer(noiseKey(k))
	if p == nil {
		return ErrNoPeer
	}
	p.ExpireCurrentKeypairs()
	if err := p.SendHandshakeInitiation(false); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("handshake with %v: %w", k, err)
	}
	return nil
}

// holds reports whether a peer holds a.
func (d *Device) holds(a netip.Addr) bool {
	d.peerMu.Lock()
	defer d.peerMu.Unlock()
	for _, p := range d.peers {
		if p.Addr == a {
			return true
		}
	}
	return false
}

func noiseKey(k key.WireGuardPublic) device.NoisePublicKey { return device.NoisePublicKey(k.Bytes()) }

// addPeer makes a peer in one set operation, so that no packet meets half of it.
func (e *engine) addPeer(p Peer) error {
	pub, psk := p.PublicKey.Bytes(), p.Preshared.Bytes()
	b := make([]byte, 0, 512) // never grows: clear then leaves no copy of the key
	b = append(b, "public_key="...)
	b = hex.AppendEncode(b, pub[:])
	b = append(b, "\npreshared_key="...)
	b = hex.AppendEncode(b, psk[:])
	b = append(b, "\nendpoint="...)
	b = hex.AppendEncode(b, pub[:])
	b = append(b, "\nreplace_allowed_ips=true\nallowed_ip="...)
	b = p.Addr.AppendTo(b)
	b = append(b, "/128\n\n"...)
	err := e.wg.IpcSetOperation(bytes.NewReader(b))
	clear(b)
	if err != nil {
		return fmt.Errorf("wireguard: %v", err) // names the field, not its value
	}
	return nil
}

func (e *engine) removePeers(gone []Peer) {
	if len(gone) == 0 {
		return
	}
	addrs := make(map[netip.Addr]bool, len(gone))
	keys := make([]key.WireGuardPublic, 0, len(gone))
	for _, p := range gone {
		addrs[p.Addr] = true
		keys = append(keys, p.PublicKey)
	}
	if e.abort(func(a netip.Addr) bool { return addrs[a] }) > 0 {
		e.flush(keys)
	}
	for _, k := range keys {
		e.wg.RemovePeer(noiseKey(k))
		e.bind.remove(k)
	}
	for a := range addrs {
		e.link.mtu.told(a.As16(), MaxMTU)
	}
}

// flush waits until what the stack has queued so far went out to these peers,
// at most flushLimit. An empty message, a keepalive, goes after it: once that
// is sent, all before it is.
func (e *engine) flush(keys []key.WireGuardPublic) {
	timer := time.NewTimer(flushLimit)
	defer timer.Stop()
	target := e.link.queued()
	for !e.link.taken(target) {
		select {
		case <-timer.C:
			return
		case <-time.After(time.Millisecond):
		}
	}
	var last []<-chan struct{}
	all := e.status()
	for _, k := range keys {
		ep, p := e.bind.peer(k), e.wg.LookupPeer(noiseKey(k))
		if ep == nil || p == nil || all[k].LastHandshake.IsZero() {
			continue
		}
		last = append(last, ep.watchKeepalive())
		p.SendKeepalive()
	}
	for _, ch := range last {
		select {
		case <-ch:
		case <-timer.C:
			return
		}
	}
}

// status reads wireguard-go's own report. It holds keys: it is not kept.
func (e *engine) status() map[key.WireGuardPublic]PeerStatus {
	var report bytes.Buffer
	if err := e.wg.IpcGetOperation(&report); err != nil {
		return nil
	}
	defer clear(report.Bytes())
	out := make(map[key.WireGuardPublic]PeerStatus)
	var (
		s    PeerStatus
		sec  int64
		scan = bufio.NewScanner(bytes.NewReader(report.Bytes()))
	)
	for scan.Scan() {
		name, value, _ := strings.Cut(scan.Text(), "=")
		switch name {
		case "public_key":
			raw, _ := hex.DecodeString(value)
			k, err := key.ParseWireGuard(raw)
			if err != nil {
				continue
			}
			s, sec = PeerStatus{PublicKey: k}, 0
		case "last_handshake_time_sec":
			sec, _ = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			if nsec, _ := strconv.ParseInt(value, 10, 64); sec != 0 || nsec != 0 {
				s.LastHandshake = time.Unix(sec, nsec)
			}
		case "tx_bytes":
			s.TxBytes, _ = strconv.ParseUint(value, 10, 64)
		case "rx_bytes":
			s.RxBytes, _ = strconv.ParseUint(value, 10, 64)
		default:
			continue
		}
		out[s.PublicKey] = s
	}
	return out
}
