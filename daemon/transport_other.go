//go:build !linux

package daemon

import "net/netip"

func listenUDP(addr netip.AddrPort) (socket, error) { return listenPlain(addr) }
