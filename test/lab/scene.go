package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/zt-daemon/zt/test/issuer"
)

// SceneConfig says what a Scene is made of.
type SceneConfig struct {
	// Module is the root of this repository.
	Module string
	// Network holds the scene; nil is this machine's loopback.
	Network *Network
	// Cluster is the name of the one cluster; empty: there is none, and neither API
	// server nor node.
	Cluster string
	// Users are the issuer's people; nil is alice, a developer, and bob.
	Users []issuer.User
	// Kubernetes is the executable that BuildKubernetes gives. Not used with
	// Context.
	Kubernetes string
	// Context, if set, fronts the cluster of a context of Kubeconfig (a KUBECONFIG
	// variable's value; empty: the default) instead of starting one.
	Context, Kubeconfig string
	// Kubectl is the program that laptops use; empty is the one in PATH, or
	// Kubernetes' own where there is none.
	Kubectl string
	// BuildFlags go to go build, for example -race.
	BuildFlags []string
}

// Scene is everything at once: an issuer, a relay claimed by a network, a
// cluster with a node, and the directories of the administrator who made them.
type Scene struct {
	Lab        *Lab
	Network    *Network // nil on loopback
	Bin        string   // directory of zt-relay and zt-daemon
	Issuer     *Issuer
	Kubernetes *Kubernetes // nil with SceneConfig.Context, and without a cluster
	Relay      *Relay
	Node       *Node
	Admin      *Laptop
	NetworkID  string
	// LoginURL is what everybody types after `zt-daemon login`.
	LoginURL       string
	KubectlProgram string

	config SceneConfig
	claim  Claim
}

// Node is a zt-daemon node outside Kubernetes.
type Node struct {
	Dir        string // what `zt-daemon cluster add --out` wrote
	PolicyFile string
	Process    *Process
}

var networkID = regexp.MustCompile(`\b[a-z2-7]{32}\b`)

