package daemon_test

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zt-daemon/zt/daemon"
)

const (
	leg = 20 * time.Millisecond // laptop to relay, relay to node, and each back
	rtt = 4 * leg
)

// nanosleep is exact, where time.Sleep rounds up to a millisecond while all else
// is idle: eight legs would make 8 ms of that.
func nanosleep(d time.Duration) {
	if d > 0 {
		t := unix.NsecToTimespec(int64(d))
		unix.Nanosleep(&t, nil)
	}
}

// connRead remembers when the first byte came.
type connRead struct {
	net.Conn
	first time.Time
}

func (c *connRead) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.first.IsZero() {
		c.first = time.Now()
	}
	return n, err
}

// TestSetUpRoundTrips counts what a first connection waits for.
//
//	laptop → relay → node   the request; the node verifies and installs the peer
//	node → relay → laptop   the answer: 1 round trip
//	laptop ⇄ node           WireGuard's handshake: 2
//	laptop ⇄ node           SYN and SYN-ACK: 3
//	laptop ⇄ node           the first bytes of TLS each way: 4
//
// The node cannot hasten the handshake: it learns its channel when the laptop
// learns its own, and the side that begins a handshake is the first to send.
// The bars are in the log; what fails the test is another round trip, since
// other tests run beside it.
func TestSetUpRoundTrips(t *testing.T) {
	if daemon.RaceEnabled {
		t.Skip("the race detector takes a round trip's time by itself; make bench runs it without")
	}
	d := newDelayLine(t, leg, nanosleep)
	o := newOverlayBehind(t, d)
	t.Cleanup(d.close) // before the overlay's own
	alice := o.laptop(t.TempDir())
	if _, err := alice.login("alice"); err != nil {
		t.Fatalf("login: %v", err)
	}
	bound := func() {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if s, _ := alice.Status(t.Context()); len(s.Networks) == 1 && len(s.Networks[0].Relays) == 1 && s.Networks[0].Relays[0].Path == "udp" {
				time.Sleep(200 * time.Millisecond) // what login began comes to rest
				return
			} else if time.Now().After(end) {
				t.Fatalf("no UDP path: %+v", s)
			}
		}
	}
	check := func(what string, took time.Duration, trips int, slack time.Duration) {
		t.Helper()
		bar := time.Duration(trips)*rtt + slack
		verdict := "met"
		if took > bar {
			verdict = "NOT MET"
		}
		t.Logf("%-38s %6.1f ms = %.2f round trips; bar %d RTT + %v: %s",
			what, took.Seconds()*1e3, float64(took)/float64(rtt), trips, slack, verdict)
		if took > time.Duration(trips)*rtt+rtt*9/10 {
			t.Errorf("%s took %v, want %d round trips of %v", what, took, trips, rtt)
		}
	}
	stream := func(what string, trips int, slack time.Duration) {
		t.Helper()
		began := time.Now()
		c, err := alice.OpenStream(t.Context(), "c1")
		if err != nil {
			t.Fatal(err)
		}
		check(what, time.Since(began), trips, slack)
		c.Close()
	}
	bound()
	stream("no edge yet: SYN-ACK", 3, 30*time.Millisecond)
	for range 3 {
		stream("edge up: SYN-ACK", 1, 5*time.Millisecond)
	}

	alice.stop()
	alice = o.laptop(alice.dir) // no edge any more
	bound()
	_, url := alice.client()
	for _, c := range []struct {
		what  string
		trips int
		slack time.Duration
	}{{"no edge yet: API server's first byte", 4, 30 * time.Millisecond}, {"edge up: API server's first byte", 2, 30 * time.Millisecond}} {
		began := time.Now()
		raw, err := net.Dial("tcp", strings.TrimPrefix(url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		first := &connRead{Conn: raw}
		if err := tls.Client(first, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		check(c.what, first.first.Sub(began), c.trips, c.slack)
		raw.Close()
	}
	alice.stop()
}
