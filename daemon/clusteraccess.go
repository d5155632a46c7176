package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/netstack"
	"github.com/zt-daemon/zt/relay/wire"
)

const (
	// edgeTimeout ends an attempt to get an edge, the relay's wait of 10 s for a
	// node included.
	edgeTimeout = 12 * time.Second
	// handshakeTimeout is how long a dial waits before it takes the node for dead.
	handshakeTimeout = 6 * time.Second
	// nodePatience, and twice the round trip to the relay, is how long it waits
	// before it tries another node: a lost SYN is sent again after a second.
	nodePatience = 1500 * time.Millisecond
	// slowFailure is how long an attempt took whose error answers all who ask within
	// failureHolds after it: kubectl runs its plugin five times before it gives up.
	slowFailure  = time.Second
	failureHolds = 3 * time.Second
)

// clusterAccess is a laptop's way to one cluster: a loopback listener, and an
// edge while one is needed.
type clusterAccess struct {
	m        *membership
	name     string
	port     uint16
	listener *Listener
	stop     context.CancelFunc // ends the listener

	mu      sync.Mutex // guards below
	record  *auth.Record
	edge    *laptopEdge
	attempt *edgeAttempt // under way
	state   string       // a Cluster… constant
	err     error        // of the last attempt
	holds   time.Time    // until then err is the answer
	since   time.Time
	used    time.Time // when the edge was last asked for
	spare   *spareStream
}

// spareStream is a stream that was opened before anybody asked for one. The
// exec plugin runs just before kubectl connects: by then the way is open.
type spareStream struct {
	conn  *netstack.Conn
	timer *time.Timer // resets it
}

// spareLife is how long a spare stream waits for kubectl. The node dials the API
// server only when the first byte comes, so that an unused one costs it nothing.
const spareLife = 30 * time.Second

// spareDelay is how long after a stream was taken the next is opened.
const spareDelay = 250 * time.Millisecond

// laptopEdge is an edge whose node is installed as a peer.
type laptopEdge struct {
	Edge
	session *memberSession
	addr    netip.Addr  // the node's overlay address
	doubted atomic.Bool // somebody finds out whether the node is dead
}

// edgeAttempt is one attempt, for all who wait for it.
type edgeAttempt struct {
	done chan struct{}
	edge *laptopEdge
	err  error
}

// addCluster opens the listener of a cluster that is new here.
func (m *membership) addCluster(r *auth.Record) error {
	settings, err := m.state.Settings()
	if err != nil {
		return err
	}
	kept := func(port uint16) bool {
		for _, p := range settings.Ports {
			if p == port {
				return true
			}
		}
		return false
	}
	had := settings.Ports[r.Name]
	ln, err := ListenLoopback(m.ctx, had, kept)
	if err != nil {
		return err
	}
	c := &clusterAccess{m: m, name: r.Name, port: ListenerPort(ln), record: r, state: ClusterIdle, since: time.Now()}
	if had == 0 {
		settings.Ports[r.Name] = c.port
		if err := m.state.KeepSettings(settings); err != nil {
			ln.Close()
			return err
		}
	}
	guard := NewGuard(m.laptop.cfg.UID)
	c.listener, err = NewListener(ListenerConfig{Cluster: r.Name, Guard: guard.Check, Dial: c.overlayDialer, Target: c.target, Log: m.log})
	if err != nil {
		ln.Close()
		return err
	}
	ctx, stop := context.WithCancel(m.ctx)
	c.stop = stop
	m.mu.Lock()
	m.clusters[r.Name] = c
	m.mu.Unlock()
	m.wg.Go(func() {
		if err := c.listener.Run(ctx, ln); err != nil {
			m.log.Error("listener ended", "cluster", c.name, "err", err)
			m.warn(err)
		}
	})
	m.log.Info("cluster known", "cluster", c.name, "endpoint", ln.Addr().String())
	return nil
}

func (c *clusterAccess) current() *auth.Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.record
}

// target is the API server as a client of an HTTP proxy asks for it.
func (c *clusterAccess) target() string { return net.JoinHostPort(c.current().TLSName, "443") }

// take puts a newer record into force. The peer stays unless its cluster key
// went with the old record, or the cluster itself.
func (c *clusterAccess) take(r *auth.Record) {
	c.mu.Lock()
	c.record = r
	c.mu.Unlock()
	if r.Removed {
		c.drop(nil, NewLocalError(KindUnknownCluster, "", "cluster %s was removed from the network", c.name))
	}
}

