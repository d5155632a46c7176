//go:build linux

package swarm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const clockTicks = 100 // a second, of /proc/PID/stat (USER_HZ, on every architecture of Linux that Go has)

// Usage is what the relay's process took, over Wall.
type Usage struct {
	Wall, CPU time.Duration
	RSS, Peak int // KiB, at the end
}

// Core is the share of one core.
func (u Usage) Core() float64 { return u.CPU.Seconds() / u.Wall.Seconds() }

func (s *Swarm) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.relay.Process.PID()))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // from the third on
	var ticks int
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, fmt.Errorf("/proc/PID/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / clockTicks, nil
}

// Stolen is how much of this machine's processor time others on the same host
// have had since it started: figures taken while it grows are too high.
func Stolen() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(first)
	if len(fields) < 9 {
		return 0, fmt.Errorf("/proc/stat begins with %q", first)
	}
	ticks, err := strconv.Atoi(fields[8])
	return time.Duration(ticks) * time.Second / clockTicks, err
}

func (s *Swarm) memory() (rss, peak int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.relay.Process.PID()))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		for name, at := range map[string]*int{"VmRSS:": &rss, "VmHWM:": &peak} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				if *at, err = strconv.Atoi(strings.Fields(rest)[0]); err != nil {
					return 0, 0, fmt.Errorf("/proc/PID/status: %w", err)
				}
			}
		}
	}
	return rss, peak, nil
}

// During says what the relay took while f ran.
func (s *Swarm) During(f func() error) (Usage, error) {
	began := time.Now()
	before, err := s.cpu()
	if err != nil {
		return Usage{}, err
	}
	if err := f(); err != nil {
		return Usage{}, err
	}
	after, err := s.cpu()
	if err != nil {
		return Usage{}, err
	}
	u := Usage{Wall: time.Since(began), CPU: after - before}
	u.RSS, u.Peak, err = s.memory()
	return u, err
}

// Idle does nothing for d but what idle members do.
func (s *Swarm) Idle(ctx context.Context, d time.Duration) (Usage, error) {
	return s.During(func() error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	})
}

// Echoes measures the probes' echoes for d, while a share of the laptops leaves
// and as many join each minute. It also says how many came.
func (s *Swarm) Echoes(ctx context.Context, d time.Duration, churn float64) (e Echo, came int, err error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if churn > 0 {
			came, err = s.churn(ctx, churn)
		}
	}()
	e = s.echoes(ctx)
	<-done
	return e, came, err
}

// Return is how long members took to be back after the relay was killed.
type Return struct {
	Serving    time.Duration // until the relay listened again
	Idle, Busy Span
	Missing    int // not back within the time given
}

// Span is of durations.
type Span struct {
	N        int
	P50, Max time.Duration
}

// Restart kills the relay and starts it again with the same state; within is how
// long to wait for all.
func (s *Swarm) Restart(ctx context.Context, within time.Duration) (Return, error) {
	began := time.Now()
	s.relay.Process.Kill()
	if err := s.relay.Start(ctx); err != nil {
		return Return{}, err
	}
	r := Return{Serving: time.Since(began)}
	all := s.members()
	for {
		r.Missing = 0
		var idle, busy []time.Duration
		for _, m := range all {
			m.mu.Lock()
			back := m.hereLocked() && m.since.After(began)
			took, isBusy := m.since.Sub(began), m.busy
			m.mu.Unlock()
			switch {
			case !back:
				r.Missing++
			case isBusy:
				busy = append(busy, took)
			default:
				idle = append(idle, took)
			}
		}
		r.Idle, r.Busy = spanOf(idle), spanOf(busy)
		if r.Missing == 0 || time.Since(began) > within {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func spanOf(d []time.Duration) Span {
	if len(d) == 0 {
		return Span{}
	}
	slices.Sort(d)
	return Span{len(d), d[len(d)/2], d[len(d)-1]}
}
