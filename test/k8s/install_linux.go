package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/deploy"
	"github.com/zt-daemon/zt/test/lab"
)

// firstAnswerBar is how long it may take from `helm install` to what kubectl
// answers, with the image on the machines.
const firstAnswerBar = 30 * time.Second

// rights lets alice's group do everything: what she may do is the API server's
// business, not zt's.
const rights = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: developers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "oidc:developers"}]
`

// firstAnswer installs both clusters' nodes with the line that `cluster add`
// printed: the second's beforehand, the first's with a clock beside it.
func firstAnswer(ctx context.Context, b *bed) error {
	if err := b.c2.Kubectl(ctx, nil, "label", "node", "machine1", "node-role.kubernetes.io/control-plane=").OK(); err != nil {
		return err
	}
	for _, c := range []*lab.Cluster{b.c1, b.c2} {
		if err := b.apply(ctx, c, rights); err != nil {
			return err
		}
	}
	first, err := b.addCluster(ctx, b.c1, "--node-selector", "kubernetes.io/os=linux")
	if err != nil {
		return err
	}
	second, err := b.addCluster(ctx, b.c2)
	if err != nil {
		return err
	}
	b.installed[b.c2.Name] = second
	if err := want(second, "mode=daemonset", "node-role.kubernetes.io/control-plane"); err != nil {
		return fmt.Errorf("cluster add has not seen the control plane: %w", err)
	}
	if _, err := b.alice.Login(ctx, "alice"); err != nil {
		return err
	}
	b.check(ctx, "before there is a node: refused within 15 s, with a reason", via{kubectl: b.kubectls[0]}, time.Minute, func(ctx context.Context) (string, error) {
		r := b.lab.Run(ctx, b.kubectl(via{kubectl: b.kubectls[0]}, b.c1.Name, "get", "namespaces"))
		if err := want(r.Stderr, b.c1.Name, "node"); err != nil || r.Code == 0 || r.Elapsed > 15*time.Second {
			return "", fmt.Errorf("exit code %d after %s: %s", r.Code, r.Elapsed, r.Stderr)
		}
		return "", nil
	})
	b.check(ctx, "first answer", via{kubectl: b.kubectls[0]}, 2*time.Minute, func(ctx context.Context) (string, error) {
		return b.timeInstall(ctx, first)
	})
	if err := b.shell(ctx, b.c2, second+" --wait --timeout 2m"); err != nil {
		return err
	}
	b.check(ctx, "all nodes ready, none restarted", via{}, time.Minute, func(ctx context.Context) (string, error) {
		return "", lab.Eventually(ctx, func(ctx context.Context) error {
			return errors.Join(nodesReady(ctx, b.c1, 3), nodesReady(ctx, b.c2, 1))
		})
	})
	b.check(ctx, "helm test", via{}, time.Minute, func(ctx context.Context) (string, error) {
		return "", b.shell(ctx, b.c1, "helm test zt --namespace "+deploy.Name+" --kube-context admin")
	})
	if err := b.makeApplication(ctx); err != nil {
		return err
	}
	return b.startInformer(ctx)
}

// timeInstall says when, after `helm install` began, each thing was there.
func (b *bed) timeInstall(ctx context.Context, line string) (string, error) {
	begin := time.Now()
	since := func() time.Duration { return time.Since(begin) }
	var helm, answer, session time.Duration
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := b.shell(ctx, b.c1, line)
		helm = since()
		return err
	})
	g.Go(func() error {
		return lab.Eventually(ctx, func(context.Context) error {
			events, err := b.Relay.Audit()
			for _, e := range events {
				if e.Event == "login" && e.Kind == "node" && e.Cluster == "c1" {
					session = e.Time.Sub(begin)
					return nil
				}
			}
			return errors.Join(err, errors.New("no node has come to the relay"))
		})
	})
	g.Go(func() error {
		return lab.Eventually(ctx, func(ctx context.Context) error {
			err := b.lab.Run(ctx, b.kubectl(via{}, "c1", "--request-timeout=5s", "get", "namespaces")).OK()
			answer = since()
			return err
		})
	})
	if err := g.Wait(); err != nil {
		return "", err
	}
	pods, err := nodePods(ctx, b.c1)
	if err != nil {
		pods, err = nodePods(context.WithoutCancel(ctx), b.c1)
	}
	if err != nil {
		return "", err
	}
	started := time.Time{}
	for _, p := range pods {
		for _, c := range p.Status.ContainerStatuses {
			if at := c.State.Running.StartedAt; started.IsZero() || at.Before(started) {
				started = at
			}
		}
	}
	figure := fmt.Sprintf("%.1f s of %.0f: helm has returned at %.1f, a container has started at %.0f, a node has its session at %.1f",
		answer.Seconds(), firstAnswerBar.Seconds(), helm.Seconds(), max(0, started.Sub(begin).Seconds()), session.Seconds())
	if answer > firstAnswerBar {
		return figure, fmt.Errorf("over the bar of %s", firstAnswerBar)
	}
	return figure, nil
}

// nodesReady is nil if there are that many node pods, all ready and none ever
// restarted.
func nodesReady(ctx context.Context, c *lab.Cluster, n int) error {
	pods, err := nodePods(ctx, c)
	if err != nil {
		return err
	}
	for _, p := range pods {
		if !p.Ready() {
			return fmt.Errorf("pod %s of %s is not ready", p.Metadata.Name, c.Name)
		}
		for _, s := range p.Status.ContainerStatuses {
			if s.RestartCount > 0 {
				return fmt.Errorf("pod %s of %s was restarted %d times", p.Metadata.Name, c.Name, s.RestartCount)
			}
		}
	}
	if len(pods) != n {
		return fmt.Errorf("%d node pods in %s, want %d", len(pods), c.Name, n)
	}
	return nil
}
