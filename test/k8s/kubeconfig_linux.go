package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/zt-daemon/zt/test/lab"
)

// viaProxy is what follows "zt-" in the name of alice's second context of the first
// cluster.
const viaProxy = "c1-proxy"

// ownKubeconfig is one that a person keeps in order.
const ownKubeconfig = `# Mine. Keep the order.
apiVersion: v1
kind: Config

preferences: {}
current-context: home   # the one under the desk

clusters:
# under the desk
- name: home
  cluster: {server: "https://192.168.1.9:6443", insecure-skip-tls-verify: true}

contexts:
- name: home
  context:
    cluster: home
    user: me              # never admin

users:
- name: me
  user: {username: me, password: "not really"}
`

// kubeconfigs has zt-daemon write kubeconfigs in all of its forms, and real
// kubectls use them.
func kubeconfigs(ctx context.Context, b *bed) error {
	if err := b.alice.ZT(ctx, "kubeconfig", b.c1.Name, "--via", "proxy", "--context-name", "zt-"+viaProxy).OK(); err != nil {
		return err
	}
	if err := b.lab.Run(ctx, b.kubectl(via{}, viaProxy, "get", "namespaces")).OK(); err != nil {
		return err
	}
	for _, k := range b.kubectls {
		b.check(ctx, "--via proxy: the entry names the API server, and get answers", via{kubectl: k}, 30*time.Second, func(ctx context.Context) (string, error) {
			return "", b.proxied(ctx, via{kubectl: k})
		})
		for _, transport := range []string{webSocket, spdy} {
			v := via{kubectl: k, transport: transport}
			b.check(ctx, "--via proxy: exec with standard input and exit code", v, 30*time.Second, func(ctx context.Context) (string, error) {
				return "", b.proxiedExec(ctx, v)
			})
			b.check(ctx, "--via proxy: port-forward", v, 30*time.Second, func(ctx context.Context) (string, error) {
				return "", b.proxiedForward(ctx, v)
			})
		}
	}
	file := filepath.Join(b.alice.Home, "own.yaml")
	err := os.WriteFile(file, []byte(ownKubeconfig), 0o600)
	if err == nil {
		err = os.Chown(file, aliceUID, aliceUID)
	}
	if err != nil {
		return err
	}
	b.check(ctx, "two clusters in a file of one's own: both answer, all else is as it was", via{kubectl: b.kubectls[0]}, time.Minute, func(ctx context.Context) (string, error) {
		return "", b.merged(ctx, file)
	})
	b.check(ctx, "--print gives a file of its own", via{kubectl: b.kubectls[0]}, 30*time.Second, func(ctx context.Context) (string, error) {
		r := b.alice.ZT(ctx, "kubeconfig", b.c2.Name, "--print")
		if err := r.OK(); err != nil {
			return "", err
		}
		printed := filepath.Join(b.alice.Home, "printed.yaml")
		if err := os.WriteFile(printed, []byte(r.Stdout), 0o644); err != nil {
			return "", err
		}
		return "", b.isCluster(ctx, b.c2, printed)
	})
	b.check(ctx, "--remove leaves the file as it was before", via{}, 30*time.Second, func(ctx context.Context) (string, error) {
		if err := b.alice.ZT(ctx, "kubeconfig", "--remove", b.c1.Name, b.c2.Name, "--kubeconfig", file).OK(); err != nil {
			return "", err
		}
		text, err := os.ReadFile(file)
		if err == nil && string(text) != ownKubeconfig {
			err = fmt.Errorf("it is now:\n%s", text)
		}
		return "", err
	})
	b.check(ctx, "--set-current", via{kubectl: b.kubectls[0]}, 30*time.Second, func(ctx context.Context) (string, error) {
		if err := b.alice.ZT(ctx, "kubeconfig", b.c2.Name, "--kubeconfig", file, "--set-current").OK(); err != nil {
			return "", err
		}
		return "", b.currentIs(ctx, file, "zt-"+b.c2.Name)
	})
	return nil
}

