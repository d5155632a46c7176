package daemon

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxTrain is the most bytes one send passes to the kernel. Above some
	// 65,490 bytes payload, headers and frame reach the device's gso_max_size,
	// the kernel segments in software, and throughput falls to a sixth.
	maxTrain = 65000
	// maxSegments is Linux's UDP_MAX_SEGMENTS before 6.9.
	maxSegments = 64
	// slabs is how many trains one receive takes.
	slabs = 8
)

// offloadSocket moves trains of packets: one recvmmsg with UDP_GRO fills fixed
// slabs, one sendmsg with UDP_SEGMENT sends many packets (udp(7)).
//
// System calls are made raw, without telling the Go scheduler: they do not block,
// and taking the processor away and back cost a quarter of a round trip when it
// was measured.
type offloadSocket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	v6   bool // the socket is of AF_INET6 and takes IPv4 addresses mapped

	canGSO bool        // the kernel knows UDP_SEGMENT
	gso    atomic.Bool // canGSO, and no path has refused it
	gro    bool
	sends  sync.Pool // of *sendState

	// What the reading goroutine owns.
	headers  [slabs]mmsghdr
	vectors  [slabs]unix.Iovec
	names    [slabs]unix.RawSockaddrInet6 // large enough for both families
	controls [slabs][controlSize]byte
	slab     [slabs][]byte
	n        int
	errno    unix.Errno
	readable func(fd uintptr) bool
}

// controlSize holds one control message with an int, and room to see another.
const controlSize = 64

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [unsafe.Sizeof(uintptr(0)) - 4]byte
}

func listenUDP(addr netip.AddrPort) (socket, error) {
	c, err := listen(addr)
	if err != nil {
		return nil, err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		c.Close()
		return nil, err
	}
	s := &offloadSocket{conn: c, raw: raw}
	err = raw.Control(func(fd uintptr) {
		domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		s.v6 = err == nil && domain == unix.AF_INET6
		_, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		s.canGSO = err == nil
		s.gro = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	})
	if err != nil {
		c.Close()
		return nil, err
	}
	s.gso.Store(s.canGSO)
	s.sends.New = func() any { return newSendState() }
	for i := range s.headers {
		s.slab[i] = make([]byte, maxDatagram)
		s.vectors[i].Base = &s.slab[i][0]
		s.vectors[i].SetLen(maxDatagram)
		h := &s.headers[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&s.names[i]))
		h.Iov = &s.vectors[i]
		h.SetIovlen(1)
		h.Control = &s.controls[i][0]
	}
	s.readable = s.recvmmsg
	return s, nil
}

func (s *offloadSocket) offload() (send, receive bool) { return s.gso.Load(), s.gro }
func (s *offloadSocket) relearn()                      { s.gso.Store(s.canGSO) }
func (s *offloadSocket) local() netip.AddrPort         { return localAddr(s.conn) }
func (s *offloadSocket) wakeAt(t time.Time)            { _ = s.conn.SetReadDeadline(t) }
func (s *offloadSocket) close() error                  { return s.conn.Close() }

func (s *offloadSocket) read() (int, error) {
	s.n, s.errno = 0, 0
	if err := s.raw.Read(s.readable); err != nil {
		return 0, err
	}
	if s.errno != 0 {
		return 0, os.NewSyscallError("recvmmsg", s.errno)
	}
	return s.n, nil
}

// recvmmsg reads once; false says that there is nothing to read yet.
func (s *offloadSocket) recvmmsg(fd uintptr) bool {
	for i := range s.headers {
		h := &s.headers[i].hdr
		h.Namelen = uint32(unsafe.Sizeof(s.names[i]))
		h.SetControllen(controlSize)
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&s.headers[0])), slabs, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			s.n = int(n)
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			s.errno = errno
			return true
		}
	}
}

func (s *offloadSocket) train(i int) (b []byte, segment int, from netip.AddrPort) {
	m := &s.headers[i]
	if m.hdr.Flags&unix.MSG_TRUNC != 0 || int(m.len) > maxDatagram {
		return nil, 0, from
	}
	b = s.slab[i][:m.len]
	segment = segmentSize(s.controls[i][:min(int(m.hdr.Controllen), controlSize)])
	if segment <= 0 || segment > len(b) {
		segment = len(b)
	}
	return b, segment, sockaddr(&s.names[i])
}

// segmentSize reads the size that UDP_GRO reports; 0: one packet.
func segmentSize(control []byte) int {
	for len(control) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return 0
		}
		if h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4 {
			return int(int32(binary.NativeEndian.Uint32(data)))
		}
		control = rest
	}
	return 0
}

func sockaddr(name *unix.RawSockaddrInet6) netip.AddrPort {
	switch name.Family {
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), networkOrder(name.Port))
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), networkOrder(v4.Port))
	}
	return netip.AddrPort{}
}

