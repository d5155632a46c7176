package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// clockTick is the unit of times in /proc/PID/stat: Linux shows hundredths of a
// second to programs, whatever the kernel counts in.
const clockTick = 0.01

// cpuSeconds is the user and system time of a process, all its threads and those
// that have ended included.
func cpuSeconds(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything; what follows begins with field 3.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	var sum float64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		sum += n * clockTick
	}
	return sum, nil
}

// memory is a process's resident memory in MiB: now, of that what is not pages of
// its program file, and at its highest.
func memory(pid int) (now, anonymous, peak float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		var at *float64
		switch name {
		case "VmRSS":
			at = &now
		case "RssAnon":
			at = &anonymous
		case "VmHWM":
			at = &peak
		default:
			continue
		}
		kb, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 64)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("/proc/%d/status: %w", pid, err)
		}
		*at = kb / 1024
	}
	if now == 0 {
		return 0, 0, 0, fmt.Errorf("/proc/%d/status has no VmRSS", pid)
	}
	return now, anonymous, peak, nil
}
