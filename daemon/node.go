package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/daemon/kube"
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
	// drainTick is how often a node that stops looks whether flows have ended.
	drainTick = 100 * time.Millisecond
	// farewell is how long a node that stops waits for its last words to leave.
	farewell = 2 * time.Second
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

	Name    string // of the pod or host, for people; default: Pod
	Version string // of the program

	// Grace is how long flows that are open when the node is to end may go on.
	Grace time.Duration

	// Of a pod, where node.yaml has the section kubernetes; see kube.Config.
	APIServer string // host:port; default: the upstream
	Account   string // directory of the service account
	Pod, Host string // names of pod and Kubernetes node
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
	troubles  *troubles
	probe     *upstreamProbe
	record    atomic.Pointer[auth.Record] // this cluster's, as a relay gave it and the head proves it; nil: not yet
	stopping  atomic.Bool
	closing   atomic.Int64 // edges whose end a relay is being told

	kube   *kube.Client   // nil outside a pod
	events *kube.Recorder // nil with it
	grants *accessGrants  // nil unless AccessGrants are watched

	askers askers

	sessionsMu sync.Mutex
	sessions   []*Session // with the relays of the head

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
	if cfg.Name == "" {
		cfg.Name = cfg.Pod
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
	if files.settings.Kubernetes != nil {
		address := cfg.APIServer
		if address == "" {
			address = files.settings.Upstream
		}
		n.kube, err = kube.New(kube.Config{Address: address, Account: cfg.Account, Pod: cfg.Pod, Node: cfg.Host, Log: n.log})
		if err != nil {
			return nil, err
		}
		n.events = n.kube.NewRecorder()
	}
	n.troubles = newTroubles(n.log, n.recordEvent)
	n.policy = &policyWatch{network: files.settings.Network, log: n.log, client: cfg.HTTP.issuerClient(), changed: n.policyChanged}
	if k := files.settings.Kubernetes; k != nil && k.AccessGrants {
		n.grants = newAccessGrants(n.kube, n.log)
		n.grants.record, n.grants.changed, n.grants.check = n.recordEvent, n.reviewAll, n.checkAccessGrant
		n.grants.health = n.watchTrouble("AccessGrants", "AccessGrantsNotWatched", "AccessGrantsWatched")
		n.grants.writing = n.watchTrouble("the status of AccessGrants", "AccessGrantStatusNotWritten", "AccessGrantStatusWritten")
	}
	n.probe = &upstreamProbe{upstream: files.settings.Upstream, trust: n.upstreamTrust, changed: n.upstreamChanged}
	if n.metrics, err = newNodeMetrics(cfg.Metrics, n.admission, n.grants); err != nil {
		return nil, err
	}
	if n.transport, err = NewTransport(TransportConfig{Log: n.log, Metrics: cfg.Metrics}); err != nil {
		return nil, err
	}
	n.device, err = netstack.New(netstack.Config{PrivateKey: n.key, Addr: n.addr, Transport: n.transport, Log: n.log})
	return n, err
}

// Addr is the node's overlay address.
func (n *Node) Addr() netip.Addr { return n.addr }

// recordEvent writes an Event about this pod; outside a pod nothing.
func (n *Node) recordEvent(e kube.Event) {
	if n.events != nil {
		n.events.Record(e)
	}
}

// Run serves until ctx is done and open flows had their grace, and returns once
// all it started has ended.
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
	asked := ctx
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx)) // ends when asked has ended and flows had their grace
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case <-asked.Done():
			n.drain(ctx)
		case <-ctx.Done():
		}
		n.cutAll()
		stop()
		return ln.Close() // unblocks Accept
	})
	g.Go(func() error { return n.serveFlows(ctx, ln) })
	g.Go(func() error { n.watchPolicy(ctx); return nil })
	g.Go(func() error { n.probe.run(ctx); return nil })
	g.Go(func() error { n.watchHealth(ctx); return nil })
	g.Go(func() error { n.watchEnds(ctx); return nil })
	g.Go(func() error { return n.runSessions(ctx) })
	if n.kube != nil {
		defer n.kube.Close()
		g.Go(func() error { n.events.Run(ctx); return nil })
		if n.grants != nil {
			g.Go(func() error { n.grants.run(ctx); return nil })
		}
	}
	err = g.Wait()
	n.offers.Wait()
	n.cutAll() // what was admitted meanwhile
	n.offers.Wait()
	return err
}