// networkOrder turns a port between the sockaddr's byte order and this machine's.
func networkOrder(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

// A sendState is what one sendmsg needs, kept so that sending allocates nothing.
type sendState struct {
	hdr      unix.Msghdr
	name     unix.RawSockaddrInet6
	vectors  [maxSegments]unix.Iovec
	control  []byte // one UDP_SEGMENT message
	errno    unix.Errno
	once     func(fd uintptr)
	writable func(fd uintptr) bool
}

func newSendState() *sendState {
	st := &sendState{control: make([]byte, unix.CmsgSpace(2))}
	st.hdr.Name = (*byte)(unsafe.Pointer(&st.name))
	st.hdr.Iov = &st.vectors[0]
	h := (*unix.Cmsghdr)(unsafe.Pointer(&st.control[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	st.once = func(fd uintptr) { st.sendmsg(fd) }
	st.writable = st.sendmsg
	return st
}

// sendmsg sends once; false says that the socket's buffer is full.
func (st *sendState) sendmsg(fd uintptr) bool {
	for {
		_, _, st.errno = unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&st.hdr)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch st.errno {
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			return true
		}
	}
}

func (st *sendState) setName(to netip.AddrPort, v6 bool) {
	st.name = unix.RawSockaddrInet6{}
	if v6 {
		st.name.Family, st.name.Port, st.name.Addr = unix.AF_INET6, networkOrder(to.Port()), to.Addr().As16()
		st.hdr.Namelen = unix.SizeofSockaddrInet6
		return
	}
	v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&st.name))
	v4.Family, v4.Port, v4.Addr = unix.AF_INET, networkOrder(to.Port()), to.Addr().As4()
	st.hdr.Namelen = unix.SizeofSockaddrInet4
}

// write sends packets in as few trains as their sizes allow.
func (s *offloadSocket) write(packets [][]byte, to netip.AddrPort) error {
	if !s.v6 && !to.Addr().Is4() {
		return os.NewSyscallError("sendmsg", unix.EAFNOSUPPORT)
	}
	st := s.sends.Get().(*sendState)
	defer s.sends.Put(st)
	st.setName(to, s.v6)
	var first error
	for len(packets) > 0 {
		n := 1
		if s.gso.Load() {
			n = trainLength(packets)
		}
		err := s.sendTrain(st, packets[:n])
		if n > 1 && noSegmentation(err) {
			s.gso.Store(false) // send the same packets one by one
			continue
		}
		if first == nil {
			first = err
		}
		packets = packets[n:]
	}
	return first
}

// writeWhole sends one packet with "don't fragment" and whatever the kernel
// believes of the path (ip(7), IP_PMTUDISC_PROBE). What others send meanwhile goes
// the same way, which does it no harm.
func (s *offloadSocket) writeWhole(packet []byte, to netip.AddrPort) error {
	if err := s.discover(unix.IP_PMTUDISC_PROBE); err != nil {
		return err
	}
	defer s.discover(unix.IP_PMTUDISC_WANT) // the default
	return s.write([][]byte{packet}, to)
}

func (s *offloadSocket) discover(how int) (err error) {
	if e := s.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, how)
		if s.v6 && err == nil {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, how) // the same numbers
		}
	}); e != nil {
		return e
	}
	return err
}

// noSegmentation reports whether err means that the path cannot take trains: EIO
// from a device without checksum offload, EINVAL where a segment and its headers
// exceed the route's MTU (udp(7)).
func noSegmentation(err error) bool {
	e, ok := err.(*os.SyscallError)
	return ok && (e.Err == unix.EIO || e.Err == unix.EINVAL)
}

// trainLength is how many of the first packets make one train: all of the first
// one's size, but the last, which may be shorter.
func trainLength(packets [][]byte) int {
	size := len(packets[0])
	total := size
	n := 1
	for n < len(packets) && n < maxSegments {
		l := len(packets[n])
		if l > size || total+l > maxTrain {
			break
		}
		total += l
		n++
		if l < size {
			break
		}
	}
	return n
}

func (s *offloadSocket) sendTrain(st *sendState, packets [][]byte) error {
	for i, p := range packets {
		st.vectors[i].Base = &p[0]
		st.vectors[i].SetLen(len(p))
	}
	st.hdr.SetIovlen(len(packets))
	st.hdr.Control = nil
	st.hdr.SetControllen(0)
	if len(packets) > 1 {
		binary.NativeEndian.PutUint16(st.control[unix.CmsgLen(0):], uint16(len(packets[0])))
		st.hdr.Control = &st.control[0]
		st.hdr.SetControllen(len(st.control))
	}
	// Control does not make senders wait for each other, as Write would.
	err := s.raw.Control(st.once)
	if err == nil && st.errno == unix.EAGAIN {
		err = s.raw.Write(st.writable)
	}
	for i := range packets {
		st.vectors[i].Base = nil
	}
	if err != nil {
		return err
	}
	if st.errno != 0 {
		return os.NewSyscallError("sendmsg", st.errno)
	}
	return nil
}
