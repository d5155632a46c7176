package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dieWithParent has the kernel kill the child when the thread that started it
// ends, however that comes about.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }

// enter moves the calling thread into the namespace.
func (n *Namespace) enter() error {
	if n == nil {
		return nil
	}
	fd, err := unix.Open(n.path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
	}
	return nil
}

func (n *Namespace) path() string { return filepath.Join("/run/netns", n.Name) }

// adoptOrphans makes this process the parent of descendants whose own parent
// has ended: a daemon that a command put into the background is then still ours
// to end.
func adoptOrphans() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// endOrphans kills the adopted children that are left, and their descendants in
// turn, which become ours when their parents end. Children of this process that
// do not carry the mark are somebody else's.
func endOrphans(mark string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		left := orphans(mark)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end", left)
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
		for _, pid := range left {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
		}
	}
}

// orphans lists the living children of this process that carry the mark.
func orphans(mark string) []int {
	var found []int
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				continue
			}
			env, _ := os.ReadFile(filepath.Join("/proc", f, "environ"))
			if slices.Contains(strings.Split(string(env), "\x00"), mark) {
				found = append(found, pid)
			}
		}
	}
	return found
}
