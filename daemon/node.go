package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/netstack"
)

const (
	// nodeTick is how often a node looks at every end by its own wall clock. It
	// holds no timers for them: a clock that is set, or a machine that slept,
	// is noticed at the next tick.
	nodeTick = 500 * time.Millisecond
	// recheckInterval is how often a node asks whether the keys behind live
	// grants are still published.
	recheckInterval = 15 * time.Second
	// edgeIdle is how long an edge without a flow stays.
	edgeIdle = 10 * time.Minute
	// nodeGrantLife is how long a node's proof is good; the most that is allowed.
	nodeGrantLife = time.Hour
	// maxOffers bounds the offers that are judged at once, each with a goroutine.
	maxOffers = 64
	// verifyTimeout ends the verification of one offer, fetching keys included.
	verifyTimeout = 8 * time.Second
)

// NodeConfig says what a Node is.
type NodeConfig struct {
	Dir     string     // see NodeConfigFile and its neighbours
	HTTP    HTTPConfig // for relays and issuers
	Audit   io.Writer  // JSON lines; nil: none
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil: none
}

// Node is one node of a cluster: it verifies by itself who may reach the
// cluster's API server, and forwards their TCP bytes to it.
type Node struct {
	cfg       NodeConfig
	log       *slog.Logger
	files     nodeFiles
	key       key.WireGuardPrivate
	addr      netip.Addr
	admission *admission
	policy    *policyWatch
	transport *Transport
	device    *netstack.Device
	audit     *auditLog
	metrics   *nodeMetrics
	flows     sync.WaitGroup
	offers    sync.WaitGroup
	judging   chan struct{} // a slot for each offer being judged

	// install is held while the device's peers and the admission table change
	// together.
	install sync.Mutex

	heads chan *auth.Head // candidates, proved but maybe old
	head  *auth.Head      // the newest taken; runSessions' own
}

// NewNode reads the directory and starts nothing. A policy that is missing or
// broken is not an error: the node runs, refuses everybody and says why.
func NewNode(cfg NodeConfig) (*Node, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	files, err := readNodeFiles(cfg.Dir)
	if err != nil {
		return nil, err
	}
	n := &Node{
		cfg: cfg, log: cfg.Log, files: files,
		key: key.NewWireGuard(), admission: newAdmission(),
		heads: make(chan *auth.Head, 1), head: files.head, judging: make(chan struct{}, maxOffers),
	}
	n.addr = files.settings.Network.NodeAddr(n.key.Public())
	n.audit = newAuditLog(cfg.Audit, AuditEvent{Cluster: files.settings.Cluster, Node: n.addr.String()}, n.log)
	if n.metrics, err = newNodeMetrics(cfg.Metrics, n.admission); err != nil {
		return nil, err
	}
	n.policy = &policyWatch{
		dir: cfg.Dir, network: files.settings.Network, log: n.log,
		client: cfg.HTTP.issuerClient(), changed: n.policyChanged,
	}
	if n.transport, err = NewTransport(TransportConfig{Log: n.log, Metrics: cfg.Metrics}); err != nil {
		return nil, err
	}
	n.device, err = netstack.New(netstack.Config{PrivateKey: n.key, Addr: n.addr, Transport: n.transport, Log: n.log})
	return n, err
}

// Addr is the node's overlay address.
func (n *Node) Addr() netip.Addr { return n.addr }

// Run serves until ctx is done, and returns once all it started has ended.
func (n *Node) Run(ctx context.Context) error {
	if err := n.device.Start(); err != nil {
		return err
	}
	defer n.device.Close()
	ln, err := n.device.Listen(netip.AddrPortFrom(n.addr, apiServerPort))
	if err != nil {
		return fmt.Errorf("listen on the overlay address: %w", err)
	}
	n.log.Info("node started", "cluster", n.files.settings.Cluster, "overlay_addr", n.addr, "peer", n.key.Public())
	n.policy.load(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		n.cutAll()
		return ln.Close() // unblocks Accept
	})
	g.Go(func() error { return n.serveFlows(ctx, ln) })
	g.Go(func() error { n.policy.run(ctx); return nil })
	g.Go(func() error { n.watchEnds(ctx); return nil })
	g.Go(func() error { return n.runSessions(ctx) })
	err = g.Wait()
	n.offers.Wait()
	n.cutAll() // what was admitted meanwhile
	n.offers.Wait()
	return err
}

