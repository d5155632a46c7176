//go:build linux

package swarm

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"github.com/zt-daemon/zt/relay/wire"
)

const (
	echoEvery  = 20 * time.Millisecond // a probe
	echoSize   = 176                   // bytes: a small request in a WireGuard packet
	echoOffset = 16                    // of the time in it; before it is WireGuard's header
)

// Echo is how long packets took from a laptop over an edge to a node and back.
type Echo struct {
	Sent, Came    int
	P50, P99, Max time.Duration
}

// echoes sends packets over the probes' edges until ctx is done.
func (s *Swarm) echoes(ctx context.Context) Echo {
	var (
		mu    sync.Mutex // guards times
		times []time.Duration
	)
	began, sent := time.Now(), 0
	probes := s.flows[:s.cfg.Probes]
	for _, f := range probes {
		node := f.node
		node.setEcho(func(b []byte, channel uint32) {
			wire.PutChannel(b, channel) // of the node's side, as it came
			node.sendLocked(b)
		})
		f.laptop.setEcho(func(b []byte, _ uint32) {
			at := time.Duration(binary.BigEndian.Uint64(b[echoOffset:]))
			mu.Lock()
			defer mu.Unlock()
			times = append(times, time.Since(began)-at)
		})
	}
	ticker := time.NewTicker(echoEvery / time.Duration(len(probes)))
	for i := 0; ctx.Err() == nil; i++ {
		select {
		case <-ctx.Done():
			continue
		case <-ticker.C:
		}
		laptop := probes[i%len(probes)].laptop
		b := make([]byte, echoSize)
		b[0] = wire.PacketTransport
		laptop.mu.Lock()
		for _, e := range laptop.edges {
			wire.PutChannel(b, e.channel)
		}
		binary.BigEndian.PutUint64(b[echoOffset:], uint64(time.Since(began)))
		laptop.sendLocked(b)
		laptop.mu.Unlock()
		sent++
	}
	ticker.Stop()
	time.Sleep(100 * time.Millisecond) // what is still under way
	for _, f := range probes {
		f.node.setEcho(nil)
		f.laptop.setEcho(nil)
	}
	mu.Lock()
	defer mu.Unlock()
	e := Echo{Sent: sent, Came: len(times)}
	if len(times) > 0 {
		slices.Sort(times)
		e.P50, e.P99, e.Max = times[len(times)/2], times[len(times)*99/100], times[len(times)-1]
	}
	return e
}

func (m *member) setEcho(f func([]byte, uint32)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.echo = f
}
