//go:build e2e && linux

package test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/test/lab"
)

// TestImage imports the image into containerd, and runs it as a pod that is
// allowed nothing does: as its own user, without a home directory, a capability,
// a file to write, or any file but the program.
func TestImage(t *testing.T) {
	for _, tool := range []string{"containerd", "ctr", "runc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("cannot run an image: %v (Debian: apt-get install containerd runc)", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "zt-image-") // shorter than t.TempDir: containerd's socket is in it
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(lab.Config{Dir: dir, Say: func(d time.Duration, text string) { t.Logf("%6.1fs %s", d.Seconds(), text) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	module, err := lab.ModuleDir(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const name = "registry.test/zt-daemon:1.2.3"
	archive := filepath.Join(dir, "image.tar")
	if err := l.Run(ctx, lab.Command{Name: "image", Dir: module, Args: []string{
		"go", "run", "./deploy/image", "-name", "registry.test/zt-daemon", "-version", "1.2.3", "-out", archive,
	}}).OK(); err != nil {
		t.Fatal(err)
	}

	ctr := startContainerd(ctx, t, l)
	ctr("images", "import", archive)
	if list := ctr("images", "ls", "name=="+name); !strings.Contains(list, name+" ") || !strings.Contains(list, "linux/amd64,linux/arm64") {
		t.Errorf("images: %s, want %s for two platforms", list, name)
	}
	run := []string{"run", "--rm", "--read-only", "--seccomp", "--net-host"}
	for _, capability := range []string{
		"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
	} {
		run = append(run, "--cap-drop", "CAP_"+capability)
	}
	want := fmt.Sprintf("zt-daemon 1.2.3 (%s, linux/%s)\n", runtime.Version(), runtime.GOARCH)
	if got := ctr(append(run, name, "version", "/zt-daemon", "version")...); got != want {
		t.Errorf("version: %q, want %q", got, want)
	}
	if got := ctr(append(run, name, "help")...); !strings.Contains(got, "Usage:\n  zt-daemon") {
		t.Errorf("without a command: %q", got)
	}

	files := filepath.Join(dir, "node")
	writeNode(t, files)
	metrics := freeAddress(t)
	run = append(run, "--mount", "type=bind,src="+files+",dst=/etc/zt,options=rbind:ro", "--env", "HOME=")
	node, err := l.Start(lab.Command{Name: "node", Grace: 10 * time.Second, Args: append(append(ctrCommand(l), run...),
		name, "node", "/zt-daemon", "node", "--dir", "/etc/zt", "--metrics", metrics)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // what is not a child of ctr
		exec.Command(ctrCommand(l)[0], append(ctrCommand(l)[1:], "task", "kill", "--signal", "SIGKILL", "node")...).Run()
	})
	if _, err := node.WaitText(ctx, `msg="policy in force" rules=1`); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !strings.Contains(string(body), "process_resident_memory_bytes") {
		t.Errorf("metrics: %v\n%s", err, body)
	}
	pid := ""
	for line := range strings.Lines(ctr("task", "ls")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "node" {
			pid = f[1]
		}
	}
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"Uid:\t65532\t65532\t65532\t65532\n", "Gid:\t65532\t65532\t65532\t65532\n", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n", "Seccomp:\t2\n"} {
		if !strings.Contains(string(status), line) {
			t.Errorf("the process has not %q:\n%s", line, status)
		}
	}
	ctr("task", "kill", "--signal", "SIGTERM", "node")
	select {
	case <-node.Done():
	case <-ctx.Done():
	}
	if code, exited := node.Exited(); !exited || code != 0 {
		t.Errorf("after SIGTERM: exit code %d (%t)\n%s", code, exited, node.Tail(20))
	}
}

func ctrCommand(l *lab.Lab) []string {
	return []string{"ctr", "--address", filepath.Join(l.Dir, "s"), "--namespace", "k8s.io"}
}

// startContainerd starts one of the test's own. The function it returns runs ctr
// with it.
func startContainerd(ctx context.Context, t *testing.T, l *lab.Lab) (ctr func(args ...string) string) {
	t.Helper()
	config := filepath.Join(l.Dir, "containerd.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(l.Dir, "root"), filepath.Join(l.Dir, "state"), filepath.Join(l.Dir, "s"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	containerd, err := l.Start(lab.Command{Name: "containerd", Args: []string{"containerd", "--config", config}, Grace: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := containerd.WaitFor(ctx, "an answer", func(ctx context.Context) error {
		return l.Run(ctx, lab.Command{Name: "ctr", Args: append(ctrCommand(l), "version")}).OK()
	}); err != nil {
		t.Skipf("cannot run containerd (needs root): %v", err)
	}
	return func(args ...string) string {
		t.Helper()
		r := l.Run(ctx, lab.Command{Name: "ctr", Args: append(ctrCommand(l), args...)})
		if err := r.OK(); err != nil {
			t.Fatal(err)
		}
		return r.Stdout
	}
}

// writeNode writes the files of a node whose relay is not there, as a projected
// volume has them.
func writeNode(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 0, 65532); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"cluster.key": string(key.NewCluster().PEM()),
		"node.yaml":   "network: kq3v7m2xw5r6p4dzs5fog7h2j3k4l5m6\ncluster: c1\nrelay: https://127.0.0.1:9\nupstream: 127.0.0.1:9\n",
		"policy.yaml": `issuers: [{url: "https://127.0.0.1:9", clientID: zt}]
rules: [{name: first, issuer: "https://127.0.0.1:9", everyone: true, windows: [{from: "08:00", to: "18:00", zone: Asia/Kathmandu}]}]
`,
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o440); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, 0, 65532); err != nil {
			t.Fatal(err)
		}
	}
}

// freeAddress is an address of loopback where nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
}
