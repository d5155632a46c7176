package main

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zt-daemon/zt/test/bench/load"
	"github.com/zt-daemon/zt/test/lab"
)

// What a relay could do at best: a forwarder without sessions, look-ups or any
// other state, which writes four bytes of each packet and sends whole trains on.
const (
	gsoPort    = 6000
	gsoSegment = 1312 // as zt's packets at the overlay's MTU of 1,280
	gsoTrain   = 49 * gsoSegment
	gsoSlabs   = 32
	gsoSlab    = 64 << 10
)

// gsoMessage is struct mmsghdr of recvmmsg(2).
type gsoMessage struct {
	header unix.Msghdr
	size   uint32
	_      [unsafe.Sizeof(uintptr(0)) - 4]byte
}

// gsoControl holds one control message: what UDP_GRO brings has an int, what
// UDP_SEGMENT takes has 16 bits.
type gsoControl struct {
	header unix.Cmsghdr
	value  [8]byte
}

// A gsoSocket reads and writes trains on buffers that it never gives away.
type gsoSocket struct {
	fd       int
	messages [gsoSlabs]gsoMessage
	vectors  [gsoSlabs]unix.Iovec
	names    [gsoSlabs]unix.RawSockaddrInet4
	controls [gsoSlabs]gsoControl
	slabs    [gsoSlabs][]byte
}

func newGSOSocket(host string) (*gsoSocket, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 7<<20),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 7<<20),
		unix.Bind(fd, &unix.SockaddrInet4{Port: gsoPort, Addr: netip.MustParseAddr(host).As4()}),
	)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	s := &gsoSocket{fd: fd}
	for i := range s.messages {
		s.slabs[i] = make([]byte, gsoSlab)
		s.vectors[i].Base = &s.slabs[i][0]
		h := &s.messages[i].header
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&s.names[i])), unix.SizeofSockaddrInet4
		h.Iov, h.Iovlen = &s.vectors[i], 1
		h.Control = (*byte)(unsafe.Pointer(&s.controls[i]))
	}
	return s, nil
}

// read waits for trains and returns how many came.
func (s *gsoSocket) read() (int, error) {
	for i := range s.messages {
		s.vectors[i].SetLen(gsoSlab)
		s.messages[i].header.SetControllen(int(unsafe.Sizeof(s.controls[i])))
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.messages[0])), gsoSlabs, unix.MSG_WAITFORONE, 0, 0)
		if errno == 0 {
			return int(n), nil
		} else if errno != unix.EINTR {
			return 0, errno
		}
	}
}

// segment is the size of the packets in train i.
func (s *gsoSocket) segment(i int) int {
	size, c := int(s.messages[i].size), &s.controls[i]
	if s.messages[i].header.Controllen > 0 && c.header.Level == unix.IPPROTO_UDP && c.header.Type == unix.UDP_GRO {
		return min(size, int(binary.NativeEndian.Uint32(c.value[:])))
	}
	return size
}

// aim makes train i one of size bytes in packets of segment bytes, for a machine.
func (s *gsoSocket) aim(i, size, segment int, to [4]byte) {
	s.vectors[i].SetLen(size)
	s.names[i] = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&s.names[i].Port))[:], gsoPort)
	c := &s.controls[i]
	c.header.Level, c.header.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	c.header.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(c.value[:], uint16(segment))
	s.messages[i].header.SetControllen(unix.CmsgSpace(2))
}

// write sends the first n trains. What the kernel refuses is lost, as UDP is.
func (s *gsoSocket) write(n int) error {
	for at := 0; at < n; {
		sent, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.messages[at])), uintptr(n-at), 0, 0, 0)
		switch errno {
		case 0:
			at += int(sent)
		case unix.EINTR:
		case unix.ENOBUFS, unix.ECONNREFUSED:
			at++
		default:
			return errno
		}
	}
	return nil
}

// gsoRelay forwards what comes from the client to the node, and the other way.
func gsoRelay(context.Context, load.Params) (*load.Stack, load.Params, error) {
	s, err := newGSOSocket(lab.BridgeRelay)
	if err != nil {
		return nil, nil, err
	}
	client, node := netip.MustParseAddr(lab.BridgeClient).As4(), netip.MustParseAddr(lab.BridgeNode).As4()
	go func() { // ends with the process
		for {
			n, err := s.read()
			if err != nil {
				return
			}
			for i := range n {
				size, segment, to := int(s.messages[i].size), s.segment(i), client
				if s.names[i].Addr == client {
					to = node
				}
				for at := 0; at+4 <= size; at += segment {
					binary.BigEndian.PutUint32(s.slabs[i][at:], 4<<24|uint32(i))
				}
				s.aim(i, size, max(segment, 1), to)
			}
			if s.write(n) != nil {
				return
			}
		}
	}()
	return &load.Stack{}, nil, nil
}

// gsoEnd sends trains to the relay and counts what comes back from it.
type gsoEnd struct {
	in, out        *gsoSocket // of one file descriptor
	bytes, packets atomic.Uint64
}

func gsoParticipant(host string) load.Role {
	return func(context.Context, load.Params) (*load.Stack, load.Params, error) {
		in, err := newGSOSocket(host)
		if err != nil {
			return nil, nil, err
		}
		e := &gsoEnd{in: in, out: &gsoSocket{fd: in.fd}}
		slab := make([]byte, gsoTrain)
		for i := range e.out.messages {
			h := &e.out.messages[i].header
			e.out.vectors[i].Base = &slab[0]
			h.Name, h.Namelen = (*byte)(unsafe.Pointer(&e.out.names[i])), unix.SizeofSockaddrInet4
			h.Iov, h.Iovlen = &e.out.vectors[i], 1
			h.Control = (*byte)(unsafe.Pointer(&e.out.controls[i]))
			e.out.aim(i, gsoTrain, gsoSegment, netip.MustParseAddr(lab.BridgeRelay).As4())
		}
		go e.count() // ends with the process
		return &load.Stack{Custom: e}, nil, nil
	}
}

func (e *gsoEnd) count() {
	for {
		n, err := e.in.read()
		if err != nil {
			return
		}
		for i := range n {
			size := int(e.in.messages[i].size)
			e.bytes.Add(uint64(size))
			e.packets.Add(uint64((size + gsoSegment - 1) / gsoSegment))
		}
	}
}

// Send implements load.Custom: four trains a system call, as fast as it goes.
func (e *gsoEnd) Send(stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := e.out.write(4); err != nil {
			return err
		}
	}
}

// Received implements load.Custom.
func (e *gsoEnd) Received() (bytes, packets uint64) { return e.bytes.Load(), e.packets.Load() }

func gsoScene(ctx context.Context, r *rig) (*scene, error) {
	for _, p := range []struct {
		at   place
		role string
	}{{atRelay, "gso-relay"}, {atNode, "gso-node"}, {atClient, "gso-client"}} {
		if _, _, err := r.play(ctx, p.at, p.role, nil); err != nil {
			return nil, err
		}
	}
	return &r.scene, nil
}
