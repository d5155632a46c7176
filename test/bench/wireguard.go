package main

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/zt-daemon/zt/test/bench/load"
	"github.com/zt-daemon/zt/test/lab"
)

// WireGuard in Go as it comes: its own netstack, its own Bind, direct.
const (
	wgMTU    = 1420
	wgPort   = 51820
	wgFlows  = 5001
	wgClient = "192.168.4.1"
	wgNode   = "192.168.4.2"
)

// newWG makes a device at an overlay address. meet adds the peer at the other
// one, on the machine host.
func newWG(own, other, host string) (n *netstack.Net, meet func(load.Params) error, out load.Params, err error) {
	tun, n, err := netstack.CreateNetTUN([]netip.Addr{netip.MustParseAddr(own)}, nil, wgMTU)
	if err != nil {
		return nil, nil, nil, err
	}
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	d := device.NewDevice(tun, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	if err := d.IpcSet(fmt.Sprintf("private_key=%x\nlisten_port=%d\n", k.Bytes(), wgPort)); err != nil {
		return nil, nil, nil, err
	}
	meet = func(peer load.Params) error {
		return d.IpcSet(fmt.Sprintf("public_key=%s\nendpoint=%s:%d\nallowed_ip=%s/32\n", peer["key"], host, wgPort, other))
	}
	return n, meet, load.Params{"key": hex.EncodeToString(k.PublicKey().Bytes())}, d.Up()
}

func wgNodeRole(context.Context, load.Params) (*load.Stack, load.Params, error) {
	n, meet, out, err := newWG(wgNode, wgClient, lab.BridgeClient)
	if err != nil {
		return nil, nil, err
	}
	ln, err := n.ListenTCP(&net.TCPAddr{Port: wgFlows})
	if err != nil {
		return nil, nil, err
	}
	return &load.Stack{Listener: ln, Meet: meet}, out, nil
}

func wgClientRole(_ context.Context, in load.Params) (*load.Stack, load.Params, error) {
	n, meet, out, err := newWG(wgClient, wgNode, lab.BridgeNode)
	if err != nil {
		return nil, nil, err
	}
	return &load.Stack{Dial: func(ctx context.Context) (net.Conn, error) {
		return n.DialContextTCPAddrPort(ctx, netip.AddrPortFrom(netip.MustParseAddr(wgNode), wgFlows))
	}}, out, meet(in)
}

func wgScene(ctx context.Context, r *rig) (*scene, error) {
	return r.pair(ctx, "wg-node", "wg-client", nil)
}
