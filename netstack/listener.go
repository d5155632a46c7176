package netstack

import (
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Listener accepts flows on one port of the overlay address.
type Listener struct {
	ep        tcpip.Endpoint
	wq        *waiter.Queue
	budget    *budget
	addr      netip.AddrPort
	closed    chan struct{}
	closeOnce sync.Once
}

var _ net.Listener = (*Listener)(nil)

func listenStack(s *stack.Stack, b *budget, at netip.AddrPort) (*Listener, error) {
	var wq waiter.Queue
	ep, terr := s.NewEndpoint(tcp.ProtocolNumber, header.IPv6ProtocolNumber, &wq)
	if terr != nil {
		return nil, stackError(terr)
	}
	terr = ep.Bind(fullAddress(at))
	if terr == nil {
		terr = ep.Listen(listenBacklog)
	}
	var addr tcpip.FullAddress
	if terr == nil {
		addr, terr = ep.GetLocalAddress()
	}
	if terr != nil {
		ep.Close()
		return nil, stackError(terr)
	}
	return &Listener{ep: ep, wq: &wq, budget: b, addr: netip.AddrPortFrom(at.Addr(), addr.Port), closed: make(chan struct{})}, nil
}

// Accept implements net.Listener; the connection is a *Conn.
func (l *Listener) Accept() (net.Conn, error) {
	c, err := l.AcceptFlow()
	if err != nil {
		return nil, err
	}
	return c, nil
}

// AcceptFlow is Accept with the type that it returns. The error is
// net.ErrClosed, wrapped, once the listener or its device is closed.
func (l *Listener) AcceptFlow() (*Conn, error) {
	entry, notify := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	l.wq.EventRegister(&entry)
	defer l.wq.EventUnregister(&entry)
	for {
		select {
		case <-l.closed:
			return nil, l.fault()
		default:
		}
		ep, wq, terr := l.ep.Accept(nil)
		if terr == nil {
			c, err := newConn(ep, wq, l.budget)
			if err != nil {
				continue // reset before we came to it
			}
			return c, nil
		}
		if _, wait := terr.(*tcpip.ErrWouldBlock); !wait { // the stack was closed
			return nil, l.fault()
		}
		select {
		case <-notify:
		case <-l.closed:
		}
	}
}

func (l *Listener) fault() error {
	return &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
}

// Close implements net.Listener: Accept returns, accepted flows live on, flows
// that wait to be accepted are reset.
func (l *Listener) Close() error {
	l.closeOnce.Do(func() {
		close(l.closed)
		l.ep.Close()
	})
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// AddrPort is the overlay address and the port.
func (l *Listener) AddrPort() netip.AddrPort { return l.addr }