// dial opens a stream to the cluster's API server, or takes the spare one.
func (c *clusterAccess) dial(ctx context.Context) (*netstack.Conn, error) {
	conn := c.takeSpare()
	if conn == nil {
		var err error
		if conn, err = c.open(ctx); err != nil {
			return nil, err
		}
	}
	c.m.wg.Go(func() { // another, once this one's handshake is through
		select {
		case <-c.m.ctx.Done():
		case <-time.After(spareDelay):
			c.prepare()
		}
	})
	return conn, nil
}

// takeSpare returns the spare stream, if there is one; it is the caller's.
func (c *clusterAccess) takeSpare() *netstack.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.spare
	c.spare = nil
	if s == nil || !s.timer.Stop() { // the timer is resetting it
		return nil
	}
	c.used = time.Now()
	return s.conn
}

// prepare opens a spare stream, unless there is one.
func (c *clusterAccess) prepare() {
	c.mu.Lock()
	have := c.spare != nil
	c.mu.Unlock()
	if have {
		return
	}
	ctx, cancel := context.WithTimeout(c.m.ctx, handshakeTimeout)
	defer cancel()
	conn, err := c.open(ctx)
	if err != nil {
		return // whoever connects is told
	}
	s := &spareStream{conn: conn}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spare != nil || c.m.ctx.Err() != nil {
		conn.Reset()
		return
	}
	s.timer = time.AfterFunc(spareLife, func() {
		c.mu.Lock()
		if c.spare == s {
			c.spare = nil
		}
		c.mu.Unlock()
		conn.Reset()
	})
	c.spare = s
}

// open opens a stream, over an edge that it gets first if there is none. Where a
// node does not answer soon, another edge is asked for, once.
func (c *clusterAccess) open(ctx context.Context) (*netstack.Conn, error) {
	e, err := c.ensure(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := c.dialNode(ctx, e, nodePatience+2*e.session.Status().Path.RTT)
	if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, netstack.ErrNoPeer) {
		return conn, err
	}
	// The node may be gone, have started anew, or be slow.
	c.move(e.ID)
	c.m.wg.Go(func() { c.buryDead(e) })
	next, err := c.ensure(ctx)
	if err != nil {
		return nil, err
	}
	return c.dialNode(ctx, next, handshakeTimeout)
}

func (c *clusterAccess) dialNode(ctx context.Context, e *laptopEdge, patience time.Duration) (*netstack.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := c.m.device.DialContext(ctx, netip.AddrPortFrom(e.addr, apiServerPort))
	if err != nil {
		return nil, fmt.Errorf("cluster %s: node %s: %w", c.name, e.addr, err)
	}
	return conn, nil
}

// buryDead resets the flows with a node that does not answer at all. Silence
// while the way to the relay does not work says nothing of the node: the flows
// may outlive it.
func (c *clusterAccess) buryDead(e *laptopEdge) {
	if e.doubted.Swap(true) {
		return
	}
	defer e.doubted.Store(false)
	for {
		before, worked, held := e.session.edges.way(e.ID)
		switch {
		case !held || c.m.ctx.Err() != nil:
			return
		case !worked:
			sleep(c.m.ctx, time.Second)
			continue
		}
		conn, err := c.dialNode(c.m.ctx, e, handshakeTimeout)
		if err == nil {
			conn.Reset()
		}
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, netstack.ErrNoPeer) {
			return // it answers
		}
		if now, _, _ := e.session.edges.way(e.ID); now == before {
			break
		}
	}
	c.mu.Lock()
	now := c.edge
	c.mu.Unlock()
	if now != nil && now.Peer == e.Peer { // whoever dials there next decides
		return
	}
	c.m.device.RemovePeer(e.Peer)
	e.session.CloseEdge(c.m.ctx, e.ID, wire.ReasonEnded)
	c.m.log.Info("node does not answer", "cluster", c.name, "edge", e.ID, "overlay_addr", e.addr)
}

