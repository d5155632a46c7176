package daemon

import "golang.org/x/sys/unix"

// peerUID is the effective user of the process that made the other end
// (LOCAL_PEERCRED, unix(4)).
func peerUID(fd uintptr) (int, error) {
	c, err := unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return 0, err
	}
	return int(c.Uid), nil
}
