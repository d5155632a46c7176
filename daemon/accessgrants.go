package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon/kube"
)

const (
	// maxAccessGrants bounds the AccessGrants that a node holds: those that are not
	// over.
	maxAccessGrants = 4096
	// maxGrantBytes bounds what is read of one, its status of many pods included.
	maxGrantBytes = 256 << 10
	// grantTick is how often they are held against the clock, grantPause the least
	// time between two such looks: each may decide about every laptop again.
	grantTick  = 500 * time.Millisecond
	grantPause = 200 * time.Millisecond
	// grantTrust is how long AccessGrants count without a word from the API server:
	// nobody can end one meanwhile.
	grantTrust = 10 * time.Minute
	// grantUseInterval is how often the status tells of an AccessGrant's use.
	grantUseInterval = 30 * time.Second
	// grantSpread is over what time a cluster's nodes spread the writing of what all
	// of them see at once.
	grantSpread = 2 * time.Second
	// maxStatusPods is how many pods a status lists; a further one adds itself only
	// when it has something of its own to say. Each writing is told to every node.
	maxStatusPods = 32
	// maxManager is how much of a pod's name goes into a field manager, of at most
	// 128 bytes.
	maxManager = 100
	// patchGap is the pause after a status was written. It doubles with each that
	// could not be, up to patchGapMax.
	patchGap    = 200 * time.Millisecond
	patchGapMax = 10 * time.Second
	// A status that could not be written waits so long for its next attempt, twice as
	// long each time.
	grantRetry    = 10 * time.Second
	grantRetryMax = 10 * time.Minute
)

// The phases of an AccessGrant.
const (
	grantPending = "Pending"
	grantActive  = "Active"
	grantExpired = "Expired"
	grantInvalid = "Invalid"
)

var accessGrantResource = kube.Resource{
	Group: "access.zt-daemon.io", Version: "v1alpha1", Kind: "AccessGrant", Plural: "accessgrants", Cluster: true,
}

// accessGrants follows the AccessGrants of a cluster, holds them against this
// node's clock, and writes what it sees and what they are used for into their
// status.
type accessGrants struct {
	client  *kube.Client
	log     *slog.Logger
	check   func(auth.AccessGrant) error // why the policy does not take one
	record  func(kube.Event)
	health  func(error) // of the watch; nil: it works
	writing func(error) // the same of statuses
	// changed is told when a right may have begun or ended.
	changed func()
	stirred chan struct{} // look before the next tick

	current atomic.Pointer[[]auth.AccessGrant] // those that can be read

	telling sync.Mutex // held while health is told

	mu      sync.Mutex // guards what follows
	held    map[string]*heldGrant
	listed  map[string]bool // names told in the list under way; nil: none is
	ignored int             // for want of room
	moved   bool            // current is not what held says
	heard   time.Time       // when the watch was last in order; monotonic
	unseen  error           // why it is not; nil: it is
	blind   bool            // none counts until the watch is in order again
	sick    bool            // what health was told last
}

// heldGrant is one AccessGrant that is not over.
type heldGrant struct {
	uid        string
	generation int64
	grant      auth.AccessGrant
	fault      error // the object cannot be read
	phase      string
	message    string

	use     grantUse
	written grantEntry // what the status says of this pod, as far as we know
	phaseAt string     // what the status says for all
	pods    int        // how many it lists
	due     time.Time  // no writing before
	failed  int        // attempts to write, one after the other
}

type grantUse struct {
	at time.Time
	by string
}

// grantStatus is an AccessGrant's status. Each pod applies its own entry.
type grantStatus struct {
	Phase string       `json:"phase,omitempty"`
	Nodes []grantEntry `json:"nodes,omitempty"`
}

type grantEntry struct {
	Pod        string `json:"pod"`
	Phase      string `json:"phase"`
	Message    string `json:"message,omitempty"`
	LastUsed   string `json:"lastUsed,omitempty"`
	LastUsedBy string `json:"lastUsedBy,omitempty"`
}

func newAccessGrants(c *kube.Client, log *slog.Logger) *accessGrants {
	g := &accessGrants{client: c, log: log, held: make(map[string]*heldGrant), stirred: make(chan struct{}, 1), heard: time.Now()}
	g.current.Store(new([]auth.AccessGrant))
	return g
}

// all are the AccessGrants to decide by; they must not be changed. A nil g has none.
func (g *accessGrants) all() []auth.AccessGrant {
	if g == nil {
		return nil
	}
	return *g.current.Load()
}

