package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// NewBridge makes the namespaces of a Bridge, once in a process. Those that a
// killed run left behind are removed first; the lab's own go when it is closed.
// An error that is errors.ErrUnsupported means that this machine or user cannot
// make them.
func (l *Lab) NewBridge(ctx context.Context) (*Bridge, error) {
	if err := removeStaleNamespaces(ctx); err != nil {
		return nil, fmt.Errorf("remove the namespaces of an earlier run: %w", err)
	}
	b := &Bridge{lab: l}
	for _, x := range []struct {
		name, address string
		at            **Namespace
	}{{"bridge", "", &b.Inside}, {"client", BridgeClient, &b.Client}, {"relay", BridgeRelay, &b.Relay}, {"node", BridgeNode, &b.Node}} {
		ns, err := l.namespace(ctx, x.name)
		if err != nil {
			return nil, err
		}
		*x.at = ns
		steps := [][]string{
			{"-n", ns.Name, "link", "add", "br0", "type", "bridge"},
			{"-n", ns.Name, "link", "set", "br0", "up"},
			{"-n", ns.Name, "addr", "add", BridgeInside + "/24", "dev", "br0"},
		}
		if x.address != "" {
			steps = [][]string{
				{"-n", b.Inside.Name, "link", "add", x.name, "type", "veth", "peer", "name", "eth0", "netns", ns.Name},
				{"-n", b.Inside.Name, "link", "set", x.name, "master", "br0", "up"},
				{"-n", ns.Name, "addr", "add", x.address + "/24", "dev", "eth0"},
				{"-n", ns.Name, "link", "set", "eth0", "up"},
			}
		}
		for _, args := range steps {
			if err := l.tool(ctx, append([]string{"ip"}, args...)...); err != nil {
				return nil, fmt.Errorf("connect the namespaces: %w", err)
			}
		}
	}
	return b, nil
}

// Isolate cuts the client off from the node, or connects them again. Both reach
// the relay and the bridge itself either way.
func (b *Bridge) Isolate(ctx context.Context, isolated bool) error {
	state := "off"
	if isolated {
		state = "on"
	}
	for _, port := range []string{"client", "node"} {
		if err := b.lab.tool(ctx, "ip", "-n", b.Inside.Name, "link", "set", port, "type", "bridge_slave", "isolated", state); err != nil {
			return fmt.Errorf("isolate the bridge's ports: %w", err)
		}
	}
	return nil
}

// namespace makes one namespace with its loopback up.
func (l *Lab) namespace(ctx context.Context, name string) (*Namespace, error) {
	ns := &Namespace{Name: fmt.Sprintf("%s%d-%s", namespacePrefix, os.Getpid(), name)}
	if err := l.tool(ctx, "ip", "netns", "add", ns.Name); err != nil {
		return nil, fmt.Errorf("make network namespace %s: %w: %w", ns.Name, errors.ErrUnsupported, err)
	}
	l.Cleanup(ns.remove)
	return ns, l.ip(ctx, ns, "link", "set", "lo", "up")
}
