package daemon_test

import (
	"context"
	"io"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/netstack"
)

// Two devices whose transports have joined talk, and leave nothing behind.
func TestJoin(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	type participant struct {
		key       key.WireGuardPrivate
		addr      netip.Addr
		transport *daemon.Transport
		device    *netstack.Device
	}
	var both [2]participant
	network := auth.IDOf(key.NewNetwork().Public())
	for i := range both {
		p := &both[i]
		p.key = key.NewWireGuard()
		p.addr = network.NodeAddr(p.key.Public())
		var err error
		if p.transport, err = daemon.NewTransport(daemon.TransportConfig{Local: netip.MustParseAddrPort("127.0.0.1:0")}); err != nil {
			t.Fatal(err)
		}
		if p.device, err = netstack.New(netstack.Config{PrivateKey: p.key, Addr: p.addr, Transport: p.transport}); err != nil {
			t.Fatal(err)
		}
		if err := p.device.Start(); err != nil {
			t.Fatal(err)
		}
		defer p.device.Close()
	}
	for i, p := range both {
		other := both[1-i]
		p.transport.Join(other.key.Public(), other.transport.Status().Local, 1)
		if err := p.device.SetPeer(netstack.Peer{PublicKey: other.key.Public(), Addr: other.addr}); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := both[1].device.Listen(netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "straight")
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := both[0].device.DialContext(ctx, ln.Addr().(interface{ AddrPort() netip.AddrPort }).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "straight" {
		t.Errorf("read %q, %v", b, err)
	}
}
