package daemon

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon/kube"
	"github.com/zt-daemon/zt/relay/wire"
)

const (
	// healthTick is how often a node looks at what it needs.
	healthTick = time.Second
	// healthPatience is how long a relay or a watch may be away before that is a
	// trouble: restarts are ordinary.
	healthPatience = 10 * time.Second
)

// The states of a node's policy.
const (
	PolicyInForce = "in_force"
	PolicyBroken  = "broken" // what is there cannot be used; the rules before it are in force, or none
	PolicyAbsent  = "absent" // nothing is there, or it could not be read yet: everybody is refused
)

// NodeHealth is how a node is, for probes and for its relays.
type NodeHealth struct {
	Stopping bool
	Policy   string // a Policy… constant
	Why      string // why Policy is not PolicyInForce: one sentence
	Upstream error  // nil: the API server answers
	Relays   []SessionStatus
	Troubles []string // each a sentence with its fix
	Ready    bool     // people who are admitted can work
}

// Health says how the node is now.
func (n *Node) Health() NodeHealth {
	h := NodeHealth{Stopping: n.stopping.Load(), Policy: PolicyInForce, Upstream: n.probe.state()}
	state, fault := n.policy.current(), n.policy.fault()
	if missing := (*PolicyMissingError)(nil); state == nil && (fault == nil || errors.As(fault, &missing)) {
		h.Policy = PolicyAbsent
	} else if fault != nil {
		h.Policy = PolicyBroken
	}
	if fault != nil {
		h.Why = printable(fault.Error())
	}
	relay := false
	for _, s := range n.openSessions() {
		st := s.Status()
		relay = relay || st.Up && st.Path.Bound
		h.Relays = append(h.Relays, st)
	}
	for _, t := range n.troubles.all() {
		h.Troubles = append(h.Troubles, t.sentence())
	}
	h.Ready = !h.Stopping && relay && h.Upstream == nil && state != nil && n.canVerify(state)
	return h
}

// canVerify reports whether the keys of any issuer are known.
func (n *Node) canVerify(state *policyState) bool {
	for _, set := range state.verifier.KeySets() {
		if set.Keys > 0 {
			return true
		}
	}
	return false
}

// ServeReady answers a readiness probe: 200 while the node is of use, 503
// otherwise. The body says which part is not as it should be.
func (n *Node) ServeReady(w http.ResponseWriter, _ *http.Request) {
	h := n.Health()
	if !h.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	io.WriteString(w, h.String())
}

// String is one line for each part.
func (h NodeHealth) String() string {
	b := new(strings.Builder)
	state := "ready"
	switch {
	case h.Stopping:
		state = "not ready: the node stops"
	case !h.Ready:
		state = "not ready"
	}
	fmt.Fprintln(b, state)
	if len(h.Relays) == 0 {
		fmt.Fprintln(b, "relay: none is known yet")
	}
	for _, r := range h.Relays {
		how := "connected"
		switch {
		case !r.Up && r.Err != nil:
			how = printable(r.Err.Error())
		case !r.Up:
			how = "connecting"
		case !r.Path.Bound:
			how = "connected, but no UDP packet comes back"
		}
		fmt.Fprintf(b, "relay %s: %s\n", printable(r.Relay), how)
	}
	upstream := "answers"
	if h.Upstream != nil {
		upstream = printable(h.Upstream.Error())
	}
	fmt.Fprintf(b, "API server: %s\n", upstream)
	fmt.Fprintf(b, "policy: %s", h.Policy)
	if h.Why != "" {
		fmt.Fprintf(b, ": %s", h.Why)
	}
	fmt.Fprintln(b)
	for _, t := range h.Troubles {
		fmt.Fprintf(b, "warning: %s\n", t)
	}
	return b.String()
}

// openSessions are the sessions with the relays of the head.
func (n *Node) openSessions() []*Session {
	n.sessionsMu.Lock()
	defer n.sessionsMu.Unlock()
	return append([]*Session(nil), n.sessions...)
}

// watchHealth looks at what the node needs, and says what changed.
func (n *Node) watchHealth(ctx context.Context) {
	tick := time.NewTicker(healthTick)
	defer tick.Stop()
	relays, issuers := map[string]bool{}, map[string]bool{} // whose state was said once
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n.stopping.Load() {
			continue // what is lost now is given up
		}
		n.checkRelays(relays)
		n.checkIssuers(issuers)
	}
}

// RelaySilentError says that a relay is reached by TCP and not by UDP.
type RelaySilentError struct {
	Relay, Endpoint string
}

