package daemon

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/zt-daemon/zt/netstack"
)

const (
	// apiServerPort is where a node listens on its overlay address.
	apiServerPort = 443
	// upstreamTimeout ends an attempt to reach the API server, which is near.
	upstreamTimeout = 5 * time.Second
	// firstByteTimeout ends a stream on which a laptop says nothing.
	firstByteTimeout = time.Minute
)

// serveFlows carries TCP streams from laptops to the API server until ln
// closes. No TLS ends here, and no credential is added.
func (n *Node) serveFlows(ctx context.Context, ln *netstack.Listener) error {
	defer n.flows.Wait()
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		} else if err != nil {
			return err
		}
		n.flows.Go(func() { n.serveFlow(ctx, c.(*netstack.Conn)) })
	}
}

// serveFlow carries one stream. Who is behind it follows from its source
// address, which WireGuard allows to one key only.
func (n *Node) serveFlow(ctx context.Context, c *netstack.Conn) {
	line := AuditEvent{Port: apiServerPort}
	refuse := func(reason string) {
		n.metrics.refused.WithLabelValues(reason).Inc()
		line.Event, line.Reason = "flow_refused", reason
		n.audit.write(line)
		c.Reset()
	}
	laptop, id, edge, ok := n.admission.may(c.RemoteAddrPort().Addr(), apiServerPort)
	if !ok {
		refuse("not_admitted")
		return
	}
	line = line.who(id).on(edge)
	f := &localFlow{overlay: c, since: time.Now()}
	if !n.admission.begin(laptop, f) {
		refuse("too_many_flows")
		return
	}
	defer n.admission.end(laptop, f)
	// TLS clients speak first. A stream that a laptop keeps ready must not become
	// a connection of the API server that says nothing.
	first := spliceBuffers.Get().(*[spliceBufferBytes]byte)
	defer spliceBuffers.Put(first)
	c.SetReadDeadline(time.Now().Add(firstByteTimeout))
	size, err := c.Read(first[:])
	if err != nil {
		c.Reset()
		return
	}
	c.SetReadDeadline(time.Time{})
	dialer := net.Dialer{Timeout: upstreamTimeout}
	upstream, err := dialer.DialContext(ctx, "tcp", n.files.settings.Upstream)
	if err == nil {
		if !f.attach(upstream) { // cut meanwhile
			return
		}
		_, err = upstream.Write(first[:size])
	}
	if err != nil {
		f.abort()
		n.log.Warn("API server is unreachable", "endpoint", n.files.settings.Upstream, "err", err)
		refuse("upstream_unreachable")
		return
	}
	n.admission.get(laptop, func(l *admittedLaptop) { line.AccessGrant = l.decision.AccessGrant })
	if line.AccessGrant != "" {
		n.grants.used(line.AccessGrant, id.String(), time.Now())
	}
	line.Event = "flow_began"
	n.audit.write(line)
	f.received.Add(uint64(size))
	f.splice(c)
	line.Event = "flow_ended"
	line.In, line.Out = int64(f.received.Load()), int64(f.sent.Load())
	line.Seconds = time.Since(f.since).Seconds()
	if f.wasAborted() {
		line.Reason = "reset"
	}
	n.audit.write(line)
}

// attach gives a flow its local side; false if the flow was aborted before, and
// then local is reset.
func (f *localFlow) attach(local net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.aborted {
		resetConn(local)
		return false
	}
	f.local = local
	return true
}

// wasAborted reports whether the flow ended by a reset.
func (f *localFlow) wasAborted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.aborted
}
