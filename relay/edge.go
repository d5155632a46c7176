package relay

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// Edge requests are rare: a laptop asks once a cluster, and again after a fault.
var (
	requestRate = perSecond(10) // of a laptop
	offerRate   = perSecond(50) // to a node
)

// How long the parts of an edge wait for each other.
const (
	waitForNode   = 10 * time.Second // of the cluster, to have a session
	waitForAnswer = 5 * time.Second  // of one node; then another is asked
	waitForHolder = 30 * time.Second // the other side, to come back after a restart
)

// An edgeState is how far an edge is.
type edgeState int

const (
	edgeWaiting edgeState = iota // no node to ask
	edgeOffered                  // a node was asked
	edgeHeld                     // one side came back with it
	edgeOpen                     // both sides have it, or had: one may be away
)

// An edge is the permission of two participants to exchange packets. Fields are
// guarded by hub.mu, but for the counters.
type edge struct {
	id      wire.EdgeID
	cluster string
	state   edgeState
	laptop  half
	node    half

	request  uint32    // number of the laptop's EdgeRequest
	access   []byte    // its AccessRequest, which is the node's to read
	offer    uint32    // number of the EdgeOffer to node.session
	deadline time.Time // of state; zero when it is edgeOpen
	moved    bool      // the laptop was told to ask for another
	tried    []key.WireGuardPublic
	declined *auth.RefusedError // by the node asked last, or for one that stops; nil: none did
	told     time.Time          // when the statement was issued that node knows
	granted  time.Time          // when the ID token was issued that node knows

	who      Event     // the laptop's part of audit lines; zero until the laptop was seen
	login    *revokee  // whose it is; nil until the laptop was seen
	opened   time.Time // zero: never
	toNode   atomic.Uint64
	fromNode atomic.Uint64
}

// A half is one side of an edge.
type half struct {
	key     key.WireGuardPublic
	session *session // nil: away
	channel uint32   // of session; 0: none yet
}

// other returns the side that is not s's.
func (e *edge) other(s *session) *half {
	if e.laptop.session == s {
		return &e.node
	}
	return &e.laptop
}

// own returns s's side.
func (e *edge) own(s *session) *half {
	if e.laptop.session == s {
		return &e.laptop
	}
	return &e.node
}

func maxEdges(s *session) int {
	if s.kind == kindNode {
		return maxNodeEdges
	}
	return maxLaptopEdges
}

// request begins an edge to some node of a cluster.
func (h *hub) request(s *session, number uint32, m *wire.EdgeRequest) *auth.RefusedError {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.sessions[s.key] != s:
		return &auth.RefusedError{Reason: auth.ReasonNotAdmitted}
	case s.kind == kindNode:
		return refused(wire.ReasonNotAllowed, "a node asks for no edges", "")
	case !s.requests.allow(h.forwarder.nanos(), requestRate):
		return refused(wire.ReasonTooMany, "more than 10 edge requests a second", "try again in a minute")
	case len(s.edges) >= maxLaptopEdges:
		return refused(wire.ReasonTooMany, fmt.Sprintf("%d edges", maxLaptopEdges), "close edges that are no longer used")
	case m.Edge == wire.EdgeID{} || h.edges[m.Edge] != nil:
		return refused(wire.ReasonMalformed, "the edge's id is in use", "choose a random one")
	}
	e := &edge{id: m.Edge, cluster: m.Cluster, request: number, access: bytes.Clone(m.AccessRequest), laptop: half{key: s.key, session: s}}
	e.claim(s)
	h.edges[e.id], s.edges[e.id] = e, e
	h.offerLocked(e)
	return nil
}

// claim notes whose edge it is.
func (e *edge) claim(laptop *session) {
	e.who = laptop.subject(Event{Cluster: e.cluster, Edge: e.id})
	e.login = revokeeOf(laptop.identity)
}

