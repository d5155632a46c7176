package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/zt-daemon/zt/test/bench/load"
	"github.com/zt-daemon/zt/test/lab"
)

// A contender is one way to bring bytes from the client to the node.
type contender struct {
	name string
	// relayed: client and node cannot reach each other but through the relay, whose
	// work is checked.
	relayed bool
	// program is the directory of a program of its own, with the roles of another
	// project; empty: this one.
	program string
	// path is what the client's Path must say before it is measured, and after.
	path   string
	custom bool // its load is no TCP: the node sends what goes down
	// tests are the names of those that it takes part in; nil: all.
	tests []string
	up    func(context.Context, *rig) (*scene, error)
}

func contenders() []contender {
	return []contender{
		{name: "zt", relayed: true, path: "relay", up: ztScene},
		{name: "zt-direct", up: ztDirectScene},
		{name: "zt-full", relayed: true, up: ztFullScene},
		{name: "tcp", up: tcpScene},
		{name: "udp-gso", relayed: true, custom: true, tests: []string{"S1", "R1"}, up: gsoScene},
		{name: "ts-direct", program: "tailscale", path: "direct", up: tailscale(atSide, "")},
		{name: "ts-peer", relayed: true, program: "tailscale", path: "peer relay", up: tailscale(atSide, atRelay)},
		{name: "ts-derp", relayed: true, program: "tailscale", path: "DERP", up: tailscale(atRelay, "", "TS_DEBUG_NEVER_DIRECT_UDP=1")},
		{name: "wg", up: wgScene},
		{name: "nebula", relayed: true, program: "nebula", path: "relay", up: nebulaScene},
	}
}

// where a process belongs in the account.
type place string

const (
	atClient place = "client"
	atRelay  place = "relay"
	atNode   place = "node"
	// Only the load program, beside what is measured.
	atClientLoad place = "client_load"
	atNodeLoad   place = "node_load"
	// On the relay's machine, and not counted.
	atSide place = "side"
)

// A process is one whose work is counted.
type process struct {
	place place
	pid   int
}

// A scene is a contender brought up.
type scene struct {
	client, node *load.Conductor
	processes    []process
}

// A rig is what one scene is built with: machines, programs, and a lab that takes
// everything down again.
type rig struct {
	*lab.Lab
	machines *lab.Bridge
	bin      string // directory of zt-relay and zt-daemon
	program  string // that plays the roles
	env      []string
	scene    scene
	started  int
}

// play starts a process that plays a role, and has it make its stack.
func (r *rig) play(ctx context.Context, at place, role string, in load.Params) (*load.Conductor, load.Params, error) {
	r.started++
	name := fmt.Sprintf("%d-%s", r.started, role)
	socket := filepath.Join(r.Dir, name+".sock")
	p, err := r.Start(lab.Command{
		Name: name, Namespace: r.machine(at),
		Args: append([]string{r.program}, load.Arguments(role, socket)...),
		Env:  append(append(os.Environ(), "HOME="+r.Dir), r.env...),
	})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	var c *load.Conductor
	if err := p.WaitFor(ctx, "its socket", func(context.Context) (err error) {
		c, err = load.Conduct(socket)
		return err
	}); err != nil {
		return nil, nil, err
	}
	r.Cleanup(c.Close)
	out, err := c.Begin(ctx, in)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w; its last lines:\n%s", role, err, p.Tail(15))
	}
	if at != atSide {
		r.count(at, p)
	}
	switch at {
	case atClient:
		r.scene.client = c
	case atNode:
		r.scene.node = c
	}
	return c, out, nil
}

// count has a process's work counted.
func (r *rig) count(at place, p *lab.Process) {
	r.scene.processes = append(r.scene.processes, process{at, p.PID()})
}

func (r *rig) machine(at place) *lab.Namespace {
	switch at {
	case atClient, atClientLoad:
		return r.machines.Client
	case atNode, atNodeLoad:
		return r.machines.Node
	}
	return r.machines.Relay
}

// ready waits until the client's packets travel as the contender says.
func (c contender) ready(ctx context.Context, s *scene) error {
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	return lab.Eventually(ctx, func(ctx context.Context) error {
		if !c.custom {
			if got, err := s.client.Churn(ctx, load.Churn{Count: 1}); err != nil {
				return err
			} else if got.N != 1 {
				return errors.New(got.Fault)
			}
		}
		return c.checkPath(ctx, s)
	})
}

func (c contender) checkPath(ctx context.Context, s *scene) error {
	path, err := s.client.Path(ctx)
	if err != nil {
		return err
	}
	if path != c.path {
		return fmt.Errorf("packets travel %q, want %q", path, c.path)
	}
	return nil
}

// pair plays a node and a client that must know each other.
func (r *rig) pair(ctx context.Context, node, client string, in load.Params) (*scene, error) {
	n, out, err := r.play(ctx, atNode, node, in)
	if err != nil {
		return nil, err
	}
	_, back, err := r.play(ctx, atClient, client, out)
	if err != nil {
		return nil, err
	}
	return &r.scene, n.Meet(ctx, back)
}
