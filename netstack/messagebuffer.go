package netstack

const (
	// thinMark is where a thin buffer has its mark: behind the longest message, on
	// the page where messages begin.
	thinMark = 2048
	thin     = 1
)

// A thinner gives back to the system what no message fills of the engine's buffers.
// wireguard-go's have 64 KiB each, and begin as address space of which a message
// touches one page. But the runtime clears whatever memory it hands out again, page
// by page: after minutes of load, hundreds of buffers held all of theirs. The first
// page and the last, which is not theirs alone, stay. It belongs to one goroutine.
type thinner struct{ next int }

// look looks after one of the buffers that a call lends, before it is filled: each
// has its turn. A new buffer is all zeros, so it is done once.
func (t *thinner) look(bufs [][]byte) {
	t.next = (t.next + 1) % len(bufs)
	if b := bufs[t.next]; len(b) > thinMark && b[thinMark] != thin {
		b[thinMark] = thin
		forget(b[thinMark+1:])
	}
}
