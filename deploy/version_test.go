package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestVersion runs version.sh in a repository of its own.
func TestVersion(t *testing.T) {
	var chart struct{ AppVersion string }
	text, err := os.ReadFile("helm/zt/Chart.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &chart); err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("version.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "helm", "zt"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("version.sh", script)
	write("helm/zt/Chart.yaml", text)
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.test"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	want := func(want string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", filepath.Join(dir, "version.sh"))
		cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
		out, err := cmd.Output()
		if got := strings.TrimSpace(string(out)); got != want || (err == nil) != (want != "") {
			t.Errorf("version %q (%v), want %q", got, err, want)
		}
	}
	want(chart.AppVersion + "-dev") // no repository
	git("init", "--quiet")
	git("add", ".")
	git("commit", "--quiet", "--message", "first")
	development := chart.AppVersion + "-dev.g" + git("rev-parse", "--short=12", "HEAD")
	want(development)
	git("tag", "no-version")
	git("tag", "v"+chart.AppVersion)
	want(chart.AppVersion)
	write("new", nil)
	want(development + ".dirty")
	git("add", ".")
	git("commit", "--quiet", "--message", "second")
	git("tag", "v999.0.0")
	want("")
}
