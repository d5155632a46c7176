//go:build e2e && linux

package test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/test/issuer"
	"github.com/zt-daemon/zt/test/lab"
)

// Names that must appear in no byte on the wire.
const (
	canaryCluster   = "canary-cluster"
	canaryNamespace = "canary-namespace"
	canaryPod       = "canary-pod"
	canaryConfigMap = "canary-configmap"
	canaryEmail     = "alice@canary.example"
)

// The ordinary users of the laptop's operating system.
const (
	aliceUID = 1000
	otherUID = 1001
	bobUID   = 1002
)

// stage is the scene and the people on it, shared by all parts of TestEndToEnd.
type stage struct {
	*lab.Scene
	ctx        context.Context // of the whole test
	lab        *lab.Lab
	alice, bob *lab.Laptop
	capture    *lab.Capture
}

// TestEndToEnd plays everything on one scene, in this order: what breaks the
// scene comes last. A part that fails does not keep the later ones from running
// unless they say so.
func TestEndToEnd(t *testing.T) {
	s := raise(t)
	for _, part := range []struct {
		name string
		run  func(*stage, *testing.T)
	}{
		{"no route between laptop and cluster", (*stage).noRoute},
		{"alice logs in", (*stage).aliceLogsIn},
		{"alice's kubectl works", (*stage).aliceKubectl},
		{"bob is refused by name and reason", (*stage).bobRefused},
		{"another OS user's connection is refused", (*stage).otherUser},
		{"a login in Chromium", (*stage).chromium},
		{"a second cluster, added by a signer", (*stage).adminCommands},
		{"a watch survives the relay's kill and restart", (*stage).relayRestart},
		{"bad input", (*stage).badInput},
		{"a right removed from the policy cuts an open watch", (*stage).policyCut},
		{"zt-relay revoke cuts an open watch", (*stage).revoke},
		{"the relay's wire shows WireGuard, binds and TLS only", (*stage).wire},
		{"nothing is left", (*stage).nothingLeft},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(s, t) })
	}
}

