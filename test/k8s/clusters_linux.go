package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/test/issuer"
	"github.com/zt-daemon/zt/test/lab"
)

// closedCluster is the third one: an API server and a node beside it, outside
// Kubernetes.
const closedCluster = "c3"

// severalClusters has alice work in two clusters at the same time, whose
// addresses are all the same, and refuses her in a third, which is closed.
func severalClusters(ctx context.Context, b *bed) error {
	asked := 20
	if b.quick {
		asked = 5
	}
	for _, k := range b.kubectls {
		v := via{kubectl: k}
		b.check(ctx, fmt.Sprintf("two clusters with the same addresses, %d answers each at the same time", asked), v, 2*time.Minute, func(ctx context.Context) (string, error) {
			g, ctx := errgroup.WithContext(ctx)
			for _, c := range []*lab.Cluster{b.c1, b.c2} {
				g.Go(func() error { return b.askWhich(ctx, v, c, asked) })
			}
			return "", g.Wait()
		})
	}
	closed, err := b.raiseClosed(ctx)
	if err != nil {
		return err
	}
	for _, k := range b.kubectls {
		v := via{kubectl: k}
		b.check(ctx, "a closed cluster says so, and what to do", v, 30*time.Second, func(ctx context.Context) (string, error) {
			r := b.lab.Run(ctx, b.kubectl(v, closedCluster, "get", "namespaces"))
			if err := want(r.Stderr, closedCluster, "closed", "zt-daemon request"); err != nil || r.Code == 0 {
				return "", fmt.Errorf("%w: %v", err, r)
			}
			return "", nil
		})
	}
	return b.resets(ctx, closed)
}

// askWhich asks a cluster for what is different in each, again and again.
func (b *bed) askWhich(ctx context.Context, v via, c *lab.Cluster, times int) error {
	var namespace struct{ Metadata struct{ UID string } }
	if err := c.Object(ctx, "/api/v1/namespaces/kube-system", &namespace); err != nil {
		return err
	}
	for range times {
		r := b.lab.Run(ctx, b.kubectl(v, c.Name, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"))
		if err := r.OK(); err != nil {
			return err
		}
		if r.Stdout != namespace.Metadata.UID {
			return fmt.Errorf("asked %s, another cluster answered: kube-system is %s there, not %s", c.Name, namespace.Metadata.UID, r.Stdout)
		}
	}
	return nil
}

// closedSite is the third cluster.
type closedSite struct {
	*lab.Kubernetes
	policyFile string
	node       *lab.Process
}

// raiseClosed starts the third cluster and its node.
func (b *bed) raiseClosed(ctx context.Context) (*closedSite, error) {
	c := &closedSite{}
	var err error
	c.Kubernetes, err = b.lab.StartKubernetes(ctx, lab.KubernetesConfig{
		Name: closedCluster, Program: b.kubernetes, Host: lab.ClusterHost, Port: 6443, Namespace: b.third.Inside, Issuer: b.Issuer.For(issuer.APIServerClient),
	})
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(b.lab.Dir, "node-"+closedCluster)
	if err := b.admin(c.Kubernetes, b.third).ZT(ctx, "cluster", "add", closedCluster, "--context", "admin", "--out", dir,
		"--api-client-id", issuer.APIServerClient, "--group", "developers").OK(); err != nil {
		return nil, err
	}
	c.policyFile = filepath.Join(dir, "policy.yaml")
	text, err := os.ReadFile(c.policyFile)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(c.policyFile, append([]byte("closed: true\n"), text...), 0o600); err != nil {
		return nil, err
	}
	c.node, err = b.lab.Start(lab.Command{
		Name: "zt-node-" + closedCluster, Namespace: b.third.Inside, Grace: 5 * time.Second, Env: []string{"HOME=" + b.lab.Dir, "PATH=/usr/bin:/bin"},
		Args: []string{filepath.Join(b.Bin, "zt-daemon"), "node", "--dir", dir},
	})
	if err != nil {
		return nil, err
	}
	// Until alice's daemon has the new record, and the node its session.
	knowing, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := lab.Eventually(knowing, func(ctx context.Context) error {
		r := b.alice.ZT(ctx, "credential", closedCluster)
		if strings.Contains(r.Stderr, "closed") {
			return nil
		}
		return errors.New(strings.TrimSpace(r.Stderr)) // standard output may hold a token
	}); err != nil {
		return nil, err
	}
	return c, b.alice.ZT(ctx, "kubeconfig", closedCluster).OK()
}

// resets opens the third cluster and kills its API server: what is open at the
// laptop ends with it, and does not hang.
func (b *bed) resets(ctx context.Context, c *closedSite) error {
	text, err := os.ReadFile(c.policyFile)
	if err != nil {
		return err
	}
	opened := strings.Replace(string(text), "closed: true\n", "", 1)
	if err := os.WriteFile(c.policyFile+".new", []byte(opened), 0o600); err != nil {
		return err
	}
	if err := os.Rename(c.policyFile+".new", c.policyFile); err != nil {
		return err
	}
	b.check(ctx, "opened by its policy, it answers", via{kubectl: b.kubectls[0]}, time.Minute, func(ctx context.Context) (string, error) {
		return "", lab.Eventually(ctx, func(ctx context.Context) error {
			return b.lab.Run(ctx, b.kubectl(via{}, closedCluster, "get", "namespaces")).OK()
		})
	})
	b.check(ctx, "an API server that dies: what is open ends", via{kubectl: b.kubectls[0]}, time.Minute, func(ctx context.Context) (string, error) {
		command := b.kubectl(via{}, closedCluster, "get", "namespaces", "--watch")
		command.Name = "watch-reset"
		w, err := b.lab.Start(command)
		if err != nil {
			return "", err
		}
		defer w.Kill()
		if _, err := w.WaitText(ctx, "kube-system"); err != nil {
			return "", err
		}
		c.Process.Kill()
		begin := time.Now()
		select {
		case <-w.Done():
			return fmt.Sprintf("kubectl's watch ended %s later", time.Since(begin).Round(time.Millisecond)), nil
		case <-time.After(10 * time.Second):
			return "", errors.New("kubectl's watch is open 10 s later")
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	})
	return nil
}
