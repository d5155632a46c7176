package daemon

import "golang.org/x/sys/unix"

// peerUID is the effective user of the process that made the other end
// (SO_PEERCRED, unix(7)).
func peerUID(fd uintptr) (int, error) {
	c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return int(c.Uid), nil
}
