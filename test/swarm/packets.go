//go:build linux

package swarm

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zt-daemon/zt/test/lab"
)

const maxDatagram = 2048

// packets is one UDP socket for all members. Each sends from an address of its
// own: IP_PKTINFO names it, and a local route makes all of them this machine's.
type packets struct {
	conn    *net.UDPConn
	at      *lab.Namespace
	first   netip.Addr // of member 0
	relay   netip.AddrPort
	members atomic.Pointer[[]*member] // by number
}

func newPackets(at *lab.Namespace, first netip.Addr, relay netip.AddrPort) (*packets, error) {
	p := &packets{at: at, first: first, relay: relay}
	p.members.Store(&[]*member{})
	var err error
	p.conn, err = p.open(netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	if err != nil {
		return nil, fmt.Errorf("the members' UDP socket: %w", err)
	}
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	p.conn.SetReadBuffer(8 << 20) // as much as the system allows
	p.conn.SetWriteBuffer(8 << 20)
	var setErr error
	err = raw.Control(func(fd uintptr) { setErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) })
	if err == nil {
		err = setErr
	}
	return p, err
}

// open opens a UDP socket where the members are.
func (p *packets) open(at netip.AddrPort) (c *net.UDPConn, err error) {
	err = p.at.Do(func() error {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	})
	return c, err
}

// addr is the address of a member by its number.
func (p *packets) addr(number int) netip.Addr {
	b := p.first.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(number))
	return netip.AddrFrom4(b)
}

func (p *packets) number(a netip.Addr) int {
	b, first := a.As4(), p.first.As4()
	return int(binary.BigEndian.Uint32(b[:])) - int(binary.BigEndian.Uint32(first[:]))
}

// add makes m known by the next number.
func (p *packets) add(m *member) {
	next := append(*p.members.Load(), m)
	p.members.Store(&next)
}

// send sends b to the relay from a member's address.
func (p *packets) send(from netip.Addr, b []byte) {
	var control [64]byte
	h := (*unix.Cmsghdr)(unsafe.Pointer(&control[0]))
	h.Level, h.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
	ip := from.As4()
	copy(control[unix.CmsgLen(0)+4:], ip[:])                                                  // ipi_spec_dst
	p.conn.WriteMsgUDPAddrPort(b, control[:unix.CmsgSpace(unix.SizeofInet4Pktinfo)], p.relay) // a loss is a loss
}

// run hands out what arrives until the socket is closed.
func (p *packets) run() {
	b, control := make([]byte, maxDatagram), make([]byte, 64)
	for {
		n, cn, _, _, err := p.conn.ReadMsgUDPAddrPort(b, control)
		if err != nil {
			return
		}
		if cn < unix.CmsgSpace(unix.SizeofInet4Pktinfo) {
			continue
		}
		to := netip.AddrFrom4([4]byte(control[unix.CmsgLen(0)+8:])) // ipi_addr
		all := *p.members.Load()
		if i := p.number(to); i >= 0 && i < len(all) {
			all[i].datagram(b[:n])
		}
	}
}

func (p *packets) close() { p.conn.Close() }
