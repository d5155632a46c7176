package relay

import (
	"crypto/subtle"
	"encoding/binary"
	"net/netip"

	"golang.org/x/crypto/blake2s"

	"github.com/zt-daemon/zt/relay/wire"
)

const cookieSlot = int64(10e9) // nanoseconds; a cookie is good for one to two of them

// control handles a datagram that is not WireGuard's. Without a valid tag there
// is no reply, no allocation and no lock that another session takes; with one,
// the reply is shorter than b and written over it.
func (f *forwarder) control(b []byte, from *path, now int64, out sender, t *tally) {
	if !wire.IsBind(b) {
		t.dropped[dropMalformed]++
		return
	}
	typ, id, counter := wire.BindFields(b)
	if typ != wire.BindRequest && typ != wire.BindAnswer {
		t.dropped[dropMalformed]++
		return
	}
	s := f.byID.get(id)
	switch {
	case s == nil:
		t.dropped[dropBindSession]++
		return
	case !s.mac.Verify(b):
		t.dropped[dropBindTag]++
		return
	case counter <= s.counter.Load():
		t.dropped[dropBindCounter]++
		return
	case !s.binds.allow(now, bindRate): // after the counter: replays must not use it up
		t.dropped[dropBindRate]++
		return
	}

	at := s.path.Load()
	bound := at != nil && *at == *from
	if typ == wire.BindRequest && !bound {
		cookie := f.cookie(id, from.addr, counter, now/cookieSlot)
		b = s.mac.AppendChallenge(b[:0], id, counter, cookie[:])
		t.challenged++
		out.send(b, len(b), from)
		return
	}
	if typ == wire.BindAnswer && !f.cookieValid(wire.BindCookie(b), id, from.addr, counter, now) {
		t.dropped[dropBindCookie]++
		return
	}
	if !s.useCounter(counter) {
		t.dropped[dropBindCounter]++
		return
	}
	if !bound && !f.move(s, from) {
		t.dropped[dropBindSession]++ // it ended just now
		return
	}
	b = s.mac.AppendBound(b[:0], id, counter, from.addr)
	t.bound++
	out.send(b, len(b), from)
}

// cookie proves that whoever has it receives what is sent to addr. It is
// BLAKE2s-256 of a secret and the rest: BLAKE2 needs no HMAC (RFC 7693 §1).
func (f *forwarder) cookie(id uint64, addr netip.AddrPort, counter uint64, slot int64) [wire.CookieLen]byte {
	var in [32 + 8 + 16 + 2 + 8 + 8]byte
	ip := addr.Addr().As16()
	copy(in[:], f.secret[:])
	binary.BigEndian.PutUint64(in[32:], id)
	copy(in[40:], ip[:])
	binary.BigEndian.PutUint16(in[56:], addr.Port())
	binary.BigEndian.PutUint64(in[58:], counter)
	binary.BigEndian.PutUint64(in[66:], uint64(slot))
	return blake2s.Sum256(in[:])
}

func (f *forwarder) cookieValid(cookie []byte, id uint64, addr netip.AddrPort, counter uint64, now int64) bool {
	slot := now / cookieSlot
	this, last := f.cookie(id, addr, counter, slot), f.cookie(id, addr, counter, slot-1)
	return subtle.ConstantTimeCompare(cookie, this[:])|subtle.ConstantTimeCompare(cookie, last[:]) == 1
}

// useCounter takes counter if it is newer than all before it.
func (s *session) useCounter(counter uint64) bool {
	for {
		old := s.counter.Load()
		if counter <= old {
			return false
		}
		if s.counter.CompareAndSwap(old, counter) {
			return true
		}
	}
}

// add lets s bind an address.
func (f *forwarder) add(s *session) { f.byID.put(s.id, s) }

// move binds s to an address, which another session loses. It reports false if
// s has ended.
func (f *forwarder) move(s *session, to *path) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byID.get(s.id) != s {
		return false
	}
	if other := f.byAddr.get(to.addr); other != nil && other != s {
		other.path.Store(nil)
	}
	if old := s.path.Load(); old != nil && old.addr != to.addr {
		f.byAddr.remove(old.addr)
	}
	p := *to
	s.path.Store(&p)
	f.byAddr.put(p.addr, s)
	return true
}

// remove ends what s sends and receives on UDP.
func (f *forwarder) remove(s *session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.byID.remove(s.id)
	if p := s.path.Swap(nil); p != nil && f.byAddr.get(p.addr) == s {
		f.byAddr.remove(p.addr)
	}
	s.hops.Store(nil)
}
