package netstack

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zt-daemon/zt/auth/key"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/replay"
)

// wakingPort is a Transport that remembers when it is to wake.
type wakingPort struct {
	port
	wake  time.Time
	calls int
}

func (p *wakingPort) WakeAt(t time.Time) { p.wake, p.calls = t, p.calls+1 }

// ordered is a resequencer with the buffers of one receiving goroutine.
type ordered struct {
	*resequencer
	port  *wakingPort
	bufs  [][]byte
	sizes []int
	eps   []conn.Endpoint
	ep    *endpoint
}

func newOrdered(batch int) *ordered {
	p := &wakingPort{}
	o := &ordered{
		resequencer: newResequencer(p), port: p, ep: newEndpoint(key.NewWireGuard().Public()),
		bufs: make([][]byte, batch), sizes: make([]int, batch), eps: make([]conn.Endpoint, batch),
	}
	for i := range o.bufs {
		o.bufs[i] = make([]byte, 4096)
	}
	return o
}

const testReceiver = 7

func sealedMessage(receiver uint32, counter uint64, size int) []byte {
	b := make([]byte, size)
	b[0] = device.MessageTransportType
	binary.LittleEndian.PutUint32(b[offReceiver:], receiver)
	binary.LittleEndian.PutUint64(b[offCounter:], counter)
	for i := offCounter + 8; i < size; i++ {
		b[i] = byte(counter) + byte(i)
	}
	return b
}

// take returns the counters of the n messages that came out, and checks them.
func (o *ordered) take(t *testing.T, n int) (out []uint64) {
	t.Helper()
	for i := range n {
		if o.sizes[i] == 0 {
			continue
		}
		b := o.bufs[i][:o.sizes[i]]
		counter := binary.LittleEndian.Uint64(b[offCounter:])
		if want := sealedMessage(binary.LittleEndian.Uint32(b[offReceiver:]), counter, len(b)); !bytes.Equal(b, want) {
			t.Fatalf("message %d came out changed", counter)
		}
		if o.eps[i] != o.ep {
			t.Fatalf("message %d is from %v", counter, o.eps[i])
		}
		out = append(out, counter)
	}
	return out
}

// pass has messages arrive in one batch.
func (o *ordered) pass(t *testing.T, counters ...uint64) []uint64 {
	t.Helper()
	for i, c := range counters {
		o.sizes[i] = copy(o.bufs[i], sealedMessage(testReceiver, c, 100+int(c%1000)))
		o.eps[i] = o.ep
	}
	return o.take(t, o.arrange(o.bufs, o.sizes, o.eps, len(counters)))
}

// run has the receiver look again and again, as it does when others' messages
// arrive.
func (o *ordered) run(t *testing.T, d time.Duration) {
	t.Helper()
	for ; d > 0; d -= holdTick {
		time.Sleep(min(d, holdTick))
		want(t, o.take(t, o.arrange(o.bufs, o.sizes, o.eps, 0)))
	}
}

