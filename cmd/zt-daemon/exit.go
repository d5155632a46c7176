package main

import (
	"errors"
	"fmt"
	"strings"
)

// Exit codes, stable: scripts and the documentation depend on them.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitLogin       = 3 // not logged in, or the login is over
	exitUnreachable = 4
	exitDenied      = 5 // by a policy
)

type hinter interface {
	error
	Hint() string
}

type exitCoder interface {
	error
	ExitCode() int
}

// report prints err for a person and returns the exit code it stands for. It
// is the only place where either is decided.
func report(env *environment, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(env.stderr, "zt-daemon: %s\n", printable(err.Error()))
	if h, ok := errors.AsType[hinter](err); ok && h.Hint() != "" {
		for line := range strings.Lines(h.Hint()) {
			fmt.Fprintf(env.stderr, "zt-daemon: hint: %s\n", printable(strings.TrimSuffix(line, "\n")))
		}
	}
	if c, ok := errors.AsType[exitCoder](err); ok && c.ExitCode() > 0 {
		return c.ExitCode()
	}
	return exitFailure
}