// run follows them until ctx is done. While the API server is away they go on
// counting, to their end or for grantTrust; without the right to see them none
// counts.
func (g *accessGrants) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { g.writeStatuses(ctx) })
	wg.Go(func() { g.lookOn(ctx) })
	g.client.Watch(ctx, kube.Selection{Resource: accessGrantResource, MaxBytes: maxGrantBytes}, kube.Watcher{
		Listing: func() {
			g.mu.Lock()
			g.listed = make(map[string]bool)
			g.mu.Unlock()
		},
		Listed:  g.endList,
		Changed: g.take,
		Deleted: func(o kube.Object) { g.remove(o.Name) },
		Health:  g.watched,
		Heard:   g.hear,
	})
}

// lookOn looks each tick, and soon after something came, until ctx is done.
func (g *accessGrants) lookOn(ctx context.Context) {
	tick := time.NewTicker(grantTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-g.stirred:
		}
		if g.outOfTrust() {
			g.tellHealth()
		}
		if g.look() {
			g.changed()
		}
		sleep(ctx, grantPause)
	}
}

// stirLocked has what came taken into account, together with what comes within
// the same pause.
func (g *accessGrants) stirLocked() {
	g.moved = true
	select {
	case g.stirred <- struct{}{}:
	default:
	}
}

// AccessGrantsUnseenError says that a node cannot follow the AccessGrants.
type AccessGrantsUnseenError struct {
	Over bool // the API server was silent for grantTrust
	Err  error
}

func (e *AccessGrantsUnseenError) Error() string {
	switch {
	case isWatchRefused(e.Err):
		return fmt.Sprintf("AccessGrants admit nobody: %v", e.Err)
	case e.Over:
		return fmt.Sprintf("AccessGrants admit nobody: for %s the API server has said nothing, and nobody could have ended one: %v", auth.Duration(grantTrust), e.Err)
	}
	return fmt.Sprintf("AccessGrants are not seen to change; those known count to their end, for %s at most: %v", auth.Duration(grantTrust), e.Err)
}

// Unwrap returns why.
func (e *AccessGrantsUnseenError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *AccessGrantsUnseenError) Hint() string {
	h, ok := errors.AsType[hinter](e.Err)
	if !ok {
		return ""
	}
	if errors.Is(e.Err, kube.ErrUnreachable) {
		return h.Hint()
	}
	return h.Hint() + "; or set accessGrants: false in " + NodeConfigFile
}

// endList drops what a complete list did not tell.
func (g *accessGrants) endList() {
	g.mu.Lock()
	var gone []string
	for name := range g.held {
		if !g.listed[name] {
			gone = append(gone, name)
		}
	}
	g.listed = nil
	g.mu.Unlock()
	for _, name := range gone {
		g.remove(name)
	}
}

// watched is told why the watch is not in order, or that it may be again: hear
// says whether it is.
func (g *accessGrants) watched(err error) {
	g.mu.Lock()
	g.unseen = err
	if isWatchRefused(err) && !g.blind { // what cannot be seen cannot be seen to end
		g.blind = true
		g.stirLocked()
	}
	g.mu.Unlock()
	if err != nil {
		g.tellHealth()
	}
}

// hear notes that the watch is in order.
func (g *accessGrants) hear() {
	g.mu.Lock()
	sick := g.sick
	g.heard, g.unseen = time.Now(), nil
	if g.blind {
		g.blind = false
		g.stirLocked()
	}
	g.mu.Unlock()
	if sick {
		g.tellHealth()
	}
}

// outOfTrust ends the AccessGrants that nobody could have ended, and reports
// whether it did so just now.
func (g *accessGrants) outOfTrust() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.blind || time.Since(g.heard) < grantTrust {
		return false
	}
	g.blind, g.moved = true, true
	return true
}

// tellHealth tells health of now. What is told last is what is.
func (g *accessGrants) tellHealth() {
	g.telling.Lock()
	defer g.telling.Unlock()
	g.mu.Lock()
	err, over := g.unseen, time.Since(g.heard) >= grantTrust
	if err == nil && over {
		err = errUnheard
	}
	g.sick = err != nil
	g.mu.Unlock()
	if err != nil {
		err = &AccessGrantsUnseenError{Over: over, Err: err}
	}
	g.health(err)
}

// errUnheard is a watch that neither ends nor begins.
var errUnheard = errors.New("the watch does not begin")

func (g *accessGrants) remove(name string) {
	g.mu.Lock()
	h := g.held[name]
	if h != nil {
		delete(g.held, name)
		g.stirLocked()
	}
	g.mu.Unlock()
	if h != nil && h.phase == grantActive {
		g.record(kube.Event{Reason: "AccessRevoked", Message: fmt.Sprintf("AccessGrant %s of %s was deleted: access has ended", printable(name), grantee(h.grant)), Shared: h.uid})
	}
}

