package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/zt-daemon/zt/test/lab"
)

// story is the scene and the people in it. What it tells it reads from the
// programs' own output, status and audit logs.
type story struct {
	*lab.Scene
	own        string // the person's own context; empty: the demo's API server
	alice, bob *lab.Laptop
}

// line tells one step.
func line(who, format string, args ...any) {
	fmt.Printf("  %-10s %s\n", who, fmt.Sprintf(format, args...))
}

// tell plays alice's and bob's parts. An error is something that did not go as
// it should.
func (s *story) tell(ctx context.Context) error {
	var err error
	if s.alice, err = s.NewLaptop("alice", 0); err != nil {
		return err
	}
	if s.bob, err = s.NewLaptop("bob", 0); err != nil {
		return err
	}
	if err := s.aliceComes(ctx); err != nil {
		return fmt.Errorf("alice's part: %w", err)
	}
	if err := s.bobComes(ctx); err != nil {
		return fmt.Errorf("bob's part: %w", err)
	}
	return nil
}

// nodeEvent is a line of the node's audit log.
type nodeEvent struct {
	Event, Name, Rule, Reason, Detail, Edge string
}

// nodeEvents are the lines of the node's audit log, which stand among its
// messages.
func (s *story) nodeEvents() []nodeEvent {
	var events []nodeEvent
	for text := range strings.Lines(s.Node.Process.Output()) {
		var e nodeEvent
		if strings.HasPrefix(text, "{") && json.Unmarshal([]byte(text), &e) == nil && e.Event != "" {
			events = append(events, e)
		}
	}
	return events
}

func (s *story) aliceComes(ctx context.Context) error {
	fmt.Printf("\nalice, of the group developers\n")
	line("types", "zt-daemon login %s", s.LoginURL)
	began := time.Now()
	if err := s.logIn(ctx, s.alice, "alice"); err != nil {
		return err
	}
	more := ", and another one for the API server"
	if s.own != "" {
		more = "; to the API server she goes as the user of your context"
	}
	line("login", "one visit of the browser to %s: an ID token that commits to her laptop's login key%s (%s)",
		s.Issuer.URL(), more, time.Since(began).Round(time.Millisecond))
	relay, err := s.Relay.Audit()
	if err != nil {
		return err
	}
	admitted := false
	for _, e := range relay {
		if e.Event == "login" && e.Kind == "person" {
			line("relay", "verified the grant of %s and keeps a lease; it can open nothing", e.Name)
			admitted = true
		}
	}
	if !admitted {
		return errors.New("the relay's audit log has no login of hers")
	}
	args := []string{"--context", s.KubeContext(), "get", "namespaces"}
	began = time.Now()
	answer, err := s.kubectl(ctx, s.alice, args...)
	if err != nil {
		return err
	}
	took := time.Since(began)
	opened := false
	for _, e := range s.nodeEvents() {
		if e.Event == "edge_opened" {
			line("node", "verified the grant of %s itself; rule %q of the cluster's policy admits her; edge %s", e.Name, e.Rule, e.Edge)
			opened = true
		}
	}
	if !opened {
		return errors.New("the node's audit log has no edge of hers")
	}
	if err := s.path(ctx); err != nil {
		return err
	}
	if err := s.apiServer(); err != nil {
		return err
	}
	line("kubectl", "kubectl %s (%s)\n", strings.Join(args, " "), took.Round(time.Millisecond))
	for text := range strings.Lines(answer) {
		fmt.Printf("             %s", text)
	}
	return nil
}

// apiServer tells what the demo's API server wrote about alice's request: the
// overlay brought it there, and her second ID token decided.
func (s *story) apiServer() error {
	if s.Kubernetes == nil {
		return nil
	}
	events, err := s.Kubernetes.Audit()
	if err != nil {
		return err
	}
	for _, e := range events {
		if strings.HasPrefix(e.User.Username, "oidc:") && e.Verb == "list" && e.ObjectRef.Resource == "namespaces" {
			line("API server", "took the request of %s (%s) by its own rules: %s %s, HTTP %d",
				e.User.Username, strings.Join(e.User.Groups, ", "), e.Verb, e.ObjectRef.Resource, e.ResponseStatus.Code)
			return nil
		}
	}
	return errors.New("the API server's audit log has no request of hers")
}

