package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// gcPercent is the garbage collector's while the heap is small, if the
	// environment names none (GOGC): it halves what garbage may grow to and did not
	// cost throughput when it was measured.
	gcPercent = 50
	// gcGarbage is what garbage may grow to, in bytes. Under load wireguard-go's
	// buffers count for some 80 MiB, of which an eighth is in memory: a
	// percentage of that was 40 MiB of garbage, all touched. A collection then comes
	// every few seconds, and takes a millisecond. A limit (GOMEMLIMIT) is not set
	// here: it counts those buffers in full, and a low one would cost throughput. The
	// chart's, nine tenths of a pod's 128 MiB, does not.
	gcGarbage = 8 << 20

	memoryTick = 10 * time.Second
	// memoryQuiet is the most that is allocated in a tick while nobody asks for
	// anything, in bytes. Some of it goes to probes of an API server that does not
	// answer.
	memoryQuiet = 1 << 20
	// memorySlack is by how many bytes the heap must have grown before giving back
	// is worth the page faults of whoever comes next. A kubectl call allocates less.
	memorySlack = 2 << 20
)

// keepMemorySmall has the process give back to the system what starting and
// serving took, each time that is over. The returned function ends that, and
// returns when it has ended.
func keepMemorySmall(env *environment) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background()) // ends by stop
	if env.getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
		boundGarbage(ctx)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(memoryTick)
		defer tick.Stop()
		h := newHeap()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if h.release() {
					releaseProgram()
				}
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// boundGarbage sets the collector's percentage anew after each collection.
func boundGarbage(ctx context.Context) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	last := gcPercent
	var watch func(struct{})
	watch = func(struct{}) {
		if ctx.Err() != nil {
			return
		}
		metrics.Read(live)
		if percent := percentOf(live[0].Value.Uint64()); percent != last {
			debug.SetGCPercent(percent)
			last = percent
		}
		runtime.AddCleanup(new([64]byte), watch, struct{}{}) // the next collection finds it
	}
	watch(struct{}{})
}

// percentOf is the percentage that a live heap of so many bytes may grow by.
func percentOf(live uint64) int {
	return int(min(gcPercent, max(1, 100*gcGarbage/max(1, live))))
}

// heap watches what the Go heap holds of the system's memory.
type heap struct {
	samples          [4]metrics.Sample
	allocated, floor uint64 // bytes; at the last look, and held after the last release
}

func newHeap() *heap {
	h := &heap{}
	for i, name := range [...]string{
		"/gc/heap/allocs:bytes",
		"/memory/classes/heap/objects:bytes", "/memory/classes/heap/unused:bytes", "/memory/classes/heap/free:bytes",
	} {
		h.samples[i].Name = name
	}
	return h
}

// read returns the bytes allocated since the start and those held now.
func (h *heap) read() (allocated, held uint64) {
	metrics.Read(h.samples[:]) // stops nothing
	for _, s := range h.samples[1:] {
		held += s.Value.Uint64()
	}
	return h.samples[0].Value.Uint64(), held
}

// release gives back what the heap has grown by, if little was allocated since
// the call before. The runtime by itself holds it for minutes: it collects an
// idle heap every two minutes, and only the second collection lets go of what
// lies in a sync.Pool.
func (h *heap) release() bool {
	allocated, held := h.read()
	worth := allocated-h.allocated <= memoryQuiet && held > h.floor+memorySlack
	if worth {
		runtime.GC()
		debug.FreeOSMemory()
		allocated, h.floor = h.read()
	}
	h.allocated = allocated
	return worth
}
