package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// nodesTimeout is how long a relay may take to tell of nodes.
const nodesTimeout = 2 * time.Second

// status describes the membership; warnings are for a person.
func (m *membership) status() (NetworkStatus, []string) {
	_, liveErr := m.liveGrant()
	m.mu.Lock()
	st := NetworkStatus{
		Network: m.id.String(), LoggedIn: liveErr == nil, Addr: m.device.Addr().String(),
		Relays: []RelayStatus{}, Clusters: []ClusterStatus{},
	}
	warnings := slices.Clone(m.warnings)
	if m.grant != nil {
		st.Person, st.Ends = m.grant.tokens.String(), m.grant.ends
	}
	if m.offset.Abs() > clockTolerance {
		warnings = append(warnings, clockWarning(m.offset))
	}
	if m.head != nil && m.head.Expired(wallClock()) {
		warnings = append(warnings, "the network's head is past its date; ask the platform engineer to run `zt-daemon network sign`")
	}
	sessions := slices.Clone(m.sessions)
	m.mu.Unlock()
	for _, s := range sessions {
		now := s.Status()
		r := RelayStatus{URL: now.Relay, Connected: now.Up, Since: now.Since, RTT: now.Path.RTT}
		if now.Up && now.Path.Bound {
			r.Path = "udp"
		}
		if !now.Up && now.Err != nil {
			r.Err = now.Err.Error()
		}
		st.Relays = append(st.Relays, r)
	}
	st.Clusters = m.clusterStatus()
	return st, warnings
}

func clockWarning(offset time.Duration) string {
	way := "behind"
	if offset < 0 {
		way = "ahead of"
	}
	return fmt.Sprintf("this machine's clock is %s %s the issuer's; set it (timedatectl set-ntp true)", offset.Abs().Round(time.Second), way)
}

func (m *membership) clusterStatus() []ClusterStatus {
	clusters := []ClusterStatus{}
	for _, c := range m.accesses() {
		if s, ok := c.status(); ok {
			clusters = append(clusters, s)
		}
	}
	return clusters
}

// addNodes adds what the relay in use tells of the clusters' nodes. People wait
// for this, so a relay that is slow to answer tells nothing.
func (m *membership) addNodes(ctx context.Context, clusters []ClusterStatus) {
	if len(clusters) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, nodesTimeout)
	defer cancel()
	nodes, err := m.nodes(ctx)
	for i := range clusters {
		c := &clusters[i]
		if err != nil {
			c.NodesErr = err.Error()
		}
		for _, n := range nodes {
			if n.Cluster == c.Name {
				c.Nodes = append(c.Nodes, n)
			}
		}
	}
}

// nodes asks the first relay that is there.
func (m *membership) nodes(ctx context.Context) ([]ClusterNode, error) {
	var err error
	for _, s := range m.up() {
		var nodes []ClusterNode
		if nodes, err = s.Nodes(ctx); err == nil {
			return nodes, nil
		}
	}
	if err == nil {
		err = errors.New("no relay of the network can be used")
	}
	return nil, err
}

// whoami is who the grant says the person is; false when nobody is logged in.
func (m *membership) whoami() (Whoami, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.grant == nil {
		return Whoami{}, false
	}
	t := m.grant.tokens
	return Whoami{
		Network: m.id.String(), Issuer: t.Issuer, Subject: t.Subject, Name: t.Name, Email: t.Email, Groups: t.Groups,
		AuthTime: t.AuthTime, Ends: m.grant.ends, Expired: !wallClock().Add(m.offset).Before(m.grant.ends),
		LoginKey: m.login.Public().String(), Addr: m.device.Addr().String(),
	}, true
}