// logIn logs a person in. In front of the person's own cluster the laptop gets a
// copy of the context, for its user; the original is not touched.
func (s *story) logIn(ctx context.Context, p *lab.Laptop, user string) error {
	if s.own == "" {
		_, err := p.Login(ctx, user)
		return err
	}
	r := s.Admin.Kubectl(ctx, "config", "view", "--minify", "--flatten", "--raw", "--context", s.own, "-o", "json")
	if r.OK() != nil {
		return fmt.Errorf("kubectl config view --context %s: exit code %d", s.own, r.Code) // its output may hold a credential
	}
	var view struct {
		Users []struct{ Name string } `json:"users"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &view); err != nil || len(view.Users) != 1 {
		return fmt.Errorf("context %s has not one user", s.own)
	}
	if err := os.WriteFile(p.Kubeconfig, []byte(r.Stdout), 0o600); err != nil {
		return err
	}
	// The login says that it does not know which user to keep.
	if r, err := p.Login(ctx, user); err != nil && !strings.Contains(r.Stdout, "you are logged in, but") {
		return err
	}
	return p.ZT(ctx, "kubeconfig", s.ClusterName(), "--user", view.Users[0].Name).OK()
}

// path tells how alice's packets travel.
func (s *story) path(ctx context.Context) error {
	r := s.alice.ZT(ctx, "status", "-o", "json")
	if err := r.OK(); err != nil {
		return err
	}
	var status struct {
		Networks []struct {
			Relays []struct {
				URL, Path      string
				RTTNanoseconds time.Duration
			}
			Clusters []struct{ Name, State, Node, Server string }
		}
	}
	if err := json.Unmarshal([]byte(r.Stdout), &status); err != nil {
		return fmt.Errorf("status -o json: %w", err)
	}
	for _, n := range status.Networks {
		for _, c := range n.Clusters {
			line("handshake", "WireGuard is up with the node %s", c.Node)
			for _, relay := range n.Relays {
				line("path", "kubectl > %s > WireGuard in %s > %s > node > API server (relay RTT %s)",
					c.Server, strings.ToUpper(relay.Path), relay.URL, relay.RTTNanoseconds.Round(10*time.Microsecond))
			}
			if c.State == "ready" {
				return nil
			}
		}
	}
	return fmt.Errorf("status shows no cluster that is ready: %s", r.Stdout)
}

// kubectl runs a laptop's kubectl. In the person's own cluster it authenticates
// with their own kubeconfig user.
func (s *story) kubectl(ctx context.Context, p *lab.Laptop, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r := p.Kubectl(ctx, args...)
	return r.Stdout, r.OK()
}

func (s *story) bobComes(ctx context.Context) error {
	fmt.Printf("\nbob, of no group\n")
	line("types", "zt-daemon login %s", s.LoginURL)
	if err := s.logIn(ctx, s.bob, "bob"); err != nil {
		return err
	}
	line("login", "succeeds: who he is, the issuer says; what he may, the cluster")
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r := s.bob.ZT(ctx, "credential", s.ClusterName())
	if r.Code != 5 {
		return fmt.Errorf("want exit code 5 (denied by policy): %v", r)
	}
	for text := range strings.Lines(strings.TrimSpace(r.Stderr)) {
		line("kubectl", "%s", strings.TrimSpace(text))
	}
	for _, e := range s.nodeEvents() {
		if e.Event == "edge_refused" {
			line("node", "refused %s: %s (%s)", e.Name, e.Reason, e.Detail)
			return nil
		}
	}
	return errors.New("the node's audit log has no refusal of him")
}

// invite says what to try while everything runs.
func (s *story) invite() {
	env := func(p *lab.Laptop) string {
		return fmt.Sprintf("export HOME=%s XDG_RUNTIME_DIR=%s KUBECONFIG=%s PATH=%s:$PATH", p.Home, filepath.Join(p.Home, "run"), p.Kubeconfig, s.Bin)
	}
	fmt.Printf(`
Everything runs until Ctrl-C. In another terminal, be alice:

  %s
  kubectl --context %s get namespaces -w
  kubectl --context %s create namespace mine
  zt-daemon status
  zt-daemon whoami

While the watch is open, take her right away, and give it back:

  sed -i s/developers/nobody/ %s
  sed -i s/nobody/developers/ %s

The relay's side:

  %s status --state-dir %s
  %s audit -f --state-dir %s
`, env(s.alice), s.KubeContext(), s.KubeContext(), s.Node.PolicyFile, s.Node.PolicyFile,
		filepath.Join(s.Bin, "zt-relay"), s.Relay.Dir, filepath.Join(s.Bin, "zt-relay"), s.Relay.Dir)
}