// raise brings up the scene.
func raise(t *testing.T) *stage {
	t.Helper()
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("cannot make a network namespace: %v (Debian: apt-get install iproute2 nftables)", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	dir, err := os.MkdirTemp("", "zt-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(lab.Config{Dir: dir, Say: func(d time.Duration, text string) { t.Logf("%6.1fs %s", d.Seconds(), text) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		if t.Failed() {
			t.Logf("logs are kept in %s", filepath.Join(dir, "log"))
		} else if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	n, err := l.NewNetwork(ctx)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("cannot make a network namespace (needs root or CAP_SYS_ADMIN): %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	module, err := lab.ModuleDir(ctx)
	if err != nil {
		t.Fatal(err)
	}
	kubernetes, err := l.BuildKubernetes(ctx, module)
	if err != nil {
		t.Fatal(err)
	}
	capture, err := lab.NewCapture(n.Relay, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	scene, err := l.NewScene(ctx, lab.SceneConfig{
		Module: module, Network: n, Cluster: canaryCluster, Kubernetes: kubernetes, BuildFlags: []string{"-race"},
		Users: []issuer.User{
			{Name: "alice", DisplayName: "Alice Canary", Email: canaryEmail, EmailVerified: true, Groups: []string{"developers"}},
			{Name: "bob", DisplayName: "Bob Canary", Email: "bob@canary.example", EmailVerified: true},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{Scene: scene, ctx: ctx, lab: l, capture: capture}
	if s.alice, err = scene.NewLaptop("alice", aliceUID); err != nil {
		t.Fatal(err)
	}
	if s.bob, err = scene.NewLaptop("bob", bobUID); err != nil {
		t.Fatal(err)
	}
	return s
}

// within is a context for one step.
func (s *stage) within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, d)
	t.Cleanup(cancel)
	return ctx
}

func (s *stage) noRoute(t *testing.T) {
	for _, to := range []string{s.Kubernetes.Host, lab.ClusterHost + ":443", lab.ClusterNAT + ":6443", lab.ClusterNAT + ":443"} {
		ctx, cancel := context.WithTimeout(s.ctx, 2*time.Second)
		c, err := s.Network.Laptop.DialContext(ctx, "tcp", to)
		cancel()
		if err == nil {
			c.Close()
			t.Errorf("the laptop reaches %s without the overlay", to)
		}
	}
}

func (s *stage) aliceLogsIn(t *testing.T) {
	r, err := s.alice.Login(s.within(t, time.Minute), "alice")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v", r)
	r = s.alice.ZT(s.within(t, 15*time.Second), "whoami", "-o", "json")
	if err := r.OK(); err != nil || !strings.Contains(r.Stdout, canaryEmail) {
		t.Errorf("whoami: %v", r)
	}
	b, err := os.ReadFile(s.alice.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"eyJ", "token:", "client-key", "password"} {
		if strings.Contains(string(b), secret) {
			t.Errorf("the kubeconfig holds %q:\n%s", secret, b)
		}
	}
	if info, err := os.Stat(s.alice.Kubeconfig); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the kubeconfig's mode: %v, %v", info.Mode(), err)
	}
}

// kubectl runs alice's kubectl in the cluster's context and fails the test if
// it does.
func (s *stage) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	r := s.alice.Kubectl(s.within(t, 30*time.Second), append([]string{"--context", s.KubeContext()}, args...)...)
	if err := r.OK(); err != nil {
		t.Fatal(err)
	}
	return r.Stdout
}

func (s *stage) aliceKubectl(t *testing.T) {
	var who struct {
		Status struct {
			UserInfo struct {
				Username string
				Groups   []string
			}
		}
	}
	if err := json.Unmarshal([]byte(s.kubectl(t, "auth", "whoami", "-o", "json")), &who); err != nil {
		t.Fatal(err)
	}
	if who.Status.UserInfo.Username != "oidc:"+canaryEmail || !slices.Contains(who.Status.UserInfo.Groups, "oidc:developers") {
		t.Errorf("the API server takes alice for %+v", who.Status.UserInfo)
	}
	if out := s.kubectl(t, "get", "namespaces"); !strings.Contains(out, "kube-system") {
		t.Errorf("get namespaces: %s", out)
	}
	s.kubectl(t, "create", "namespace", canaryNamespace)
	s.kubectl(t, "-n", canaryNamespace, "create", "configmap", canaryConfigMap, "--from-literal=canary-key=canary-value")
	s.kubectl(t, "-n", canaryNamespace, "run", canaryPod, "--image=registry.test/canary:1")
	if out := s.kubectl(t, "-n", canaryNamespace, "get", "pods", "-o", "name"); strings.TrimSpace(out) != "pod/"+canaryPod {
		t.Errorf("get pods: %q", out)
	}
	// What RBAC does not give stays forbidden: the API server still decides.
	// The other form of the entry, through the same port.
	if err := s.alice.ZT(s.within(t, 15*time.Second), "kubeconfig", canaryCluster, "--via", "proxy", "--context-name", "proxied").OK(); err != nil {
		t.Fatal(err)
	}
	if r := s.alice.Kubectl(s.within(t, 30*time.Second), "--context", "proxied", "get", "namespaces"); r.Code != 0 || !strings.Contains(r.Stdout, "kube-system") {
		t.Errorf("kubectl through the port as a proxy: %v", r)
	}
	r := s.alice.Kubectl(s.within(t, 30*time.Second), "--context", s.KubeContext(), "get", "secrets")
	if r.Code == 0 || !strings.Contains(r.Stderr, "Forbidden") {
		t.Errorf("get secrets: %v", r)
	}
	s.logsJoin(t)
	w := s.watch(t, "watch-first")
	defer w.Kill()
	s.expectEvent(t, w, "first-event", 10*time.Second)
}

// logsJoin looks for alice's session at the issuer in the relay's audit log and
// in the API server's: by it one finds in one log what the other tells.
func (s *stage) logsJoin(t *testing.T) {
	t.Helper()
	events, err := s.Kubernetes.Audit()
	if err != nil {
		t.Fatal(err)
	}
	sids := map[string]bool{}
	for _, e := range events {
		if e.User.Username == "oidc:"+canaryEmail {
			for _, sid := range e.User.Extra["zt-daemon.github.io/sid"] {
				sids[sid] = true
			}
		}
	}
	if !slices.ContainsFunc(s.relayAudit(t), func(e lab.RelayEvent) bool {
		return e.Event == "login" && e.Name == canaryEmail && sids[e.SID]
	}) {
		t.Errorf("the sid of alice's login at the relay is none of those in the API server's audit log: %v", sids)
	}
}

// watch starts `kubectl get configmaps -w` as alice and waits until it shows
// what is there.
func (s *stage) watch(t *testing.T, name string) *lab.Process {
	t.Helper()
	w, err := s.alice.StartKubectl(name, "--context", s.KubeContext(), "-n", canaryNamespace, "get", "configmaps", "-w")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Kill)
	if _, err := w.WaitText(s.within(t, 30*time.Second), canaryConfigMap); err != nil {
		t.Fatal(err)
	}
	return w
}

// expectEvent makes a config map beside the API server, as its administrator,
// and waits until the watch shows it.
func (s *stage) expectEvent(t *testing.T, w *lab.Process, name string, within time.Duration) {
	t.Helper()
	s.makeConfigMap(t, name)
	begin := time.Now()
	if _, err := w.WaitText(s.within(t, within), name); err != nil {
		t.Fatalf("the watch did not show %s: %v", name, err)
	}
	t.Logf("the watch showed %s after %s", name, time.Since(begin).Round(time.Millisecond))
}

func (s *stage) makeConfigMap(t *testing.T, name string) {
	t.Helper()
	if err := s.Kubernetes.Kubectl(s.within(t, 20*time.Second), nil, "-n", canaryNamespace, "create", "configmap", name).OK(); err != nil {
		t.Fatal(err)
	}
}

func (s *stage) bobRefused(t *testing.T) {
	if _, err := s.bob.Login(s.within(t, time.Minute), "bob"); err != nil {
		t.Fatalf("bob's login, which only the cluster refuses: %v", err)
	}
	r := s.bob.Kubectl(s.within(t, 30*time.Second), "--context", s.KubeContext(), "get", "namespaces")
	if r.Code == 0 {
		t.Fatalf("bob reads namespaces: %v", r)
	}
	t.Logf("%v", r)
	for _, want := range []string{"bob@canary.example", canaryCluster} {
		if !strings.Contains(r.Stderr, want) {
			t.Errorf("kubectl's error does not name %s: %v", want, r)
		}
	}
	c := s.bob.ZT(s.within(t, 15*time.Second), "credential", s.ClusterName())
	if c.Code != 5 || !strings.Contains(c.Stderr, "policy") {
		t.Errorf("credential: want exit code 5 and a reason, got %v", c)
	}
	if st := s.bob.ZT(s.within(t, 15*time.Second), "status"); st.OK() != nil || !strings.Contains(st.Stdout, "refused") {
		t.Errorf("status: %v", st)
	}
	if !slices.ContainsFunc(s.relayAudit(t), func(e lab.RelayEvent) bool {
		return e.Event == "refused" && e.Name == "bob@canary.example" && e.Reason == "denied_by_policy"
	}) {
		t.Error("the relay's audit log has no refusal of bob by policy")
	}
}

func (s *stage) relayAudit(t *testing.T) []lab.RelayEvent {
	t.Helper()
	events, err := s.Relay.Audit()
	if err != nil {
		t.Fatal(err)
	}
	return events
}

// otherUser connects to alice's loopback port as another user of her machine.
func (s *stage) otherUser(t *testing.T) {
	port := s.clusterPort(t)
	ask := func(uid uint32) lab.Result {
		return s.lab.Run(s.within(t, 20*time.Second), lab.Command{
			Name: "ask", Namespace: s.Network.Laptop, User: &lab.User{UID: uid, GID: uid}, Env: []string{"HOME=/nonexistent", "PATH=/usr/bin:/bin"}, Dir: "/",
			Args: []string{s.KubectlProgram, "--kubeconfig=/dev/null", "--insecure-skip-tls-verify", fmt.Sprintf("--server=https://127.0.0.1:%d", port),
				"--token=of-nobody", "--request-timeout=5s", "get", "--raw", "/readyz"},
		})
	}
	// The API server refuses the token; that it answers is what is asked here.
	answered := func(r lab.Result) bool {
		return strings.Contains(r.Stderr, "logged in") || strings.Contains(r.Stderr, "Unauthorized")
	}
	if r := ask(aliceUID); !answered(r) {
		t.Fatalf("alice's own connection: %v", r)
	}
	for who, uid := range map[string]uint32{"another user": otherUID, "root": 0} {
		if r := ask(uid); r.Code == 0 || answered(r) {
			t.Errorf("%s's connection: %v", who, r)
		}
	}
}

// clusterPort is alice's loopback port of the cluster.
func (s *stage) clusterPort(t *testing.T) int {
	t.Helper()
	r := s.alice.ZT(s.within(t, 15*time.Second), "clusters", "-o", "json")
	if err := r.OK(); err != nil {
		t.Fatal(err)
	}
	var clusters []struct {
		Name string
		Port int
	}
	if err := json.Unmarshal([]byte(r.Stdout), &clusters); err != nil {
		t.Fatalf("clusters -o json: %v: %v", err, r)
	}
	for _, c := range clusters {
		if c.Name == canaryCluster {
			return c.Port
		}
	}
	t.Fatalf("clusters -o json has no %s: %v", canaryCluster, r)
	return 0
}

// chromium logs alice in on a laptop of her own, through a real browser.
func (s *stage) chromium(t *testing.T) {
	p, err := s.NewLaptop("browser", aliceUID)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.lab.StartChromium(s.within(t, time.Minute), lab.ChromiumConfig{
		Namespace: p.Namespace, User: p.User, Dir: p.Home, Pins: []string{s.Issuer.Pin},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	g, err := p.BeginLogin(s.within(t, time.Minute), s.LoginURL)
	if err != nil {
		t.Fatal(err)
	}
	page, err := b.LogIn(s.within(t, time.Minute), g.URL, "alice")
	if err != nil {
		t.Fatalf("%v; the command said:\n%s", err, g.Process.Output())
	}
	t.Logf("the browser ends at %q, which says: %q", page.Title, page.Text)
	if strings.Contains(page.URL, "code=") {
		t.Errorf("the last page's URL, which stays in the browser's history, holds the code")
	}
	if err := g.Wait(s.within(t, 30*time.Second)).OK(); err != nil {
		t.Fatal(err)
	}
	r := p.Kubectl(s.within(t, 30*time.Second), "--context", s.KubeContext(), "get", "namespaces")
	if r.OK() != nil || !strings.Contains(r.Stdout, canaryNamespace) {
		t.Errorf("kubectl after the browser's login: %v", r)
	}
	if r := p.ZT(s.within(t, 15*time.Second), "logout"); r.OK() != nil {
		t.Errorf("logout: %v", r)
	}
	if r := p.Kubectl(s.within(t, 30*time.Second), "--context", s.KubeContext(), "get", "namespaces"); r.Code == 0 {
		t.Errorf("kubectl after logout: %v", r)
	}
	if r := p.ZT(s.within(t, 15*time.Second), "credential", s.ClusterName()); r.Code != 3 {
		t.Errorf("credential after logout: want exit code 3, got %v", r)
	}
	if r := p.ZT(s.within(t, 15*time.Second), "down"); r.OK() != nil {
		t.Errorf("down: %v", r)
	}
}

// relayRestart kills the relay under an open watch. kubectl does not open a
// watch again by itself: if it lives and shows what happened later, its one TCP
// stream has lived.
func (s *stage) relayRestart(t *testing.T) {
	w := s.watch(t, "watch-restart")
	s.Relay.Process.Kill()
	time.Sleep(4 * time.Second) // longer than "3 s without an answer = lost"
	s.makeConfigMap(t, "while-the-relay-was-down")
	if err := s.Relay.Start(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.expectEvent(t, w, "after-the-restart", 30*time.Second)
	if !strings.Contains(w.Output(), "while-the-relay-was-down") {
		t.Errorf("the watch lost what happened meanwhile:\n%s", w.Output())
	}
	if _, exited := w.Exited(); exited {
		t.Errorf("the watch ended:\n%s", w.Output())
	}
	if out := s.kubectl(t, "get", "namespaces"); !strings.Contains(out, "kube-system") {
		t.Errorf("get namespaces: %s", out)
	}
}

// expectCut waits for the watch's end and says how long it took.
func (s *stage) expectCut(t *testing.T, w *lab.Process, begin time.Time) {
	t.Helper()
	select {
	case <-w.Done():
		t.Logf("the watch was cut after %s and said: %s", time.Since(begin).Round(time.Millisecond), w.Tail(2))
	case <-time.After(10*time.Second - time.Since(begin)):
		t.Fatalf("the watch is open after %s", time.Since(begin))
	}
}

func (s *stage) policyCut(t *testing.T) {
	w := s.watch(t, "watch-policy")
	before, err := os.ReadFile(s.Node.PolicyFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the policy was:\n%s", before)
	begin := time.Now()
	if err := s.Node.EditPolicy(func(text string) string { return strings.ReplaceAll(text, "developers", "nobody") }); err != nil {
		t.Fatal(err)
	}
	s.expectCut(t, w, begin)
	r := s.alice.Kubectl(s.within(t, 30*time.Second), "--context", s.KubeContext(), "get", "namespaces")
	if r.Code == 0 || !strings.Contains(r.Stderr, canaryEmail) {
		t.Errorf("without a right: %v", r)
	}
	t.Logf("%v", r)
	if c := s.alice.ZT(s.within(t, 15*time.Second), "credential", s.ClusterName()); c.Code != 5 {
		t.Errorf("credential without a right: want exit code 5, got %v", c)
	}
	// A broken policy keeps the rules there are.
	if err := s.Node.EditPolicy(func(text string) string { return text + "\nrulez: []\n" }); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Node.Process.WaitText(s.within(t, 20*time.Second), "rulez"); err != nil {
		t.Errorf("the node does not say what is wrong with its policy: %v", err)
	}
	if err := s.Node.EditPolicy(func(string) string { return string(before) }); err != nil {
		t.Fatal(err)
	}
	// A refusal may be remembered for 30 seconds.
	if err := lab.Eventually(s.within(t, 60*time.Second), func(ctx context.Context) error {
		return s.alice.Kubectl(ctx, "--context", s.KubeContext(), "get", "namespaces").OK()
	}); err != nil {
		t.Errorf("the right was given back: %v", err)
	}
}

func (s *stage) nothingLeft(t *testing.T) {
	if err := s.lab.Close(); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), fmt.Sprint(os.Getpid())) {
			t.Errorf("namespace %s is left", e.Name())
		}
	}
	// Reports of the race detector in what was built with it.
	logs, err := filepath.Glob(filepath.Join(s.lab.Dir, "log", "*.log"))
	if err != nil {
		t.Error(err)
	}
	for _, f := range logs {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Error(err)
		}
		for _, bad := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
			if at := strings.Index(string(b), bad); at >= 0 {
				t.Errorf("%s: %.2000s", f, b[at:])
			}
		}
	}
}
