//go:build !linux

package daemon

import "net"

// unsent is 0: other systems do not tell in one way.
func unsent(*net.TCPConn) int { return 0 }
