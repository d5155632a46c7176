//go:build e2e && linux

package test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/test/lab"
)

// adminCommands plays a second cluster whose node's files go into namespace zt,
// and a colleague without the network key who is admitted as a signer.
func (s *stage) adminCommands(t *testing.T) {
	add := []string{"cluster", "add", "second", "--context", "admin", "--api-client-id", "kubernetes", "--group", "developers"}
	if err := s.Admin.ZT(s.within(t, 30*time.Second), add...).OK(); err != nil {
		t.Fatal(err)
	}
	get := func(args ...string) string {
		t.Helper()
		r := s.Kubernetes.Kubectl(s.within(t, 20*time.Second), nil, args...)
		if err := r.OK(); err != nil {
			t.Fatal(err)
		}
		return r.Stdout
	}
	key := get("-n", "zt", "get", "secret", "zt-cluster-key", "-o", `jsonpath={.data.cluster\.key}`)
	if key == "" {
		t.Error("the Secret has no cluster.key")
	}
	if policy := get("-n", "zt", "get", "configmap", "zt-policy", "-o", `jsonpath={.data.policy\.yaml}`); !strings.Contains(policy, "developers") {
		t.Errorf("the ConfigMap's policy: %q", policy)
	}
	// Again: the key and the policy, which a person may have edited, stay.
	edited := "issuers: []\n# mine\n"
	get("-n", "zt", "patch", "configmap", "zt-policy", "--type=merge", "-p", `{"data":{"policy.yaml":"issuers: []\n# mine\n"}}`)
	if err := s.Admin.ZT(s.within(t, 30*time.Second), add...).OK(); err != nil {
		t.Fatal(err)
	}
	if again := get("-n", "zt", "get", "secret", "zt-cluster-key", "-o", `jsonpath={.data.cluster\.key}`); again != key {
		t.Error("a second cluster add replaced the cluster key")
	}
	if policy := get("-n", "zt", "get", "configmap", "zt-policy", "-o", `jsonpath={.data.policy\.yaml}`); policy != edited {
		t.Errorf("a second cluster add replaced the policy: %q", policy)
	}
	// Installed, but no machine is there to run anything: after a while that is said.
	install := s.Admin.ZT(s.within(t, 30*time.Second), append(add, "--install", "--image", "registry.test/zt-daemon:1", "--timeout", "2s")...)
	if install.Code != 4 || !strings.Contains(install.Stderr, "0 of 3 nodes ready after 2s") {
		t.Errorf("cluster add --install without a machine: %v", install)
	}
	if image := get("-n", "zt", "get", "deployment", "zt", "-o", "jsonpath={.spec.replicas} {.spec.template.spec.containers[0].image}"); image != "3 registry.test/zt-daemon:1" {
		t.Errorf("the Deployment: %q", image)
	}

	// alice's daemon hears of the cluster, and of its end.
	knows := func(want bool) {
		t.Helper()
		if err := lab.Eventually(s.within(t, 15*time.Second), func(ctx context.Context) error {
			r := s.alice.ZT(ctx, "clusters")
			if err := r.OK(); err != nil {
				return err
			}
			if got := strings.Contains(r.Stdout, "second"); got != want {
				return fmt.Errorf("clusters shows second: %v, want %v", got, want)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	knows(true)

	// A colleague without the network key.
	mona, err := s.NewLaptop("mona", 0)
	if err != nil {
		t.Fatal(err)
	}
	mona.Namespace, mona.User, mona.Env = s.Admin.Namespace, nil, append(mona.Env, "KUBECONFIG="+s.Admin.Kubeconfig)
	as := []string{"--network", s.NetworkID, "--relay", s.Relay.URL}
	r := mona.ZT(s.within(t, 30*time.Second), append(add, as...)...)
	if r.Code == 0 || !strings.Contains(r.Stderr, "signer create") {
		t.Errorf("without a key: %v", r)
	}
	r = mona.ZT(s.within(t, 30*time.Second), "signer", "create", "--name", "mona")
	if err := r.OK(); err != nil {
		t.Fatal(err)
	}
	_, public, ok := strings.Cut(strings.TrimSpace(r.Stdout), "mona=")
	if !ok {
		t.Fatalf("signer create prints no NAME=KEY: %v", r)
	}
	r = mona.ZT(s.within(t, 30*time.Second), append(add, as...)...)
	if r.Code == 0 || !strings.Contains(r.Stderr, "network sign") || !strings.Contains(r.Stderr, public) {
		t.Errorf("with a signer that the head does not admit: %v", r)
	}
	if err := s.Admin.ZT(s.within(t, 30*time.Second), "network", "sign", "--signer", "mona="+public).OK(); err != nil {
		t.Fatal(err)
	}
	if err := mona.ZT(s.within(t, 30*time.Second), append(add, as...)...).OK(); err != nil {
		t.Errorf("as an admitted signer: %v", err)
	}
	if r := mona.ZT(s.within(t, 30*time.Second), append([]string{"cluster", "list"}, as...)...); r.OK() != nil || !strings.Contains(r.Stdout, "second") {
		t.Errorf("cluster list: %v", r)
	}
	if r := mona.ZT(s.within(t, 30*time.Second), append([]string{"network", "sign"}, as...)...); r.Code == 0 {
		t.Errorf("a signer signed the head: %v", r)
	}
	if err := s.Admin.ZT(s.within(t, 30*time.Second), "cluster", "remove", "second").OK(); err != nil {
		t.Fatal(err)
	}
	knows(false)
}
