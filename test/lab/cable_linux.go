package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// NewNamespace makes one namespace with nothing but its loopback, for the ends of
// cables. It goes when the lab is closed. An error that is errors.ErrUnsupported
// means that this machine or user cannot make it.
func (l *Lab) NewNamespace(ctx context.Context, name string) (*Namespace, error) {
	if err := removeStaleNamespaces(ctx); err != nil {
		return nil, fmt.Errorf("remove the namespaces of an earlier run: %w", err)
	}
	return l.namespace(ctx, name)
}

// Path is what a Cable does to packets, the same in both directions. The zero
// value passes everything at once.
type Path struct {
	Delay time.Duration // of each direction
	// Loss is the share of packets that vanish.
	Loss float64
	// Late is the share of packets that arrive LateMin to LateMax after their
	// turn: others overtake them.
	Late             float64
	LateMin, LateMax time.Duration
	// Rate is in bits per second; 0: as fast as it goes. What waits for its turn
	// is bounded by Queue bytes (0: 50 ms of Rate), and lost beyond.
	Rate  float64
	Queue int
}

// CableEnd is one end of a Cable.
type CableEnd struct {
	Namespace *Namespace
	Device    string // name of the device there
	Address   string // IPv4, of the /30 (or wider) prefix that both ends share: "10.0.0.1/30"
}

// CableConfig says how a Cable is made.
type CableConfig struct {
	A, B CableEnd
	MTU  int // 0: 1500
	// Singly sends each packet by itself, as a link of small machines does.
	// Otherwise super-packets of TCP and UDP pass whole, as between network cards
	// that segment and coalesce, so that a measurement is one of TCP and not of
	// this cable. A packet that is lost or late is cut out of its super-packet:
	// loss and lateness befall single packets either way.
	Singly bool
	Seed   uint64
}

// Cable is a link of two namespaces through this process, which delays, loses
// and reorders what passes. Its ends are TUN devices: there is no ARP whose
// round trips would count.
type Cable struct {
	path       atomic.Pointer[Path]
	ends       [2]*os.File
	directions [2]*direction
	wg         sync.WaitGroup
	stop       sync.Once
}

// CableCount says what one direction did, in packets on the wire.
type CableCount struct {
	Passed, Lost, Late, Overflowed, Bytes uint64
	Frames                                uint64 // super-packets, or packets
}

// tunOffloads are the TUN_F_ flags (linux/if_tun.h) of checksums, TCP and UDP
// segmentation over IPv4 and IPv6.
const tunOffloads = 0x01 | 0x02 | 0x04 | 0x20 | 0x40

// NewCable makes a cable that begins with p. Whoever makes it calls Close, or
// leaves it to the lab's.
func (l *Lab) NewCable(ctx context.Context, c CableConfig, p Path) (*Cable, error) {
	if c.MTU == 0 {
		c.MTU = 1500
	}
	w := &Cable{}
	w.path.Store(&p)
	ends := [2]CableEnd{c.A, c.B}
	for i, e := range ends {
		f, err := openTUN(e, !c.Singly)
		if err == nil {
			w.ends[i] = f
			err = l.setUpEnd(ctx, e, c.MTU)
		}
		if err != nil {
			w.Close()
			return nil, fmt.Errorf("cable end %s in %s: %w", e.Device, e.Namespace.Name, err)
		}
	}
	for i := range w.directions {
		d := &direction{path: &w.path, out: w.ends[1-i], random: rand.New(rand.NewPCG(c.Seed, uint64(i)))}
		d.some.L = &d.mu
		w.directions[i] = d
		w.wg.Go(func() { d.read(w.ends[i]) })
		w.wg.Go(d.write)
	}
	l.Cleanup(w.Close)
	return w, nil
}

func openTUN(e CableEnd, offload bool) (*os.File, error) {
	var fd int
	err := e.Namespace.Do(func() (err error) {
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(e.Device)
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err == nil && offload {
			err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tunOffloads)
		}
		if err != nil {
			unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), e.Device), nil
}

func (l *Lab) setUpEnd(ctx context.Context, e CableEnd, mtu int) error {
	if err := l.ip(ctx, e.Namespace, "addr", "add", e.Address, "dev", e.Device); err != nil {
		return err
	}
	// A sender must not lose packets because this process was not scheduled.
	return l.ip(ctx, e.Namespace, "link", "set", e.Device, "mtu", fmt.Sprint(mtu), "txqueuelen", "10000", "up")
}

// Set changes what the cable does, from the next packet on.
func (c *Cable) Set(p Path) { c.path.Store(&p) }

// Counts returns what the directions from A to B and from B to A did so far.
func (c *Cable) Counts() (ab, ba CableCount) {
	return c.directions[0].counted(), c.directions[1].counted()
}

// Close cuts the cable, and its devices vanish. It may be called twice.
func (c *Cable) Close() error {
	var errs []error
	c.stop.Do(func() {
		for _, f := range c.ends {
			if f != nil {
				errs = append(errs, f.Close())
			}
		}
		for _, d := range c.directions {
			if d != nil {
				d.close()
			}
		}
		c.wg.Wait()
	})
	return errors.Join(errs...)
}

// frame is what a TUN device reads or takes: a virtio header and a packet, or
// a super-packet.
type frame struct {
	due  time.Time
	data []byte
	pool *sync.Pool // data's
}

const (
	smallFrame = 2 << 10
	largeFrame = 68 << 10 // the kernel's super-packets have at most 64 KiB
)

var (
	smallFrames = sync.Pool{New: func() any { return new([smallFrame]byte) }}
	largeFrames = sync.Pool{New: func() any { return new([largeFrame]byte) }}
)

