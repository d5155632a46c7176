package relay

import (
	"net"
	"runtime"
)

const maxReaders = 16 // sockets of a port

// ListenUDP opens the sockets of one UDP address, for Config.UDP: one a core
// where the system can share an address among them, else one.
func ListenUDP(address string) ([]*net.UDPConn, error) {
	first, err := net.ListenPacket("udp", address)
	if err != nil {
		return nil, err
	}
	return share(first.(*net.UDPConn), min(runtime.GOMAXPROCS(0), maxReaders)), nil
}
