package relay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zt-daemon/zt/relay/wire"
)

// A load is what the participants of BenchmarkRelay send. They live in a process
// of their own, so that what the benchmark's process uses is the relay's.
type load struct {
	name   string
	size   int  // of a packet
	count  int  // packets a train
	echo   bool // the right side answers, and the left waits for that
	window int  // trains on their way
}

var loads = []load{
	{name: "trains", size: 1312, count: 49, window: 4},
	{name: "singles", size: 1312, count: 1, window: 128},
	{name: "echo", size: 128, count: 1, echo: true, window: 1},
}

const (
	loadVariable = "ZT_TEST_LOAD" // "NAME PAIRS RELAY", for the other process
	leftChannel  = 0x10000        // of the first edge
	rightChannel = 0x20000
)

// TestLoad is the other process of BenchmarkRelay.
func TestLoad(t *testing.T) {
	spec := os.Getenv(loadVariable)
	if spec == "" {
		t.Skip("is run by BenchmarkRelay")
	}
	var name, relay string
	var pairs int
	if _, err := fmt.Sscan(spec, &name, &pairs, &relay); err != nil {
		t.Fatal(err)
	}
	var l load
	for _, l = range loads {
		if l.name == name {
			break
		}
	}
	var stopped atomic.Bool
	run := make([]func(), pairs)
	for i := range pairs {
		left, right := udp(t), udp(t)
		for _, c := range []*net.UDPConn{left, right} {
			if _, err := newSocket(c, nil); err != nil { // joins what it receives
				t.Fatal(err)
			}
		}
		run[i] = func() { l.run(left, right, uint32(i), netip.MustParseAddrPort(relay), &stopped) }
		fmt.Println("addresses", local(left), local(right))
	}
	io.ReadFull(os.Stdin, make([]byte, 1))
	for _, f := range run {
		go f()
	}
	io.Copy(io.Discard, os.Stdin)
	stopped.Store(true)
}

// run sends on the edge of number edge until stopped.
func (l load) run(left, right *net.UDPConn, edge uint32, relay netip.AddrPort, stopped *atomic.Bool) {
	var ctl control
	oob := ctl.bytes()[:ctl.put(0, unix.IPPROTO_UDP, unix.UDP_SEGMENT, binary.NativeEndian.AppendUint16(nil, uint16(l.size)))]
	if l.count == 1 {
		oob = nil
	}
	train := bytes.Repeat(message(wire.PacketTransport, l.size, leftChannel+edge), l.count)
	answer := message(wire.PacketTransport, l.size, rightChannel+edge)
	back := make(chan int, 1024) // bytes that arrived
	go func() {
		b := make([]byte, slabSize)
		for {
			n, err := right.Read(b)
			if err != nil {
				return
			}
			if l.echo {
				right.WriteToUDPAddrPort(answer, relay)
			} else {
				back <- n
			}
		}
	}()
	if l.echo {
		go func() {
			b := make([]byte, slabSize)
			for {
				n, err := left.Read(b)
				if err != nil {
					return
				}
				back <- n
			}
		}()
	}
	lost := time.NewTimer(time.Hour)
	ahead := 0 // bytes on their way
	for !stopped.Load() {
		for ahead < l.window*len(train) {
			if _, _, err := left.WriteMsgUDPAddrPort(train, oob, relay); err != nil {
				fmt.Println("send", err)
				return
			}
			ahead += len(train)
		}
		lost.Reset(20 * time.Millisecond)
		select {
		case n := <-back:
			ahead = max(0, ahead-n)
			for len(back) > 0 {
				ahead = max(0, ahead-<-back)
			}
		case <-lost.C:
			ahead = 0
		}
	}
}

// cpu is what this process has used, kernel and all.
func cpu(t testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRelay is the relay's socket path on loopback. An operation is one
// packet; with echo a round trip is two.
func BenchmarkRelay(b *testing.B) {
	for _, l := range loads {
		for _, pairs := range []int{1, 4} {
			for _, readers := range []int{1, 2} {
				b.Run(fmt.Sprintf("%s/edges=%d/sockets=%d", l.name, pairs, readers), func(b *testing.B) { benchmarkRelay(b, l, pairs, readers) })
			}
		}
	}
}

func benchmarkRelay(b *testing.B, l load, pairs, readers int) {
	conns, err := ListenUDP("127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	conns, spare := conns[:min(readers, len(conns))], conns[min(readers, len(conns)):]
	for _, c := range spare {
		c.Close()
	}
	spread(conns[0], len(conns))
	conn := conns[0]
	sockets, err := newSockets(conns)
	if err != nil {
		b.Fatal(err)
	}
	var packets, dropped, batches atomic.Uint64
	f := newForwarder(func(t *tally) {
		packets.Add(t.packets)
		batches.Add(1)
		for _, n := range t.dropped {
			dropped.Add(n)
		}
	})

	other := exec.Command(os.Args[0], "-test.run=^TestLoad$")
	other.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", loadVariable, l.name, pairs, local(conn)))
	in, err := other.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := other.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := other.Start(); err != nil {
		b.Fatal(err)
	}
	ended := make(chan error, len(sockets))
	for i := range uint32(pairs) {
		var addrs [2]string
		if _, err := fmt.Fscan(out, new(string), &addrs[0], &addrs[1]); err != nil {
			b.Fatal(err)
		}
		left, right := testSession(f), testSession(f)
		f.move(left, pathOn(sockets[0], netip.MustParseAddrPort(addrs[0])))
		f.move(right, pathOn(sockets[0], netip.MustParseAddrPort(addrs[1])))
		var bytes atomic.Uint64
		left.hop(leftChannel+i, &hop{to: right, channel: rightChannel + i, bytes: &bytes})
		right.hop(rightChannel+i, &hop{to: left, channel: leftChannel + i, bytes: &bytes})
	}
	for _, s := range sockets {
		go func() { ended <- s.run(f) }()
	}
	defer func() {
		in.Close()
		other.Wait()
		for _, s := range sockets {
			s.conn.Close()
			<-ended
		}
	}()
	in.Write([]byte{1})
	wait := func(n uint64) {
		for packets.Load() < n {
			time.Sleep(time.Millisecond)
		}
	}
	wait(uint64(100 * l.count))
	b.SetBytes(int64(l.size))
	b.ResetTimer()
	first, began, batched := packets.Load(), cpu(b), batches.Load()
	wait(first + uint64(b.N))
	b.StopTimer()
	n, used := float64(packets.Load()-first), cpu(b)-began
	b.ReportMetric(n/b.Elapsed().Seconds(), "pkts/s")
	b.ReportMetric(float64(used.Nanoseconds())/n, "cpu-ns/pkt")
	b.ReportMetric(used.Seconds()/(n*float64(l.size))*1e9, "cpu-s/GB")
	b.ReportMetric(n/used.Seconds(), "pkts/cpu-s")
	b.ReportMetric(n/float64(batches.Load()-batched), "pkts/batch")
	b.ReportMetric(float64(dropped.Load()), "drops")
}
