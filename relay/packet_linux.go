package relay

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batchIn  = 32       // datagrams or trains received by one system call
	batchOut = 64       // sent by one
	slabSize = 64 << 10 // a train is at most 65,535 bytes

	socketBuffer = 4 << 20 // bytes asked of the kernel; it may give less
	maxFaults    = 100     // receive errors in a row: the socket is broken
)

// sockaddr is a struct sockaddr_in or sockaddr_in6 as the kernel wrote it, so
// that a reply needs no conversion and a link-local scope survives, and the
// address of ours that was written to: a reply from another is lost in NAT.
type sockaddr struct {
	b     [unix.SizeofSockaddrInet6]byte
	n     uint32
	local [unix.SizeofInet6Pktinfo]byte // struct in_pktinfo or in6_pktinfo, to send
	size  uint8                         // of local; 0: the socket has one address
}

// addrPort reads the address, unmapped and without zone.
func (s *sockaddr) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(s.b[2:])
	switch binary.NativeEndian.Uint16(s.b[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s.b[4:8])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(s.b[8:24])).Unmap(), port)
	}
	return netip.AddrPort{}
}

// A socket is a UDP socket which receives and sends trains where the kernel can
// (UDP_GRO and UDP_SEGMENT, Linux 5.0).
type socket struct {
	conn     *net.UDPConn
	raw      syscall.RawConn
	segments atomic.Bool // the kernel and the device split trains for us
}

func newSocket(conn *net.UDPConn) (*socket, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{conn: conn, raw: raw}
	conn.SetReadBuffer(socketBuffer)  // as much as the system allows
	conn.SetWriteBuffer(socketBuffer) // as much as the system allows
	err = raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) // without it datagrams come singly
		if conn.LocalAddr().(*net.UDPAddr).IP.IsUnspecified() {
			// A socket of both families tells IPv4 addresses in IPv6's form.
			if family, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); family == unix.AF_INET6 {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			} else {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			}
		}
		_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		s.segments.Store(err == nil)
	})
	return s, err
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

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	n uint32 // bytes received or sent
}

// control holds two control messages, aligned for their headers: the segment
// size, and the local address.
type control [8]uint64

func (c *control) bytes() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(c)), unsafe.Sizeof(*c)) }

// put writes a control message at off and returns where the next one goes. Data
// has at most 20 bytes.
func (c *control) put(off, level, typ int, data []byte) int {
	b := c.bytes()[off:]
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = int32(level), int32(typ)
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b[unix.CmsgLen(0):], data)
	return off + unix.CmsgSpace(len(data))
}

// read takes the segment size (0: not told) out of what the kernel wrote, and
// puts the local address into a.
func (c *control) read(n int, a *sockaddr) (segment int) {
	a.size = 0
	for b := c.bytes()[:n]; len(b) >= unix.SizeofCmsghdr; {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		size := int(h.Len) - unix.CmsgLen(0)
		if size < 0 || unix.CmsgLen(size) > len(b) {
			break
		}
		data := b[unix.CmsgLen(0):][:size]
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && size == 4:
			segment = int(int32(binary.NativeEndian.Uint32(data)))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && size == unix.SizeofInet4Pktinfo:
			a.size = unix.SizeofInet4Pktinfo
			clear(a.local[:])
			copy(a.local[4:8], data[4:8]) // ipi_spec_dst; interface 0: as routed
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && size == unix.SizeofInet6Pktinfo:
			a.size = unix.SizeofInet6Pktinfo
			copy(a.local[:], data)
			clear(a.local[16:]) // interface 0: as routed, or as the name's scope says
		}
		b = b[min(unix.CmsgSpace(size), len(b)):]
	}
	return segment
}

// A batch is the buffers of one goroutine that forwards: all are made once and
// used again. The kernel's structures point into it, so it lives on the heap and
// does not move.
type batch struct {
	socket *socket
	tally  tally

	in     [batchIn]mmsghdr
	inVec  [batchIn]unix.Iovec
	inName [batchIn]sockaddr
	inCtl  [batchIn]control
	slabs  [batchIn][slabSize]byte
	from   path // of the datagram being handled

	out     [batchOut]mmsghdr
	outVec  [batchOut]unix.Iovec
	outName [batchOut]sockaddr
	outCtl  [batchOut]control
	outSeg  [batchOut]int
	via     *socket // of all that is queued
	queued  int

	// What the system calls below read and write: they are called by RawConn,
	// and a closure made for each call would be an allocation for each.
	readFunc, writeFunc func(fd uintptr) bool
	first, last         int // of out, to send
	n                   int
	errno               syscall.Errno
	faults              int // in a row, while receiving
}

func newBatch(s *socket) *batch {
	b := &batch{socket: s}
	b.from.via = s
	for i := range b.in {
		b.inVec[i].Base = &b.slabs[i][0]
		b.inVec[i].SetLen(slabSize)
		m := &b.in[i]
		m.Name, m.Iov, m.Control = &b.inName[i].b[0], &b.inVec[i], &b.inCtl[i].bytes()[0]
		m.SetIovlen(1)
	}
	for i := range b.out {
		m := &b.out[i]
		m.Name, m.Iov = &b.outName[i].b[0], &b.outVec[i]
		m.SetIovlen(1)
	}
	b.readFunc = func(fd uintptr) bool { return b.call(unix.SYS_RECVMMSG, fd, &b.in[0], batchIn) }
	b.writeFunc = func(fd uintptr) bool {
		return b.call(unix.SYS_SENDMMSG, fd, &b.out[b.first], b.last-b.first)
	}
	return b
}

