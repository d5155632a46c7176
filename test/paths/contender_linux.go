package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/netstack"
	"github.com/zt-daemon/zt/test/lab"
)

// contender opens streams from one end of the path to the other.
type contender interface {
	name() string
	// listen accepts streams at the far end until the listener is closed.
	listen() (net.Listener, error)
	dial(ctx context.Context) (net.Conn, error)
	close() error
}

const (
	nearHost = "10.77.0.1"
	farHost  = "10.77.0.2"
)

// kernel is the kernel's TCP with one congestion control.
type kernel struct {
	control   string
	near, far *lab.Namespace
	port      uint16
}

func (k *kernel) name() string { return "tcp-" + k.control }

func (k *kernel) set(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, k.control)
	})
	if err == nil {
		err = failed
	}
	return err
}

func (k *kernel) listen() (net.Listener, error) {
	var ln net.Listener
	err := k.far.Do(func() (err error) {
		lc := net.ListenConfig{Control: k.set}
		ln, err = lc.Listen(context.Background(), "tcp4", fmt.Sprintf("%s:%d", farHost, k.port))
		return err
	})
	return ln, err
}

func (k *kernel) dial(ctx context.Context) (net.Conn, error) {
	var c net.Conn
	err := k.near.Do(func() (err error) {
		d := net.Dialer{Control: k.set}
		c, err = d.DialContext(ctx, "tcp4", fmt.Sprintf("%s:%d", farHost, k.port))
		return err
	})
	return c, err
}

func (k *kernel) close() error { return nil }

// controls are the congestion controls that this kernel has.
func controls() ([]string, error) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		return nil, err
	}
	return strings.Fields(string(b)), nil
}

// overlay is a pair of netstack devices, WireGuard between them.
type overlay struct {
	near, far *netstack.Device
	at        netip.AddrPort
}

func newOverlay(near, far *lab.Namespace, port uint16) (*overlay, error) {
	keys := [2]key.WireGuardPrivate{key.NewWireGuard(), key.NewWireGuard()}
	hosts := [2]netip.AddrPort{
		netip.AddrPortFrom(netip.MustParseAddr(nearHost), port), netip.AddrPortFrom(netip.MustParseAddr(farHost), port),
	}
	devices, places := [2]*netstack.Device{}, [2]*lab.Namespace{near, far}
	for i := range devices {
		d, err := netstack.New(netstack.Config{
			PrivateKey: keys[i], Addr: overlayAddr(keys[i]), Log: slog.New(slog.DiscardHandler),
			Transport: newWire(places[i], hosts[i], hosts[1-i], keys[1-i].Public()),
		})
		if err != nil {
			return nil, err
		}
		devices[i] = d
		if err := d.Start(); err != nil {
			return nil, err
		}
		if err := d.SetPeer(netstack.Peer{PublicKey: keys[1-i].Public(), Addr: overlayAddr(keys[1-i])}); err != nil {
			return nil, err
		}
	}
	return &overlay{near: devices[0], far: devices[1], at: netip.AddrPortFrom(devices[1].Addr(), 443)}, nil
}

func overlayAddr(k key.WireGuardPrivate) netip.Addr {
	b := k.Public().Bytes()
	a := sha256.Sum256(b[:])
	a[0] = 0xfd
	return netip.AddrFrom16([16]byte(a[:16]))
}

func (o *overlay) name() string                  { return "zt" }
func (o *overlay) listen() (net.Listener, error) { return o.far.Listen(o.at) }
func (o *overlay) dial(ctx context.Context) (net.Conn, error) {
	return o.near.DialContext(ctx, o.at)
}

func (o *overlay) close() error {
	o.near.Close()
	return o.far.Close()
}
