package daemon

import (
	"net"

	"golang.org/x/sys/unix"
)

// tcpClose is the state of a connection that is over or was reset (TCP_CLOSE of
// linux/tcp.h).
const tcpClose = 7

// unsent is how many bytes written to c its other end has not acknowledged
// (tcp(7), SIOCOUTQ); 0 if it never will.
func unsent(c *net.TCPConn) (n int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || info.State == tcpClose {
			return
		}
		if n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err != nil {
			n = 0
		}
	})
	return n
}