// proxied looks at the entry, and uses it.
func (b *bed) proxied(ctx context.Context, v via) error {
	r := b.lab.Run(ctx, b.kubectl(v, viaProxy, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server} {.clusters[0].cluster.proxy-url}"))
	if err := errors.Join(r.OK(), want(r.Stdout, "https://kubernetes.default.svc http://127.0.0.1:")); err != nil {
		return err
	}
	r = b.lab.Run(ctx, b.kubectl(v, viaProxy, "get", "nodes", "-o", "name"))
	if n := strings.Count(r.Stdout, "node/machine"); n != len(b.c1.Machines) {
		return fmt.Errorf("%d machines, want %d: %v", n, len(b.c1.Machines), r)
	}
	return r.OK()
}

func (b *bed) proxiedExec(ctx context.Context, v via) error {
	c := b.kubectl(v, viaProxy, "--namespace", play, "exec", "-i", "box", "--", "sh", "-c", "read word; echo heard $word; exit 7")
	c.Stdin = strings.NewReader("this\n")
	if r := b.lab.Run(ctx, c); r.Code != 7 || r.Stdout != "heard this\n" {
		return fmt.Errorf("want exit code 7 and what was said: %v", r)
	}
	return nil
}

func (b *bed) proxiedForward(ctx context.Context, v via) error {
	c := b.kubectl(v, viaProxy, "--namespace", play, "port-forward", "pod/box", ":9000")
	c.Name = named("forward-proxied", v)
	p, err := b.lab.Start(c)
	if err != nil {
		return err
	}
	defer p.Kill()
	out, err := p.WaitOutput(ctx, "its port", forwardLine.MatchString)
	if err != nil {
		return err
	}
	conn, err := b.Network.Laptop.DialContext(ctx, "tcp", forwardLine.FindStringSubmatch(out)[1])
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	const said = "said through two proxies"
	if _, err := io.WriteString(conn, said); err != nil {
		return err
	}
	heard := make([]byte, len(said))
	if _, err := io.ReadFull(conn, heard); err != nil || string(heard) != said {
		return fmt.Errorf("heard %q, want %q (%v)", heard, said, err)
	}
	return nil
}

// merged writes both clusters into a file, and looks at what became of it.
func (b *bed) merged(ctx context.Context, file string) error {
	if err := b.alice.ZT(ctx, "kubeconfig", b.c1.Name, b.c2.Name, "--kubeconfig", file).OK(); err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	rest := string(text)
	for line := range strings.Lines(ownKubeconfig) {
		var found bool
		if _, rest, found = strings.Cut(rest, line); !found {
			return fmt.Errorf("the line %q is gone, or not in its place:\n%s", line, text)
		}
	}
	for _, c := range []*lab.Cluster{b.c1, b.c2} {
		if err := b.isCluster(ctx, c, file, "--context", "zt-"+c.Name); err != nil {
			return err
		}
	}
	return b.currentIs(ctx, file, "home")
}

// with is a kubectl of alice's with that file.
func (b *bed) with(file string, args ...string) lab.Command {
	return b.alice.Command("kubectl", append([]string{b.kubectls[0].program, "--kubeconfig", file}, args...))
}

// isCluster is nil if it is that cluster which answers.
func (b *bed) isCluster(ctx context.Context, c *lab.Cluster, file string, flags ...string) error {
	var namespace struct{ Metadata struct{ UID string } }
	if err := c.Object(ctx, "/api/v1/namespaces/kube-system", &namespace); err != nil {
		return err
	}
	r := b.lab.Run(ctx, b.with(file, append(flags, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")...))
	return errors.Join(r.OK(), want(r.Stdout, namespace.Metadata.UID))
}

func (b *bed) currentIs(ctx context.Context, file, name string) error {
	r := b.lab.Run(ctx, b.with(file, "config", "current-context"))
	if got := strings.TrimSpace(r.Stdout); r.Code != 0 || got != name {
		return fmt.Errorf("the current context is %q, want %q: %v", got, name, r)
	}
	return nil
}
