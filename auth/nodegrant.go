package auth

import (
	"fmt"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

const (
	nodeGrantDomain  = "zt-node-v1"
	nodeGrantVersion = 1

	// NodeGrantMaxAge is how long a node grant may live.
	NodeGrantMaxAge = time.Hour

	nodeGrantMaxBytes = 1 + 2 + 63 + key.DHSize + 8 + 8 + key.SignatureSize // a cluster's name is a DNS label
)

// NodeGrant is a node's proof that it is of a cluster: the cluster key's
// signature over its WireGuard key. It proves the cluster, not the machine.
// Times have milliseconds and are UTC.
type NodeGrant struct {
	Cluster   string
	Key       key.WireGuardPublic
	Issued    time.Time
	Expires   time.Time
	Signature [key.SignatureSize]byte
}

// SignNodeGrant proves wg to be of cluster in network id. Times are cut to
// milliseconds.
func SignNodeGrant(id NetworkID, cluster string, wg key.WireGuardPublic, issued, expires time.Time, k key.ClusterPrivate) NodeGrant {
	g := NodeGrant{
		Cluster: cluster,
		Key:     wg,
		Issued:  time.UnixMilli(issued.UnixMilli()).UTC(),
		Expires: time.UnixMilli(expires.UnixMilli()).UTC(),
	}
	g.Signature = k.Sign(g.message(id))
	return g
}

// message is what is signed: "zt-node-v1" ‖ lp(network id) ‖ lp(cluster) ‖
// WireGuard key ‖ u64 issued ‖ u64 expires.
func (g NodeGrant) message(id NetworkID) []byte {
	b := appendLP([]byte(nodeGrantDomain), id[:])
	return g.appendFields(b)
}

// appendFields appends lp(cluster) ‖ WireGuard key ‖ u64 issued ‖ u64 expires.
func (g NodeGrant) appendFields(dst []byte) []byte {
	dst = appendLP(dst, []byte(g.Cluster))
	dst = g.Key.Append(dst)
	dst = appendMilli(dst, g.Issued)
	return appendMilli(dst, g.Expires)
}

// Append appends u8 1 ‖ lp(cluster) ‖ WireGuard key 32 ‖ u64 issued ‖ u64
// expires ‖ signature 64.
func (g NodeGrant) Append(dst []byte) []byte {
	dst = g.appendFields(append(dst, nodeGrantVersion))
	return append(dst, g.Signature[:]...)
}

// ParseNodeGrant reads what Append wrote, exactly; the cluster must be a valid
// name. It checks the form only.
func ParseNodeGrant(b []byte) (NodeGrant, error) {
	var g NodeGrant
	if len(b) > nodeGrantMaxBytes {
		return g, refuse(ReasonTooLarge, "node grant of %d bytes, want at most %d", len(b), nodeGrantMaxBytes)
	}
	r := byteReader{b: b}
	version, cluster := r.u8(), string(r.lp())
	wg := r.take(key.DHSize)
	issued, expires := r.milli(), r.milli()
	signature := r.take(key.SignatureSize)
	if !r.done() || version != nodeGrantVersion {
		return g, refuse(ReasonMalformed, "node grant is not of the documented form")
	}
	if err := ValidName(cluster); err != nil {
		return g, refuse(ReasonMalformed, "node grant: cluster name: %v", err)
	}
	k, err := key.ParseWireGuard(wg)
	if err != nil {
		return g, refuse(ReasonMalformed, "node grant: %v", err)
	}
	g = NodeGrant{Cluster: cluster, Key: k, Issued: issued, Expires: expires}
	copy(g.Signature[:], signature)
	return g, nil
}

// Verify accepts g in network id if one of keys, the live keys of the record
// of g.Cluster, signed it and it is live. The caller compares g.Key with the
// key that the session proved. Every error is a *RefusedError.
func (g NodeGrant) Verify(id NetworkID, keys []key.ClusterPublic, now time.Time) error {
	if _, ok := signedByCluster(g.message(id), g.Signature[:], keys); !ok {
		return refuse(ReasonClusterKey, "node grant for cluster %q", g.Cluster)
	}
	if refused := checkNodeTimes("node grant", g.Issued, g.Expires, NodeGrantMaxAge, now); refused != nil {
		return refused
	}
	return nil
}

func signedByCluster(message, signature []byte, keys []key.ClusterPublic) (key.ClusterPublic, bool) {
	for _, k := range keys {
		if k.Verify(message, signature) {
			return k, true
		}
	}
	return key.ClusterPublic{}, false
}

// checkNodeTimes holds what a cluster key signed against now; maxAge 0 is no bound.
func checkNodeTimes(what string, issued, ends time.Time, maxAge time.Duration, now time.Time) *RefusedError {
	if life := ends.Sub(issued); life <= 0 || maxAge > 0 && life > maxAge {
		return refuse(ReasonMalformed, "%s has a life of %s", what, life)
	}
	if ahead := issued.Sub(now); ahead > clockSkew {
		return &RefusedError{Reason: ReasonClock,
			Detail:   fmt.Sprintf("%s signed %s in the future", what, aboutDuration(ahead)),
			HintText: "compare the clock of this machine and of the cluster's nodes (NTP)"}
	}
	if !ends.After(now) {
		return refuse(ReasonExpired, "%s ended %s ago", what, aboutDuration(now.Sub(ends)))
	}
	return nil
}