// offerLocked asks the next node, or waits for one. An edge that asked all there
// are is refused.
func (h *hub) offerLocked(e *edge) {
	now := h.now()
	if e.node.session != nil {
		delete(e.node.session.edges, e.id)
	}
	e.node = half{}
	n := h.chooseLocked(e)
	if n == nil && len(e.tried) > 0 {
		if e.declined == nil {
			e.declined = refused(wire.ReasonTimeout, "no node of cluster "+e.cluster+" answered", "see that the cluster's zt-daemon pods are healthy, then try again")
		}
		h.failLocked(e, e.declined)
		return
	}
	h.waiting[e.id] = e
	if n == nil {
		if slices.ContainsFunc(h.nodes[e.cluster], (*session).draining) {
			e.declined = &auth.RefusedError{Reason: auth.ReasonNodeStops} // unless another comes
		}
		if e.state != edgeWaiting || e.deadline.IsZero() {
			e.state, e.deadline = edgeWaiting, now.Add(waitForNode)
		}
		return
	}
	laptop := e.laptop.session
	e.state, e.deadline = edgeOffered, now.Add(waitForAnswer)
	e.node = half{key: n.key, session: n}
	e.tried = append(e.tried, n.key)
	n.edges[e.id] = e
	e.told = laptop.grant.Statement.Issued
	e.granted = laptop.identity.IssuedAt
	e.offer = n.send(&wire.EdgeOffer{Edge: e.id, Grant: laptop.grant.Append(nil), AccessRequest: e.access})
}

// chooseLocked picks a node which was not asked yet and is not about to stop, of
// those that serve well if there are any: one that knows an older login of the
// laptop, whose flows there are to go on; else one that the laptop has no edge
// with, and of those the one with the fewest edges.
func (h *hub) chooseLocked(e *edge) *session {
	has := map[*session]int{}
	for _, other := range e.laptop.session.edges {
		has[other.node.session] = 1
		if other != e && other.cluster == e.cluster && other.granted.Before(e.laptop.session.identity.IssuedAt) {
			has[other.node.session] = -1
		}
	}
	candidates := slices.Clone(h.nodes[e.cluster])
	slices.SortStableFunc(candidates, func(a, b *session) int {
		return cmp.Or(cmp.Compare(a.poor(), b.poor()), cmp.Compare(has[a], has[b]), cmp.Compare(len(a.edges), len(b.edges)))
	})
	for _, n := range candidates {
		if !n.draining() && !slices.Contains(e.tried, n.key) && len(n.edges) < maxNodeEdges && n.requests.allow(h.forwarder.nanos(), offerRate) {
			return n
		}
	}
	return nil
}

// failLocked refuses a request that found no node.
func (h *hub) failLocked(e *edge, r *auth.RefusedError) {
	if s := e.laptop.session; s != nil {
		s.refuse(e.request, r)
	}
	ev := e.who
	ev.Time, ev.Event, ev.Node, ev.Reason, ev.Detail = h.now(), EventRefused, e.node.key, h.metrics.label(string(r.Reason)), r.Detail
	h.audit.write(ev)
	h.metrics.refusals.WithLabelValues("edge", h.metrics.label(string(r.Reason))).Inc()
	h.forgetLocked(e)
}

// offered finds the edge that node n was asked about with message re.
func (h *hub) offeredLocked(n *session, re uint32) *edge {
	for _, e := range n.edges {
		if e.state == edgeOffered && e.node.session == n && e.offer == re {
			return e
		}
	}
	return nil
}

// answer opens an edge that its node consented to.
func (h *hub) answer(n *session, m *wire.EdgeAnswer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := n.edges[m.Edge]
	if e == nil || e.state != edgeOffered || e.node.session != n || e.offer != m.Re {
		// The laptop has gone, or did not wait so long: the node may forget it.
		n.send(&wire.EdgeRefused{Edge: m.Edge, Reason: wire.ReasonNotHeld, Detail: "the request is over"})
		return
	}
	now := h.now()
	e.laptop.channel = e.laptop.session.channels.take(now, 0)
	e.node.channel = n.channels.take(now, e.laptop.channel)
	h.openLocked(e, EventEdgeOpen)
	n.send(&wire.EdgeOpen{Edge: e.id, Peer: e.laptop.key, Channel: e.node.channel})
	if e.laptop.session.grant.Statement.Issued.After(e.told) { // renewed while the node made up its mind
		h.tellNode(e)
	}
	e.laptop.session.send(&wire.EdgeReady{Re: e.request, Edge: e.id, Peer: n.key, Channel: e.laptop.channel, Answer: m.Answer})
}

