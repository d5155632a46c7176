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
	if err := errors.Join(removeStaleNamespaces(ctx), removeStaleCgroups()); err != nil {
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

// NewSite adds a private network behind a NAT of its own to the internet. All
// clusters' sites have the same addresses inside; public is what the world sees.
func (l *Lab) NewSite(ctx context.Context, n *Network, name, public string) (*Site, error) {
	s := &Site{}
	var err error
	if s.NAT, err = l.namespace(ctx, "nat-"+name); err != nil {
		return nil, err
	}
	if s.Inside, err = l.namespace(ctx, name); err != nil {
		return nil, err
	}
	c := &wiring{lab: l, ctx: ctx}
	c.public(n.Internet, s.NAT, "wan", "nat-"+name, public)
	c.private(s.NAT, s.Inside, clusterGateway, ClusterHost)
	return s, c.err
}

// wire connects the namespaces.
func (l *Lab) wire(ctx context.Context, n *Network) error {
	c := &wiring{lab: l, ctx: ctx}
	c.ip(n.Internet, "link", "add", "br0", "type", "bridge")
	c.ip(n.Internet, "link", "set", "br0", "up")
	c.public(n.Internet, n.Relay, "eth0", "relay", RelayHost)
	c.public(n.Internet, n.Issuer, "eth0", "issuer", IssuerHost)
	c.public(n.Internet, n.NATA, "wan", "nat-a", LaptopNAT)
	c.public(n.Internet, n.NATB, "wan", "nat-b", ClusterNAT)
	c.private(n.NATA, n.Laptop, "192.168.1.1", LaptopHost)
	c.private(n.NATB, n.Cluster, clusterGateway, ClusterHost)
	return c.err
}

// wiring connects namespaces; after its first error it does nothing more.
type wiring struct {
	lab *Lab
	ctx context.Context
	err error
}

func (c *wiring) do(f func() error) {
	if c.err != nil {
		return
	}
	if err := f(); err != nil {
		c.err = fmt.Errorf("connect the namespaces: %w", err)
	}
}

func (c *wiring) ip(ns *Namespace, args ...string) {
	c.do(func() error { return c.lab.ip(c.ctx, ns, args...) })
}

// public gives ns an address of the internet.
func (c *wiring) public(internet, ns *Namespace, device, port, address string) {
	c.ip(internet, "link", "add", port, "type", "veth", "peer", "name", device, "netns", ns.Name)
	c.ip(internet, "link", "set", port, "master", "br0", "up")
	c.ip(ns, "addr", "add", address+"/24", "dev", device)
	c.ip(ns, "link", "set", device, "up")
}

// private puts inside behind nat.
func (c *wiring) private(nat, inside *Namespace, gateway, address string) {
	c.ip(nat, "link", "add", "lan", "type", "veth", "peer", "name", "eth0", "netns", inside.Name)
	c.ip(nat, "addr", "add", gateway+"/24", "dev", "lan")
	c.ip(nat, "link", "set", "lan", "up")
	c.ip(inside, "addr", "add", address+"/24", "dev", "eth0")
	c.ip(inside, "link", "set", "eth0", "up")
	c.ip(inside, "route", "add", "default", "via", gateway)
	c.forward(nat)
	c.do(func() error {
		return c.lab.Run(c.ctx, Command{Args: []string{"nft", "-f", "-"}, Stdin: strings.NewReader(natRules), Namespace: nat}).OK()
	})
}

// forward lets ns pass on what is not for itself.
func (c *wiring) forward(ns *Namespace) {
	c.do(func() error {
		return ns.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644) })
	})
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