// take notes an AccessGrant as it is now.
func (g *accessGrants) take(o kube.Object) {
	var object struct {
		Metadata struct {
			Generation int64 `json:"generation"`
		} `json:"metadata"`
		Status grantStatus `json:"status"`
	}
	next := &heldGrant{uid: o.UID, fault: o.Err}
	if next.fault == nil {
		next.fault = json.Unmarshal(o.Raw, &object)
	}
	if next.fault == nil {
		next.grant, next.fault = auth.ParseAccessGrant(o.Raw)
		next.grant.Reason = printable(next.grant.Reason) // only an Event shows it: the rest need not be held
	}
	next.generation = object.Metadata.Generation
	next.phaseAt, next.pods = object.Status.Phase, len(object.Status.Nodes)
	for _, e := range object.Status.Nodes {
		if e.Pod == g.client.Pod() {
			next.written = e
			next.use.by = e.LastUsedBy
			next.use.at, _ = time.Parse(time.RFC3339, e.LastUsed)
		}
	}
	g.mu.Lock()
	if g.listed != nil {
		g.listed[o.Name] = true
	}
	was := g.held[o.Name]
	if was == nil && next.fault == nil && next.phaseAt == grantExpired && !wallClock().Before(next.grant.NotAfter) {
		g.mu.Unlock() // over, and everybody knows
		return
	}
	if was != nil && was.uid == next.uid && next.use.at.Before(was.use.at) {
		next.use = was.use
	}
	same := was != nil && was.uid == next.uid && was.generation == next.generation
	if same { // only its status changed
		next.phase, next.message, next.due, next.failed = was.phase, was.message, was.due, was.failed
		next.written, next.phaseAt = was.written, was.phaseAt // what we wrote or meant to: others' writing calls for none of ours
	} else if was == nil && len(g.held) >= maxAccessGrants {
		g.ignored++
		g.mu.Unlock()
		return
	}
	g.held[o.Name] = next
	if !same {
		g.stirLocked()
	}
	g.mu.Unlock()
}

// look holds every AccessGrant against the clock and the policy, says what began
// and ended, and drops what is over and written. It reports whether what is
// decided by has changed.
func (g *accessGrants) look() bool {
	now := wallClock()
	var said []kube.Event
	g.mu.Lock()
	for name, h := range g.held {
		phase, message := g.phaseOf(h, now)
		if phase == h.phase && message == h.message {
			if phase == grantExpired && !h.behind(g.client.Pod()) {
				delete(g.held, name)
			}
			continue
		}
		first := h.phase == ""
		h.phase, h.message = phase, message
		h.due = now.Add(rand.N(grantSpread))
		g.moved = true
		if !first || h.phaseAt != phase { // not what was so before this node started
			if e, ok := grantEvent(name, h); ok {
				said = append(said, e)
			}
		}
	}
	moved := g.moved
	if moved {
		g.publishLocked()
		g.moved = false
	}
	if g.ignored > 0 {
		g.log.Warn("AccessGrants ignored: there are more than a node holds", "count", g.ignored, "held", len(g.held))
		g.ignored = 0
	}
	g.mu.Unlock()
	for _, e := range said {
		g.record(e)
	}
	return moved
}

// phaseOf says what an AccessGrant is now, and why it is invalid.
func (g *accessGrants) phaseOf(h *heldGrant, now time.Time) (phase, message string) {
	fault := h.fault
	if fault == nil {
		fault = g.check(h.grant)
	}
	switch {
	case fault != nil:
		return grantInvalid, printable(fault.Error())
	case now.Before(h.grant.NotBefore):
		return grantPending, ""
	case now.Before(h.grant.NotAfter):
		return grantActive, ""
	}
	return grantExpired, ""
}

// publishLocked renews what is decided by.
func (g *accessGrants) publishLocked() {
	all := make([]auth.AccessGrant, 0, len(g.held))
	if g.blind {
		g.current.Store(&all)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(g.held)) {
		if h := g.held[name]; h.fault == nil && h.phase != "" { // one that does not count is told to whom it is for
			all = append(all, h.grant)
		}
	}
	g.current.Store(&all)
}

// used notes that somebody's flow began by an AccessGrant.
func (g *accessGrants) used(name, by string, at time.Time) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if h := g.held[name]; h != nil {
		h.use = grantUse{at: at, by: printable(by)}
	}
}

// entry is what this pod has to say.
func (h *heldGrant) entry(pod string) grantEntry {
	e := grantEntry{Pod: pod, Phase: h.phase, Message: h.message, LastUsedBy: h.use.by}
	if !h.use.at.IsZero() {
		e.LastUsed = h.use.at.UTC().Format(time.RFC3339)
	}
	return e
}

// behind reports whether the status does not say yet what this pod has to say.
func (h *heldGrant) behind(pod string) bool {
	e := h.entry(pod)
	if h.written.Pod == "" && h.pods >= maxStatusPods && e.LastUsed == "" && h.phaseAt == h.phase {
		return false
	}
	return e != h.written
}

