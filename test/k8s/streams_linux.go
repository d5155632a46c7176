package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/deploy"
	"github.com/zt-daemon/zt/test/lab"
)

// copyFile is what is copied both ways, in alice's home.
const copyFile = "large-file"

// streams does what upgrades a request to a stream of its own, with each kubectl
// and by both of the ways there are.
func streams(ctx context.Context, b *bed) error {
	for i, k := range b.kubectls {
		size := int64(1 << 30)
		if b.quick {
			size = 32 << 20
		} else if i > 0 {
			size = 256 << 20
		}
		sum, err := b.makeFile(size)
		if err != nil {
			return err
		}
		for _, transport := range []string{webSocket, spdy} {
			v := via{kubectl: k, transport: transport}
			before, err := b.upgrades()
			if err != nil {
				return err
			}
			for _, x := range []verb{
				{"exec", 30 * time.Second, execute},
				{"exec, exit code", 30 * time.Second, exitCode},
				{"exec, stdin", time.Minute, standardInput},
				{"exec, tty", 30 * time.Second, terminal},
				{"attach", 30 * time.Second, attach},
				{"debug", time.Minute, debug},
				{"cp to a pod, " + mebibytes(size), 5 * time.Minute, copyTo(size, sum)},
				{"cp from a pod, " + mebibytes(size), 5 * time.Minute, copyFrom(size, sum)},
				{"port-forward, 20 connections at once", time.Minute, portForward},
				{"port-forward, half-close", 30 * time.Second, halfClose},
				{"port-forward, the pod speaks and closes", 30 * time.Second, podCloses},
				{"port-forward, the pod dies", time.Minute, podDies},
			} {
				b.check(ctx, x.name, v, x.limit, func(ctx context.Context) (string, error) { return b.compare(ctx, x, v) })
			}
			b.check(ctx, "all streams were "+transport, v, time.Minute, func(context.Context) (string, error) {
				after, err := b.upgrades()
				if err != nil {
					return "", err
				}
				for _, t := range []string{webSocket, spdy} {
					if n := after[t] - before[t]; (n > 0) != (t == transport) {
						return "", fmt.Errorf("%d streams were %s", n, t)
					}
				}
				return fmt.Sprintf("%d streams", after[transport]-before[transport]), nil
			})
		}
	}
	return nil
}

// compare does what x says, and when that fails again without zt, so that one
// sees whose fault it is.
func (b *bed) compare(ctx context.Context, x verb, v via) (string, error) {
	figure, err := x.run(ctx, b, v)
	if err == nil || ctx.Err() != nil {
		return figure, err
	}
	v.direct = true
	if _, direct := x.run(ctx, b, v); direct != nil {
		return figure, fmt.Errorf("%w\nit fails without zt too: %v", err, direct)
	}
	return figure, fmt.Errorf("%w\nwithout zt it does not fail", err)
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

// makeFile makes copyFile, of bytes that do not compress.
func (b *bed) makeFile(size int64) (sum string, err error) {
	f, err := os.Create(filepath.Join(b.alice.Home, copyFile))
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, hash), rand.NewChaCha8([32]byte{1}), size); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), f.Close()
}

// upgrades counts alice's requests for streams so far, by how they were made: a
// WebSocket begins with a GET, SPDY with a POST.
func (b *bed) upgrades() (map[string]int, error) {
	events, err := b.c1.Audit()
	if err != nil {
		return nil, err
	}
	n := map[string]int{}
	for _, e := range events {
		if e.User.Username != "oidc:alice@example.test" {
			continue
		}
		switch e.ObjectRef.Subresource {
		case "exec", "attach", "portforward":
			n[map[string]string{"get": webSocket, "create": spdy}[e.Verb]]++
		}
	}
	return n, nil
}

func execute(ctx context.Context, b *bed, v via) (string, error) {
	out, err := b.run(ctx, v, "exec", "box", "--", "sh", "-c", "echo out; echo err >&2")
	if err == nil && out != "out\n" {
		err = fmt.Errorf("standard output is %q", out)
	}
	return "", err
}

