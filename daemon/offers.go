package daemon

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/netstack"
	"github.com/zt-daemon/zt/relay/wire"
)

// newSession makes this node's session with one relay.
func (n *Node) newSession(r auth.Relay) (*Session, error) {
	var s *Session
	s, err := NewSession(SessionConfig{
		Network: n.files.settings.Network, Relay: r, Static: n.key, Cluster: n.files.settings.Cluster,
		Transport: n.transport, HTTP: n.cfg.HTTP, Log: n.log,
		Proof: func(context.Context) (wire.GrantKind, []byte, error) { return wire.GrantNode, n.newNodeGrant(), nil },
		Busy:  n.admission.busy,
		Handler: Handler{
			EdgeOffer: func(ctx context.Context, o EdgeOffer) {
				select {
				case n.judging <- struct{}{}:
				default:
					n.metrics.offers.WithLabelValues(string(auth.ReasonBusy)).Inc()
					s.RefuseOffer(ctx, o, string(auth.ReasonBusy), "the node judges as many offers as it can", "") // the laptop's wait ends it otherwise
					return
				}
				n.offers.Go(func() {
					defer func() { <-n.judging }()
					n.answer(ctx, s, o)
				})
			},
			EdgeRefused: func(_ context.Context, e Edge, err *RefusedError) {
				n.edgeGone(e, err.Reason, err.Detail)
			},
			EdgeClosed: func(_ context.Context, e Edge, reason string) { n.edgeGone(e, reason, "") },
			Up: func(ctx context.Context, _ Admitted) {
				n.offers.Go(func() { n.tellRelay(s) })
				n.offers.Go(func() { n.fetchDocuments(ctx, s) })
			},
			DocumentsChanged: func(ctx context.Context) {
				n.offers.Go(func() { n.fetchDocuments(ctx, s) })
			},
			PeerStatement: func(_ context.Context, peer key.WireGuardPublic, body []byte) { n.renew(peer, body) },
		},
	})
	return s, err
}

// answer decides about an offer: the peer is installed before ready is said.
func (n *Node) answer(ctx context.Context, s *Session, o EdgeOffer) {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	answer, id, err := n.admit(ctx, s, o)
	if err == nil {
		if err := s.AnswerOffer(ctx, o, id.WireGuardKey, answer); err != nil {
			n.log.Info("edge answer not sent", "edge", o.ID, "err", err)
			n.edgeGone(Edge{ID: o.ID, Peer: id.WireGuardKey}, wire.ReasonTimeout, "")
		} else if !n.admission.holds(id.WireGuardKey, o.ID) { // cut before it was answered
			s.CloseEdge(ctx, o.ID, wire.ReasonEnded)
		}
		return
	}
	refused, ok := errors.AsType[*auth.RefusedError](err)
	if !ok {
		n.log.Error("offer not answered for a fault of this node", "edge", o.ID, "err", err)
		refused = &auth.RefusedError{Reason: auth.ReasonInternal}
	}
	n.metrics.offers.WithLabelValues(string(refused.Reason)).Inc()
	n.audit.write(AuditEvent{Event: "edge_refused", Reason: string(refused.Reason), Detail: refused.Detail}.who(id).on(o.ID))
	n.log.Info("edge refused", "edge", o.ID, "subject", id, "reason", refused.Reason)
	refused = n.accessRequested(id, o, refused)
	if err := s.RefuseOffer(ctx, o, string(refused.Reason), refused.Detail, refused.Hint()); err != nil {
		n.log.Info("edge refusal not sent", "edge", o.ID, "err", err)
	}
}

