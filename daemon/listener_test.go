package daemon

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// tcpOverlay is a TCP connection in the place of a stream through the overlay.
type tcpOverlay struct{ *net.TCPConn }

func (c tcpOverlay) Reset() { resetConn(c.TCPConn) }

// upstream is a TCP server that stands for the far end of the overlay.
type upstream struct {
	ln    *net.TCPListener
	conns chan *net.TCPConn
}

func newUpstream(t *testing.T) *upstream {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{ln: ln.(*net.TCPListener), conns: make(chan *net.TCPConn, 64)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := u.ln.AcceptTCP()
			if err != nil {
				return
			}
			u.conns <- c
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
		close(u.conns)
		for c := range u.conns {
			c.Close()
		}
	})
	return u
}

func (u *upstream) dial(ctx context.Context) (OverlayConn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp4", u.ln.Addr().String())
	if err != nil {
		return nil, err
	}
	return tcpOverlay{c.(*net.TCPConn)}, nil
}

// runListener runs a listener until the test ends, and checks that nothing of
// it is left then.
func runListener(t *testing.T, cfg ListenerConfig) (l *Listener, addr string, stop func()) {
	t.Helper()
	checkLeaks(t)
	if cfg.Guard == nil {
		cfg.Guard = func(net.Conn) error { return nil }
	}
	cfg.Cluster = "c1"
	l, err := NewListener(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := ListenLoopback(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, ln) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not return")
		}
	}
	t.Cleanup(stop)
	return l, ln.Addr().String(), stop
}

func dialLoopback(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c.(*net.TCPConn)
}

func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	n, err := io.Copy(io.Discard, c)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d bytes, then %v; want a reset", n, err)
	}
}

// wantRefused connects and wants a reset, which may come before connect returns.
func wantRefused(t *testing.T, addr string) {
	t.Helper()
	c, err := net.Dial("tcp4", addr)
	if errors.Is(err, syscall.ECONNRESET) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	wantReset(t, c)
}

func TestListenerSplicesAndHalfCloses(t *testing.T) {
	u := newUpstream(t)
	l, addr, _ := runListener(t, ListenerConfig{Dial: u.dial})
	c := dialLoopback(t, addr)
	far := receive(t, u.conns, "a dial")
	defer far.Close()
	far.SetDeadline(time.Now().Add(10 * time.Second))

	sent := make([]byte, 1<<20)
	rand.Read(sent)
	writing := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		writing <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(far) // ends with the half-close
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("got %d bytes, %v; want %d", len(got), err, len(sent))
	}
	if err := <-writing; err != nil {
		t.Fatal(err)
	}
	// The other direction is still open.
	if _, err := far.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	if flows := l.Flows(); len(flows) != 1 || flows[0].Remote.String() != c.LocalAddr().String() || flows[0].BytesSent != uint64(len(sent)) {
		t.Errorf("flows are %+v", flows)
	}
	far.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "answer" {
		t.Errorf("got %q, %v", got, err)
	}
	eventually(t, "the flow ends", func() bool { return l.Stats().Open == 0 })
	if s := l.Stats(); s.Accepted != 1 || s.BytesSent != uint64(len(sent)) || s.BytesReceived != 6 || len(s.Refused) != 0 {
		t.Errorf("stats are %+v", s)
	}
}

func TestListenerCarriesResets(t *testing.T) {
	u := newUpstream(t)
	l, addr, _ := runListener(t, ListenerConfig{Dial: u.dial})
	t.Run("from the overlay", func(t *testing.T) {
		c := dialLoopback(t, addr)
		resetConn(receive(t, u.conns, "a dial"))
		wantReset(t, c)
	})
	t.Run("to the overlay", func(t *testing.T) {
		c := dialLoopback(t, addr)
		far := receive(t, u.conns, "a dial")
		defer far.Close()
		far.SetDeadline(time.Now().Add(10 * time.Second))
		resetConn(c)
		wantReset(t, far)
	})
	t.Run("cut", func(t *testing.T) {
		c, d := dialLoopback(t, addr), dialLoopback(t, addr)
		far1, far2 := receive(t, u.conns, "a dial"), receive(t, u.conns, "a dial")
		defer far1.Close()
		defer far2.Close()
		passByte(t, c, far1, far2)
		passByte(t, d, far1, far2)
		if n := l.CutAll(); n != 2 {
			t.Errorf("cut %d flows, want 2", n)
		}
		for _, end := range []*net.TCPConn{c, d, far1, far2} {
			end.SetDeadline(time.Now().Add(10 * time.Second))
			wantReset(t, end)
		}
		eventually(t, "the flows end", func() bool { return l.Stats().Open == 0 })
		// It goes on accepting.
		dialLoopback(t, addr)
		receive(t, u.conns, "a dial after the cut").Close()
	})
}

// passByte sends a byte that must come out at one of the far ends: then the flow
// is spliced, and not about to be.
func passByte(t *testing.T, from *net.TCPConn, far ...*net.TCPConn) {
	t.Helper()
	if _, err := from.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a byte passes", func() bool {
		for _, f := range far {
			f.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			n, _ := f.Read(make([]byte, 1))
			f.SetReadDeadline(time.Time{})
			if n == 1 {
				return true
			}
		}
		return false
	})
}

