//go:build linux

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newNetwork is the lab's internet, or a skip where it cannot be made.
func newNetwork(t *testing.T, l *Lab) *Network {
	t.Helper()
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("cannot make a network namespace: %v (Debian: apt-get install iproute2 nftables)", err)
		}
	}
	n, err := l.NewNetwork(t.Context())
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("cannot make a network namespace (needs root or CAP_SYS_ADMIN): %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNetwork(t *testing.T) {
	l := newLab(t)
	n := newNetwork(t, l)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	serve := func(ns *Namespace, address string) {
		t.Helper()
		ln, err := ns.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(c, c.RemoteAddr())
				c.Close()
			}
		}()
	}
	serve(n.Relay, RelayHost+":443")
	serve(n.Cluster, ClusterHost+":6443")
	serve(n.Laptop, LaptopHost+":22")
	for _, tc := range []struct {
		name   string
		from   *Namespace
		to     string
		sees   string // what the other side sees; empty: no connection
		closed bool
	}{
		{"the laptop reaches the relay", n.Laptop, RelayHost + ":443", LaptopNAT, false},
		{"the cluster reaches the relay", n.Cluster, RelayHost + ":443", ClusterNAT, false},
		{"the cluster reaches its API server", n.Cluster, ClusterHost + ":6443", ClusterHost, false},
		{"no route from laptop to cluster", n.Laptop, ClusterHost + ":6443", "", true},
		{"none through its NAT's public address", n.Laptop, ClusterNAT + ":6443", "", true},
		{"none from cluster to laptop", n.Cluster, LaptopHost + ":22", "", true},
		{"none from relay to cluster", n.Relay, ClusterHost + ":6443", "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			c, err := tc.from.DialContext(ctx, "tcp", tc.to)
			if tc.closed {
				if err == nil {
					c.Close()
					t.Errorf("connected to %s", tc.to)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			b, err := io.ReadAll(c)
			if host, _, _ := net.SplitHostPort(string(b)); err != nil || host != tc.sees {
				t.Errorf("the other side sees %q (%v), want %s", b, err, tc.sees)
			}
		})
	}

	t.Run("a capture sees both directions and every segment", func(t *testing.T) {
		c, err := NewCapture(n.Relay, "eth0")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := n.Laptop.DialContext(ctx, "tcp", RelayHost+":443")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(conn); err != nil {
			t.Error(err)
		}
		conn.Close()
		// 2,500 bytes in datagrams of 1,000 by one system call.
		sent := bytes.Repeat([]byte("0123456789"), 250)
		if err := n.Laptop.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, 1000); err != nil {
				return err
			}
			return unix.Sendto(fd, sent, 0, &unix.SockaddrInet4{Port: 443, Addr: netip.MustParseAddr(RelayHost).As4()})
		}); err != nil {
			t.Fatal(err)
		}
		packets, err := c.Stop()
		if err != nil {
			t.Fatal(err)
		}
		var sizes []int
		var got []byte
		for _, p := range packets {
			if p.Protocol == UDP {
				for _, d := range p.Datagrams() {
					sizes, got = append(sizes, len(d)), append(got, d...)
				}
			}
		}
		if fmt.Sprint(sizes) != "[1000 1000 500]" || !bytes.Equal(got, sent) {
			t.Errorf("captured datagrams of %v bytes, equal %v", sizes, bytes.Equal(got, sent))
		}
		streams := Streams(packets)
		if len(streams) != 2 || !streams[0].Begun || string(streams[1].Bytes) != streams[0].From.String() {
			t.Errorf("captured streams: %d", len(streams))
			for _, s := range streams {
				t.Logf("%s > %s begun %v: %q", s.From, s.To, s.Begun, s.Bytes)
			}
		}
	})

	t.Run("nothing is left", func(t *testing.T) {
		p, err := l.Start(Command{Name: "sleeper", Namespace: n.Laptop, Args: []string{"sh", "-c", "setsid sleep 1000 & sleep 1000"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := Eventually(ctx, func(context.Context) error {
			if got := len(n.Laptop.processes()); got != 3 {
				return fmt.Errorf("%d processes", got)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, exited := p.Exited(); !exited {
			t.Error("a process is left")
		}
		entries, _ := os.ReadDir("/run/netns")
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), fmt.Sprintf("%s%d-", namespacePrefix, os.Getpid())) {
				t.Errorf("namespace %s is left", e.Name())
			}
		}
	})
}

func TestRemoveStaleNamespaces(t *testing.T) {
	l := newLab(t)
	newNetwork(t, l)
	// A process that was and is no more.
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	ns := &Namespace{Name: fmt.Sprintf("%s%d-laptop", namespacePrefix, gone.Process.Pid)}
	if err := l.tool(t.Context(), "ip", "netns", "add", ns.Name); err != nil {
		t.Fatal(err)
	}
	if err := removeStaleNamespaces(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ns.path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("namespace of process %d, which is gone, is left: %v", gone.Process.Pid, err)
	}
	if _, err := os.Stat(fmt.Sprintf("/run/netns/%s%d-laptop", namespacePrefix, os.Getpid())); err != nil {
		t.Errorf("a living run's namespace was removed: %v", err)
	}
}
