package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/zt-daemon/zt/test/bench/load"
)

// pace is how long a round takes.
type pace struct {
	warm, window time.Duration // of flows
	echo, churn  time.Duration
	row          int  // connections in a row
	rowAll       bool // of every contender, not only our own
}

var (
	thorough = pace{warm: time.Second, window: 2500 * time.Millisecond, echo: 1500 * time.Millisecond, churn: 1500 * time.Millisecond, row: 10000, rowAll: true}
	quick    = pace{warm: 300 * time.Millisecond, window: 900 * time.Millisecond, echo: 500 * time.Millisecond, churn: 500 * time.Millisecond, row: 10000}
)

// flowTests are those whose rates are measured, and how many flows go each way.
var flowTests = []struct {
	name     string
	up, down int
}{{"S1", 1, 0}, {"R1", 0, 1}, {"S8", 8, 0}, {"R8", 0, 8}, {"B8", 8, 8}}

// settle is how long a scene rests before its idle memory is read.
const settle = 300 * time.Millisecond

// A round measures one contender once.
type round struct {
	contender
	pace
	scene   *scene
	row1    bool // the connections in a row belong to this round
	figures map[string]float64
	notes   []string
}

func (r *round) takes(test string) bool {
	return r.tests == nil || slices.Contains(r.tests, test)
}

func (r *round) run(ctx context.Context) error {
	pause(ctx, settle)
	if err := r.memory("rss_idle"); err != nil {
		return err
	}
	if err := r.ready(ctx, r.scene); err != nil {
		return err
	}
	for _, t := range flowTests {
		if !r.takes(t.name) {
			continue
		}
		if err := r.flows(ctx, t.name, t.up, t.down); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	if err := r.memory("rss_loaded"); err != nil {
		return err
	}
	if r.takes("E50") {
		times, err := r.scene.client.Echo(ctx, r.echo)
		if err != nil {
			return fmt.Errorf("E: %w", err)
		}
		r.figures["E50"], r.figures["E99"] = micro(times.P50), micro(times.P99)
	}
	if r.takes("C1") {
		if err := r.churns(ctx); err != nil {
			return err
		}
	}
	return r.checkPath(ctx, r.scene)
}

func micro(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// churns measures connections. One that fails is a figure, not an error.
func (r *round) churns(ctx context.Context) error {
	for _, workers := range []int{1, 16} {
		got, err := r.scene.client.Churn(ctx, load.Churn{Workers: workers, For: r.churn})
		if err != nil {
			return fmt.Errorf("C%d: %w", workers, err)
		}
		r.figures[fmt.Sprintf("C%d", workers)] = float64(got.N) / got.Elapsed.Seconds()
		if got.Stalls > 0 {
			r.note("C%d: %d stalls, the worst of %v: %s", workers, got.Stalls, got.Worst.Round(time.Millisecond), got.Fault)
		}
	}
	if !r.row1 {
		return nil
	}
	got, err := r.scene.client.Churn(ctx, load.Churn{Workers: 1, Count: r.row})
	if err != nil {
		return fmt.Errorf("C%d: %w", r.row, err)
	}
	r.figures["C10000_worst"] = micro(got.Worst) / 1000
	r.figures["C10000_stalls"] = float64(got.Stalls)
	if got.N < r.row || got.Stalls > 0 {
		r.note("C%d: %d made, %d stalls, the worst of %v: %s", r.row, got.N, got.Stalls, got.Worst.Round(time.Millisecond), got.Fault)
	}
	return nil
}

func (r *round) note(format string, args ...any) {
	r.notes = append(r.notes, r.name+": "+fmt.Sprintf(format, args...))
}

// memory reads what client and node, relay, hold: of the two participants the
// one that holds more counts.
func (r *round) memory(figure string) error {
	for _, p := range r.scene.processes {
		now, anonymous, peak, err := memory(p.pid)
		if err != nil {
			return err
		}
		switch p.place {
		case atClient, atNode:
			r.figures[figure] = max(r.figures[figure], now)
			r.figures[figure+"_anon"] = max(r.figures[figure+"_anon"], anonymous)
			if figure == "rss_loaded" {
				r.figures["rss_peak"] = max(r.figures["rss_peak"], peak)
			}
		case atRelay:
			r.figures["relay_"+figure] += now
		}
	}
	return nil
}

// pause waits, but not for an interrupted run.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// A reading is what was received and used up to a moment.
type reading struct {
	up, down load.Sample
	cpu      map[place]float64 // seconds
}

func (r *round) read(ctx context.Context) (x reading, err error) {
	if x.up, err = r.scene.node.Sample(ctx); err != nil {
		return x, err
	}
	if x.down, err = r.scene.client.Sample(ctx); err != nil {
		return x, err
	}
	x.cpu = make(map[place]float64)
	for _, p := range r.scene.processes {
		s, err := cpuSeconds(p.pid)
		if err != nil {
			return x, err
		}
		x.cpu[p.place] += s
	}
	return x, nil
}

// flows measures rates, at the receivers and by their clocks.
func (r *round) flows(ctx context.Context, test string, up, down int) error {
	var before, after reading
	err := r.scene.client.Start(ctx, load.Flows{Up: up, Down: down})
	if err == nil && r.custom && down > 0 {
		err = r.scene.node.Start(ctx, load.Flows{Up: down})
	}
	if err == nil {
		pause(ctx, r.warm)
		before, err = r.read(ctx)
	}
	if err == nil {
		pause(ctx, r.window)
		after, err = r.read(ctx)
	}
	if e := r.scene.client.Stop(ctx); err == nil {
		err = e
	}
	if e := r.scene.node.Stop(ctx); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err := r.drained(ctx); err != nil {
		return err
	}
	return r.account(test, up, down, before, after)
}

// drained waits until the node has seen the end of every flow.
func (r *round) drained(ctx context.Context) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		n, err := r.scene.node.Serving(ctx)
		if err != nil || n == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d flows have not ended", n)
		}
	}
}

