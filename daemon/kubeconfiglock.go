package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	kubeconfigLockWait = 10 * time.Second
	kubeconfigLockPoll = 50 * time.Millisecond
)

// KubeconfigLockedError says that another program's lock did not go away.
type KubeconfigLockedError struct {
	Lock string // the lock file
	Wait time.Duration
}

func (e *KubeconfigLockedError) Error() string {
	return fmt.Sprintf("kubeconfig is locked: %s is still there after %v", e.Lock, e.Wait)
}

// Hint says when the lock file may go.
func (e *KubeconfigLockedError) Hint() string {
	return fmt.Sprintf("if no kubectl or other tool is writing the kubeconfig, one that died left the lock: remove it with `rm '%s'`", e.Lock)
}

// lockKubeconfigs locks files as client-go does (tools/clientcmd, lockFile):
// FILE.lock is created exclusively, in the order of the names, and removed by
// unlock. Where the target of a symbolic link has another name, it is locked
// too. A file that does not exist, other than main, is not locked: it will not
// be written. wait 0 means 10 s.
func lockKubeconfigs(ctx context.Context, files []string, main string, wait time.Duration) (unlock func(), err error) {
	if wait <= 0 {
		wait = kubeconfigLockWait
	}
	var names []string
	for _, path := range files {
		if _, err := os.Stat(path); err != nil && path != main {
			continue
		}
		target, err := linkTarget(path)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig: %w", err)
		}
		names = append(names, path, target)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	var held []string
	unlock = func() {
		for _, lock := range held {
			os.Remove(lock)
		}
	}
	deadline := time.Now().Add(wait)
	for _, path := range names {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			unlock()
			return nil, fmt.Errorf("kubeconfig: %w", err)
		}
		lock := path + ".lock"
		if err := lockKubeconfig(ctx, lock, deadline, wait); err != nil {
			unlock()
			return nil, err
		}
		held = append(held, lock)
	}
	return unlock, nil
}

func lockKubeconfig(ctx context.Context, lock string, deadline time.Time, wait time.Duration) error {
	for {
		f, err := os.OpenFile(lock, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			return f.Close()
		}
		if !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("lock the kubeconfig: %w", err)
		}
		if time.Now().After(deadline) {
			return &KubeconfigLockedError{Lock: lock, Wait: wait}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(kubeconfigLockPoll):
		}
	}
}
