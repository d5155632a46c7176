package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/zt-daemon/zt/deploy"
	"github.com/zt-daemon/zt/test/issuer"
	"github.com/zt-daemon/zt/test/lab"
)

const (
	freshCluster  = "c4"
	freshNAT      = "203.0.113.35"
	freshMachines = 2 // one node goes while the other serves
)

// freshly is the fourth cluster: nothing of zt's is in it. It is started for the
// first who asks, and cleared for the others.
func (b *bed) freshly(ctx context.Context) (*lab.Cluster, error) {
	if b.fresh != nil {
		return b.fresh, b.clear(ctx, b.fresh)
	}
	site, err := b.lab.NewSite(ctx, b.Network, "fourth", freshNAT)
	if err != nil {
		return nil, err
	}
	c, err := b.lab.StartCluster(ctx, lab.ClusterConfig{
		Name: freshCluster, Program: b.kubernetes, Site: site, Machines: freshMachines, Images: b.images, Issuer: b.Issuer.For(issuer.APIServerClient),
	})
	if err != nil {
		return nil, err
	}
	if err := c.Kubectl(ctx, nil, "label", "nodes", "--all", "node-role.kubernetes.io/control-plane=").OK(); err != nil {
		return nil, err
	}
	b.fresh = c
	return c, b.apply(ctx, c, rights)
}

// clear takes all of zt out of a cluster.
func (b *bed) clear(ctx context.Context, c *lab.Cluster) error {
	return errors.Join(
		b.shell(ctx, c, "helm uninstall zt --namespace "+deploy.Name+" --kube-context admin --ignore-not-found --wait"),
		c.Kubectl(ctx, nil, "delete", "namespace", deploy.Name, "--ignore-not-found").OK(),
		c.Kubectl(ctx, nil, "delete", "customresourcedefinition", "accessgrants.access.zt-daemon.io", "--ignore-not-found").OK(),
		c.Kubectl(ctx, nil, "delete", "clusterroles,clusterrolebindings", "--selector", deploy.Selector, "--ignore-not-found").OK(), // without Helm nothing else takes them along
	)
}

// joining installs nodes without Helm, and replaces their key under alice's hands.
func joining(ctx context.Context, b *bed) error {
	c, err := b.freshly(ctx)
	if err != nil {
		return err
	}
	add := func(ctx context.Context, flags ...string) lab.Result {
		args := []string{"cluster", "add", c.Name, "--context", "admin", "--api-client-id", issuer.APIServerClient, "--image", nodeImage, "--install", "--timeout", "2m"}
		return b.admin(c.Kubernetes, c.Site).ZT(ctx, append(args, flags...)...)
	}
	connected := fmt.Sprintf("cluster %s connected, %d nodes ready", c.Name, freshMachines)
	b.check(ctx, "cluster add --install: progress, and connected", via{}, 3*time.Minute, func(ctx context.Context) (string, error) {
		r := add(ctx, "--group", "developers")
		return connected, errors.Join(r.OK(), want(r.Stdout, connected), want(r.Stderr, fmt.Sprintf("0 of %d nodes ready", freshMachines)), nodesReady(ctx, c, freshMachines))
	})
	v := via{kubectl: b.kubectls[0]}
	b.check(ctx, "alice is in", v, time.Minute, func(ctx context.Context) (string, error) { return "", b.joined(ctx, c) })
	b.check(ctx, "zt-daemon clusters and zt-relay status show the nodes", via{}, time.Minute, func(ctx context.Context) (string, error) {
		return b.shown(ctx, c)
	})
	old, err := b.oldNode(ctx, c)
	if err != nil {
		return err
	}
	b.check(ctx, "once more with --new-key: the pods roll while kubectl asks", v, 4*time.Minute, func(ctx context.Context) (string, error) {
		before, err := nodePods(ctx, c)
		if err != nil {
			return "", err
		}
		stop := b.keepAsking(ctx, v, c)
		r := add(ctx, "--new-key")
		figure, err := stop()
		if err := errors.Join(r.OK(), want(r.Stdout, connected), err); err != nil {
			return figure, err
		}
		after, err := nodePods(ctx, c)
		if err != nil {
			return figure, err
		}
		for _, p := range after {
			if slices.ContainsFunc(before, func(q lab.Pod) bool { return q.Metadata.UID == p.Metadata.UID }) {
				return figure, fmt.Errorf("pod %s has not been replaced", p.Metadata.Name)
			}
		}
		return figure, nodesReady(ctx, c, freshMachines)
	})
	b.check(ctx, "the old key is good for a day", via{}, time.Minute, func(ctx context.Context) (string, error) {
		return "", b.admitted(ctx, c, old)
	})
	b.check(ctx, "the new nodes are shown", via{}, time.Minute, func(ctx context.Context) (string, error) { return b.shown(ctx, c) })
	return nil
}

