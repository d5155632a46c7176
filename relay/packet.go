package relay

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zt-daemon/zt/relay/wire"
)

// Handshake messages cost their receiver a Diffie-Hellman each; bind messages
// cost us a hash.
var (
	handshakeRate = perSecond(50) // a session
	bindRate      = perSecond(20) // a session
)

// A drop is why a datagram went nowhere. The sender is told nothing.
type drop int

const (
	dropMalformed     drop = iota // neither a WireGuard message nor one that binds
	dropTruncated                 // larger than a slab
	dropOverflow                  // the socket's buffer was full, as far as the kernel tells
	dropSource                    // no session is bound to the source address
	dropChannel                   // the session has no such channel
	dropUnbound                   // the other session is bound to no address
	dropHandshakeRate             // more handshakes than a session may send
	dropSend                      // the kernel refused to send it
	dropBindSession               // a bind message of no session
	dropBindTag                   // a bind message that does not authenticate
	dropBindCounter               // a bind message seen before
	dropBindCookie                // an answer to no challenge, or to an old one
	dropBindRate                  // more bind messages than a session may send
	drops
)

var dropNames = [drops]string{
	dropMalformed: "malformed", dropTruncated: "truncated", dropOverflow: "receive_buffer_full", dropSource: "unknown_source",
	dropChannel: "unknown_channel", dropUnbound: "peer_unbound", dropHandshakeRate: "handshake_rate",
	dropSend: "send_error", dropBindSession: "bind_session", dropBindTag: "bind_tag",
	dropBindCounter: "bind_counter", dropBindCookie: "bind_cookie", dropBindRate: "bind_rate",
}

// A tally counts what became of a batch of datagrams.
type tally struct {
	packets, bytes uint64 // forwarded
	bound          uint64 // bind messages answered by Bound
	challenged     uint64
	dropped        [drops]uint64
}

// A path is a UDP address as one of our ports sees it. Two are the same if they
// are equal.
type path struct {
	addr netip.AddrPort // unmapped
	via  *port
	name sockaddr // addr in the socket's own form, and which of our addresses it knows
}

// A hop is what a channel leads to. It does not change.
type hop struct {
	to      *session
	channel uint32         // the other side's
	bytes   *atomic.Uint64 // of the edge, in this direction
}

// A sender takes datagrams to send: b holds one or more of seg bytes each (the
// last may be shorter) for one address. It may use both until the batch is
// flushed.
type sender interface {
	send(b []byte, seg int, to *path)
}

// A forwarder moves packets between the addresses of sessions. Its look-ups take
// no lock; nothing on the way of a packet allocates.
type forwarder struct {
	byAddr  snapshot[netip.AddrPort, *session] // by bound address
	byID    snapshot[uint64, *session]
	secret  [32]byte   // of cookies; new at every start
	start   time.Time  // of the clock that nanos reads
	mu      sync.Mutex // one change of who is bound where at a time
	counter func(*tally)
}

// newForwarder makes a forwarder that hands what it counted to counter, once a batch.
func newForwarder(counter func(*tally)) *forwarder {
	f := &forwarder{start: time.Now(), counter: counter}
	f.byAddr.hash, f.byID.hash = shardOfAddr, shardOfID
	rand.Read(f.secret[:])
	return f
}

// nanos is a monotonic clock.
func (f *forwarder) nanos() int64 { return int64(time.Since(f.start)) }

// train forwards one received datagram or, where the kernel joined several of
// one flow, each of its segments of seg bytes. Channels are rewritten in b; a
// run of segments with one destination leaves as one.
func (f *forwarder) train(b []byte, seg int, from *path, now int64, out sender, t *tally) {
	if len(b) == 0 || seg <= 0 {
		t.dropped[dropMalformed]++
		return
	}
	s := f.byAddr.get(from.addr)
	var hops map[uint32]*hop
	if s != nil {
		if p := s.hops.Load(); p != nil {
			hops = *p
		}
	}
	var (
		run      *hop  // where b[start:off] goes; nil: nowhere
		to       *path // run's address
		start    int
		incoming uint32 // the channel that led to run
	)
	for off := 0; off < len(b); off += seg {
		m := b[off:min(off+seg, len(b))]
		var next *hop
		switch {
		case !wire.IsPacket(m):
			f.control(m, from, now, out, t)
		case s == nil:
			t.dropped[dropSource]++
		case wire.IsHandshake(m) && !s.handshakes.allow(now, handshakeRate):
			t.dropped[dropHandshakeRate]++
		default:
			channel := wire.Channel(m)
			if next = run; run == nil || channel != incoming {
				next, incoming = hops[channel], channel
			}
			if next == nil {
				t.dropped[dropChannel]++
			}
		}
		if next != run {
			if run != nil {
				forward(b[start:off], seg, run, to, out, t)
			}
			run, start = next, off
			if run != nil {
				if to = run.to.path.Load(); to == nil {
					t.dropped[dropUnbound]++
					run = nil
				}
			}
		}
		if run != nil {
			wire.PutChannel(m, run.channel)
		}
	}
	if run != nil {
		forward(b[start:], seg, run, to, out, t)
	}
}

func forward(b []byte, seg int, h *hop, to *path, out sender, t *tally) {
	t.packets += uint64((len(b) + seg - 1) / seg)
	t.bytes += uint64(len(b))
	h.bytes.Add(uint64(len(b)))
	out.send(b, seg, to)
}

// newSockets prepares UDP sockets; they stay the caller's until run. Those of one
// address are of one port.
func newSockets(conns []*net.UDPConn) ([]*socket, error) {
	ports := map[string]*port{}
	var sockets []*socket
	for _, c := range conns {
		addr := c.LocalAddr().String()
		s, err := newSocket(c, ports[addr])
		if err != nil {
			return nil, fmt.Errorf("UDP socket %s: %w", addr, err)
		}
		ports[addr] = s.port
		sockets = append(sockets, s)
	}
	return sockets, nil
}