// ensure returns the edge, and has one made if there is none. Whoever comes
// while it is made waits for the same one.
func (c *clusterAccess) ensure(ctx context.Context) (*laptopEdge, error) {
	if _, err := c.m.liveGrant(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.used = time.Now()
	if e := c.edge; e != nil {
		c.mu.Unlock()
		return e, nil
	}
	if err := c.err; err != nil && c.attempt == nil && time.Now().Before(c.holds) {
		c.mu.Unlock()
		return nil, err
	}
	a := c.beginLocked()
	c.mu.Unlock()
	select {
	case <-a.done:
		return a.edge, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("cluster %s: %w", c.name, context.Cause(ctx))
	}
}

// beginLocked begins an attempt, or joins the one under way.
func (c *clusterAccess) beginLocked() *edgeAttempt {
	if c.attempt != nil {
		return c.attempt
	}
	a := &edgeAttempt{done: make(chan struct{})}
	c.attempt = a
	if c.edge == nil {
		c.setStateLocked(ClusterConnecting, nil)
	}
	began := time.Now()
	c.m.wg.Go(func() { // outlives the connection that asked: others may wait for it
		ctx, cancel := context.WithTimeout(c.m.ctx, edgeTimeout)
		defer cancel()
		a.edge, a.err = c.request(ctx)
		c.mu.Lock()
		defer c.mu.Unlock()
		defer close(a.done)
		c.attempt = nil
		switch {
		case a.err == nil:
			c.edge = a.edge
			c.m.wg.Go(func() { c.closeEdges(a.edge, wire.ReasonReplaced) })
			c.setStateLocked(ClusterReady, nil)
		case c.edge == nil:
			c.setStateLocked(stateOf(a.err), a.err)
			if time.Since(began) > slowFailure {
				c.holds = time.Now().Add(failureHolds)
			}
		}
	})
	return a
}

func stateOf(err error) string {
	switch AsLocalError(err).Kind {
	case KindDenied, KindExpired, KindNotLoggedIn, KindUnknownCluster:
		return ClusterRefused
	}
	return ClusterUnreachable
}

func (c *clusterAccess) setStateLocked(state string, err error) {
	if c.state != state {
		c.since = time.Now()
	}
	c.state, c.err, c.holds = state, err, time.Time{}
}

// request asks the relays in turn for an edge and installs the node as a peer.
func (c *clusterAccess) request(ctx context.Context) (*laptopEdge, error) {
	record := c.current()
	if record.Removed {
		return nil, NewLocalError(KindUnknownCluster, "", "cluster %s was removed from the network", c.name)
	}
	sessions := c.m.up()
	if len(sessions) == 0 {
		return nil, NewLocalError(KindUnreachable, "see the daemon's log", "no relay of the network can be used")
	}
	var err error
	for _, s := range sessions {
		var ready EdgeReady
		ready, err = s.RequestEdge(ctx, c.name)
		if err == nil {
			var e *laptopEdge
			if e, err = c.install(ready, s, record); err == nil {
				c.m.log.Info("edge ready", "cluster", c.name, "edge", ready.ID, "overlay_addr", e.addr, "relay", s.relay.URL)
				return e, nil
			}
			s.CloseEdge(ctx, ready.ID, wire.ReasonMalformed)
		}
		if isRefused(err) && AsLocalError(err).Kind == KindDenied {
			break // another relay would pass on the same answer
		}
	}
	c.m.log.Info("no edge", "cluster", c.name, "err", err)
	return nil, err
}

// install verifies a node's answer and makes the node a peer. What the relay
// says of the node's key counts for nothing beside it.
func (c *clusterAccess) install(ready EdgeReady, s *memberSession, record *auth.Record) (*laptopEdge, error) {
	m := c.m
	answer, err := auth.ParseAnswer(ready.Answer)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", c.name, err)
	}
	m.mu.Lock()
	g, statement := m.grant, m.statement
	m.mu.Unlock()
	if g == nil {
		return nil, errNotLoggedIn
	}
	edge := auth.Edge{
		Network: m.id, Issuer: g.tokens.Issuer, Subject: g.tokens.Subject, LoginKey: m.login.Public(),
		LaptopKey: m.key.Public(), Encapsulation: statement.Encapsulation, Cluster: c.name, NodeKey: answer.Key,
	}
	edge.ClusterKey, err = answer.Verify(edge, record.LiveKeys(wallClock()), ready.ID, wallClock().Add(m.clockOffset()))
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", c.name, err)
	}
	if answer.Key != ready.Peer {
		return nil, fmt.Errorf("cluster %s: the relay names another node than the one that signed", c.name)
	}
	shared, err := m.decap.Decapsulate(answer.Ciphertext[:])
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", c.name, err)
	}
	addr := m.id.NodeAddr(answer.Key)
	err = m.device.SetPeer(netstack.Peer{PublicKey: answer.Key, Preshared: edge.Preshared(shared, answer.Ciphertext), Addr: addr})
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", c.name, err)
	}
	return &laptopEdge{Edge: ready.Edge, session: s, addr: addr}, nil
}

