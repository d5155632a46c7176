package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/zt-daemon/zt/deploy"
	"github.com/zt-daemon/zt/test/lab"
)

// cutBar is how long what is open may outlive the right to it.
const cutBar = 5 * time.Second

// openersRights are those that deploy/README.md gives to openers, and no others.
const openersRights = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: zt-opener}
rules:
- {apiGroups: [access.zt-daemon.io], resources: [accessgrants], verbs: [get, list, watch, create, patch, delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: zt-opener}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: zt-opener}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "oidc:sre"}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: zt-requests, namespace: ` + deploy.Name + `}
rules:
- {apiGroups: [""], resources: [events], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: zt-requests, namespace: ` + deploy.Name + `}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: zt-requests}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "oidc:sre"}]
`

// policy is that of the second cluster.
func (b *bed) policy(ctx context.Context) (string, error) {
	var config struct{ Data map[string]string }
	err := b.c2.Object(ctx, "/api/v1/namespaces/"+deploy.Name+"/configmaps/"+deploy.PolicyConfigMap, &config)
	return config.Data["policy.yaml"], err
}

// setPolicy has the second cluster's administrator apply another one.
func (b *bed) setPolicy(ctx context.Context, text string) error {
	config, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]string{"name": deploy.PolicyConfigMap, "namespace": deploy.Name}, "data": map[string]string{"policy.yaml": text}})
	if err != nil {
		return err
	}
	return b.c2.Kubectl(ctx, strings.NewReader(string(config)), "apply", "--server-side", "--force-conflicts", "-f", "-").OK()
}

// open has alice watch something in the second cluster, and waits until she sees
// it: for as long as what kept her out before may be remembered.
func (b *bed) open(ctx context.Context, name string) (*lab.Process, error) {
	if err := lab.Eventually(ctx, func(ctx context.Context) error {
		return b.lab.Run(ctx, b.kubectl(via{}, b.c2.Name, "get", "namespaces")).OK()
	}); err != nil {
		return nil, err
	}
	c := b.kubectl(via{}, b.c2.Name, "get", "namespaces", "--watch")
	c.Name = name
	w, err := b.lab.Start(c)
	if err != nil {
		return nil, err
	}
	if _, err := w.WaitText(ctx, "kube-system"); err != nil {
		w.Kill()
		return nil, err
	}
	return w, nil
}

// cut waits until what is open has ended, which is since then at most cutBar.
func cut(ctx context.Context, w *lab.Process, since time.Time) (string, error) {
	select {
	case <-w.Done():
	case <-ctx.Done():
		return "", fmt.Errorf("it is open still: %w", context.Cause(ctx))
	}
	took := time.Since(since)
	figure := fmt.Sprintf("cut after %.1f s of %.0f", took.Seconds(), cutBar.Seconds())
	if took > cutBar {
		return figure, fmt.Errorf("over the bar of %s", cutBar)
	}
	return figure, nil
}

// policyChanges edits the second cluster's policy while alice is connected.
func policyChanges(ctx context.Context, b *bed) error {
	good, err := b.policy(ctx)
	if err != nil {
		return err
	}
	b.check(ctx, "a broken policy: said in Events and metrics, the rules before it serve", via{}, time.Minute, func(ctx context.Context) (string, error) {
		w, err := b.open(ctx, "watch-broken")
		if err != nil {
			return "", err
		}
		defer w.Kill()
		if err := b.setPolicy(ctx, good+"\nrulez: []\n"); err != nil {
			return "", err
		}
		said, err := b.event(ctx, b.c2, deploy.Name, "rulez", "the rules before it stay in force")
		if err != nil {
			return "", err
		}
		if n, err := b.metric(ctx, "zt_daemon_policy_broken"); err != nil || n != 1 {
			return said, fmt.Errorf("the metric zt_daemon_policy_broken is %d (%v)", n, err)
		}
		if _, exited := w.Exited(); exited {
			return said, errors.New("what was open has been cut")
		}
		return said, b.lab.Run(ctx, b.kubectl(via{}, b.c2.Name, "get", "namespaces")).OK()
	})
	b.check(ctx, "a right is removed: what is open is cut", via{}, 90*time.Second, func(ctx context.Context) (string, error) {
		w, err := b.open(ctx, "watch-right")
		if err != nil {
			return "", err
		}
		defer w.Kill()
		begin := time.Now()
		if err := b.setPolicy(ctx, strings.ReplaceAll(good, "developers", "nobody")); err != nil {
			return "", err
		}
		figure, err := cut(ctx, w, begin)
		if err != nil {
			return figure, err
		}
		r := b.lab.Run(ctx, b.kubectl(via{}, b.c2.Name, "get", "namespaces"))
		if err := want(r.Stderr, "alice@example.test", "policy"); err != nil || r.Code == 0 {
			return figure, fmt.Errorf("%w: %v", err, r)
		}
		return figure, nil
	})
	b.check(ctx, "the right is given back", via{}, time.Minute, func(ctx context.Context) (string, error) {
		if err := b.setPolicy(ctx, good); err != nil {
			return "", err
		}
		w, err := b.open(ctx, "watch-back")
		if err == nil {
			w.Kill()
		}
		return "", err
	})
	return nil
}

// access closes the second cluster, and has olga open it for alice: by what alice
// asked for, which olga sees and applies with kubectl, all through the overlay.
func access(ctx context.Context, b *bed) error {
	open, err := b.policy(ctx)
	if err != nil {
		return err
	}
	if err := b.apply(ctx, b.c2, openersRights); err != nil {
		return err
	}
	olga, err := b.NewLaptop("olga", olgaUID)
	if err != nil {
		return err
	}
	if _, err := olga.Login(ctx, "olga"); err != nil {
		return err
	}
	defer olga.ZT(context.WithoutCancel(ctx), "down")
	const reason = `the disk of "web-0" is full`
	b.check(ctx, "closed: what is open is cut, and why", via{}, 90*time.Second, func(ctx context.Context) (string, error) {
		w, err := b.open(ctx, "watch-closed")
		if err != nil {
			return "", err
		}
		defer w.Kill()
		begin := time.Now()
		opener := fmt.Sprintf("closed: true\nopeners: [{name: sre, issuer: %q, groups: [sre]}]\naccessGrants: {maxDuration: 1h}\n", b.Issuer.URL())
		if err := b.setPolicy(ctx, opener+open); err != nil {
			return "", err
		}
		figure, err := cut(ctx, w, begin)
		if err != nil {
			return figure, err
		}
		r := b.lab.Run(ctx, b.kubectl(via{}, b.c2.Name, "get", "namespaces"))
		if err := want(r.Stderr, "closed", "zt-daemon request"); err != nil || r.Code == 0 {
			return figure, fmt.Errorf("%w: %v", err, r)
		}
		return figure, nil
	})
	b.check(ctx, "alice asks: an Event says so", via{}, time.Minute, func(ctx context.Context) (string, error) {
		if err := b.alice.ZT(ctx, "request", b.c2.Name, "--for", "30m", "--reason", reason).OK(); err != nil {
			return "", err
		}
		return b.event(ctx, b.c2, deploy.Name, "alice@example.test", "30m", reason)
	})
	b.check(ctx, "olga sees it, applies what is printed, and alice is in", via{}, 90*time.Second, func(ctx context.Context) (string, error) {
		r := olga.ZT(ctx, "requests", b.c2.Name)
		_, commands, printed := strings.Cut(r.Stdout, "\n# ")
		if err := r.OK(); err != nil || !printed {
			return "", fmt.Errorf("no command is printed (%v): %s", err, r.Stdout)
		}
		begin := time.Now()
		if err := b.lab.Run(ctx, olga.Command("opener", []string{"sh", "-ec", "# " + commands})).OK(); err != nil {
			return "", fmt.Errorf("%w\n%s", err, commands)
		}
		w, err := b.open(ctx, "watch-granted")
		if err != nil {
			return "", err
		}
		w.Kill()
		return fmt.Sprintf("%.1f s after it was applied", time.Since(begin).Seconds()), nil
	})
	b.check(ctx, "the AccessGrant says who has used it", via{}, 30*time.Second, func(ctx context.Context) (string, error) {
		return "", lab.Eventually(ctx, func(ctx context.Context) error {
			r := b.c2.Kubectl(ctx, nil, "get", "accessgrants", "-o", "jsonpath={.items[*].status}")
			return errors.Join(r.OK(), want(r.Stdout, "Active", "alice@example.test"))
		})
	})
	b.check(ctx, "olga deletes it: what is open is cut", via{}, time.Minute, func(ctx context.Context) (string, error) {
		w, err := b.open(ctx, "watch-deleted")
		if err != nil {
			return "", err
		}
		defer w.Kill()
		begin := time.Now()
		args := []string{b.kubectls[0].program, "--context", "zt-" + b.c2.Name, "delete", "accessgrants", "--all"}
		if err := b.lab.Run(ctx, olga.Command("kubectl", args)).OK(); err != nil {
			return "", err
		}
		return cut(ctx, w, begin)
	})
	b.check(ctx, "an AccessGrant ends: what is open is cut", via{}, 2*time.Minute, func(ctx context.Context) (string, error) {
		end := time.Now().Add(45 * time.Second).Truncate(time.Second)
		grant, err := json.Marshal(map[string]any{"apiVersion": "access.zt-daemon.io/v1alpha1", "kind": "AccessGrant", "metadata": map[string]string{"name": "short"},
			"spec": map[string]string{"subject": "user-alice", "reason": reason, "notBefore": time.Now().UTC().Format(time.RFC3339), "notAfter": end.UTC().Format(time.RFC3339)}})
		if err != nil {
			return "", err
		}
		c := olga.Command("kubectl", []string{b.kubectls[0].program, "--context", "zt-" + b.c2.Name, "apply", "-f", "-"})
		c.Stdin = strings.NewReader(string(grant))
		if err := b.lab.Run(ctx, c).OK(); err != nil {
			return "", err
		}
		w, err := b.open(ctx, "watch-ends")
		if err != nil {
			return "", err
		}
		defer w.Kill()
		if err := sleep(ctx, time.Until(end.Add(-time.Second))); err != nil {
			return "", err
		}
		if _, exited := w.Exited(); exited {
			return "", errors.New("it was cut before its end")
		}
		return cut(ctx, w, end)
	})
	return b.setPolicy(ctx, open)
}

// newKey has the second cluster's administrator replace the cluster key.
func newKey(ctx context.Context, b *bed) error {
	b.check(ctx, "cluster add --new-key: the new key is taken, nobody is cut off", via{}, 3*time.Minute, func(ctx context.Context) (string, error) {
		upgrade, err := b.addCluster(ctx, b.c2, "--new-key")
		if err != nil {
			return "", err
		}
		if err := want(upgrade, "helm upgrade", "clusterKeyHash="); err != nil {
			return "", err
		}
		begin := time.Now()
		if err := b.lab.Run(ctx, b.kubectl(via{}, b.c2.Name, "get", "namespaces")).OK(); err != nil {
			return "", fmt.Errorf("with the old key: %w", err)
		}
		if err := b.shell(ctx, b.c2, upgrade+" --wait --timeout 2m"); err != nil {
			return "", err
		}
		return fmt.Sprintf("%.1f s for the roll-out", time.Since(begin).Seconds()), lab.Eventually(ctx, func(ctx context.Context) error {
			return errors.Join(nodesReady(ctx, b.c2, 1), b.lab.Run(ctx, b.kubectl(via{}, b.c2.Name, "get", "namespaces")).OK())
		})
	})
	return nil
}
