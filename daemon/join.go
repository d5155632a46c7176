package daemon

import (
	"net/netip"

	"github.com/zt-daemon/zt/auth/key"
)

// Join has packets for a peer go straight to the UDP address of its Transport,
// which has joined this one with the same channel: without a relay, for
// benchmarks. Nothing binds or watches the path, and nothing ends it but Close.
func (t *Transport) Join(peer key.WireGuardPublic, remote netip.AddrPort, channel uint32) {
	l := t.newLink()
	l.remote.Store(&remote)
	l.setUp(true)
	t.attach(l)
	l.wide.Store(true)
	l.setBound(true)
	t.addHop(&hop{link: l, channel: channel, peer: peer})
}
