// Command paths measures how much TCP carries over real paths: with the round
// trip, loss and reordering of the internet. It sets zt's netstack (two
// devices, WireGuard between them) beside kernel TCP on the same cable, in turn.
//
// It needs root, for network namespaces. Figures are goodput at the receiver.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/zt-daemon/zt/test/lab"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "paths:", err)
		os.Exit(1)
	}
}

// options are the command's flags.
type options struct {
	rounds     int
	warm       time.Duration
	window     time.Duration
	json       string
	contenders []string
	rtts       []time.Duration
	kinds      []string
	streams    []int
	verbose    bool
	profile    string
}

func parse() (o options, err error) {
	quick := flag.Bool("quick", false, "one short round of what the bars need")
	flag.IntVar(&o.rounds, "rounds", 3, "interleaved rounds")
	flag.DurationVar(&o.warm, "warm", 2*time.Second, "what a stream runs before it is measured")
	flag.DurationVar(&o.window, "window", 5*time.Second, "how long it is measured")
	flag.StringVar(&o.json, "json", "", "also write the medians to this `file`")
	flag.BoolVar(&o.verbose, "v", false, "print every run")
	flag.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile to this `file`")
	contenders := flag.String("contenders", "", "comma-separated: zt, tcp-reno, tcp-cubic, tcp-bbr; default all there are")
	rtts := flag.String("rtt", "0s,20ms,50ms", "round trips, comma-separated")
	kinds := flag.String("path", "", "comma-separated: clean, late, loss0.01, loss0.1; default all")
	streams := flag.String("streams", "1,8", "numbers of parallel streams, comma-separated")
	flag.Parse()
	if *quick {
		o.rounds, o.warm, o.window = 1, time.Second, 2*time.Second
		*rtts, *streams = "20ms", "1"
	}
	for _, s := range strings.Split(*rtts, ",") {
		d, err := time.ParseDuration(s)
		if err != nil {
			return o, err
		}
		o.rtts = append(o.rtts, d)
	}
	for _, s := range strings.Split(*streams, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return o, fmt.Errorf("-streams %q", s)
		}
		o.streams = append(o.streams, n)
	}
	o.kinds = pathKinds
	if *kinds != "" {
		o.kinds = strings.Split(*kinds, ",")
	}
	for _, k := range o.kinds {
		if !slices.Contains(pathKinds, k) {
			return o, fmt.Errorf("-path %q: want some of %s", k, strings.Join(pathKinds, ", "))
		}
	}
	if *contenders != "" {
		o.contenders = strings.Split(*contenders, ",")
	}
	return o, nil
}

// pathKinds are the faults of a path.
var pathKinds = []string{"clean", "late", "loss0.01", "loss0.1"}

func newPath(kind string, rtt time.Duration) lab.Path {
	p := lab.Path{Delay: rtt / 2}
	switch kind {
	case "late":
		p.Late, p.LateMin, p.LateMax = 0.001, time.Millisecond, 5*time.Millisecond
	case "loss0.01":
		p.Loss = 0.0001
	case "loss0.1":
		p.Loss = 0.001
	}
	return p
}

func run() error {
	o, err := parse()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "zt-paths")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := lab.New(lab.Config{Dir: dir})
	if err != nil {
		return err
	}
	defer l.Close()
	near, err := l.NewNamespace(ctx, "near")
	if err != nil {
		return err
	}
	far, err := l.NewNamespace(ctx, "far")
	if err != nil {
		return err
	}
	for _, ns := range []*lab.Namespace{near, far} {
		// Kernel TCP is not to be held back by windows sized for another path.
		if err := ns.Do(func() error {
			for _, name := range []string{"tcp_rmem", "tcp_wmem"} {
				if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte("4096 131072 67108864"), 0o644); err != nil {
					return err
				}
			}
			// A run must not begin with what the one before learnt of another path.
			return os.WriteFile("/proc/sys/net/ipv4/tcp_no_metrics_save", []byte("1"), 0o644)
		}); err != nil {
			return err
		}
	}
	cable, err := l.NewCable(ctx, lab.CableConfig{
		A: lab.CableEnd{Namespace: near, Device: "cable", Address: nearHost + "/30"},
		B: lab.CableEnd{Namespace: far, Device: "cable", Address: farHost + "/30"},
	}, lab.Path{})
	if err != nil {
		return err
	}
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	all, err := makeContenders(o.contenders, near, far)
	if err != nil {
		return err
	}
	for _, c := range all {
		defer c.close()
	}
	results, err := measureAll(ctx, o, cable, all)
	if err != nil {
		return err
	}
	results.print(os.Stdout, o)
	if o.json != "" {
		b, err := json.MarshalIndent(results.rows(), "", "  ")
		if err != nil {
			return err
		}
		return os.WriteFile(o.json, append(b, '\n'), 0o644)
	}
	return nil
}