// openLocked joins both sides.
func (h *hub) openLocked(e *edge, event string) {
	now := h.now()
	e.state, e.deadline, e.access = edgeOpen, time.Time{}, nil
	delete(h.waiting, e.id)
	if e.opened.IsZero() {
		e.opened = now
	}
	h.joinLocked(e)
	h.metrics.edges.WithLabelValues(event).Inc()
	ev := e.who
	ev.Time, ev.Event, ev.Node = now, event, e.node.key
	h.audit.write(ev)
}

// declined passes a node's refusal on. What may be better elsewhere is tried
// with another node first.
func (h *hub) declined(n *session, m *wire.Refused) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.offeredLocked(n, m.Re)
	if e == nil {
		return
	}
	reason := auth.ParseReason(m.Reason)
	r := refused(string(reason), m.Detail, m.Hint)
	if reason.Class() == auth.ClassUnavailable {
		e.declined = r
		h.offerLocked(e)
		return
	}
	h.failLocked(e, r)
}

// hold takes s's word, after a reconnect, that it has an edge.
func (h *hub) hold(s *session, m *wire.EdgeHold) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sessions[s.key] != s {
		return // it ended just now
	}
	refuse := func(reason, detail string) {
		h.metrics.refusals.WithLabelValues("edge_hold", reason).Inc()
		s.send(&wire.EdgeRefused{Edge: m.Edge, Reason: reason, Detail: detail})
	}
	now := h.now()
	e := h.edges[m.Edge]
	if s.kind == kindNode && m.Cluster != s.cluster || m.Edge == (wire.EdgeID{}) {
		refuse(wire.ReasonMalformed, "of another cluster")
		return
	}
	if e == nil {
		if len(s.edges) >= maxEdges(s) {
			refuse(wire.ReasonTooMany, fmt.Sprintf("%d edges", maxEdges(s)))
			return
		}
		e = &edge{id: m.Edge, cluster: m.Cluster, state: edgeHeld, deadline: now.Add(waitForHolder)}
		e.laptop.key, e.node.key = s.key, m.Peer
		if s.kind == kindNode {
			e.laptop.key, e.node.key = m.Peer, s.key
		}
		h.edges[e.id], h.waiting[e.id] = e, e
	}
	mine, other := &e.laptop, &e.node
	if s.kind == kindNode {
		mine, other = other, mine
	}
	if e.state < edgeHeld || mine.key != s.key || other.key != m.Peer || e.cluster != m.Cluster {
		refuse(wire.ReasonNotHeld, "the other side holds it otherwise")
		return
	}
	if mine.session == s {
		s.channels.give(mine.channel, now)
		h.unhop(s, mine.channel)
	}
	mine.session, mine.channel = s, s.channels.take(now, other.channel)
	s.edges[e.id] = e
	if s.kind != kindNode {
		e.claim(s)
	}
	if other.session == nil {
		if e.state == edgeOpen {
			e.state, e.deadline = edgeHeld, now.Add(waitForHolder)
			h.waiting[e.id] = e
		}
		s.send(&wire.EdgePending{Edge: e.id})
		return
	}
	wasHeld := e.state == edgeHeld
	h.openLocked(e, EventEdgeKept)
	s.send(&wire.EdgeKept{Edge: e.id, Channel: mine.channel})
	if wasHeld {
		other.session.send(&wire.EdgeKept{Edge: e.id, Channel: other.channel})
	}
	h.tellNode(e) // it may have missed some
}

// close ends an edge that s gave up.
func (h *hub) close(s *session, m *wire.EdgeClose) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := s.edges[m.Edge]
	if e == nil {
		return
	}
	reason := h.metrics.label(m.Reason)
	o := e.other(s).session
	if o != nil && e.state == edgeOffered && s == e.node.session {
		h.failLocked(e, refused(reason, "the node withdrew", ""))
		return
	}
	h.closedLocked(e, reason, "")
	h.forgetLocked(e)
	if o != nil { // when it is told, no packet passes any more
		o.send(&wire.EdgeClosed{Edge: e.id, Reason: m.Reason})
	}
}

