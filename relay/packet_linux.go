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
	batchVec = 256      // pieces of those
	slabSize = 64 << 10 // a train is at most 65,535 bytes

	// Beyond some 65,494 bytes the kernel splits a train in software, for 6.5
	// times the cost; beyond 64 datagrams it refuses (UDP_MAX_SEGMENTS; 128 since
	// Linux 6.9).
	maxTrain    = 65000
	maxSegments = 64

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

// A port is a UDP address of ours. Its sockets have it in common: which of them
// receives is the kernel's choice, and any may send.
type port struct {
	socket   *socket     // one of them
	segments atomic.Bool // the kernel and the device split trains for us
}

// A socket is a UDP socket which receives and sends trains where the kernel can
// (UDP_GRO and UDP_SEGMENT, Linux 5.0). One goroutine reads it.
type socket struct {
	port *port
	conn *net.UDPConn
	raw  syscall.RawConn
}

// newSocket prepares a socket of port p; nil: of a port of its own.
func newSocket(conn *net.UDPConn, p *port) (*socket, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{port: p, conn: conn, raw: raw}
	if p == nil {
		s.port = &port{socket: s}
	}
	conn.SetReadBuffer(socketBuffer)  // as much as the system allows
	conn.SetWriteBuffer(socketBuffer) // as much as the system allows
	err = raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)    // without it datagrams come singly
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1) // without it nobody counts what the kernel drops
		if conn.LocalAddr().(*net.UDPAddr).IP.IsUnspecified() {
			// A socket of both families tells IPv4 addresses in IPv6's form.
			if family, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); family == unix.AF_INET6 {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			} else {
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			}
		}
		_, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		s.port.segments.Store(err == nil)
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

// control holds three control messages, aligned for their headers: the segment
// size, the local address, and how many datagrams the kernel dropped.
type control [11]uint64

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

// read takes the segment size (0: not told) and the number of datagrams that the
// socket had no room for so far (0: not told) out of what the kernel wrote, and
// puts the local address into a.
func (c *control) read(n int, a *sockaddr) (segment int, overflow uint32) {
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
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL && size == 4:
			overflow = binary.NativeEndian.Uint32(data)
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
	return segment, overflow
}

// A batch is the buffers of one goroutine that forwards: all are made once and
// used again. The kernel's structures point into it, so it lives on the heap and
// does not move.
type batch struct {
	socket *socket
	tally  tally

	in       [batchIn]mmsghdr
	inVec    [batchIn]unix.Iovec
	inCtl    [batchIn]control
	from     [batchIn]path // whom each is from
	slabs    [batchIn][slabSize]byte
	received int    // of in, by the call before
	overflow uint32 // datagrams that the socket had no room for, so far

	out     [batchOut]mmsghdr
	outCtl  [batchOut]control
	trains  [batchOut]train
	vecs    [batchVec]unix.Iovec
	by      *socket // sends all that is queued
	queued  int     // of out
	usedVec int     // of vecs

	// What the system calls below read and write: they are called by RawConn,
	// and a closure made for each call would be an allocation for each.
	readFunc, writeFunc func(fd uintptr) bool
	first, last         int // of out, to send
	n                   int
	errno               syscall.Errno
	faults              int // in a row, while receiving
}

// A train is what one entry of a batch sends: datagrams of one size, of which
// the last may be smaller, to one address.
type train struct {
	to         *path
	size, seg  int // in bytes
	first, end int // its pieces, of batch.vecs; each begins with a datagram
}

func newBatch(s *socket) *batch {
	b := &batch{socket: s, received: batchIn}
	for i := range b.in {
		b.from[i].via = s.port
		b.inVec[i].Base = &b.slabs[i][0]
		b.inVec[i].SetLen(slabSize)
		m := &b.in[i]
		m.Name, m.Iov, m.Control = &b.from[i].name.b[0], &b.inVec[i], &b.inCtl[i].bytes()[0]
		m.SetIovlen(1)
	}
	b.readFunc = func(fd uintptr) bool { return b.call(unix.SYS_RECVMMSG, fd, &b.in[0], batchIn) }
	b.writeFunc = func(fd uintptr) bool {
		return b.call(unix.SYS_SENDMMSG, fd, &b.out[b.first], b.last-b.first)
	}
	return b
}

// call makes one of the two system calls. It reports false when the socket is
// not ready. Neither call waits, and telling Go's scheduler of it costs more than
// it gives: a third of the CPU of a train, and as much of a single packet.
func (b *batch) call(trap, fd uintptr, m *mmsghdr, n int) bool {
	for {
		r, _, errno := syscall.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(m)), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		b.n, b.errno = int(r), errno
		return errno != unix.EAGAIN
	}
}

