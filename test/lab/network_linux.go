package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// namespacePrefix and this process's number begin the name of every namespace.
const namespacePrefix = "ztlab"

var namespaceName = regexp.MustCompile(`^` + namespacePrefix + `([0-9]+)-`)

// natRules are those of a home router: a mapping for each destination asked
// for, and silence to everybody else.
const natRules = `table ip nat {
	chain post {
		type nat hook postrouting priority srcnat;
		oifname "wan" masquerade
	}
	chain in {
		type filter hook input priority filter;
		iifname "wan" ct state new drop
	}
	chain forward {
		type filter hook forward priority filter;
		iifname "wan" ct state new drop
		iifname "wan" ct state invalid drop
	}
}
`

// NewNetwork makes the namespaces, once in a process. Those that a killed run left behind are
// removed first; the lab's own go when it is closed. An error that is
// errors.ErrUnsupported means that this machine or user cannot make them.
func (l *Lab) NewNetwork(ctx context.Context) (*Network, error) {
	if err := removeStaleNamespaces(ctx); err != nil {
		return nil, fmt.Errorf("remove the namespaces of an earlier run: %w", err)
	}
	n := &Network{}
	all := []struct {
		name string
		at   **Namespace
	}{{"inet", &n.Internet}, {"relay", &n.Relay}, {"issuer", &n.Issuer}, {"nat-a", &n.NATA}, {"nat-b", &n.NATB}, {"laptop", &n.Laptop}, {"cluster", &n.Cluster}}
	for _, x := range all {
		ns, err := l.namespace(ctx, x.name)
		if err != nil {
			return nil, err
		}
		*x.at = ns
	}
	if err := l.wire(ctx, n); err != nil {
		return nil, err
	}
	l.Say("networks are up: laptop behind one NAT, cluster behind another, relay and issuer in public")
	return n, nil
}

// wire connects the namespaces.
func (l *Lab) wire(ctx context.Context, n *Network) error {
	do := func(ns *Namespace, args ...string) func() error {
		return func() error { return l.ip(ctx, ns, args...) }
	}
	public := func(ns *Namespace, device, port, address string) []func() error {
		return []func() error{
			do(n.Internet, "link", "add", port, "type", "veth", "peer", "name", device, "netns", ns.Name),
			do(n.Internet, "link", "set", port, "master", "br0", "up"),
			do(ns, "addr", "add", address+"/24", "dev", device),
			do(ns, "link", "set", device, "up"),
		}
	}
	private := func(nat, inside *Namespace, gateway, address string) []func() error {
		return []func() error{
			do(nat, "link", "add", "lan", "type", "veth", "peer", "name", "eth0", "netns", inside.Name),
			do(nat, "addr", "add", gateway+"/24", "dev", "lan"),
			do(nat, "link", "set", "lan", "up"),
			do(inside, "addr", "add", address+"/24", "dev", "eth0"),
			do(inside, "link", "set", "eth0", "up"),
			do(inside, "route", "add", "default", "via", gateway),
			func() error {
				return nat.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644) })
			},
			func() error {
				return l.Run(ctx, Command{Args: []string{"nft", "-f", "-"}, Stdin: strings.NewReader(natRules), Namespace: nat}).OK()
			},
		}
	}
	steps := []func() error{
		do(n.Internet, "link", "add", "br0", "type", "bridge"),
		do(n.Internet, "link", "set", "br0", "up"),
	}
	steps = append(steps, public(n.Relay, "eth0", "relay", RelayHost)...)
	steps = append(steps, public(n.Issuer, "eth0", "issuer", IssuerHost)...)
	steps = append(steps, public(n.NATA, "wan", "nat-a", LaptopNAT)...)
	steps = append(steps, public(n.NATB, "wan", "nat-b", ClusterNAT)...)
	steps = append(steps, private(n.NATA, n.Laptop, "192.168.1.1", LaptopHost)...)
	steps = append(steps, private(n.NATB, n.Cluster, "10.20.0.1", ClusterHost)...)
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("connect the namespaces: %w", err)
		}
	}
	return nil
}

func (l *Lab) ip(ctx context.Context, ns *Namespace, args ...string) error {
	return l.tool(ctx, append([]string{"ip", "-n", ns.Name}, args...)...)
}

func (l *Lab) tool(ctx context.Context, args ...string) error {
	return l.Run(ctx, Command{Name: args[0], Args: args}).OK()
}

// SetLink takes a namespace's device down or up: a cable pulled out.
func (l *Lab) SetLink(ctx context.Context, ns *Namespace, device string, up bool) error {
	state := "down"
	if up {
		state = "up"
	}
	return l.ip(ctx, ns, "link", "set", device, state)
}

// remove ends every process in the namespace and removes it.
func (n *Namespace) remove() error {
	for range 100 {
		pids := n.processes()
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := unix.Unmount(n.path(), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove network namespace %s: %w", n.Name, err)
	}
	if err := os.Remove(n.path()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", n.Name, err)
	}
	return nil
}

// processes lists the processes, other than this one, in the namespace.
func (n *Namespace) processes() []int {
	want, err := os.Stat(n.path())
	if err != nil {
		return nil
	}
	var pids []int
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, link := range links {
		pid, _ := strconv.Atoi(strings.Split(link, "/")[2])
		if got, err := os.Stat(link); err == nil && os.SameFile(want, got) && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// removeStaleNamespaces removes the namespaces of runs whose process is gone.
func removeStaleNamespaces(ctx context.Context) error {
	entries, err := os.ReadDir("/run/netns")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		m := namespaceName.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		pid, err := strconv.Atoi(m[1])
		if err != nil || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue // a run that is under way
		}
		if err := (&Namespace{Name: e.Name()}).remove(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}
