//go:build e2e && linux

package test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/test/lab"
)

// podRights are what a node asks for in a cluster, and no more.
const podRights = `apiVersion: v1
kind: Namespace
metadata: {name: zt}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: zt, namespace: zt}
---
apiVersion: v1
kind: Pod
metadata: {name: zt-1, namespace: zt}
spec: {serviceAccountName: zt, containers: [{name: node, image: "registry.test/zt-daemon:1"}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: zt-policy, namespace: zt}
rules:
- {apiGroups: [""], resources: [configmaps], resourceNames: [zt-policy], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: zt-events, namespace: zt}
rules:
- {apiGroups: [""], resources: [events], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: zt-events, namespace: zt}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: zt-events}
subjects: [{kind: ServiceAccount, name: zt, namespace: zt}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: zt-accessgrants}
rules:
- {apiGroups: [access.zt-daemon.io], resources: [accessgrants], verbs: [get, list, watch]}
- {apiGroups: [access.zt-daemon.io], resources: [accessgrants/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: zt-accessgrants}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: zt-accessgrants}
subjects: [{kind: ServiceAccount, name: zt, namespace: zt}]
`

const podPolicyBinding = `apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: zt-policy, namespace: zt}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: zt-policy}
subjects: [{kind: ServiceAccount, name: zt, namespace: zt}]
`

const podGrantDefinition = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: accessgrants.access.zt-daemon.io}
spec:
  group: access.zt-daemon.io
  scope: Cluster
  names: {kind: AccessGrant, plural: accessgrants, singular: accessgrant}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, x-kubernetes-preserve-unknown-fields: true}
          status:
            type: object
            properties:
              phase: {type: string}
              nodes:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [pod]
                items:
                  type: object
                  required: [pod, phase]
                  properties:
                    pod: {type: string}
                    phase: {type: string}
                    message: {type: string}
                    lastUsed: {type: string, format: date-time}
                    lastUsedBy: {type: string}
