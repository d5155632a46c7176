package relay

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

const (
	sweepEvery   = 500 * time.Millisecond // of edges that wait
	leasesEvery  = 4                      // sweeps: looking at ten thousand sessions takes a millisecond
	recheckEvery = 30 * time.Second
)

// sweep ends what has reached its end by the wall clock, so that a clock that is
// set forward counts at once: leases, and edges that waited too long.
func (h *hub) sweep(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			h.expire(h.now(), n%leasesEvery == 0)
		}
	}
}

// expire ends what is over at now: edges, and leases too if leases is set.
func (h *hub) expire(now time.Time, leases bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if leases {
		h.expireLeasesLocked(now)
	}
	for _, e := range h.waiting {
		if now.Before(e.deadline) {
			continue
		}
		switch e.state {
		case edgeWaiting:
			if e.declined != nil {
				h.failLocked(e, e.declined)
				continue
			}
			h.failLocked(e, refused(wire.ReasonClusterOffline, "no node of cluster "+e.cluster+" is connected to this relay", "see that the cluster's zt-daemon pods are running"))
		case edgeOffered:
			e.node.session.send(&wire.EdgeRefused{Edge: e.id, Reason: wire.ReasonTimeout, Detail: "no answer in " + waitForAnswer.String()})
			h.offerLocked(e)
		case edgeHeld:
			h.refuseLocked(e, wire.ReasonNotHeld, "the other side did not come back")
		}
	}
	h.pruneRevocationsLocked(now)
}

// expireLeasesLocked cuts sessions whose lease is over, and asks those that were
// silent for long whether they are still there.
func (h *hub) expireLeasesLocked(now time.Time) {
	clock := time.Now()
	for _, s := range h.sessions {
		silent := time.Duration(clock.UnixMilli()-s.heard.Load()) * time.Millisecond
		switch {
		case !now.Before(s.expires):
			detail := "the statement was not renewed"
			if s.identity != nil && !now.Before(s.identity.GrantEnds) {
				detail = "the login has reached its end"
			}
			h.cutLocked(s, refused(wire.ReasonExpired, detail, ""))
		case silent > goneAfter:
			s.end(reasonGone, "nothing was heard for a while", "")
		case silent >= pingAfter && clock.Sub(s.pinged) >= pingAgain:
			s.pinged = clock
			s.send(&wire.Ping{})
		}
	}
}

// renew extends the lease of a person or workload by a statement, ends it by one
// that says so, and answers message number.
func (h *hub) renew(s *session, number uint32, v *auth.Verifier, body []byte) *auth.RefusedError {
	signed, err := auth.ParseSignedStatement(body)
	if err != nil {
		return refused(wire.ReasonMalformed, err.Error(), "")
	}
	h.mu.Lock()
	prev, g := s.identity, s.grant
	h.mu.Unlock()
	next, err := v.VerifyStatement(g, prev, signed)
	r := asRefused(err)
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.sessions[s.key] != s:
		return &auth.RefusedError{Reason: auth.ReasonNotAdmitted}
	case r != nil && r.Reason == auth.ReasonEnded:
		h.tellNodesLocked(s, body)
		s.send(&wire.OK{Re: number})
		h.cutLocked(s, r)
		return nil
	case r != nil:
		return r
	}
	s.identity, s.grant.Statement, s.expires = next, signed, next.Ends()
	h.tellNodesLocked(s, body)
	s.admitted(number, next.Addr)
	return nil
}

// recheck holds every lease against the issuers and records of now. clusterKeys
// says also whether there is such a cluster.
func (h *hub) recheck(v *auth.Verifier, clusterKeys func(cluster string) ([]key.ClusterPublic, bool)) {
	h.mu.Lock()
	all := h.snapshotLocked()
	leases := make([]lease, len(all))
	for i, s := range all {
		leases[i] = s.lease
	}
	h.mu.Unlock()
	for i, l := range leases {
		var r *auth.RefusedError
		if l.kind == kindNode {
			keys, known := clusterKeys(l.cluster)
			if !known {
				r = noSuchCluster(l.cluster)
			} else if !slices.Contains(keys, l.nodeKey) {
				r = &auth.RefusedError{Reason: auth.ReasonClusterKey, Detail: fmt.Sprintf("node grant for cluster %q", l.cluster)}
			}
		} else {
			r = v.Recheck(l.identity)
		}
		if r == nil {
			continue
		}
		h.mu.Lock()
		// What was renewed meanwhile was verified meanwhile.
		if s := all[i]; h.sessions[s.key] == s && s.identity == l.identity && s.node == l.node {
			h.cutLocked(s, r)
		}
		h.mu.Unlock()
	}
}
