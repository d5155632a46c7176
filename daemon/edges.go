package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// An Edge is a relay's permission to exchange packets with one peer.
type Edge struct {
	ID      wire.EdgeID
	Cluster string              // whose node is at one end
	Peer    key.WireGuardPublic // the other end
}

// EdgeReady is a relay's answer to RequestEdge. Answer is an auth.Answer, which
// the caller verifies before it installs the peer; if it does not verify, the
// caller gives the edge up with CloseEdge.
type EdgeReady struct {
	Edge
	Answer []byte
}

// EdgeOffer asks a node whether the holder of a grant may become its peer.
type EdgeOffer struct {
	ID            wire.EdgeID
	Grant         []byte // an auth.Grant
	AccessRequest []byte // an auth.AccessRequest for the case that it may not; empty: none

	conn   *control
	number uint32
}

// An edgeTable is the edges of one session, across its connections.
type edgeTable struct {
	transport *Transport
	link      *link

	mu     sync.Mutex // guards what follows
	held   map[wire.EdgeID]*heldEdge
	asked  map[wire.EdgeID]string // clusters of requests that are under way
	closed bool
}

type heldEdge struct {
	Edge
	hop *hop // nil: no channel at present
}

func (t *edgeTable) init(transport *Transport, l *link) {
	t.transport, t.link = transport, l
	t.held, t.asked = map[wire.EdgeID]*heldEdge{}, map[wire.EdgeID]string{}
}

func (t *edgeTable) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.held)
}

func (t *edgeTable) all() []Edge {
	t.mu.Lock()
	defer t.mu.Unlock()
	edges := make([]Edge, 0, len(t.held))
	for _, h := range t.held {
		edges = append(edges, h.Edge)
	}
	return edges
}

// hold begins to hold e, without a channel yet.
func (t *edgeTable) hold(e Edge) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.holdLocked(e)
}

func (t *edgeTable) holdLocked(e Edge) error {
	if t.closed {
		return errors.New("session ended")
	}
	if h := t.held[e.ID]; h != nil {
		if h.Edge != e {
			return fmt.Errorf("edge %s is held with another peer", e.ID)
		}
		return nil
	}
	t.held[e.ID] = &heldEdge{Edge: e}
	t.transport.metrics.edges.Inc()
	return nil
}

// ask notes a request, so that only what was asked for becomes an edge.
func (t *edgeTable) ask(id wire.EdgeID, cluster string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked[id] = cluster
}

// unask ends a request.
func (t *edgeTable) unask(id wire.EdgeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.asked, id)
}

// ready turns a request into an edge with a channel; false if it was not asked for.
func (t *edgeTable) ready(m *wire.EdgeReady) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	cluster, ok := t.asked[m.Edge]
	if !ok || t.holdLocked(Edge{ID: m.Edge, Cluster: cluster, Peer: m.Peer}) != nil {
		return false
	}
	delete(t.asked, m.Edge)
	t.channelLocked(t.held[m.Edge], m.Channel)
	return true
}

// channel gives a held edge its channel; 0: it has none now. Unless peer is zero
// it must be the edge's. false: there is no such edge.
func (t *edgeTable) channel(id wire.EdgeID, peer key.WireGuardPublic, channel uint32) (Edge, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.held[id]
	if h == nil || !peer.IsZero() && h.Peer != peer {
		return Edge{}, false
	}
	t.channelLocked(h, channel)
	return h.Edge, true
}

func (t *edgeTable) channelLocked(h *heldEdge, channel uint32) {
	if h.hop != nil {
		t.transport.removeHop(h.hop)
		h.hop = nil
	}
	if channel != 0 {
		h.hop = &hop{link: t.link, channel: channel, peer: h.Peer}
		t.transport.addHop(h.hop)
	}
}

func (t *edgeTable) get(id wire.EdgeID) (Edge, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.held[id]
	if h == nil {
		return Edge{}, false
	}
	return h.Edge, true
}

// A way is what the packets of an edge go by. While it stays the same and works,
// the relay has answered, but for the seconds that it takes to notice.
type way struct {
	hop   *hop
	turns uint64 // of the link
}

// way returns the present way of an edge, and whether it works; held is whether
// there is such an edge at all.
func (t *edgeTable) way(id wire.EdgeID) (w way, works, held bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.held[id]
	if h == nil {
		return way{}, false, false
	}
	w = way{h.hop, t.link.turns.Load()}
	return w, h.hop != nil && t.link.working(), true
}

