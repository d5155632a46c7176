package netstack

import (
	"io"
	"testing"
)

// BenchmarkStream sends one flow through two devices in one process: cut,
// sealed, opened, merged, acknowledged.
func BenchmarkStream(b *testing.B) {
	x, y := pair(b)
	done := make(chan int64, 1)
	at := listen(b, y, 443, func(c *Conn) { n, _ := io.Copy(io.Discard, c); done <- n })
	c := dialTo(b, x, at)
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	before := x.port.sent.Load()
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	c.CloseWrite()
	if n := <-done; n != int64(b.N)*int64(len(buf)) {
		b.Fatalf("%d bytes arrived, want %d", n, b.N*len(buf))
	}
	b.ReportMetric(float64(x.port.sent.Load()-before)/b.Elapsed().Seconds(), "pkts/s")
	c.Close()
}

// BenchmarkEcho is one round trip of 64 bytes on an open flow.
func BenchmarkEcho(b *testing.B) {
	x, y := pair(b)
	c := dialTo(b, x, listen(b, y, 443, echo))
	defer c.Close()
	buf := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDial opens and closes one flow after another.
func BenchmarkDial(b *testing.B) {
	x, y := pair(b)
	at := listen(b, y, 443, echo)
	for b.Loop() {
		dialTo(b, x, at).Close()
	}
}
