package lab

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/test/issuer"
)

// TestCluster runs a pod on a real kubelet, and looks from inside at what every
// pod of a cluster has.
func TestCluster(t *testing.T) {
	program := builtKubernetes(t)
	for _, tool := range []string{"ip", "nft", "containerd", "ctr", "runc", "busybox", "conntrack", "/usr/lib/cni/bridge"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("cannot run a kubelet: %v", err)
		}
	}
	if err := checkCgroups(); err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	l := newLab(t)
	n, err := l.NewNetwork(ctx)
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("cannot make a network namespace (needs root or CAP_SYS_ADMIN): %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	ca, err := NewAuthority("zt lab CA")
	if err != nil {
		t.Fatal(err)
	}
	i, err := l.StartIssuer(ca, n.Issuer, IssuerHost+":443", issuer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	images, err := l.WritePodImages(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := l.StartCluster(ctx, ClusterConfig{Name: "c1", Program: program, Site: n.ClusterSite(), Machines: 1, Images: images, Issuer: i.For(issuer.APIServerClient)})
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		r := k.Kubectl(ctx, nil, args...)
		if err := r.OK(); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(r.Stdout)
	}
	if err := Eventually(ctx, func(ctx context.Context) error {
		return k.Kubectl(ctx, nil, "get", "serviceaccount", "default").OK()
	}); err != nil {
		t.Fatal(err)
	}
	run("run", "p1", "--image="+PodImage, "--labels=app=p1", "--overrides", `{"spec":{"containers":[{"name":"p1","image":"`+PodImage+`","resources":{"limits":{"memory":"64Mi"}},
		"command":["sh","-c","echo hello; exec tail -f /dev/null"]}]}}`)
	run("wait", "--for=condition=Ready", "pod/p1", "--timeout=60s")
	if got := run("logs", "p1"); got != "hello" {
		t.Errorf("logs: %q", got)
	}
	if got := run("exec", "p1", "--", "nslookup", "-type=a", "kubernetes.default.svc.cluster.local"); !strings.Contains(got, serviceHost) {
		t.Errorf("the pod does not resolve its API server: %q", got)
	}
	if got := run("exec", "p1", "--", "sh", "-c", "nc -w 5 kubernetes.default.svc 443 -e true && echo reached"); got != "reached" {
		t.Errorf("the pod does not reach its API server: %q", got)
	}
	if got := run("exec", "p1", "--", "sh", "-c", "nc -w 5 "+IssuerHost+" 443 -e true && echo reached"); got != "reached" {
		t.Errorf("the pod does not reach the internet: %q", got)
	}
	pods, err := k.Pods(ctx, "default", "app=p1")
	if err != nil || len(pods) != 1 || !pods[0].Ready() {
		t.Fatalf("pods: %+v, %v", pods, err)
	}
	m, err := k.Machine(pods[0].Spec.NodeName)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := m.Memory(pods[0], "tail"); err != nil || got.Limit != 64<<20 || got.Usage == 0 {
		t.Errorf("memory of the pod: %+v, %v", got, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(cgroupRoot, "*", m.cgroup)); err != nil || len(left) > 0 {
		t.Errorf("cgroups are left: %v, %v", left, err)
	}
}