// drop forgets an edge and its channel; false: it was not held.
func (t *edgeTable) drop(id wire.EdgeID) (Edge, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.held[id]
	if h == nil {
		return Edge{}, false
	}
	t.channelLocked(h, 0)
	delete(t.held, id)
	t.transport.metrics.edges.Dec()
	return h.Edge, true
}

// clear forgets everything and holds nothing any more.
func (t *edgeTable) clear() {
	for _, e := range t.all() {
		t.drop(e.ID)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
}

// RequestEdge asks for an edge to a node of a cluster. It waits for the session
// to be up, and asks again if the connection is lost meanwhile, as long as ctx
// allows. The error is a *RefusedError, or matches ErrUnreachable.
func (s *Session) RequestEdge(ctx context.Context, cluster string) (EdgeReady, error) {
	return s.RequestAccess(ctx, cluster, nil)
}

// RequestAccess is RequestEdge with an auth.AccessRequest, which a node that
// refuses may write down. It then refuses with auth.ReasonRequested.
func (s *Session) RequestAccess(ctx context.Context, cluster string, request []byte) (EdgeReady, error) {
	for {
		c, err := s.await(ctx)
		if err != nil {
			return EdgeReady{}, fmt.Errorf("edge to cluster %s: %w", cluster, err)
		}
		ready, err := s.requestEdge(ctx, c, cluster, request)
		if err == nil {
			return ready, nil
		}
		select {
		case <-c.done: // lost: the next connection may do
			if !isRefused(err) && ctx.Err() == nil {
				s.gone(ctx, c)
				continue
			}
		default:
		}
		return EdgeReady{}, fmt.Errorf("edge to cluster %s: %w", cluster, err)
	}
}

// gone waits until c, which has ended, is not the session's connection any more.
func (s *Session) gone(ctx context.Context, c *control) {
	for {
		s.mu.Lock()
		now, change := s.conn, s.change
		s.mu.Unlock()
		if now != c {
			return
		}
		select {
		case <-change:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Session) requestEdge(ctx context.Context, c *control, cluster string, request []byte) (EdgeReady, error) {
	var id wire.EdgeID
	rand.Read(id[:])
	s.edges.ask(id, cluster)
	defer s.edges.unask(id)
	answer, err := c.request(ctx, &wire.EdgeRequest{Edge: id, Cluster: cluster, AccessRequest: request})
	if err == nil {
		m, ok := answer.(*wire.EdgeReady)
		if ok && m.Edge == id {
			return EdgeReady{Edge{ID: id, Cluster: cluster, Peer: m.Peer}, m.Answer}, nil
		}
		err = fmt.Errorf("relay answered with another %T", answer)
	}
	// It may have become ready just as the wait ended.
	s.edges.unask(id)
	if _, ok := s.edges.drop(id); ok {
		_, _ = c.send(context.WithoutCancel(ctx), &wire.EdgeClose{Edge: id, Reason: wire.ReasonTimeout}, nil)
	}
	return EdgeReady{}, err
}

// CloseEdge gives an edge up, here at once and at the relay if the session is up;
// if it is not, the relay learns it when the edge is not held at the next connect.
// The caller has removed the peer.
func (s *Session) CloseEdge(ctx context.Context, id wire.EdgeID, reason string) {
	if _, ok := s.edges.drop(id); !ok {
		return
	}
	s.mu.Lock()
	c := s.conn
	s.mu.Unlock()
	if c != nil {
		_, _ = c.send(ctx, &wire.EdgeClose{Edge: id, Reason: reason}, nil) // a failure ends the connection
	}
}

// Edges returns the edges that are held.
func (s *Session) Edges() []Edge { return s.edges.all() }

// AnswerOffer consents to an offer: peer is installed in the device, and answer
// is the auth.Answer for it. Packets flow once Handler.EdgeOpen was called. If the
// connection is over, the edge is not held.
func (s *Session) AnswerOffer(ctx context.Context, o EdgeOffer, peer key.WireGuardPublic, answer []byte) error {
	if err := s.edges.hold(Edge{ID: o.ID, Cluster: s.cfg.Cluster, Peer: peer}); err != nil {
		return fmt.Errorf("answer edge offer: %w", err)
	}
	if _, err := o.conn.send(ctx, &wire.EdgeAnswer{Re: o.number, Edge: o.ID, Answer: answer}, nil); err != nil {
		s.edges.drop(o.ID)
		return fmt.Errorf("answer edge offer: %w", dialError(ctx, s.cfg.Relay.URL, err))
	}
	return nil
}

// RefuseOffer refuses an offer. Detail and hint go to the person at the laptop.
func (s *Session) RefuseOffer(ctx context.Context, o EdgeOffer, reason, detail, hint string) error {
	if _, err := o.conn.send(ctx, &wire.Refused{Re: o.number, Reason: reason, Detail: detail, Hint: hint}, nil); err != nil {
		return fmt.Errorf("refuse edge offer: %w", dialError(ctx, s.cfg.Relay.URL, err))
	}
	return nil
}

// receive takes a message that is neither Ping nor Document. Tables change here,
// in the order of the messages; the Handler is told by an event.
func (s *Session) receive(ctx context.Context, c *control, number uint32, m wire.Message, events chan<- func()) error {
	h := &s.cfg.Handler
	tell := func(event func()) error {
		select {
		case events <- event:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	switch m := m.(type) {
	case *wire.Admitted:
		c.answers(m.Re, m)
	case *wire.OK:
		c.answers(m.Re, m)
	case *wire.Refused:
		c.answers(m.Re, m)
	case *wire.DocumentsEnd:
		c.answers(m.Re, m)
	case *wire.Pong: // that it came is all it says
	case *wire.EdgeReady:
		if s.edges.ready(m) {
			c.answers(m.Re, m)
			return nil
		}
		// Too late, or never asked for.
		_, err := c.send(ctx, &wire.EdgeClose{Edge: m.Edge, Reason: wire.ReasonTimeout}, nil)
		return err
	case *wire.EdgeOffer:
		if h.EdgeOffer == nil {
			_, err := c.send(ctx, &wire.Refused{Re: number, Reason: wire.ReasonNotAllowed}, nil)
			return err
		}
		return tell(func() {
			h.EdgeOffer(ctx, EdgeOffer{ID: m.Edge, Grant: m.Grant, AccessRequest: m.AccessRequest, conn: c, number: number})
		})
	case *wire.EdgeOpen:
		return s.edgeOpen(ctx, c, m.Edge, m.Peer, m.Channel, tell)
	case *wire.EdgeKept:
		return s.edgeOpen(ctx, c, m.Edge, key.WireGuardPublic{}, m.Channel, tell)
	case *wire.EdgePending: // its old channel is void
		s.edges.channel(m.Edge, key.WireGuardPublic{}, 0)
	case *wire.EdgeRefused:
		if e, ok := s.edges.drop(m.Edge); ok && h.EdgeRefused != nil {
			err := &RefusedError{Relay: s.cfg.Relay.URL, Reason: m.Reason, Detail: m.Detail}
			return tell(func() { h.EdgeRefused(ctx, e, err) })
		}
	case *wire.EdgeMove:
		if e, ok := s.edges.get(m.Edge); ok && h.EdgeMove != nil {
			return tell(func() { h.EdgeMove(ctx, e) })
		}
	case *wire.EdgeClosed:
		if e, ok := s.edges.drop(m.Edge); ok && h.EdgeClosed != nil {
			return tell(func() { h.EdgeClosed(ctx, e, m.Reason) })
		}
	case *wire.PeerStatement:
		if h.PeerStatement != nil {
			return tell(func() { h.PeerStatement(ctx, m.Peer, m.Body) })
		}
	case *wire.DocumentsChanged:
		if h.DocumentsChanged != nil {
			return tell(func() { h.DocumentsChanged(ctx) })
		}
	default:
		return fmt.Errorf("relay sent a message %T out of turn", m)
	}
	return nil
}

// edgeOpen installs a channel. One for an edge that is not held, or of another
// peer, is given back: the relay cannot make an edge that was not agreed to.
func (s *Session) edgeOpen(ctx context.Context, c *control, id wire.EdgeID, peer key.WireGuardPublic, channel uint32, tell func(func()) error) error {
	e, ok := s.edges.channel(id, peer, channel)
	if !ok {
		s.log.Warn("relay opened an edge that is not held", "edge", id)
		_, err := c.send(ctx, &wire.EdgeClose{Edge: id, Reason: wire.ReasonNotHeld}, nil)
		return err
	}
	if s.cfg.Handler.EdgeOpen != nil {
		return tell(func() { s.cfg.Handler.EdgeOpen(ctx, e) })
	}
	return nil
}
