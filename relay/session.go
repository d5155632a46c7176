package relay

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// The kinds of sessions, as labels and in what people see.
const (
	kindPerson   = "person"
	kindWorkload = "workload"
	kindNode     = "node"
)

// Why sessions end, beside the reasons of packages auth and wire.
const (
	reasonGone    = "gone"    // the participant closed it, or its connection broke
	reasonClosing = "closing" // the relay stops
)

const (
	sendQueue    = 512              // control messages that wait for a slow participant
	writeTimeout = 10 * time.Second // of one control message
	pingAfter    = 60 * time.Second // without a message from the participant
	goneAfter    = 150 * time.Second
)

// A session is one participant's connection. It exists once its Noise handshake
// is done; the hub knows it once a grant was admitted.
type session struct {
	id      uint64
	bindKey key.Bind
	key     key.WireGuardPublic // proved by the handshake
	remote  netip.AddrPort      // TCP; of a proxy, if one stands between
	started time.Time

	// What the packet path reads.
	mac        *wire.BindMAC
	path       atomic.Pointer[path] // nil: no address bound
	hops       atomic.Pointer[map[uint32]*hop]
	counter    atomic.Uint64 // newest of its bind messages
	binds      limiter
	handshakes limiter

	requests limiter // edges it asks for, or, of a node, is offered

	sendMu sync.Mutex // guards number, and the order of out
	number uint32
	out    chan outgoing
	bulk   chan outgoing // documents: their sender waits

	ended   chan struct{} // closed by end
	endOnce sync.Once
	ending  *wire.Refused // why; set before ended is closed
	heard   atomic.Int64  // Unix milliseconds of the newest message

	lease // guarded by hub.mu
}

// A lease is the relay's record that a grant is live. The zero value is none.
type lease struct {
	kind     string         // "": not admitted
	identity *auth.Identity // of a person or workload
	grant    auth.Grant     // theirs, with the newest statement
	cluster  string         // of a node
	node     auth.NodeGrant
	expires  time.Time
	edges    map[wire.EdgeID]*edge
	channels channels
}

type outgoing struct {
	number uint32
	m      wire.Message
}

func newSession(k key.WireGuardPublic, remote netip.AddrPort, now time.Time) *session {
	s := &session{
		id: randomID(), bindKey: key.NewBind(), key: k, remote: remote, started: now,
		out: make(chan outgoing, sendQueue), bulk: make(chan outgoing), ended: make(chan struct{}),
	}
	s.mac = wire.NewBindMAC(s.bindKey)
	s.heard.Store(now.UnixMilli())
	return s
}

func randomID() uint64 {
	for {
		var b [8]byte
		rand.Read(b[:])
		if id := binary.BigEndian.Uint64(b[:]); id != 0 {
			return id
		}
	}
}

// send queues m and returns its number. It never waits: a participant that does
// not read loses its session.
func (s *session) send(m wire.Message) uint32 {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	s.number++
	select {
	case s.out <- outgoing{s.number, m}:
	default:
		s.end(wire.ReasonTooMany, "it does not read its messages", "")
	}
	return s.number
}

func (s *session) nextNumber() uint32 {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	s.number++
	return s.number
}

// sendBulk sends m when what is urgent has gone, and waits for that.
func (s *session) sendBulk(ctx context.Context, m wire.Message) {
	select {
	case s.bulk <- outgoing{s.nextNumber(), m}:
	case <-s.ended:
	case <-ctx.Done():
	}
}

// refuse answers request re.
func (s *session) refuse(re uint32, r *auth.RefusedError) { s.send(refusal(re, r)) }

func refusal(re uint32, r *auth.RefusedError) *wire.Refused {
	return &wire.Refused{Re: re, Reason: string(r.Reason), Detail: r.Detail, Hint: hintOf(r)}
}

// hintOf is what to do about r. Package auth knows no hint for package wire's reasons.
func hintOf(r *auth.RefusedError) string {
	if r.HintText == "" && auth.ParseReason(string(r.Reason)) != r.Reason {
		return ""
	}
	return r.Hint()
}

// refused builds the relay's own refusals. reason is of package wire or auth.
func refused(reason, detail, hint string) *auth.RefusedError {
	return &auth.RefusedError{Reason: auth.Reason(reason), Detail: detail, HintText: hint}
}

// end closes the session; the first reason counts. The hub's half is not its
// business: see hub.leave.
func (s *session) end(reason, detail, hint string) {
	s.finish(&wire.Refused{Reason: reason, Detail: detail, Hint: hint})
}

// finish closes the session with the answer to a request.
func (s *session) finish(why *wire.Refused) {
	s.endOnce.Do(func() {
		s.ending = why
		close(s.ended)
	})
}

// write sends what is queued until the session ends, and then says why.
func (s *session) write(ctx context.Context, l *link) {
	defer l.c.CloseNow()
	ping := time.NewTicker(pingAfter / 2)
	defer ping.Stop()
	for {
		select {
		case o := <-s.out:
			if err := l.send(ctx, o.number, o.m); err != nil {
				s.end(reasonGone, err.Error(), "")
				return
			}
			continue
		case o := <-s.bulk:
			if err := l.send(ctx, o.number, o.m); err != nil {
				s.end(reasonGone, err.Error(), "")
				return
			}
			continue
		case <-s.ended:
		case <-ctx.Done():
			s.end(reasonClosing, "the relay stops", "")
			return // at once: participants reconnect by themselves
		case now := <-ping.C:
			silent := now.Sub(time.UnixMilli(s.heard.Load()))
			switch {
			case silent > goneAfter:
				s.end(reasonGone, "nothing was heard for a while", "")
				return
			case silent >= pingAfter:
				s.send(&wire.Ping{})
			}
			continue
		}
		for { // what was queued before the end is still told
			select {
			case o := <-s.out:
				if l.send(ctx, o.number, o.m) != nil {
					return
				}
				continue
			default:
			}
			break
		}
		if s.ending.Reason != reasonGone && l.send(ctx, s.nextNumber(), s.ending) == nil {
			l.c.Close(websocket.StatusPolicyViolation, s.ending.Reason)
		}
		return
	}
}

// subject names the session's holder in an audit line.
func (s *session) subject(e Event) Event {
	e.Session, e.Remote, e.Peer, e.Kind = sessionName(s.id), s.remote.String(), s.key, s.kind
	if id := s.identity; id != nil {
		e.Issuer, e.Subject, e.UID, e.Name = id.Issuer, id.Subject, id.UID, id.String()
		e.SID, e.JTI, e.LoginKey = id.SID, id.JTI, id.LoginKey
	}
	if s.kind == kindNode {
		e.Cluster = s.cluster
	}
	return e
}
