package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const cgroupRoot = "/sys/fs/cgroup"

// checkCgroups says whether kubelets can run here. They run pods below cgroups
// of version 1, which cannot be used at the same time as those of version 2.
func checkCgroups() error {
	if _, err := os.Stat(filepath.Join(cgroupRoot, "memory")); err != nil {
		return fmt.Errorf("kubelets need the controllers of cgroup version 1: %w", err)
	}
	return nil
}

// makeCgroup makes the cgroup that a kubelet wants to find, and has Close remove
// it with what is below.
func (l *Lab) makeCgroup(name string) error {
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	l.Cleanup(func() error { return removeCgroup(name) })
	for _, e := range entries {
		if !e.IsDir() || e.Name() == "unified" { // links to controllers, and version 2, where runc makes its own
			continue
		}
		if err := os.Mkdir(filepath.Join(cgroupRoot, e.Name(), name), 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} { // empty in a new one, and then nothing may run there
		b, err := os.ReadFile(filepath.Join(cgroupRoot, "cpuset", f))
		if err == nil {
			err = os.WriteFile(filepath.Join(cgroupRoot, "cpuset", name, f), b, 0o644)
		}
		if err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	return nil
}

// removeCgroup removes a cgroup and those below it. The kernel takes a moment to
// let go of processes that were killed.
func removeCgroup(name string) error {
	dirs, err := filepath.Glob(filepath.Join(cgroupRoot, "*", name))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if err = removeTree(d); err == nil || time.Now().After(end) {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

func removeTree(dir string) error {
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, d := range slices.Backward(all) {
		if e := syscall.Rmdir(d); e != nil && e != syscall.ENOENT {
			err = e
		}
	}
	return err
}

// removeStaleCgroups removes those of runs whose process is gone.
func removeStaleCgroups() error {
	dirs, err := filepath.Glob(filepath.Join(cgroupRoot, "memory", namespacePrefix+"*"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		name := filepath.Base(d)
		m := namespaceName.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		if pid, err := strconv.Atoi(m[1]); err != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue // a run that is under way
		}
		if err := removeCgroup(name); err != nil {
			return err
		}
	}
	return nil
}

// podCgroup is the directory of a pod's memory cgroup.
func (m *Machine) podCgroup(pod Pod) (string, error) {
	root := filepath.Join(cgroupRoot, "memory", m.cgroup, "kubepods")
	for _, class := range []string{"", "burstable", "besteffort"} {
		dir := filepath.Join(root, class, "pod"+pod.Metadata.UID)
		if _, err := os.Stat(dir); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("pod %s has no cgroup on %s", pod.Metadata.Name, m.Name)
}

// cgroupProcesses lists the processes in a cgroup and those below it.
func cgroupProcesses(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		b, err := os.ReadFile(path)
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
		return err
	})
	return pids, err
}

// PodMemory is what the kernel counts for a pod.
type PodMemory struct {
	Usage, Peak, Limit int64 // bytes, with the page cache
	Refused            int64 // allocations that met the limit and made the kernel reclaim
	Killed             int64 // processes killed for want of memory
}

// Memory reads the memory cgroup of a pod's container in which the program runs.
func (m *Machine) Memory(pod Pod, program string) (PodMemory, error) {
	var p PodMemory
	pid, err := m.PodProcess(pod, program)
	if err != nil {
		return p, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return p, err
	}
	var dir string
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[1] == "memory" {
			dir = filepath.Join(cgroupRoot, "memory", f[2])
		}
	}
	for _, x := range []struct {
		file string
		into *int64
	}{{"memory.usage_in_bytes", &p.Usage}, {"memory.max_usage_in_bytes", &p.Peak}, {"memory.limit_in_bytes", &p.Limit}, {"memory.failcnt", &p.Refused}} {
		b, err := os.ReadFile(filepath.Join(dir, x.file))
		if err != nil {
			return p, err
		}
		if *x.into, err = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err != nil {
			return p, fmt.Errorf("%s: %w", x.file, err)
		}
	}
	if b, err = os.ReadFile(filepath.Join(dir, "memory.oom_control")); err != nil {
		return p, err
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			p.Killed, err = strconv.ParseInt(strings.TrimSpace(n), 10, 64)
			return p, err
		}
	}
	return p, errors.New("memory.oom_control has no oom_kill")
}
