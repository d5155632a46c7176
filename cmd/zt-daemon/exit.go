package main

import (
	"fmt"
	"strings"

	"github.com/zt-daemon/zt/daemon"
)

// Exit codes, stable: scripts and the documentation depend on them.
const (
	exitFailure     = daemon.ExitFailure
	exitUsage       = daemon.ExitUsage
	exitLogin       = daemon.ExitLogin
	exitUnreachable = daemon.ExitUnreachable
	exitDenied      = daemon.ExitDenied
)

// report prints err for a person and returns the exit code it stands for. It
// is the only place where either is decided: daemon.AsLocalError has the table
// of errors, and what else has a Hint or an ExitCode says so itself.
func report(env *environment, err error) int {
	if err == nil {
		return 0
	}
	e := daemon.AsLocalError(err)
	fmt.Fprintf(env.stderr, "zt-daemon: %s\n", printable(e.Error()))
	for line := range strings.Lines(e.Hint()) {
		fmt.Fprintf(env.stderr, "zt-daemon: hint: %s\n", printable(strings.TrimSpace(line)))
	}
	return e.ExitCode()
}
