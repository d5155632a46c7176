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
	"github.com/zt-daemon/zt/test/lab"
)

// page is deploy/README.md, being done by a reader.
type page struct {
	*bed
	cluster *lab.Cluster
	adapt   *strings.Replacer
	dir     string // a checkout, as far as the page needs one
	admin   *lab.Laptop
	olga    *lab.Laptop
	blocks  []block
	install string // the line that `cluster add` printed last
}

// block is a fenced block of the page, as it stands there.
type block struct {
	language, text string
	output         string // of an sh block: the block without a language that follows it
}

// step is what a reader does with a block of commands.
type step struct {
	begins string // the block
	by     *lab.Laptop
	before func(context.Context) error             // what the page's text says of it, or takes for granted
	after  func(context.Context, lab.Result) error // what must be true then
}

// adaptations are what a reader must replace in the page's examples, and all of
// it: the cluster's name, the issuer, where the image is, how the API server calls
// the openers' group.
func (b *bed) adaptations() *strings.Replacer {
	ca, err := json.Marshal(string(b.Issuer.CA)) // a flow scalar of YAML too
	if err != nil {
		panic(err) // a string
	}
	repository, tag, _ := strings.Cut(nodeImage, ":")
	return strings.NewReplacer(
		"c1", freshCluster,
		"https://login.example.com", b.Issuer.URL(),
		"clientID: zt}", "clientID: zt, ca: "+string(ca)+"}",
		"--api-client-id kubernetes", "--api-client-id kubernetes --image "+nodeImage,
		"{name: zt-daemon, newTag: 0.1.0}", "{name: zt-daemon, newName: "+repository+", newTag: "+tag+"}",
		"--group=sre", "--group=oidc:sre",
	)
}

// pageCommands runs every block of commands of deploy/README.md in a fresh
// cluster, in the page's order.
func pageCommands(ctx context.Context, b *bed) error {
	p := &page{bed: b, adapt: b.adaptations(), dir: filepath.Join(b.lab.Dir, "page")}
	if err := p.read(); err != nil {
		return err
	}
	var err error
	if p.cluster, err = b.freshly(ctx); err != nil {
		return err
	}
	if err := p.makeAdmin(ctx); err != nil {
		return err
	}
	if p.olga, err = b.NewLaptop("olga", olgaUID); err != nil {
		return err
	}
	if _, err := p.olga.Login(ctx, "olga"); err != nil {
		return err
	}
	defer p.olga.ZT(context.WithoutCancel(ctx), "down")

	steps := p.steps()
	for _, x := range p.blocks {
		if x.language != "sh" {
			continue
		}
		first, _, _ := strings.Cut(x.text, "\n")
		if len(steps) == 0 || !strings.HasPrefix(x.text, steps[0].begins) {
			return fmt.Errorf("deploy/README.md has a block of commands that no step is for: %s", first)
		}
		s := steps[0]
		steps = steps[1:]
		faults := b.table.faults()
		b.check(ctx, shortened(first), via{}, 4*time.Minute, func(ctx context.Context) (string, error) { return "", p.do(ctx, s, x) })
		if b.table.faults() > faults {
			return errors.New("what follows on the page stands on that")
		}
	}
	if len(steps) > 0 {
		return fmt.Errorf("deploy/README.md has no block that begins with %q where it is expected", steps[0].begins)
	}
	return nil
}

// shortened is a command that fits into the table.
func shortened(line string) string {
	const most = 100
	if runes := []rune(line); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return line
}

