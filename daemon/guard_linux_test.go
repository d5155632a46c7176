package daemon

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestGuardAdmitsOwnConnections(t *testing.T) {
	for _, c := range []struct{ network, addr string }{{"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}, {"tcp", "127.0.0.1:0"}} {
		t.Run(c.network, func(t *testing.T) {
			a, _ := loopbackPair(t, c.network, c.addr)
			if err := NewGuard(os.Geteuid()).Check(a); err != nil {
				t.Error(err)
			}
			g := wantGuardReason(t, NewGuard(os.Geteuid()+1).Check(a), GuardOtherUser)
			if int(g.UID) != os.Geteuid() {
				t.Errorf("owner is %d, want %d", g.UID, os.Geteuid())
			}
		})
	}
}

// An IPv6 socket may connect to 127.0.0.1 as ::ffff:127.0.0.1; its owner is as good.
func TestGuardAdmitsMappedAddress(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Skipf("no IPv6 sockets here: %v", err)
	}
	defer unix.Close(s)
	to := &unix.SockaddrInet6{Port: int(ListenerPort(ln))}
	copy(to.Addr[:], net.ParseIP("127.0.0.1").To16())
	if err := unix.Connect(s, to); err != nil {
		t.Skipf("cannot connect to a mapped address: %v", err)
	}
	a, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := NewGuard(os.Geteuid()).Check(a); err != nil {
		t.Error(err)
	}
}

// What is closing reports uid 0 without an error: even a guard of user 0 refuses it.
func TestGuardRefusesClosed(t *testing.T) {
	for name, end := range map[string]func(*net.TCPConn){
		"closed":      func(c *net.TCPConn) { c.Close() },
		"reset":       func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
		"half-closed": func(c *net.TCPConn) { c.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			a, o := loopbackPair(t, "tcp4", "127.0.0.1:0")
			end(o)
			a.SetReadDeadline(time.Now().Add(5 * time.Second))
			if n, err := a.Read(make([]byte, 1)); n != 0 || err == nil { // its FIN or RST is here
				t.Fatalf("read %d bytes, %v", n, err)
			}
			wantGuardReason(t, NewGuard(0).Check(a), GuardClosed)
			wantGuardReason(t, NewGuard(os.Geteuid()).Check(a), GuardClosed)
		})
	}
}

// asNobody runs TestDialAsChild as user 65534.
func asNobody(t *testing.T, network, addr string) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to run a process as another user")
	}
	dir, err := os.MkdirTemp("", "zt-nobody-") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	path := filepath.Join(dir, "child")
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-test.run=^TestDialAsChild$", "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{"ZT_TEST_DIAL=" + addr, "ZT_TEST_DIAL_NETWORK=" + network}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}

func TestGuardRefusesAnotherUser(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cmd := asNobody(t, "tcp4", ln.Addr().String())
	type output struct {
		text []byte
		err  error
	}
	done := make(chan output, 1)
	go func() {
		text, err := cmd.CombinedOutput()
		done <- output{text, err}
		ln.Close()
	}()
	c, err := ln.Accept()
	if err != nil {
		o := <-done
		t.Fatalf("the child did not connect: %v\n%s", o.err, o.text)
	}
	g := wantGuardReason(t, NewGuard(os.Geteuid()).Check(c), GuardOtherUser)
	if g.UID != 65534 {
		t.Errorf("owner is %d, want 65534", g.UID)
	}
	resetConn(c)
	if o := <-done; o.err != nil {
		t.Errorf("child: %v\n%s", o.err, o.text)
	}
}

func TestParseDiagAnswer(t *testing.T) {
	own, far := netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.1:20000")
	for name, b := range map[string][]byte{"empty": nil, "short": make([]byte, 15), "size past the end": {255, 0, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}} {
		if _, _, err := parseDiagAnswer(b, 1, own, far); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, _, err := inetDiag(netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a connection that is not: got %v, want ENOENT", err)
	}
}

func BenchmarkGuard(b *testing.B) {
	a, _ := loopbackPair(b, "tcp4", "127.0.0.1:0")
	g := NewGuard(os.Geteuid())
	for b.Loop() {
		if err := g.Check(a); err != nil {
			b.Fatal(err)
		}
	}
}