func want(t *testing.T, got []uint64, want ...uint64) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestResequence(t *testing.T) {
	for _, c := range []struct {
		name string
		play func(t *testing.T, o *ordered)
	}{
		{"in order", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0, 1, 2), 0, 1, 2)
			want(t, o.pass(t, 3), 3)
			if o.port.calls != 0 {
				t.Errorf("WakeAt was called %d times", o.port.calls)
			}
		}},
		{"late in the same batch", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0, 2, 3, 1, 4), 0, 1, 2, 3, 4)
			if !o.port.wake.IsZero() {
				t.Error("a wake-up is left")
			}
		}},
		{"late in a later batch", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 10, 12), 10)
			time.Sleep(time.Millisecond)
			want(t, o.pass(t, 13))
			if got := time.Until(o.port.wake); got != (1+holdQuiet)*holdFirst-time.Millisecond {
				t.Errorf("wakes in %v", got)
			}
			want(t, o.pass(t, 11, 14), 11, 12, 13, 14)
		}},
		{"lost, and others arrive", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0, 2, 3), 0)
			o.run(t, holdFirst-holdTick)
			want(t, o.pass(t, 4))
			o.run(t, holdTick)
			want(t, o.pass(t, 5), 2, 3, 4, 5)
		}},
		{"late, as all that is under way", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0, 2, 3), 0)
			o.run(t, 2*holdFirst)
			want(t, o.pass(t, 1, 4), 1, 2, 3, 4)
		}},
		{"lost, and nothing arrives", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0, 2, 3), 0)
			time.Sleep(time.Until(o.port.wake))
			want(t, o.take(t, o.ready(o.bufs, o.sizes, o.eps)), 2, 3)
			want(t, o.pass(t, 4), 4)
			want(t, o.pass(t, 1), 1) // far too late: at once
			if !o.port.wake.IsZero() {
				t.Error("a wake-up is left")
			}
		}},
		{"late, and the receiver was not running", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0, 2), 0)
			time.Sleep(2 * holdFirst)
			want(t, o.take(t, o.ready(o.bufs, o.sizes, o.eps)))
			want(t, o.pass(t, 3)) // lay in the socket, as what is late does
			want(t, o.pass(t, 1), 1, 2, 3)
		}},
		{"lost, and the receiver was not running", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0, 2), 0)
			time.Sleep(time.Until(o.port.wake) + 2*holdTick)
			want(t, o.take(t, o.ready(o.bufs, o.sizes, o.eps)))
			time.Sleep(time.Until(o.port.wake))
			want(t, o.take(t, o.ready(o.bufs, o.sizes, o.eps)), 2)
		}},
		{"another path", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0), 0)
			o.ep.order.wait, o.ep.order.lost = 0, time.Now() // as losses leave it
			want(t, o.pass(t, 2), 2)
			time.Sleep(holdForget + holdTick)
			want(t, o.pass(t, 3, 5), 3)
			want(t, o.pass(t, 4), 4, 5)
		}},
		{"a gap's time begins with the first behind it", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0, 9), 0)
			for c := uint64(8); c > 1; c-- {
				o.run(t, holdTick)
				want(t, o.pass(t, c))
			}
			o.run(t, holdTick)
			want(t, o.pass(t, 10), 2, 3, 4, 5, 6, 7, 8)
			want(t, o.take(t, o.ready(o.bufs, o.sizes, o.eps)), 9, 10)
		}},
		{"two gaps, each with its time", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0, 2), 0)
			o.run(t, holdFirst/2)
			want(t, o.pass(t, 4))
			o.run(t, holdFirst/2)
			want(t, o.pass(t, 5), 2)
			want(t, o.pass(t, 3), 3, 4, 5)
		}},
		{"twice the same", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0, 2, 2, 0), 0, 2, 0) // WireGuard knows which is its peer's
			want(t, o.pass(t, 1), 1, 2)
		}},
		{"a new session", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0, 2), 0)
			for i, b := range [][]byte{sealedMessage(8, 0, 32), sealedMessage(8, 1, 500), sealedMessage(9, 4, 500)} {
				o.sizes[i], o.eps[i] = copy(o.bufs[i], b), o.ep
			}
			want(t, o.take(t, o.arrange(o.bufs, o.sizes, o.eps, 3)), 0, 1, 4)
			want(t, o.pass(t, 1), 1, 2)
		}},
		{"nonsense far ahead and far behind", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0, 1<<60, 1), 0, 1<<60, 1)
			want(t, o.pass(t, 2), 2)
			want(t, o.pass(t, 4, 3), 3, 4)
		}},
		{"larger than what is kept", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0), 0)
			o.sizes[0] = copy(o.bufs[0], sealedMessage(testReceiver, 2, heldBytes+1))
			want(t, o.take(t, o.arrange(o.bufs, o.sizes, o.eps, 1)), 2)
			want(t, o.pass(t, 1, 3), 1, 3)
		}},
		{"no room in the batch", func(t *testing.T, o *ordered) {
			want(t, o.pass(t, 0, 2, 3, 4, 5, 6, 7, 8), 0)
			want(t, o.pass(t, 1, 9, 10, 11, 12, 13, 14, 15), 1)
			want(t, o.take(t, o.ready(o.bufs, o.sizes, o.eps)), 2, 3, 4, 5, 6, 7, 8, 9)
			want(t, o.pass(t, 16), 10, 11, 12, 13, 14, 15, 16)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newOrdered(8)
				c.play(t, o)
				if o.count != 0 || len(o.holding) != 0 {
					t.Errorf("%d messages of %d sessions are still held", o.count, len(o.holding))
				}
			})
		})
	}
}

// What is lost is soon not waited for; what is late is waited for again.
func TestResequenceLearns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrdered(8)
		want(t, o.pass(t, 0), 0)
		next := uint64(2)
		losses := 0
		for ; len(o.pass(t, next)) == 0; next += 2 {
			time.Sleep(time.Until(o.port.wake))
			want(t, o.take(t, o.ready(o.bufs, o.sizes, o.eps)), next)
			if losses++; losses > 100 {
				t.Fatal("messages are held after 100 losses in a row")
			}
		}
		time.Sleep(3 * time.Millisecond)
		want(t, o.pass(t, next-1), next-1) // not lost, but late
		want(t, o.pass(t, next+2))
		if wait := time.Until(o.port.wake); wait < (1+holdQuiet)*3*time.Millisecond || wait > (1+holdQuiet)*holdMost {
			t.Errorf("after one message 3 ms late others are waited for %v", wait)
		}
		want(t, o.pass(t, next+1), next+1, next+2)
	})
}

