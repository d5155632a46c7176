package relay

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

const (
	maxGoneClusters = 4096             // whose nodes that left are remembered
	maxGoneNodes    = 8                // of one cluster
	goneShown       = time.Hour        // a node that left without a word, beside those that are here
	waitForNodeBack = 10 * time.Second // a node whose connection broke, before its edges end
)

// Node is a node of a cluster as people see it. What the node said of itself is
// its word: the cluster's key proves that it is of the cluster, nothing more.
type Node struct {
	Peer     key.WireGuardPublic `json:"peer"`
	Name     string              `json:"name,omitempty"` // of its pod or host; empty: an older version
	Version  string              `json:"version,omitempty"`
	Here     bool                `json:"connected"`
	Since    time.Time           `json:"since"`
	Seen     time.Time           `json:"last_seen"`
	Policy   string              `json:"policy,omitempty"` // "in_force", "broken", "absent"
	Why      string              `json:"policy_detail,omitempty"`
	Upstream string              `json:"api_server,omitempty"` // "up", "down"
	Draining bool                `json:"draining,omitempty"`
	Edges    int                 `json:"edges"`
}

// clusterNode is a node that has a session or had one.
type clusterNode struct {
	key         key.WireGuardPublic
	status      *wire.NodeStatus // nil: it said nothing of itself
	here        bool
	since, seen time.Time
	edges       int
}

// policyText names a state for people and scripts.
func policyText(p wire.PolicyState) string {
	switch p {
	case wire.PolicyInForce:
		return "in_force"
	case wire.PolicyBroken:
		return "broken"
	case wire.PolicyAbsent:
		return "absent"
	}
	return ""
}

// knows reports whether a node's status is here, or will never come.
func (s *session) knows() bool { return s.status != nil || s.features&wire.FeatureNodeStatus == 0 }

// draining reports whether a node is about to stop.
func (s *session) draining() bool { return s.status != nil && s.status.Flags&wire.NodeDraining != 0 }

// serves reports whether new flows do well at a node, as far as it said.
func (s *session) serves() bool {
	return s.knows() && (s.status == nil || s.status.Flags&wire.NodeUpstreamUp != 0) && !s.draining()
}

// poor is how much better another node would be.
func (s *session) poor() int {
	if s.serves() && (s.status == nil || s.status.Policy == wire.PolicyInForce) {
		return 0
	}
	return 1
}

// nodeStatus takes a node's word of itself.
func (h *hub) nodeStatus(s *session, m *wire.NodeStatus) *auth.RefusedError {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.sessions[s.key] != s:
		return nil // it ended just now
	case s.kind != kindNode:
		return refused(wire.ReasonNotAllowed, "only a node has a node's status", "")
	}
	if m.Flags&wire.NodeDraining != 0 && !s.draining() {
		h.log.Info("node is about to stop", "cluster", s.cluster, "peer", s.key, "node", m.Name, "edges", len(s.edges))
	}
	s.status = m
	h.returnedLocked(s)
	h.moveLocked(s.cluster)
	return nil
}

// moveLocked has laptops ask for another node where theirs serves badly and a
// better one is here.
func (h *hub) moveLocked(cluster string) {
	if !slices.ContainsFunc(h.nodes[cluster], (*session).serves) {
		return
	}
	for _, n := range h.nodes[cluster] {
		if !n.knows() || n.serves() {
			continue
		}
		for _, e := range n.edges {
			e.move()
		}
	}
}

// move tells the laptop, once, to ask for another edge. hub.mu is held.
func (e *edge) move() {
	if l := e.laptop.session; e.state >= edgeHeld && !e.moved && l != nil && l.features&wire.FeatureNodeStatus != 0 {
		e.moved = true
		l.send(&wire.EdgeMove{Edge: e.id})
	}
}

