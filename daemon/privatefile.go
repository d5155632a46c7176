package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const tempPattern = ".zt-tmp-*" // of a file that is being written; swept by sweepTemp

// ExposedError says that a file or directory that must be the person's alone
// is readable or writable by others, or is somebody else's.
type ExposedError struct {
	Path string
	What string // what is wrong with it
	Fix  string // what to type
}

func (e *ExposedError) Error() string { return fmt.Sprintf("%s %s", e.Path, e.What) }

// Hint says what to type.
func (e *ExposedError) Hint() string { return e.Fix }

// writeAtomic replaces path by data: temp file beside it, fsync, rename, fsync
// of the directory. After an error the old file is as it was.
func writeAtomic(path string, data []byte, mode fs.FileMode) error {
	return writeAtomicLike(path, data, mode, nil)
}

// writeAtomicLike is writeAtomic, and the file belongs to whom like (may be
// nil) belongs: root who edits another's file does not take it away.
func writeAtomicLike(path string, data []byte, mode fs.FileMode, like fs.FileInfo) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, tempPattern) // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(mode); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if like != nil {
		if uid, gid, ok := fileOwner(like); ok && uid != os.Geteuid() {
			if err = f.Chown(uid, gid); err != nil {
				return err
			}
		}
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// sweepTemp removes what writes that were killed left in dir. Call it with the
// lock held that keeps other writers out.
func sweepTemp(dir string) {
	left, err := filepath.Glob(filepath.Join(globEscape(dir), tempPattern))
	if err != nil {
		return
	}
	for _, path := range left {
		os.Remove(path)
	}
}

func globEscape(s string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// readPrivate reads a file of at most limit bytes that holds a secret. One that
// others may read, or that belongs to somebody else, is an *ExposedError.
func readPrivate(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: not a regular file", path)
	}
	if what, ok := exposed(info, 0o077); ok {
		return nil, &ExposedError{Path: path, What: what, Fix: fmt.Sprintf(
			"run `chmod 600 '%s'`; if another person may have read it, run `zt-daemon logout` and log in again", path)}
	}
	return readLimited(f, path, limit)
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, path, limit)
}

func readLimited(r io.Reader, path string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read %s: %w: more than %d bytes", path, errTooLarge, limit)
	}
	return b, nil
}

var errTooLarge = errors.New("too large")

// makePrivateDir makes dir and its parents, 0700. An existing one is closed to
// others; one that others could write to, or that is somebody else's, is an
// *ExposedError: what lies in it may not be ours.
func makePrivateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if what, ok := exposed(info, 0o022); ok {
		return &ExposedError{Path: dir, What: what, Fix: fmt.Sprintf(
			"look at what is in it; then run `chmod 700 '%s'` (as its owner), or use another directory", dir)}
	}
	if _, ok := exposed(info, 0o077); ok {
		return os.Chmod(dir, 0o700)
	}
	return nil
}