func (e *RelaySilentError) Error() string {
	return fmt.Sprintf("no UDP packet comes back from relay %s (%s): nobody can connect by way of it", e.Relay, e.Endpoint)
}

// Hint says what to do.
func (e *RelaySilentError) Hint() string {
	return "let UDP to that address and port through (NetworkPolicy, firewall)"
}

// ClockError says that this machine's clock and a relay's disagree.
type ClockError struct {
	Relay  string
	Offset time.Duration // the relay's clock less ours
	Err    error         // what the relay refused for it; may be nil
}

func (e *ClockError) Error() string {
	way := "behind"
	if e.Offset < 0 {
		way = "ahead of"
	}
	s := fmt.Sprintf("this machine's clock is %s %s that of relay %s", e.Offset.Abs().Round(time.Second), way, e.Relay)
	if e.Err != nil {
		s += fmt.Sprintf(", which refuses the node: %v", e.Err)
	}
	return s
}

// Unwrap returns the refusal.
func (e *ClockError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *ClockError) Hint() string { return "set the clock (NTP)" }

// checkRelays looks at each session. said holds the relays that were there once.
func (n *Node) checkRelays(said map[string]bool) {
	current := map[string]bool{}
	for _, s := range n.openSessions() {
		st := s.Status()
		relay := printable(st.Relay)
		what, clock := "relay "+relay, "clock of "+relay
		current[what] = true
		if st.Up && st.Clock.Abs() > clockTolerance {
			n.troubles.begin(clock, trouble{reason: "ClockOff", err: &ClockError{Relay: relay, Offset: st.Clock}})
		} else if st.Up {
			n.troubles.end(clock, "ClockAgrees", "the clock agrees with that of relay "+relay, false)
		}
		switch {
		case st.Up && st.Path.Bound:
			n.troubles.end(what, "RelayConnected", "connected to relay "+relay, !said[what])
			said[what] = true
		case st.Up:
			if since := st.Path.Since; time.Since(st.Since) > healthPatience && time.Since(since) > healthPatience {
				n.troubles.begin(what, trouble{reason: "RelaySilent", err: &RelaySilentError{relay, st.Path.Relay.String()}})
			}
		case isRefused(st.Err) && st.Clock.Abs() > clockTolerance:
			n.troubles.begin(what, trouble{reason: "ClockOff", err: &ClockError{Relay: relay, Offset: st.Clock, Err: st.Err}})
		case isRefused(st.Err):
			n.troubles.begin(what, trouble{reason: "RelayRefused", err: n.refusedBy(relay, st.Err), exact: true})
		case st.Err != nil && time.Since(st.Since) > healthPatience:
			n.troubles.begin(what, trouble{reason: "RelayUnreachable", err: st.Err})
		}
	}
	for what := range said {
		if !current[what] {
			n.troubles.forget(what)
			delete(said, what)
		}
	}
}

// NodeRefusedError is a relay's refusal of this node.
type NodeRefusedError struct {
	Relay, Cluster string
	Err            error
	fix            string
}

func (e *NodeRefusedError) Error() string {
	return fmt.Sprintf("relay %s refuses this node of cluster %s: %v", e.Relay, e.Cluster, e.Err)
}

// Unwrap returns the refusal.
func (e *NodeRefusedError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *NodeRefusedError) Hint() string { return e.fix }

func (n *Node) refusedBy(relay string, err error) error {
	e := &NodeRefusedError{Relay: relay, Cluster: n.files.settings.Cluster, Err: err}
	again := "run `zt-daemon cluster add " + e.Cluster + "` again, then restart the node"
	refused, _ := errors.AsType[*RefusedError](err)
	switch refused.Reason {
	case string(auth.ReasonUnknownCluster):
		e.fix = "the cluster was removed from the network, or `cluster` of " + NodeConfigFile + " is wrong: " + again
	case string(auth.ReasonClusterKey):
		e.fix = ClusterKeyFile + " is not the key of this cluster, or was replaced: " + again
	case wire.ReasonUnclaimed:
		e.fix = refused.Hint()
	case string(auth.ReasonClock), string(auth.ReasonExpired):
		e.fix = "compare the clocks of this machine and of the relay (NTP)"
	default:
		e.fix = refused.Hint()
	}
	return e
}

// IssuerError says that an issuer's keys cannot be fetched.
type IssuerError struct {
	Issuer string
	Keys   int // known from before
	Err    error
}

func (e *IssuerError) Error() string {
	consequence := "who logs in there is refused"
	if e.Keys > 0 {
		consequence = "those of before serve"
	}
	return fmt.Sprintf("the keys of issuer %s cannot be fetched, and %s: %v", e.Issuer, consequence, e.Err)
}

