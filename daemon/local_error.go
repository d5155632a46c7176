package daemon

import (
	"context"
	"errors"
	"fmt"

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

// AsLocalError turns any error into one that can be sent: kind and hint are
// those of the first LocalError, *auth.RefusedError or error with a Hint in
// its chain, the message is err's own. nil gives nil.
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
	if c, ok := errors.AsType[interface {
		error
		ExitCode() int
	}](err); ok {
		e.Code = c.ExitCode()
	}
	if l, ok := errors.AsType[*LocalError](err); ok {
		e.Kind, e.Code = l.Kind, l.ExitCode()
	} else if r, ok := errors.AsType[*auth.RefusedError](err); ok {
		e.Kind = refusalKind(r.Reason)
		e.Code = e.Kind.ExitCode()
	} else if _, ok := errors.AsType[*CorruptStateError](err); ok {
		e.Kind = KindCorruptState
	} else if errors.Is(err, context.DeadlineExceeded) {
		e.Kind, e.Code = KindUnreachable, ExitUnreachable
	} else if errors.Is(err, context.Canceled) {
		e.Kind = KindCancelled
	}
	return e
}

func refusalKind(r auth.Reason) Kind {
	if r == auth.ReasonUnknownCluster {
		return KindUnknownCluster
	}
	switch r.Class() {
	case auth.ClassLogin:
		return KindExpired
	case auth.ClassDenied:
		return KindDenied
	case auth.ClassUnavailable:
		return KindUnreachable
	default:
		// What was presented is wrong: for a person that is a denial as well.
		return KindDenied
	}
}
