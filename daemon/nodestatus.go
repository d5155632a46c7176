package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// ClusterNode is a node of a cluster, as a relay tells it: what it was told by
// whoever holds the cluster's key. Nothing here is proved to a laptop.
type ClusterNode struct {
	Cluster  string              `json:"-"`
	Peer     key.WireGuardPublic `json:"peer"`
	Name     string              `json:"name,omitempty"` // of its pod or host
	Version  string              `json:"version,omitempty"`
	Here     bool                `json:"connected"`
	Since    time.Time           `json:"since"`
	Seen     time.Time           `json:"lastSeen"`            // the relay's clock
	Policy   string              `json:"policy,omitempty"`    // a Policy… constant; empty: not known
	Upstream string              `json:"apiServer,omitempty"` // "up", "down"; empty: not known
	Draining bool                `json:"draining,omitempty"`  // about to stop
}

// policyStates are wire's numbers.
var policyStates = map[string]wire.PolicyState{PolicyInForce: wire.PolicyInForce, PolicyBroken: wire.PolicyBroken, PolicyAbsent: wire.PolicyAbsent}

func clusterNode(m *wire.ClusterNode) ClusterNode {
	at := func(ms uint64) time.Time { return time.UnixMilli(int64(min(ms, 1<<52))) }
	n := ClusterNode{
		Cluster: m.Cluster, Peer: m.Peer, Name: m.Status.Name, Version: m.Status.Version, Here: m.Here == 1,
		Since: at(m.Since), Seen: at(m.Seen), Draining: m.Status.Flags&wire.NodeDraining != 0,
	}
	for name, state := range policyStates {
		if state == m.Status.Policy {
			n.Policy, n.Upstream = name, "down"
		}
	}
	if m.Status.Flags&wire.NodeUpstreamUp != 0 {
		n.Upstream = "up"
	}
	return n
}

// Nodes asks the relay which nodes the clusters have. It does not wait for a
// session; none, or a relay of a version that does not tell, is an error.
func (s *Session) Nodes(ctx context.Context) ([]ClusterNode, error) {
	c := s.current()
	if c == nil {
		return nil, &UnreachableError{Relay: s.cfg.Relay.URL, Err: fmt.Errorf("no session")}
	}
	if !c.knows(wire.FeatureNodeStatus) {
		return nil, fmt.Errorf("relay %s is of a version that does not tell of nodes", s.cfg.Relay.URL)
	}
	_, w, err := c.ask(ctx, &wire.NodesRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask for nodes: %w", err)
	}
	nodes := make([]ClusterNode, len(w.nodes))
	for i, m := range w.nodes {
		nodes[i] = clusterNode(m)
	}
	slices.SortStableFunc(nodes, func(a, b ClusterNode) int {
		return cmp.Or(strings.Compare(a.Cluster, b.Cluster), strings.Compare(a.Name, b.Name))
	})
	return nodes, nil
}

// current is the connection; nil while there is none.
func (s *Session) current() *control {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conn
}

// tellStatus tells the relay how this node is, if there is a session and the
// relay wants to know. A connection that comes later is told by Handler.Up.
func (s *Session) tellStatus(ctx context.Context, status func() *wire.NodeStatus) error {
	s.telling.Lock() // what is read last is said last
	defer s.telling.Unlock()
	c := s.current()
	if c == nil || !c.knows(wire.FeatureNodeStatus) {
		return nil
	}
	_, err := c.request(ctx, status())
	return err
}

// status is how the node is, for its relays.
func (n *Node) status() *wire.NodeStatus {
	h := n.Health()
	m := &wire.NodeStatus{Policy: policyStates[h.Policy], Name: n.cfg.Name, Version: n.cfg.Version, Why: h.Why}
	if h.Upstream == nil {
		m.Flags |= wire.NodeUpstreamUp
	}
	if h.Stopping {
		m.Flags |= wire.NodeDraining
	}
	return m
}

// tellRelays has every relay told how the node is now, and does not wait: told is
// closed when all know, or cannot be told.
func (n *Node) tellRelays() (told <-chan struct{}) {
	var all sync.WaitGroup
	for _, s := range n.openSessions() {
		all.Add(1)
		n.offers.Go(func() {
			defer all.Done()
			n.tellRelay(s)
		})
	}
	done := make(chan struct{})
	n.offers.Go(func() {
		defer close(done)
		all.Wait()
	})
	return done
}

func (n *Node) tellRelay(s *Session) {
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout) // a session's end ends it too
	defer cancel()
	if err := s.tellStatus(ctx, n.status); err != nil {
		n.log.Info("relay not told how the node is", "relay", s.cfg.Relay.URL, "err", err)
	}
}