`

// pod is a node that uses a real API server as a pod does: by a service
// account's token, with the rights above.
type pod struct {
	*lab.Scene
	t      *testing.T
	policy string // as `zt-daemon cluster add` made it
	node   *daemon.Node
	alice  *lab.Laptop
}

// TestNodeInPod has a node watch its policy and its AccessGrants at a real API
// server, over changes, missing rights and a restart.
func TestNodeInPod(t *testing.T) {
	p := raisePod(t)
	p.ready(true)
	p.event("PolicyInForce")
	if _, err := p.alice.Login(p.within(time.Minute), "alice"); err != nil {
		t.Fatal(err)
	}
	p.admitted()
	for _, part := range []struct {
		name string
		run  func(*pod)
	}{
		{"a right that is removed cuts an open watch", (*pod).rightRemoved},
		{"a broken policy keeps the rules and says so", (*pod).brokenPolicy},
		{"an AccessGrant opens and closes", (*pod).accessGrant},
		{"a closed cluster is asked for, and opened", (*pod).accessRequest},
		{"a restart of the API server", (*pod).restart},
		{"a right to the policy that is taken away and given back", (*pod).forbidden},
		{"no CustomResourceDefinition", (*pod).noDefinition},
	} {
		if !t.Run(part.name, func(t *testing.T) {
			outer := p.t
			p.t = t
			defer func() { p.t = outer }()
			part.run(p)
		}) {
			t.Logf("events:\n%s", p.kubectl("", "-n", "zt", "get", "events"))
		}
	}
}

func raisePod(t *testing.T) *pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	l, err := lab.New(lab.Config{Dir: t.TempDir(), Say: func(d time.Duration, text string) { t.Logf("%6.1fs %s", d.Seconds(), text) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	module, err := lab.ModuleDir(ctx)
	if err != nil {
		t.Fatal(err)
	}
	kubernetes, err := l.BuildKubernetes(ctx, module)
	if err != nil {
		t.Fatal(err)
	}
	scene, err := l.NewScene(ctx, lab.SceneConfig{Module: module, Cluster: "c1", Kubernetes: kubernetes})
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{Scene: scene, t: t}
	p.Node.Process.Stop(5 * time.Second) // the pod takes its place
	b, err := os.ReadFile(p.Node.PolicyFile)
	if err != nil {
		t.Fatal(err)
	}
	p.policy = string(b)
	p.kubectl(podRights, "apply", "-f", "-")
	p.kubectl(podPolicyBinding+"---\n"+podGrantDefinition, "apply", "-f", "-")
	p.apply(p.policy)

	account := t.TempDir()
	token := p.kubectl("", "-n", "zt", "create", "token", "zt", "--bound-object-kind=Pod", "--bound-object-name=zt-1")
	for name, text := range map[string]string{"token": token, "namespace": "zt", "ca.crt": string(p.Kubernetes.CA)} {
		if err := os.WriteFile(filepath.Join(account, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(p.Node.Dir, daemon.NodeConfigFile)
	if b, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	settings, err := daemon.ParseNodeSettings(b)
	if err != nil {
		t.Fatal(err)
	}
	settings.Kubernetes = &daemon.NodeKubernetes{PolicyConfigMap: "zt-policy", AccessGrants: true}
	if b, err = settings.Marshal(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	p.node, err = daemon.NewNode(daemon.NodeConfig{
		Dir: p.Node.Dir, APIServer: p.Kubernetes.Host, Account: account, Log: slog.New(slog.NewTextHandler(testLog{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- p.node.Run(run) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("node: %v", err)
		}
	})
	if p.alice, err = scene.NewLaptop("alice", 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.alice.ZT(context.WithoutCancel(ctx), "down") })
	return p
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(b), "\n"))
	return len(b), nil
}

func (p *pod) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(p.t.Context(), d)
	p.t.Cleanup(cancel)
	return ctx
}

// kubectl is the administrator's.
func (p *pod) kubectl(stdin string, args ...string) string {
	p.t.Helper()
	r := p.Kubernetes.Kubectl(p.within(30*time.Second), strings.NewReader(stdin), args...)
	if err := r.OK(); err != nil {
		p.t.Fatal(err)
	}
	return r.Stdout
}

// apply puts a policy into the ConfigMap.
func (p *pod) apply(policy string) {
	p.t.Helper()
	indented := "    " + strings.ReplaceAll(strings.TrimSpace(policy), "\n", "\n    ")
	p.kubectl(fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: zt-policy, namespace: zt}\ndata:\n  policy.yaml: |\n%s\n", indented), "apply", "-f", "-")
}

func (p *pod) eventually(d time.Duration, f func(ctx context.Context) error) {
	p.t.Helper()
	if err := lab.Eventually(p.within(d), f); err != nil {
		p.t.Fatal(err)
	}
}

// ready waits until the probe says what it should.
func (p *pod) ready(want bool, says ...string) {
	p.t.Helper()
	p.eventually(30*time.Second, func(context.Context) error {
		w := httptest.NewRecorder()
		p.node.ServeReady(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		for _, s := range says {
			if !strings.Contains(w.Body.String(), s) {
				return fmt.Errorf("/readyz does not say %q:\n%s", s, w.Body)
			}
		}
		if (w.Code == http.StatusOK) != want {
			return fmt.Errorf("/readyz says %d:\n%s", w.Code, w.Body)
		}
		return nil
	})
}

// event waits until `kubectl describe` of the pod shows an event.
func (p *pod) event(says ...string) {
	p.t.Helper()
	p.eventually(30*time.Second, func(context.Context) error {
		out := p.kubectl("", "-n", "zt", "describe", "pod", "zt-1")
		for line := range strings.Lines(out) {
			found := true
			for _, s := range says {
				found = found && strings.Contains(line, s)
			}
			if found {
				return nil
			}
		}
		return fmt.Errorf("no event that says %q:\n%s", says, out)
	})
}

// admitted waits until alice's kubectl works. A refusal is remembered for 30 s.
func (p *pod) admitted() {
	p.t.Helper()
	p.eventually(time.Minute, func(ctx context.Context) error {
		return p.alice.Kubectl(ctx, "--context", p.KubeContext(), "get", "namespaces").OK()
	})
}

// watch opens a watch of alice's.
func (p *pod) watch() *lab.Process {
	p.t.Helper()
	w, err := p.alice.StartKubectl("watch", "--context", p.KubeContext(), "get", "namespaces", "-w")
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(w.Kill)
	if _, err := w.WaitText(p.within(30*time.Second), "kube-system"); err != nil {
		p.t.Fatal(err)
	}
	return w
}

// cut waits for a watch's end.
func (p *pod) cut(w *lab.Process, begin time.Time, within time.Duration) {
	p.t.Helper()
	select {
	case <-w.Done():
		p.t.Logf("the watch was cut %s after the change", time.Since(begin).Round(time.Millisecond))
	case <-time.After(within - time.Since(begin)):
		p.t.Fatalf("the watch is open after %s", time.Since(begin))
	}
}

func (p *pod) rightRemoved() {
	w := p.watch()
	begin := time.Now()
	p.apply(strings.ReplaceAll(p.policy, "developers", "nobody"))
	p.cut(w, begin, 5*time.Second)
	p.apply(p.policy)
	p.admitted()
}

func (p *pod) brokenPolicy() {
	w := p.watch()
	p.apply(p.policy + "\nrulez: []\n")
	p.event("PolicyBroken", "rulez", "stay in force")
	p.ready(true, "warning: ")
	if _, exited := w.Exited(); exited {
		p.t.Error("a broken policy cut the watch")
	}
	p.apply(p.policy)
	p.ready(true, "policy: in_force")
}

func (p *pod) accessGrant() {
	p.apply(strings.ReplaceAll(p.policy, "developers", "nobody"))
	grant := func(name string, end time.Time) string {
		return fmt.Sprintf("apiVersion: access.zt-daemon.io/v1alpha1\nkind: AccessGrant\nmetadata: {name: %s}\n"+
			"spec: {group: developers, reason: incident 7, notBefore: %q, notAfter: %q}\n",
			name, time.Now().Add(-time.Minute).UTC().Format(time.RFC3339), end.UTC().Format(time.RFC3339))
	}
	p.kubectl(grant("first", time.Now().Add(time.Hour)), "apply", "-f", "-")
	p.event("AccessGranted", "first", "incident 7")
	p.admitted()
	p.eventually(30*time.Second, func(context.Context) error {
		if out := p.kubectl("", "get", "accessgrant", "first", "-o", "jsonpath={.status}"); !strings.Contains(out, `"phase":"Active"`) ||
			!strings.Contains(out, `"pod":"zt-1"`) || !strings.Contains(out, `"lastUsedBy":"alice@example.test"`) {
			return fmt.Errorf("status %s", out)
		}
		return nil
	})
	w, begin := p.watch(), time.Now()
	p.kubectl("", "delete", "accessgrant", "first")
	p.cut(w, begin, 5*time.Second)

	end := time.Now().Add(36 * time.Second).Truncate(time.Second) // relays remember a refusal for 30 s
	p.kubectl(grant("second", end), "apply", "-f", "-")
	p.admitted()
	w = p.watch()
	p.cut(w, time.Now(), time.Until(end)+3*time.Second)
	if early := time.Until(end); early > 0 {
		p.t.Errorf("the watch was cut %s before the AccessGrant's end", early)
	}
	p.event("AccessExpired", "second")
	p.eventually(30*time.Second, func(context.Context) error {
		if out := p.kubectl("", "get", "accessgrant", "second", "-o", "jsonpath={.status.phase}"); out != "Expired" {
			return fmt.Errorf("phase %q", out)
		}
		return nil
	})
	p.apply(p.policy)
	p.admitted()
}

// accessRequest has alice ask, and an opener answer by the command that is printed
// for them.
func (p *pod) accessRequest() {
	w, begin := p.watch(), time.Now()
	p.apply(p.policy + "\nclosed: true\naccessGrants: {maxDuration: 1h}\n")
	p.cut(w, begin, 5*time.Second)
	refused := p.alice.Kubectl(p.within(30*time.Second), "--context", p.KubeContext(), "get", "namespaces")
	if refused.OK() == nil || !strings.Contains(refused.Stderr, "the cluster is closed") || !strings.Contains(refused.Stderr, "zt-daemon request c1 --for 1h") {
		p.t.Errorf("closed: %v", refused)
	}
	const reason = `disk is full: "$(touch /hacked)" it's 'EOF'`
	for _, want := range []string{"request sent to cluster c1", "the cluster says: one is there from"} {
		r := p.alice.ZT(p.within(30*time.Second), "request", "c1", "--for", "30m", "--reason", reason)
		if err := r.OK(); err != nil || !strings.Contains(r.Stdout, want) {
			p.t.Fatalf("%v, stdout %q, want %q", err, r.Stdout, want)
		}
	}
	p.event("Normal", "AccessRequested", ") asks for access for 30m: "+reason)

	// The rights of openers, as deploy/README.md gives them.
	p.kubectl("", "create", "clusterrole", "zt-opener", "--verb=get,list,watch,create,patch,delete", "--resource=accessgrants.access.zt-daemon.io")
	p.kubectl("", "create", "clusterrolebinding", "zt-opener", "--clusterrole=zt-opener", "--group=sre")
	p.kubectl("", "create", "role", "zt-requests", "--namespace", "zt", "--verb=get,list,watch", "--resource=events")
	p.kubectl("", "create", "rolebinding", "zt-requests", "--namespace", "zt", "--role=zt-requests", "--group=sre")
	carol := filepath.Join(p.t.TempDir(), "carol")
	b, err := os.ReadFile(p.Kubernetes.Kubeconfig)
	if err != nil {
		p.t.Fatal(err)
	}
	as := strings.Replace(string(b), "client-certificate-data:", "as: carol\n    as-groups: [sre]\n    client-certificate-data:", 1)
	if err := os.WriteFile(carol, []byte(as), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if who := p.kubectl("", "--kubeconfig", carol, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"); !strings.HasPrefix(who, `carol ["sre"`) {
		p.t.Fatalf("the opener is %s", who)
	}
	list := p.Admin.ZT(p.within(30*time.Second), "requests", "c1", "--kubeconfig", carol, "--context", "admin")
	_, commands, printed := strings.Cut(list.Stdout, "\n# ")
	if err := list.OK(); err != nil || !printed || !strings.Contains(list.Stdout, "alice@example.test  30m") {
		p.t.Fatalf("%v: %s", err, list.Stdout)
	}
	applied := p.Lab.Run(p.within(30*time.Second), lab.Command{Name: "opener", Args: []string{"sh", "-ec", "# " + commands}, Env: p.Admin.Env, Dir: p.Admin.Home})
	if err := applied.OK(); err != nil {
		p.t.Fatalf("%v\n%s", err, commands)
	}
	p.admitted()
	if got := p.kubectl("", "get", "accessgrants", "-o", `jsonpath={.items[?(@.spec.subject=="user-alice")].spec.reason}`); got != reason {
		p.t.Errorf("the AccessGrant's reason is %q, want %q", got, reason)
	}
	if r := p.alice.ZT(p.within(30*time.Second), "request", "c1", "--reason", "again"); r.OK() != nil || !strings.Contains(r.Stdout, "admitted to cluster c1 already") {
		p.t.Errorf("admitted: %v, %q", r.OK(), r.Stdout)
	}
	w, begin = p.watch(), time.Now()
	p.kubectl("", "delete", "accessgrants", "--all")
	p.cut(w, begin, 5*time.Second)
	p.apply(p.policy)
	p.admitted()
}

