package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/test/bench/load"
	"github.com/zt-daemon/zt/test/lab"
)

// ztAdmin makes the network and, in in["dir"], what a node of its cluster needs.
func ztAdmin(ctx context.Context, in load.Params) (*load.Stack, load.Params, error) {
	n, cluster, _, err := ztFound(ctx, in)
	if err != nil {
		return nil, nil, fmt.Errorf("make the network: %w", err)
	}
	settings, err := daemon.NodeSettings{Network: n.head.Network, Cluster: ztCluster, Relay: in["relay"], Upstream: in["upstream"]}.Marshal()
	if err != nil {
		return nil, nil, err
	}
	policy, err := json.Marshal(map[string]any{ // JSON is YAML
		"issuers": []any{map[string]string{"url": n.issuer.URL, "clientID": n.issuer.ClientID, "ca": n.issuer.CA}},
		"rules":   []any{map[string]any{"name": "people", "issuer": n.issuer.URL, "groups": []string{"developers"}}},
	})
	if err != nil {
		return nil, nil, err
	}
	for name, text := range map[string][]byte{daemon.NodeConfigFile: settings, daemon.ClusterKeyFile: cluster.PEM(), daemon.PolicyFile: policy} {
		if err := os.WriteFile(filepath.Join(in["dir"], name), text, 0o600); err != nil {
			return nil, nil, err
		}
	}
	return &load.Stack{}, load.Params{"network": n.head.Network.String()}, nil
}

// ztFullScene is the product as it is used: the load program dials the loopback
// port of `zt-daemon up`, and `zt-daemon node` forwards to the load program where
// an API server would listen.
func ztFullScene(ctx context.Context, r *rig) (*scene, error) {
	node, upstream, err := r.play(ctx, atNodeLoad, "tcp-node", load.Params{"listen": "127.0.0.1:6443"})
	if err != nil {
		return nil, err
	}
	z, err := startZTRelay(ctx, r)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(r.Dir, "node")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	z.params["dir"], z.params["upstream"] = dir, upstream["address"]
	_, out, err := r.play(ctx, atSide, "zt-admin", z.params)
	if err != nil {
		return nil, err
	}
	program := filepath.Join(r.bin, "zt-daemon")
	began := time.Now()
	p, err := r.Start(lab.Command{Name: "zt-node", Args: []string{program, "node", "--dir", dir}, Namespace: r.machines.Node, Env: []string{"HOME=" + dir, "PATH=/usr/bin:/bin"}})
	if err != nil {
		return nil, err
	}
	r.count(atNode, p)
	wait, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := p.WaitFor(wait, "its admission by the relay", func(context.Context) error {
		events, err := z.relay.Audit()
		for _, e := range events {
			if e.Event == "login" && e.Kind == "node" && e.Time.After(began.Add(-time.Second)) {
				return nil
			}
		}
		return errors.Join(err, errors.New("no login of a node"))
	}); err != nil {
		return nil, err
	}
	address, err := z.laptop(ctx, r, out["network"])
	if err != nil {
		return nil, err
	}
	client, _, err := r.play(ctx, atClientLoad, "tcp-client", load.Params{"address": address})
	r.scene.client, r.scene.node = client, node
	return &r.scene, err
}

// laptop brings alice's laptop up and returns the address of its listener.
func (z *ztRelay) laptop(ctx context.Context, r *rig, network string) (address string, err error) {
	s := &lab.Scene{Lab: r.Lab, Bin: r.bin, Issuer: z.issuer, Relay: z.relay, LoginURL: z.relay.URL + "/" + network}
	alice, err := s.NewLaptop("alice", 0)
	if err != nil {
		return "", err
	}
	alice.Namespace = r.machines.Client
	p, err := r.Start(lab.Command{
		Name: "zt-laptop", Args: []string{filepath.Join(r.bin, "zt-daemon"), "up", "--foreground"},
		Env: alice.Env, Dir: alice.Home, Namespace: alice.Namespace,
	})
	if err != nil {
		return "", err
	}
	r.count(atClient, p)
	wait, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := p.WaitFor(wait, "its answer", func(ctx context.Context) error { return alice.ZT(ctx, "status").OK() }); err != nil {
		return "", err
	}
	if _, err := alice.Login(ctx, "alice"); err != nil {
		return "", err
	}
	var clusters []struct{ Server string }
	list := alice.ZT(ctx, "clusters", "-o", "json")
	if err := list.OK(); err != nil {
		return "", err
	}
	if err := json.Unmarshal([]byte(list.Stdout), &clusters); err != nil || len(clusters) != 1 {
		return "", fmt.Errorf("clusters -o json: %v: %s", err, list.Stdout)
	}
	return strings.TrimPrefix(clusters[0].Server, "https://"), nil
}
