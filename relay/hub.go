package relay

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// Caps of the hub's tables.
const (
	maxSessions        = 50_000 // of everybody
	maxIdentity        = 16     // of one person or workload: laptops and restarts
	maxClusterSessions = 256    // of one cluster's nodes
	maxLaptopEdges     = 4096   // a laptop's
	maxNodeEdges       = 8192   // a node's
)

// A hub knows who is here and which edges join them. Its methods do not wait on
// anybody: messages are queued, and audit lines too.
type hub struct {
	forwarder *forwarder
	metrics   *metrics
	audit     *audit
	log       *slog.Logger
	now       func() time.Time
	began     time.Time // now, when the hub was made

	mu       sync.Mutex // guards what follows, and the lease of every session
	sessions map[key.WireGuardPublic]*session
	logins   map[key.LoginPublic]*session
	people   map[person]int // live sessions
	nodes    map[string][]*session
	gone     map[string][]clusterNode // by cluster, the last to leave at the end
	edges    map[wire.EdgeID]*edge
	waiting  map[wire.EdgeID]*edge // those of edges with a deadline
	revoked  []Revocation
	kinds    map[string]int // sessions
}

// person is who a session is for, apart from its keys.
type person struct{ issuer, subject string }

func newHub(f *forwarder, log *slog.Logger, now func() time.Time) *hub {
	return &hub{
		forwarder: f, log: log, now: now, began: now(),
		sessions: map[key.WireGuardPublic]*session{}, logins: map[key.LoginPublic]*session{},
		people: map[person]int{}, nodes: map[string][]*session{}, gone: map[string][]clusterNode{},
		edges: map[wire.EdgeID]*edge{}, waiting: map[wire.EdgeID]*edge{}, kinds: map[string]int{},
	}
}

func sessionName(id uint64) string { return fmt.Sprintf("%016x", id) }

// admitPerson gives s the lease of a verified grant, or renews it, and answers
// message number.
func (h *hub) admitPerson(s *session, number uint32, id *auth.Identity, g auth.Grant) *auth.RefusedError {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.refusedByRevocationLocked(id); r != nil {
		return r
	}
	if s.kind != "" && (s.identity == nil || s.identity.LoginKey != id.LoginKey) {
		return refused(wire.ReasonNotAllowed, "the session was admitted for another login key", "")
	}
	if old := h.sessions[s.key]; old != nil && old != s && (old.identity == nil || old.identity.LoginKey != id.LoginKey) {
		h.log.Warn("a WireGuard key is claimed by two login keys", "peer", s.key,
			"holder", holderOf(old), "endpoint", old.remote, "claimant", id, "claimant_endpoint", s.remote)
		h.audit.write(old.subject(Event{Time: h.now(), Event: EventRefused, Reason: string(auth.ReasonKeyHeld), Detail: "this session holds the key; another login key claimed it"}))
		return &auth.RefusedError{Reason: auth.ReasonKeyHeld}
	}
	old := h.logins[id.LoginKey]
	if old != nil {
		if err := id.Supersedes(old.identity); err != nil {
			return asRefused(err)
		}
	}
	who := person{id.Issuer, id.Subject}
	if old == nil {
		if r := h.roomLocked(); r != nil {
			return r
		}
		if h.people[who] >= maxIdentity {
			return refused(wire.ReasonTooMany, fmt.Sprintf("this person has %d sessions here", maxIdentity), "log out on a machine that is no longer used")
		}
	}
	if old != nil && old != s {
		h.supersedeLocked(old, s)
	}
	kind := kindPerson
	if id.Workload {
		kind = kindWorkload
	}
	if s.kind == "" {
		h.enterLocked(s, kind)
		h.logins[id.LoginKey] = s
		h.people[who]++
	}
	s.identity, s.grant, s.expires = id, g, id.Ends()
	h.metrics.admissions.WithLabelValues(kind).Inc()
	h.audit.write(s.subject(Event{Time: h.now(), Event: EventLogin, Expires: s.expires}))
	s.admitted(number, id.Addr)
	return nil
}

