package main

import (
	"context"
	"fmt"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/deploy"
)

const (
	installPoll = time.Second
	// Of what troubles an installation, this much is shown.
	shownWarnings = 3
	shownPods     = 3
)

// site is what a cluster looks like before its nodes are installed.
type site struct {
	namespace bool // it is there
	workloads []deploy.Workload
	placement deploy.Placement
}

// look reads from the cluster what an installation must fit; nothing with --out.
func (c *clusterAdd) look(ctx context.Context, env *environment) (site, error) {
	var s site
	if c.out != "" {
		return s, nil
	}
	var err error
	if s.namespace, err = c.kube.Exists(ctx, "namespace", c.namespace); err != nil {
		return s, err
	}
	if s.workloads, err = c.workloads(ctx); err != nil {
		return s, err
	}
	if c.install {
		for _, w := range s.workloads {
			if w.ByHelm() {
				return s, daemon.NewLocalError(daemon.KindFailure, "leave --install out: the `helm upgrade` line is printed then, and keeps that release's values",
					"%s/%s in namespace %s belongs to a Helm release", w.Mode(), w.Metadata.Name, c.namespace)
			}
		}
	}
	if len(s.workloads) > 0 && len(c.nodeSelector) == 0 {
		s.placement = s.workloads[0].Placement()
		return s, nil
	}
	list, err := c.kube.List(ctx, "nodes")
	if ctx.Err() != nil {
		return s, context.Cause(ctx)
	}
	var machines []deploy.Machine
	if err == nil {
		machines, err = deploy.ParseMachines(list)
	}
	s.placement = deploy.Place(machines, c.nodeSelector)
	if err != nil { // an admin of a namespace only
		fmt.Fprintf(env.stderr, "zt-daemon: warning: the machines cannot be seen: %s\n", printable(err.Error()))
	}
	return s, nil
}

// keep sets what no flag names as the installation has it that is there.
func (c *clusterAdd) keep(ctx context.Context, s site, i *deploy.Install) error {
	if len(s.workloads) == 0 {
		return nil
	}
	if i.Image == "" {
		i.Image = s.workloads[0].Image()
	}
	if c.upstream != "" {
		return nil
	}
	text, err := c.kube.File(ctx, "configmap", c.namespace, deploy.NodeConfigMap, daemon.NodeConfigFile)
	if err != nil {
		return err
	}
	var settings struct {
		Upstream string `json:"upstream"`
	}
	if err := yaml.Unmarshal(text, &settings); err == nil && settings.Upstream != "" { // a broken one is replaced
		i.Upstream = settings.Upstream
	}
	return nil
}

func (c *clusterAdd) workloads(ctx context.Context) ([]deploy.Workload, error) {
	list, err := c.kube.List(ctx, "daemonsets,deployments", "--namespace", c.namespace, "--selector", deploy.Selector)
	if err != nil {
		return nil, err
	}
	return deploy.ParseWorkloads(list)
}

// installLine is the command that a person types next, and what it is for.
func (c *clusterAdd) installLine(s site, i deploy.Install) (lead, line string) {
	var helm, kubectl []string
	if c.kube.Kubeconfig != "" {
		helm, kubectl = append(helm, "--kubeconfig", c.kube.Kubeconfig), append(kubectl, "--kubeconfig", c.kube.Kubeconfig)
	}
	if c.kube.Context != "" {
		helm, kubectl = append(helm, "--kube-context", c.kube.Context), append(kubectl, "--context", c.kube.Context)
	}
	switch {
	case len(s.workloads) == 0:
		return "Install its nodes with", deploy.Quote(i.Helm(false, helm...))
	case s.workloads[0].ByHelm():
		// Only what is new: the rest is that release's own.
		if c.upstream == "" {
			i.Upstream = ""
		}
		if len(c.nodeSelector) == 0 {
			i.Placement = deploy.Placement{}
		}
		return "Its nodes are there; have them take what has changed with", deploy.Quote(i.Helm(true, helm...))
	default:
		w := s.workloads[0]
		words := append(append([]string{"kubectl"}, kubectl...), "--namespace", c.namespace, "rollout", "restart", w.Mode()+"/"+w.Metadata.Name)
		return "Its nodes are there; have them take a new key with", deploy.Quote(words)
	}
}

