package main

import (
	"testing"
	"time"

	"github.com/zt-daemon/zt/relay"
)

func TestNodeText(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		node relay.Node
		want string
	}{
		"well": {relay.Node{Version: "v1.2.3", Here: true, Seen: now.Add(-4 * time.Second), Policy: "in_force", Upstream: "up"},
			"v1.2.3, policy in force, API server up, seen 4s ago"},
		"broken": {relay.Node{Version: "v1.2.3", Here: true, Seen: now, Policy: "broken", Why: "line 3", Upstream: "down"},
			"v1.2.3, policy broken, API server down, seen 0s ago: line 3"},
		"stops": {relay.Node{Version: "v1", Here: true, Seen: now, Draining: true}, "v1, about to stop, seen 0s ago"},
		"gone":  {relay.Node{Version: "v1", Seen: now.Add(-time.Hour)}, "v1, gone, seen 1h0m0s ago"},
		"older": {relay.Node{Here: true, Seen: now}, "says nothing of itself, seen 0s ago"},
	} {
		if got := nodeText(c.node, now); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}
