//go:build linux

package swarm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// The timing of zt-daemon's sessions; see daemon/session.go and bindloop.go.
const (
	bindEvery       = 20 * time.Second
	bindAgain       = time.Second // while it is not answered
	pingEvery       = time.Minute
	reconnectJitter = 300 * time.Millisecond // busy members, before the first attempt
	reconnectMax    = 10 * time.Second
	reconnectIdle   = 30 * time.Second
)

// A member is one participant: a laptop or a node. It lives on in its place
// when its session ends, and comes back.
type member struct {
	swarm   *Swarm
	addr    netip.Addr
	cluster string       // of a node
	own     *net.UDPConn // of a probe; else the swarm's socket serves

	mu      sync.Mutex // guards what follows
	life    int        // of the identity: what was planned for an earlier one is void
	key     key.WireGuardPrivate
	kind    wire.GrantKind
	grant   []byte
	link    *link // nil: away
	mac     *wire.BindMAC
	counter uint64
	bound   uint64 // the newest counter that was answered
	full    bool   // full packets were proved on this path
	edges   map[wire.EdgeID]*edge
	busy    bool
	losses  int
	since   time.Time // here, or away
	waiting []chan error
	echo    func(packet []byte, channel uint32) // of a probe
	asked   chan key.WireGuardPublic            // requestEdge waits here
}

type edge struct {
	peer    key.WireGuardPublic
	cluster string
	channel uint32 // 0: not kept yet
}

func (s *Swarm) newMember(probe bool) (*member, error) {
	m := &member{swarm: s, addr: s.packets.addr(len(*s.packets.members.Load())), edges: map[wire.EdgeID]*edge{}, since: time.Now()}
	s.packets.add(m)
	if !probe {
		return m, nil
	}
	var err error
	if m.own, err = s.packets.open(netip.AddrPortFrom(m.addr, 0)); err != nil {
		return nil, err
	}
	s.wg.Go(func() {
		b := make([]byte, maxDatagram)
		for {
			n, _, err := m.own.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			m.datagram(b[:n])
		}
	})
	return m, nil
}

// newNode is node i: they are dealt to clusters in turn, and those that probes
// need have a socket of their own.
func (s *Swarm) newNode(i int) (*member, error) {
	c := s.network.clusters[i%s.cfg.Clusters]
	m, err := s.newMember(i%s.cfg.Clusters < s.cfg.Probes)
	if err != nil {
		return nil, err
	}
	m.cluster, m.key, m.kind = c.name, key.NewWireGuard(), wire.GrantNode
	m.grant = s.network.node(c, m.key.Public())
	return m, nil
}

func (s *Swarm) newLaptop(i int) (*member, error) {
	m, err := s.newMember(i < s.cfg.Probes)
	if err != nil {
		return nil, err
	}
	return m, s.renew(m)
}

// renew makes a laptop somebody else's.
func (s *Swarm) renew(m *member) error {
	k := key.NewWireGuard()
	grant, err := s.network.person(k.Public())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life++
	m.key, m.kind, m.grant, m.losses = k, wire.GrantPerson, grant, 0
	return err
}

