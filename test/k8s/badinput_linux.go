package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/deploy"
	"github.com/zt-daemon/zt/test/issuer"
	"github.com/zt-daemon/zt/test/lab"
)

// mistake is an installation that cannot work. It has a namespace of its own in
// the second cluster.
type mistake struct {
	name string
	// flags of helm, after those that are right.
	flags []string
	// cluster is whose key the node gets; empty is the second's own.
	cluster string
	// policy is that of the node; empty: there is none.
	policy string
	// spoil is done to the namespace once the pod is there.
	spoil func(ctx context.Context, b *bed, namespace string) error
	// headless has the Secret hold no head: with one, a node finds its relays even
	// when the address of the one that it was given is wrong.
	headless bool
	// said is what the pod must say in its Events or its log: what is wrong and
	// what to do.
	said []string
}

const (
	nowhere       = "203.0.113.99" // nobody has that address
	removedName   = "gone"
	anotherNet    = "nbswy3dpeb3w64tmmqqho2dfojssa5dp"
	upstreamNoOne = lab.ClusterHost + ":6444"
)

// mistakes are what people get wrong.
func mistakes(policy string) []mistake {
	return []mistake{
		{name: "relay-address", policy: policy, flags: []string{"--set-string", "relay=https://" + nowhere}, headless: true, said: []string{nowhere, "`relay`"}},
		{name: "network-id", policy: policy, flags: []string{"--set-string", "network=" + anotherNet}, headless: true, said: []string{"`network`", "cluster add"}},
		{name: "key-of-another", policy: policy, cluster: "c1", said: []string{"key", "cluster add c2"}},
		{name: "removed", policy: policy, cluster: removedName, flags: []string{"--set-string", "cluster=" + removedName}, said: []string{"removed", "cluster add " + removedName}},
		{name: "issuer-away", policy: strings.ReplaceAll(policy, lab.IssuerHost, nowhere), said: []string{"issuer", nowhere, "policy"}},
		{name: "no-rights", policy: policy, spoil: withoutRights, said: []string{"has no right", "Role of the service account"}},
		{name: "policy-absent", said: []string{"there is no policy", "cluster add"}},
		{name: "policy-broken", policy: policy + "\nrulez: []\n", said: []string{"rulez", "mend it"}},
		{name: "clock-ahead", policy: policy, flags: []string{"--set-string", "image.repository=" + clockImage + ",image.tag=" + clockTag}, said: []string{"clock is", "ahead of that of relay", "set the clock (NTP)"}},
		{name: "upstream-down", policy: policy, flags: []string{"--set-string", "upstream=" + upstreamNoOne}, said: []string{upstreamNoOne, "upstream"}},
	}
}

// wrongClock writes the image of a node whose clock is wrong.
func (b *bed) wrongClock(ctx context.Context) (file string, err error) {
	program := filepath.Join(b.lab.Dir, "zt-daemon-"+clockTag)
	if err := b.lab.BuildWithClock(ctx, b.module, program, clockWrong); err != nil {
		return "", err
	}
	file = program + ".tar"
	return file, lab.Image{
		Name: clockImage + ":" + clockTag, Programs: map[string]string{"/zt-daemon": program}, Entrypoint: []string{"/zt-daemon"}, User: "65532:65532",
	}.Write(file)
}

