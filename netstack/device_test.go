package netstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
	"go.uber.org/goleak"
)

func within(tb testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(tb.Context(), d)
	tb.Cleanup(cancel)
	return ctx
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEcho(t *testing.T) {
	a, b := pair(t)
	at := listen(t, b, 443, echo)
	c := dialTo(t, a, at)
	defer c.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Fatalf("got %q, %v", got, err)
	}
	if got, want := c.RemoteAddrPort(), at; got != want {
		t.Errorf("remote address %v, want %v", got, want)
	}
	if got, want := c.LocalAddrPort().Addr(), a.Addr(); got != want {
		t.Errorf("local address %v, want %v", got, want)
	}
	s, ok := a.Peer(b.PublicKey())
	if !ok || s.LastHandshake.IsZero() || s.RxBytes == 0 || s.TxBytes == 0 || s.Addr != b.Addr() {
		t.Errorf("peer status %+v, want a handshake and traffic", s)
	}
	if s := b.Peers(); len(s) != 1 || s[0].PublicKey != a.PublicKey() {
		t.Errorf("peers of b: %+v", s)
	}
	if d := a.Drops(); d != (Drops{}) {
		t.Errorf("drops %+v, want none", d)
	}
}

// transfer sends size bytes each way at once and checks what arrives.
func transfer(t *testing.T, a *side, at netip.AddrPort, size int, seed uint64) {
	c, err := a.DialContext(within(t, 10*time.Second), at)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(60 * time.Second))
	stream := func() io.Reader {
		var s [32]byte
		s[0], s[1] = byte(seed), byte(seed>>8)
		return io.LimitReader(rand.NewChaCha8(s), int64(size))
	}
	want, got := sha256.New(), sha256.New()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := io.Copy(c, io.TeeReader(stream(), want)); err != nil {
			t.Errorf("send: %v", err)
		}
		c.CloseWrite()
	})
	n, err := io.Copy(got, c)
	wg.Wait()
	if err != nil || n != int64(size) {
		t.Errorf("received %d bytes, %v, want %d", n, err, size)
	} else if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Error("other bytes came back than were sent")
	}
}

func TestTransferBothWays(t *testing.T) {
	a, b := pair(t)
	transfer(t, a, listen(t, b, 443, echo), 64<<20, 1)
	if d := a.Drops(); d != (Drops{}) {
		t.Errorf("drops %+v, want none", d)
	}
}

func TestTransferWithLoss(t *testing.T) {
	a, b := pair(t)
	at := listen(t, b, 443, echo)
	dialTo(t, a, at).Close()
	a.port.lose.Store(100)
	b.port.lose.Store(100)
	transfer(t, a, at, 1<<20, 1)
	if a.port.dropped.Load() == 0 || b.port.dropped.Load() == 0 {
		t.Error("nothing was lost: the test shows nothing")
	}
}

func TestEightStreams(t *testing.T) {
	a, b := pair(t)
	at := listen(t, b, 443, echo)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { transfer(t, a, at, 4<<20, uint64(i)) })
	}
	wg.Wait()
}

func TestHalfClose(t *testing.T) {
	a, b := pair(t)
	at := listen(t, b, 443, func(c *Conn) {
		all, err := io.ReadAll(c) // ends only by the other side's CloseWrite
		if err != nil {
			t.Errorf("read: %v", err)
		}
		c.Write(append([]byte("got "), all...))
	})
	c := dialTo(t, a, at)
	defer c.Close()
	c.Write([]byte("all"))
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "got all" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write after CloseWrite: %v, want EPIPE", err)
	}
}

