package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
)

// OpenStream opens a stream to a cluster's API server as a connection to the
// laptop's listener does, and returns once the other side's SYN-ACK is here.
func (l *Laptop) OpenStream(ctx context.Context, cluster string) (io.Closer, error) {
	for _, m := range l.all() {
		if c := m.cluster(cluster); c != nil {
			return c.open(ctx)
		}
	}
	return nil, fmt.Errorf("no cluster %s", cluster)
}

// RaceEnabled says that the race detector slows everything down.
const RaceEnabled = raceEnabled

// DropSpare resets the stream that is kept ready for a cluster's next flow.
func (l *Laptop) DropSpare(cluster string) {
	for _, m := range l.all() {
		if c := m.cluster(cluster); c != nil {
			if conn := c.takeSpare(); conn != nil {
				conn.Reset()
			}
		}
	}
}

// Mute takes the node's UDP socket away; its sessions stay.
func (n *Node) Mute() { n.transport.Close() }

// Unsent is unsent.
func Unsent(c *net.TCPConn) int { return unsent(c) }
