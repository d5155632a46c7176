package relay

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
)

const snapshotShards = 256 // a change copies one of these

// snapshot is a map that is read without a lock: each shard is an immutable map
// which a change replaces by a copy. The zero value of hash is not usable.
type snapshot[K comparable, V any] struct {
	hash   func(K) uint8 // spreads keys over shards; need not resist anybody
	mu     sync.Mutex    // one change at a time
	shards [snapshotShards]atomic.Pointer[map[K]V]
}

// get returns the zero value when k is absent. It does not allocate.
func (t *snapshot[K, V]) get(k K) V {
	var none V
	m := t.shards[t.hash(k)].Load()
	if m == nil {
		return none
	}
	return (*m)[k]
}

func (t *snapshot[K, V]) put(k K, v V) {
	t.change(k, func(m map[K]V) { m[k] = v })
}

func (t *snapshot[K, V]) remove(k K) {
	t.change(k, func(m map[K]V) { delete(m, k) })
}

func (t *snapshot[K, V]) change(k K, edit func(map[K]V)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	shard := &t.shards[t.hash(k)]
	next := copied(shard.Load())
	edit(next)
	shard.Store(&next)
}

// copied is a copy of *m with room for one more; m may be nil.
func copied[K comparable, V any](m *map[K]V) map[K]V {
	if m == nil {
		return make(map[K]V, 1)
	}
	next := make(map[K]V, len(*m)+1)
	for k, v := range *m {
		next[k] = v
	}
	return next
}

func shardOfAddr(a netip.AddrPort) uint8 {
	b := a.Addr().As16()
	h := binary.BigEndian.Uint64(b[:8]) ^ binary.BigEndian.Uint64(b[8:]) ^ uint64(a.Port())<<32
	h *= 0x9e3779b97f4a7c15 // 2^64 / golden ratio: the top byte depends on every bit
	return uint8(h >> 56)
}

func shardOfID(id uint64) uint8 { return uint8(id) } // ids are random
