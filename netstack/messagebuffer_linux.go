package netstack

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// forget has the pages that lie whole in b read as zeros, and hold no memory until
// they are written to again (madvise(2), MADV_DONTNEED).
func forget(b []byte) {
	size := uintptr(unix.Getpagesize())
	base := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	from, to := (base+size-1)&^(size-1), (base+uintptr(len(b)))&^(size-1)
	if from < to {
		// What fails costs memory and nothing else.
		_ = unix.Madvise(b[from-base:to-base], unix.MADV_DONTNEED)
	}
}