// runSessions keeps a session with every relay of the head, and follows the head.
func (n *Node) runSessions(ctx context.Context) error {
	head, err := n.fetchHead(ctx)
	if err != nil || ctx.Err() != nil {
		return err
	}
	n.heads <- head
	type run struct {
		relay auth.Relay
		stop  context.CancelFunc
		done  chan struct{}
	}
	running := make(map[string]run) // by relay URL
	var g sync.WaitGroup
	defer g.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case head := <-n.heads:
			if n.head != nil && head.Hash() != n.head.Hash() && head.Supersedes(n.head) != nil {
				continue
			}
			n.head = head
		}
		for url, old := range running {
			if now, ok := n.head.Relay(url); !ok || !now.Equal(old.relay) {
				n.log.Info("relay left the network, or is described anew", "relay", url)
				old.stop()
				<-old.done
				delete(running, url)
			}
		}
		for _, r := range n.head.Relays {
			if _, ok := running[r.URL]; ok {
				continue
			}
			s, err := n.newSession(r)
			if err != nil {
				n.log.Error("relay of the head cannot be used", "relay", r.URL, "err", err)
				continue
			}
			ctx, stop := context.WithCancel(ctx)
			done := make(chan struct{})
			running[r.URL] = run{r, stop, done}
			g.Go(func() {
				defer close(done)
				s.Run(ctx) // its only error is a refusal, which is tried again here
				n.sessionGone(s)
			})
			g.Go(func() { n.renewGrant(ctx, s) })
		}
	}
}

// renewGrant keeps the lease of one session.
func (n *Node) renewGrant(ctx context.Context, s *Session) {
	tick := time.NewTicker(nodeGrantLife / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(ctx, answerTimeout)
		if _, err := s.SendStatement(ctx, n.newNodeGrant()); err != nil && ctx.Err() == nil {
			n.log.Warn("node grant not renewed", "relay", s.cfg.Relay.URL, "err", err)
		}
		cancel()
	}
}

// documentsChanged takes the newest head from a relay.
func (n *Node) documentsChanged(ctx context.Context, s *Session) {
	raw, _, err := s.Documents(ctx)
	var head *auth.Head
	if err == nil {
		head, err = auth.ParseHead(raw)
	}
	if err == nil && head.Network != n.files.settings.Network {
		err = &WrongNetworkError{Relay: s.cfg.Relay.URL, Want: n.files.settings.Network, Got: head.Network}
	}
	if err != nil {
		if ctx.Err() == nil {
			n.log.Warn("new head not taken", "relay", s.cfg.Relay.URL, "err", err)
		}
		return
	}
	select {
	case n.heads <- head:
	case <-ctx.Done():
	}
}

// fetchHead gets the head, trying until ctx is done while no relay answers. An
// answer that proves nothing is tried again too: the relay's fault is not this
// node's end, and the log says it each time.
func (n *Node) fetchHead(ctx context.Context) (*auth.Head, error) {
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		head, err := FetchHead(ctx, n.files.settings.Relay, n.files.settings.Network, n.cfg.HTTP)
		if err == nil && n.head != nil {
			err = head.Supersedes(n.head)
			if errors.Is(err, auth.ErrSame) {
				err = nil
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil, nil
		case err == nil:
			return head, nil
		case n.head != nil: // mounted with the node's files: enough to begin
			n.log.Warn("using the head that was mounted", "relay", n.files.settings.Relay, "err", err)
			return n.head, nil
		}
		n.log.Error("no head of the network yet", "relay", n.files.settings.Relay, "err", err)
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(wait):
		}
	}
}

// watchEnds cuts what ended, decides again where a right may have changed, and
// gives idle edges up.
func (n *Node) watchEnds(ctx context.Context) {
	tick := time.NewTicker(nodeTick)
	defer tick.Stop()
	rechecked := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		recheck := time.Since(rechecked) > recheckInterval
		if recheck {
			rechecked = time.Now()
		}
		for _, k := range n.admission.keys() {
			n.review(k, recheck)
		}
	}
}

// policyChanged decides about everybody again.
func (n *Node) policyChanged(broken error) {
	e := AuditEvent{Event: "policy_changed"}
	n.metrics.policyBroken.Set(0)
	if broken != nil {
		e.Event, e.Reason, e.Detail = "policy_broken", string(auth.ReasonNoPolicy), broken.Error()
		n.metrics.policyBroken.Set(1)
	}
	n.audit.write(e)
	if broken != nil {
		return
	}
	n.install.Lock() // whom the policy before has just admitted is among the keys
	keys := n.admission.keys()
	n.install.Unlock()
	for _, k := range keys {
		n.review(k, true)
	}
}

