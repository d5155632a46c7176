//go:build linux

// Command measure measures a relay with ten thousand participants and prints
// what it found beside the bars. It needs root, for network namespaces.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/zt-daemon/zt/test/lab"
	"github.com/zt-daemon/zt/test/swarm"
)

// Bars of the run with ten thousand sessions.
const (
	barRSS     = 400 << 10 // KiB
	barCore    = 0.05
	barBusy    = 5 * time.Second
	barAll     = time.Minute
	barP50     = 50 * time.Microsecond  // what churn may add
	barP99     = 250 * time.Microsecond // what churn may add
	churnShare = 0.01                   // a minute
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "measure: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	sessions := flag.Int("sessions", 10_000, "participants, nodes included")
	clusters := flag.Int("clusters", 1000, "clusters, of three nodes each")
	settle := flag.Duration("settle", 30*time.Second, "how long to wait before that, for what joining left behind")
	idle := flag.Duration("idle", time.Minute, "how long idle sessions are measured")
	echo := flag.Duration("echo", 20*time.Second, "how long echoes are measured, each of four times")
	program := flag.String("relay", "", "the zt-relay to measure (default: built from here)")
	flag.Parse()
	if *clusters < 1 || *sessions <= 4**clusters {
		return fmt.Errorf("%d sessions are too few for %d clusters of three nodes", *sessions, *clusters)
	}
	dir, err := os.MkdirTemp("", "zt-swarm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := lab.New(lab.Config{Dir: dir, Say: func(d time.Duration, text string) { fmt.Fprintf(os.Stderr, "%6.1fs %s\n", d.Seconds(), text) }})
	if err != nil {
		return err
	}
	defer l.Close()
	if *program == "" {
		module, err := lab.ModuleDir(ctx)
		if err != nil {
			return err
		}
		bin, err := l.BuildPrograms(ctx, module)
		if err != nil {
			return err
		}
		*program = filepath.Join(bin, "zt-relay")
	}
	n, err := l.NewNetwork(ctx)
	if err != nil {
		return err
	}
	flows := min(300, *clusters)
	s, err := swarm.New(ctx, swarm.Config{
		Lab: l, Network: n, Program: *program, Clusters: *clusters, Nodes: 3, Laptops: *sessions - 3**clusters, Flows: flows, Probes: min(8, flows),
	})
	if err != nil {
		return err
	}
	defer s.Close()
	l.Say("the relay has %d clusters' records; %d sessions join", *clusters, *sessions)

	t := &table{}
	began := time.Now()
	stolen, err := swarm.Stolen()
	if err != nil {
		return err
	}
	joined, err := s.During(func() error { return s.Join(ctx) })
	if err != nil {
		return err
	}
	t.row("sessions joined", fmt.Sprintf("%d of %d", s.Here(), *sessions), fmt.Sprint(*sessions), s.Here() == *sessions)
	t.note("joining: sessions a second, with everything on %d cores", fmt.Sprintf("%.0f", float64(*sessions)/joined.Wall.Seconds()), runtime.NumCPU())
	t.note("relay CPU, a session's joining", perSession(joined.CPU, *sessions))
	l.Say("all are here; %s for what joining left behind, then idle for %s", *settle, *idle)
	if _, err := s.Idle(ctx, *settle); err != nil {
		return err
	}
	u, err := s.Idle(ctx, *idle)
	if err != nil {
		return err
	}
	t.row("RSS, idle", fmt.Sprintf("%.0f MiB", float64(u.RSS)/1024), fmt.Sprintf("≤ %d MiB", barRSS>>10), u.RSS <= barRSS)
	t.note("RSS, a session", fmt.Sprintf("%.1f KiB", float64(u.RSS)/float64(*sessions)))
	t.note("RSS, peak while joining", fmt.Sprintf("%.0f MiB", float64(u.Peak)/1024))
	t.row("CPU, idle", fmt.Sprintf("%.1f %% of a core", 100*u.Core()), fmt.Sprintf("≤ %.0f %%", 100*barCore), u.Core() <= barCore)
	t.note("CPU, a session and minute", fmt.Sprintf("%.0f µs", float64(u.CPU.Microseconds())/float64(*sessions)/u.Wall.Minutes()))

	var quiet, churned []swarm.Echo
	for range 2 {
		l.Say("echoes, quiet and with churn, %s each", *echo)
		e, _, err := s.Echoes(ctx, *echo, 0)
		if err != nil {
			return err
		}
		quiet = append(quiet, e)
		e, _, err = s.Echoes(ctx, *echo, churnShare)
		if err != nil {
			return err
		}
		churned = append(churned, e)
	}
	for _, x := range []struct {
		name string
		of   func(swarm.Echo) time.Duration
		bar  time.Duration
	}{
		{"p50", func(e swarm.Echo) time.Duration { return e.P50 }, barP50},
		{"p99", func(e swarm.Echo) time.Duration { return e.P99 }, barP99},
	} {
		q, c := (x.of(quiet[0])+x.of(quiet[1]))/2, (x.of(churned[0])+x.of(churned[1]))/2
		t.note("echo "+x.name+", quiet", micro(q))
		t.row("echo "+x.name+", 1 % churn a minute", micro(c), "≤ "+micro(q+x.bar), c <= q+x.bar)
	}
	t.note("echo max, quiet; with churn", micro(max(quiet[0].Max, quiet[1].Max))+"; "+micro(max(churned[0].Max, churned[1].Max)))
	lost := quiet[0].Sent + quiet[1].Sent + churned[0].Sent + churned[1].Sent - quiet[0].Came - quiet[1].Came - churned[0].Came - churned[1].Came
	t.row("echoes lost", fmt.Sprint(lost), "0", lost == 0)
	if refusals := s.Refusals(); len(refusals) > 0 {
		t.note("attempts that failed so far", fmt.Sprint(refusals))
	}

	l.Say("kill -9 of the relay, and its start with the same state")
	r, err := s.Restart(ctx, 2*barAll)
	if err != nil {
		return err
	}
	t.note("restart: listening again after", r.Serving.Round(time.Millisecond).String())
	t.row(fmt.Sprintf("restart: %d sessions with open flows back", r.Busy.N), round(r.Busy.Max), "≤ "+barBusy.String(), r.Busy.N == 2*flows && r.Busy.Max <= barBusy)
	t.row(fmt.Sprintf("restart: %d sessions back", r.Busy.N+r.Idle.N), round(max(r.Idle.Max, r.Busy.Max)), "≤ "+barAll.String(), r.Missing == 0 && max(r.Idle.Max, r.Busy.Max) <= barAll)
	t.note("restart: half of busy, of idle", round(r.Busy.P50)+", "+round(r.Idle.P50))
	if refusals := s.Refusals(); len(refusals) > 0 {
		t.note("restart: attempts that failed", fmt.Sprint(refusals))
	}
	after, err := s.Idle(ctx, time.Second)
	if err != nil {
		return err
	}
	t.note("restart: RSS, peak", fmt.Sprintf("%.0f MiB", float64(after.Peak)/1024))
	now, err := swarm.Stolen()
	if err != nil {
		return err
	}
	t.note("processor time that this machine's host gave to others", fmt.Sprintf("%.0f %%", 100*(now-stolen).Seconds()/time.Since(began).Seconds()/float64(runtime.NumCPU())))
	return t.print()
}

func perSession(d time.Duration, n int) string {
	return fmt.Sprintf("%d µs", d.Microseconds()/int64(n))
}

func micro(d time.Duration) string { return fmt.Sprintf("%d µs", d.Microseconds()) }

func round(d time.Duration) string { return d.Round(10 * time.Millisecond).String() }

// table is what is printed at the end.
type table struct {
	rows   [][4]string
	missed int
}

func (t *table) row(what, got, bar string, met bool) {
	verdict := "met"
	if !met {
		verdict = "NOT MET"
		t.missed++
	}
	t.rows = append(t.rows, [4]string{what, got, bar, verdict})
}

func (t *table) note(what, got string, args ...any) {
	t.rows = append(t.rows, [4]string{fmt.Sprintf(what, args...), got})
}

func (t *table) print() error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tmeasured\tbar\t")
	for _, r := range t.rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r[0], r[1], r[2], r[3])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if t.missed > 0 {
		return fmt.Errorf("%d bars are not met", t.missed)
	}
	return nil
}