// Unwrap returns the cause.
func (e *IssuerError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *IssuerError) Hint() string {
	return "see `url` and `ca` of the issuer in the policy, and that the node reaches it over HTTPS (DNS, NetworkPolicy, proxy)"
}

// checkIssuers looks at the keys of the policy's issuers.
func (n *Node) checkIssuers(said map[string]bool) {
	current := map[string]bool{}
	if state := n.policy.current(); state != nil {
		for _, set := range state.verifier.KeySets() {
			what := "issuer " + set.Issuer
			current[what] = true
			said[what] = true
			if set.Err != nil {
				n.troubles.begin(what, trouble{reason: "IssuerUnreachable", err: &IssuerError{set.Issuer, set.Keys, set.Err}})
			} else if set.Keys > 0 {
				n.troubles.end(what, "IssuerAnswers", "the keys of issuer "+printable(set.Issuer)+" were fetched", false)
			}
		}
	}
	for what := range said {
		if !current[what] {
			n.troubles.forget(what)
			delete(said, what)
		}
	}
}

// headTrouble says why the network's head cannot be had, and what to mend.
func (n *Node) headTrouble(err error) trouble {
	const begin = "`relay` of " + NodeConfigFile
	t := trouble{reason: "RelayUnreachable", err: &headError{n.files.settings.Relay, err,
		begin + " is wrong, or the node does not reach it on TCP (DNS, NetworkPolicy, firewall)"}}
	if _, ok := errors.AsType[*WrongNetworkError](err); ok {
		t.reason = "WrongNetwork"
		t.err = &headError{n.files.settings.Relay, err,
			"`network` or `relay` of " + NodeConfigFile + " is wrong: compare them with the login line, or run `zt-daemon cluster add` again"}
	} else if !errors.Is(err, ErrUnreachable) {
		t.reason = "RelayRefused"
		t.err = &headError{n.files.settings.Relay, err, "see that " + begin + " names a relay of this network"}
	}
	return t
}

// headError is a head that a node cannot have.
type headError struct {
	relay string
	err   error
	fix   string
}

func (e *headError) Error() string {
	return fmt.Sprintf("no head of the network from relay %s: %v", e.relay, e.err)
}
func (e *headError) Unwrap() error { return e.err }
func (e *headError) Hint() string  { return e.fix }

// upstreamChanged is told when the API server goes or comes.
func (n *Node) upstreamChanged(err error) {
	n.tellRelays()
	if err != nil {
		n.metrics.upstreamUp.Set(0)
		n.troubles.begin("upstream", trouble{reason: "UpstreamDown", err: err})
		return
	}
	n.metrics.upstreamUp.Set(1)
	n.troubles.end("upstream", "UpstreamAnswers", "API server "+n.files.settings.Upstream+" answers", false)
}

// upstreamTrust is what the API server's certificate is held against: what the
// signed record says, as laptops do; before it is known, what the service account
// says; outside a pod nothing, for the probe sends no secret and believes nothing.
func (n *Node) upstreamTrust() (*x509.CertPool, string) {
	host, _, _ := net.SplitHostPort(n.files.settings.Upstream)
	if r := n.record.Load(); r != nil && !r.Removed {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(strings.Join(r.LiveCAs(wallClock()), "\n")))
		return roots, r.TLSName
	}
	if n.kube != nil {
		if roots, err := n.kube.Roots(); err == nil {
			return roots, host
		}
	}
	return nil, host
}

// isWatchRefused reports whether an API server refuses what a watch needs, and
// will refuse it again.
func isWatchRefused(err error) bool {
	return errors.Is(err, kube.ErrUnauthorized) || errors.Is(err, kube.ErrForbidden) || errors.Is(err, kube.ErrNotFound)
}

// watchTrouble makes the Health function of a watch: what is lost for a while,
// or refused, is a trouble.
func (n *Node) watchTrouble(what, reason, fine string) func(error) {
	var since time.Time
	return func(err error) {
		switch {
		case err == nil:
			since = time.Time{}
			n.troubles.end(what, fine, what+" is watched", false)
			return
		case since.IsZero():
			since = time.Now()
		}
		unseen, ok := errors.AsType[*AccessGrantsUnseenError](err)
		refused := isWatchRefused(err) || ok && unseen.Over
		if refused || time.Since(since) > healthPatience {
			n.troubles.begin(what, trouble{reason: reason, err: err, exact: refused})
		}
	}
}
