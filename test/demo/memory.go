package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

const (
	// idleMemory is what a laptop's daemon or a node may hold with a session and no
	// edge, in bytes resident (VmRSS). They were at 10 and 15 MiB when this was written:
	// the rest is for kernels that map more of a file at each fault.
	idleMemory = 20 << 20
	// idleWait lets both notice, by their ten-second tick, that nothing happens.
	idleWait = 30 * time.Second
)

// benchMemory measures both ends before the first flow.
func (s *story) benchMemory(ctx context.Context) error {
	if runtime.GOOS != "linux" {
		fmt.Println("\nresident memory is measured on Linux only")
		return nil
	}
	r := s.alice.ZT(ctx, "status", "-o", "json")
	if err := r.OK(); err != nil {
		return err
	}
	var status struct{ PID int }
	if err := json.Unmarshal([]byte(r.Stdout), &status); err != nil {
		return fmt.Errorf("status -o json: %w", err)
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(idleWait):
	}
	fmt.Printf("\nresident memory %s after the login, no edge yet, at most %d MiB\n", idleWait, idleMemory>>20)
	var over []string
	for _, p := range []struct {
		name string
		pid  int
	}{{"laptop", status.PID}, {"node", s.Node.Process.PID()}} {
		bytes, err := residentMemory(p.pid)
		if err != nil {
			return fmt.Errorf("memory of the %s: %w", p.name, err)
		}
		fmt.Printf("  %-8s %5.1f MiB\n", p.name, float64(bytes)/(1<<20))
		if bytes > idleMemory {
			over = append(over, p.name)
		}
	}
	if len(over) > 0 {
		return fmt.Errorf("%s: over the bar of %d MiB resident", strings.Join(over, " and "), idleMemory>>20)
	}
	return nil
}

// residentMemory is VmRSS of a process (proc_pid_status(5)), in bytes.
func residentMemory(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.Atoi(f[1])
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmRSS", pid)
}
