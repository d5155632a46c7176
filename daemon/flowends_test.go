package daemon_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zt-daemon/zt/daemon"
)

// rawServer stands where an API server would and speaks no protocol. What begins
// like TLS is the node's probe, and is not served.
type rawServer struct {
	ln    net.Listener
	conns chan *net.TCPConn
}

func newRawServer(t *testing.T) *rawServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &rawServer{ln, make(chan *net.TCPConn, 16)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				first := make([]byte, 1)
				c.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := io.ReadFull(c, first); err != nil || first[0] == 0x16 {
					c.Close()
					return
				}
				s.conns <- c.(*net.TCPConn)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return s
}

// TestFlowEnds shows that FIN and RST travel both ways through the whole of it:
// laptop's listener, overlay, relay, node, API server.
func TestFlowEnds(t *testing.T) {
	raw := newRawServer(t)
	o := newOverlayWith(t, &overlay{spoil: func(_ *overlay, s *daemon.NodeSettings) { s.Upstream = raw.ln.Addr().String() }})
	alice := o.laptop(t.TempDir())
	defer alice.stop()
	if _, err := alice.login("alice"); err != nil {
		t.Fatal(err)
	}
	clusters, err := alice.Clusters(t.Context())
	if err != nil || len(clusters) != 1 {
		t.Fatalf("clusters: %v, %v", clusters, err)
	}
	dial := func(t *testing.T) *net.TCPConn {
		t.Helper()
		c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(clusters[0].Port))))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		return c.(*net.TCPConn)
	}
	// pair is a flow, from both ends.
	pair := func(t *testing.T) (near, far *net.TCPConn) {
		t.Helper()
		near = dial(t)
		select {
		case far = <-raw.conns:
			t.Cleanup(func() { far.Close() })
			return near, far
		case <-time.After(20 * time.Second):
			t.Fatal("nothing arrived at the API server")
			return nil, nil
		}
	}
	load := make([]byte, 1<<20)
	rand.Read(load)
	sends := func(t *testing.T, from, to *net.TCPConn) { // and half-closes
		t.Helper()
		done := make(chan error, 1)
		go func() {
			_, err := from.Write(load)
			done <- errors.Join(err, from.CloseWrite())
		}()
		if got, err := io.ReadAll(to); err != nil || !bytes.Equal(got, load) {
			t.Errorf("got %d bytes, %v; want %d and their end", len(got), err, len(load))
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	reset := func(t *testing.T, c *net.TCPConn) {
		t.Helper()
		if n, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read %d bytes, then %v; want a reset", n, err)
		}
	}
	abort := func(c *net.TCPConn) {
		c.SetLinger(0)
		c.Close()
	}
	// says sends much, and is gone with a RST once the near kernel has it all.
	says := func(t *testing.T, from *net.TCPConn) {
		t.Helper()
		for range 8 {
			if _, err := from.Write(load); err != nil {
				t.Error(err)
			}
		}
		for daemon.Unsent(from) > 0 {
			time.Sleep(time.Millisecond)
		}
		abort(from)
	}
	// hears reads it all. A kernel tells of a reset once: whoever writes to c may be
	// told, and the reader then meets an end of input.
	hears := func(t *testing.T, c *net.TCPConn, writer <-chan error) {
		t.Helper()
		time.Sleep(100 * time.Millisecond) // a slow reader
		n, err := io.Copy(io.Discard, c)
		if err == nil && writer != nil {
			err = <-writer
		}
		if !errors.Is(err, syscall.ECONNRESET) || n != 8<<20 {
			t.Errorf("read %d bytes, then %v; want %d and then a reset", n, err, 8<<20)
		}
	}
	for name, ends := range map[string]func(t *testing.T, near, far *net.TCPConn){
		"RST of the API server after much": func(t *testing.T, near, far *net.TCPConn) {
			go says(t, far)
			hears(t, near, nil)
		},
		"RST of the client after much": func(t *testing.T, near, far *net.TCPConn) {
			go says(t, near)
			hears(t, far, nil)
		},
		"RST of the API server after much, while the client speaks": func(t *testing.T, near, far *net.TCPConn) {
			go says(t, far)
			writer := make(chan error, 1)
			go func() {
				for {
					if _, err := near.Write(load[:1000]); err != nil {
						writer <- err
						return
					}
					time.Sleep(time.Millisecond)
				}
			}()
			hears(t, near, writer)
		},
		"FIN of the client first": func(t *testing.T, near, far *net.TCPConn) {
			sends(t, near, far)
			sends(t, far, near)
		},
		"FIN of the API server first": func(t *testing.T, near, far *net.TCPConn) {
			sends(t, far, near)
			sends(t, near, far)
		},
		"RST of the client":     func(t *testing.T, near, far *net.TCPConn) { abort(near); reset(t, far) },
		"RST of the API server": func(t *testing.T, near, far *net.TCPConn) { abort(far); reset(t, near) },
		"RST of the client after the API server's FIN": func(t *testing.T, near, far *net.TCPConn) {
			sends(t, far, near)
			abort(near)
			reset(t, far)
		},
		"RST of the API server after the client's FIN": func(t *testing.T, near, far *net.TCPConn) {
			sends(t, near, far)
			abort(far)
			reset(t, near)
		},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := pair(t)
			ends(t, near, far)
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) { // nothing is left of it
				now, err := alice.Clusters(t.Context())
				if err == nil && now[0].Listener.Open == 0 {
					break
				} else if time.Now().After(end) {
					t.Fatalf("the flow is still open: %+v, %v", now[0].Listener, err)
				}
			}
		})
	}
	t.Run("an API server that does not listen", func(t *testing.T) {
		raw.ln.Close()
		reset(t, dial(t))
	})
}
