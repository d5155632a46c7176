package relay

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

const (
	stepTimeout    = 10 * time.Second // of each step until a session is admitted
	maxHalfOpen    = 1024             // sessions that presented no grant yet
	maxAdmissions  = 64               // grants being verified
	maxAdmin       = 10 * time.Minute // of an administrator's session
	maxAdminIdle   = time.Minute
	maxFirstNoise  = 256 // bytes; the message is 96
	closeHandshake = "handshake failed: another relay key or network than this relay's"
)

// A gate lets sessions in, some at a time, and waits for all.
type gate struct {
	mu       sync.Mutex // guards what follows
	halfOpen int
	closed   bool
	all      sync.WaitGroup
}

// enter reports whether a session may begin; if so, leave must be called.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.halfOpen >= maxHalfOpen {
		return false
	}
	g.halfOpen++
	g.all.Add(1)
	return true
}

// admitted makes room for another half-open session.
func (g *gate) admitted() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.halfOpen--
}

// close lets nobody in any more and waits until everybody has left.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.all.Wait()
}

func (g *gate) waiting() float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return float64(g.halfOpen)
}

// serveSession is GET /v1/session: one session, from upgrade to end. It leaves
// the HTTP server's goroutine, and what the server holds of the request, at once.
func (s *Server) serveSession(ctx context.Context) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.gate.enter() {
			s.metrics.handshakes.WithLabelValues("full").Inc()
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many sessions are beginning", http.StatusServiceUnavailable)
			return
		}
		l, err := accept(w, r)
		if err != nil { // accept has answered
			s.metrics.handshakes.WithLabelValues("no_upgrade").Inc()
			s.gate.admitted()
			s.gate.all.Done()
			return
		}
		remote, _ := netip.ParseAddrPort(r.RemoteAddr)
		go s.session(ctx, l, remote)
	}
}

// session is one session on l. What comes before admission grows a stack to
// 16 KiB, so the rest, which lasts, has a goroutine and a stack of its own.
func (s *Server) session(ctx context.Context, l *link, remote netip.AddrPort) {
	defer s.gate.admitted()
	stop := context.AfterFunc(ctx, func() { l.c.CloseNow() })
	p, unclaimed, err := s.handshake(l, remote)
	if stop(); err != nil || ctx.Err() != nil {
		defer s.gate.all.Done()
		defer l.c.CloseNow()
		result := "failed"
		if errors.Is(err, os.ErrDeadlineExceeded) {
			result = "timeout"
		} else if errors.Is(err, wire.ErrHandshake) {
			l.c.Close(websocket.StatusPolicyViolation, closeHandshake)
		}
		s.metrics.handshakes.WithLabelValues(result).Inc()
		s.log.Debug("session handshake failed", "endpoint", remote, "err", err)
		return
	}
	s.metrics.handshakes.WithLabelValues("done").Inc()
	stop = context.AfterFunc(ctx, func() {
		p.end(reasonClosing, "the relay stops", "")
		l.c.CloseNow() // a write may wait for the participant
	})
	serve, err := s.begin(ctx, p, unclaimed)
	go func() {
		defer s.gate.all.Done()
		defer stop()
		if serve != nil {
			err = serve(ctx, p)
		}
		if refusal, ok := errors.AsType[*auth.RefusedError](err); ok {
			p.end(string(refusal.Reason), refusal.Detail, hintOf(refusal))
		} else {
			p.end(reasonGone, "", "")
		}
		why := p.why()
		s.hub.leave(p, why.Reason, why.Detail)
	}()
}

// apart runs f on a stack that goes when f returns: verification needs more than
// a session should keep.
func apart[T any](f func() T) T {
	result := make(chan T, 1)
	go func() { result <- f() }()
	return <-result
}

// handshake makes a session of a WebSocket. It is unclaimed if the participant
// meant a relay that serves no network yet.
func (s *Server) handshake(l *link, remote netip.AddrPort) (p *session, unclaimed bool, err error) {
	l.conn.SetReadDeadline(time.Now().Add(s.stepTimeout))
	first, err := l.read()
	if err != nil {
		return nil, false, err
	}
	second, peer, cipher, unclaimed, err := s.respond(first)
	if err != nil {
		return nil, false, err
	}
	if err := l.write(second); err != nil {
		return nil, false, err
	}
	now := s.now()
	l.cipher = cipher
	p = newSession(peer, l, remote, now)
	err = l.send(p.nextNumber(), &wire.Welcome{
		Version: wire.Version, Features: wire.FeatureNodeStatus, Session: p.id, Bind: p.bindKey, UDP: s.cfg.AdvertiseUDP, Time: uint64(now.UnixMilli()),
	})
	if err != nil {
		return nil, false, err
	}
	// Only this message proves the participant's key: the first can be replayed.
	_, m, err := l.receive(s.stepTimeout)
	if err != nil {
		return nil, false, err
	}
	hello, ok := m.(*wire.Hello)
	if !ok || hello.Version < wire.Version {
		why := &wire.Refused{Reason: wire.ReasonVersion, Detail: "this relay speaks version 1", Hint: "use versions of zt-daemon and zt-relay that belong together"}
		l.send(p.nextNumber(), why)
		l.c.Close(websocket.StatusPolicyViolation, why.Reason)
		return nil, false, errors.New("no hello of a version that this relay speaks")
	}
	p.features = hello.Features
	return p, unclaimed, nil
}

