package main

import (
	"runtime"
	"testing"
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