func (p *pod) restart() {
	p.Kubernetes.Process.Kill()
	p.ready(false, "API server: ", "policy: in_force")
	if err := p.Kubernetes.Start(p.within(2 * time.Minute)); err != nil {
		p.t.Fatal(err)
	}
	p.ready(true)
	p.admitted()
	w, begin := p.watch(), time.Now()
	p.apply(strings.ReplaceAll(p.policy, "developers", "nobody"))
	p.cut(w, begin, 25*time.Second) // the watch may still be in a pause after a failure
	p.apply(p.policy)
	p.admitted()
	p.event("UpstreamDown")
}

func (p *pod) forbidden() {
	p.kubectl("", "-n", "zt", "delete", "rolebinding", "zt-policy")
	p.Kubernetes.Process.Kill() // an API server asks for the right when a watch begins
	if err := p.Kubernetes.Start(p.within(2 * time.Minute)); err != nil {
		p.t.Fatal(err)
	}
	p.event("PolicyNotWatched", "resources: [configmaps], resourceNames: [zt-policy], verbs: [get, list, watch]")
	p.ready(true, "policy: in_force", "warning: ")
	p.admitted()
	p.apply(strings.ReplaceAll(p.policy, "developers", "nobody"))
	w, begin := p.watch(), time.Now()
	p.kubectl(podPolicyBinding, "apply", "-f", "-")
	p.cut(w, begin, 25*time.Second)
	p.apply(p.policy)
	p.admitted()
}

func (p *pod) noDefinition() {
	p.kubectl("", "delete", "crd", "accessgrants.access.zt-daemon.io")
	p.event("AccessGrantsNotWatched", "CustomResourceDefinition")
	p.ready(true)
	p.kubectl(podGrantDefinition, "apply", "-f", "-")
	p.eventually(time.Minute, func(context.Context) error {
		for _, t := range p.node.Health().Troubles {
			if strings.Contains(t, "accessgrants") {
				return errors.New(t)
			}
		}
		return nil
	})
}