func TestReset(t *testing.T) {
	a, b := pair(t)
	accepted := make(chan *Conn, 1)
	at := listen(t, b, 443, func(c *Conn) { accepted <- c; <-t.Context().Done() })
	c := dialTo(t, a, at)
	other := <-accepted
	go func() { time.Sleep(20 * time.Millisecond); c.Reset() }()
	other.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := other.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("other side: %v, want ECONNRESET", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("own read: %v, want net.ErrClosed", err)
	}
	if _, err := c.Write(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("own write: %v, want net.ErrClosed", err)
	}
	c.Reset() // again
	c.Close()
}

func TestResetAfterClose(t *testing.T) {
	a, b := pair(t)
	accepted := make(chan *Conn, 1)
	at := listen(t, b, 443, func(c *Conn) { accepted <- c; <-t.Context().Done() })
	c := dialTo(t, a, at)
	other := <-accepted
	c.Write(make([]byte, 100))
	c.Close()
	c.Reset()
	other.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, other); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("other side: %v, want its end or ECONNRESET", err)
	}
}

func TestRefused(t *testing.T) {
	a, b := pair(t)
	_, err := a.DialContext(within(t, 5*time.Second), netip.AddrPortFrom(b.Addr(), 9))
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want ECONNREFUSED", err)
	}
	_, err = a.DialContext(within(t, 5*time.Second), netip.AddrPortFrom(overlay(9), 9))
	if !errors.Is(err, ErrNoPeer) {
		t.Errorf("got %v, want ErrNoPeer", err)
	}
	_, err = a.DialContext(within(t, 5*time.Second), netip.MustParseAddrPort("10.0.0.1:9"))
	if err == nil {
		t.Error("an IPv4 address was dialled")
	}
}

func TestDeadlines(t *testing.T) {
	a, b := pair(t)
	at := listen(t, b, 443, func(c *Conn) { <-t.Context().Done() })
	c := dialTo(t, a, at)
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v, want a deadline", err)
	}
	if ne := net.Error(nil); !errors.As(error(c.fault("x", os.ErrDeadlineExceeded)), &ne) || !ne.Timeout() {
		t.Error("a passed deadline is no net.Error that timed out")
	}
	large := make([]byte, 64<<20) // nobody reads: it cannot fit
	c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := c.Write(large)
	if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 {
		t.Errorf("write: %d, %v, want a part and a deadline", n, err)
	}
	c.SetDeadline(time.Time{})
	done := make(chan error, 1)
	go func() { _, err := c.Read(make([]byte, 1)); done <- err }()
	time.Sleep(20 * time.Millisecond)
	c.SetReadDeadline(time.Unix(1, 0)) // while it waits
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v, want a deadline", err)
	}
	c.SetReadDeadline(time.Time{})
	go func() { _, err := c.Read(make([]byte, 1)); done <- err }()
	time.Sleep(20 * time.Millisecond)
	c.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v, want net.ErrClosed", err)
	}
}

func TestPresharedMismatch(t *testing.T) {
	w := newWire()
	a, b := newSide(t, w, 1, nil), newSide(t, w, 2, nil)
	join(t, a, b, [32]byte{1}, [32]byte{2})
	at := listen(t, b, 443, echo)
	_, err := a.DialContext(within(t, 500*time.Millisecond), at)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial: %v, want a deadline", err)
	}
	if s, _ := a.Peer(b.PublicKey()); !s.LastHandshake.IsZero() {
		t.Error("a handshake succeeded with different preshared keys")
	}
	if b.port.sent.Load() == 0 {
		t.Error("b never answered: the test shows nothing")
	}
	join(t, a, b, [32]byte{3}, [32]byte{3}) // replaces both
	if err := a.Handshake(b.PublicKey()); err != nil {
		t.Error(err)
	}
	dialTo(t, a, at).Close()
}

