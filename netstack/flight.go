package netstack

import (
	"sync/atomic"
	"time"
)

// A flight bounds how many packets of one direction are inside the WireGuard
// engine, whose own queues hold a thousand batches each: what waits there is
// memory, and is cold in the cache when its turn comes. One goroutine brings
// packets in; any number take them out.
//
// The engine drops packets without a word: to a peer that has no session yet,
// from one that was removed, replays. So a count that has stood still for
// flightStale while somebody waits is believed no more, and begins anew.
type flight struct {
	limit int64
	left  atomic.Int64  // packets that ever came out
	held  atomic.Bool   // whoever brings packets waits for room
	room  chan struct{} // of one

	// The rest belongs to the goroutine that brings packets in.
	entered int64 // packets that ever went in, less those that are believed lost
	timer   *time.Timer
}

const (
	// flightPackets is the bound for each direction: the trains of two
	// super-segments and a half. Twice as much was slower with many flows, half as
	// much with one.
	flightPackets = 128
	// flightStale is long beside the microseconds that a batch needs, and short
	// beside a retransmission.
	flightStale = 5 * time.Millisecond
)

func newFlight() *flight { return &flight{limit: flightPackets, room: make(chan struct{}, 1)} }

// wait returns once less than the bound is inside; false: closed was closed
// before. The batch that goes in next may exceed the bound: trains stay whole.
func (f *flight) wait(closed <-chan struct{}) bool {
	for {
		left := f.left.Load()
		if f.entered < left { // some that were believed lost came out
			f.entered = left
		}
		if f.entered-left < f.limit {
			return true
		}
		f.held.Store(true)
		if f.left.Load() == left {
			if f.timer == nil {
				f.timer = time.NewTimer(flightStale)
			} else {
				f.timer.Reset(flightStale)
			}
			select {
			case <-f.room: // it may be of before: look again
			case <-f.timer.C:
				if f.left.Load() == left {
					f.entered = left
				}
			case <-closed:
				f.timer.Stop()
				return false
			}
			f.timer.Stop()
		}
		f.held.Store(false)
	}
}

// enter counts n packets in.
func (f *flight) enter(n int) { f.entered += int64(n) }

// leave counts n packets out.
func (f *flight) leave(n int) {
	f.left.Add(int64(n))
	if f.held.Load() {
		select {
		case f.room <- struct{}{}:
		default:
		}
	}
}