func exitCode(ctx context.Context, b *bed, v via) (string, error) {
	r := b.lab.Run(ctx, b.kubectl(v, b.c1.Name, "--namespace", play, "exec", "box", "--", "sh", "-c", "exit 7"))
	if r.Code != 7 {
		return "", fmt.Errorf("want exit code 7: %v", r)
	}
	return "", nil
}

func standardInput(ctx context.Context, b *bed, v via) (string, error) {
	text := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(text) // never an error
	sum := sha256.Sum256(text)
	out, err := b.feed(ctx, v, string(text), "exec", "--stdin", "box", "--", "sha256sum")
	return "", errors.Join(err, want(out, hex.EncodeToString(sum[:])))
}

// terminal runs a shell on a terminal of 40 lines and 100 columns: script(1)
// makes the one on the laptop, kubectl has the kubelet make the one in the pod.
func terminal(ctx context.Context, b *bed, v via) (string, error) {
	c := b.kubectl(v, b.c1.Name, "--namespace", play, "exec", "--stdin", "--tty", "box", "--", "sh")
	line := "stty rows 40 cols 100 && exec " + deploy.Quote(c.Args)
	c.Args = []string{"script", "--quiet", "--return", "--command", line, "/dev/null"}
	c.Stdin = strings.NewReader("tty && stty size\nexit 5\n")
	r := b.lab.Run(ctx, c)
	if err := want(r.Stdout, "/dev/pts/", "40 100"); err != nil || r.Code != 5 {
		return "", fmt.Errorf("want a terminal and exit code 5: %w: %v", err, r)
	}
	return "", nil
}

func attach(ctx context.Context, b *bed, v via) (string, error) {
	word := named("word", v)
	// Its end would end the attachment before the answer.
	stdin, say, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer stdin.Close()
	defer say.Close()
	a, err := b.start(v, named("attach", v), stdin, "attach", "--stdin", "listener")
	if err != nil {
		return "", err
	}
	defer a.Kill()
	if _, err := io.WriteString(say, word+"\n"); err != nil {
		return "", err
	}
	_, err = a.WaitText(ctx, "heard "+word)
	return "", err
}

func debug(ctx context.Context, b *bed, v via) (string, error) {
	out, err := b.run(ctx, v, "debug", "box", "--quiet", "--image="+lab.PodImage, "--profile=general", "--attach", "--", "sh", "-c", "sleep 2; hostname")
	return "", errors.Join(err, want(out, "box"))
}

func rate(size int64, since time.Time) string {
	return fmt.Sprintf("%.0f MB/s", float64(size)/1e6/time.Since(since).Seconds())
}

func copyTo(size int64, sum string) func(context.Context, *bed, via) (string, error) {
	return func(ctx context.Context, b *bed, v via) (string, error) {
		begin := time.Now()
		if _, err := b.run(ctx, v, "cp", copyFile, "box:/data/"+copyFile); err != nil {
			return "", err
		}
		figure := rate(size, begin)
		out, err := b.run(ctx, v, "exec", "box", "--", "sha256sum", "/data/"+copyFile)
		return figure, errors.Join(err, want(out, sum))
	}
}

func copyFrom(size int64, sum string) func(context.Context, *bed, via) (string, error) {
	return func(ctx context.Context, b *bed, v via) (string, error) {
		const back = "returned-file"
		begin := time.Now()
		if _, err := b.run(ctx, v, "cp", "box:/data/"+copyFile, back); err != nil {
			return "", err
		}
		figure := rate(size, begin)
		f, err := os.Open(filepath.Join(b.alice.Home, back))
		if err != nil {
			return "", err
		}
		defer f.Close()
		hash := sha256.New()
		if _, err := io.Copy(hash, f); err != nil {
			return "", err
		}
		return figure, errors.Join(want(hex.EncodeToString(hash.Sum(nil)), sum), os.Remove(f.Name()))
	}
}

