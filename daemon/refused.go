package daemon

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// ErrUnreachable matches, with errors.Is, every error that says that a relay
// could not be reached or stopped answering. The same again may succeed later.
var ErrUnreachable = errors.New("relay unreachable")

// UnreachableError says which relay could not be reached, and why.
type UnreachableError struct {
	Relay string // its URL
	Err   error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("relay %s is unreachable: %v", e.Relay, e.Err)
}

// Unwrap returns the cause.
func (e *UnreachableError) Unwrap() error { return e.Err }

// Is makes errors.Is(err, ErrUnreachable) true.
func (e *UnreachableError) Is(target error) bool { return target == ErrUnreachable }

// Hint says what to do.
func (e *UnreachableError) Hint() string {
	return "see that this machine reaches the relay on TCP 443, and that the relay runs"
}

// RelayKeyError says that whatever answers at a relay's URL did not prove the
// key that the network's head names, or serves another network.
type RelayKeyError struct {
	Relay   string // its URL
	Want    key.RelayPublic
	Next    key.RelayPublic // zero: the head names no next key
	Network auth.NetworkID
}

func (e *RelayKeyError) Error() string {
	want := e.Want.String()
	if !e.Next.IsZero() {
		want += " or " + e.Next.String()
	}
	if e.Network.IsZero() {
		return fmt.Sprintf("relay %s did not prove that it holds the key %s", e.Relay, want)
	}
	return fmt.Sprintf("relay %s did not prove that it holds the key %s and serves network %s", e.Relay, want, e.Network)
}

// Hint says what to do.
func (e *RelayKeyError) Hint() string {
	return "ask the platform engineer whether the relay was installed anew; if it was not, something else answers at its address"
}

// UntrustedError says that a relay's TLS certificate is neither valid for its
// name nor one that the network's head pins.
type UntrustedError struct {
	Relay string // its URL
	Pin   string // of the certificate that was shown: base64 of SHA-256 over its SPKI
	Pins  int    // how many the head names
	Err   error  // why the chain does not verify
}

func (e *UntrustedError) Error() string {
	if e.Pins == 0 {
		return fmt.Sprintf("relay %s: TLS certificate is not trusted: %v", e.Relay, e.Err)
	}
	return fmt.Sprintf("relay %s: TLS certificate (pin %s) is neither trusted nor pinned: %v", e.Relay, e.Pin, e.Err)
}

// Unwrap returns why the chain does not verify.
func (e *UntrustedError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *UntrustedError) Hint() string {
	return "if the relay has a certificate of its own making, its pin must be in the network's head: compare " + e.Pin + " with the pin that `zt-relay serve` prints"
}

// RefusedError is a relay's or a node's refusal. Reason is from the tables of
// packages auth and wire; Detail and HintText are another machine's words, which
// Error and Hint escape and shorten.
type RefusedError struct {
	Relay    string // the relay's URL, which refused or passed the refusal on
	Reason   string
	Detail   string
	HintText string
}

func refusedBy(relay string, m *wire.Refused) *RefusedError {
	return &RefusedError{Relay: relay, Reason: m.Reason, Detail: m.Detail, HintText: m.Hint}
}

// relayReasons are wire's reasons that package auth does not know.
var relayReasons = map[string]struct {
	class auth.Class
	what  string
	hint  string
}{
	wire.ReasonClusterOffline: {auth.ClassUnavailable, "no node of the cluster is connected to this relay", "see that the cluster's zt-daemon pods are running"},
	wire.ReasonTimeout:        {auth.ClassUnavailable, "the other side did not answer", "try again in a minute"},
	wire.ReasonTooMany:        {auth.ClassUnavailable, "a limit is reached", "try again in a minute"},
	wire.ReasonUnclaimed:      {auth.ClassInvalid, "the relay serves no network yet", "run the `zt-daemon network create` line that `zt-relay serve` printed"},
	wire.ReasonWrongCode:      {auth.ClassInvalid, "this is not the relay's claim code, or it was used", "take the code from the relay's latest start"},
	wire.ReasonVersion:        {auth.ClassInvalid, "no common protocol version", "use versions of zt-daemon and zt-relay that belong together"},
	wire.ReasonNotHeld:        {auth.ClassUnavailable, "the other side does not hold this edge", "try again"},
	wire.ReasonStale:          {auth.ClassInvalid, "the document is older than the one held, or conflicts with it", "fetch the network's documents and make the change again"},
	wire.ReasonBadDocument:    {auth.ClassInvalid, "the document does not verify", ""},
	wire.ReasonNotAllowed:     {auth.ClassDenied, "not allowed with this kind of session", ""},
	wire.ReasonStorage:        {auth.ClassUnavailable, "the relay could not write its state", "see the relay's log and disk"},
}

// Error says what happened, and the particulars after a colon.
func (e *RefusedError) Error() string {
	what := auth.Reason(e.Reason).Text()
	if r, ok := relayReasons[e.Reason]; ok {
		what = r.what
	}
	if e.Detail == "" {
		return what
	}
	return what + ": " + printable(e.Detail)
}

// Hint says what to do; it may be empty.
func (e *RefusedError) Hint() string {
	if e.HintText != "" {
		return printable(e.HintText)
	}
	if r, ok := relayReasons[e.Reason]; ok {
		return r.hint
	}
	return auth.Reason(e.Reason).Hint()
}

// Class says what can be done about the refusal.
func (e *RefusedError) Class() auth.Class {
	if r, ok := relayReasons[e.Reason]; ok {
		return r.class
	}
	return auth.Reason(e.Reason).Class()
}

// Is makes errors.Is(err, &RefusedError{Reason: r}) true for every refusal with
// that reason.
func (e *RefusedError) Is(target error) bool {
	t, ok := target.(*RefusedError)
	return ok && *t == RefusedError{Reason: e.Reason}
}

const maxPrintable = 500 // bytes of one foreign text in a message

// printable is s for a terminal or a log: runes that do not print are escaped,
// and the rest is cut at maxPrintable bytes.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if b.Len() >= maxPrintable {
			b.WriteString("…")
			break
		}
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		q := strconv.QuoteRuneToASCII(r)
		b.WriteString(q[1 : len(q)-1])
	}
	return b.String()
}