// nodeLeftLocked remembers a node whose session has ended, and has its laptops
// go elsewhere.
func (h *hub) nodeLeftLocked(s *session) {
	now := h.now()
	gone := slices.DeleteFunc(h.gone[s.cluster], func(g clusterNode) bool { return g.same(s) })
	gone = append(gone, clusterNode{key: s.key, status: s.status, since: s.started, seen: now})
	gone = gone[max(0, len(gone)-maxGoneNodes):]
	if _, ok := h.gone[s.cluster]; !ok && len(h.gone) >= maxGoneClusters {
		oldest, at := "", now
		for name, nodes := range h.gone {
			if seen := nodes[len(nodes)-1].seen; !seen.After(at) {
				oldest, at = name, seen
			}
		}
		delete(h.gone, oldest)
	}
	h.gone[s.cluster] = gone
	if slices.ContainsFunc(h.nodes[s.cluster], (*session).serves) {
		for _, e := range s.edges {
			e.move()
		}
	}
}

// returnedLocked forgets that s, or what had its name, had left.
func (h *hub) returnedLocked(s *session) {
	gone := slices.DeleteFunc(h.gone[s.cluster], func(g clusterNode) bool { return g.same(s) })
	if len(gone) == 0 {
		delete(h.gone, s.cluster)
		return
	}
	h.gone[s.cluster] = gone
}

func (g clusterNode) same(s *session) bool {
	return g.key == s.key || g.status != nil && s.status != nil && g.status.Name != "" && g.status.Name == s.status.Name
}

// nodesLocked lists the nodes of a cluster: those that are here, and those that
// went without a word; if there are none, the one that was seen last.
func (h *hub) nodesLocked(cluster string) []clusterNode {
	var nodes []clusterNode
	for _, s := range h.nodes[cluster] {
		nodes = append(nodes, s.asNode())
	}
	now, gone := h.now(), h.gone[cluster]
	for i, g := range gone {
		stopped := g.status != nil && g.status.Flags&wire.NodeDraining != 0
		last := i == len(gone)-1 && len(nodes) == 0
		if last || !stopped && now.Sub(g.seen) < goneShown {
			nodes = append(nodes, g)
		}
	}
	return nodes
}

// asNode is a session of a node. hub.mu is held.
func (s *session) asNode() clusterNode {
	return clusterNode{s.key, s.status, true, s.started, time.UnixMilli(s.heard.Load()), len(s.edges)}
}

// describe gives the node the form that an operator reads.
func (g clusterNode) describe() Node {
	n := Node{Peer: g.key, Here: g.here, Since: g.since, Seen: g.seen, Edges: g.edges}
	if s := g.status; s != nil {
		n.Name, n.Version, n.Policy, n.Why = s.Name, s.Version, policyText(s.Policy), s.Why
		n.Upstream, n.Draining = "down", s.Flags&wire.NodeDraining != 0
		if s.Flags&wire.NodeUpstreamUp != 0 {
			n.Upstream = "up"
		}
	}
	return n
}

// message is what a laptop is told. Why a policy is broken is its own cluster's
// business.
func (g clusterNode) message(re uint32, cluster string) *wire.ClusterNode {
	m := &wire.ClusterNode{Re: re, Cluster: cluster, Peer: g.key, Since: uint64(g.since.UnixMilli()), Seen: uint64(g.seen.UnixMilli())}
	if g.here {
		m.Here = 1
	}
	if g.status != nil {
		m.Status = *g.status
		m.Status.Why = ""
	}
	return m
}

// sendNodes answers a NodesRequest: who may see the records may see which nodes
// stand behind them.
func (s *Server) sendNodes(ctx context.Context, p *session, re uint32) *auth.RefusedError {
	s.documents.mu.RLock()
	records := maps.Clone(s.documents.records)
	s.documents.mu.RUnlock()
	s.hub.mu.Lock()
	if p.kind == kindNode {
		s.hub.mu.Unlock()
		return refused(wire.ReasonNotAllowed, "a node asks for no nodes", "")
	}
	if !p.requests.allow(s.hub.forwarder.nanos(), requestRate) {
		s.hub.mu.Unlock()
		return refused(wire.ReasonTooMany, "more than 10 requests a second", "try again in a minute")
	}
	var all []*wire.ClusterNode
	for _, name := range slices.Sorted(maps.Keys(records)) {
		if records[name].Removed {
			continue
		}
		for _, n := range s.hub.nodesLocked(name) {
			all = append(all, n.message(re, name))
		}
	}
	s.hub.mu.Unlock()
	for _, m := range all {
		p.sendBulk(ctx, m)
	}
	p.sendBulk(ctx, &wire.OK{Re: re})
	return nil
}