// writeStatuses brings statuses up to date until ctx is done, one at a time.
func (g *accessGrants) writeStatuses(ctx context.Context) {
	for gap := patchGap; ; {
		name, failing := g.toWrite()
		if !failing {
			g.writing(nil)
		}
		switch {
		case name == "":
			sleep(ctx, grantTick)
		case g.writeStatus(ctx, name) == nil:
			gap = patchGap
			sleep(ctx, gap)
		default:
			gap = min(2*gap, patchGapMax)
			sleep(ctx, gap)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// toWrite names the AccessGrant whose status is behind: the one that failed least
// often, and of those the longest due. It reports whether any fails.
func (g *accessGrants) toWrite() (next string, failing bool) {
	now := wallClock()
	g.mu.Lock()
	defer g.mu.Unlock()
	var first *heldGrant
	for name, h := range g.held {
		if h.phase == "" || h.failed == 0 && now.Before(h.due) || !h.behind(g.client.Pod()) {
			continue
		}
		failing = failing || h.failed > 0
		if now.Before(h.due) {
			continue
		}
		if first == nil || cmp.Or(cmp.Compare(h.failed, first.failed), h.due.Compare(first.due)) < 0 {
			next, first = name, h
		}
	}
	return next, failing
}

// postpone has a status that could not be written wait, so that it holds up no
// other.
func (g *accessGrants) postpone(name, uid string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	h := g.held[name]
	if h == nil || h.uid != uid {
		return
	}
	wait := min(grantRetry<<min(h.failed, 10), grantRetryMax)
	h.failed++
	h.due = wallClock().Add(wait/2 + rand.N(wait))
}

func (g *accessGrants) writeStatus(ctx context.Context, name string) error {
	pod := g.client.Pod()
	g.mu.Lock()
	h := g.held[name]
	if h == nil {
		g.mu.Unlock()
		return nil
	}
	uid, entry := h.uid, h.entry(pod)
	g.mu.Unlock()
	manager := "zt-daemon/" + pod[max(0, len(pod)-maxManager):] // a pod's name differs at its end
	err := g.client.ApplyStatus(ctx, accessGrantResource, name, uid, manager, grantStatus{Phase: entry.Phase, Nodes: []grantEntry{entry}})
	switch {
	case errors.Is(err, kube.ErrNotFound), errors.Is(err, kube.ErrConflict): // deleted, or replaced by another: the watch tells
	case err != nil:
		if ctx.Err() == nil {
			g.postpone(name, uid)
			g.writing(err)
		}
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if h := g.held[name]; h != nil && h.uid == uid {
		h.written, h.phaseAt, h.failed = entry, entry.Phase, 0
		h.due = wallClock()
		if entry.LastUsed != "" && h.phase == entry.Phase { // the first use is told at once, as is what moved on meanwhile
			h.due = h.due.Add(grantUseInterval)
		}
	}
	return nil
}

var accessGrantsDesc = prometheus.NewDesc("zt_daemon_access_grants", "AccessGrants that are not over, by phase.", []string{"phase"}, nil)

// Describe and Collect make a prometheus.Collector.
func (g *accessGrants) Describe(ch chan<- *prometheus.Desc) { ch <- accessGrantsDesc }

func (g *accessGrants) Collect(ch chan<- prometheus.Metric) {
	count := map[string]int{}
	g.mu.Lock()
	for _, h := range g.held {
		count[h.phase]++
	}
	g.mu.Unlock()
	for _, phase := range []string{grantPending, grantActive, grantInvalid} {
		ch <- prometheus.MustNewConstMetric(accessGrantsDesc, prometheus.GaugeValue, float64(count[phase]), phase)
	}
}

// grantee is whom an AccessGrant is for, in a message.
func grantee(a auth.AccessGrant) string {
	if a.Group != "" {
		return "group " + printable(a.Group)
	}
	return "subject " + printable(a.Subject)
}

// grantEvent is what people read of a phase that began. All nodes see the same:
// one of them records it.
func grantEvent(name string, h *heldGrant) (kube.Event, bool) {
	e := kube.Event{Shared: fmt.Sprintf("%s %d %s", h.uid, h.generation, h.phase)}
	end := h.grant.NotAfter.UTC().Format(time.RFC3339)
	switch h.phase {
	case grantActive:
		e.Reason = "AccessGranted"
		e.Message = fmt.Sprintf("AccessGrant %s admits %s until %s: %s", printable(name), grantee(h.grant), end, h.grant.Reason)
	case grantExpired:
		e.Reason = "AccessExpired"
		e.Message = fmt.Sprintf("AccessGrant %s of %s ended at %s", printable(name), grantee(h.grant), end)
	case grantInvalid:
		e.Reason, e.Warning = "AccessGrantInvalid", true
		e.Message = fmt.Sprintf("AccessGrant %s admits nobody: %s", printable(name), h.message)
	default:
		return e, false
	}
	return e, true
}