func TestListenerCutsEverythingWhenItEnds(t *testing.T) {
	u := newUpstream(t)
	_, addr, stop := runListener(t, ListenerConfig{Dial: u.dial})
	c := dialLoopback(t, addr)
	far := receive(t, u.conns, "a dial")
	defer far.Close()
	passByte(t, c, far)
	far.SetDeadline(time.Now().Add(10 * time.Second))
	stop()
	wantReset(t, c)
	wantReset(t, far)
	if _, err := net.Dial("tcp4", addr); err == nil {
		t.Error("the port is still open")
	}
}

func TestListenerRefusals(t *testing.T) {
	t.Run("guard", func(t *testing.T) {
		dialled := false
		l, addr, _ := runListener(t, ListenerConfig{
			Guard: func(net.Conn) error { return &GuardError{Reason: GuardOtherUser, UID: 7} },
			Dial:  func(context.Context) (OverlayConn, error) { dialled = true; return nil, errors.New("no") },
		})
		wantRefused(t, addr)
		eventually(t, "it is counted", func() bool { return l.Stats().Refused[string(GuardOtherUser)] == 1 })
		if dialled {
			t.Error("the overlay was dialled for a stranger")
		}
		if s := l.Stats(); s.Accepted != 0 || s.LastRefusal == "" {
			t.Errorf("stats are %+v", s)
		}
	})
	t.Run("dial fails", func(t *testing.T) {
		l, addr, _ := runListener(t, ListenerConfig{Dial: func(context.Context) (OverlayConn, error) { return nil, errors.New("no node") }})
		wantRefused(t, addr)
		eventually(t, "it is counted", func() bool { return l.Stats().Refused[ListenerUnreachable] == 1 })
	})
	t.Run("dial hangs", func(t *testing.T) {
		l, addr, _ := runListener(t, ListenerConfig{DialTimeout: 50 * time.Millisecond, Dial: func(ctx context.Context) (OverlayConn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		wantRefused(t, addr)
		eventually(t, "it is counted", func() bool { return l.Stats().Refused[ListenerUnreachable] == 1 })
	})
	t.Run("too many", func(t *testing.T) {
		u := newUpstream(t)
		l, addr, _ := runListener(t, ListenerConfig{MaxFlows: 1, Dial: u.dial})
		first := dialLoopback(t, addr)
		defer receive(t, u.conns, "a dial").Close()
		wantRefused(t, addr)
		first.Close()
		eventually(t, "it is counted", func() bool { return l.Stats().Refused[ListenerTooManyFlows] == 1 })
	})
	t.Run("cut while it is dialled", func(t *testing.T) {
		dialling := make(chan struct{})
		l, addr, _ := runListener(t, ListenerConfig{Dial: func(ctx context.Context) (OverlayConn, error) {
			close(dialling)
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		c := dialLoopback(t, addr)
		<-dialling
		l.CutAll()
		wantReset(t, c)
		eventually(t, "the flow ends", func() bool { return l.Stats().Open == 0 })
		if n := len(l.Stats().Refused); n != 0 {
			t.Errorf("%d reasons of refusal, want none: it was cut", n)
		}
	})
}

func TestListenLoopback(t *testing.T) {
	asked := 0
	ln, err := ListenLoopback(t.Context(), 0, func(uint16) bool { asked++; return asked == 1 })
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ListenerPort(ln)
	if port < firstPort || port > lastPort || asked < 2 {
		t.Errorf("port is %d after %d questions, want %d to %d, and the first one refused", port, asked, firstPort, lastPort)
	}
	_, err = ListenLoopback(t.Context(), port, nil)
	taken, ok := errors.AsType[*PortTakenError](err)
	if !ok || taken.Port != port || taken.Hint() == "" {
		t.Errorf("got %v, want the port named", err)
	}
	ln.Close()
	again, err := ListenLoopback(t.Context(), port, nil)
	if err != nil {
		t.Fatalf("the kept port: %v", err)
	}
	again.Close()
	if _, err := ListenLoopback(t.Context(), 0, func(uint16) bool { return true }); err == nil {
		t.Error("a port was chosen though all are kept")
	}
}

func TestNewListenerChecks(t *testing.T) {
	if _, err := NewListener(ListenerConfig{}); err == nil {
		t.Error("an empty config was taken")
	}
}

func BenchmarkListenerSplice(b *testing.B) {
	near, client := loopbackPair(b, "tcp4", "127.0.0.1:0")
	overlay, server := loopbackPair(b, "tcp4", "127.0.0.1:0")
	f := &localFlow{local: near, since: time.Now()}
	done := make(chan struct{})
	go func() { defer close(done); f.splice(tcpOverlay{overlay}) }()
	echoed := make(chan struct{})
	go func() { defer close(echoed); io.Copy(server, server); server.CloseWrite() }()
	msg := make([]byte, 512)
	b.SetBytes(int64(len(msg)))
	for b.Loop() {
		if _, err := client.Write(msg); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(client, msg); err != nil {
			b.Fatal(err)
		}
	}
	client.CloseWrite()
	<-done
	<-echoed
}
