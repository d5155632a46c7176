package netstack

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// engineLog passes wireguard-go's lines to slog, at debug level: what matters
// to people is seen by the callers of this package. wireguard-go's lines
// name peers by four and three letters of their public keys, and no secret.
//
// The same lines are the only word wireguard-go gives of when its workers
// end: device.Close tells them to, and returns before they have.
type engineLog struct {
	log     *slog.Logger
	workers int           // how many will say that they stopped
	stopped chan struct{} // one value for each that did
}

func newEngineLog(log *slog.Logger) *engineLog {
	n := 3*runtime.NumCPU() + 1 // encryption, decryption, handshake; TUN events
	return &engineLog{log: log, workers: n, stopped: make(chan struct{}, n)}
}

func (l *engineLog) logger() *device.Logger {
	return &device.Logger{Verbosef: l.verbosef, Errorf: l.debugf}
}

func (l *engineLog) verbosef(format string, args ...any) {
	if strings.HasPrefix(format, "Routine: ") && strings.HasSuffix(format, "worker %d - stopped") || format == "Routine: event worker - stopped" {
		select {
		case l.stopped <- struct{}{}:
		default:
		}
	}
	l.debugf(format, args...)
}

func (l *engineLog) debugf(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("wireguard", "event", fmt.Sprintf(format, args...))
	}
}

// waitWorkers returns when all workers said that they stopped, or after limit.
func (l *engineLog) waitWorkers(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for range l.workers {
		select {
		case <-l.stopped:
		case <-timer.C:
			l.log.Debug("wireguard's workers did not say that they stopped")
			return
		}
	}
}
