package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Namespace is a network namespace of the lab, by its name under /run/netns.
// A nil *Namespace is the network this process is in.
type Namespace struct {
	Name string
}

// User is the operating system's user a command runs as. A nil *User is this
// process's own.
type User struct {
	UID, GID uint32
}

// Command is a program to run.
type Command struct {
	// Name is that of the log file and what messages call the process.
	Name string
	// Args are the program, looked up in PATH unless it holds a slash, and its
	// arguments.
	Args []string
	// Env is the whole environment; nil is this process's.
	Env       []string
	Dir       string
	Stdin     io.Reader
	Stdout    io.Writer // of Run; nil: into its Result
	Namespace *Namespace
	User      *User
	// Grace is how long Stop and Close wait between asking the process to end
	// and killing it. Zero kills at once.
	Grace time.Duration
}

// Process is a running child. Its output, both kinds, goes to its log file.
// Its life ends with the lab's, and with this process's even if that is killed.
type Process struct {
	Name string

	cmd   *exec.Cmd
	log   string
	from  int64 // where this process's output begins in the log file
	grace time.Duration
	done  chan struct{}
}

// command makes the exec.Cmd of c: a process group of its own, so that a Ctrl-C
// meant for the lab is the lab's to act on and Kill takes descendants along.
func (l *Lab) command(ctx context.Context, c Command) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Dir, cmd.Stdin = c.Dir, c.Stdin
	if cmd.Env = c.Env; c.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env[:len(cmd.Env):len(cmd.Env)], l.mark())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.User != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.User.UID, Gid: c.User.GID}
	}
	dieWithParent(cmd.SysProcAttr)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// mark is a line of environment that every process of the lab carries: by it
// those that left their parents are known.
func (l *Lab) mark() string { return "ZT_LAB=" + l.Dir }

// on runs f on an operating system thread of its own inside ns and waits for it.
// The thread is not used again: a namespace once entered is not left, and a
// child's parent-death signal is bound to the thread that started it.
func on(ns *Namespace, f func()) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := ns.enter(); err != nil {
			result <- err
			return
		}
		f()
		result <- nil
	}()
	return <-result
}

// Do runs f inside the namespace: sockets that f itself opens belong there, for
// as long as they live. Goroutines that f starts are not in the namespace.
func (n *Namespace) Do(f func() error) error {
	var err error
	if e := on(n, func() { err = f() }); e != nil {
		return e
	}
	return err
}

// Start runs c in the background.
func (l *Lab) Start(c Command) (*Process, error) {
	p := &Process{Name: c.Name, log: filepath.Join(l.Dir, "log", c.Name+".log"), grace: c.Grace, done: make(chan struct{})}
	f, err := os.OpenFile(p.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	defer f.Close()
	if at, err := f.Seek(0, io.SeekEnd); err == nil {
		p.from = at
	}
	p.cmd = l.command(context.Background(), c) // ends by Stop or Close, not by the caller's context
	p.cmd.Stdout, p.cmd.Stderr = f, f

	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		err := on(c.Namespace, func() {
			err := p.cmd.Start()
			started <- err
			if err == nil {
				_ = p.cmd.Wait() // ProcessState has the outcome
			}
		})
		if err != nil {
			started <- err // the namespace could not be entered
		}
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		go p.Stop(0)
		return nil, fmt.Errorf("start %s: the lab is closed", c.Name)
	}
	l.processes = append(l.processes, p)
	return p, nil
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exited says whether the process has ended, and with which code (-1: by a
// signal).
func (p *Process) Exited() (code int, exited bool) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), true
	default:
		return 0, false
	}
}

// Interrupt asks the process to end, as Ctrl-C does.
func (p *Process) Interrupt() { p.signal(syscall.SIGINT) }

// Kill ends the process and its process group with SIGKILL, and waits.
func (p *Process) Kill() { p.Stop(0) }

// Stop sends SIGTERM, waits up to grace, and kills what is left of the process
// group. Stopping twice is safe.
func (p *Process) Stop(grace time.Duration) {
	if grace > 0 {
		p.signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(grace):
		}
	}
	// The group outlives its leader while a descendant lives.
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

func (p *Process) signal(s syscall.Signal) {
	select {
	case <-p.done:
	default:
		_ = p.cmd.Process.Signal(s)
	}
}

// LogFile is where the process's output is.
func (p *Process) LogFile() string { return p.log }