func makeContenders(want []string, near, far *lab.Namespace) ([]contender, error) {
	var all []contender
	wanted := func(name string) bool { return len(want) == 0 || slices.Contains(want, name) }
	if wanted("zt") {
		o, err := newOverlay(near, far, 51820)
		if err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	names, err := controls()
	if err != nil {
		return nil, err
	}
	for i, name := range []string{"reno", "cubic", "bbr"} {
		if slices.Contains(names, name) && wanted("tcp-"+name) {
			all = append(all, &kernel{control: name, near: near, far: far, port: uint16(7000 + i)})
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no contender of %v", want)
	}
	return all, nil
}

// measureAll runs every contender in turn on every path, rounds times.
func measureAll(ctx context.Context, o options, cable *lab.Cable, all []contender) (results, error) {
	r := results{}
	for round := range o.rounds {
		for _, rtt := range o.rtts {
			for _, kind := range o.kinds {
				for _, n := range o.streams {
					for _, c := range all {
						rate, err := measure(ctx, o, cable, newPath(kind, rtt), c, n)
						if err != nil {
							return r, fmt.Errorf("%s, round trip %v, %s, %d streams: %w", c.name(), rtt, kind, n, err)
						}
						k := point{rtt, kind, n, c.name()}
						r[k] = append(r[k], rate)
						if o.verbose {
							ab, _ := cable.Counts()
							fmt.Fprintf(os.Stderr, "%d %v %.0f Mbit/s; cable so far %+v\n", round, k, rate/1e6, ab)
						}
					}
				}
			}
		}
	}
	return r, nil
}

// measure is the goodput of n streams of one contender, in bits per second.
func measure(ctx context.Context, o options, cable *lab.Cable, p lab.Path, c contender, n int) (float64, error) {
	cable.Set(p)
	ln, err := c.listen()
	if err != nil {
		return 0, err
	}
	var (
		wg       sync.WaitGroup
		received atomic.Int64
		mu       sync.Mutex
		conns    []net.Conn
	)
	keep := func(x net.Conn) {
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, x)
	}
	defer func() {
		ln.Close()
		mu.Lock()
		for _, x := range conns {
			reset(x)
		}
		mu.Unlock()
		wg.Wait()
		time.Sleep(p.Delay*2 + 50*time.Millisecond) // what is under way passes
	}()
	wg.Go(func() {
		for {
			x, err := ln.Accept()
			if err != nil {
				return
			}
			keep(x)
			wg.Go(func() {
				buf := make([]byte, 256<<10)
				for {
					n, err := x.Read(buf)
					received.Add(int64(n))
					if err != nil {
						return
					}
				}
			})
		}
	})
	for range n {
		dialCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
		x, err := c.dial(dialCtx)
		cancel()
		if err != nil {
			return 0, err
		}
		keep(x)
		wg.Go(func() {
			buf := make([]byte, 256<<10)
			for {
				if _, err := x.Write(buf); err != nil {
					return
				}
			}
		})
	}
	if err := wait(ctx, o.warm); err != nil {
		return 0, err
	}
	before, began := received.Load(), time.Now()
	if err := wait(ctx, o.window); err != nil {
		return 0, err
	}
	return float64(received.Load()-before) * 8 / time.Since(began).Seconds(), nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// reset closes without sending what is left.
func reset(c net.Conn) {
	switch c := c.(type) {
	case *net.TCPConn:
		c.SetLinger(0)
	case interface{ Reset() }:
		c.Reset()
	}
	c.Close()
}