// join starts m and waits until it is here, trying again as m does.
func (m *member) join(ctx context.Context) error {
	done := make(chan error, 1)
	m.mu.Lock()
	m.waiting = append(m.waiting, done)
	m.mu.Unlock()
	m.start(0)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// start has m connect after d.
func (m *member) start(d time.Duration) {
	m.mu.Lock()
	life := m.life
	m.mu.Unlock()
	m.swarm.agenda.after(d, func() {
		m.swarm.wg.Go(func() { m.live(life) })
	})
}

// live is one connection from its beginning to its end.
func (m *member) live(life int) {
	m.mu.Lock()
	k, current := m.key, m.life == life
	m.mu.Unlock()
	if !current || m.swarm.ctx.Err() != nil {
		return
	}
	l, err := m.swarm.connect(m.swarm.ctx, m.addr, k, m.swarm.network.id)
	if err == nil {
		err = m.serve(l, life)
		l.close()
	}
	m.mu.Lock()
	if m.life != life || m.swarm.ctx.Err() != nil {
		m.mu.Unlock()
		return
	}
	wasHere := m.hereLocked()
	m.link, m.mac = nil, nil
	if wasHere {
		m.losses = 0
		m.since = time.Now()
	} else {
		m.swarm.refused.add(cause(err))
	}
	wait := m.pauseLocked()
	m.losses++
	m.mu.Unlock()
	m.start(wait)
}

// pauseLocked is daemon.Session's.
func (m *member) pauseLocked() time.Duration {
	if !m.busy {
		spread := m.swarm.cfg.Spread
		if m.losses == 0 {
			return mrand.N(spread)
		}
		return spread/2 + mrand.N(spread)
	}
	if m.losses == 0 {
		return mrand.N(reconnectJitter)
	}
	most := min(reconnectMax, reconnectJitter<<min(m.losses, 10))
	return most/2 + mrand.N(most/2)
}

// serve presents the grant and reads until the connection ends.
func (m *member) serve(l *link, life int) error {
	m.mu.Lock()
	kind, grant := m.kind, m.grant
	m.mu.Unlock()
	if _, err := l.send(&wire.Grant{Kind: kind, Body: grant}); err != nil {
		return err
	}
	l.conn.SetReadDeadline(time.Now().Add(attemptTimeout))
	_, answer, err := l.receive()
	if err != nil {
		return err
	}
	switch a := answer.(type) {
	case *wire.Admitted:
	case *wire.Refused:
		return fmt.Errorf("%w: %s: %s", errRefused, a.Reason, a.Detail)
	default:
		return fmt.Errorf("the relay answered a grant with %T", answer)
	}
	l.conn.SetReadDeadline(time.Time{})
	m.mu.Lock()
	if m.life != life {
		m.mu.Unlock()
		return nil
	}
	m.link, m.mac = l, wire.NewBindMAC(l.welcome.Bind)
	m.counter, m.bound, m.full = 0, 0, false
	var holds []*wire.EdgeHold
	for id, e := range m.edges {
		e.channel = 0
		holds = append(holds, &wire.EdgeHold{Edge: id, Peer: e.peer, Cluster: e.cluster})
	}
	m.bindLocked(l)
	m.mu.Unlock()
	for _, h := range holds {
		if _, err := l.send(h); err != nil {
			return err
		}
	}
	m.swarm.agenda.after(pingEvery, func() { m.ping(l) })
	for {
		number, msg, err := l.receive()
		if err != nil {
			return err
		}
		if err := m.handle(l, number, msg); err != nil {
			return err
		}
	}
}

var errRefused = errors.New("refused")

// handle does what a message of the relay asks.
func (m *member) handle(l *link, number uint32, msg wire.Message) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var answer wire.Message
	switch msg := msg.(type) {
	case *wire.Ping:
		answer = &wire.Pong{Re: number}
	case *wire.EdgeOffer:
		answer = &wire.EdgeAnswer{Re: number, Edge: msg.Edge, Answer: make([]byte, 1200)} // about the size of a real one
	case *wire.EdgeOpen:
		m.edges[msg.Edge] = &edge{peer: msg.Peer, cluster: m.cluster, channel: msg.Channel}
	case *wire.EdgeReady:
		if e := m.edges[msg.Edge]; e != nil {
			e.peer, e.channel = msg.Peer, msg.Channel
			m.asked <- msg.Peer
		}
	case *wire.EdgeKept:
		if e := m.edges[msg.Edge]; e != nil {
			e.channel = msg.Channel
			m.arrivedLocked()
		}
	case *wire.EdgeRefused:
		delete(m.edges, msg.Edge)
		m.swarm.refused.add("edge " + msg.Reason)
	case *wire.Refused:
		return fmt.Errorf("%w: %s: %s", errRefused, msg.Reason, msg.Detail)
	}
	if answer == nil {
		return nil
	}
	_, err := l.send(answer)
	return err
}

