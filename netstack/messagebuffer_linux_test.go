package netstack

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
)

// resident is how many pages of b are in memory.
func resident(t *testing.T, b []byte) (n int) {
	t.Helper()
	size := unix.Getpagesize()
	base := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	from := base &^ uintptr(size-1)
	state := make([]byte, (int(base-from)+len(b)+size-1)/size)
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, from, uintptr(len(state)*size), uintptr(unsafe.Pointer(&state[0]))); errno != 0 {
		t.Fatal(errno)
	}
	for _, s := range state {
		n += int(s & 1)
	}
	return n
}

// TestThinner shows that buffers the engine lends hold what messages fill, that what
// is in there stays, and that one is not looked after twice.
func TestThinner(t *testing.T) {
	var bufs [][]byte
	for range 3 {
		b := new([device.MaxMessageSize]byte)
		for i := range b {
			b[i] = 7
		}
		bufs = append(bufs, b[:])
	}
	all := device.MaxMessageSize/unix.Getpagesize() + 1
	if n := resident(t, bufs[0]); n < all {
		t.Fatalf("%d pages of a buffer that was written are in memory", n)
	}
	var thin thinner
	for range bufs {
		thin.look(bufs)
	}
	for i, b := range bufs {
		if n := resident(t, b); n > 2 {
			t.Errorf("buffer %d holds %d pages", i, n)
		}
		for at, c := range b[:thinMark] {
			if c != 7 {
				t.Fatalf("buffer %d, byte %d: %d", i, at, c)
			}
		}
		b[len(b)/2] = 9
	}
	for range bufs {
		thin.look(bufs)
	}
	for i, b := range bufs {
		if b[len(b)/2] != 9 {
			t.Errorf("buffer %d was looked after again", i)
		}
	}
}
