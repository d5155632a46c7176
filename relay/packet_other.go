//go:build !linux

package relay

import (
	"errors"
	"net"
	"net/netip"
)

const slabSize = 64 << 10

// sockaddr is not needed where the standard library sends.
type sockaddr struct{}

// A port is a UDP address of ours.
type port struct{ conn *net.UDPConn }

// A socket is a UDP socket that receives and sends datagrams singly.
type socket struct {
	port *port
	conn *net.UDPConn
}

// newSocket prepares a socket of port p; nil: of a port of its own.
func newSocket(conn *net.UDPConn, p *port) (*socket, error) {
	if p == nil {
		p = &port{conn}
	}
	return &socket{p, conn}, nil
}

// run forwards what arrives until the socket is closed.
func (s *socket) run(f *forwarder) error {
	b := newBatch(s)
	for {
		if err := b.step(f); err != nil {
			return err
		}
	}
}

// A batch is the buffer of one goroutine that forwards.
type batch struct {
	socket *socket
	tally  tally
	slab   [slabSize]byte
	from   path
}

func newBatch(s *socket) *batch {
	return &batch{socket: s, from: path{via: s.port}}
}

// step receives and forwards one datagram.
func (b *batch) step(f *forwarder) error {
	n, from, err := b.socket.conn.ReadFromUDPAddrPort(b.slab[:])
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	if err != nil {
		return nil // an error that ICMP left on the socket, or a datagram too large
	}
	b.from.addr = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	f.train(b.slab[:n], n, &b.from, f.nanos(), b, &b.tally)
	f.counter(&b.tally)
	b.tally = tally{}
	return nil
}

func (b *batch) send(p []byte, seg int, to *path) {
	for len(p) > 0 {
		n := min(seg, len(p))
		if _, err := to.via.conn.WriteToUDPAddrPort(p[:n], to.addr); err != nil {
			b.tally.dropped[dropSend]++
		}
		p = p[n:]
	}
}