// requestEdge asks for an edge to a cluster and returns the node's key.
func (m *member) requestEdge(ctx context.Context, cluster string) (key.WireGuardPublic, error) {
	var id wire.EdgeID
	rand.Read(id[:])
	m.mu.Lock()
	m.edges[id] = &edge{cluster: cluster}
	m.asked = make(chan key.WireGuardPublic, 1)
	l, asked := m.link, m.asked
	m.mu.Unlock()
	if l == nil {
		return key.WireGuardPublic{}, errors.New("the laptop is away")
	}
	if _, err := l.send(&wire.EdgeRequest{Edge: id, Cluster: cluster}); err != nil {
		return key.WireGuardPublic{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	select {
	case peer := <-asked:
		return peer, nil
	case <-ctx.Done():
		return key.WireGuardPublic{}, ctx.Err()
	}
}

func (m *member) setBusy() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy = true
}

// ping is the control connection's keepalive.
func (m *member) ping(l *link) {
	m.mu.Lock()
	current := m.link == l
	m.mu.Unlock()
	if !current || m.swarm.ctx.Err() != nil {
		return
	}
	if _, err := l.send(&wire.Ping{}); err != nil {
		return // the reader sees it too
	}
	m.swarm.agenda.after(pingEvery, func() { m.ping(l) })
}

// bindLocked sends a Bind, padded until a full one was answered, and plans the
// next.
func (m *member) bindLocked(l *link) {
	m.counter++
	size := wire.BindSize
	if !m.full {
		size = wire.BindPaddedSize
	}
	m.sendLocked(m.mac.AppendRequest(make([]byte, 0, size), l.welcome.Session, m.counter, size))
	counter, wait := m.counter, bindAgain
	m.swarm.agenda.after(wait, func() { m.look(l, counter) })
}

// look binds again at once if a Bind was not answered, else when it is time.
func (m *member) look(l *link, counter uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.link != l || m.counter != counter || m.swarm.ctx.Err() != nil:
	case m.bound < counter:
		m.bindLocked(l)
	default:
		m.swarm.agenda.after(bindEvery-bindAgain, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.link == l && m.counter == counter && m.swarm.ctx.Err() == nil {
				m.bindLocked(l)
			}
		})
	}
}

func (m *member) sendLocked(b []byte) {
	if m.own != nil {
		m.own.WriteToUDPAddrPort(b, m.swarm.packets.relay) // a loss is a loss
		return
	}
	m.swarm.packets.send(m.addr, b)
}

// datagram takes what arrived at m's address: an answer to a Bind, or a packet.
func (m *member) datagram(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if wire.IsPacket(b) {
		if m.echo != nil {
			m.echo(b, wire.Channel(b))
		}
		return
	}
	if m.mac == nil || !wire.IsBind(b) || !m.mac.Verify(b) {
		return
	}
	typ, session, counter := wire.BindFields(b)
	if session != m.link.welcome.Session || counter != m.counter {
		return
	}
	switch typ {
	case wire.BindChallenge:
		m.sendLocked(m.mac.AppendAnswer(make([]byte, 0, wire.BindSize), session, counter, wire.BindCookie(b)))
	case wire.BindBound:
		first := m.bound == 0
		m.bound, m.full = counter, true
		if first {
			m.arrivedLocked()
		}
	}
}

// arrivedLocked notes that m may be here now.
func (m *member) arrivedLocked() {
	if !m.hereLocked() {
		return
	}
	m.since, m.losses = time.Now(), 0
	for _, w := range m.waiting {
		w <- nil
	}
	m.waiting = nil
}

// here reports whether m is admitted and bound, and all its edges are kept.
func (m *member) here() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hereLocked()
}

func (m *member) hereLocked() bool {
	if m.link == nil || m.bound == 0 {
		return false
	}
	for _, e := range m.edges {
		if e.channel == 0 {
			return false
		}
	}
	return true
}

// leave ends m's session for good, without a word.
func (m *member) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.life++
	if m.link != nil {
		m.link.close()
	}
	m.link, m.mac = nil, nil
	if m.swarm.ctx.Err() != nil && m.own != nil {
		m.own.Close()
	}
}

// cause names why an attempt failed, in few words: it is counted.
func cause(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, errRefused):
		return err.Error()
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return err.Error()
}