// respond tries the relay's keys, and the network's id or none.
func (s *Server) respond(first []byte) (second []byte, peer key.WireGuardPublic, c *wire.Cipher, unclaimed bool, err error) {
	if len(first) > maxFirstNoise {
		return nil, peer, nil, false, wire.ErrHandshake
	}
	id := s.documents.network()
	for _, network := range []auth.NetworkID{id, {}} {
		for _, k := range []key.RelayPrivate{s.keys.current, s.keys.next} {
			second, peer, c, err = wire.Respond(k, network, bytes.Clone(first))
			if err == nil {
				return second, peer, c, network.IsZero(), nil
			}
		}
		if id.IsZero() {
			break
		}
	}
	return nil, peer, nil, false, wire.ErrHandshake
}

// begin reads the message that says what the session is for. It returns what
// serves the session from then on, nil if it was refused.
func (s *Server) begin(ctx context.Context, p *session, unclaimed bool) (serve func(context.Context, *session) error, err error) {
	number, m, err := p.link.receive(s.stepTimeout)
	if err != nil {
		return nil, err
	}
	var r *auth.RefusedError
	admin := false
	switch m := m.(type) {
	case *wire.Claim:
		if !unclaimed {
			r = refused(wire.ReasonNotAllowed, "a claim is for a relay without a network", "")
			break
		}
		r, admin = s.claim(m), true
	case *wire.AdminProof:
		if unclaimed {
			r = refused(wire.ReasonUnclaimed, "this relay serves no network yet", "claim it with `zt-daemon network create`")
			break
		}
		r, admin = s.proveAdmin(m, p.link.cipher.HandshakeHash(), p), true
	case *wire.Grant:
		if unclaimed {
			r = refused(wire.ReasonUnclaimed, "this session is for a relay without a network", "")
			break
		}
		r = s.grant(ctx, p, number, m)
	default:
		r = refused(wire.ReasonMalformed, "a session begins with a grant", "")
	}
	if r != nil {
		s.refused(p, "session", r)
		p.finish(refusal(number, r))
		return nil, nil
	}
	if admin {
		p.send(&wire.OK{Re: number})
		return s.serveAdmin, nil
	}
	return s.converse, nil
}

// converse reads an admitted session's messages until it ends.
func (s *Server) converse(ctx context.Context, p *session) error {
	for {
		number, m, err := p.link.receive(goneAfter)
		if err != nil {
			return err
		}
		p.heard.Store(time.Now().UnixMilli())
		if r := s.handle(ctx, p, number, m); r != nil {
			return r
		}
	}
}

// handle answers one message of an admitted session; an error ends it.
func (s *Server) handle(ctx context.Context, p *session, number uint32, m wire.Message) error {
	var (
		r    *auth.RefusedError
		what string
	)
	switch m := m.(type) {
	case *wire.Grant:
		what, r = "grant", apart(func() *auth.RefusedError { return s.grant(ctx, p, number, m) })
	case *wire.Statement:
		what, r = "statement", apart(func() *auth.RefusedError { return s.statement(p, number, m) })
	case *wire.DocumentsRequest:
		s.sendDocuments(ctx, p, number, p.cluster)
	case *wire.EdgeRequest:
		what = "edge"
		if _, ok := s.documents.cluster(m.Cluster); !ok {
			r = refused(wire.ReasonUnknownCluster, "", "run `zt-daemon clusters` for the list")
		} else {
			r = s.hub.request(p, number, m)
		}
	case *wire.EdgeAnswer:
		m.Answer = bytes.Clone(m.Answer) // it goes into the laptop's queue
		s.hub.answer(p, m)
	case *wire.Refused:
		s.hub.declined(p, m)
	case *wire.EdgeHold:
		s.hub.hold(p, m)
	case *wire.EdgeClose:
		s.hub.close(p, m)
	case *wire.NodeStatus:
		what = "node_status"
		if r = s.hub.nodeStatus(p, m); r == nil {
			p.send(&wire.OK{Re: number})
		}
	case *wire.NodesRequest:
		what, r = "nodes", s.sendNodes(ctx, p, number)
	case *wire.Ping:
		p.send(&wire.Pong{Re: number})
	case *wire.Pong, *wire.OK:
	default:
		return refused(wire.ReasonMalformed, "a message that a participant does not send", "")
	}
	if r != nil {
		s.refused(p, what, r)
		p.refuse(number, r)
	}
	return nil
}

// refused counts and records a refusal.
func (s *Server) refused(p *session, what string, r *auth.RefusedError) {
	reason := s.metrics.label(string(r.Reason))
	s.metrics.refusals.WithLabelValues(what, reason).Inc()
	s.hub.mu.Lock()
	e := p.subject(Event{Time: s.now(), Event: EventRefused, Reason: reason, Detail: what + ": " + r.Error()})
	s.hub.mu.Unlock()
	s.audit.write(e)
	s.log.Info("refused", "peer", p.key, "endpoint", p.remote, "request", what, "reason", reason, "err", r)
}
