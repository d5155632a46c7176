package daemon_test

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// delayLine stands before a relay: what passes through it, TCP or UDP, arrives
// so much later.
type delayLine struct {
	t     *testing.T
	delay time.Duration
	sleep func(time.Duration)
	tcp   net.Listener
	udp   *net.UDPConn
	done  chan struct{}
	wg    sync.WaitGroup

	mu     sync.Mutex // guards conns
	conns  []io.Closer
	closed bool
}

func newDelayLine(t *testing.T, delay time.Duration, sleep func(time.Duration)) *delayLine {
	t.Helper()
	d := &delayLine{t: t, delay: delay, sleep: sleep, done: make(chan struct{})}
	var err error
	if d.tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if d.udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	return d
}

// before begins to pass on to a relay; it returns what the relay is known by.
func (d *delayLine) before(tcp, udp string) (url, hostport string) {
	d.wg.Go(func() { d.serveTCP(tcp) })
	d.wg.Go(func() { d.serveUDP(udp) })
	return "https://" + d.tcp.Addr().String(), d.udp.LocalAddr().String()
}

func (d *delayLine) close() {
	close(d.done)
	d.tcp.Close()
	d.udp.Close()
	d.mu.Lock()
	d.closed = true
	for _, c := range d.conns {
		c.Close()
	}
	d.mu.Unlock()
	d.wg.Wait()
}

// keep has c closed with d; false: d is closed already.
func (d *delayLine) keep(c io.Closer) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		c.Close()
		return false
	}
	d.conns = append(d.conns, c)
	return true
}

// pass reads until an error and writes what was read when its time has come.
func (d *delayLine) pass(read func([]byte) (int, error), write func([]byte), end func()) {
	type piece struct {
		due time.Time
		b   []byte
	}
	pieces := make(chan piece, 4096)
	d.wg.Go(func() {
		defer end()
		for p := range pieces {
			d.sleep(time.Until(p.due))
			write(p.b)
		}
	})
	defer close(pieces)
	buf := make([]byte, 64<<10)
	for {
		n, err := read(buf)
		if err != nil {
			return
		}
		pieces <- piece{time.Now().Add(d.delay), append([]byte(nil), buf[:n]...)}
	}
}

func (d *delayLine) serveTCP(to string) {
	for {
		in, err := d.tcp.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", to)
		if err != nil {
			in.Close()
			continue
		}
		if !d.keep(in) || !d.keep(out) {
			return
		}
		for _, x := range [][2]net.Conn{{in, out}, {out, in}} {
			d.wg.Go(func() {
				d.pass(x[0].Read, func(b []byte) { x[1].Write(b) }, func() { x[1].Close() })
			})
		}
	}
}

func (d *delayLine) serveUDP(to string) {
	remote, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		d.t.Error(err)
		return
	}
	// One socket towards the relay for each participant, as a NAT has.
	out := map[string]chan<- []byte{}
	defer func() {
		for _, c := range out {
			close(c)
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := d.udp.ReadFromUDP(buf)
		if err != nil {
			return
		}
		c := out[from.String()]
		if c == nil {
			conn, err := net.DialUDP("udp", nil, remote)
			if err != nil {
				d.t.Error(err)
				return
			}
			if !d.keep(conn) {
				return
			}
			packets := make(chan []byte, 4096)
			c, out[from.String()] = packets, packets
			d.wg.Go(func() {
				d.pass(func(b []byte) (int, error) {
					p, ok := <-packets
					if !ok {
						return 0, io.EOF
					}
					return copy(b, p), nil
				}, func(b []byte) { conn.Write(b) }, func() {})
			})
			d.wg.Go(func() {
				d.pass(func(b []byte) (int, error) {
					for {
						n, err := conn.Read(b)
						if err == nil || errors.Is(err, net.ErrClosed) {
							return n, err
						}
					}
				}, func(b []byte) { d.udp.WriteToUDP(b, from) }, func() {})
			})
		}
		c <- append([]byte(nil), buf[:n]...)
	}
}
