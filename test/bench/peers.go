package main

import (
	"context"

	"github.com/zt-daemon/zt/test/bench/load"
	"github.com/zt-daemon/zt/test/lab"
)

// tailscale is a scene of Tailscale. Who relays is counted; the coordination
// server, which has nothing to do meanwhile, only where it is the DERP server too.
func tailscale(control, relay place, env ...string) func(context.Context, *rig) (*scene, error) {
	return func(ctx context.Context, r *rig) (*scene, error) {
		r.env = env
		_, out, err := r.play(ctx, control, "ts-control", load.Params{"host": lab.BridgeRelay})
		if err != nil {
			return nil, err
		}
		if relay != "" {
			if _, _, err := r.play(ctx, relay, "ts-relay", out); err != nil {
				return nil, err
			}
		}
		if _, out, err = r.play(ctx, atNode, "ts-node", out); err != nil {
			return nil, err
		}
		_, _, err = r.play(ctx, atClient, "ts-client", out)
		return &r.scene, err
	}
}

func nebulaScene(ctx context.Context, r *rig) (*scene, error) {
	_, out, err := r.play(ctx, atRelay, "nebula-relay", load.Params{"host": lab.BridgeRelay})
	if err != nil {
		return nil, err
	}
	if _, _, err := r.play(ctx, atNode, "nebula-node", out); err != nil {
		return nil, err
	}
	_, _, err = r.play(ctx, atClient, "nebula-client", out)
	return &r.scene, err
}
