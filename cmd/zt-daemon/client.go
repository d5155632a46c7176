package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/zt-daemon/zt/daemon"
)

const (
	startTimeout  = 10 * time.Second // for a daemon in the background to answer
	startPoll     = 10 * time.Millisecond
	answerTimeout = 15 * time.Second // for one answer of a daemon that runs
	logMaxBytes   = 8 << 20          // a longer log is put aside when the daemon starts
	logTailBytes  = 4 << 10
)

// reach returns a client of the running daemon and what it says of itself, or
// daemon.ErrNotRunning.
func reach(ctx context.Context, env *environment) (*daemon.LocalClient, daemon.Status, error) {
	dirs, err := env.dirs()
	if err != nil {
		return nil, daemon.Status{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	client := daemon.NewLocalClient(dirs.Socket(), env.uid)
	status, err := client.Status(ctx)
	if !errors.Is(err, daemon.ErrNotRunning) {
		return client, status, err
	}
	// It may have been started where XDG_RUNTIME_DIR is another: a cron job, a
	// login over ssh. The lock file says where it listens; who does, the client checks.
	state, oerr := daemon.OpenState(dirs.State)
	if oerr != nil {
		return nil, daemon.Status{}, oerr
	}
	info, ierr := state.Daemon()
	if ierr != nil || info.Socket == "" || info.Socket == dirs.Socket() {
		return nil, daemon.Status{}, err
	}
	client = daemon.NewLocalClient(info.Socket, env.uid)
	status, err = client.Status(ctx)
	return client, status, err
}

// reachOrStart is reach, and starts a daemon in the background if none runs.
func reachOrStart(ctx context.Context, env *environment) (*daemon.LocalClient, daemon.Status, error) {
	client, status, err := reach(ctx, env)
	if !errors.Is(err, daemon.ErrNotRunning) {
		return client, status, err
	}
	return startDaemon(ctx, env)
}

// startDaemon runs `zt-daemon up --foreground` in a session of its own, with
// its log in the state directory, and waits until it answers.
func startDaemon(ctx context.Context, env *environment) (*daemon.LocalClient, daemon.Status, error) {
	fail := func(err error) (*daemon.LocalClient, daemon.Status, error) {
		return nil, daemon.Status{}, fmt.Errorf("start the daemon: %w", err)
	}
	if env.executable == "" {
		return fail(errors.New("the path of zt-daemon is unknown"))
	}
	state, _, err := env.state()
	if err != nil {
		return fail(err)
	}
	log, from, err := openLog(state.LogPath())
	if err != nil {
		return fail(err)
	}
	defer log.Close()
	args := []string{"up", "--foreground"}
	if env.stateDir != "" {
		args = append(args, "--state-dir", state.Dir())
	}
	// Not CommandContext: the daemon outlives this command.
	cmd := exec.Command(env.executable, args...)
	cmd.Args[0] = "zt-daemon"
	cmd.Dir = filepath.Dir(state.Dir()) // a directory that nobody unmounts; not where this command was typed
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = detached()
	if err := cmd.Start(); err != nil {
		return fail(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	for wait := startPoll; ; wait = min(2*wait, 20*startPoll) {
		client, status, err := reach(ctx, env)
		if !errors.Is(err, daemon.ErrNotRunning) {
			return client, status, err
		}
		select {
		case <-ended:
			// Another command may have started one in the same moment: that one serves.
			if client, status, err := reach(ctx, env); err == nil {
				return client, status, nil
			}
			return nil, daemon.Status{}, daemon.NewLocalError(daemon.KindFailure, "the whole log is "+state.LogPath(),
				"the daemon ended as soon as it began: %s", lastLine(state.LogPath(), from))
		case <-timeout.C:
			return nil, daemon.Status{}, daemon.NewLocalError(daemon.KindUnreachable, "its log is "+state.LogPath(),
				"the daemon (process %d) did not answer within %v", cmd.Process.Pid, startTimeout)
		case <-ctx.Done():
			return fail(ctx.Err())
		case <-time.After(wait):
		}
	}
}

// openLog opens the daemon's log for appending; from is its length. A log that
// has grown long is put aside first.
func openLog(path string) (f *os.File, from int64, err error) {
	if info, err := os.Stat(path); err == nil && info.Size() > logMaxBytes {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, 0, err
		}
	}
	if f, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, 0, err
	}
	if from, err = f.Seek(0, io.SeekEnd); err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, from, nil
}

// lastLine is what a log says last after offset from, without our own prefix.
func lastLine(path string, from int64) string {
	const nothing = "it left no word"
	f, err := os.Open(path)
	if err != nil {
		return nothing
	}
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, from, logTailBytes))
	if err != nil {
		return nothing
	}
	last := nothing
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "zt-daemon: hint: ") {
			last = strings.TrimPrefix(line, "zt-daemon: ")
		}
	}
	return last
}
