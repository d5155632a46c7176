package netstack

import (
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// A budget shares the bytes that TCP may buffer, on both sides of the stack,
// among the flows that move data. One flow alone may fill a long fat path; with
// many, the sum stays what the process can afford. A flow that is quiet has
// nothing in its buffers and takes no share.
//
// gVisor grows both buffers of a flow as the path fills them and never shrinks
// them, so each flow is held to the share of the moment as it reads and writes. A
// smaller receive buffer takes back no window that was advertised.
type budget struct {
	share atomic.Int64 // bytes, for each buffer of a flow
	flows atomic.Int64 // busy ones, at least one

	mu     sync.Mutex // guards busy
	busy   map[*Conn]time.Time
	pruned time.Time
}

const (
	// budgetBytes is what all busy flows of a device may buffer in one direction:
	// eight of them have 2 MiB each.
	budgetBytes = 16 << 20
	// shareMax is what one flow may have: 6 Gbit/s at 20 ms. The window scale of
	// every flow allows for it.
	shareMax = bufferMax
	// shareMin keeps a flow useful among a hundred busy ones.
	shareMin = 256 << 10
	// burstBytes is what all busy flows may have under way on the shortest path:
	// sockets of relays and peers hold a few MiB, and what a sender sees of a full
	// one is loss. It is more than pathRate times the millisecond in which gVisor
	// tells round trips, so that both ends of a path allow themselves the same.
	burstBytes = 2 << 20
	// pathRate is more than a device brings to any path, in bytes a second: what
	// its flows can have under way follows from their round trips.
	pathRate = 750 << 20
	// busyBytes is how much a flow moves before it counts as busy, and again
	// before it is looked at next: an exec or a watch never does.
	busyBytes = 128 << 10
	// busyLife is how long it counts after that.
	busyLife = 2 * time.Second
)

func newBudget() *budget {
	b := &budget{busy: make(map[*Conn]time.Time)}
	b.divideLocked()
	return b
}

// moved notes that c has moved busyBytes.
func (b *budget) moved(c *Conn) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.closed.Load() { // gone was called, or waits for the lock
		return
	}
	b.busy[c] = now
	if now.Sub(b.pruned) > busyLife {
		b.pruned = now
		for c, last := range b.busy {
			if now.Sub(last) > busyLife {
				delete(b.busy, c)
			}
		}
	}
	b.divideLocked()
}

// gone forgets a flow that ended.
func (b *budget) gone(c *Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.busy[c]; ok {
		delete(b.busy, c)
		b.divideLocked()
	}
}

func (b *budget) divideLocked() {
	n := int64(max(1, len(b.busy)))
	b.share.Store(min(shareMax, max(shareMin, budgetBytes/n)))
	b.flows.Store(n)
}

// holdReceive holds a flow's receive buffer to its share; after a read.
func (b *budget) holdReceive(ep tcpip.Endpoint, read int) {
	share, o := b.share.Load(), ep.SocketOptions()
	if o.GetReceiveBufferSize() < share {
		ep.ModerateRecvBuf(read)
	}
	if o.GetReceiveBufferSize() > share {
		o.SetReceiveBufferSize(share, false)
	}
}

// holdSend holds a flow's send buffer to its share, and to what can be under way
// in a round trip; before a write. gVisor would let it grow with the congestion
// window, which grows until something is lost.
func (b *budget) holdSend(ep tcpip.Endpoint, rtt time.Duration) {
	underway := max(burstBytes, int64(rtt.Seconds()*pathRate)) / b.flows.Load()
	most := min(b.share.Load(), max(shareMin, underway))
	if o := ep.SocketOptions(); o.GetSendBufferSize() > most {
		o.SetSendBufferSize(most, false)
	}
}

// roundTrip is a flow's smoothed round trip; 0: not measured yet.
func roundTrip(ep tcpip.Endpoint) time.Duration {
	var info tcpip.TCPInfoOption
	if ep.GetSockOpt(&info) != nil {
		return 0
	}
	return info.RTT
}
