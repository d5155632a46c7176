package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const spliceBufferBytes = 64 << 10

// spliceBuffers holds *[spliceBufferBytes]byte. Whoever takes one returns it
// when its direction of the splice has ended.
var spliceBuffers = sync.Pool{New: func() any { return new([spliceBufferBytes]byte) }}

// LocalFlow is an open connection, for status.
type LocalFlow struct {
	Remote        netip.AddrPort `json:"remote"` // the loopback end's far side
	Since         time.Time      `json:"since"`
	BytesSent     uint64         `json:"bytesSent"`
	BytesReceived uint64         `json:"bytesReceived"`
}

// localFlow is one accepted loopback connection and, once dialled, its stream
// through the overlay. Its two directions end apart (half-close) or together
// (abort). Either side's abort is the other's.
type localFlow struct {
	local net.Conn
	since time.Time
	cut   context.CancelFunc // ends the flow with RST to both sides; does not wait
	early []byte             // read from local already, and the overlay's

	mu      sync.Mutex // guards overlay, aborted
	overlay OverlayConn
	aborted bool

	sent, received atomic.Uint64 // bytes to and from the overlay
}

func (f *localFlow) describe() LocalFlow {
	d := LocalFlow{Since: f.since, BytesSent: f.sent.Load(), BytesReceived: f.received.Load()}
	if a, ok := f.local.RemoteAddr().(*net.TCPAddr); ok {
		d.Remote = netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
	}
	return d
}

// abort resets both sides. It may be called by any goroutine, at any time,
// more than once.
func (f *localFlow) abort() {
	f.mu.Lock()
	overlay, again := f.overlay, f.aborted
	f.aborted = true
	f.mu.Unlock()
	if again {
		return
	}
	if f.local != nil {
		resetConn(f.local)
	}
	if overlay != nil {
		overlay.Reset()
	}
}

// splice copies both ways until both directions have ended, or one failed.
// It owns o.
func (f *localFlow) splice(o OverlayConn) {
	f.mu.Lock()
	f.overlay = o
	aborted := f.aborted
	f.mu.Unlock()
	if aborted { // cut while it was dialled
		o.Reset()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if len(f.early) > 0 {
			if _, err := o.Write(f.early); err != nil {
				f.abort()
				return
			}
			f.sent.Add(uint64(len(f.early)))
			f.early = nil
		}
		f.carry(o, f.local, &f.sent)
	}()
	f.carry(f.local, o, &f.received)
	<-done
	f.local.Close()
	o.Close()
}

type halfCloser interface{ CloseWrite() error }

// carry copies src to dst; its end becomes dst's end of input, its failure
// everybody's reset.
func (f *localFlow) carry(dst, src net.Conn, count *atomic.Uint64) {
	b := spliceBuffers.Get().(*[spliceBufferBytes]byte)
	defer spliceBuffers.Put(b)
	for {
		n, err := src.Read(b[:])
		if n > 0 {
			if _, werr := dst.Write(b[:n]); werr != nil {
				f.abort()
				return
			}
			count.Add(uint64(n))
		}
		if errors.Is(err, io.EOF) {
			if h, ok := dst.(halfCloser); !ok || h.CloseWrite() != nil {
				f.abort()
			}
			return
		} else if err != nil {
			f.abort()
			return
		}
	}
}

// resetConn closes c so that its other end receives RST and drops what is unread.
func resetConn(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}