// step receives one batch, forwards it and returns when it is sent.
func (b *batch) step(f *forwarder) error {
	for i := range b.in[:b.received] { // the others are as they were
		m := &b.in[i]
		m.Namelen = uint32(len(b.from[i].name.b))
		m.SetControllen(len(b.inCtl[i].bytes()))
		m.Flags = 0
	}
	b.received = 0
	if err := b.socket.raw.Read(b.readFunc); err != nil {
		return err
	}
	if b.errno != 0 {
		if b.faults++; b.faults > maxFaults {
			return fmt.Errorf("receive: %w", b.errno)
		}
		return nil // most likely left on the socket by ICMP: the next call goes on
	}
	b.faults, b.received = 0, b.n
	now := f.nanos()
	for i := range b.received {
		m, from := &b.in[i], &b.from[i]
		size := int(m.n)
		seg, overflow := b.inCtl[i].read(int(m.Controllen), &from.name)
		if overflow != 0 {
			b.tally.dropped[dropOverflow] += uint64(overflow - b.overflow)
			b.overflow = overflow
		}
		if m.Flags&unix.MSG_TRUNC != 0 {
			b.tally.dropped[dropTruncated]++
			continue
		}
		if seg <= 0 || seg > size {
			seg = size
		}
		from.name.n = m.Namelen
		from.addr = from.name.addrPort()
		f.train(b.slabs[i][:size], seg, from, now, b, &b.tally)
	}
	b.flush()
	f.counter(&b.tally)
	b.tally = tally{}
	return nil
}

// send queues p, in as few trains as the kernel takes. What goes the way of the
// train before it joins that one: packets that came singly leave together.
func (b *batch) send(p []byte, seg int, to *path) {
	most := seg // bytes a train
	if to.via.segments.Load() {
		most = max(1, min(maxSegments, maxTrain/seg)) * seg
	}
	for len(p) > 0 {
		n := min(len(p), most)
		if !b.join(p[:n], min(seg, n), to) {
			b.queue(p[:n], min(seg, n), to)
		}
		p = p[n:]
	}
}

// join adds p to the train that was queued last, if it can.
func (b *batch) join(p []byte, seg int, to *path) bool {
	if b.queued == 0 || b.usedVec == batchVec || !to.via.segments.Load() {
		return false
	}
	i := b.queued - 1
	t := &b.trains[i]
	size := t.size + len(p)
	ends := len(p) < t.seg // a smaller one is a train's last
	if t.to != to || t.size%t.seg != 0 || seg != t.seg && !ends || size > maxTrain || size > maxSegments*t.seg {
		return false
	}
	b.addVec(p)
	t.size, t.end = size, b.usedVec
	b.out[i].SetIovlen(t.end - t.first)
	b.setControl(i, t.seg)
	return true
}

// queue begins a train.
func (b *batch) queue(p []byte, seg int, to *path) {
	by := b.socket
	if to.via != by.port {
		by = to.via.socket
	}
	if b.queued == batchOut || b.usedVec == batchVec || b.queued > 0 && b.by != by {
		b.flush()
	}
	b.by = by
	i := b.queued
	b.queued++
	b.trains[i] = train{to: to, size: len(p), seg: seg, first: b.usedVec, end: b.usedVec + 1}
	m := &b.out[i]
	m.Name, m.Namelen = &to.name.b[0], to.name.n
	m.Iov = &b.vecs[b.usedVec]
	m.SetIovlen(1)
	b.addVec(p)
	if len(p) <= seg {
		seg = 0
	}
	b.setControl(i, seg)
}

func (b *batch) addVec(p []byte) {
	b.vecs[b.usedVec].Base = &p[0]
	b.vecs[b.usedVec].SetLen(len(p))
	b.usedVec++
}

// setControl writes the control messages of out[i]: the local address, if there
// is one, and the size of segments, if it is not 0.
func (b *batch) setControl(i, seg int) {
	m, name, n := &b.out[i], &b.trains[i].to.name, 0
	switch name.size {
	case unix.SizeofInet4Pktinfo:
		n = b.outCtl[i].put(n, unix.IPPROTO_IP, unix.IP_PKTINFO, name.local[:name.size])
	case unix.SizeofInet6Pktinfo:
		n = b.outCtl[i].put(n, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, name.local[:name.size])
	}
	if seg > 0 {
		var size [2]byte
		binary.NativeEndian.PutUint16(size[:], uint16(seg))
		n = b.outCtl[i].put(n, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size[:])
	}
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
	b.queued, b.usedVec = 0, 0
}

// write sends out[first:last] and returns how many went before the first that
// did not.
func (b *batch) write(first, last int) (int, syscall.Errno) {
	b.first, b.last = first, last
	if err := b.by.raw.Write(b.writeFunc); err != nil {
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
	t := &b.trains[i]
	if t.size <= t.seg || errno == unix.EBADF {
		b.tally.dropped[dropSend] += uint64((t.size + t.seg - 1) / t.seg)
		return
	}
	if errno == unix.EIO {
		b.by.port.segments.Store(false)
	}
	b.setControl(i, 0)
	b.out[i].SetIovlen(1)
	for j := t.first; j < t.end; j++ {
		v := &b.vecs[j]
		b.out[i].Iov = v
		for p := unsafe.Slice(v.Base, v.Len); len(p) > 0; {
			n := min(t.seg, len(p))
			v.Base = &p[0]
			v.SetLen(n)
			if _, errno := b.write(i, i+1); errno != 0 {
				b.tally.dropped[dropSend]++
			}
			p = p[n:]
		}
	}
}
