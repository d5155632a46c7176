//go:build linux

package lab

import (
	"context"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestProcess(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	sh := func(name, script string, grace time.Duration) *Process {
		t.Helper()
		p, err := l.Start(Command{Name: name, Args: []string{"sh", "-c", script}, Grace: grace})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}

	t.Run("its output is waited for", func(t *testing.T) {
		p := sh("talker", "echo one; sleep 0.2; echo two >&2; sleep 60", 0)
		if out, err := p.WaitText(ctx, "two"); err != nil || out != "one\ntwo\n" {
			t.Errorf("output %q, %v", out, err)
		}
	})
	t.Run("an early end is told with its last words", func(t *testing.T) {
		p := sh("quitter", "echo why; exit 7", 0)
		_, err := p.WaitText(ctx, "never")
		if err == nil || !strings.Contains(err.Error(), "exit status 7") || !strings.Contains(err.Error(), "why") {
			t.Errorf("error %v", err)
		}
		if code, exited := p.Exited(); !exited || code != 7 {
			t.Errorf("exited %v with %d", exited, code)
		}
	})
	t.Run("a restart appends to the log and reads its own part", func(t *testing.T) {
		sh("twice", "echo first", 0)
		time.Sleep(100 * time.Millisecond)
		p := sh("twice", "echo second; sleep 60", 0)
		if out, err := p.WaitText(ctx, "second"); err != nil || out != "second\n" {
			t.Errorf("output %q, %v", out, err)
		}
	})
	t.Run("it may end by itself in its grace", func(t *testing.T) {
		p := sh("graceful", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done", 5*time.Second)
		if _, err := p.WaitText(ctx, "up"); err != nil {
			t.Fatal(err)
		}
		p.Stop(5 * time.Second)
		if code, _ := p.Exited(); code != 3 || !strings.Contains(p.Output(), "bye") {
			t.Errorf("code %d, output %q", code, p.Output())
		}
		p.Stop(0)
	})
	t.Run("a missing program is an error", func(t *testing.T) {
		if _, err := l.Start(Command{Name: "none", Args: []string{"/nonexistent"}}); err == nil {
			t.Error("no error")
		}
		if r := l.Run(ctx, Command{Args: []string{"/nonexistent"}}); r.OK() == nil || r.Code != -1 {
			t.Errorf("result %v", r)
		}
	})
	t.Run("results", func(t *testing.T) {
		r := l.Run(ctx, Command{Args: []string{"sh", "-c", "cat; echo err >&2; exit 4"}, Stdin: strings.NewReader("in")})
		if r.Stdout != "in" || r.Stderr != "err\n" || r.Code != 4 || r.Err != nil || r.OK() == nil {
			t.Errorf("%v", r)
		}
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		if r := l.Run(short, Command{Args: []string{"sh", "-c", "sleep 60"}}); r.Err == nil || r.Elapsed > 5*time.Second {
			t.Errorf("%v", r)
		}
		if r := l.Run(ctx, Command{Args: []string{"sh", "-c", "sleep 60 & echo hanging"}}); !errors.Is(r.Err, exec.ErrWaitDelay) {
			t.Errorf("a descendant that keeps the output open: %v", r)
		}
	})
	t.Run("closing ends everything", func(t *testing.T) {
		p := sh("parent", "setsid sh -c 'echo $$; sleep 1000' & sleep 1000", 0)
		out, err := p.WaitOutput(ctx, "a number", func(s string) bool { return strings.HasSuffix(s, "\n") })
		if err != nil {
			t.Fatal(err)
		}
		away, err := strconv.Atoi(strings.TrimSpace(out))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := syscall.Kill(away, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d, which left its group and lost its parent, is left: %v", away, err)
		}
		if _, err := l.Start(Command{Name: "late", Args: []string{"sleep", "60"}}); err == nil {
			t.Error("a closed lab starts processes")
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}