// read takes the page apart and writes the files that it shows into a directory
// beside a copy of deploy.
func (p *page) read() error {
	text, err := os.ReadFile(filepath.Join(p.module, "deploy", "README.md"))
	if err != nil {
		return err
	}
	const fence = "```"
	parts := strings.Split("\n"+string(text), "\n"+fence)
	for i := 1; i < len(parts); i += 2 {
		language, body, _ := strings.Cut(parts[i], "\n")
		body += "\n"
		if last := len(p.blocks) - 1; language == "" && last >= 0 && p.blocks[last].language == "sh" && strings.TrimSpace(parts[i-1]) == "" {
			p.blocks[last].output = body
		}
		p.blocks = append(p.blocks, block{language: language, text: body})
	}
	if err := os.CopyFS(filepath.Join(p.dir, "deploy"), os.DirFS(filepath.Join(p.module, "deploy"))); err != nil {
		return err
	}
	for _, x := range p.blocks {
		name, ok := strings.CutPrefix(x.text, "# ")
		if x.language != "yaml" || !ok {
			continue
		}
		name, _, _ = strings.Cut(name, "\n")
		file := filepath.Join(p.dir, p.adapt.Replace(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(p.adapt.Replace(x.text)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// makeAdmin gives the network's administrator a context by the page's name.
func (p *page) makeAdmin(ctx context.Context) error {
	text, err := os.ReadFile(p.cluster.Kubeconfig)
	if err != nil {
		return err
	}
	file := filepath.Join(p.dir, "kubeconfig")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	p.admin = p.Admin.At(p.cluster.Site.Inside, file)
	return p.line(ctx, p.admin, "kubectl config rename-context admin admin@"+freshCluster)
}

// paste runs a block as the page has it.
func (p *page) paste(ctx context.Context, by *lab.Laptop, text string) lab.Result {
	c := by.Command("page", []string{"sh", "-e", "-c", p.adapt.Replace(text)})
	c.Dir = p.dir
	return p.lab.Run(ctx, c)
}

// line runs what the page does not show as a block.
func (p *page) line(ctx context.Context, by *lab.Laptop, line string) error {
	c := by.Command("page", []string{"sh", "-e", "-c", line})
	c.Dir = p.dir
	return p.lab.Run(ctx, c).OK()
}

func (p *page) do(ctx context.Context, s step, x block) error {
	if s.before != nil {
		if err := s.before(ctx); err != nil {
			return fmt.Errorf("before it: %w", err)
		}
	}
	by := s.by
	if by == nil {
		by = p.admin
	}
	r := p.paste(ctx, by, x.text)
	if err := r.OK(); err != nil {
		return err
	}
	if s.after != nil {
		if err := s.after(ctx, r); err != nil {
			return fmt.Errorf("after it: %w; it printed:\n%s%s", err, r.Stdout, r.Stderr)
		}
	}
	return nil
}

// steps are the page's, in its order.
func (p *page) steps() []step {
	add := "zt-daemon cluster add c1 --context admin@c1 --api-client-id kubernetes --group developers\n"
	return []step{
		{begins: add, after: func(ctx context.Context, r lab.Result) error {
			if err := errors.Join(p.takeLine(r, "helm install "), p.hasLines(r, "seen there: ")); err != nil {
				return err
			}
			return p.line(ctx, p.admin, p.install)
		}},
		{begins: "kubectl --context admin@c1 --namespace zt rollout status", after: func(ctx context.Context, _ lab.Result) error {
			return p.joined(ctx, p.cluster)
		}},
		{begins: strings.TrimSuffix(add, "\n") + " --install\n", before: p.cleared, after: func(_ context.Context, r lab.Result) error {
			return p.hasLines(r, fmt.Sprintf("cluster %s connected, %d nodes ready", freshCluster, freshMachines))
		}},
		{begins: "kubectl --context admin@c1 apply --server-side -k c1\n", before: func(ctx context.Context) error {
			if err := p.cleared(ctx); err != nil {
				return err
			}
			r := p.paste(ctx, p.admin, add)
			if err := errors.Join(r.OK(), p.takeLine(r, "helm install ")); err != nil {
				return err
			}
			return p.writeNodeConfig()
		}, after: func(ctx context.Context, _ lab.Result) error {
			return lab.Eventually(ctx, func(ctx context.Context) error { return nodesReady(ctx, p.cluster, freshMachines) })
		}},
		{begins: "zt-daemon policy check policy.yaml\n", after: p.printed("zt-daemon policy check policy.yaml")},
		{begins: "kubectl --context admin@c1 create configmap zt-policy", after: func(ctx context.Context, _ lab.Result) error {
			_, err := p.event(ctx, p.cluster, deploy.Name, "the policy is in force: 2 rules")
			return err
		}},
		{begins: "kubectl --context admin@c1 get configmap zt-policy", after: func(_ context.Context, r lab.Result) error {
			return want(r.Stdout, "the cluster is open", "developers", "on call", "mallory")
		}},
		{begins: "kubectl --context admin@c1 create clusterrole zt-opener", before: func(ctx context.Context) error {
			const configMap = "kubectl create configmap zt-policy --namespace zt --from-file=policy.yaml=closed.yaml --dry-run=client -o yaml"
			return p.line(ctx, p.admin, configMap+" | kubectl apply --server-side --force-conflicts -f -")
		}},
		{begins: "zt-daemon request c1", by: p.alice, before: p.refused, after: p.printed("zt-daemon request c1")},
		{begins: "zt-daemon requests c1\n", by: p.olga, before: func(ctx context.Context) error {
			_, err := p.event(ctx, p.cluster, deploy.Name, "alice@example.test", "disk of web-0 is full")
			if err != nil {
				return err
			}
			return lab.Eventually(ctx, func(ctx context.Context) error { return p.olga.ZT(ctx, "kubeconfig", freshCluster).OK() })
		}, after: p.granted},
		{begins: "kubectl --context admin@c1 apply -f - <<EOF\n", after: func(ctx context.Context, r lab.Result) error {
			if err := want(r.Stdout, "release-night", "developers", "PHASE", "NOT AFTER", "USED BY"); err != nil {
				return err
			}
			return p.phase(ctx, "release-night", "Active")
		}},
		{begins: "kubectl --context admin@c1 delete accessgrant release-night\n", after: func(ctx context.Context, _ lab.Result) error {
			_, err := p.event(ctx, p.cluster, deploy.Name, "release-night", "was deleted")
			return err
		}},
		{begins: "helm --kube-context admin@c1 upgrade", before: func(ctx context.Context) error {
			return p.line(ctx, p.admin, p.install+" --take-ownership")
		}, after: p.rolledOut},
		{begins: "zt-daemon cluster add c1 --context admin@c1 --api-client-id kubernetes --new-key\n", after: func(ctx context.Context, r lab.Result) error {
			if err := p.takeLine(r, "helm upgrade "); err != nil {
				return err
			}
			return errors.Join(p.line(ctx, p.admin, p.install), p.rolledOut(ctx, r))
		}},
		{begins: "helm --kube-context admin@c1 uninstall", after: func(ctx context.Context, r lab.Result) error {
			kept := p.cluster.Kubectl(ctx, nil, "--namespace", deploy.Name, "get", "secret/"+deploy.KeySecret, "configmap/"+deploy.PolicyConfigMap)
			list := p.admin.ZT(ctx, "cluster", "list")
			if strings.Contains(list.Stdout, freshCluster) {
				return fmt.Errorf("the cluster is there still: %s", list.Stdout)
			}
			return errors.Join(kept.OK(), list.OK())
		}},
		{begins: "kubectl --context admin@c1 delete customresourcedefinition", after: func(ctx context.Context, _ lab.Result) error {
			r := p.cluster.Kubectl(ctx, nil, "get", "crds,clusterroles,clusterrolebindings,namespaces", "-o", "name")
			for name := range strings.Lines(r.Stdout) {
				if strings.Contains(name, "accessgrants.") || strings.HasSuffix(strings.TrimSpace(name), "/"+deploy.Name) {
					return fmt.Errorf("left behind: %s", name)
				}
			}
			return r.OK()
		}},
	}
}

func (p *page) cleared(ctx context.Context) error { return p.clear(ctx, p.cluster) }

// takeLine takes the line that begins so out of what a command has printed.
func (p *page) takeLine(r lab.Result, begins string) error {
	for line := range strings.Lines(r.Stdout) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, begins) {
			p.install = line
			return nil
		}
	}
	return fmt.Errorf("no line %q was printed", begins)
}

// hasLines is nil if all of these begin lines.
func (p *page) hasLines(r lab.Result, begin ...string) error {
	for _, x := range begin {
		if !strings.Contains("\n"+r.Stdout, "\n"+x) {
			return fmt.Errorf("no line begins with %q", x)
		}
	}
	return nil
}

// printed is what the page shows below a block: the output is that, word by word.
func (p *page) printed(begins string) func(context.Context, lab.Result) error {
	return func(_ context.Context, r lab.Result) error {
		for _, x := range p.blocks {
			if x.language != "sh" || !strings.HasPrefix(x.text, begins) {
				continue
			}
			if shown := p.adapt.Replace(x.output); r.Stdout != shown || shown == "" {
				return fmt.Errorf("the page shows:\n%s", shown)
			}
			return nil
		}
		return fmt.Errorf("no block begins with %q", begins)
	}
}

// writeNodeConfig fills in the base's node.yaml for the overlay: its four values
// are in the line that was printed.
func (p *page) writeNodeConfig() error {
	text, err := os.ReadFile(filepath.Join(p.dir, "deploy", "kustomize", "base", "node.yaml"))
	if err != nil {
		return err
	}
	var lines []string
	words := strings.Fields(p.install)
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, ":")
		if slices.Contains([]string{"network", "cluster", "relay", "upstream"}, name) {
			i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, name+"=") })
			if i < 0 {
				return fmt.Errorf("the line has no %s: %s", name, p.install)
			}
			line = strings.Replace(words[i], "=", ": ", 1) + "\n"
		}
		lines = append(lines, line)
	}
	return os.WriteFile(filepath.Join(p.dir, freshCluster, "node.yaml"), []byte(strings.Join(lines, "")), 0o644)
}

