package netstack

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Conn is a flow over the overlay: a net.Conn whose writing side can be closed
// alone, and which can be reset. Errors are those of a net.TCPConn: io.EOF,
// net.ErrClosed, os.ErrDeadlineExceeded, syscall.ECONNRESET.
type Conn struct {
	ep            tcpip.Endpoint
	local, remote netip.AddrPort

	readable, writable chan struct{} // one value: look again
	entries            [2]waiter.Entry
	readBy, writeBy    deadline
	closed             atomic.Bool // Close or Reset was called
	budget             *budget

	readMu sync.Mutex // one Read at a time; guards sink, read
	sink   tcpip.SliceWriter
	read   int // bytes since the budget was last told

	writeMu sync.Mutex // one Write at a time; guards source, wrote, rtt
	source  bytes.Reader
	wrote   int           // bytes since the budget was last told
	rtt     time.Duration // the shortest seen: queues lengthen it; 0: none yet
}

var _ net.Conn = (*Conn)(nil)

// newConn makes a Conn of a connected endpoint, which it owns from now on.
func newConn(ep tcpip.Endpoint, wq *waiter.Queue, b *budget) (*Conn, error) {
	local, err := ep.GetLocalAddress()
	if err == nil {
		var remote tcpip.FullAddress
		if remote, err = ep.GetRemoteAddress(); err == nil {
			setUpFlow(ep)
			c := &Conn{ep: ep, budget: b, rtt: roundTrip(ep), local: addrPort(local), remote: addrPort(remote)}
			c.entries[0], c.readable = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
			c.entries[1], c.writable = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
			wq.EventRegister(&c.entries[0])
			wq.EventRegister(&c.entries[1])
			return c, nil
		}
	}
	ep.Abort()
	return nil, stackError(err)
}

// dialStack opens a flow. It gives up when ctx is done or closed is closed,
// and leaves nothing behind then.
func dialStack(ctx context.Context, s *stack.Stack, b *budget, closed <-chan struct{}, to netip.AddrPort) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var wq waiter.Queue
	ep, terr := s.NewEndpoint(tcp.ProtocolNumber, header.IPv6ProtocolNumber, &wq)
	if terr != nil {
		return nil, stackError(terr)
	}
	entry, notify := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)

	// Not bound first: Connect takes a port that is free towards to, of which
	// there are many more than ports free altogether.
	terr = ep.Connect(fullAddress(to))
	var err error
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-notify:
			terr = ep.LastError()
		case <-ctx.Done():
			err = ctx.Err()
		case <-closed:
			err = net.ErrClosed
		}
	}
	if err == nil {
		err = stackError(terr)
	}
	if err != nil {
		ep.Abort()
		return nil, err
	}
	return newConn(ep, &wq, b)
}

// Read implements net.Conn.
func (c *Conn) Read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	expired := c.readBy.wait()
	for {
		if c.readBy.passed() {
			return 0, c.fault("read", os.ErrDeadlineExceeded)
		}
		if c.closed.Load() {
			return 0, c.fault("read", net.ErrClosed)
		}
		if len(b) == 0 {
			return 0, nil
		}
		c.sink = b
		res, terr := c.ep.Read(&c.sink, tcpip.ReadOptions{})
		c.sink = nil
		if terr == nil {
			c.budget.holdReceive(c.ep, res.Count)
			if c.read += res.Count; c.read >= busyBytes {
				c.read = 0
				c.budget.moved(c)
			}
			return res.Count, nil
		}
		if _, wait := terr.(*tcpip.ErrWouldBlock); !wait {
			return 0, c.fault("read", stackError(terr))
		}
		select {
		case <-c.readable:
		case <-expired:
			expired = c.readBy.wait() // it may have been moved meanwhile
		}
	}
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (n int, err error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	expired := c.writeBy.wait()
	for {
		if c.writeBy.passed() {
			return n, c.fault("write", os.ErrDeadlineExceeded)
		}
		if c.closed.Load() {
			return n, c.fault("write", net.ErrClosed)
		}
		if n == len(b) {
			return n, nil
		}
		c.budget.holdSend(c.ep, c.rtt)
		c.source.Reset(b[n:])
		m, terr := c.ep.Write(&c.source, tcpip.WriteOptions{})
		c.source.Reset(nil)
		n += int(m)
		if c.wrote += int(m); c.wrote >= busyBytes {
			c.wrote = 0
			c.budget.moved(c)
			if rtt := roundTrip(c.ep); c.rtt == 0 || rtt > 0 && rtt < c.rtt {
				c.rtt = rtt
			}
		}
		if terr == nil {
			continue
		}
		if _, wait := terr.(*tcpip.ErrWouldBlock); !wait {
			return n, c.fault("write", stackError(terr))
		}
		select {
		case <-c.writable:
		case <-expired:
			expired = c.writeBy.wait()
		}
	}
}