// joined waits until alice's laptop knows the cluster and gets an answer from it.
func (b *bed) joined(ctx context.Context, c *lab.Cluster) error {
	if err := lab.Eventually(ctx, func(ctx context.Context) error { return b.alice.ZT(ctx, "kubeconfig", c.Name).OK() }); err != nil {
		return err
	}
	return lab.Eventually(ctx, func(ctx context.Context) error {
		return b.lab.Run(ctx, b.kubectl(via{}, c.Name, "get", "namespaces")).OK()
	})
}

// shown waits until both a person with a login and the relay's operator see every
// node pod: its version, that it is there, that its policy is in force.
func (b *bed) shown(ctx context.Context, c *lab.Cluster) (string, error) {
	var line string
	return line, lab.Eventually(ctx, func(ctx context.Context) error {
		pods, err := nodePods(ctx, c)
		if err != nil {
			return err
		}
		people, operator := b.alice.ZT(ctx, "clusters", c.Name), b.Relay.Command(ctx, "status")
		if err := errors.Join(people.OK(), operator.OK(), want(people.Stdout, "VERSION", "SEEN", "POLICY"),
			want(operator.Stdout, fmt.Sprintf("nodes here: %d", len(pods)))); err != nil {
			return err
		}
		for _, p := range pods {
			if line, err = lineOf(people.Stdout, p.Metadata.Name); err != nil {
				return err
			}
			if err := want(line, "in force", "up", "connected"); err != nil {
				return err
			}
			if version := strings.Fields(line)[1]; version == "-" {
				return fmt.Errorf("no version in %q", line)
			}
			said, err := lineOf(operator.Stdout, p.Metadata.Name)
			if err := errors.Join(err, want(said, strings.Fields(line)[1]+", policy in force, API server up, seen ")); err != nil {
				return err
			}
		}
		return nil
	})
}

// lineOf is the line of a text that holds name.
func lineOf(text, name string) (string, error) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, name) {
			return strings.TrimSpace(line), nil
		}
	}
	return "", fmt.Errorf("no line with %q in:\n%s", name, text)
}

// keepAsking has alice ask a cluster again and again. stop says how often she
// was answered, and fails if she once was not.
func (b *bed) keepAsking(ctx context.Context, v via, c *lab.Cluster) (stop func() (string, error)) {
	asking, cancel := context.WithCancel(ctx)
	type answers struct {
		n       int
		slowest time.Duration
		fault   error
	}
	result := make(chan answers, 1)
	go func() {
		var a answers
		for asking.Err() == nil && a.fault == nil {
			r := b.lab.Run(ctx, b.kubectl(v, c.Name, "get", "namespaces"))
			a.fault = r.OK()
			a.n, a.slowest = a.n+1, max(a.slowest, r.Elapsed)
		}
		result <- a
	}()
	return func() (string, error) {
		cancel()
		a := <-result
		return fmt.Sprintf("%d answers, the slowest after %s", a.n, a.slowest.Round(time.Millisecond)), a.fault
	}
}

// oldNode makes the directory of a node with the key that the cluster has now.
func (b *bed) oldNode(ctx context.Context, c *lab.Cluster) (dir string, err error) {
	var secret struct{ Data map[string][]byte }
	var policy struct{ Data map[string]string }
	namespace := "/api/v1/namespaces/" + deploy.Name
	if err := errors.Join(c.Object(ctx, namespace+"/secrets/"+deploy.KeySecret, &secret), c.Object(ctx, namespace+"/configmaps/"+deploy.PolicyConfigMap, &policy)); err != nil {
		return "", err
	}
	settings, err := json.Marshal(map[string]string{"network": b.NetworkID, "cluster": c.Name, "relay": b.Relay.URL, "upstream": c.Host})
	if err != nil {
		return "", err
	}
	dir = filepath.Join(b.lab.Dir, "node-old")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	files := secret.Data
	files["node.yaml"], files["policy.yaml"] = settings, []byte(policy.Data["policy.yaml"])
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// admitted runs the node of a directory until the relay has admitted it.
func (b *bed) admitted(ctx context.Context, c *lab.Cluster, dir string) error {
	logins := func() (n int, err error) {
		events, err := b.Relay.Audit()
		for _, e := range events {
			if e.Event == "login" && e.Kind == "node" && e.Cluster == c.Name {
				n++
			}
		}
		return n, err
	}
	before, err := logins()
	if err != nil {
		return err
	}
	const grace = 5 * time.Second
	p, err := b.lab.Start(lab.Command{
		Name: "zt-node-old", Namespace: c.Site.Inside, Grace: grace, Env: []string{"HOME=" + b.lab.Dir, "PATH=/usr/bin:/bin"},
		Args: []string{filepath.Join(b.Bin, "zt-daemon"), "node", "--dir", dir, "--grace", "1s"},
	})
	if err != nil {
		return err
	}
	defer p.Stop(grace)
	return p.WaitFor(ctx, "its admission by the relay", func(context.Context) error {
		n, err := logins()
		if err == nil && n <= before {
			err = errors.New("the relay has not admitted it")
		}
		return err
	})
}
