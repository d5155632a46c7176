package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestHeapRelease(t *testing.T) {
	const load = 64 << 20
	h := newHeap()
	h.release()
	buffer := make([]byte, load)
	for i := 0; i < len(buffer); i += 4096 {
		buffer[i] = 1
	}
	_, loaded := h.read()
	if h.release() {
		t.Error("released while much was being allocated")
	}
	runtime.KeepAlive(buffer)
	buffer = nil
	if !h.release() {
		t.Fatal("did not release when it was over")
	}
	if _, held := h.read(); held > loaded-load/2 {
		t.Errorf("the heap holds %d bytes, %d before", held, loaded)
	}
	if h.release() {
		t.Error("released again, with nothing to win")
	}
}

// TestBoundGarbage shows that garbage stays below its bound beside a large heap.
func TestBoundGarbage(t *testing.T) {
	before := debug.SetGCPercent(gcPercent)
	defer debug.SetGCPercent(before)
	ctx, cancel := context.WithCancel(t.Context())
	boundGarbage(ctx)
	large := make([][]byte, 64)
	for i := range large {
		large[i] = make([]byte, 1<<20)
	}
	runtime.GC()
	sample := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	percent := func() uint64 {
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	for limit := time.Now().Add(10 * time.Second); percent() > 100*gcGarbage/(64<<20); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("beside 64 MiB the heap may grow by %d %%", percent())
		}
		runtime.GC() // the cleanup of the one before runs beside it
	}
	runtime.KeepAlive(large)
	for limit := time.Now().Add(10 * time.Second); percent() != gcPercent; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("beside a small heap it may grow by %d %%", percent())
		}
		runtime.GC()
	}
	cancel()
}
