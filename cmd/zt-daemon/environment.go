package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/term"

	"github.com/zt-daemon/zt/daemon"
)

// environment is everything a command takes from outside its own flags. It is
// made once in main and handed to every command, so that a test can give a
// command another world. But for proxies (http.ProxyFromEnvironment) nothing else
// in this program reads the process's environment, its standard files or its
// executable's path.
type environment struct {
	stdin  io.Reader
	stdout io.Writer // answers: what a script reads
	stderr io.Writer // progress, questions, errors and hints

	getenv     func(string) string
	goos       string      // runtime.GOOS
	home       string      // the person's home directory; empty when there is none
	executable string      // absolute path of this program; empty when unknown
	uid        int         // effective user; -1 on Windows
	isTerminal func() bool // whether a person can be asked: standard input and error are terminals

	// openBrowser shows a page to the person. It may return before or after the
	// page is shown.
	openBrowser func(url string) error
	// runLaptop runs the daemon of a laptop until ctx is done or it is told to end.
	runLaptop func(context.Context, daemon.LaptopConfig) error

	stateDir string // --state-dir; empty: the system's usual directories
}

// dirs are the directories of this person.
func (env *environment) dirs() (daemon.Dirs, error) {
	if env.stateDir == "" {
		return daemon.FindDirs(env.goos, env.home, env.getenv)
	}
	dir, err := filepath.Abs(env.stateDir)
	if err != nil {
		return daemon.Dirs{}, err
	}
	return daemon.DirsUnder(dir), nil
}

// state opens the state directory of this person.
func (env *environment) state() (*daemon.State, daemon.Dirs, error) {
	dirs, err := env.dirs()
	if err != nil {
		return nil, dirs, err
	}
	s, err := daemon.OpenState(dirs.State)
	return s, dirs, err
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
		goos:       runtime.GOOS,
		home:       home,
		executable: exe,
		uid:        os.Geteuid(),
		isTerminal: func() bool {
			return term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stderr.Fd()))
		},
		openBrowser: openBrowser,
		runLaptop:   runLaptop,
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
