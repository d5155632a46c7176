package daemon

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// What linux/inet_diag.h and linux/sock_diag.h say, and x/sys does not.
const (
	inetDiagRequestSize = 56 // struct inet_diag_req_v2
	inetDiagMessageSize = 72 // struct inet_diag_msg
	inetDiagSockIDAt    = 8  // struct inet_diag_sockid in the request
	inetDiagAnswerIDAt  = 4  // and in the answer
	inetDiagUIDAt       = 64 // idiag_uid in the answer, in the reader's user namespace
	inetDiagNoCookie    = ^uint32(0)
	tcpEstablished      = 1 // net/tcp_states.h
)

// ownerTimeout bounds the kernel's answer, which takes some 10 µs.
const ownerTimeout = time.Second

// connectionOwner asks the kernel, by exact address and port, for the socket
// whose own end is `own` and whose far end is `far`, and returns its owner. It
// needs no privilege. Sockets that are not ESTABLISHED are refused before the
// owner is looked at: an orphan in FIN_WAIT or TIME_WAIT reports uid 0, which
// is a real user's.
func connectionOwner(own, far netip.AddrPort) (uint32, *GuardError) {
	state, uid, err := inetDiag(own, far)
	switch {
	case errors.Is(err, unix.ENOENT):
		// The socket is gone, or this kernel has no tcp_diag: ask for the
		// listener, which surely is there.
		anywhere := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
		if far.Addr().Is6() {
			anywhere = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		}
		if _, _, err := inetDiag(far, anywhere); errors.Is(err, unix.ENOENT) {
			return 0, &GuardError{Reason: GuardNoAnswer, Err: errors.New("this kernel has no tcp_diag (CONFIG_INET_TCP_DIAG), or this sandbox hides it")}
		}
		return 0, &GuardError{Reason: GuardClosed}
	case err != nil:
		return 0, &GuardError{Reason: GuardNoAnswer, Err: err}
	case state != tcpEstablished:
		return 0, &GuardError{Reason: GuardClosed}
	}
	return uid, nil
}

// inetDiag makes one exact SOCK_DIAG_BY_FAMILY request (sock_diag(7)). It
// opens a socket of its own for it: nothing is shared, so nothing can be mixed up.
func inetDiag(own, far netip.AddrPort) (state uint8, uid uint32, err error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, 0, fmt.Errorf("open a sock_diag socket: %w", err)
	}
	defer unix.Close(s)
	tv := unix.NsecToTimeval(int64(ownerTimeout))
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return 0, 0, fmt.Errorf("set a deadline on a sock_diag socket: %w", err)
	}
	const sequence = 1
	var buf [unix.SizeofNlMsghdr + inetDiagRequestSize]byte
	req := appendDiagRequest(buf[:0], sequence, own, far)
	if err := unix.Sendto(s, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, 0, fmt.Errorf("ask sock_diag: %w", err)
	}
	var answer [1024]byte
	for {
		n, from, err := unix.Recvfrom(s, answer[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return 0, 0, fmt.Errorf("read sock_diag's answer: %w", err)
		}
		// Any local process may write to a netlink socket; port 0 is the kernel.
		if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 {
			continue
		}
		return parseDiagAnswer(answer[:n], sequence, own, far)
	}
}

// appendDiagRequest appends struct nlmsghdr and struct inet_diag_req_v2. Ports
// and addresses are big-endian, the rest is in the machine's order.
func appendDiagRequest(b []byte, sequence uint32, own, far netip.AddrPort) []byte {
	start := len(b)
	b = append(b, make([]byte, unix.SizeofNlMsghdr+inetDiagRequestSize)...)
	h, r := b[start:], b[start+unix.SizeofNlMsghdr:]
	binary.NativeEndian.PutUint32(h[0:], uint32(len(h)))
	binary.NativeEndian.PutUint16(h[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint16(h[6:], unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(h[8:], sequence)
	r[0], r[1] = unix.AF_INET, unix.IPPROTO_TCP
	if own.Addr().Is6() {
		r[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(r[4:], ^uint32(0)) // states: an exact request ignores them
	putDiagSockID(r[inetDiagSockIDAt:], own, far)
	return b
}

// putDiagSockID writes ports and addresses of struct inet_diag_sockid, any
// interface, any cookie.
func putDiagSockID(id []byte, own, far netip.AddrPort) {
	binary.BigEndian.PutUint16(id[0:], own.Port())
	binary.BigEndian.PutUint16(id[2:], far.Port())
	copy(id[4:20], own.Addr().AsSlice())
	copy(id[20:36], far.Addr().AsSlice())
	binary.NativeEndian.PutUint32(id[40:], inetDiagNoCookie)
	binary.NativeEndian.PutUint32(id[44:], inetDiagNoCookie)
}

// parseDiagAnswer reads one struct nlmsghdr with struct inet_diag_msg or an
// error, which it returns as the unix.Errno. The socket must be the one that
// was asked for; an IPv6 socket with an IPv4-mapped address is the same.
func parseDiagAnswer(b []byte, sequence uint32, own, far netip.AddrPort) (state uint8, uid uint32, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return 0, 0, fmt.Errorf("sock_diag answered %d bytes", len(b))
	}
	size := binary.NativeEndian.Uint32(b)
	if size < unix.SizeofNlMsghdr || int64(size) > int64(len(b)) || binary.NativeEndian.Uint32(b[8:]) != sequence {
		return 0, 0, errors.New("sock_diag's answer is not to this question")
	}
	body := b[unix.SizeofNlMsghdr:size]
	switch kind := binary.NativeEndian.Uint16(b[4:]); kind {
	case unix.NLMSG_ERROR:
		if len(body) < 4 {
			return 0, 0, errors.New("sock_diag answered a short error")
		}
		errno := -int32(binary.NativeEndian.Uint32(body))
		if errno <= 0 {
			return 0, 0, errors.New("sock_diag answered nothing")
		}
		return 0, 0, fmt.Errorf("sock_diag: %w", unix.Errno(errno))
	case unix.SOCK_DIAG_BY_FAMILY:
	default:
		return 0, 0, fmt.Errorf("sock_diag answered a message of type %d", kind)
	}
	if len(body) < inetDiagMessageSize {
		return 0, 0, fmt.Errorf("sock_diag answered %d bytes, want %d", len(body), inetDiagMessageSize)
	}
	id := body[inetDiagAnswerIDAt:]
	gotOwn, gotFar := diagAddr(body[0], id[0:2], id[4:20]), diagAddr(body[0], id[2:4], id[20:36])
	if gotOwn != own || gotFar != far {
		if body[1] != tcpEstablished { // a listener on the client's port: the connection itself is gone
			return body[1], 0, nil
		}
		return 0, 0, fmt.Errorf("sock_diag answered for %v–%v, asked for %v–%v", gotOwn, gotFar, own, far)
	}
	return body[1], binary.NativeEndian.Uint32(body[inetDiagUIDAt:]), nil
}

func diagAddr(family uint8, port, addr []byte) netip.AddrPort {
	var a netip.Addr
	if family == unix.AF_INET6 {
		a = netip.AddrFrom16([16]byte(addr[:16])).Unmap()
	} else {
		a = netip.AddrFrom4([4]byte(addr[:4]))
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))
}
