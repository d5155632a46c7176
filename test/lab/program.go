package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ModuleDir is the root of this repository: where the go command, run in the
// current directory, finds go.mod.
func ModuleDir(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	file := strings.TrimSpace(string(out))
	if filepath.Base(file) != "go.mod" {
		return "", fmt.Errorf("find the repository: no go.mod above the current directory")
	}
	return filepath.Dir(file), nil
}

// BuildPrograms builds zt-relay and zt-daemon into the lab's bin directory,
// which it returns.
func (l *Lab) BuildPrograms(ctx context.Context, module string, flags ...string) (string, error) {
	defer l.During("building zt-relay and zt-daemon")()
	bin := filepath.Join(l.Dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return "", fmt.Errorf("build zt: %w", err)
	}
	args := append([]string{"go", "build", "-o", bin + string(filepath.Separator)}, flags...)
	r := l.Run(ctx, Command{Name: "go build", Dir: module, Args: append(args, "./cmd/zt-relay", "./cmd/zt-daemon")})
	if err := r.OK(); err != nil {
		return "", fmt.Errorf("build zt: %w", err)
	}
	return bin, nil
}

// BuiltKubernetes is where test/kubernetes/build.sh puts, or has put, its
// executable. It builds nothing.
func BuiltKubernetes(module string) (path string, exists bool, err error) {
	sum := sha256.New()
	for _, name := range []string{"go.mod", "go.sum", "informer.go", "main.go"} {
		b, err := os.ReadFile(filepath.Join(module, "test", "kubernetes", name))
		if err != nil {
			return "", false, fmt.Errorf("find the Kubernetes executable: %w", err)
		}
		sum.Write(b)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", false, fmt.Errorf("find the Kubernetes executable: %w", err)
	}
	path = filepath.Join(cache, "zt-kubernetes", "kubernetes-"+hex.EncodeToString(sum.Sum(nil))[:16])
	_, err = os.Stat(path)
	return path, err == nil, nil
}

// BuildKubernetes is the Kubernetes executable, built if it is not there yet:
// about eight minutes on two idle cores, once for each version.
func (l *Lab) BuildKubernetes(ctx context.Context, module string) (string, error) {
	path, exists, err := BuiltKubernetes(module)
	if err != nil || exists {
		return path, err
	}
	defer l.During("building the real Kubernetes from its Go modules, once: about 8 minutes on two idle cores, 6 GB of caches")()
	r := l.Run(ctx, Command{Name: "build.sh", Args: []string{"sh", filepath.Join(module, "test", "kubernetes", "build.sh")}})
	if err := r.OK(); err != nil {
		return "", fmt.Errorf("build Kubernetes: %w", err)
	}
	if got := strings.TrimSpace(r.Stdout); got != path {
		return "", fmt.Errorf("build Kubernetes: build.sh made %s, want %s: its hash and BuiltKubernetes' differ", got, path)
	}
	return path, nil
}

// BuildHelm is the Helm executable, built if it is not there yet: about two
// minutes on two idle cores, once for each version.
func (l *Lab) BuildHelm(ctx context.Context, module string) (string, error) {
	defer l.During("finding Helm; if it is not there yet, building it from its Go modules: about 2 minutes on two idle cores")()
	r := l.Run(ctx, Command{Name: "build.sh", Args: []string{"sh", filepath.Join(module, "test", "helm", "build.sh")}})
	if err := r.OK(); err != nil {
		return "", fmt.Errorf("build Helm: %w", err)
	}
	return strings.TrimSpace(r.Stdout), nil
}

// BuildImage writes the container image of zt-daemon as an archive.
func (l *Lab) BuildImage(ctx context.Context, module, name string) (file string, err error) {
	defer l.During("building the image " + name)()
	file = filepath.Join(l.Dir, "zt-image.tar")
	r := l.Run(ctx, Command{Name: "image", Dir: module, Args: []string{"go", "run", "./deploy/image", "-name", name, "-out", file}})
	if err := r.OK(); err != nil {
		return "", fmt.Errorf("build the image: %w", err)
	}
	return file, nil
}