// Output is what the process has printed so far.
func (p *Process) Output() string {
	b, err := os.ReadFile(p.log)
	if err != nil || int64(len(b)) < p.from {
		return ""
	}
	return string(b[p.from:])
}

// Tail is the last lines of the process's output, for messages.
func (p *Process) Tail(lines int) string { return tail(p.Output(), lines) }

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// WaitOutput waits until ok says that the output so far is enough. It ends
// early, with an error that shows the last lines, when the process ends or ctx
// is done.
func (p *Process) WaitOutput(ctx context.Context, what string, ok func(output string) bool) (string, error) {
	var out string
	err := p.WaitFor(ctx, what, func(context.Context) error {
		if out = p.Output(); ok(out) {
			return nil
		}
		return errors.New("not printed yet")
	})
	return out, err
}

// WaitText waits until the process has printed text.
func (p *Process) WaitText(ctx context.Context, text string) (string, error) {
	return p.WaitOutput(ctx, fmt.Sprintf("the line %q", text), func(out string) bool { return strings.Contains(out, text) })
}

// WaitFor calls ready until it returns nil. It ends early when the process ends
// or ctx is done.
func (p *Process) WaitFor(ctx context.Context, what string, ready func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.done:
			// What it printed last may be what is waited for.
			time.Sleep(200 * time.Millisecond)
			cancel(fmt.Errorf("%s ended: %v", p.Name, p.cmd.ProcessState))
		case <-ctx.Done():
		}
	}()
	if err := Eventually(ctx, ready); err != nil {
		return fmt.Errorf("wait for %s of %s: %w; its last lines (%s):\n%s", what, p.Name, err, p.log, p.Tail(15))
	}
	return nil
}

// Eventually calls f, each 50 ms at first and each 500 ms later, until it
// returns nil. When ctx is done first, the error holds f's last one.
func Eventually(ctx context.Context, f func(context.Context) error) error {
	pause := 50 * time.Millisecond
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %v)", context.Cause(ctx), err)
		case <-time.After(pause):
			pause = min(pause*5/4, 500*time.Millisecond)
		}
	}
}

// Result is what a command that ended has printed and returned.
type Result struct {
	Args           []string
	Stdout, Stderr string
	Code           int // -1: ended by a signal, or never started
	Elapsed        time.Duration
	// Err is nil if the command ran to an end of its own within ctx, whatever
	// its exit code.
	Err error
}

// OK is nil when the command returned 0, and otherwise says what it said.
func (r Result) OK() error {
	if r.Err == nil && r.Code == 0 {
		return nil
	}
	return errors.New(r.String())
}

// String is the whole result as a person would want to read it in a failure.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: exit code %d after %s", strings.Join(r.Args, " "), r.Code, r.Elapsed.Round(time.Millisecond))
	if r.Err != nil {
		fmt.Fprintf(&b, " (%v)", r.Err)
	}
	for _, s := range []struct{ name, text string }{{"stdout", r.Stdout}, {"stderr", r.Stderr}} {
		if s.text != "" {
			fmt.Fprintf(&b, "\n%s: %s", s.name, strings.TrimRight(tail(s.text, 40), "\n"))
		}
	}
	return b.String()
}

// Run runs c to its end and returns what it printed. A descendant that keeps
// the command's output open more than two seconds after its end is an error: it
// would hang a script's $(…).
func (l *Lab) Run(ctx context.Context, c Command) Result {
	var stdout, stderr bytes.Buffer
	cmd := l.command(ctx, c)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, 2*time.Second
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	begin := time.Now()
	var err error
	if e := on(c.Namespace, func() { err = cmd.Run() }); e != nil {
		err = e
	}
	r := Result{Args: c.Args, Stdout: stdout.String(), Stderr: stderr.String(), Code: -1, Elapsed: time.Since(begin)}
	if cmd.ProcessState != nil {
		r.Code = cmd.ProcessState.ExitCode()
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		r.Err = fmt.Errorf("ended by the test: %w", context.Cause(ctx))
	case err != nil && !(errors.As(err, &exit) && exit.Exited()):
		r.Err = err
	}
	return r
}

// DialContext dials from inside the namespace, as net.Dialer does elsewhere.
// Names are not resolved: address must hold an IP address.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := n.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens inside the namespace.
func (n *Namespace) Listen(network, address string) (net.Listener, error) {
	var ln net.Listener
	err := n.Do(func() (err error) {
		ln, err = net.Listen(network, address)
		return err
	})
	return ln, err
}