func (m *membership) clockOffset() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.offset
}

// closeEdges gives up the other edges to the node of e; all of the cluster's, and
// their peers, if e is nil.
func (c *clusterAccess) closeEdges(e *laptopEdge, reason string) {
	for _, s := range c.m.relaySessions() {
		for _, old := range s.Edges() {
			if old.Cluster != c.name || e != nil && (old.Peer != e.Peer || old.ID == e.ID) {
				continue
			}
			if e == nil {
				c.m.device.RemovePeer(old.Peer)
			}
			s.CloseEdge(c.m.ctx, old.ID, reason)
		}
	}
}

// move has new flows go over another edge than this one, which is left to the
// flows that are open, if it is the one in use.
func (c *clusterAccess) move(id wire.EdgeID) {
	c.mu.Lock()
	if c.edge == nil || c.edge.ID != id {
		c.mu.Unlock()
		return
	}
	e, spare := c.edge, c.spare
	c.edge, c.spare = nil, nil
	c.setStateLocked(ClusterIdle, nil)
	c.mu.Unlock()
	if spare != nil && spare.timer.Stop() {
		spare.conn.Reset()
	}
	c.m.log.Info("new flows go to another node", "cluster", c.name, "edge", e.ID, "overlay_addr", e.addr)
}

// drop gives an edge up, if it is the one in use (nil: whatever edges there are):
// its flows are reset and its peer is removed. why is shown from then on; nil: it
// was idle.
func (c *clusterAccess) drop(which *laptopEdge, why error) {
	if which == nil {
		defer c.listener.CutAll() // also what is being dialled
		defer c.closeEdges(nil, wire.ReasonEnded)
	}
	c.mu.Lock()
	e := c.edge
	if e == nil || which != nil && which != e {
		if which == nil && why != nil {
			c.setStateLocked(stateOf(why), why)
		}
		c.mu.Unlock()
		return
	}
	c.edge = nil
	if s := c.spare; s != nil && s.timer.Stop() {
		c.spare = nil
		defer s.conn.Reset()
	}
	reason := wire.ReasonIdle
	if why == nil {
		c.setStateLocked(ClusterIdle, nil)
	} else {
		c.setStateLocked(stateOf(why), why)
		reason = wire.ReasonEnded
	}
	c.mu.Unlock()
	c.m.device.RemovePeer(e.Peer) // and resets the flows with it
	e.session.CloseEdge(c.m.ctx, e.ID, reason)
	c.m.log.Info("edge ended", "cluster", c.name, "edge", e.ID, "err", why)
}

// edgeGone is told by a session that an edge is over. An older edge to the same
// node may end while a newer one serves.
func (m *membership) edgeGone(gone Edge, why *RefusedError) {
	c := m.cluster(gone.Cluster)
	if c == nil {
		return
	}
	c.mu.Lock()
	e := c.edge
	c.mu.Unlock()
	if e == nil || e.ID != gone.ID {
		if e == nil || e.Peer != gone.Peer { // flows of before went on to another node until now
			m.device.RemovePeer(gone.Peer)
		}
		return
	}
	if why.Reason == wire.ReasonIdle && c.listener.Stats().Open == 0 {
		c.drop(e, nil)
		return
	}
	c.drop(e, fmt.Errorf("cluster %s: %w", c.name, why))
}

// closeIdle gives up edges that nothing has used for a while.
func (m *membership) closeIdle() {
	for _, c := range m.accesses() {
		c.mu.Lock()
		e := c.edge
		idle := e != nil && time.Since(c.used) > edgeIdle
		c.mu.Unlock()
		if !idle {
			continue
		}
		if c.listener.Stats().Open > 0 {
			c.mu.Lock()
			c.used = time.Now()
			c.mu.Unlock()
			continue
		}
		c.drop(e, nil)
	}
}

// status describes the access; false for a cluster that was removed.
func (c *clusterAccess) status() (ClusterStatus, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := ClusterStatus{
		Name: c.name, Network: c.m.id.String(), Port: c.port, Server: fmt.Sprintf("https://127.0.0.1:%d", c.port),
		State: c.state, Since: c.since, TLSName: c.record.TLSName, CA: strings.Join(c.record.LiveCAs(wallClock()), "\n"),
		KeepUser: c.record.KeepUser, Listener: c.listener.Stats(),
	}
	if c.err != nil {
		s.Err = c.err.Error()
	}
	if c.edge != nil {
		s.Node = c.edge.addr.String()
	}
	return s, !c.record.Removed
}
