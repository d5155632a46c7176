package main

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/netstack"
	"github.com/zt-daemon/zt/test/lab"
)

const (
	slabBytes    = 64 << 10
	trainBytes   = 65_000 // as daemon.Transport: more is segmented in software
	trainPackets = 64
	socketBuffer = 32 << 20
)

// wire is a netstack.Transport of one peer, straight over UDP in trains: what
// is measured with it is TCP inside WireGuard, without a relay.
type wire struct {
	ns    *lab.Namespace
	local netip.AddrPort
	peer  key.WireGuardPublic
	to    unix.SockaddrInet4

	mu   sync.Mutex // guards conn, raw
	conn *net.UDPConn
	raw  syscall.RawConn
}

func newWire(ns *lab.Namespace, local, remote netip.AddrPort, peer key.WireGuardPublic) *wire {
	return &wire{ns: ns, local: local, peer: peer, to: unix.SockaddrInet4{Port: int(remote.Port()), Addr: remote.Addr().As4()}}
}

// Open implements netstack.Transport.
func (w *wire) Open() (netstack.ReceiveFunc, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.ns.Do(func() (err error) {
		w.conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(w.local))
		return err
	})
	if err != nil {
		return nil, err
	}
	if w.raw, err = w.conn.SyscallConn(); err != nil {
		return nil, err
	}
	var failed error
	err = w.raw.Control(func(fd uintptr) {
		failed = errors.Join(
			unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer),
		)
	})
	if err = errors.Join(err, failed); err != nil {
		w.conn.Close()
		return nil, err
	}
	r := &wireReader{w: w, raw: w.raw, slab: make([]byte, slabBytes), control: make([]byte, 64)}
	return r.receive, nil
}

// wireReader hands out one train after another.
type wireReader struct {
	w       *wire
	raw     syscall.RawConn
	slab    []byte
	control []byte
	rest    []byte
	size    int
}

func (r *wireReader) receive(packets [][]byte, sizes []int, from []key.WireGuardPublic) (int, error) {
	if len(r.rest) == 0 {
		if err := r.read(); errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, nil
		} else if err != nil {
			return 0, net.ErrClosed
		}
	}
	n := 0
	for ; n < len(packets) && len(r.rest) > 0; n++ {
		b := r.rest[:min(r.size, len(r.rest))]
		r.rest = r.rest[len(b):]
		sizes[n], from[n] = copy(packets[n], b), r.w.peer
	}
	return n, nil
}

func (r *wireReader) read() error {
	var n, oob int
	var err error
	if e := r.raw.Read(func(fd uintptr) bool {
		n, oob, _, _, err = unix.Recvmsg(int(fd), r.slab, r.control, unix.MSG_DONTWAIT)
		return err != unix.EAGAIN
	}); e != nil {
		return e
	}
	if err != nil {
		return err
	}
	r.rest, r.size = r.slab[:n], n
	if all, err := unix.ParseSocketControlMessage(r.control[:oob]); err == nil {
		for _, m := range all {
			if m.Header.Level == unix.IPPROTO_UDP && m.Header.Type == unix.UDP_GRO && len(m.Data) >= 4 {
				r.size = int(binary.NativeEndian.Uint32(m.Data))
			}
		}
	}
	return nil
}

// Send implements netstack.Transport.
func (w *wire) Send(_ key.WireGuardPublic, packets [][]byte) error {
	w.mu.Lock()
	raw := w.raw
	w.mu.Unlock()
	if raw == nil {
		return net.ErrClosed
	}
	for len(packets) > 0 {
		n, total := 1, len(packets[0])
		for n < min(len(packets), trainPackets) && len(packets[n-1]) == len(packets[0]) &&
			len(packets[n]) <= len(packets[0]) && total+len(packets[n]) <= trainBytes {
			total += len(packets[n])
			n++
		}
		var oob []byte
		if n > 1 {
			oob = segmentMessage(uint16(len(packets[0])))
		}
		var err error
		if e := raw.Write(func(fd uintptr) bool {
			_, err = unix.SendmsgBuffers(int(fd), packets[:n], oob, &w.to, unix.MSG_DONTWAIT)
			return err != unix.EAGAIN
		}); e != nil {
			return e
		}
		if err != nil {
			return err
		}
		packets = packets[n:]
	}
	return nil
}

// segmentMessage is the control message that has the kernel cut a send.
func segmentMessage(size uint16) []byte {
	b := make([]byte, unix.CmsgSpace(2))
	binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(2))) // 64-bit systems
	binary.NativeEndian.PutUint32(b[8:], unix.IPPROTO_UDP)
	binary.NativeEndian.PutUint32(b[12:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(b[16:], size)
	return b
}

// Close implements netstack.Transport.
func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn == nil {
		return nil
	}
	w.raw = nil
	return w.conn.Close()
}

// WakeAt implements netstack.Waker.
func (w *wire) WakeAt(t time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil {
		w.conn.SetReadDeadline(t)
	}
}

// BatchSize implements netstack.Transport.
func (w *wire) BatchSize() int { return 128 }

// MTU implements netstack.Measurer: on this path the largest packets pass.
func (w *wire) MTU() int { return netstack.MaxMTU }

// WatchMTU implements netstack.Measurer: nothing changes.
func (w *wire) WatchMTU(func()) {}