// badInput makes every mistake at once, and looks for each in what `kubectl
// describe` or `kubectl logs` shows of its pod: what is wrong and what to do. The
// pod must not be ready.
func badInput(ctx context.Context, b *bed) error {
	policy, err := b.policy(ctx)
	if err != nil {
		return err
	}
	if err := b.removeCluster(ctx); err != nil {
		return err
	}
	all := mistakes(policy)
	g, making := errgroup.WithContext(ctx)
	g.SetLimit(3)
	for _, m := range all {
		g.Go(func() error {
			if err := b.make(making, m); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	// Long enough for who could become ready, which would be wrong, to do so.
	if err := sleep(ctx, 20*time.Second); err != nil {
		return err
	}
	for _, m := range all {
		b.check(ctx, m.name, via{}, 30*time.Second, func(ctx context.Context) (string, error) { return b.unready(ctx, b.c2, m.name, m.said) })
	}
	return b.noEgress(ctx)
}

// removeCluster has a cluster added, whose key goes into a directory, and
// removed again.
func (b *bed) removeCluster(ctx context.Context) error {
	admin := b.admin(b.c2.Kubernetes, b.c2.Site)
	if err := admin.ZT(ctx, "cluster", "add", removedName, "--context", "admin", "--out", b.lab.Dir+"/node-"+removedName,
		"--api-client-id", issuer.APIServerClient, "--group", "developers").OK(); err != nil {
		return err
	}
	return admin.ZT(ctx, "cluster", "remove", removedName).OK()
}

var installName = regexp.MustCompile(`^helm install \S+ (\S+) --namespace \S+ `)

// make makes a mistake.
func (b *bed) make(ctx context.Context, m mistake) error {
	secret := map[string]any{}
	from := b.c2
	if m.cluster == "c1" {
		from = b.c1
	}
	if err := from.Object(ctx, "/api/v1/namespaces/"+deploy.Name+"/secrets/"+deploy.KeySecret, &secret); err != nil {
		return err
	}
	secret["metadata"] = map[string]string{"name": deploy.KeySecret, "namespace": m.name}
	if m.cluster == removedName {
		key, err := os.ReadFile(b.lab.Dir + "/node-" + removedName + "/cluster.key")
		if err != nil {
			return err
		}
		secret["data"].(map[string]any)["cluster.key"] = key
	}
	if m.headless {
		delete(secret["data"].(map[string]any), "head.jws")
	}
	objects := []any{
		map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": m.name, "labels": map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}},
		secret,
	}
	if m.policy != "" {
		objects = append(objects, map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
			"metadata": map[string]string{"name": deploy.PolicyConfigMap, "namespace": m.name}, "data": map[string]string{"policy.yaml": m.policy}})
	}
	list, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": objects})
	if err != nil {
		return err
	}
	if err := b.apply(ctx, b.c2, string(list)); err != nil {
		return err
	}
	line := installName.ReplaceAllString(b.installed["c2"], "helm install zt-"+m.name+" $1 --namespace "+m.name+" ")
	flags := append([]string{"--set", "accessGrant.installCRD=false", "--set-string", "clusterKeyHash="}, m.flags...)
	if err := b.shell(ctx, b.c2, line+" "+deploy.Quote(flags)); err != nil {
		return err
	}
	if m.spoil != nil {
		return m.spoil(ctx, b, m.name)
	}
	return nil
}

// withoutRights takes the pod's rights away, and has it start anew.
func withoutRights(ctx context.Context, b *bed, namespace string) error {
	if err := b.c2.Kubectl(ctx, nil, "--namespace", namespace, "delete", "rolebinding", "--selector", deploy.Selector).OK(); err != nil {
		return err
	}
	return b.c2.Kubectl(ctx, nil, "--namespace", namespace, "delete", "pod", "--selector", deploy.PodSelector).OK()
}

// event waits until an Event in that namespace says all of that, and returns it.
func (b *bed) event(ctx context.Context, c *lab.Cluster, namespace string, said ...string) (found string, err error) {
	err = lab.Eventually(ctx, func(ctx context.Context) error {
		found, err = findEvent(ctx, c, namespace, said)
		return err
	})
	return found, err
}

// findEvent looks for an Event that says all of that; Events of failed probes say
// nothing of their own.
func findEvent(ctx context.Context, c *lab.Cluster, namespace string, said []string) (string, error) {
	var events struct {
		Items []struct{ Reason, Message string }
	}
	if err := c.Object(ctx, "/api/v1/namespaces/"+namespace+"/events", &events); err != nil {
		return "", err
	}
	var all []string
	for _, e := range events.Items {
		if e.Reason == "Unhealthy" {
			continue
		}
		text := e.Reason + ": " + e.Message
		if want(e.Message, said...) == nil {
			return text, nil
		}
		all = append(all, text)
	}
	return "", fmt.Errorf("no Event says all of %q:\n%s", said, strings.Join(all, "\n"))
}

// findLog looks for a line of the pods' logs that says all of that. A program
// that ended has its hint in the line after.
func findLog(ctx context.Context, c *lab.Cluster, namespace string, said []string) (string, error) {
	var all string
	for _, previous := range []string{"--previous=false", "--previous"} {
		r := c.Kubectl(ctx, nil, "--namespace", namespace, "logs", "--selector", deploy.PodSelector, "--tail=-1", previous)
		text := strings.ReplaceAll(r.Stdout, "\nzt-daemon: hint: ", "; ")
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); want(line, said...) == nil {
				return "log: " + line, nil
			}
		}
		all += text
	}
	return "", fmt.Errorf("no line of the logs says all of %q:\n%s", said, all)
}

// unready waits until the one node pod of a namespace that is not ready has said
// all of that, and returns what it has said. Only a pod whose log says why may
// have been restarted.
func (b *bed) unready(ctx context.Context, c *lab.Cluster, namespace string, said []string) (found string, err error) {
	err = lab.Eventually(ctx, func(ctx context.Context) error {
		var inEvents, inLogs error
		if found, inEvents = findEvent(ctx, c, namespace, said); inEvents != nil {
			if found, inLogs = findLog(ctx, c, namespace, said); inLogs != nil {
				return errors.Join(inEvents, inLogs)
			}
		}
		pods, err := c.Pods(ctx, namespace, deploy.PodSelector)
		if err != nil {
			return err
		}
		unready := 0
		for _, p := range pods {
			if p.Metadata.DeletionTimestamp == nil && !p.Ready() {
				unready++
			}
			for _, s := range p.Status.ContainerStatuses {
				if s.RestartCount > 0 && inEvents == nil {
					return fmt.Errorf("%s was restarted %d times", p.Metadata.Name, s.RestartCount)
				}
			}
		}
		if unready != 1 {
			return fmt.Errorf("%s, but %d of %d pods are not ready, want one", found, unready, len(pods))
		}
		return nil
	})
	return found, err
}

// noEgress cuts one machine of the first cluster off from the internet: its node
// pod says so and is not ready, until it is back.
func (b *bed) noEgress(ctx context.Context) error {
	pods, err := nodePods(ctx, b.c1)
	if err != nil {
		return err
	}
	m, err := b.c1.Machine(pods[0].Spec.NodeName)
	if err != nil {
		return err
	}
	if err := m.Firewall(ctx, "203.0.113.0/24"); err != nil {
		return err
	}
	b.check(ctx, "no egress", via{}, 3*time.Minute, func(ctx context.Context) (string, error) {
		return b.unready(ctx, b.c1, deploy.Name, []string{lab.RelayHost, "unreachable", "see that this machine reaches the relay"})
	})
	if err := m.Firewall(ctx, ""); err != nil {
		return err
	}
	b.check(ctx, "egress again: ready again", via{}, 2*time.Minute, func(ctx context.Context) (string, error) {
		return "", lab.Eventually(ctx, func(ctx context.Context) error { return nodesReady(ctx, b.c1, len(pods)) })
	})
	return nil
}