// A peer that leaves a gap cannot make the device keep more than its bound, and
// loses nothing.
func TestResequenceBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrdered(conn.IdealBatchSize)
		got := o.pass(t, 0)
		const all = 3 * heldMost
		for next := uint64(2); next < all; {
			batch := make([]uint64, 0, len(o.bufs))
			for ; len(batch) < len(o.bufs)/2 && next < all; next++ {
				batch = append(batch, next)
			}
			got = append(got, o.pass(t, batch...)...)
			if o.count > heldMost {
				t.Fatalf("%d messages are held", o.count)
			}
		}
		for o.count > 0 {
			time.Sleep(time.Until(o.port.wake))
			got = append(got, o.take(t, o.ready(o.bufs, o.sizes, o.eps))...)
		}
		if len(got) != all-1 || !slices.IsSorted(got) {
			t.Errorf("%d messages came out, in order: %v; want %d in order", len(got), slices.IsSorted(got), all-1)
		}
	})
}

// After a loss of many, what is held comes out before WireGuard would take it for
// replays.
func TestResequenceStaysInWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOrdered(conn.IdealBatchSize)
		var filter replay.Filter
		check := func(out []uint64) {
			for _, c := range out {
				if !filter.ValidateCounter(c, device.RejectAfterMessages) {
					t.Fatalf("message %d comes too late", c)
				}
			}
		}
		check(o.pass(t, 0))
		const lost = 300
		for next := uint64(1 + lost); next < 10000; {
			batch := make([]uint64, 0, len(o.bufs))
			for ; len(batch) < len(o.bufs)/2; next++ {
				batch = append(batch, next)
			}
			check(o.take(t, o.ready(o.bufs, o.sizes, o.eps)))
			check(o.pass(t, batch...))
		}
		for o.count > 0 {
			time.Sleep(time.Until(o.port.wake))
			check(o.take(t, o.ready(o.bufs, o.sizes, o.eps)))
		}
	})
}

func TestResequenceAllocatesNothing(t *testing.T) {
	o := newOrdered(8)
	o.port.port = port{}
	next := uint64(0)
	batch := func(counters ...uint64) {
		for i, c := range counters {
			o.bufs[i][0] = device.MessageTransportType
			binary.LittleEndian.PutUint32(o.bufs[i][offReceiver:], testReceiver)
			binary.LittleEndian.PutUint64(o.bufs[i][offCounter:], next+c)
			o.sizes[i], o.eps[i] = 1312, o.ep
		}
		next += uint64(len(counters))
		if n := o.arrange(o.bufs, o.sizes, o.eps, len(counters)); n < len(counters) {
			t.Fatal(n)
		}
	}
	batch(0, 1)
	if n := testing.AllocsPerRun(100, func() { batch(0, 1, 2, 3) }); n != 0 {
		t.Errorf("in order: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { batch(1, 2, 3, 0) }); n != 0 {
		t.Errorf("out of order: %v allocations", n)
	}
}

func BenchmarkResequence(b *testing.B) {
	for _, c := range []struct {
		name string
		late bool
	}{{"in order", false}, {"one late", true}} {
		b.Run(c.name, func(b *testing.B) {
			o := newOrdered(conn.IdealBatchSize)
			next, n := uint64(0), 49
			b.ReportAllocs()
			for b.Loop() {
				for i := range n {
					counter := next + uint64(i)
					if c.late {
						counter = next + uint64((i+1)%n)
					}
					o.bufs[i][0] = device.MessageTransportType
					binary.LittleEndian.PutUint64(o.bufs[i][offCounter:], counter)
					o.sizes[i], o.eps[i] = 1312, o.ep
				}
				next += uint64(n)
				o.arrange(o.bufs, o.sizes, o.eps, n)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/packet")
		})
	}
}

// The attacker is a hostile relay, or whoever can forge packets of one: it
// chooses indices and counters freely. Every message comes out once, unchanged.
func FuzzResequence(f *testing.F) {
	f.Add([]byte{0, 2, 3, 1, 4}, uint64(0))
	f.Add([]byte{0, 200, 100, 0, 0, 1}, uint64(1<<63))
	f.Fuzz(func(t *testing.T, steps []byte, start uint64) {
		o := newOrdered(4)
		r := rand.New(rand.NewPCG(start, 1))
		var in, out []uint64
		for i := 0; i < len(steps); {
			n := 0
			for ; n < 2 && i < len(steps); n, i = n+1, i+1 {
				counter := start + uint64(steps[i])
				if steps[i] == 255 {
					counter = r.Uint64()
				}
				in = append(in, counter)
				o.sizes[n] = copy(o.bufs[n], sealedMessage(uint32(steps[i]%3), counter, 64))
				o.eps[n] = o.ep
			}
			out = append(out, o.take(t, o.arrange(o.bufs, o.sizes, o.eps, n))...)
		}
		for o.count > 0 {
			for _, s := range o.holding {
				for i := range s.held {
					s.held[i].due = 0
				}
			}
			out = append(out, o.take(t, o.ready(o.bufs, o.sizes, o.eps))...)
		}
		slices.Sort(in)
		slices.Sort(out)
		if !slices.Equal(in, out) {
			t.Fatalf("in %v, out %v", in, out)
		}
	})
}
