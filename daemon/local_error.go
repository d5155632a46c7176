package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/zt-daemon/zt/auth"
)

// Exit codes of zt-daemon. They are stable: scripts depend on them.
const (
	ExitFailure     = 1
	ExitUsage       = 2
	ExitLogin       = 3 // not logged in, or the login is over
	ExitUnreachable = 4 // relay, identity provider, node or daemon
	ExitDenied      = 5 // by a policy
)

// Kind says what sort of failure a LocalError is. The set is closed.
type Kind string

const (
	KindFailure        Kind = "failure"
	KindUsage          Kind = "usage"
	KindCancelled      Kind = "cancelled"
	KindNotLoggedIn    Kind = "not_logged_in"
	KindExpired        Kind = "expired"
	KindUnreachable    Kind = "unreachable"
	KindNotRunning     Kind = "not_running"
	KindDenied         Kind = "denied"
	KindUnknownCluster Kind = "unknown_cluster"
	KindCorruptState   Kind = "corrupt_state"
	KindBusy           Kind = "busy"
)

var kindExitCodes = map[Kind]int{
	KindFailure:        ExitFailure,
	KindUsage:          ExitUsage,
	KindCancelled:      ExitFailure,
	KindNotLoggedIn:    ExitLogin,
	KindExpired:        ExitLogin,
	KindUnreachable:    ExitUnreachable,
	KindNotRunning:     ExitUnreachable,
	KindDenied:         ExitDenied,
	KindUnknownCluster: ExitFailure,
	KindCorruptState:   ExitFailure,
	KindBusy:           ExitFailure,
}

// LocalError is a failure as the daemon tells it to the person's commands:
// what happened, what to do, and the exit code it stands for. It crosses the
// daemon's Unix socket as JSON.
type LocalError struct {
	Kind     Kind   `json:"kind"`
	Message  string `json:"message"`
	HintText string `json:"hint,omitempty"`
	Code     int    `json:"exitCode"`
}

// NewLocalError builds one; hint may be empty.
func NewLocalError(k Kind, hint, format string, args ...any) *LocalError {
	return &LocalError{Kind: k, Message: fmt.Sprintf(format, args...), HintText: hint, Code: k.ExitCode()}
}

// ExitCode is the exit code that k stands for; 1 for a kind this version does
// not know.
func (k Kind) ExitCode() int {
	if c, ok := kindExitCodes[k]; ok {
		return c
	}
	return ExitFailure
}

func (e *LocalError) Error() string { return e.Message }

// Hint says what to do; it may be empty.
func (e *LocalError) Hint() string { return e.HintText }

// ExitCode is between 1 and 5, whatever the other side sent.
func (e *LocalError) ExitCode() int {
	if e.Code < ExitFailure || e.Code > ExitDenied {
		return e.Kind.ExitCode()
	}
	return e.Code
}

// AsLocalError turns any error into one that can be sent or shown: the message
// is err's own; hint, kind and exit code are those of what it wraps, found by
// type. nil gives nil.
func AsLocalError(err error) *LocalError {
	if err == nil {
		return nil
	}
	e := NewLocalError(KindFailure, "", "%s", err)
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		e.HintText = h.Hint()
	}
	if kind, known := kindOf(err); known {
		e.Kind, e.Code = kind, kind.ExitCode()
	}
	if c, ok := errors.AsType[interface {
		error
		ExitCode() int
	}](err); ok && (e.Kind == KindFailure || isLocal(err)) {
		e.Code = c.ExitCode()
	}
	return e
}

func isLocal(err error) bool {
	_, ok := errors.AsType[*LocalError](err)
	return ok
}

// kindOf finds the kind of the errors that packages auth and daemon give. It
// is the one table from errors to exit codes.
func kindOf(err error) (k Kind, known bool) {
	if l, ok := errors.AsType[*LocalError](err); ok {
		return l.Kind, true
	}
	if _, ok := errors.AsType[*CorruptStateError](err); ok {
		return KindCorruptState, true
	}
	if r, ok := errors.AsType[*auth.RefusedError](err); ok {
		return refusalKind(r.Reason, r.Reason.Class()), true
	}
	if r, ok := errors.AsType[*RefusedError](err); ok {
		return refusalKind(auth.Reason(r.Reason), r.Class()), true
	}
	switch {
	case errors.Is(err, auth.ErrLoginCancelled):
		return KindCancelled, true
	case errors.Is(err, auth.ErrLoginTimeout):
		return KindNotLoggedIn, true
	case errors.Is(err, auth.ErrLoginExpired):
		return KindExpired, true
	case errors.Is(err, auth.ErrIssuerUnreachable):
		return KindUnreachable, true
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return KindUnreachable, true
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return KindUnreachable, true
	}
	switch {
	case errors.Is(err, ErrUnreachable), errors.Is(err, context.DeadlineExceeded):
		return KindUnreachable, true
	case errors.Is(err, context.Canceled):
		return KindCancelled, true
	}
	return KindFailure, false
}

func refusalKind(r auth.Reason, c auth.Class) Kind {
	switch {
	case r == auth.ReasonUnknownCluster:
		return KindUnknownCluster
	case r == auth.ReasonRequire, c == auth.ClassDenied:
		return KindDenied
	case c == auth.ClassLogin:
		return KindExpired
	case c == auth.ClassUnavailable:
		return KindUnreachable
	default:
		return KindFailure
	}
}
