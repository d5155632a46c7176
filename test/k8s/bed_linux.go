package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/deploy"
	"github.com/zt-daemon/zt/test/issuer"
	"github.com/zt-daemon/zt/test/lab"
)

const (
	// What the world sees of the second and the third cluster's site.
	secondNAT = "203.0.113.33"
	thirdNAT  = "203.0.113.34"

	aliceUID  = 1000
	olgaUID   = 1001
	nodeImage = "registry.test/zt-daemon:lab"
	// clockImage is for a node whose clock is wrong by clockWrong.
	clockImage = "registry.test/zt-daemon"
	clockTag   = "ahead"
	clockWrong = time.Hour
	// play is the namespace in which alice does everything.
	play = "play"
	// people is how many there are beside alice.
	people = 50
)

// bed is all the clusters, and what stands around them.
type bed struct {
	*lab.Scene // issuer, relay, network
	lab        *lab.Lab
	module     string
	quick      bool
	kubernetes string // executable, where everybody may run it
	helm       string // the same
	kubectls   []kubectl

	c1, c2        *lab.Cluster // three machines, one machine
	third         *lab.Site
	alice         *lab.Laptop
	installed     map[string]string // by cluster: the line that installed its nodes
	informer      *lab.Process
	informerBegan time.Time
	fresh         *lab.Cluster // nil until a scene wants it
	images        []string     // archives that every machine has

	scene string // being played
	table table
}

// kubectl is one of the kubectls that people have.
type kubectl struct {
	version, program string
}

// via says which kubectl is used, and how it makes its streams.
type via struct {
	kubectl
	transport string
	// direct goes as the administrator, beside the API server: to see whether what
	// fails through the overlay fails by itself.
	direct bool
}

const (
	webSocket = "WebSocket"
	spdy      = "SPDY"
)

// raise brings up everything but the nodes.
func raise(ctx context.Context, l *lab.Lab, quick bool) (*bed, error) {
	b := &bed{lab: l, quick: quick, installed: map[string]string{}}
	var err error
	if b.module, err = lab.ModuleDir(ctx); err != nil {
		return nil, err
	}
	kubernetes, err := l.BuildKubernetes(ctx, b.module)
	if err != nil {
		return nil, err
	}
	helm, err := l.BuildHelm(ctx, b.module)
	if err != nil {
		return nil, err
	}
	echo := filepath.Join(l.Dir, "echo")
	build := lab.Command{Name: "go build", Dir: b.module, Env: append(os.Environ(), "CGO_ENABLED=0"), Args: []string{"go", "build", "-o", echo, "./test/k8s/echo"}}
	if err := l.Run(ctx, build).OK(); err != nil {
		return nil, err
	}
	images, err := l.WritePodImages(ctx, map[string]string{"/bin/echo-server": echo})
	if err != nil {
		return nil, err
	}
	node, err := l.BuildImage(ctx, b.module, nodeImage)
	if err != nil {
		return nil, err
	}
	clock, err := b.wrongClock(ctx)
	if err != nil {
		return nil, err
	}
	b.images = append(images, node, clock)
	network, err := l.NewNetwork(ctx)
	if err != nil {
		return nil, err
	}
	if b.Scene, err = l.NewScene(ctx, lab.SceneConfig{Module: b.module, Network: network, Users: everybody()}); err != nil {
		return nil, err
	}
	b.kubernetes, b.helm = filepath.Join(b.Bin, "kubernetes"), filepath.Join(b.Bin, "helm")
	for from, to := range map[string]string{kubernetes: b.kubernetes, helm: b.helm} {
		if err := copyProgram(from, to); err != nil {
			return nil, err
		}
	}
	if err := b.findKubectls(ctx); err != nil {
		return nil, err
	}
	second, err := l.NewSite(ctx, network, "second", secondNAT)
	if err != nil {
		return nil, err
	}
	if b.third, err = l.NewSite(ctx, network, "third", thirdNAT); err != nil {
		return nil, err
	}
	g, starting := errgroup.WithContext(ctx)
	start := func(into **lab.Cluster, name string, site *lab.Site, machines int) {
		g.Go(func() (err error) {
			*into, err = l.StartCluster(starting, lab.ClusterConfig{
				Name: name, Program: kubernetes, Site: site, Machines: machines,
				Images: b.images, Issuer: b.Issuer.For(issuer.APIServerClient),
			})
			return err
		})
	}
	start(&b.c1, "c1", network.ClusterSite(), 3)
	start(&b.c2, "c2", second, 1)
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if b.alice, err = b.NewLaptop("alice", aliceUID); err != nil {
		return nil, err
	}
	return b, nil
}

func everybody() []issuer.User {
	all := []issuer.User{
		{Name: "alice", DisplayName: "Alice", Email: "alice@example.test", EmailVerified: true, Groups: []string{"developers"}},
		{Name: "olga", DisplayName: "Olga", Email: "olga@example.test", EmailVerified: true, Groups: []string{"sre"}},
	}
	for i := range people {
		name := fmt.Sprintf("person%02d", i+1)
		all = append(all, issuer.User{Name: name, DisplayName: name, Email: name + "@example.test", EmailVerified: true, Groups: []string{"developers"}})
	}
	return all
}