// call makes one of the two system calls. It reports false when the socket is
// not ready.
func (b *batch) call(trap, fd uintptr, m *mmsghdr, n int) bool {
	for {
		r, _, errno := syscall.Syscall6(trap, fd, uintptr(unsafe.Pointer(m)), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		b.n, b.errno = int(r), errno
		return errno != unix.EAGAIN
	}
}

// step receives one batch, forwards it and returns when it is sent.
func (b *batch) step(f *forwarder) error {
	for i := range b.in {
		m := &b.in[i]
		m.Namelen = uint32(len(b.inName[i].b))
		m.SetControllen(len(b.inCtl[i].bytes()))
		m.Flags = 0
	}
	if err := b.socket.raw.Read(b.readFunc); err != nil {
		return err
	}
	if b.errno != 0 {
		if b.faults++; b.faults > maxFaults {
			return fmt.Errorf("receive: %w", b.errno)
		}
		return nil // most likely left on the socket by ICMP: the next call goes on
	}
	b.faults = 0
	now := f.nanos()
	for i := range b.n {
		m := &b.in[i]
		size := int(m.n)
		if m.Flags&unix.MSG_TRUNC != 0 {
			b.tally.dropped[dropTruncated]++
			continue
		}
		b.from.name = b.inName[i]
		b.from.name.n = m.Namelen
		b.from.addr = b.from.name.addrPort()
		seg := b.inCtl[i].read(int(m.Controllen), &b.from.name)
		if seg <= 0 || seg > size {
			seg = size
		}
		f.train(b.slabs[i][:size], seg, &b.from, now, b, &b.tally)
	}
	b.flush()
	f.counter(&b.tally)
	b.tally = tally{}
	return nil
}

// send queues a train.
func (b *batch) send(p []byte, seg int, to *path) {
	if len(p) > seg && !to.via.segments.Load() {
		for len(p) > 0 {
			n := min(seg, len(p))
			b.send(p[:n], n, to)
			p = p[n:]
		}
		return
	}
	if b.queued == batchOut || b.queued > 0 && b.via != to.via {
		b.flush()
	}
	b.via = to.via
	i := b.queued
	b.queued++
	b.outVec[i].Base = &p[0]
	b.outVec[i].SetLen(len(p))
	b.outName[i] = to.name
	b.outSeg[i] = seg
	m := &b.out[i]
	m.Namelen = to.name.n
	n := b.local(i)
	if len(p) > seg {
		var size [2]byte
		binary.NativeEndian.PutUint16(size[:], uint16(seg))
		n = b.outCtl[i].put(n, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size[:])
	}
	b.setControl(i, n)
}

// local writes the first control message of out[i], the local address, if there
// is one to write, and returns its length.
func (b *batch) local(i int) int {
	name := &b.outName[i]
	switch name.size {
	case unix.SizeofInet4Pktinfo:
		return b.outCtl[i].put(0, unix.IPPROTO_IP, unix.IP_PKTINFO, name.local[:name.size])
	case unix.SizeofInet6Pktinfo:
		return b.outCtl[i].put(0, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, name.local[:name.size])
	}
	return 0
}

// setControl gives out[i] its first n bytes of control messages.
func (b *batch) setControl(i, n int) {
	m := &b.out[i]
	m.Control = nil
	if n > 0 {
		m.Control = &b.outCtl[i].bytes()[0]
	}
	m.SetControllen(n)
}

// flush sends all that is queued. It waits while the socket's buffer is full.
func (b *batch) flush() {
	for i := 0; i < b.queued; {
		n, errno := b.write(i, b.queued)
		i += n
		if errno != 0 {
			b.unsent(i, errno)
			i++
		}
	}
	b.queued = 0
}

// write sends out[first:last] and returns how many went before the first that
// did not.
func (b *batch) write(first, last int) (int, syscall.Errno) {
	b.first, b.last = first, last
	if err := b.via.raw.Write(b.writeFunc); err != nil {
		return 0, unix.EBADF // closed
	}
	if b.errno != 0 {
		return 0, b.errno
	}
	return b.n, 0
}

// unsent handles an entry that the kernel refused: a train is tried again one
// datagram at a time. EIO: the device cannot split (no checksum offload), and
// will not later; EINVAL, EMSGSIZE: not on this path.
func (b *batch) unsent(i int, errno syscall.Errno) {
	size, seg := int(b.outVec[i].Len), b.outSeg[i]
	if size <= seg || errno == unix.EBADF {
		b.tally.dropped[dropSend] += uint64((size + seg - 1) / seg)
		return
	}
	if errno == unix.EIO {
		b.via.segments.Store(false)
	}
	p := unsafe.Slice(b.outVec[i].Base, size)
	b.setControl(i, b.local(i)) // without the segment size
	for len(p) > 0 {
		n := min(seg, len(p))
		b.outVec[i].Base = &p[0]
		b.outVec[i].SetLen(n)
		if _, errno := b.write(i, i+1); errno != 0 {
			b.tally.dropped[dropSend]++
		}
		p = p[n:]
	}
}
