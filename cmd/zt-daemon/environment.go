package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/term"
)

// environment is everything a command takes from outside its own flags. It is
// made once in main and handed to every command, so that a test can give a
// command another world; nothing else in this program reads the process's
// environment, its standard files or its executable's path.
type environment struct {
	stdin  io.Reader
	stdout io.Writer // answers: what a script reads
	stderr io.Writer // progress, questions, errors and hints

	getenv     func(string) string
	home       string      // the person's home directory; empty when there is none
	executable string      // absolute path of this program, symlinks kept; empty when unknown
	isTerminal func() bool // whether a person can be asked: standard input and error are terminals
	width      func() int  // columns of the terminal on standard error; 80 when it is none
}

// processEnvironment is the environment of this process.
func processEnvironment() *environment {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "" // commands that need it say so
	}
	exe, err := os.Executable()
	if err != nil || !filepath.IsAbs(exe) {
		exe = ""
	}
	return &environment{
		stdin:      os.Stdin,
		stdout:     os.Stdout,
		stderr:     os.Stderr,
		getenv:     os.Getenv,
		home:       home,
		executable: exe,
		isTerminal: func() bool {
			return term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stderr.Fd()))
		},
		width: func() int {
			if w, _, err := term.GetSize(int(os.Stderr.Fd())); err == nil && w > 0 {
				return w
			}
			return 80
		},
	}
}

// usageError is a command line that cannot be meant: exit code 2. Make it with
// usagef.
type usageError struct {
	err  error
	hint string
}

// usagef reports a wrong command line, formatted as by fmt.Errorf. hint is the
// next thing to type; it may be empty.
func usagef(hint, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), hint: hint}
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// Hint is what to type instead.
func (e *usageError) Hint() string { return e.hint }

// ExitCode is 2.
func (e *usageError) ExitCode() int { return exitUsage }