// NewScene brings everything up and waits until the node has its session with
// the relay.
func (l *Lab) NewScene(ctx context.Context, c SceneConfig) (*Scene, error) {
	s := &Scene{Lab: l, Network: c.Network, config: c}
	var err error
	if s.Bin, err = l.BuildPrograms(ctx, c.Module, c.BuildFlags...); err != nil {
		return nil, err
	}
	if err := s.findKubectl(); err != nil {
		return nil, err
	}
	steps := []func(context.Context) error{s.startIssuer, s.startKubernetes, s.startRelay, s.makeAdmin, s.createNetwork, s.addCluster, s.StartNode}
	if c.Cluster == "" {
		steps = []func(context.Context) error{s.startIssuer, s.startRelay, s.makeAdmin, s.createNetwork}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// program is the path of one of our executables.
func (s *Scene) program(name string) string { return filepath.Join(s.Bin, name) }

// ClusterName is that of the one cluster.
func (s *Scene) ClusterName() string { return s.config.Cluster }

// KubeContext is the name of the cluster's context in a laptop's kubeconfig.
func (s *Scene) KubeContext() string { return "zt-" + s.config.Cluster }

// places are the networks of the scene's parts; all nil on loopback.
func (s *Scene) places() Network {
	if s.Network == nil {
		return Network{}
	}
	return *s.Network
}

func (s *Scene) findKubectl() error {
	s.KubectlProgram = s.config.Kubectl
	if s.KubectlProgram != "" {
		return nil
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		p := filepath.Join(dir, "kubectl")
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			s.KubectlProgram = p
			return nil
		}
	}
	if s.config.Kubernetes == "" {
		return errors.New("no kubectl in PATH")
	}
	s.KubectlProgram = s.program("kubectl")
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' kubectl \"$@\"\n", s.config.Kubernetes)
	return os.WriteFile(s.KubectlProgram, []byte(script), 0o755)
}

func (s *Scene) startIssuer(context.Context) error {
	ca, err := NewAuthority("zt lab CA")
	if err != nil {
		return err
	}
	address := "127.0.0.1:0"
	if s.Network != nil {
		address = IssuerHost + ":443"
	}
	s.Issuer, err = s.Lab.StartIssuer(ca, s.places().Issuer, address, issuer.Config{Users: s.config.Users})
	return err
}

func (s *Scene) startKubernetes(ctx context.Context) error {
	if s.config.Context != "" {
		return nil
	}
	c := KubernetesConfig{Program: s.config.Kubernetes, Namespace: s.places().Cluster, Issuer: s.Issuer.For(issuer.APIServerClient)}
	if s.Network != nil {
		c.Host, c.Port = ClusterHost, 6443
	}
	var err error
	s.Kubernetes, err = s.Lab.StartKubernetes(ctx, c)
	return err
}

func (s *Scene) startRelay(ctx context.Context) error {
	listen := "127.0.0.1:"
	if s.Network != nil {
		listen = RelayHost + ":443"
	}
	var err error
	s.Relay, s.claim, err = s.Lab.StartRelay(ctx, s.program("zt-relay"), s.places().Relay, listen)
	return err
}

// makeAdmin makes the machine of who administers network and cluster. It
// stands beside the cluster, where kubectl works already.
func (s *Scene) makeAdmin(context.Context) error {
	var err error
	if s.Admin, err = s.NewLaptop("admin", 0); err != nil {
		return err
	}
	s.Admin.Namespace, s.Admin.User, s.Admin.Kubeconfig = s.places().Cluster, nil, s.config.Kubeconfig
	if s.Kubernetes != nil {
		s.Admin.Kubeconfig = s.Kubernetes.Kubeconfig
	}
	s.Admin.setenv("KUBECONFIG", s.Admin.Kubeconfig)
	return nil
}

// createNetwork is `zt-daemon network create`.
func (s *Scene) createNetwork(ctx context.Context) error {
	ca := filepath.Join(s.Lab.Dir, "issuer-ca.crt")
	if err := os.WriteFile(ca, s.Issuer.CA, 0o644); err != nil {
		return fmt.Errorf("write the issuer's CA: %w", err)
	}
	r := s.Admin.ZT(ctx, s.networkCreateArgs(s.claim, ca)...)
	if err := r.OK(); err != nil {
		return err
	}
	s.NetworkID = networkID.FindString(r.Stdout + r.Stderr)
	if s.NetworkID == "" {
		return fmt.Errorf("network create printed no network id: %v", r)
	}
	s.LoginURL = s.Relay.URL + "/" + s.NetworkID
	s.Lab.Say("network %s was created and has claimed the relay", s.NetworkID)
	return nil
}

// addCluster is `zt-daemon cluster add --out`.
func (s *Scene) addCluster(ctx context.Context) error {
	s.Node = &Node{Dir: filepath.Join(s.Lab.Dir, "node")}
	s.Node.PolicyFile = filepath.Join(s.Node.Dir, "policy.yaml")
	if err := s.Admin.ZT(ctx, s.clusterAddArgs()...).OK(); err != nil {
		return err
	}
	s.Lab.Say("cluster %s was added: its record is signed, its key and policy are in %s", s.config.Cluster, s.Node.Dir)
	return nil
}

// StartNode runs the node and waits until the relay has admitted it. It also
// brings a killed one back.
func (s *Scene) StartNode(ctx context.Context) error {
	p, err := s.Lab.Start(Command{
		Name: "zt-node", Namespace: s.places().Cluster, Grace: 5 * time.Second,
		Env:  []string{"HOME=" + s.Lab.Dir, "PATH=/usr/bin:/bin"},
		Args: s.nodeArgs(),
	})
	if err != nil {
		return err
	}
	s.Node.Process = p
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := p.WaitFor(ctx, "its admission by the relay", func(context.Context) error {
		events, err := s.Relay.Audit()
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.Event == "login" && e.Kind == "node" && e.Time.After(begin.Add(-time.Second)) {
				return nil
			}
		}
		return errors.New("the relay's audit log has no node login")
	}); err != nil {
		return err
	}
	s.Lab.Say("the node of %s is admitted by the relay", s.config.Cluster)
	return nil
}

// setenv sets a variable of the laptop's environment; an empty value removes it.
func (p *Laptop) setenv(name, value string) {
	kept := p.Env[:0:0]
	for _, e := range p.Env {
		if !strings.HasPrefix(e, name+"=") {
			kept = append(kept, e)
		}
	}
	if value != "" {
		kept = append(kept, name+"="+value)
	}
	p.Env = kept
}

// EditPolicy writes the node's policy file anew: by a rename, as a mounted
// ConfigMap changes.
func (n *Node) EditPolicy(edit func(text string) string) error {
	b, err := os.ReadFile(n.PolicyFile)
	if err != nil {
		return fmt.Errorf("edit policy: %w", err)
	}
	next := edit(string(b))
	if next == string(b) {
		return errors.New("edit policy: nothing changed")
	}
	info, err := os.Stat(n.PolicyFile)
	if err != nil {
		return fmt.Errorf("edit policy: %w", err)
	}
	temporary := n.PolicyFile + ".new"
	if err := os.WriteFile(temporary, []byte(next), info.Mode()); err != nil {
		return fmt.Errorf("edit policy: %w", err)
	}
	return os.Rename(temporary, n.PolicyFile)
}
