package daemon

import (
	"errors"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// The reasons why the transport drops a packet.
const (
	dropSource    = iota // not from the address of a session's relay
	dropChannel          // not a channel of that session
	dropMalformed        // neither WireGuard's nor a bind message, or too long
	dropBindTag          // a bind message that does not authenticate
	dropBindQueue        // a bind message while earlier ones wait
	dropNoPath           // to a peer that no session has a channel for
	dropSend             // refused by the system
	dropReasons
)

var dropNames = [dropReasons]string{
	dropSource: "unknown_source", dropChannel: "unknown_channel", dropMalformed: "malformed",
	dropBindTag: "bad_bind_tag", dropBindQueue: "bind_queue_full", dropNoPath: "no_path", dropSend: "send_error",
}

// transportMetrics are the counters of a Transport and of its sessions.
type transportMetrics struct {
	dropped  dropCounters
	sessions prometheus.Gauge
	bound    prometheus.Gauge
	edges    prometheus.Gauge
	attempts *prometheus.CounterVec
}

func newTransportMetrics(reg prometheus.Registerer) (*transportMetrics, error) {
	m := &transportMetrics{
		sessions: prometheus.NewGauge(prometheus.GaugeOpts{Name: "zt_daemon_sessions", Help: "Sessions with relays that are admitted."}),
		bound:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "zt_daemon_bound_sessions", Help: "Sessions whose UDP address is bound."}),
		edges:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "zt_daemon_edges", Help: "Edges that are held."}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "zt_daemon_connects_total", Help: "Attempts to open a session, by result.",
		}, []string{"result"}),
	}
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{&m.dropped, m.sessions, m.bound, m.edges, m.attempts} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

// dropCounters counts dropped packets by reason: one atomic add on the packet path.
type dropCounters [dropReasons]atomic.Uint64

var dropDesc = prometheus.NewDesc("zt_daemon_dropped_packets_total",
	"Packets between this participant and its relays that were dropped, by reason.", []string{"reason"}, nil)

func (d *dropCounters) add(reason, n int) { d[reason].Add(uint64(n)) }

// Describe and Collect make a prometheus.Collector.
func (d *dropCounters) Describe(ch chan<- *prometheus.Desc) { ch <- dropDesc }

func (d *dropCounters) Collect(ch chan<- prometheus.Metric) {
	for i, name := range dropNames {
		ch <- prometheus.MustNewConstMetric(dropDesc, prometheus.CounterValue, float64(d[i].Load()), name)
	}
}

func (d *dropCounters) byReason() map[string]uint64 {
	all := make(map[string]uint64, dropReasons)
	for i, name := range dropNames {
		all[name] = d[i].Load()
	}
	return all
}