var forwardLine = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+) ->`)

// forward starts a port-forward. dial connects to it from the laptop.
func (b *bed) forward(ctx context.Context, v via, name, pod string, port int) (p *lab.Process, dial func(context.Context) (*net.TCPConn, error), err error) {
	p, err = b.start(v, named(name, v), nil, "port-forward", "pod/"+pod, fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, nil, err
	}
	out, err := p.WaitOutput(ctx, "its port", forwardLine.MatchString)
	if err != nil {
		p.Kill()
		return nil, nil, err
	}
	address := forwardLine.FindStringSubmatch(out)[1]
	return p, func(ctx context.Context) (*net.TCPConn, error) {
		from := b.Network.Laptop
		if v.direct {
			from = b.c1.Site.Inside
		}
		c, err := from.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		deadline, _ := ctx.Deadline()
		return c.(*net.TCPConn), c.SetDeadline(deadline)
	}, nil
}

// portForward has 20 connections say a mebibyte each to a pod that says it again.
func portForward(ctx context.Context, b *bed, v via) (string, error) {
	p, dial, err := b.forward(ctx, v, "forward", "box", 9000)
	if err != nil {
		return "", err
	}
	defer p.Kill()
	const size = 1 << 20
	g, ctx := errgroup.WithContext(ctx)
	for i := range 20 {
		g.Go(func() error {
			c, err := dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			said, heard := make([]byte, size), make([]byte, size)
			_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(said) // never an error
			write := make(chan error, 1)
			go func() { _, err := c.Write(said); write <- err }()
			_, err = io.ReadFull(c, heard)
			if err := errors.Join(err, <-write); err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			if !bytes.Equal(said, heard) {
				return fmt.Errorf("connection %d heard something else", i)
			}
			return nil
		})
	}
	err = g.Wait()
	return "", err
}

// halfClose ends one direction and hears the other one to its end.
func halfClose(ctx context.Context, b *bed, v via) (string, error) {
	p, dial, err := b.forward(ctx, v, "half-close", "box", 9000)
	if err != nil {
		return "", err
	}
	defer p.Kill()
	c, err := dial(ctx)
	if err != nil {
		return "", err
	}
	defer c.Close()
	said := strings.Repeat("half-close ", 5000)
	if _, err := io.WriteString(c, said); err != nil {
		return "", err
	}
	if err := c.CloseWrite(); err != nil {
		return "", err
	}
	heard, err := io.ReadAll(c)
	if err == nil && string(heard) != said {
		err = fmt.Errorf("heard %d bytes of %d", len(heard), len(said))
	}
	return "", err
}

// podCloses hears what a pod says before it closes.
func podCloses(ctx context.Context, b *bed, v via) (string, error) {
	p, dial, err := b.forward(ctx, v, "pod-closes", "box", 9001)
	if err != nil {
		return "", err
	}
	defer p.Kill()
	c, err := dial(ctx)
	if err != nil {
		return "", err
	}
	defer c.Close()
	heard, err := io.ReadAll(c)
	if err == nil && !bytes.HasSuffix(heard, []byte("\n20000\n")) {
		err = fmt.Errorf("heard %d bytes, and not the last line", len(heard))
	}
	return "", err
}

// podDies forwards to a pod that is killed: what is open ends, and kubectl says
// so instead of waiting.
func podDies(ctx context.Context, b *bed, v via) (string, error) {
	name := named("mortal", v)
	if _, err := b.run(ctx, v, "run", name, "--image="+lab.PodImage, "--restart=Never", "--command", "--", "echo-server"); err != nil {
		return "", err
	}
	if _, err := b.run(ctx, v, "wait", "--for=condition=Ready", "pod/"+name, "--timeout=20s"); err != nil {
		return "", err
	}
	p, dial, err := b.forward(ctx, v, name, name, 9000)
	if err != nil {
		return "", err
	}
	defer p.Kill()
	c, err := dial(ctx)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "alive"); err != nil {
		return "", err
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		return "", err
	}
	if _, err := b.run(ctx, v, "delete", "pod", name, "--grace-period=0", "--force"); err != nil {
		return "", err
	}
	begin := time.Now()
	_, err = c.Read(make([]byte, 1))
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return "", fmt.Errorf("the connection outlives its pod: %v", err)
	}
	figure := fmt.Sprintf("the connection ended %s after the pod", time.Since(begin).Round(time.Millisecond))
	if again, err := dial(ctx); err == nil { // kubectl may have ended by itself
		defer again.Close()
		if _, err := again.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return figure, fmt.Errorf("a new connection to the dead pod does not end: %v", err)
		}
	}
	return figure, nil
}