// admit verifies an offer's grant, asks the policy, installs the peer and signs
// the answer. The identity is returned, if it was verified, with an error too.
func (n *Node) admit(ctx context.Context, s *Session, offer EdgeOffer) (answer []byte, id *auth.Identity, err error) {
	if n.stopping.Load() {
		return nil, nil, &auth.RefusedError{Reason: auth.ReasonNodeStops}
	}
	state := n.policy.current()
	if state == nil {
		return nil, nil, n.noPolicy()
	}
	grant, err := auth.ParseGrant(offer.Grant)
	if err != nil {
		return nil, nil, err
	}
	// The relay only says which grant; WireGuard's handshake, with a preshared
	// key that only these keys derive, proves who holds them.
	id, err = state.verifier.Verify(ctx, offer.Grant, grant.Statement.Key)
	if err != nil {
		return nil, nil, err
	}
	if n.admission.loggedOut(id.LoginKey, id.StatementIssued) {
		return nil, id, &auth.RefusedError{Reason: auth.ReasonEnded, Detail: "the person logged out after this statement"}
	}
	n.install.Lock()
	defer n.install.Unlock()
	now := wallClock()
	decision, refused := n.decide(id, now)
	if refused != nil {
		return nil, id, refused
	}
	p := n.admission.prior(id)
	switch {
	case p.held:
		n.log.Warn("a WireGuard key is claimed by two login keys", "peer", id.WireGuardKey, "subject", id)
		return nil, id, &auth.RefusedError{Reason: auth.ReasonKeyHeld}
	case p.full:
		return nil, id, &auth.RefusedError{Reason: auth.ReasonBusy, Detail: "the node has as many laptops as it takes"}
	}
	l := &admittedLaptop{
		grant: grant, identity: id, decision: decision, lastFlow: now,
		edges: map[wire.EdgeID]*Session{offer.ID: s}, flows: make(map[*localFlow]struct{}),
	}
	edge := auth.EdgeOf(n.files.settings.Network, id, n.files.settings.Cluster, n.files.key.Public(), n.key.Public())
	if p.laptop != nil {
		// Another relay may still carry an older statement, which is live: the
		// newer one stays.
		err := id.Supersedes(p.laptop.identity)
		older := errors.Is(err, &auth.RefusedError{Reason: auth.ReasonStatementOlder})
		if err != nil && !older {
			return nil, id, err
		}
		if older { // what is decided is of the newer login
			l.grant, l.identity = p.laptop.grant, p.laptop.identity
			if l.decision, refused = n.decide(l.identity, now); refused != nil {
				n.cutLocked(id.WireGuardKey, string(refused.Reason), refused.Detail)
				return nil, id, refused
			}
		}
		if len(p.laptop.edges) >= maxLaptopEdges {
			return nil, id, &auth.RefusedError{Reason: auth.ReasonBusy, Detail: "this laptop has as many edges to the node as it may"}
		}
		n.admission.get(id.WireGuardKey, func(was *admittedLaptop) {
			l.ciphertext, l.flows = was.ciphertext, was.flows
			maps.Copy(l.edges, was.edges)
		})
	} else {
		if err := n.replaceLocked(id, p); err != nil {
			return nil, id, err
		}
		var shared []byte
		if l.ciphertext, shared, err = edge.Encapsulate(); err != nil {
			return nil, id, err
		}
		err = n.device.SetPeer(netstack.Peer{PublicKey: id.WireGuardKey, Preshared: edge.Preshared(shared, l.ciphertext), Addr: id.Addr})
		if err != nil {
			return nil, id, err
		}
	}
	n.admission.put(l)
	until := l.ends()
	n.metrics.offers.WithLabelValues("ready").Inc()
	n.audit.write(AuditEvent{Event: "edge_opened", Rule: decision.Rule, AccessGrant: decision.AccessGrant}.who(id).on(offer.ID))
	n.log.Info("grant verified, laptop is a peer", "peer", id.WireGuardKey, "subject", id, "overlay_addr", id.Addr,
		"rule", decision.Rule, "lease_expires", until, "edge", offer.ID)
	return edge.Answer(n.files.key, offer.ID, l.ciphertext, now, until).Append(nil), id, nil
}

// replaceLocked removes what a new peer takes the place of: the older WireGuard
// key of the login, or the same key with another encapsulation key.
func (n *Node) replaceLocked(id *auth.Identity, p prior) error {
	old := p.replaces
	if old.IsZero() {
		old = id.WireGuardKey
	}
	var err error
	n.admission.get(old, func(was *admittedLaptop) { err = id.Supersedes(was.identity) })
	if err != nil {
		return err
	}
	n.cutLocked(old, string(auth.ReasonReplaced), "a newer login or start of the same laptop")
	return nil
}

// renew takes a laptop's newer statement, or its end.
func (n *Node) renew(peer key.WireGuardPublic, body []byte) {
	n.install.Lock()
	defer n.install.Unlock()
	var grant auth.Grant
	var id *auth.Identity
	if !n.admission.get(peer, func(l *admittedLaptop) { grant, id = l.grant, l.identity }) {
		return
	}
	state := n.policy.current()
	if state == nil {
		return
	}
	statement, err := auth.ParseSignedStatement(body)
	var next *auth.Identity
	if err == nil {
		next, err = state.verifier.VerifyStatement(grant, id, statement)
	}
	if err != nil {
		// A relay that forges a statement must not end a grant; a signed end does.
		if refused, ok := errors.AsType[*auth.RefusedError](err); ok && refused.Reason == auth.ReasonEnded {
			n.admission.logout(id.LoginKey, statement.Issued)
			n.cutLocked(peer, string(auth.ReasonEnded), "logged out")
			return
		}
		n.log.Warn("statement refused", "peer", peer, "err", err)
		return
	}
	n.admission.get(peer, func(l *admittedLaptop) { l.identity, l.grant.Statement = next, statement })
}

// sessionGone drops a session that has ended for good, and its edges.
func (n *Node) sessionGone(s *Session) {
	n.sessionsMu.Lock()
	n.sessions = slices.DeleteFunc(n.sessions, func(o *Session) bool { return o == s })
	n.sessionsMu.Unlock()
	for _, k := range n.admission.keys() {
		for _, id := range n.admission.edgesOf(k, s) {
			n.edgeGone(Edge{ID: id, Peer: k}, wire.ReasonEnded, "the relay left the network")
		}
	}
}

// edgeGone drops one edge; the laptop goes with its last one.
func (n *Node) edgeGone(e Edge, reason, detail string) {
	n.install.Lock()
	defer n.install.Unlock()
	held, last := false, false
	n.admission.get(e.Peer, func(l *admittedLaptop) {
		_, held = l.edges[e.ID]
		last = len(l.edges) == 1
	})
	switch {
	case !held:
	case last:
		n.cutLocked(e.Peer, reason, detail)
	default:
		n.admission.get(e.Peer, func(l *admittedLaptop) {
			n.audit.write(AuditEvent{Event: "edge_ended", Reason: reason, Detail: detail}.who(l.identity).on(e.ID))
			delete(l.edges, e.ID)
		})
	}
}
