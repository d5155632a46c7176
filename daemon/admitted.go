package daemon

import (
	"crypto/subtle"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// admittedLaptop is one laptop that a node has as its peer.
type admittedLaptop struct {
	grant    auth.Grant     // as verified, with the newest statement
	identity *auth.Identity // of that grant
	decision auth.Decision  // of the policy in force

	// One ciphertext a pair of keys: answering again must not change the
	// preshared key of a live peer.
	ciphertext [1088]byte
	edges      map[wire.EdgeID]*Session // which session asked

	flows    map[*localFlow]struct{}
	lastFlow time.Time // when a flow last began or ended; admission counts
}

// ends is when l is to be looked at again.
func (l *admittedLaptop) ends() time.Time {
	end := l.identity.Ends()
	if !l.decision.Until.IsZero() && l.decision.Until.Before(end) {
		end = l.decision.Until
	}
	return end
}

// admission is a node's table of laptops: who is a peer, until when, and what
// is open. Laptops leave it before their peer leaves the device, so a flow that
// arrives in between finds nobody.
type admission struct {
	mu      sync.Mutex // guards all below
	laptops map[key.WireGuardPublic]*admittedLaptop
	byLogin map[key.LoginPublic]key.WireGuardPublic // one login key has one live WireGuard key
	byAddr  map[netip.Addr]key.WireGuardPublic
	ended   map[key.LoginPublic]time.Time // logouts: when their statements were issued
}

// maxLaptopEdges bounds one laptop's edges: one for each relay, and those that a
// new login replaces.
const maxLaptopEdges = 64

// maxLaptops bounds the table, and with it the device's peers.
const maxLaptops = 4096

func newAdmission() *admission {
	return &admission{
		laptops: make(map[key.WireGuardPublic]*admittedLaptop),
		byLogin: make(map[key.LoginPublic]key.WireGuardPublic),
		byAddr:  make(map[netip.Addr]key.WireGuardPublic),
		ended:   make(map[key.LoginPublic]time.Time),
	}
}

// get calls f with the laptop of a key, under the lock; ok is false when there is none.
func (a *admission) get(k key.WireGuardPublic, f func(*admittedLaptop)) (ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.laptops[k]
	if l != nil {
		f(l)
	}
	return l != nil
}

// prior is what the table says of a grant's keys before it is admitted.
type prior struct {
	laptop   *admittedLaptop     // the same keys are admitted already
	replaces key.WireGuardPublic // the login key's older WireGuard key; zero: none
	held     bool                // the WireGuard key belongs to another login key
	full     bool
}

func (a *admission) prior(id *auth.Identity) (p prior) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.laptops[id.WireGuardKey]; l != nil {
		same := l.identity.Issuer == id.Issuer && l.identity.Subject == id.Subject &&
			subtle.ConstantTimeCompare(l.identity.Encapsulation[:], id.Encapsulation[:]) == 1
		switch {
		case l.identity.LoginKey != id.LoginKey:
			p.held = true
		case same:
			p.laptop = l
		}
	}
	if k, ok := a.byLogin[id.LoginKey]; ok && k != id.WireGuardKey {
		p.replaces = k
	}
	p.full = p.laptop == nil && len(a.laptops) >= maxLaptops
	return p
}

// put admits l, or renews what stands there.
func (a *admission) put(l *admittedLaptop) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.laptops[l.identity.WireGuardKey] = l
	a.byLogin[l.identity.LoginKey] = l.identity.WireGuardKey
	a.byAddr[l.identity.Addr] = l.identity.WireGuardKey
}

// remove takes a laptop out and returns it; nil when it is not there.
func (a *admission) remove(k key.WireGuardPublic) *admittedLaptop {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.laptops[k]
	if l == nil {
		return nil
	}
	delete(a.laptops, k)
	if a.byLogin[l.identity.LoginKey] == k {
		delete(a.byLogin, l.identity.LoginKey)
	}
	if a.byAddr[l.identity.Addr] == k {
		delete(a.byAddr, l.identity.Addr)
	}
	return l
}

// logout notes that a login ended with a statement of that time. A relay that
// offers an older statement of it again, which is live for up to an hour, is
// refused.
func (a *admission) logout(k key.LoginPublic, issued time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for old, t := range a.ended { // statements of then are over by themselves
		if issued.Sub(t) > 2*statementLife {
			delete(a.ended, old)
		}
	}
	if len(a.ended) < maxLaptops && issued.After(a.ended[k]) {
		a.ended[k] = issued
	}
}

// loggedOut reports whether a statement of that time is not newer than its
// login's logout.
func (a *admission) loggedOut(k key.LoginPublic, issued time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.ended[k]
	return ok && !issued.After(t)
}

// holds reports whether a laptop has an edge.
func (a *admission) holds(k key.WireGuardPublic, edge wire.EdgeID) (held bool) {
	a.get(k, func(l *admittedLaptop) { _, held = l.edges[edge] })
	return held
}

// edgesOf are a laptop's edges by way of one session.
func (a *admission) edgesOf(k key.WireGuardPublic, s *Session) (edges []wire.EdgeID) {
	a.get(k, func(l *admittedLaptop) {
		for id, by := range l.edges {
			if by == s {
				edges = append(edges, id)
			}
		}
	})
	return edges
}

// keys are the laptops' keys, for a walk that must not hold the lock.
func (a *admission) keys() []key.WireGuardPublic {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Keys(a.laptops))
}

// may finds the laptop of an overlay address, if it may use the port now.
func (a *admission) may(addr netip.Addr, port uint16) (k key.WireGuardPublic, id *auth.Identity, edge wire.EdgeID, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, ok = a.byAddr[addr]
	if !ok {
		return k, nil, edge, false
	}
	l := a.laptops[k]
	for edge = range l.edges {
		break // audited under one edge of the pair
	}
	return k, l.identity, edge, slices.Contains(l.decision.Ports, port)
}

// begin registers a flow, unless its laptop has left or has too many.
func (a *admission) begin(k key.WireGuardPublic, f *localFlow) (ok bool) {
	a.get(k, func(l *admittedLaptop) {
		if ok = len(l.flows) < maxLaptopFlows; ok {
			l.flows[f] = struct{}{}
			l.lastFlow = time.Now()
		}
	})
	return ok
}

// maxLaptopFlows bounds one laptop's open flows.
const maxLaptopFlows = 1024

func (a *admission) end(k key.WireGuardPublic, f *localFlow) {
	a.get(k, func(l *admittedLaptop) {
		delete(l.flows, f)
		l.lastFlow = time.Now()
	})
}

// inUse reports whether a laptop has a flow that carries something: one that it
// keeps ready for its next command is none.
func (a *admission) inUse(k key.WireGuardPublic) (used bool) {
	a.get(k, func(l *admittedLaptop) {
		for f := range l.flows {
			used = used || f.received.Load() > 0
		}
	})
	return used
}

// counts are for metrics and status.
func (a *admission) counts() (laptops, flows int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, l := range a.laptops {
		flows += len(l.flows)
	}
	return len(a.laptops), flows
}

// busy reports whether any laptop is a peer: it may be waiting for the relay to
// come back as this node is.
func (a *admission) busy() bool {
	laptops, _ := a.counts()
	return laptops > 0
}
