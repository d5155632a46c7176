//go:build linux

package swarm

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/zt-daemon/zt/test/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestSwarm has two hundred members join on loopback, kills the relay and waits
// until all are back, then changes some of them.
func TestSwarm(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	l, err := lab.New(lab.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	module, err := lab.ModuleDir(ctx)
	if err != nil {
		t.Fatal(err)
	}
	bin, err := l.BuildPrograms(ctx, module)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(ctx, Config{Lab: l, Program: filepath.Join(bin, "zt-relay"), Clusters: 20, Nodes: 3, Laptops: 140, Flows: 10, Probes: 2, Spread: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Join(ctx); err != nil {
		t.Fatal(err)
	}
	if n := s.Here(); n != 200 {
		t.Fatalf("%d members are here, want 200 (refusals: %v)", n, s.Refusals())
	}
	echoes := func(churn float64) {
		t.Helper()
		e, came, err := s.Echoes(ctx, 2*time.Second, churn)
		if err != nil {
			t.Fatal(err)
		}
		if e.Sent == 0 || e.Came < e.Sent*9/10 || churn > 0 && came == 0 {
			t.Errorf("%d of %d packets came back while %d members were new", e.Came, e.Sent, came)
		}
	}
	echoes(0)
	r, err := s.Restart(ctx, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("back: %+v, refusals: %v", r, s.Refusals())
	if r.Missing > 0 || r.Busy.N != 20 || r.Idle.N != 180 || r.Busy.Max > 5*time.Second {
		t.Errorf("after a restart: %+v, want all 200 back within a minute, 20 of them, busy, within 5 s", r)
	}
	echoes(0.3)
}
