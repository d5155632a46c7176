//go:build unix

package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// exposed reports, in words, that a file is somebody else's or that its mode
// has one of the given bits.
func exposed(info fs.FileInfo, bits fs.FileMode) (what string, is bool) {
	if uid, _, ok := fileOwner(info); ok && uid != os.Geteuid() {
		return fmt.Sprintf("belongs to user %d, not to user %d, who runs zt-daemon", uid, os.Geteuid()), true
	}
	if mode := info.Mode().Perm(); mode&bits != 0 {
		return fmt.Sprintf("is open to other users of this machine (mode %04o)", mode), true
	}
	return "", false
}

func fileOwner(info fs.FileInfo) (uid, gid int, ok bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, false
	}
	return int(st.Uid), int(st.Gid), true
}

// syncDir makes a rename in dir survive a power cut. File systems that cannot
// sync a directory say EINVAL.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}
