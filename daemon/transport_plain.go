package daemon

import (
	"errors"
	"net"
	"net/netip"
	"time"
)

// plainSocket reads and writes one packet a system call. It serves every system
// that Go's net package does.
type plainSocket struct {
	conn *net.UDPConn
	buf  []byte // the packet that was read
	n    int
	from netip.AddrPort
}

func listenPlain(addr netip.AddrPort) (socket, error) {
	c, err := listen(addr)
	if err != nil {
		return nil, err
	}
	return &plainSocket{conn: c, buf: make([]byte, maxDatagram)}, nil
}

func (s *plainSocket) read() (int, error) {
	n, from, err := s.conn.ReadFromUDPAddrPort(s.buf)
	if err != nil {
		return 0, err
	}
	s.n, s.from = n, unmap(from)
	return 1, nil
}

func (s *plainSocket) train(int) ([]byte, int, netip.AddrPort) { return s.buf[:s.n], s.n, s.from }

func (s *plainSocket) write(packets [][]byte, to netip.AddrPort) error {
	for _, p := range packets {
		if _, err := s.conn.WriteToUDPAddrPort(p, to); err != nil {
			return err
		}
	}
	return nil
}

func (s *plainSocket) writeWhole([]byte, netip.AddrPort) error { return errors.ErrUnsupported }

func (s *plainSocket) offload() (send, receive bool) { return false, false }
func (s *plainSocket) relearn()                      {}
func (s *plainSocket) local() netip.AddrPort         { return localAddr(s.conn) }
func (s *plainSocket) wakeAt(t time.Time)            { _ = s.conn.SetReadDeadline(t) }
func (s *plainSocket) close() error                  { return s.conn.Close() }

func localAddr(c *net.UDPConn) netip.AddrPort {
	a, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return unmap(a.AddrPort())
}

// unmap gives an IPv4 address that came by a socket of both families its own form.
func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
