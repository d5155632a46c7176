// Command bench compares ways to bring bytes from a client to a node, in one run
// and in the same network namespaces: zt through its relay, plain TCP, and the
// programs that people use for it today. It needs root.
//
//	go run . -quick          # one short round
//	go run . -only zt -rounds 1
//	go run . -soak           # 10 minutes
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/zt-daemon/zt/test/bench/load"
	"github.com/zt-daemon/zt/test/lab"
)

var roles = map[string]load.Role{
	"zt-node": ztNode, "zt-client": ztClient,
	"zt-admin":       ztAdmin,
	"zt-direct-node": ztDirectNode, "zt-direct-client": ztDirectClient,
	"wg-node": wgNodeRole, "wg-client": wgClientRole,
	"gso-relay": gsoRelay, "gso-node": gsoParticipant(lab.BridgeNode), "gso-client": gsoParticipant(lab.BridgeClient),
	"tcp-node": tcpNode, "tcp-client": tcpClient,
}

func main() {
	load.Play(roles)
	short := flag.Bool("quick", false, "one round of short windows")
	rounds := flag.Int("rounds", 0, "how many interleaved rounds; 0: 7, or 1 if quick")
	only := flag.String("only", "", "the contenders, separated by commas; empty: all")
	long := flag.Bool("soak", false, "instead of all that, load zt for minutes and look at its memory")
	file := flag.String("json", "", "write the figures there too")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	b := &bench{pace: thorough, rounds: 7, say: func(text string) { fmt.Println(text) }}
	if *short {
		b.pace, b.rounds = quick, 1
	}
	if *rounds > 0 {
		b.rounds = *rounds
	}
	err := b.choose(*only)
	switch {
	case err != nil:
	case *long:
		b.contenders = nil
		err = b.soak(ctx, os.Stdout)
	default:
		if err = b.run(ctx); err == nil || len(b.results.figures) > 0 {
			b.results.print(os.Stdout)
			if *file != "" {
				err = errors.Join(err, b.results.write(*file))
			}
		}
	}
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// A bench is one run of all contenders.
type bench struct {
	pace
	rounds     int
	contenders []contender
	say        func(text string)
	results    results

	lab      *lab.Lab
	machines *lab.Bridge
	bin      string
	programs map[string]string // of other projects, by directory
}

// choose takes the contenders that are named, in their own order.
func (b *bench) choose(names string) error {
	all := contenders()
	if names == "" {
		b.contenders = all
		return nil
	}
	for name := range strings.SplitSeq(names, ",") {
		if !slices.ContainsFunc(all, func(c contender) bool { return c.name == name }) {
			return fmt.Errorf("no contender %q", name)
		}
	}
	for _, c := range all {
		if slices.Contains(strings.Split(names, ","), c.name) {
			b.contenders = append(b.contenders, c)
		}
	}
	return nil
}

// inLab builds what there is to measure, has f measure it, and takes down what
// that has left.
func (b *bench) inLab(ctx context.Context, f func() error) (err error) {
	dir, err := os.MkdirTemp("", "zt-bench-")
	if err != nil {
		return err
	}
	b.lab, err = lab.New(lab.Config{Dir: dir, Say: func(_ time.Duration, text string) { b.say(text) }})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, b.lab.Close())
		if err == nil || ctx.Err() != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		} else {
			err = fmt.Errorf("%w\nthe logs are kept in %s", err, dir)
		}
	}()
	if b.machines, err = b.lab.NewBridge(ctx); err != nil {
		return err
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	return f()
}

// run measures every contender in turn, as often as there are rounds.
func (b *bench) run(ctx context.Context) error {
	return b.inLab(ctx, func() error { return b.compare(ctx) })
}

func (b *bench) compare(ctx context.Context) (err error) {
	failed := make(map[string]error)
	for n := range b.rounds {
		for _, c := range b.contenders {
			if failed[c.name] != nil {
				continue
			}
			b.say(fmt.Sprintf("round %d of %d: %s", n+1, b.rounds, c.name))
			err := b.round(ctx, c, n)
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			if err != nil { // the others are measured all the same
				b.say(fmt.Sprintf("%s: %v", c.name, err))
				failed[c.name] = fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	for _, c := range b.contenders {
		err = errors.Join(err, failed[c.name])
	}
	return err
}

// build builds our programs, and those with the roles of other projects. One
// that does not build leaves the run, and that is said.
func (b *bench) build(ctx context.Context) error {
	module, err := lab.ModuleDir(ctx)
	if err != nil {
		return err
	}
	if b.bin, err = b.lab.BuildPrograms(ctx, filepath.Join(module, "..", "..")); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b.programs = map[string]string{"": self}
	var able []contender
	for _, c := range b.contenders {
		program, tried := b.programs[c.program]
		if !tried {
			program = filepath.Join(b.bin, c.program)
			done := b.lab.During("building " + c.program + " from its Go modules")
			r := b.lab.Run(ctx, lab.Command{Dir: module, Args: []string{"go", "build", "-o", program, "./" + c.program}})
			done()
			if err := r.OK(); err != nil {
				b.say(fmt.Sprintf("%s does not build: %v", c.program, err))
				program = ""
			}
			b.programs[c.program] = program
		}
		if program == "" {
			b.results.note(c.name + ": left out, because it does not build here")
			continue
		}
		able = append(able, c)
	}
	b.contenders = able
	return ctx.Err()
}

// round brings a contender up, measures it once, and takes it down.
func (b *bench) round(ctx context.Context, c contender, n int) (err error) {
	l, err := lab.New(lab.Config{Dir: filepath.Join(b.lab.Dir, fmt.Sprintf("%s-%d", c.name, n+1))})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := b.machines.Isolate(ctx, c.relayed); err != nil {
		return err
	}
	rig := &rig{Lab: l, machines: b.machines, bin: b.bin, program: b.programs[c.program]}
	s, err := c.up(ctx, rig)
	if err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	r := &round{contender: c, pace: b.pace, scene: s, row1: n == 0 && (b.rowAll || c.name == "zt"), figures: make(map[string]float64)}
	err = r.run(ctx)
	for _, note := range r.notes {
		b.results.note(note)
	}
	if err != nil {
		return err
	}
	b.results.add(c.name, r.figures)
	return nil
}
