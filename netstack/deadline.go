package netstack

import (
	"sync"
	"time"
)

// deadline is a moment that readers or writers wait no longer than. The zero
// value is none.
type deadline struct {
	mu      sync.Mutex // guards the rest
	timer   *time.Timer
	expired chan struct{} // closed when it has passed; made on first use
}

// wait returns a channel that is closed once the deadline has passed. set may
// make another: what waits already keeps the one it has, which the old
// deadline or a moved one closes.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.channelLocked()
}

func (d *deadline) channelLocked() chan struct{} {
	if d.expired == nil {
		d.expired = make(chan struct{})
	}
	return d.expired
}

// passed reports whether the deadline has passed.
func (d *deadline) passed() bool {
	select {
	case <-d.wait():
		return true
	default:
		return false
	}
}

// set moves the deadline; the zero time is none.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ch := d.channelLocked()
	if d.timer != nil && !d.timer.Stop() {
		<-ch // the timer fired: wait until it has closed its channel
	}
	d.timer = nil
	select {
	case <-ch:
		ch = make(chan struct{})
		d.expired = ch
	default:
	}
	if t.IsZero() {
		return
	}
	if left := time.Until(t); left > 0 {
		d.timer = time.AfterFunc(left, func() { close(ch) })
	} else {
		close(ch)
	}
}
