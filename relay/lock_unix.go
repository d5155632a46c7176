//go:build unix

package relay

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lockFile holds path until the file is closed or the process ends.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.New("held by another relay process")
		}
		return nil, err
	}
	return f, nil
}
