package load

import (
	"context"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"strings"
	"time"
)

// Params go into a role and come out of it: addresses, keys, documents as text.
type Params map[string]string

// Role makes what one process is in a contender's scene.
type Role func(ctx context.Context, in Params) (*Stack, Params, error)

// Arguments is the command line on which a program plays a role.
func Arguments(role, socket string) []string { return []string{"role", role, socket} }

// Play plays a role if the command line says so, and ends the process.
func Play(roles map[string]Role) {
	if len(os.Args) != 4 || os.Args[1] != "role" {
		return
	}
	role := roles[os.Args[2]]
	if role == nil {
		fmt.Fprintf(os.Stderr, "no role %q\n", os.Args[2])
		os.Exit(2)
	}
	if err := play(role, os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// play serves one conductor on a Unix socket until it goes away.
func play(role Role, socket string) error {
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer ln.Close()
	conn, err := ln.Accept()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := &Service{role: role, program: program{ctx: ctx, began: time.Now()}}
	server := rpc.NewServer()
	if err := server.RegisterName("Load", s); err != nil {
		return err
	}
	server.ServeConn(conn)
	if s.program.stack != nil && s.program.stack.Close != nil {
		s.program.stack.Close()
	}
	return nil
}

// Service is what a Conductor calls; see net/rpc for the form of its methods.
type Service struct {
	role    Role
	program program
}

// None is what a call without a result has.
type None struct{}

// Begin makes the role's stack.
func (s *Service) Begin(in Params, out *Params) error {
	stack, told, err := s.role(s.program.ctx, in)
	if err != nil {
		return err
	}
	s.program.stack = stack
	if stack.Listener != nil {
		go s.program.serve() // ends with the process
	}
	*out = told
	return nil
}

// Meet tells a node of its client.
func (s *Service) Meet(client Params, _ *None) error { return s.program.stack.Meet(client) }

// Start opens flows.
func (s *Service) Start(f Flows, _ *None) error { return s.program.start(f) }

// Stop ends them.
func (s *Service) Stop(None, *None) error { return s.program.stop() }

// Sample counts.
func (s *Service) Sample(_ None, out *Sample) error { *out = s.program.sample(); return nil }

// Serving says how many flows a node serves.
func (s *Service) Serving(_ None, out *int64) error { *out = s.program.serving.Load(); return nil }

// Echo plays ping-pong.
func (s *Service) Echo(d time.Duration, out *Times) (err error) {
	*out, err = s.program.echo(d)
	return err
}

// Churn opens and closes connections.
func (s *Service) Churn(q Churn, out *Churned) error { *out = s.program.churn(q); return nil }

// Path says how packets travel.
func (s *Service) Path(_ None, out *string) (err error) {
	if s.program.stack.Path == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.program.ctx, dialTimeout)
	defer cancel()
	*out, err = s.program.stack.Path(ctx)
	return err
}

// Conductor steers one process.
type Conductor struct{ client *rpc.Client }

// Conduct connects to a process that plays a role at socket.
func Conduct(socket string) (*Conductor, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	return &Conductor{rpc.NewClient(c)}, nil
}

// Close lets the process end.
func (c *Conductor) Close() error { return c.client.Close() }

// call waits for an answer as long as ctx allows.
func (c *Conductor) call(ctx context.Context, method string, in, out any) error {
	call := c.client.Go("Load."+method, in, out, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		if call.Error != nil {
			return fmt.Errorf("%s: %w", strings.ToLower(method), call.Error)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", strings.ToLower(method), context.Cause(ctx))
	}
}

// Begin has the process make its stack.
func (c *Conductor) Begin(ctx context.Context, in Params) (out Params, err error) {
	err = c.call(ctx, "Begin", in, &out)
	return out, err
}

// Meet tells a node of its client.
func (c *Conductor) Meet(ctx context.Context, client Params) error {
	return c.call(ctx, "Meet", client, &None{})
}

// Start opens flows.
func (c *Conductor) Start(ctx context.Context, f Flows) error {
	return c.call(ctx, "Start", f, &None{})
}

// Stop ends them.
func (c *Conductor) Stop(ctx context.Context) error { return c.call(ctx, "Stop", None{}, &None{}) }

// Sample counts what was received.
func (c *Conductor) Sample(ctx context.Context) (s Sample, err error) {
	err = c.call(ctx, "Sample", None{}, &s)
	return s, err
}

// Serving counts a node's flows.
func (c *Conductor) Serving(ctx context.Context) (n int64, err error) {
	err = c.call(ctx, "Serving", None{}, &n)
	return n, err
}

// Echo plays ping-pong for d.
func (c *Conductor) Echo(ctx context.Context, d time.Duration) (t Times, err error) {
	err = c.call(ctx, "Echo", d, &t)
	return t, err
}

// Churn opens and closes connections.
func (c *Conductor) Churn(ctx context.Context, q Churn) (out Churned, err error) {
	err = c.call(ctx, "Churn", q, &out)
	return out, err
}

// Path says how packets travel.
func (c *Conductor) Path(ctx context.Context) (path string, err error) {
	err = c.call(ctx, "Path", None{}, &path)
	return path, err
}