func TestHandshake(t *testing.T) {
	a, b := pair(t)
	at := listen(t, b, 443, echo)
	c := dialTo(t, a, at)
	defer c.Close()
	before, _ := a.Peer(b.PublicKey())
	time.Sleep(60 * time.Millisecond) // wireguard-go takes 20 initiations a second of a peer
	if err := a.Handshake(b.PublicKey()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if now, _ := a.Peer(b.PublicKey()); now.LastHandshake.After(before.LastHandshake) {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("no new handshake")
		}
	}
	c.Write([]byte("x")) // the flow lives on
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	if err := a.Handshake(key.NewWireGuard().Public()); !errors.Is(err, ErrNoPeer) {
		t.Errorf("handshake with a stranger: %v, want ErrNoPeer", err)
	}
}

func TestRemovePeer(t *testing.T) {
	for _, who := range []string{"dialler", "listener"} {
		t.Run(who+" removes", func(t *testing.T) {
			a, b := pair(t)
			accepted := make(chan *Conn, 1)
			at := listen(t, b, 443, func(c *Conn) { accepted <- c; <-t.Context().Done() })
			c := dialTo(t, a, at)
			defer c.Close()
			c.Write([]byte("x"))
			other := <-accepted
			mine, theirs := c, other
			if who == "dialler" {
				a.RemovePeer(b.PublicKey(), key.NewWireGuard().Public())
			} else {
				b.RemovePeer(a.PublicKey())
				mine, theirs = other, c
			}
			theirs.SetReadDeadline(time.Now().Add(2 * time.Second))
			if _, err := io.Copy(io.Discard, theirs); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("other side: %v, want ECONNRESET", err)
			}
			if _, err := mine.Write([]byte("x")); err == nil {
				t.Error("own side could write after the peer was removed")
			}
			if _, err := a.DialContext(within(t, 300*time.Millisecond), at); err == nil {
				t.Error("dialled past a removed peer")
			}
		})
	}
}

func TestDialCancel(t *testing.T) {
	a, b := pair(t)
	at := listen(t, b, 443, echo)
	dialTo(t, a, at).Close()
	a.port.cut.Store(true)
	before := len(a.eng.stack.RegisteredEndpoints())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := a.DialContext(ctx, at); done <- err }()
	time.Sleep(50 * time.Millisecond)
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want context.Canceled", err)
		}
	case <-time.After(time.Second):
		t.Fatal("the dial was not cancelled")
	}
	if after := len(a.eng.stack.RegisteredEndpoints()); after > before {
		t.Errorf("%d endpoints left, %d before", after, before)
	}
	if _, err := a.DialContext(ctx, at); !errors.Is(err, context.Canceled) {
		t.Errorf("dial with a done context: %v", err)
	}
	go func() { _, err := a.DialContext(t.Context(), at); done <- err }()
	time.Sleep(20 * time.Millisecond)
	a.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial during Close: %v, want net.ErrClosed", err)
	}
}

func TestListener(t *testing.T) {
	a, b := pair(t)
	l, err := b.Listen(netip.AddrPortFrom(netip.IPv6Unspecified(), 0))
	if err != nil {
		t.Fatal(err)
	}
	if l.AddrPort().Addr() != b.Addr() || l.AddrPort().Port() == 0 {
		t.Errorf("listens on %v", l.AddrPort())
	}
	if _, err := b.Listen(l.AddrPort()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second listener: %v, want EADDRINUSE", err)
	}
	if _, err := b.Listen(netip.AddrPortFrom(a.Addr(), 1)); err == nil {
		t.Error("listened on another's address")
	}
	done := make(chan error, 2)
	for range 2 {
		go func() { _, err := l.Accept(); done <- err }()
	}
	time.Sleep(20 * time.Millisecond)
	l.Close()
	l.Close()
	for range 2 {
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v, want net.ErrClosed", err)
		}
	}
	l, err = b.Listen(l.AddrPort()) // the port is free again
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, err := l.Accept(); done <- err }()
	time.Sleep(20 * time.Millisecond)
	b.Close() // closes listeners too
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept on a closed device: %v, want net.ErrClosed", err)
	}
	l.Close()
}

