package daemon

import (
	"fmt"
	"net"
	"net/netip"
)

// GuardReason names why a loopback connection was refused. The set is closed:
// it is a label of a counter.
type GuardReason string

const (
	// GuardOtherUser: the other end belongs to another user of this machine.
	GuardOtherUser GuardReason = "other_user"
	// GuardClosed: the other end is gone or going; nobody owns it any more.
	GuardClosed GuardReason = "closed"
	// GuardNotLoopback: the connection does not come from this machine.
	GuardNotLoopback GuardReason = "not_loopback"
	// GuardNoAnswer: the operating system did not say who owns the other end.
	GuardNoAnswer GuardReason = "owner_unknown"
	// GuardUnsupported: this operating system cannot be asked yet.
	GuardUnsupported GuardReason = "unsupported_system"
)

// GuardError is the refusal of a loopback connection.
type GuardError struct {
	Reason GuardReason
	Remote netip.AddrPort // the other end
	Err    error          // what the operating system said; may be nil
	UID    uint32         // with GuardOtherUser: the owner
}

func (e *GuardError) Error() string {
	switch e.Reason {
	case GuardOtherUser:
		return fmt.Sprintf("connection from %s belongs to user %d of this machine, not to the one that runs zt-daemon", e.Remote, e.UID)
	case GuardClosed:
		return fmt.Sprintf("connection from %s is already closed at its other end", e.Remote)
	case GuardNotLoopback:
		return fmt.Sprintf("connection from %s does not come from this machine", e.Remote)
	case GuardUnsupported:
		return fmt.Sprintf("who owns the connection from %s cannot be told on this system: it is not supported yet", e.Remote)
	default:
		return fmt.Sprintf("who owns the connection from %s: %v", e.Remote, e.Err)
	}
}

func (e *GuardError) Unwrap() error { return e.Err }

// Guard tells whose process is at the other end of a loopback TCP connection.
// The zero value admits only connections of user 0; use NewGuard.
type Guard struct {
	uid uint32
}

// NewGuard admits connections of the user with this numeric id: the effective
// user of the process (os.Geteuid). On Windows the id is not used.
func NewGuard(uid int) Guard { return Guard{uid: uint32(uid)} }

// Check returns nil if c, as accepted from a loopback listener, is established
// and its other end is owned by the guard's user; otherwise a *GuardError. No
// answer from the operating system is a refusal: Check fails closed. Once
// asked for an established connection the answer stays true, because our end
// holds the pair of ports that another process would need.
func (g Guard) Check(c net.Conn) error {
	// AddrPort of a TCPAddr; anything else is not a TCP connection.
	local, lok := c.LocalAddr().(*net.TCPAddr)
	remote, rok := c.RemoteAddr().(*net.TCPAddr)
	if !lok || !rok {
		return &GuardError{Reason: GuardNoAnswer, Err: fmt.Errorf("a %T has no TCP addresses", c)}
	}
	ours, theirs := unmapped(local.AddrPort()), unmapped(remote.AddrPort())
	if !theirs.Addr().IsLoopback() || !ours.Addr().IsLoopback() {
		return &GuardError{Reason: GuardNotLoopback, Remote: theirs}
	}
	uid, err := connectionOwner(theirs, ours)
	if err != nil {
		err.Remote = theirs
		return err
	}
	if uid != g.uid {
		return &GuardError{Reason: GuardOtherUser, Remote: theirs, UID: uid}
	}
	return nil
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
