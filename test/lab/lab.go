// Package lab brings up the places where the whole of zt is played: a real
// Kubernetes API server, an issuer, a relay, a node and laptops, each a process
// of its own, on this machine's loopback (the demo, as an ordinary user) or in
// network namespaces of its own making (the end-to-end tests, as root).
//
// It owns the child processes, namespaces and files of one run and leaves none
// of them behind but the log files. It must not know what a test asserts: it
// starts, stops and breaks things, and hands back what they printed.
package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Lab is one run. It is made by New and ended by Close.
type Lab struct {
	// Dir holds all that the run writes: logs, keys, state directories.
	Dir string

	started time.Time
	say     func(elapsed time.Duration, text string)

	mu        sync.Mutex // guards the following
	closed    bool
	processes []*Process
	cleanups  []func() error
}

// Config is what a Lab takes from outside.
type Config struct {
	// Dir is where the run writes. It is made when missing, readable by others
	// only when root runs the lab: then some of its processes are not root.
	Dir string
	// Say is told, in one line each, what is being waited for. Nil: silence.
	Say func(elapsed time.Duration, text string)
}

// New makes the directory of a run. Nothing runs yet.
func New(c Config) (*Lab, error) {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("find the lab's directory: %w", err)
	}
	mode := os.FileMode(0o700)
	if os.Getuid() == 0 {
		mode = 0o755
	}
	if err := os.MkdirAll(filepath.Join(dir, "log"), mode); err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	if err := os.Chmod(dir, mode); err != nil { // one that was there may be stricter
		return nil, fmt.Errorf("open the lab's directory: %w", err)
	}
	if err := adoptOrphans(); err != nil {
		return nil, fmt.Errorf("become the parent of orphaned processes: %w", err)
	}
	return &Lab{Dir: dir, started: time.Now(), say: c.Say}, nil
}

// Say reports one line of progress with the time since the lab began.
func (l *Lab) Say(format string, args ...any) {
	if l.say != nil {
		l.say(time.Since(l.started), fmt.Sprintf(format, args...))
	}
}

// During says text, and says it again with the time it has taken each ten
// seconds until the function it returns is called: long steps stay alive on
// the screen.
func (l *Lab) During(text string) (done func()) {
	l.Say("%s", text)
	begin, stop, stopped := time.Now(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				l.Say("… still: %s (%s)", text, time.Since(begin).Round(time.Second))
			}
		}
	}()
	return sync.OnceFunc(func() { close(stop); <-stopped })
}

// Cleanup has f called by Close, after the processes have ended; the last one
// added is called first.
func (l *Lab) Cleanup(f func() error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cleanups = append(l.cleanups, f)
}

// Close ends every process of the run, the newest first, then those that they
// left behind, then removes namespaces. Closing twice is safe.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	processes, cleanups := l.processes, l.cleanups
	l.processes, l.cleanups = nil, nil
	l.mu.Unlock()

	var errs []error
	for i := len(processes) - 1; i >= 0; i-- {
		processes[i].Stop(processes[i].grace)
	}
	errs = append(errs, endOrphans(l.mark()))
	for i := len(cleanups) - 1; i >= 0; i-- {
		errs = append(errs, cleanups[i]())
	}
	return errors.Join(errs...)
}