// admitNode gives s the lease of a verified node grant, or renews it, and
// answers message number. Edges that waited for a node are then offered to s.
func (h *hub) admitNode(s *session, number uint32, g auth.NodeGrant, by key.ClusterPublic, addr netip.Addr) *auth.RefusedError {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.kind != "" {
		if s.kind != kindNode || s.cluster != g.Cluster {
			return refused(wire.ReasonNotAllowed, "the session was admitted as something else", "")
		}
		s.node, s.nodeKey, s.expires = g, by, g.Expires
		s.admitted(number, addr)
		return nil
	}
	old := h.sessions[s.key]
	switch {
	case old != nil && (old.kind != kindNode || old.cluster != g.Cluster):
		h.log.Warn("a WireGuard key is claimed twice", "peer", s.key, "holder", holderOf(old), "claimant", "node of "+g.Cluster)
		return &auth.RefusedError{Reason: auth.ReasonKeyHeld}
	case old != nil:
		h.supersedeLocked(old, s)
	case len(h.nodes[g.Cluster]) >= maxClusterSessions:
		return refused(wire.ReasonTooMany, fmt.Sprintf("the cluster has %d nodes here", maxClusterSessions), "")
	default:
		if r := h.roomLocked(); r != nil {
			return r
		}
	}
	h.enterLocked(s, kindNode)
	s.cluster, s.node, s.nodeKey, s.expires = g.Cluster, g, by, g.Expires
	h.returnedLocked(s)
	h.nodes[s.cluster] = append(h.nodes[s.cluster], s)
	h.metrics.admissions.WithLabelValues(kindNode).Inc()
	h.audit.write(s.subject(Event{Time: h.now(), Event: EventLogin, Expires: s.expires}))
	s.admitted(number, addr)
	h.moveLocked(s.cluster)
	for _, e := range h.waiting {
		if e.state == edgeWaiting && e.cluster == s.cluster {
			h.offerLocked(e)
		}
	}
	return nil
}

// admitted tells s of its lease. hub.mu is held, so that nothing overtakes it.
func (s *session) admitted(number uint32, addr netip.Addr) {
	s.send(&wire.Admitted{Re: number, Expires: uint64(s.expires.UnixMilli()), Addr: addr.As16()})
}

func holderOf(s *session) string {
	if s.identity != nil {
		return s.identity.String()
	}
	return "node of " + s.cluster
}

func (h *hub) roomLocked() *auth.RefusedError {
	if len(h.sessions) >= maxSessions {
		return refused(wire.ReasonTooMany, "the relay is full", "try again in a minute, or at another relay")
	}
	return nil
}

func (h *hub) enterLocked(s *session, kind string) {
	s.kind, s.edges = kind, map[wire.EdgeID]*edge{}
	h.sessions[s.key] = s
	h.kinds[kind]++
	h.forwarder.add(s)
}

// supersedeLocked ends old because s took its place: with the same WireGuard key
// its edges go on once s says that it holds them, with another they are over.
func (h *hub) supersedeLocked(old, s *session) {
	if old.key == s.key {
		h.dropLocked(old, wire.ReasonReplaced, "", false)
		old.end(wire.ReasonReplaced, "another connection with the same key took over", "")
		return
	}
	h.dropLocked(old, wire.ReasonReplaced, "the same login key has a newer WireGuard key", true)
	old.end(wire.ReasonReplaced, "the same login key has a newer WireGuard key: another copy of zt-daemon runs with this login", "see that only one zt-daemon runs with this state directory")
}

// leave forgets s, whose connection ended by itself; its edges stay for the
// other side, until s is back.
func (h *hub) leave(s *session, reason, detail string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropLocked(s, reason, detail, false)
}

// cutLocked ends s and, on both sides, its edges.
func (h *hub) cutLocked(s *session, r *auth.RefusedError) {
	h.dropLocked(s, string(r.Reason), r.Detail, true)
	s.finish(refusal(0, r))
}

