package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/zt-daemon/zt/test/issuer"
)

// Laptop is one person's machine: a home directory, a user of the operating
// system, a daemon once it is wanted. What runs on it sees no other
// environment than Env.
type Laptop struct {
	Name       string
	Home       string
	Kubeconfig string
	Env        []string
	Namespace  *Namespace
	User       *User

	scene *Scene
}

// NewLaptop makes a laptop. In a network of the lab it stands where the laptop
// does and its person is uid, an ordinary user; elsewhere it is this one, and
// uid does not count.
func (s *Scene) NewLaptop(name string, uid uint32) (*Laptop, error) {
	p := &Laptop{Name: name, Home: filepath.Join(s.Lab.Dir, "home-"+name), scene: s}
	p.Kubeconfig = filepath.Join(p.Home, ".kube", "config")
	runtime := filepath.Join(p.Home, "run")
	dirs := []string{p.Home, runtime, filepath.Join(p.Home, ".kube")}
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make laptop %s: %w", name, err)
		}
	}
	if s.Network != nil {
		p.Namespace, p.User = s.Network.Laptop, &User{UID: uid, GID: uid}
		for _, d := range dirs {
			if err := os.Chown(d, int(uid), int(uid)); err != nil {
				return nil, fmt.Errorf("make laptop %s: %w", name, err)
			}
		}
	}
	p.Env = []string{"HOME=" + p.Home, "USER=" + name, "LANG=C.UTF-8", "KUBECONFIG=" + p.Kubeconfig,
		"XDG_RUNTIME_DIR=" + runtime, "PATH=" + s.Bin + string(os.PathListSeparator) + os.Getenv("PATH")}
	return p, nil
}

// Command is one that runs on the laptop as its person. env is added to the
// environment.
func (p *Laptop) Command(name string, args []string, env ...string) Command {
	return Command{Name: name, Args: args, Env: slices.Concat(p.Env, env), Dir: p.Home, Namespace: p.Namespace, User: p.User}
}

// At is the same person with the same files on another machine of the lab, with
// another kubeconfig.
func (p *Laptop) At(namespace *Namespace, kubeconfig string) *Laptop {
	other := *p
	other.Namespace, other.Kubeconfig = namespace, kubeconfig
	other.setenv("KUBECONFIG", kubeconfig)
	return &other
}

// ZT runs zt-daemon with args to its end.
func (p *Laptop) ZT(ctx context.Context, args ...string) Result {
	return p.scene.Lab.Run(ctx, p.Command("zt-daemon", append([]string{p.scene.program("zt-daemon")}, args...)))
}

// Kubectl runs kubectl with args to its end.
func (p *Laptop) Kubectl(ctx context.Context, args ...string) Result {
	return p.scene.Lab.Run(ctx, p.Command("kubectl", append([]string{p.scene.KubectlProgram}, args...)))
}

// StartKubectl runs kubectl with args until it is stopped; its output goes to
// the log file of the given name.
func (p *Laptop) StartKubectl(name string, args ...string) (*Process, error) {
	return p.scene.Lab.Start(p.Command(name, append([]string{p.scene.KubectlProgram}, args...)))
}

var loginURL = regexp.MustCompile(`https?://\S+[?&]code_challenge=\S+`)

// Login is a `zt-daemon login` that waits for its browser.
type Login struct {
	// URL is what the browser must open.
	URL     string
	Process *Process
}

// BeginLogin starts `zt-daemon login --no-browser` and waits for the URL it
// prints.
func (p *Laptop) BeginLogin(ctx context.Context, address string) (*Login, error) {
	c := p.Command("login-"+p.Name, []string{p.scene.program("zt-daemon"), "login", "--no-browser", address})
	process, err := p.scene.Lab.Start(c)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := process.WaitOutput(ctx, "the URL for the browser", loginURL.MatchString)
	if err != nil {
		process.Kill()
		return nil, err
	}
	return &Login{URL: loginURL.FindString(out), Process: process}, nil
}

// Wait waits for the command's end. Its output is all in Stdout.
func (g *Login) Wait(ctx context.Context) Result {
	begin := time.Now()
	r := Result{Args: []string{"zt-daemon", "login"}, Code: -1}
	select {
	case <-g.Process.Done():
		r.Code, _ = g.Process.Exited()
	case <-ctx.Done():
		r.Err = fmt.Errorf("login has not ended: %w", context.Cause(ctx))
		g.Process.Kill()
	}
	r.Stdout, r.Elapsed = g.Process.Output(), time.Since(begin)
	return r
}

// Visit plays the browser's part of a login as user, on this laptop.
func (p *Laptop) Visit(ctx context.Context, url, user string) (finalURL string, err error) {
	browser, err := p.scene.Issuer.Browser(p.Namespace)
	if err != nil {
		return "", err
	}
	return issuer.Visit(ctx, browser, url, user)
}

// Login logs in as user: the command, the browser's part, the command's end.
func (p *Laptop) Login(ctx context.Context, user string) (Result, error) {
	g, err := p.BeginLogin(ctx, p.scene.LoginURL)
	if err != nil {
		return Result{}, err
	}
	if _, err := p.Visit(ctx, g.URL, user); err != nil {
		g.Process.Kill()
		return Result{}, fmt.Errorf("log in as %s: %w; the command said:\n%s", user, err, g.Process.Output())
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r := g.Wait(ctx)
	return r, r.OK()
}

// IDTokens are the ID tokens that this laptop's files hold now, found by their
// look: what must never be seen on a wire.
func (p *Laptop) IDTokens() ([]string, error) {
	var all []string
	err := filepath.WalkDir(p.Home, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		all = append(all, jws.FindAllString(string(b), -1)...)
		return nil
	})
	return all, err
}

// jws is a compact JWS whose payload is JSON.
var jws = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{40,}`)

// Signature is the last segment of a compact JWS.
func Signature(token string) string { return token[strings.LastIndexByte(token, '.')+1:] }
