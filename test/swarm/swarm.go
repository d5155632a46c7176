//go:build linux

// Package swarm is ten thousand participants in one process: laptops and nodes
// which speak the real protocol to a real relay, TLS, WebSocket, Noise and bind
// messages, each from an address of its own, with grants that verify.
//
// It owns the network of such a run (its keys, issuer tokens, records), the
// members and their timing, which is zt-daemon's, and what is measured on them.
// It must not know what a relay does inside: it sees what a participant sees,
// and what /proc says of the relay's process.
package swarm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/test/lab"
)

// Config says how large a swarm is. The zero value of an optional field is its
// default.
type Config struct {
	Lab     *lab.Lab
	Network *lab.Network // nil = loopback
	Program string       // zt-relay

	Clusters, Nodes int // clusters, and the nodes of each
	Laptops         int
	// Flows is how many laptops have an edge with open flows to a node: they and
	// their nodes are the busy members.
	Flows int
	// Probes is how many of Flows can measure echoes.
	Probes int
	// Joining is how many members join at once; default 64.
	Joining int
	// Spread is over how long idle members come back; default zt-daemon's 30 s.
	Spread time.Duration
}

// Swarm is a relay and its participants. Make it with New.
type Swarm struct {
	cfg     Config
	relay   *lab.Relay
	network *network
	packets *packets
	agenda  *agenda
	dials   chan dial // taken by goroutines inside the namespace

	nodes, laptops []*member
	flows          []flow
	refused        tally // attempts that failed, by cause

	ctx  context.Context // of every goroutine that members start
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// A flow is an edge in use.
type flow struct{ laptop, node *member }

// New brings up an issuer, a relay and the network that claims it, with a record
// for each cluster. Nobody has joined yet. Call Close.
func New(ctx context.Context, cfg Config) (_ *Swarm, err error) {
	if cfg.Flows > cfg.Laptops || cfg.Flows > cfg.Clusters || cfg.Probes > cfg.Flows {
		return nil, errors.New("a flow needs a laptop and a cluster of its own, and a probe a flow")
	}
	if cfg.Joining == 0 {
		cfg.Joining = 64
	}
	if cfg.Spread == 0 {
		cfg.Spread = reconnectIdle
	}
	s := &Swarm{cfg: cfg, agenda: newAgenda(), dials: make(chan dial)}
	s.ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx)) // ends by Close
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := s.place(ctx); err != nil {
		return nil, err
	}
	if err := s.claim(ctx); err != nil {
		return nil, fmt.Errorf("claim the relay: %w", err)
	}
	s.wg.Go(func() { s.agenda.run(s.ctx) })
	s.wg.Go(func() { s.packets.run() })
	return s, nil
}

// Close ends every member, and waits. The lab ends the relay.
func (s *Swarm) Close() {
	s.stop()
	if s.packets != nil {
		s.packets.close()
	}
	for _, m := range s.members() {
		m.leave()
	}
	s.wg.Wait()
}

func (s *Swarm) members() []*member {
	return append(append([]*member(nil), s.nodes...), s.laptops...)
}

// Join has every member join, and returns when all are admitted and bound, and
// flows have their edges.
func (s *Swarm) Join(ctx context.Context) error {
	for i := range s.cfg.Clusters * s.cfg.Nodes {
		m, err := s.newNode(i)
		if err != nil {
			return err
		}
		s.nodes = append(s.nodes, m)
	}
	for i := range s.cfg.Laptops {
		m, err := s.newLaptop(i)
		if err != nil {
			return err
		}
		s.laptops = append(s.laptops, m)
	}
	g, joining := errgroup.WithContext(ctx)
	g.SetLimit(s.cfg.Joining)
	for _, m := range s.members() {
		g.Go(func() error { return m.join(joining) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	byKey := map[key.WireGuardPublic]*member{}
	for _, n := range s.nodes {
		byKey[n.key.Public()] = n
	}
	for i := range s.cfg.Flows {
		f := flow{laptop: s.laptops[i]}
		cluster := s.network.clusters[i%len(s.network.clusters)].name
		peer, err := f.laptop.requestEdge(ctx, cluster)
		if err != nil {
			return fmt.Errorf("an edge to %s: %w", cluster, err)
		}
		if f.node = byKey[peer]; f.node == nil {
			return fmt.Errorf("an edge to %s leads to a stranger, %s", cluster, peer)
		}
		f.laptop.setBusy()
		f.node.setBusy()
		s.flows = append(s.flows, f)
	}
	return nil
}

// Here counts the members that are admitted, bound and hold their edges.
func (s *Swarm) Here() int {
	n := 0
	for _, m := range s.members() {
		if m.here() {
			n++
		}
	}
	return n
}

// Refusals are the attempts to join that failed since the last call, by cause.
func (s *Swarm) Refusals() map[string]int { return s.refused.take() }

// churn has a share of the idle laptops leave each minute, spread evenly, and as
// many new people join, until ctx is done. It returns how many came.
func (s *Swarm) churn(ctx context.Context, share float64) (int, error) {
	idle := s.laptops[s.cfg.Flows:]
	every := time.Duration(float64(time.Minute) / (share * float64(len(s.nodes)+len(s.laptops))))
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	came := 0
	for {
		select {
		case <-ctx.Done():
			return came, nil
		case <-ticker.C:
		}
		old := idle[rand.IntN(len(idle))]
		old.leave()
		if err := s.renew(old); err != nil {
			return came, err
		}
		old.start(0)
		came++
	}
}

// tally counts by name.
type tally struct {
	mu sync.Mutex
	n  map[string]int // guarded by mu
}

func (t *tally) add(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = map[string]int{}
	}
	t.n[name]++
}

func (t *tally) take() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.n
	t.n = nil
	return n
}