// refuseLocked ends an edge for good on both sides.
func (h *hub) refuseLocked(e *edge, reason, detail string) {
	if e.state < edgeHeld && e.laptop.session != nil {
		e.laptop.session.refuse(e.request, refused(reason, detail, ""))
	}
	for _, side := range []*half{&e.laptop, &e.node} {
		if side.session != nil && (e.state >= edgeHeld || side == &e.node) {
			side.session.send(&wire.EdgeRefused{Edge: e.id, Reason: reason, Detail: detail})
		}
	}
	h.metrics.refusals.WithLabelValues("edge", h.metrics.label(reason)).Inc()
	h.closedLocked(e, reason, detail)
	h.forgetLocked(e)
}

// closedLocked tells the audit log of an edge's end, if it ever was open.
func (h *hub) closedLocked(e *edge, reason, detail string) {
	if e.opened.IsZero() {
		return
	}
	ev, now := e.who, h.now()
	ev.Time, ev.Event, ev.Node, ev.Reason, ev.Detail = now, EventEdgeClose, e.node.key, reason, detail
	ev.Sent, ev.Received, ev.Seconds = e.toNode.Load(), e.fromNode.Load(), now.Sub(e.opened).Seconds()
	h.audit.write(ev)
	h.metrics.edges.WithLabelValues(EventEdgeClose).Inc()
}

// detachLocked notes that s is away. A request dies with its laptop; a node's
// going asks the next one.
func (h *hub) detachLocked(e *edge, s *session) {
	switch {
	case e.state == edgeWaiting || e.state == edgeOffered && e.laptop.session == s:
		h.forgetLocked(e)
		return
	case e.state == edgeOffered: // it may be back in a moment
		e.tried = slices.DeleteFunc(e.tried, func(k key.WireGuardPublic) bool { return k == s.key })
		h.offerLocked(e)
		return
	}
	mine, other := e.own(s), e.other(s)
	h.unhop(s, mine.channel)
	mine.session, mine.channel = nil, 0
	delete(s.edges, e.id)
	if other.session == nil {
		h.closedLocked(e, reasonGone, "both sides are away")
		h.forgetLocked(e)
		return
	}
	h.unhop(other.session, other.channel)
	if e.node.session == nil { // one that lives is back at once; the laptop's flows must not hang on one that died
		e.state, e.deadline = edgeHeld, h.now().Add(waitForNodeBack)
		h.waiting[e.id] = e
	}
}

// forgetLocked takes an edge out of every table.
func (h *hub) forgetLocked(e *edge) {
	now := h.now()
	for _, side := range []*half{&e.laptop, &e.node} {
		if s := side.session; s != nil {
			h.unhop(s, side.channel)
			s.channels.give(side.channel, now)
			delete(s.edges, e.id)
		}
	}
	delete(h.edges, e.id)
	delete(h.waiting, e.id)
}

// joinLocked lets packets pass.
func (h *hub) joinLocked(e *edge) {
	l, n := &e.laptop, &e.node
	l.session.hop(l.channel, &hop{to: n.session, channel: n.channel, bytes: &e.toNode})
	n.session.hop(n.channel, &hop{to: l.session, channel: l.channel, bytes: &e.fromNode})
}

// hop puts a channel into the table that the packet path reads. hub.mu is held.
func (s *session) hop(channel uint32, to *hop) {
	next := copied(s.hops.Load())
	next[channel] = to
	s.hops.Store(&next)
}

// unhop takes a channel out of it. hub.mu is held.
func (h *hub) unhop(s *session, channel uint32) {
	old := s.hops.Load()
	if old == nil || (*old)[channel] == nil {
		return
	}
	next := copied(old)
	delete(next, channel)
	s.hops.Store(&next)
}

// tellNode passes the laptop's newest statement to the node. hub.mu is held, and
// both sides are here.
func (h *hub) tellNode(e *edge) {
	e.node.session.send(&wire.PeerStatement{Peer: e.laptop.key, Body: e.laptop.session.grant.Statement.Append(nil)})
}

// tellNodesLocked passes a laptop's statement to the nodes that have it as a peer.
func (h *hub) tellNodesLocked(s *session, body []byte) {
	told := map[*session]bool{}
	for _, e := range s.edges {
		if n := e.node.session; n != nil && e.state >= edgeHeld && !told[n] {
			told[n] = true
			n.send(&wire.PeerStatement{Peer: s.key, Body: body})
		}
	}
}