func newFrame(size int) frame {
	if size <= smallFrame {
		return frame{data: smallFrames.Get().(*[smallFrame]byte)[:size], pool: &smallFrames}
	}
	return frame{data: largeFrames.Get().(*[largeFrame]byte)[:size], pool: &largeFrames}
}

func (f *frame) free() {
	if f.pool == &smallFrames {
		f.pool.Put((*[smallFrame]byte)(f.data[:smallFrame]))
	} else {
		f.pool.Put((*[largeFrame]byte)(f.data[:largeFrame]))
	}
}

// direction carries frames from one end to the other.
type direction struct {
	path   *atomic.Pointer[Path]
	out    *os.File
	random *rand.Rand // the reader's
	rest   time.Time  // when the line is free again; the reader's

	mu     sync.Mutex // guards the rest
	some   sync.Cond  // something waits, or closed
	queue  []frame    // in order
	head   int
	late   []frame // ordered by due
	closed bool
	count  CableCount
}

// read takes frames from in until it is closed.
func (d *direction) read(in *os.File) {
	buf := make([]byte, largeFrame)
	for {
		n, err := in.Read(buf)
		if err != nil {
			return // closed
		}
		if s, ok := parseSuper(buf[:n]); ok {
			d.pass(s)
		}
	}
}

// pass decides what becomes of each packet of a super-packet, and sends on what
// stays together together.
func (d *direction) pass(s super) {
	p := d.path.Load()
	now := time.Now()
	due := now.Add(p.Delay)
	if p.Rate > 0 {
		queue := p.Queue
		if queue == 0 {
			queue = int(p.Rate / 8 / 20)
		}
		if d.rest.Before(now) {
			d.rest = now
		}
		if waits := d.rest.Sub(now).Seconds() * p.Rate / 8; waits+float64(len(s.data)) > float64(queue) {
			d.add(CableCount{Overflowed: uint64(s.n)})
			return
		}
		d.rest = d.rest.Add(time.Duration(float64(len(s.data)*8) / p.Rate * 1e9))
		due = d.rest.Add(p.Delay)
	}
	var count CableCount
	begun := 0
	if p.Loss > 0 || p.Late > 0 {
		for i := range s.n {
			switch x := d.random.Float64(); {
			case x < p.Loss:
				count.Lost++
			case x < p.Loss+p.Late:
				count.Late++
				d.emit(s.cut(i, i+1), due.Add(p.LateMin+time.Duration(d.random.Float64()*float64(p.LateMax-p.LateMin))), true)
			default:
				continue
			}
			if begun < i {
				d.emit(s.cut(begun, i), due, false)
			}
			begun = i + 1
		}
	}
	count.Passed = uint64(s.n) - count.Lost
	count.Bytes = uint64(len(s.data))
	if begun < s.n {
		d.emit(s.cut(begun, s.n), due, false)
	}
	d.add(count)
}

func (d *direction) emit(f frame, due time.Time, late bool) {
	f.due = due
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count.Frames++
	if d.closed {
		f.free()
		return
	}
	if late {
		at := len(d.late)
		for at > 0 && d.late[at-1].due.After(due) {
			at--
		}
		d.late = append(d.late, frame{})
		copy(d.late[at+1:], d.late[at:])
		d.late[at] = f
	} else {
		d.queue = append(d.queue, f)
	}
	d.some.Signal()
}

func (d *direction) add(c CableCount) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count.Passed += c.Passed
	d.count.Lost += c.Lost
	d.count.Late += c.Late
	d.count.Overflowed += c.Overflowed
	d.count.Bytes += c.Bytes
}

func (d *direction) counted() CableCount {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count
}

// next takes the frame that is due first. It waits until there is one; ok is
// false once the direction is closed.
func (d *direction) next() (f frame, wait time.Duration, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.head == len(d.queue) && len(d.late) == 0 && !d.closed {
		d.some.Wait()
	}
	if d.closed {
		return frame{}, 0, false
	}
	fromLate := d.head == len(d.queue) || len(d.late) > 0 && d.late[0].due.Before(d.queue[d.head].due)
	if fromLate {
		f = d.late[0]
	} else {
		f = d.queue[d.head]
	}
	if wait := time.Until(f.due); wait > 0 {
		return frame{}, wait, true
	}
	if fromLate {
		d.late = append(d.late[:0], d.late[1:]...)
		return f, 0, true
	}
	d.queue[d.head] = frame{}
	if d.head++; d.head == len(d.queue) {
		d.queue, d.head = d.queue[:0], 0
	} else if d.head >= 1024 && d.head*2 >= len(d.queue) {
		d.queue = append(d.queue[:0], d.queue[d.head:]...)
		d.head = 0
	}
	return f, 0, true
}

// write sends what is due.
func (d *direction) write() {
	for {
		f, wait, ok := d.next()
		if !ok {
			return
		}
		if wait > 0 {
			// Not time.Sleep, whose timers an idle Go program rounds up to whole
			// milliseconds; in short portions, that Close need not wait.
			t := unix.NsecToTimespec(int64(min(wait, 10*time.Millisecond)))
			_ = unix.Nanosleep(&t, nil)
			continue
		}
		_, _ = d.out.Write(f.data) // a device that is down loses packets, as it would
		f.free()
	}
}

func (d *direction) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	for _, f := range d.queue[d.head:] {
		f.free()
	}
	for _, f := range d.late {
		f.free()
	}
	d.queue, d.head, d.late = nil, 0, nil
	d.some.Broadcast()
}