// installNodes applies i and waits until its nodes are ready, which says that each
// has a session with a relay and an API server that answers.
func (c *clusterAdd) installNodes(ctx context.Context, env *environment, s site, i deploy.Install) (ready int, err error) {
	if err := c.keep(ctx, s, &i); err != nil {
		return 0, err
	}
	manifests, err := i.Manifests()
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(env.stderr, "zt-daemon: seen there: %s\n", printable(i.Placement.Saw))
	// Nothing of Helm's is here, and what an earlier installation left is to be as it
	// is now.
	said, err := c.kube.Apply(ctx, manifests, true)
	fmt.Fprint(env.stderr, said)
	if err != nil {
		return 0, err
	}
	if ready, err = c.waitReady(ctx, env, i.Placement.Mode); err != nil {
		return ready, err
	}
	// What --node-selector replaces goes when its successor serves.
	for _, w := range s.workloads {
		if w.Mode() == i.Placement.Mode {
			continue
		}
		stale := []string{w.Mode() + "/" + w.Metadata.Name}
		if w.Mode() == deploy.Deployment {
			stale = append(stale, "poddisruptionbudget/"+w.Metadata.Name)
		}
		if err := c.kube.Delete(ctx, append(stale, "--namespace", c.namespace)...); err != nil {
			return ready, err
		}
	}
	return ready, nil
}

// waitReady waits for the workload's pods, saying how far they are.
func (c *clusterAdd) waitReady(ctx context.Context, env *environment, mode string) (int, error) {
	limit, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	said := ""
	ready, want := 0, 0
	var lastErr error
	for {
		workloads, err := c.workloads(limit)
		if lastErr = err; err == nil {
			for _, w := range workloads {
				if w.Mode() != mode || w.Metadata.Name != deploy.Name {
					continue
				}
				var done bool
				if ready, want, done = w.Rollout(); done {
					return ready, nil
				}
				if line := fmt.Sprintf("%d of %s ready", ready, counted(want, "node")); want > 0 && line != said {
					fmt.Fprintln(env.stderr, "zt-daemon: "+line)
					said = line
				}
			}
		}
		select {
		case <-time.After(installPoll):
			continue
		case <-limit.Done():
		}
		if ctx.Err() != nil {
			return ready, context.Cause(ctx)
		}
		if lastErr != nil && want == 0 {
			return ready, lastErr
		}
		c.explain(ctx, env)
		return ready, daemon.NewLocalError(daemon.KindUnreachable,
			fmt.Sprintf("`kubectl --namespace %s describe pods` and `kubectl --namespace %s logs %s/%s` say more; they go on trying", c.namespace, c.namespace, mode, deploy.Name),
			"cluster %s: %d of %s ready after %v", c.name, ready, counted(want, "node"), c.timeout)
	}
}

// explain tells a person what keeps the pods from being ready: the namespace's
// last warnings, and the last sentence of each pod.
func (c *clusterAdd) explain(ctx context.Context, env *environment) {
	say := func(format string, args ...any) {
		fmt.Fprintf(env.stderr, "zt-daemon: %s\n", printable(fmt.Sprintf(format, args...)))
	}
	list, err := c.kube.List(ctx, "pods", "--namespace", c.namespace, "--selector", deploy.PodSelector)
	var pods []deploy.Pod
	if err == nil {
		pods, err = deploy.ParsePods(list)
	}
	if err != nil {
		say("%v", err)
	}
	shown := 0
	for _, p := range pods {
		if p.Ready || shown == shownPods {
			continue
		}
		shown++
		say("pod %s: %s", p.Name, p.Why)
		if !p.Started {
			continue
		}
		if log, err := c.kube.Log(ctx, c.namespace, p.Name, "node"); err == nil {
			if last := deploy.LastSentence(log); last != "" {
				say("pod %s: its log ends: %s", p.Name, last)
			}
		}
	}
	if list, err = c.kube.List(ctx, "events", "--namespace", c.namespace, "--sort-by=.lastTimestamp"); err == nil {
		var warnings []string
		if warnings, err = deploy.Warnings(list); err == nil {
			for _, w := range warnings[max(0, len(warnings)-shownWarnings):] {
				say("event: %s", w)
			}
		}
	}
	if err != nil {
		say("%v", err)
	}
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