func TestDropInboundSYN(t *testing.T) {
	w := newWire()
	laptop := newSide(t, w, 1, func(c *Config) { c.DropInboundSYN = true })
	node := newSide(t, w, 2, nil)
	join(t, laptop, node, [32]byte{}, [32]byte{})
	at := listen(t, node, 443, echo)
	c := dialTo(t, laptop, at) // dialling is not affected
	defer c.Close()
	_, err := node.DialContext(within(t, 300*time.Millisecond), netip.AddrPortFrom(laptop.Addr(), 22))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want silence", err)
	}
	if d := laptop.Drops(); d.Unasked == 0 {
		t.Errorf("drops %+v, want the SYN", d)
	}
	if _, err := laptop.Listen(netip.AddrPortFrom(laptop.Addr(), 22)); err == nil {
		t.Error("a device that drops inbound SYNs listens")
	}
}

func TestSetPeerRefuses(t *testing.T) {
	a, b := pair(t)
	third := key.NewWireGuard().Public()
	var taken *AddrTakenError
	err := a.SetPeer(Peer{PublicKey: third, Addr: b.Addr()})
	if !errors.As(err, &taken) || taken.Holder != b.PublicKey() || taken.Addr != b.Addr() {
		t.Errorf("got %v, want AddrTakenError naming b", err)
	}
	if err := a.SetPeer(Peer{PublicKey: third, Addr: a.Addr()}); !errors.As(err, &taken) || taken.Holder != a.PublicKey() {
		t.Errorf("got %v, want AddrTakenError naming a", err)
	}
	for name, p := range map[string]Peer{
		"own key": {PublicKey: a.PublicKey(), Addr: overlay(9)},
		"no key":  {Addr: overlay(9)},
		"IPv4":    {PublicKey: third, Addr: netip.MustParseAddr("10.0.0.1")},
		"mapped":  {PublicKey: third, Addr: netip.MustParseAddr("::ffff:10.0.0.1")},
		"no addr": {PublicKey: third},
	} {
		if a.SetPeer(p) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	dialTo(t, a, listen(t, b, 443, echo)).Close() // b still has its address
	if n := len(a.Peers()); n != 1 {
		t.Errorf("%d peers, want 1", n)
	}
	a.RemovePeer(b.PublicKey())
	if err := a.SetPeer(Peer{PublicKey: third, Addr: b.Addr()}); err != nil {
		t.Errorf("the address is free: %v", err)
	}
}

func TestSetPeerAgainKeepsFlows(t *testing.T) {
	a, b := pair(t)
	c := dialTo(t, a, listen(t, b, 443, echo))
	defer c.Close()
	join(t, a, b, [32]byte{7}, [32]byte{7}) // nothing new
	c.Write([]byte("x"))
	c.SetReadDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	good := Config{PrivateKey: key.NewWireGuard(), Addr: overlay(1), Transport: newWire().port(key.WireGuardPublic{})}
	for name, change := range map[string]func(*Config){
		"no key":       func(c *Config) { c.PrivateKey = key.WireGuardPrivate{} },
		"no address":   func(c *Config) { c.Addr = netip.Addr{} },
		"IPv4":         func(c *Config) { c.Addr = netip.MustParseAddr("10.0.0.1") },
		"multicast":    func(c *Config) { c.Addr = netip.MustParseAddr("ff02::1") },
		"no transport": func(c *Config) { c.Transport = nil },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	d, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.DialContext(t.Context(), netip.AddrPortFrom(overlay(2), 1)); !errors.Is(err, ErrNotStarted) {
		t.Errorf("dial before Start: %v", err)
	}
	if err := d.SetPeer(Peer{PublicKey: key.NewWireGuard().Public(), Addr: overlay(2)}); !errors.Is(err, ErrNotStarted) {
		t.Errorf("set peer before Start: %v", err)
	}
	for range 2 {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := d.Start(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("start after Close: %v", err)
	}
}
