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
// that a reply needs no conversion and a link-local scope survives.
type sockaddr struct {
	b [unix.SizeofSockaddrInet6]byte
	n uint32
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

// cmsg holds one control message with an integer, aligned for its header.
type cmsg [4]uint64

func (c *cmsg) header() *unix.Cmsghdr { return (*unix.Cmsghdr)(unsafe.Pointer(c)) }

func (c *cmsg) all() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(c)), unsafe.Sizeof(*c)) }

func (c *cmsg) data() []byte { return c.all()[unix.CmsgLen(0):] }

// A batch is the buffers of one goroutine that forwards: all are made once and
// used again. The kernel's structures point into it, so it lives on the heap and
// does not move.
type batch struct {
	socket *socket
	tally  tally

	in     [batchIn]mmsghdr
	inVec  [batchIn]unix.Iovec
	inName [batchIn]sockaddr
	inCmsg [batchIn]cmsg
	slabs  [batchIn][slabSize]byte
	from   path // of the datagram being handled

	out     [batchOut]mmsghdr
	outVec  [batchOut]unix.Iovec
	outName [batchOut]sockaddr
	outCmsg [batchOut]cmsg
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
		m.Name, m.Iov, m.Control = &b.inName[i].b[0], &b.inVec[i], (*byte)(unsafe.Pointer(&b.inCmsg[i]))
		m.SetIovlen(1)
	}
	for i := range b.out {
		m := &b.out[i]
		m.Name, m.Iov = &b.outName[i].b[0], &b.outVec[i]
		m.SetIovlen(1)
		h := b.outCmsg[i].header()
		h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
		h.SetLen(unix.CmsgLen(2))
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
		m.SetControllen(unix.CmsgSpace(4))
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
		f.train(b.slabs[i][:size], b.segment(i, size), &b.from, now, b, &b.tally)
	}
	b.flush()
	f.counter(&b.tally)
	b.tally = tally{}
	return nil
}

// segment is the length of the datagrams that the kernel joined, or size.
func (b *batch) segment(i, size int) int {
	c := &b.inCmsg[i]
	if int(b.in[i].Controllen) < unix.CmsgLen(4) {
		return size
	}
	if h := c.header(); h.Level != unix.IPPROTO_UDP || h.Type != unix.UDP_GRO {
		return size
	}
	if n := int(int32(binary.NativeEndian.Uint32(c.data()))); n > 0 {
		return min(n, size)
	}
	return size
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
	if len(p) > seg {
		binary.NativeEndian.PutUint16(b.outCmsg[i].data(), uint16(seg))
		m.Control = (*byte)(unsafe.Pointer(&b.outCmsg[i]))
		m.SetControllen(unix.CmsgSpace(2))
	} else {
		m.Control = nil
		m.SetControllen(0)
	}
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
	b.out[i].Control = nil
	b.out[i].SetControllen(0)
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
