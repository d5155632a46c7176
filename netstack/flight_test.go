package netstack

import (
	"testing"
	"testing/synctest"
	"time"
)

// waits reports how long f holds up its producer.
func waits(f *flight, closed <-chan struct{}) (time.Duration, bool) {
	began := time.Now()
	ok := f.wait(closed)
	return time.Since(began), ok
}

func TestFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlight()
		f.enter(flightPackets - 1)
		if d, ok := waits(f, nil); d != 0 || !ok {
			t.Errorf("below the bound: waited %v, %v", d, ok)
		}
		f.enter(49)
		go func() {
			time.Sleep(time.Millisecond)
			f.leave(10) // still above
			time.Sleep(time.Millisecond)
			f.leave(flightPackets)
		}()
		if d, ok := waits(f, nil); d != 2*time.Millisecond || !ok {
			t.Errorf("at the bound: waited %v, %v, want 2ms, until packets left", d, ok)
		}
	})
}

// TestFlightStale loses packets inside the engine: the bound opens again, and
// those that come out late are not counted twice.
func TestFlightStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlight()
		f.enter(flightPackets)
		f.leave(1) // what it was held for before is no reason to go on
		f.enter(1)
		if d, ok := waits(f, nil); d != flightStale || !ok {
			t.Errorf("waited %v, %v, want %v", d, ok, flightStale)
		}
		f.leave(flightPackets) // they were not lost after all
		if !f.wait(nil) {
			t.Fatal("closed")
		}
		f.enter(flightPackets)
		if d, _ := waits(f, nil); d != flightStale {
			t.Errorf("the bound grew: waited %v, want %v", d, flightStale)
		}
	})
}

func TestFlightClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlight()
		f.enter(flightPackets)
		closed := make(chan struct{})
		go func() {
			time.Sleep(time.Millisecond)
			close(closed)
		}()
		if d, ok := waits(f, closed); d != time.Millisecond || ok {
			t.Errorf("waited %v, %v, want until it was closed", d, ok)
		}
	})
}
