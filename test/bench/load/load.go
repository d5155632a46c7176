// Package load is the benchmark's load program: one TCP client and server whose
// logic is the same in every stack, in processes that a Conductor steers.
//
// It owns flows, their counting and their timing. It must not know whose stack
// it loads, nor anything of zt: the programs of other projects are built with it.
package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	writeSize = 128 << 10
	readSize  = 256 << 10
	echoSize  = 64

	// dialTimeout ends the wait for one connection. Whatever takes longer than
	// stallAfter is a stall.
	dialTimeout = 5 * time.Second
	stallAfter  = time.Second
)

// The first byte of a flow says what it is for.
const (
	flowUp   = 'u' // the client sends
	flowDown = 'd' // the node sends
	flowEcho = 'e' // the node sends back what comes, echoSize bytes at a time
	flowOnce = 'o' // the node sends this byte back, and the client closes
)

// Stack is what a participant's flows travel on. It is a client, a node, or
// something else that only runs.
type Stack struct {
	Dial     func(context.Context) (net.Conn, error) // a client's: opens a flow to the node
	Listener net.Listener                            // a node's
	// Path says how packets travel now; nil: there is but one way.
	Path func(context.Context) (string, error)
	// Meet tells a node who its client is, where it must know; nil elsewhere.
	Meet func(Params) error
	// Custom replaces the TCP program where there is no TCP; nil elsewhere.
	Custom Custom
	// Close takes the stack down; nil: the process's end does.
	Close func()
}

// Custom is a load that is no TCP: it sends until it is told to stop, and counts
// what comes.
type Custom interface {
	Send(stop <-chan struct{}) error
	Received() (bytes, packets uint64)
}

// Sample is what a process has received so far, by its own clock.
type Sample struct {
	Bytes, Packets uint64
	At             time.Duration // since the process's start
}

// Flows is how many flows go each way.
type Flows struct{ Up, Down int }

// Times are round trips of one flow.
type Times struct {
	P50, P99 time.Duration
	N        int
}

// Churn asks for connections: Count of them, or as many as there are in For.
type Churn struct {
	Workers, Count int
	For            time.Duration
}

// Churned is what became of a Churn.
type Churned struct {
	N       int
	Elapsed time.Duration
	Worst   time.Duration // of one connection
	Stalls  int           // connections of more than a second, and those that failed
	Fault   string        // of the first that failed
}

// program is the load of one process.
type program struct {
	ctx     context.Context
	stack   *Stack
	began   time.Time
	bytes   atomic.Uint64 // received
	serving atomic.Int64  // flows of the node

	mu    sync.Mutex // guards what follows
	flows *run       // of the client; nil: none
}

// run is a set of flows that are under way.
type run struct {
	conns   []net.Conn
	stopped atomic.Bool
	stop    chan struct{} // of a Custom; closed by stop
	wg      sync.WaitGroup
	fault   atomic.Pointer[error] // the first
}

func (r *run) failed(err error) {
	if err != nil && !r.stopped.Load() {
		r.fault.CompareAndSwap(nil, &err)
	}
}

// serve accepts flows until the listener is closed.
func (p *program) serve() {
	for {
		c, err := p.stack.Listener.Accept()
		if err != nil {
			return
		}
		p.serving.Add(1)
		go func() {
			defer p.serving.Add(-1)
			defer c.Close()
			p.answer(c)
		}()
	}
}

func (p *program) answer(c net.Conn) {
	var kind [1]byte
	if _, err := io.ReadFull(c, kind[:]); err != nil {
		return
	}
	switch kind[0] {
	case flowUp:
		p.drain(c)
	case flowDown:
		fill(c)
	case flowEcho:
		b := make([]byte, echoSize)
		for {
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	case flowOnce:
		if _, err := c.Write(kind[:]); err == nil {
			c.Read(kind[:]) // the client's end
		}
	}
}

func (p *program) drain(c net.Conn) error {
	b := make([]byte, readSize)
	for {
		n, err := c.Read(b)
		p.bytes.Add(uint64(n))
		if err != nil {
			return err
		}
	}
}

func fill(c net.Conn) error {
	b := make([]byte, writeSize)
	for {
		if _, err := c.Write(b); err != nil {
			return err
		}
	}
}

// open opens a flow of one kind.
func (p *program) open(kind byte) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
	defer cancel()
	c, err := p.stack.Dial(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte{kind}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (p *program) start(f Flows) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flows != nil {
		return errors.New("flows are under way")
	}
	r := &run{stop: make(chan struct{})}
	p.flows = r
	if p.stack.Custom != nil {
		if f.Up > 0 {
			r.wg.Go(func() { r.failed(p.stack.Custom.Send(r.stop)) })
		}
		return nil
	}
	for i := range f.Up + f.Down {
		kind, move := byte(flowUp), fill
		if i >= f.Up {
			kind, move = flowDown, p.drain
		}
		c, err := p.open(kind)
		if err != nil {
			return fmt.Errorf("open flow %d: %w", i+1, err)
		}
		r.conns = append(r.conns, c)
		r.wg.Go(func() { r.failed(move(c)) })
	}
	return nil
}

// stop ends the flows, and tells of the first that ended before.
func (p *program) stop() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.flows
	if r == nil {
		return nil
	}
	p.flows = nil
	r.stopped.Store(true)
	close(r.stop)
	for _, c := range r.conns {
		c.Close()
	}
	r.wg.Wait()
	if err := r.fault.Load(); err != nil {
		return fmt.Errorf("a flow ended early: %w", *err)
	}
	return nil
}

func (p *program) sample() Sample {
	s := Sample{Bytes: p.bytes.Load(), At: time.Since(p.began)}
	if p.stack.Custom != nil {
		s.Bytes, s.Packets = p.stack.Custom.Received()
	}
	return s
}

func (p *program) echo(d time.Duration) (Times, error) {
	const warm = 50
	c, err := p.open(flowEcho)
	if err != nil {
		return Times{}, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(d + dialTimeout))
	var all []time.Duration
	b := make([]byte, echoSize)
	for began, n := time.Now(), 0; time.Since(began) < d; n++ {
		sent := time.Now()
		if _, err := c.Write(b); err != nil {
			return Times{}, err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return Times{}, err
		}
		if n >= warm {
			all = append(all, time.Since(sent))
		}
	}
	if len(all) == 0 {
		return Times{}, fmt.Errorf("fewer than %d round trips in %v", warm, d)
	}
	slices.Sort(all)
	return Times{P50: all[len(all)/2], P99: all[len(all)*99/100], N: len(all)}, nil
}

// churn opens and closes connections.
func (p *program) churn(q Churn) Churned {
	var (
		mu   sync.Mutex // guards out, asked
		out  Churned
		want = q.Count
		wg   sync.WaitGroup
	)
	began := time.Now()
	next := func() bool {
		mu.Lock()
		defer mu.Unlock()
		if q.Count == 0 {
			return time.Since(began) < q.For
		}
		want--
		return want >= 0 && out.Stalls < 3
	}
	for range max(1, q.Workers) {
		wg.Go(func() {
			for next() {
				opened := time.Now()
				err := p.once()
				took := time.Since(opened)
				mu.Lock()
				if err == nil {
					out.N++
				} else if out.Fault == "" {
					out.Fault = err.Error()
				}
				out.Worst = max(out.Worst, took)
				if err != nil || took > stallAfter {
					out.Stalls++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	out.Elapsed = time.Since(began)
	return out
}

func (p *program) once() error {
	c, err := p.open(flowOnce)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(dialTimeout))
	var b [1]byte
	_, err = io.ReadFull(c, b[:])
	return err
}