// refused waits until alice is, because the cluster is closed.
func (p *page) refused(ctx context.Context) error {
	return lab.Eventually(ctx, func(ctx context.Context) error {
		r := p.lab.Run(ctx, p.kubectl(via{}, freshCluster, "get", "namespaces"))
		if err := want(r.Stderr, "closed", "zt-daemon request "+freshCluster); err != nil || r.Code == 0 {
			return fmt.Errorf("%w: %v", err, r)
		}
		return nil
	})
}

// granted has olga run the command that was printed, and alice enter.
func (p *page) granted(ctx context.Context, r lab.Result) error {
	if err := p.hasLines(r, "ASKED ", "# subject user-alice of "+p.Issuer.URL()+" for 1h:", "kubectl --context zt-"+freshCluster+" apply -f - <<'EOF'", "kind: AccessGrant"); err != nil {
		return err
	}
	_, commands, _ := strings.Cut(r.Stdout, "\n# ")
	if err := p.line(ctx, p.olga, "# "+commands); err != nil {
		return err
	}
	return p.joined(ctx, p.cluster)
}

// phase waits until an AccessGrant is in one.
func (p *page) phase(ctx context.Context, name, phase string) error {
	return lab.Eventually(ctx, func(ctx context.Context) error {
		r := p.cluster.Kubectl(ctx, nil, "get", "accessgrant", name, "-o", "jsonpath={.status.phase}")
		return errors.Join(r.OK(), want(r.Stdout, phase))
	})
}

// rolledOut waits until the pods are those of the release.
func (p *page) rolledOut(ctx context.Context, _ lab.Result) error {
	r := p.cluster.Kubectl(ctx, nil, "--namespace", deploy.Name, "rollout", "status", "daemonset/zt", "--timeout", "2m")
	if err := r.OK(); err != nil {
		return err
	}
	return lab.Eventually(ctx, func(ctx context.Context) error { return nodesReady(ctx, p.cluster, freshMachines) })
}
