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
	pingAfter    = 75 * time.Second // without a message from the participant, which pings each minute
	pingAgain    = 30 * time.Second
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

	features uint64 // of its hello

	// What the packet path reads.
	mac        *wire.BindMAC
	path       atomic.Pointer[path] // nil: no address bound
	hops       atomic.Pointer[map[uint32]*hop]
	counter    atomic.Uint64 // newest of its bind messages
	binds      limiter
	handshakes limiter

	requests limiter // edges it asks for, or, of a node, is offered

	link    *link      // the goroutine of write sends on it
	sendMu  sync.Mutex // guards what follows
	number  uint32
	queue   []outgoing
	writing bool          // write runs, or has ended for good
	drained chan struct{} // closed when write stops; nil: nobody waits for that
	ending  *wire.Refused // why the session is over; nil: it is not

	done   chan struct{} // closed when all was sent and the connection is closed
	heard  atomic.Int64  // Unix milliseconds of the newest message
	pinged time.Time     // guarded by hub.mu

	lease // guarded by hub.mu
}

// A lease is the relay's record that a grant is live. The zero value is none.
type lease struct {
	kind     string         // "": not admitted
	identity *auth.Identity // of a person or workload
	grant    auth.Grant     // theirs, with the newest statement
	cluster  string         // of a node
	node     auth.NodeGrant
	nodeKey  key.ClusterPublic // that proved node
	status   *wire.NodeStatus  // of a node: its newest word; nil: none yet, or an older version
	expires  time.Time
	edges    map[wire.EdgeID]*edge
	channels channels
}

type outgoing struct {
	number uint32
	m      wire.Message
}

func newSession(k key.WireGuardPublic, l *link, remote netip.AddrPort, now time.Time) *session {
	s := &session{
		id: randomID(), bindKey: key.NewBind(), key: k, remote: remote, started: now, link: l, done: make(chan struct{}),
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
	switch {
	case s.ending != nil: // nothing follows the reason
	case len(s.queue) >= sendQueue:
		s.finishLocked(&wire.Refused{Reason: wire.ReasonTooMany, Detail: "it does not read its messages"})
	default:
		s.queue = append(s.queue, outgoing{s.number, m})
		s.writeLocked()
	}
	return s.number
}

func (s *session) nextNumber() uint32 {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	s.number++
	return s.number
}

// sendBulk sends m when all else has gone, and waits for that.
func (s *session) sendBulk(ctx context.Context, m wire.Message) {
	for {
		s.sendMu.Lock()
		if !s.writing || s.ending != nil {
			s.sendMu.Unlock()
			s.send(m)
			return
		}
		if s.drained == nil {
			s.drained = make(chan struct{})
		}
		drained := s.drained
		s.sendMu.Unlock()
		select {
		case <-drained:
		case <-ctx.Done():
			return
		}
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
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	s.finishLocked(why)
}

func (s *session) finishLocked(why *wire.Refused) {
	if s.ending == nil {
		s.ending = why
		s.writeLocked()
	}
}

// why waits until the session has ended and says for which reason.
func (s *session) why() *wire.Refused {
	<-s.done
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	return s.ending
}

// writeLocked has what is queued written: by a goroutine that lives as long as
// there is something to write, for most sessions are idle.
func (s *session) writeLocked() {
	if !s.writing && s.link != nil {
		s.writing = true
		go s.write()
	}
}

// write sends what is queued and, when the session is over, says why and closes
// the connection.
func (s *session) write() {
	for {
		s.sendMu.Lock()
		queue, ending := s.queue, s.ending
		s.queue = nil
		if len(queue) == 0 {
			if s.drained != nil {
				close(s.drained)
				s.drained = nil
			}
			if ending == nil {
				s.link.trim() // before another write may begin
				s.writing = false
				s.sendMu.Unlock()
				return
			}
		}
		s.sendMu.Unlock()
		if len(queue) == 0 {
			s.close(ending)
			return
		}
		if ending != nil && ending.Reason == reasonClosing {
			s.close(ending) // at once: participants reconnect by themselves
			return
		}
		for _, o := range queue { // what was queued before the end is still told
			if err := s.link.send(o.number, o.m); err != nil {
				s.end(reasonGone, err.Error(), "")
				s.close(&wire.Refused{Reason: reasonGone})
				return
			}
		}
	}
}

// close says why, if somebody may hear it, and closes the connection.
func (s *session) close(why *wire.Refused) {
	defer close(s.done)
	defer s.link.c.CloseNow()
	if why.Reason != reasonGone && why.Reason != reasonClosing && s.link.send(s.nextNumber(), why) == nil {
		s.link.c.Close(websocket.StatusPolicyViolation, why.Reason)
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