// dropLocked takes s out of every table. refuse also ends its edges for good.
func (h *hub) dropLocked(s *session, reason, detail string, refuse bool) {
	if s.kind == "" || h.sessions[s.key] != s {
		return
	}
	delete(h.sessions, s.key)
	h.kinds[s.kind]--
	if s.kind == kindNode {
		h.nodes[s.cluster] = slices.DeleteFunc(h.nodes[s.cluster], func(n *session) bool { return n == s })
		if len(h.nodes[s.cluster]) == 0 {
			delete(h.nodes, s.cluster)
		}
		if reason != wire.ReasonReplaced {
			h.nodeLeftLocked(s)
		}
	} else {
		delete(h.logins, s.identity.LoginKey)
		who := person{s.identity.Issuer, s.identity.Subject}
		if h.people[who]--; h.people[who] <= 0 {
			delete(h.people, who)
		}
	}
	for _, e := range s.edges {
		if refuse {
			h.refuseLocked(e, reason, detail)
		} else {
			h.detachLocked(e, s)
		}
	}
	h.forwarder.remove(s)
	h.metrics.ends.WithLabelValues(h.metrics.label(reason)).Inc()
	now := h.now()
	h.audit.write(s.subject(Event{Time: now, Event: EventSessionEnd, Reason: reason, Detail: detail, Seconds: now.Sub(s.started).Seconds()}))
	h.log.Info("session ended", "peer", s.key, "subject", holderOf(s), "reason", reason, "dur", now.Sub(s.started).Round(time.Second))
}

// snapshotLocked lists sessions in the order in which they began.
func (h *hub) snapshotLocked() []*session {
	all := make([]*session, 0, len(h.sessions))
	for _, s := range h.sessions {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *session) int { return a.started.Compare(b.started) })
	return all
}

// gauges are for metrics.
func (h *hub) gauges(halfOpen func() float64) gauges {
	locked := func(f func() int) float64 {
		h.mu.Lock()
		defer h.mu.Unlock()
		return float64(f())
	}
	return gauges{
		sessions: func(kind string) float64 { return locked(func() int { return h.kinds[kind] }) },
		edges:    func() float64 { return locked(func() int { return len(h.edges) }) },
		halfOpen: halfOpen,
	}
}

// Peer is a session as people see it.
type Peer struct {
	Session  string              `json:"session"`
	Kind     string              `json:"kind"`
	Key      key.WireGuardPublic `json:"peer"`
	Remote   string              `json:"remote"`
	Endpoint string              `json:"endpoint,omitempty"` // the bound UDP address
	Issuer   string              `json:"issuer,omitempty"`
	UID      string              `json:"uid,omitempty"`
	Name     string              `json:"name,omitempty"`
	LoginKey key.LoginPublic     `json:"login_key,omitzero"`
	Cluster  string              `json:"cluster,omitempty"`
	Started  time.Time           `json:"started"`
	Expires  time.Time           `json:"lease_expires"`
	Seen     time.Time           `json:"last_seen"`
	Edges    int                 `json:"edges"`
	Node     *Node               `json:"node,omitempty"` // of a node: what it says of itself
}

func (h *hub) peers() []Peer {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := []Peer{}
	for _, s := range h.snapshotLocked() {
		p := Peer{
			Session: sessionName(s.id), Kind: s.kind, Key: s.key, Remote: s.remote.String(),
			Cluster: s.cluster, Started: s.started, Expires: s.expires,
			Seen: time.UnixMilli(s.heard.Load()), Edges: len(s.edges),
		}
		if at := s.path.Load(); at != nil {
			p.Endpoint = at.addr.String()
		}
		if id := s.identity; id != nil {
			p.Issuer, p.UID, p.Name, p.LoginKey = id.Issuer, id.UID, id.String(), id.LoginKey
		} else {
			p.Name = "node " + strconv.Quote(s.cluster)
			n := s.asNode().describe()
			p.Node = &n
		}
		list = append(list, p)
	}
	return list
}
