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
	broken         atomic.Bool   // a side did not take what it was sent
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

// splice copies both ways until both directions have ended, or one failed. A side
// that fails may have said much before: all of it is delivered first, as a kernel
// does, and then the other side is reset. It owns o.
func (f *localFlow) splice(o OverlayConn) {
	f.mu.Lock()
	f.overlay = o
	aborted := f.aborted
	f.mu.Unlock()
	if aborted { // cut while it was dialled
		o.Reset()
		return
	}
	done := make(chan error, 1)
	go func() {
		if len(f.early) > 0 {
			if _, err := o.Write(f.early); err != nil {
				done <- f.broke(o, err)
				return
			}
			f.sent.Add(uint64(len(f.early)))
			f.early = nil
		}
		done <- f.carry(o, f.local, &f.sent)
	}()
	err := f.carry(f.local, o, &f.received)
	if err = errors.Join(err, <-done); err != nil {
		f.drain(f.local)
		f.drain(o)
		f.abort()
		return
	}
	f.local.Close()
	o.Close()
}

type halfCloser interface{ CloseWrite() error }

// carry copies src to dst; its end becomes dst's end of input, its failure dst's
// reset, once dst has what came before. If dst fails, what it said can still be
// read: that is the other direction's, which then fails too.
func (f *localFlow) carry(dst, src net.Conn, count *atomic.Uint64) error {
	b := spliceBuffers.Get().(*[spliceBufferBytes]byte)
	defer spliceBuffers.Put(b)
	in, out := tcpReader(src), tcpWriter(dst)
	for {
		n, err := in.Read(b[:])
		if n > 0 {
			if _, werr := out.Write(b[:n]); werr != nil {
				return f.broke(dst, werr)
			}
			count.Add(uint64(n))
		}
		if errors.Is(err, io.EOF) && !f.broken.Load() {
			if h, ok := dst.(halfCloser); ok {
				return h.CloseWrite()
			}
			return errors.New("no half-close")
		} else if err != nil {
			f.drain(dst)
			f.abort()
			return err
		}
	}
}

// broke notes that c failed as it was written to. A kernel tells of a reset once:
// who reads c now may meet an end of input instead. A c that still says nothing is
// given up.
func (f *localFlow) broke(c net.Conn, err error) error {
	f.broken.Store(true)
	c.SetReadDeadline(time.Now().Add(drainPatience))
	return err
}

const (
	// drainPatience is how long a side may take over what it was sent, once the
	// other side is gone.
	drainPatience = 10 * time.Second
	drainPoll     = 5 * time.Millisecond
)

// drain waits until c's other end has all that was written to c, or is gone, or
// takes too long, or the flow was cut.
func (f *localFlow) drain(c net.Conn) {
	for limit := time.Now().Add(drainPatience); !drained(c) && time.Now().Before(limit); time.Sleep(drainPoll) {
		f.mu.Lock()
		aborted := f.aborted
		f.mu.Unlock()
		if aborted {
			return
		}
	}
}

func drained(c net.Conn) bool {
	switch c := c.(type) {
	case interface{ Drained() bool }:
		return c.Drained()
	case *net.TCPConn:
		return unsent(c) == 0
	}
	return true
}

// resetConn closes c so that its other end receives RST and drops what is unread.
func resetConn(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}
