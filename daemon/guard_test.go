package daemon

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// loopbackPair is a connection as a loopback listener accepts it, and its
// other end.
func loopbackPair(t testing.TB, network, addr string) (accepted, other *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Skipf("cannot listen on %s %s: %v", network, addr, err)
	}
	t.Cleanup(func() { ln.Close() })
	o, err := net.Dial(network, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	a, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a.(*net.TCPConn), o.(*net.TCPConn)
}

func wantGuardReason(t *testing.T, err error, want GuardReason) *GuardError {
	t.Helper()
	g, ok := errors.AsType[*GuardError](err)
	if !ok || g.Reason != want {
		t.Fatalf("got %v, want a refusal with reason %s", err, want)
	}
	if g.Error() == "" {
		t.Error("the refusal has no text")
	}
	return g
}

func TestGuardRefusesWhatIsNotLoopback(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	wantGuardReason(t, NewGuard(os.Geteuid()).Check(a), GuardNoAnswer)
	far := &addrConn{Conn: a, local: "127.0.0.1:1", remote: "192.0.2.1:2"}
	wantGuardReason(t, NewGuard(os.Geteuid()).Check(far), GuardNotLoopback)
}

// addrConn is a connection with other addresses.
type addrConn struct {
	net.Conn
	local, remote string
}

func (c *addrConn) LocalAddr() net.Addr  { return tcpAddr(c.local) }
func (c *addrConn) RemoteAddr() net.Addr { return tcpAddr(c.remote) }

func tcpAddr(s string) net.Addr {
	a, err := net.ResolveTCPAddr("tcp", s)
	if err != nil {
		panic(err)
	}
	return a
}

// TestDialAsChild is not a test of its own: TestGuardRefusesAnotherUser runs
// it in a process of another user.
func TestDialAsChild(t *testing.T) {
	addr := os.Getenv("ZT_TEST_DIAL")
	if addr == "" {
		t.Skip("runs only as a child of TestGuardRefusesAnotherUser and its like")
	}
	c, err := net.DialTimeout(os.Getenv("ZT_TEST_DIAL_NETWORK"), addr, 5*time.Second)
	if errors.Is(err, syscall.ECONNRESET) {
		return // refused before connect returned
	} else if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	c.Write([]byte("GET /v1/status HTTP/1.1\r\nHost: " + localHost + "\r\n\r\n"))
	n, err := c.Read(make([]byte, 1))
	if n != 0 || err == nil {
		t.Fatalf("read %d bytes, %v: the connection was served", n, err)
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		t.Fatal("the connection was left open")
	}
}