// copyProgram puts an executable where everybody may run it.
func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// findKubectls takes the kubectl that matches the clusters, and the one in PATH
// if that is another.
func (b *bed) findKubectls(ctx context.Context) error {
	matching := filepath.Join(b.Bin, "kubectl")
	if err := os.WriteFile(matching, fmt.Appendf(nil, "#!/bin/sh\nexec '%s' kubectl \"$@\"\n", b.kubernetes), 0o755); err != nil {
		return err
	}
	programs := []string{matching}
	if other, err := exec.LookPath("kubectl"); err == nil {
		programs = append(programs, other)
	}
	for _, program := range programs {
		r := b.lab.Run(ctx, lab.Command{Name: "kubectl", Args: []string{program, "version", "--client", "-o", "json"}})
		if err := r.OK(); err != nil {
			return err
		}
		var v struct{ ClientVersion struct{ GitVersion string } }
		if err := json.Unmarshal([]byte(r.Stdout), &v); err != nil {
			return fmt.Errorf("%s version: %w", program, err)
		}
		version, _, _ := strings.Cut(v.ClientVersion.GitVersion, "-")
		if len(b.kubectls) == 0 || b.kubectls[0].version != version {
			b.kubectls = append(b.kubectls, kubectl{version, program})
		}
	}
	if len(b.kubectls) == 1 {
		b.lab.Say("no older kubectl is here: only %s is tried", b.kubectls[0].version)
	}
	return nil
}

// admin is the cluster's administrator, beside its API server.
func (b *bed) admin(k *lab.Kubernetes, site *lab.Site) *lab.Laptop {
	return b.Admin.At(site.Inside, k.Kubeconfig)
}

// addCluster is `zt-daemon cluster add`, which makes key, policy and record. It
// returns the line that installs the nodes, or has them take what is new.
func (b *bed) addCluster(ctx context.Context, c *lab.Cluster, flags ...string) (line string, err error) {
	args := []string{"cluster", "add", c.Name, "--context", "admin", "--api-client-id", issuer.APIServerClient, "--group", "developers", "--image", nodeImage}
	r := b.admin(c.Kubernetes, c.Site).ZT(ctx, append(args, flags...)...)
	if err := r.OK(); err != nil {
		return "", err
	}
	for text := range strings.Lines(r.Stdout) {
		if text = strings.TrimSpace(text); strings.HasPrefix(text, "helm ") {
			return text, nil
		}
	}
	return "", fmt.Errorf("cluster add printed no line for Helm: %v, stdout: %s", r, r.Stdout)
}

// shell runs a line that a person was told to type, as the cluster's
// administrator, in the project's directory.
func (b *bed) shell(ctx context.Context, c *lab.Cluster, line string) error {
	command := b.admin(c.Kubernetes, c.Site).Command("shell", []string{"sh", "-c", line})
	command.Dir = b.module
	return b.lab.Run(ctx, command).OK()
}

// kubectl is a command of alice's in one of the clusters.
func (b *bed) kubectl(v via, cluster string, args ...string) lab.Command {
	var env []string
	if v.transport == spdy {
		env = []string{"KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false", "KUBECTL_PORT_FORWARD_WEBSOCKETS=false"}
	}
	program := v.program
	if program == "" {
		program = b.kubectls[0].program
	}
	if v.direct {
		c := b.admin(b.c1.Kubernetes, b.c1.Site).Command("kubectl", append([]string{program}, args...), env...)
		c.Dir = b.alice.Home
		return c
	}
	return b.alice.Command("kubectl", append([]string{program, "--context", "zt-" + cluster}, args...), env...)
}

// run runs a kubectl of alice's in the first cluster and namespace play, and
// returns what it printed.
func (b *bed) run(ctx context.Context, v via, args ...string) (string, error) {
	return b.feed(ctx, v, "", args...)
}

// feed is run with something on standard input.
func (b *bed) feed(ctx context.Context, v via, stdin string, args ...string) (string, error) {
	c := b.kubectl(v, b.c1.Name, append([]string{"--namespace", play}, args...)...)
	c.Stdin = strings.NewReader(stdin)
	r := b.lab.Run(ctx, c)
	return r.Stdout, r.OK()
}

// start runs a kubectl of alice's until it is stopped.
func (b *bed) start(v via, name string, stdin io.Reader, args ...string) (*lab.Process, error) {
	c := b.kubectl(v, b.c1.Name, append([]string{"--namespace", play}, args...)...)
	c.Name, c.Stdin = name, stdin
	return b.lab.Start(c)
}

// apply has the first cluster's administrator apply manifests.
func (b *bed) apply(ctx context.Context, c *lab.Cluster, manifests string) error {
	return c.Kubectl(ctx, strings.NewReader(manifests), "apply", "-f", "-").OK()
}

// nodePods are the cluster's zt pods, but those that are being deleted.
func nodePods(ctx context.Context, c *lab.Cluster) ([]lab.Pod, error) {
	pods, err := c.Pods(ctx, deploy.Name, deploy.PodSelector)
	pods = slices.DeleteFunc(pods, func(p lab.Pod) bool { return p.Metadata.DeletionTimestamp != nil })
	if err == nil && len(pods) == 0 {
		err = errors.New("there are no node pods")
	}
	return pods, err
}

// want is nil if the text holds all of parts.
func want(text string, parts ...string) error {
	for _, p := range parts {
		if !strings.Contains(text, p) {
			return fmt.Errorf("no %q in %q", p, text)
		}
	}
	return nil
}
