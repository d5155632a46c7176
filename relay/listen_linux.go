package relay

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/zt-daemon/zt/relay/wire"
)

// share opens further sockets of first's address, n in all, or as many as the
// system gives. The first was bound without SO_REUSEPORT: a second relay on the
// same port fails as it always did.
func share(first *net.UDPConn, n int) []*net.UDPConn {
	conns := []*net.UDPConn{first}
	if n < 2 || reusePort(first) != nil {
		return conns
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if cerr := c.Control(func(fd uintptr) { err = setReusePort(fd) }); cerr != nil {
			return cerr
		}
		return err
	}}
	for len(conns) < n {
		c, err := config.ListenPacket(context.Background(), "udp", first.LocalAddr().String())
		if err != nil {
			break
		}
		conns = append(conns, c.(*net.UDPConn))
	}
	spread(first, len(conns)) // without it the kernel chooses by the address of the sender
	return conns
}

func setReusePort(fd uintptr) error {
	return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
}

func reusePort(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = setReusePort(fd) }); err != nil {
		return err
	}
	return serr
}

// spread lets the low byte of the channel choose among the n sockets that share
// c's address: both directions of an edge meet in one, and a node's edges are
// spread over all. A bind message goes by its session. Whoever sends could as
// well choose a port that the kernel would hash to the socket he wants.
func spread(c *net.UDPConn, n int) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0}, // the type; a shorter datagram goes to the first
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: uint32(wire.BindRequest), Jt: 2},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 3}, // low byte of the channel
		{Code: unix.BPF_JMP | unix.BPF_JA, K: 1},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 11}, // low byte of the session
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: uint32(n)},
		{Code: unix.BPF_RET | unix.BPF_A},
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
			&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	})
	if err != nil {
		return err
	}
	return serr
}
