package netstack

import (
	"io"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestCloseUnderLoad(t *testing.T) {
	for i := range 50 {
		w := newWire()
		a, b := newSide(t, w, 1, nil), newSide(t, w, 2, nil)
		join(t, a, b, [32]byte{}, [32]byte{})
		l, err := b.Listen(netip.AddrPortFrom(b.Addr(), 443))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { io.Copy(c, c); c.Close() })
			}
		})
		for range 4 {
			c := dialTo(t, a, l.AddrPort())
			wg.Go(func() {
				defer c.Close()
				for buf := make([]byte, 64<<10); ; {
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			})
			wg.Go(func() { io.Copy(io.Discard, c) })
		}
		time.Sleep(time.Duration(i%10) * 3 * time.Millisecond)
		first, second := a, b
		if i%2 == 1 {
			first, second = b, a
		}
		began := time.Now()
		wg.Go(func() { first.Close() })
		wg.Go(func() { first.Close() }) // twice, at once
		if i%3 == 0 {
			wg.Go(func() { second.Close() })
		}
		first.Close()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("round %d: Close took %v", i, took)
		}
		second.Close()
		wg.Wait()
		l.Close()
		if t.Failed() {
			return
		}
	}
	if err := goleak.Find(goleak.IgnoreCurrent()); err != nil {
		t.Error(err)
	}
}

// TestCloseJoins holds wireguard-go to the lines by which Close learns that
// its workers ended.
func TestCloseJoins(t *testing.T) {
	a, b := pair(t)
	dialTo(t, a, listen(t, b, 443, echo)).Close()
	for _, s := range []*side{a, b} {
		began := time.Now()
		s.Close()
		if took := time.Since(began); took > workersEnd/2 {
			t.Errorf("Close took %v: its wait for wireguard-go's workers ran out", took)
		}
		if got := len(s.eng.log.stopped); got != 0 {
			t.Errorf("%d more workers stopped than expected", got)
		}
	}
	time.Sleep(time.Millisecond) // the last line of a worker is said just before its end
	if n := engineGoroutines(); n != 0 {
		t.Errorf("%d goroutines of the engine are left after Close", n)
	}
}

func TestCloseWithSilentTransport(t *testing.T) {
	a, b := pair(t)
	at := listen(t, b, 443, echo)
	c := dialTo(t, a, at)
	defer c.Close()
	a.port.cut.Store(true)
	go c.Write(make([]byte, 8<<20))
	time.Sleep(20 * time.Millisecond)
	began := time.Now()
	a.Close()
	if took := time.Since(began); took > time.Second {
		t.Errorf("Close took %v", took)
	}
}

func TestReopen(t *testing.T) {
	a, b := pair(t)
	at := listen(t, b, 443, echo)
	c := dialTo(t, a, at)
	defer c.Close()
	time.Sleep(60 * time.Millisecond) // wireguard-go takes 20 initiations a second of a peer
	if err := a.eng.wg.Down(); err != nil {
		t.Fatal(err)
	}
	if err := a.eng.wg.Up(); err != nil {
		t.Fatal(err)
	}
	if n := a.port.opens.Load(); n != 2 {
		t.Errorf("the transport was opened %d times, want 2", n)
	}
	dialTo(t, a, at).Close()
}

// engineGoroutines counts goroutines that run code of wireguard-go or gVisor.
func engineGoroutines() int {
	buf := make([]byte, 4<<20)
	n := 0
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "wireguard/device.") || strings.Contains(g, "tcp.(*processor)") {
			n++
		}
	}
	return n
}
