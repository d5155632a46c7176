package auth

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

func TestNodeGrant(t *testing.T) {
	id, cluster, wg := IDOf(key.NewNetwork().Public()), key.NewCluster(), key.NewWireGuard().Public()
	now := time.Now()
	keys := []key.ClusterPublic{key.NewCluster().Public(), cluster.Public()}
	sign := func(issued, expires time.Duration) NodeGrant {
		return SignNodeGrant(id, "c1", wg, now.Add(issued), now.Add(expires), cluster)
	}
	good := sign(0, time.Hour)
	got, err := ParseNodeGrant(good.Append(nil))
	if err != nil || got != good {
		t.Fatalf("got %+v, %v, want %+v", got, err, good)
	}
	for _, c := range []struct {
		name string
		g    NodeGrant
		id   NetworkID
		keys []key.ClusterPublic
		want Reason
	}{
		{"as it is", good, id, keys, ""},
		{"another network", good, IDOf(key.NewNetwork().Public()), keys, ReasonClusterKey},
		{"another cluster's keys", good, id, keys[:1], ReasonClusterKey},
		{"no keys", good, id, nil, ReasonClusterKey},
		{"cluster changed", func() NodeGrant { g := good; g.Cluster = "c2"; return g }(), id, keys, ReasonClusterKey},
		{"key changed", func() NodeGrant { g := good; g.Key = key.NewWireGuard().Public(); return g }(), id, keys, ReasonClusterKey},
		{"end changed", func() NodeGrant { g := good; g.Expires = g.Expires.Add(-1 * time.Second); return g }(), id, keys, ReasonClusterKey},
		{"two hours", sign(0, 2*time.Hour), id, keys, ReasonMalformed},
		{"ends before it begins", sign(0, -time.Second), id, keys, ReasonMalformed},
		{"over", sign(-time.Hour, 0), id, keys, ReasonExpired},
		{"of the future", sign(2*time.Minute, time.Hour), id, keys, ReasonClock},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.g.Verify(c.id, c.keys, now)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantReason(t, err, c.want)
		})
	}
}

func TestParseNodeGrantRefuses(t *testing.T) {
	good := SignNodeGrant(IDOf(key.NewNetwork().Public()), "c1", key.NewWireGuard().Public(), time.Now(), time.Now().Add(time.Hour), key.NewCluster())
	b := good.Append(nil)
	named := func(name string) []byte { g := good; g.Cluster = name; return g.Append(nil) }
	for name, bad := range map[string][]byte{
		"empty": nil, "one byte less": b[:len(b)-1], "one byte more": append(bytes.Clone(b), 0),
		"version 2":     append([]byte{2}, b[1:]...),
		"no name":       named(""),
		"upper case":    named("C1"),
		"not a label":   named("a/b"),
		"line end":      named("a\n"),
		"name too long": named(strings.Repeat("a", 64)),
		"huge":          named(strings.Repeat("a", 60000)),
		"zero key":      func() []byte { g := good; g.Key = key.WireGuardPublic{}; return g.Append(nil) }(),
	} {
		if g, err := ParseNodeGrant(bad); err == nil || g != (NodeGrant{}) {
			t.Errorf("%s: got %+v, %v", name, g, err)
		}
	}
}

func FuzzParseNodeGrant(f *testing.F) { // attacker: whoever reaches a relay
	f.Add(SignNodeGrant(NetworkID{1}, "c1", key.NewWireGuard().Public(), time.Now(), time.Now().Add(time.Hour), key.NewCluster()).Append(nil))
	f.Add([]byte{nodeGrantVersion, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := ParseNodeGrant(b)
		if err == nil && !bytes.Equal(g.Append(nil), b) {
			t.Errorf("got %x, want %x", g.Append(nil), b)
		}
	})
}
