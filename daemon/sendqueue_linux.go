package daemon

import (
	"net"

	"golang.org/x/sys/unix"
)

// unsent is how many bytes written to c its other end has not acknowledged
// (tcp(7), SIOCOUTQ); 0 if c is closed.
func unsent(c *net.TCPConn) (n int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) {
		if n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err != nil {
			n = 0
		}
	})
	return n
}