// review cuts a laptop whose right has ended; recheck also when nothing has
// come to its end.
func (n *Node) review(k key.WireGuardPublic, recheck bool) {
	n.install.Lock()
	defer n.install.Unlock()
	now := wallClock()
	var id *auth.Identity
	due, idle := recheck, false
	if !n.admission.get(k, func(l *admittedLaptop) {
		id = l.identity
		due = due || !now.Before(l.ends())
		idle = len(l.flows) == 0 && now.Sub(l.lastFlow) > edgeIdle
	}) {
		return
	}
	if idle {
		n.cutLocked(k, string(auth.ReasonIdle), "")
		return
	}
	if !due {
		return
	}
	d, refused := n.decide(id, now)
	if refused != nil {
		n.cutLocked(k, string(refused.Reason), refused.Detail)
		return
	}
	n.admission.get(k, func(l *admittedLaptop) { l.decision = d })
}

// decide asks verifier and policy in force about an identity that was verified.
func (n *Node) decide(id *auth.Identity, now time.Time) (auth.Decision, *auth.RefusedError) {
	state := n.policy.current()
	if state == nil {
		return auth.Decision{}, &auth.RefusedError{Reason: auth.ReasonNoPolicy, Detail: "the node has no policy that it can read"}
	}
	if refused := state.verifier.Recheck(id); refused != nil {
		return auth.Decision{}, refused
	}
	d := state.policy.Decide(id, now)
	if d.Refusal == nil && !slices.Contains(d.Ports, apiServerPort) {
		return d, &auth.RefusedError{Reason: auth.ReasonPolicy, Detail: fmt.Sprintf("no rule opens port %d to %s now", apiServerPort, id)}
	}
	return d, d.Refusal
}

// cutLocked ends a laptop's access: out of the table, its flows reset, its peer
// removed, its edges given up. install is held.
func (n *Node) cutLocked(k key.WireGuardPublic, reason, detail string) {
	l := n.admission.remove(k)
	if l == nil {
		return
	}
	for f := range l.flows {
		f.abort()
	}
	for edge, s := range l.edges {
		n.audit.write(AuditEvent{Event: "edge_ended", Reason: reason, Detail: detail, Rule: l.decision.Rule}.who(l.identity).on(edge))
		// A relay that does not read must not hold up the others' cuts.
		n.offers.Go(func() { s.CloseEdge(context.Background(), edge, reason) })
	}
	n.device.RemovePeer(k) // lets the resets out first
	n.metrics.cut.WithLabelValues(reason).Inc()
	n.log.Info("laptop cut", "peer", k, "subject", l.identity, "reason", reason)
}

func (n *Node) cutAll() {
	for _, k := range n.admission.keys() {
		n.install.Lock()
		n.cutLocked(k, string(auth.ReasonEnded), "node stops")
		n.install.Unlock()
	}
}

// wallClock is the time of day without the monotonic reading: ends are compared
// by the node's own clock, whatever it was set to.
func wallClock() time.Time { return time.Now().Round(0) }

// issuerClient is for fetching issuers' keys.
func (c HTTPConfig) issuerClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = c.Proxy
	return &http.Client{Transport: t}
}

// newNodeGrant signs this node's proof anew.
func (n *Node) newNodeGrant() []byte {
	now := wallClock()
	return auth.SignNodeGrant(n.files.settings.Network, n.files.settings.Cluster, n.key.Public(),
		now, now.Add(nodeGrantLife), n.files.key).Append(nil)
}

// nodeMetrics are a node's counters.
type nodeMetrics struct {
	offers       *prometheus.CounterVec
	refused      *prometheus.CounterVec
	cut          *prometheus.CounterVec
	policyBroken prometheus.Gauge
}

func newNodeMetrics(reg prometheus.Registerer, a *admission) (*nodeMetrics, error) {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &nodeMetrics{
		offers:       counter("zt_daemon_edge_offers_total", "Edge offers, by what became of them.", "result"),
		refused:      counter("zt_daemon_flows_refused_total", "Flows from laptops that were refused, by reason.", "reason"),
		cut:          counter("zt_daemon_laptops_cut_total", "Laptops whose access was ended, by reason.", "reason"),
		policyBroken: prometheus.NewGauge(prometheus.GaugeOpts{Name: "zt_daemon_policy_broken", Help: "1 while the policy file is not in force."}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.offers, m.refused, m.cut, m.policyBroken,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "zt_daemon_laptops", Help: "Laptops that are peers."}, func() float64 {
			laptops, _ := a.counts()
			return float64(laptops)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "zt_daemon_node_flows", Help: "Open flows to the API server."}, func() float64 {
			_, flows := a.counts()
			return float64(flows)
		}),
	} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}
