package main

import (
	"context"
	"net"

	"github.com/zt-daemon/zt/test/bench/load"
	"github.com/zt-daemon/zt/test/lab"
)

// tcpNode listens on kernel TCP at in["listen"].
func tcpNode(_ context.Context, in load.Params) (*load.Stack, load.Params, error) {
	ln, err := net.Listen("tcp", in["listen"])
	if err != nil {
		return nil, nil, err
	}
	return &load.Stack{Listener: ln}, load.Params{"address": ln.Addr().String()}, nil
}

// tcpClient dials in["address"] on kernel TCP.
func tcpClient(_ context.Context, in load.Params) (*load.Stack, load.Params, error) {
	return &load.Stack{Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", in["address"])
	}}, nil, nil
}

func tcpScene(ctx context.Context, r *rig) (*scene, error) {
	_, out, err := r.play(ctx, atNode, "tcp-node", load.Params{"listen": lab.BridgeNode + ":5001"})
	if err != nil {
		return nil, err
	}
	if _, _, err := r.play(ctx, atClient, "tcp-client", out); err != nil {
		return nil, err
	}
	return &r.scene, nil
}
