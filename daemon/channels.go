package daemon

import (
	"maps"
	"slices"
	"sync/atomic"

	"github.com/zt-daemon/zt/auth/key"
)

// A shards is a map that packets read without a lock. Each of its parts is an
// immutable snapshot; a change copies one part, so that a node which takes back
// ten thousand edges after a restart does not copy them ten thousand times.
// Writers hold a lock of their own. The zero value is empty.
type shards[K comparable, V any] [256]atomic.Pointer[map[K]V]

func (s *shards[K, V]) get(shard byte, k K) (v V, ok bool) {
	if m := s[shard].Load(); m != nil {
		v, ok = (*m)[k]
	}
	return v, ok
}

func (s *shards[K, V]) set(shard byte, k K, v V) {
	next := map[K]V{k: v}
	if m := s[shard].Load(); m != nil {
		next = maps.Clone(*m)
		next[k] = v
	}
	s[shard].Store(&next)
}

func (s *shards[K, V]) remove(shard byte, k K) {
	m := s[shard].Load()
	if m == nil {
		return
	}
	next := maps.Clone(*m)
	delete(next, k)
	if len(next) == 0 {
		s[shard].Store(nil)
		return
	}
	s[shard].Store(&next)
}

// A hop is one way to a peer: a channel of a session. It does not change.
type hop struct {
	link    *link
	channel uint32
	peer    key.WireGuardPublic
}

// peerShard spreads peers: public keys are as good as random. Not the first
// byte: nothing is lost if somebody searched for keys that begin alike.
func peerShard(p key.WireGuardPublic) byte {
	b := p.Bytes()
	return b[0] ^ b[11] ^ b[23]
}

// addHop makes h the newest way to its peer, and what its channel means.
// A channel that another hop of the session held passes to h: the relay numbers
// channels, and says a number twice only when it has forgotten the first.
func (t *Transport) addHop(h *hop) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old, ok := h.link.channels.get(byte(h.channel), h.channel); ok {
		t.removeHopLocked(old)
	}
	h.link.channels.set(byte(h.channel), h.channel, h)
	shard := peerShard(h.peer)
	old, _ := t.routes.get(shard, h.peer)
	t.routes.set(shard, h.peer, append([]*hop{h}, old...))
}

// removeHop takes h out of both tables; nothing happens if it is not there.
func (t *Transport) removeHop(h *hop) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.removeHopLocked(h)
}

func (t *Transport) removeHopLocked(h *hop) {
	if now, ok := h.link.channels.get(byte(h.channel), h.channel); ok && now == h {
		h.link.channels.remove(byte(h.channel), h.channel)
	}
	shard := peerShard(h.peer)
	old, _ := t.routes.get(shard, h.peer)
	i := slices.Index(old, h)
	switch {
	case i < 0:
	case len(old) == 1:
		t.routes.remove(shard, h.peer)
	default:
		t.routes.set(shard, h.peer, slices.Concat(old[:i], old[i+1:]))
	}
}

// route picks the newest way to a peer whose session is up and bound; if there
// is none, the newest, since a relay may still forward for a session whose
// control connection has just been lost. nil: there is no way.
func (t *Transport) route(p key.WireGuardPublic) *hop {
	hops, _ := t.routes.get(peerShard(p), p)
	for _, h := range hops {
		if h.link.working() {
			return h
		}
	}
	for _, h := range hops {
		if h.link.remote.Load() != nil {
			return h
		}
	}
	return nil
}