func (r *round) account(test string, up, down int, before, after reading) error {
	upBytes, downBytes := float64(after.up.Bytes-before.up.Bytes), float64(after.down.Bytes-before.down.Bytes)
	upRate := upBytes * 8e-9 / (after.up.At - before.up.At).Seconds()
	downRate := downBytes * 8e-9 / (after.down.At - before.down.At).Seconds()
	if up > 0 && upBytes == 0 || down > 0 && downBytes == 0 {
		return errors.New("nothing was received")
	}
	total := 0.0
	if up > 0 {
		r.figures[test] += upRate
		total += upBytes
	}
	if down > 0 {
		r.figures[test] += downRate
		total += downBytes
	}
	if up > 0 && down > 0 {
		r.figures[test+"_up"], r.figures[test+"_down"] = upRate, downRate
	}
	if p := after.up.Packets - before.up.Packets; p > 0 {
		r.figures[test+"_pps"] = float64(p) / (after.up.At - before.up.At).Seconds()
	}
	sum := 0.0
	for at, s := range after.cpu {
		used := s - before.cpu[at]
		sum += used
		switch test {
		case "S1":
			r.figures[string(at)+"_cpu_per_gb"] = used / total * 1e9
		case "B8":
			r.figures["B8_"+string(at)+"_cpu_per_gb"] = used / total * 1e9
		}
		if at == atRelay && r.relayed && used <= 0 {
			return errors.New("the relay did not work: packets found another way")
		}
	}
	if _, ok := after.cpu[atRelay]; r.relayed && !ok {
		return errors.New("no relay is counted")
	}
	switch test {
	case "S1":
		r.figures["cpu_per_gb"] = sum / total * 1e9
	case "B8":
		r.figures["B8_cpu_per_gb"] = sum / total * 1e9
	}
	return nil
}