// Close implements net.Conn: what was written is still sent. If bytes were
// not read, the other side sees a RST, as with any TCP.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.ep.Close()
	c.budget.gone(c)
	c.wake()
	return nil
}

// CloseWrite says that nothing more will be written; reading goes on.
func (c *Conn) CloseWrite() error {
	if c.closed.Load() {
		return c.fault("close", net.ErrClosed)
	}
	if terr := c.ep.Shutdown(tcpip.ShutdownWrite); terr != nil {
		return c.fault("close", stackError(terr))
	}
	return nil
}

// Drained reports whether the other side has acknowledged all that was written, or
// nothing more can reach it. Once it was asked, nothing may be written any more.
func (c *Conn) Drained() bool {
	if c.closed.Load() {
		return true
	}
	// gVisor tells only whether there is room in the send buffer: a buffer of one
	// byte has room when it is empty.
	c.ep.SocketOptions().SetSendBufferSize(1, true)
	return c.ep.Readiness(waiter.WritableEvents) != 0
}

// Reset ends the flow at once, also one that was closed and still has
// something to send: the other side sees a RST, what was not sent is lost.
func (c *Conn) Reset() {
	c.closed.Store(true)
	c.ep.Abort()
	c.budget.gone(c)
	c.wake()
}

// wake makes a Read and a Write that wait look again.
func (c *Conn) wake() {
	for _, ch := range []chan struct{}{c.readable, c.writable} {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// LocalAddrPort is this side's overlay address and port.
func (c *Conn) LocalAddrPort() netip.AddrPort { return c.local }

// RemoteAddrPort is the other side's overlay address and port: WireGuard
// vouches that the peer holding the address sent what is read.
func (c *Conn) RemoteAddrPort() netip.AddrPort { return c.remote }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.readBy.set(t)
	c.writeBy.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { c.readBy.set(t); return nil }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { c.writeBy.set(t); return nil }

// fault wraps err as package net does; io.EOF stays bare.
func (c *Conn) fault(op string, err error) error {
	if err == io.EOF {
		return err
	}
	if c.closed.Load() { // whatever the stack calls it
		err = net.ErrClosed
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// stackError returns the error that package net would give, nil for nil.
func stackError(err tcpip.Error) error {
	switch err.(type) {
	case nil:
		return nil
	case *tcpip.ErrClosedForReceive:
		return io.EOF
	case *tcpip.ErrAborted: // by our own side
		return net.ErrClosed
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionAborted:
		return syscall.ECONNABORTED
	case *tcpip.ErrClosedForSend:
		return syscall.EPIPE
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrHostUnreachable:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrPortInUse:
		return syscall.EADDRINUSE
	case *tcpip.ErrNotConnected:
		return syscall.ENOTCONN
	}
	return errors.New(err.String())
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom16(a.Addr().As16()), Port: a.Port()}
}

func addrPort(a tcpip.FullAddress) netip.AddrPort {
	if a.Addr.Len() != 16 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr.As16()), a.Port)
}