// drain lets go of the laptops: who has no open flow now or soon, the rest when
// Grace is over. Offers are refused from here on, so that they go elsewhere; a
// laptop that stays for its flows may open more until then, for it has no other
// way to the cluster.
func (n *Node) drain(ctx context.Context) {
	n.stopping.Store(true)
	n.log.Info("node stops", "grace", n.cfg.Grace)
	select {
	case <-n.tellRelays(): // laptops that are let go now are led to other nodes
	case <-time.After(farewell):
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Grace)
	defer cancel()
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	for ctx.Err() == nil {
		left := 0
		for _, k := range n.admission.keys() {
			n.install.Lock()
			if n.admission.inUse(k) {
				left++
			} else {
				n.cutLocked(k, string(auth.ReasonNodeStops), "")
			}
			n.install.Unlock()
		}
		if left == 0 {
			break
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	n.cutAll()
	for end := time.Now().Add(farewell); n.closing.Load() > 0 && time.Now().Before(end); {
		time.Sleep(drainTick / 10) // relays are told while there are sessions
	}
}

// watchPolicy keeps the policy in force.
func (n *Node) watchPolicy(ctx context.Context) {
	if k := n.files.settings.Kubernetes; k != nil && k.PolicyConfigMap != "" {
		n.policy.watchConfigMap(ctx, n.kube, k.PolicyConfigMap,
			n.watchTrouble("ConfigMap "+n.kube.Namespace()+"/"+k.PolicyConfigMap, "PolicyNotWatched", "PolicyWatched"))
		return
	}
	n.policy.readFile(ctx, n.cfg.Dir)
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
			n.sessionsMu.Lock()
			n.sessions = append(n.sessions, s)
			n.sessionsMu.Unlock()
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

// fetchDocuments takes the newest head and this cluster's record from a relay.
func (n *Node) fetchDocuments(ctx context.Context, s *Session) {
	raw, records, err := s.Documents(ctx)
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
	for _, raw := range records {
		r, err := auth.ParseRecord(raw, head, wallClock())
		if err != nil {
			n.log.Warn("record not taken", "relay", s.cfg.Relay.URL, "err", err)
		} else if was := n.record.Load(); r.Name == n.files.settings.Cluster && (was == nil || r.Version >= was.Version) {
			n.record.Store(r)
		}
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
			n.troubles.end("head", "RelayAnswers", "relay "+n.files.settings.Relay+" gave the network's head", false)
			return head, nil
		case n.head != nil: // mounted with the node's files: enough to begin
			n.log.Warn("using the head that was mounted", "relay", n.files.settings.Relay, "err", err)
			return n.head, nil
		}
		n.troubles.begin("head", n.headTrouble(err))
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

// policyChanged says what became of the policy, and decides about everybody
// again.
func (n *Node) policyChanged() {
	state, fault := n.policy.current(), n.policy.fault()
	e := AuditEvent{Event: "policy_changed"}
	if fault == nil {
		n.metrics.policyBroken.Set(0)
		n.log.Info("policy in force", "rules", len(state.policy.Rules), "issuers", len(state.policy.Issuers))
		n.troubles.end("policy", "PolicyInForce", fmt.Sprintf("the policy is in force: %d rules, %d issuers", len(state.policy.Rules), len(state.policy.Issuers)), true)
	} else {
		e.Event, e.Reason, e.Detail = "policy_broken", string(auth.ReasonNoPolicy), printable(fault.Error())
		n.metrics.policyBroken.Set(1)
		reason := "PolicyBroken"
		if missing := (*PolicyMissingError)(nil); errors.As(fault, &missing) {
			reason = "PolicyMissing"
		}
		n.troubles.begin("policy", trouble{reason: reason, err: fault, exact: true})
	}
	n.audit.write(e)
	n.tellRelays()
	if fault == nil || state == nil {
		n.reviewAll()
	}
}

// reviewAll decides about everybody again.
func (n *Node) reviewAll() {
	n.install.Lock() // whom the rules before have just admitted is among the keys
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
		return auth.Decision{}, n.noPolicy()
	}
	if refused := state.verifier.Recheck(id); refused != nil {
		return auth.Decision{}, refused
	}
	d := state.policy.Decide(id, n.grants.all(), now)
	if d.Refusal == nil && !slices.Contains(d.Ports, apiServerPort) {
		return d, &auth.RefusedError{Reason: auth.ReasonPolicy, Detail: fmt.Sprintf("no rule opens port %d to %s now", apiServerPort, id)}
	}
	if r := d.Refusal; r != nil && r.Reason == auth.ReasonClosed && r.HintText == "" { // the policy does not know the cluster's name
		r.HintText = fmt.Sprintf("ask for one: `zt-daemon request %s --for 1h --reason \"…\"`", n.files.settings.Cluster)
	}
	return d, d.Refusal
}

// checkAccessGrant says why the policy in force does not take an AccessGrant.
func (n *Node) checkAccessGrant(g auth.AccessGrant) error {
	if state := n.policy.current(); state != nil {
		return state.policy.CheckAccessGrant(g)
	}
	return nil
}

// noPolicy refuses everybody. The particulars are for the cluster's own people.
func (n *Node) noPolicy() *auth.RefusedError {
	detail := "it could not be read yet"
	switch fault := n.policy.fault().(type) {
	case *PolicyMissingError:
		if fault.Err == nil {
			detail = fault.Where + " does not exist"
		}
	case *PolicyBrokenError:
		detail = fault.Where + " is broken"
	}
	return &auth.RefusedError{Reason: auth.ReasonNoPolicy, Detail: detail}
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
		n.audit.write(AuditEvent{Event: "edge_ended", Reason: reason, Detail: detail, Rule: l.decision.Rule, AccessGrant: l.decision.AccessGrant}.who(l.identity).on(edge))
		// A relay that does not read must not hold up the others' cuts.
		n.closing.Add(1)
		n.offers.Go(func() {
			defer n.closing.Add(-1)
			s.CloseEdge(context.Background(), edge, reason)
		})
	}
	n.device.RemovePeer(k) // lets the resets out first
	n.metrics.cut.WithLabelValues(reason).Inc()
	n.log.Info("laptop cut", "peer", k, "subject", l.identity, "reason", reason)
}

func (n *Node) cutAll() {
	for _, k := range n.admission.keys() {
		n.install.Lock()
		n.cutLocked(k, string(auth.ReasonNodeStops), "")
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
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{}
	}
	t.TLSClientConfig.RootCAs = c.RootCAs
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
	upstreamUp   prometheus.Gauge
}

func newNodeMetrics(reg prometheus.Registerer, a *admission, g *accessGrants) (*nodeMetrics, error) {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &nodeMetrics{
		offers:       counter("zt_daemon_edge_offers_total", "Edge offers, by what became of them.", "result"),
		refused:      counter("zt_daemon_flows_refused_total", "Flows from laptops that were refused, by reason.", "reason"),
		cut:          counter("zt_daemon_laptops_cut_total", "Laptops whose access was ended, by reason.", "reason"),
		policyBroken: prometheus.NewGauge(prometheus.GaugeOpts{Name: "zt_daemon_policy_broken", Help: "1 while the policy that is there is not in force."}),
		upstreamUp:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "zt_daemon_upstream_up", Help: "1 while the API server answers."}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.offers, m.refused, m.cut, m.policyBroken, m.upstreamUp,
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
	if g != nil {
		errs = append(errs, reg.Register(g))
	}
	return m, errors.Join(errs...)
}
