package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/zt-daemon/zt/test/bench/load"
	"github.com/zt-daemon/zt/test/lab"
)

// How the soak is paced, and what it asks of a laptop's and a node's process.
const (
	soakIdle   = 10 * time.Second // after the login
	soakLoad   = 5 * time.Minute
	soakSample = 5 * time.Second
	soakWarm   = time.Minute // of the load: what is flat is measured from then on
	soakRest   = time.Minute
	soakConns  = 100_000
	soakPart   = soakConns / 2 // after which memory and descriptors are first looked at

	barLoaded = 80.0 // MiB
	barFlat   = 1.1  // the last minute's most over the second's
	barRested = 40.0 // MiB
	barGrown  = 4.0  // MiB, and as many descriptors, over what they were after soakPart
)

// held is what one process holds.
type held struct {
	rss, anonymous float64 // MiB
	descriptors    int
}

// A soak loads the product as it is used for minutes, and looks at what its
// processes hold.
type soak struct {
	scene  *scene
	say    func(text string)
	rows   [][5]string
	missed int
}

// soak runs one on a scene of its own.
func (b *bench) soak(ctx context.Context, w io.Writer) error {
	return b.inLab(ctx, func() error {
		l, err := lab.New(lab.Config{Dir: filepath.Join(b.lab.Dir, "soak")})
		if err != nil {
			return err
		}
		defer l.Close()
		if err := b.machines.Isolate(ctx, true); err != nil {
			return err
		}
		scene, err := ztFullScene(ctx, &rig{Lab: l, machines: b.machines, bin: b.bin, program: b.programs[""]})
		if err != nil {
			return err
		}
		s := &soak{scene: scene, say: b.say}
		if err := s.run(ctx); err != nil {
			return err
		}
		return s.print(w)
	})
}

func (s *soak) run(ctx context.Context) error {
	pause(ctx, soakIdle)
	idle, err := s.held()
	if err != nil {
		return err
	}
	s.say(fmt.Sprintf("eight streams each way for %v", soakLoad))
	if err := s.loaded(ctx); err != nil {
		return err
	}
	s.say(fmt.Sprintf("rest for %v", soakRest))
	pause(ctx, soakRest)
	rested, err := s.held()
	if err != nil {
		return err
	}
	s.say(fmt.Sprintf("%d connections, sixteen at a time", soakConns))
	if err := s.churn(ctx, soakPart); err != nil {
		return err
	}
	pause(ctx, soakRest)
	before, err := s.held()
	if err != nil {
		return err
	}
	if err := s.churn(ctx, soakConns-soakPart); err != nil {
		return err
	}
	pause(ctx, soakRest)
	after, err := s.held()
	if err != nil {
		return err
	}
	for _, p := range []place{atClient, atNode} {
		s.note(p, "resident after login and rest", idle[p].rss, "MiB")
		s.row(p, "resident a minute after the load", rested[p].rss, barRested, "MiB")
		s.row(p, fmt.Sprintf("own memory grown by %d connections more", soakConns-soakPart), after[p].anonymous-before[p].anonymous, barGrown, "MiB")
		s.row(p, "descriptors more", float64(after[p].descriptors-before[p].descriptors), barGrown, "")
	}
	return ctx.Err()
}

// loaded has eight streams each way, and looks at memory meanwhile.
func (s *soak) loaded(ctx context.Context) error {
	if err := s.scene.client.Start(ctx, load.Flows{Up: 8, Down: 8}); err != nil {
		return err
	}
	began := time.Now()
	second, last, all := make(map[place]float64), make(map[place]float64), make(map[place]float64)
	for time.Since(began) < soakLoad && ctx.Err() == nil {
		pause(ctx, soakSample)
		now, err := s.held()
		if err != nil {
			return err
		}
		at := time.Since(began)
		for p, h := range now {
			all[p] = max(all[p], h.rss)
			switch {
			case at > soakWarm && at <= 2*soakWarm:
				second[p] = max(second[p], h.rss)
			case at > soakLoad-soakWarm:
				last[p] = max(last[p], h.rss)
			}
		}
	}
	up, err := s.scene.node.Sample(ctx)
	if err != nil {
		return err
	}
	down, err := s.scene.client.Sample(ctx)
	if err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	if err := s.scene.client.Stop(ctx); err != nil {
		return err
	}
	s.note("both", "up, all the time", float64(up.Bytes)*8e-9/took, "Gbit/s")
	s.note("both", "down, all the time", float64(down.Bytes)*8e-9/took, "Gbit/s")
	for _, p := range []place{atClient, atNode} {
		s.row(p, "resident under load, most", all[p], barLoaded, "MiB")
		s.row(p, "the last minute's most over the second's", last[p]/second[p], barFlat, "")
	}
	return nil
}

func (s *soak) churn(ctx context.Context, n int) error {
	got, err := s.scene.client.Churn(ctx, load.Churn{Workers: 16, Count: n})
	if err == nil && (got.N < n || got.Stalls > 0) {
		err = fmt.Errorf("%d of %d connections, %d stalls: %s", got.N, n, got.Stalls, got.Fault)
	}
	return err
}

// held reads what the laptop's and the node's processes hold.
func (s *soak) held() (map[place]held, error) {
	all := make(map[place]held)
	for _, p := range s.scene.processes {
		if p.place != atClient && p.place != atNode {
			continue
		}
		rss, anonymous, _, err := memory(p.pid)
		if err != nil {
			return nil, err
		}
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
		if err != nil {
			return nil, err
		}
		all[p.place] = held{rss, anonymous, len(fds)}
	}
	return all, nil
}

func (s *soak) note(p place, what string, got float64, unit string) {
	s.rows = append(s.rows, [5]string{string(p), what, fmt.Sprintf("%.1f %s", got, unit)})
}

func (s *soak) row(p place, what string, got, most float64, unit string) {
	verdict := "met"
	if got > most {
		verdict = "MISSED"
		s.missed++
	}
	s.rows = append(s.rows, [5]string{string(p), what, fmt.Sprintf("%.1f %s", got, unit), fmt.Sprintf("≤ %g", most), verdict})
}

func (s *soak) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range s.rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", r[0], r[1], r[2], r[3], r[4])
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if s.missed > 0 {
		return errors.New("not every bar is met")
	}
	return nil
}
