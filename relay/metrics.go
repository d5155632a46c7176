package relay

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/relay/wire"
)

// metrics are the relay's counters and gauges. Label values come from fixed
// tables.
type metrics struct {
	packets, bytes    prometheus.Counter
	dropped           [drops]prometheus.Counter
	bound, challenged prometheus.Counter
	admissions        *prometheus.CounterVec // kind
	refusals          *prometheus.CounterVec // what, reason
	ends              *prometheus.CounterVec // reason
	handshakes        *prometheus.CounterVec // result
	edges             *prometheus.CounterVec // event
	auditFailures     prometheus.Counter
	storeFailures     prometheus.Counter

	reasons map[string]bool // known values of the label reason
}

// gauges are read when somebody scrapes.
type gauges struct {
	sessions func(kind string) float64
	edges    func() float64
	halfOpen func() float64
}

func newMetrics(r prometheus.Registerer, g gauges) (*metrics, error) {
	m := &metrics{reasons: map[string]bool{}}
	var all []prometheus.Collector
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "zt_relay_" + name, Help: help})
		all = append(all, c)
		return c
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "zt_relay_" + name, Help: help}, labels)
		all = append(all, c)
		return c
	}
	m.packets = counter("forwarded_packets_total", "WireGuard messages forwarded.")
	m.bytes = counter("forwarded_bytes_total", "UDP payload forwarded.")
	dropped := vec("dropped_packets_total", "Datagrams that were not forwarded.", "reason")
	for d := range drops {
		m.dropped[d] = dropped.WithLabelValues(dropNames[d])
	}
	m.bound = counter("bind_bound_total", "Bind messages answered by Bound.")
	m.challenged = counter("bind_challenges_total", "Bind messages from a new address, answered by Challenge.")
	m.admissions = vec("admissions_total", "Grants admitted.", "kind")
	m.refusals = vec("refusals_total", "Requests refused.", "request", "reason")
	m.ends = vec("session_ends_total", "Admitted sessions that ended.", "reason")
	m.handshakes = vec("handshakes_total", "Session handshakes.", "result")
	m.edges = vec("edge_events_total", "What happened to edges.", "event")
	m.auditFailures = counter("audit_failures_total", "Audit lines that could not be written.")
	m.storeFailures = counter("state_write_failures_total", "Changes refused because state could not be written.")
	for _, kind := range []string{kindPerson, kindWorkload, kindNode} {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "zt_relay_sessions", Help: "Admitted sessions.", ConstLabels: prometheus.Labels{"kind": kind},
		}, func() float64 { return g.sessions(kind) }))
	}
	all = append(all,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "zt_relay_edges", Help: "Edges, open or coming back."}, g.edges),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "zt_relay_half_open_sessions", Help: "Sessions that presented no grant yet."}, g.halfOpen),
	)
	for _, r := range auth.Reasons() {
		m.reasons[string(r)] = true
	}
	for _, r := range []string{
		wire.ReasonUnknownCluster, wire.ReasonClusterOffline, wire.ReasonTimeout, wire.ReasonTooMany, wire.ReasonReplaced,
		wire.ReasonRevoked, wire.ReasonUnclaimed, wire.ReasonWrongCode, wire.ReasonWrongNetwork, wire.ReasonVersion,
		wire.ReasonMalformed, wire.ReasonNotHeld, wire.ReasonStale, wire.ReasonBadDocument, wire.ReasonNotAllowed,
		wire.ReasonStorage, wire.ReasonEnded, wire.ReasonIdle, wire.ReasonExpired, reasonGone, reasonClosing,
	} {
		m.reasons[r] = true
	}
	for _, c := range all {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// label is reason if it is one of ours, so that a stranger cannot add values.
func (m *metrics) label(reason string) string {
	if m.reasons[reason] {
		return reason
	}
	return string(auth.ReasonOther)
}

// count takes a batch of the packet path.
func (m *metrics) count(t *tally) {
	if t.packets > 0 {
		m.packets.Add(float64(t.packets))
		m.bytes.Add(float64(t.bytes))
	}
	if t.bound > 0 {
		m.bound.Add(float64(t.bound))
	}
	if t.challenged > 0 {
		m.challenged.Add(float64(t.challenged))
	}
	for d, n := range t.dropped {
		if n > 0 {
			m.dropped[d].Add(float64(n))
		}
	}
}
