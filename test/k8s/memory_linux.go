package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/test/lab"
)

const (
	// idleBar and peopleBar are what a node may hold resident: idle, with its
	// session, policy watch and probes; and with fifty people connected and quiet.
	idleBar   = 25 << 20
	peopleBar = 64 << 20
	// streamsEach is how many streams go each way in the test of the limit.
	streamsEach = 8
	nodeProgram = "zt-daemon"
)

// sleep waits for d, or until ctx is done.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// idle measures each node pod, to which nobody is connected but, in the first
// cluster, the informer.
func idle(ctx context.Context, b *bed) error {
	pause := 60 * time.Second
	if b.quick {
		pause = 20 * time.Second
	}
	if err := sleep(ctx, pause); err != nil {
		return err
	}
	for _, c := range []*lab.Cluster{b.c1, b.c2} {
		pods, err := nodePods(ctx, c)
		if err != nil {
			return err
		}
		for _, pod := range pods {
			b.check(ctx, "resident memory of "+c.Name+"'s node on "+pod.Spec.NodeName, via{}, time.Minute, func(ctx context.Context) (string, error) {
				return residentWithin(ctx, c, pod, idleBar)
			})
		}
	}
	return nil
}

// residentWithin reads VmRSS of a node pod's process (proc_pid_status(5)), and
// beside it what the kernel charges the pod.
func residentWithin(_ context.Context, c *lab.Cluster, pod lab.Pod, bar int64) (string, error) {
	m, err := c.Machine(pod.Spec.NodeName)
	if err != nil {
		return "", err
	}
	pid, err := m.PodProcess(pod, nodeProgram)
	if err != nil {
		return "", err
	}
	resident, err := vmRSS(pid)
	if err != nil {
		return "", err
	}
	memory, err := m.Memory(pod, nodeProgram)
	if err != nil {
		return "", err
	}
	figure := fmt.Sprintf("%.1f MiB of %d; its cgroup %.1f MiB of %d", mib(resident), bar>>20, mib(memory.Usage), memory.Limit>>20)
	if resident > bar {
		return figure, fmt.Errorf("over the bar of %d MiB", bar>>20)
	}
	return figure, nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

func vmRSS(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmRSS", pid)
}

// onlyPod is the second cluster's one node pod.
func (b *bed) onlyPod(ctx context.Context) (lab.Pod, error) {
	pods, err := nodePods(ctx, b.c2)
	if err == nil && len(pods) != 1 {
		err = fmt.Errorf("%d node pods in %s, want one", len(pods), b.c2.Name)
	}
	if err != nil {
		return lab.Pod{}, err
	}
	return pods[0], nil
}

// fiftyPeople log in and ask the second cluster one thing, all through its one
// node, then stay connected and quiet.
func fiftyPeople(ctx context.Context, b *bed) error {
	pod, err := b.onlyPod(ctx)
	if err != nil {
		return err
	}
	done := b.lab.During(fmt.Sprintf("%d people log in and ask %s one thing each", people, b.c2.Name))
	defer done()
	all := make([]*lab.Laptop, people)
	next := make(chan int, people)
	for i := range people {
		next <- i
	}
	close(next)
	g, logins := errgroup.WithContext(ctx)
	for range 4 {
		g.Go(func() error {
			for i := range next {
				name := fmt.Sprintf("person%02d", i+1)
				p, err := b.NewLaptop(name, uint32(2000+i))
				if err != nil {
					return err
				}
				all[i] = p
				if _, err := p.Login(logins, name); err != nil {
					return err
				}
				command := p.Command("kubectl", []string{b.kubectls[0].program, "--context", "zt-" + b.c2.Name, "get", "namespaces"})
				if err := b.lab.Run(logins, command).OK(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	done()
	pause := 60 * time.Second
	if b.quick {
		pause = 20 * time.Second
	}
	if err := sleep(ctx, pause); err != nil {
		return err
	}
	b.check(ctx, fmt.Sprintf("resident memory of a node with %d people connected and quiet", people), via{}, time.Minute, func(ctx context.Context) (string, error) {
		connected, err := b.metric(ctx, "zt_daemon_laptops")
		if err != nil {
			return "", err
		}
		if connected < people {
			return "", fmt.Errorf("only %d are connected", connected)
		}
		return residentWithin(ctx, b.c2, pod, peopleBar)
	})
	for _, p := range all {
		if err := p.ZT(ctx, "down").OK(); err != nil {
			return err
		}
	}
	return nil
}

// metric asks the second cluster's one node for a gauge.
func (b *bed) metric(ctx context.Context, name string) (int, error) {
	pod, err := b.onlyPod(ctx)
	if err != nil {
		return 0, err
	}
	r := b.c2.Kubectl(ctx, nil, "get", "--raw", "/api/v1/namespaces/"+pod.Metadata.Namespace+"/pods/"+pod.Metadata.Name+":9090/proxy/metrics")
	if err := r.OK(); err != nil {
		return 0, err
	}
	for line := range strings.Lines(r.Stdout) {
		if n, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.Atoi(strings.TrimSpace(n))
		}
	}
	return 0, fmt.Errorf("the node's metrics have no %s", name)
}

// eightStreams moves bytes each way through the second cluster's one node, as
// fast as they go, and asks the kernel what that has cost its pod.
func eightStreams(ctx context.Context, b *bed) error {
	pod, err := b.onlyPod(ctx)
	if err != nil {
		return err
	}
	m, err := b.c2.Machine(pod.Spec.NodeName)
	if err != nil {
		return err
	}
	if err := b.apply(ctx, b.c2, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"pipe","namespace":"default"},"spec":{"containers":[
		{"name":"pipe","image":"`+lab.PodImage+`","command":["tail","-f","/dev/null"]}]}}`); err != nil {
		return err
	}
	if err := b.c2.Kubectl(ctx, nil, "wait", "--for=condition=Ready", "pod/pipe", "--timeout=60s").OK(); err != nil {
		return err
	}
	long := 5 * time.Minute
	if b.quick {
		long = 20 * time.Second
	}
	b.check(ctx, fmt.Sprintf("%d streams each way for %s in a limit of 128 MiB", streamsEach, long), via{kubectl: b.kubectls[0]}, long+time.Minute, func(ctx context.Context) (string, error) {
		done := b.lab.During("streams flow")
		defer done()
		up, down, err := b.flow(ctx, long)
		if err != nil {
			return "", err
		}
		memory, err := m.Memory(pod, nodeProgram)
		if err != nil {
			return "", fmt.Errorf("the node is gone: %w", err)
		}
		figure := fmt.Sprintf("%.0f MB/s up, %.0f MB/s down; most that was charged %.1f MiB of %d, refused and reclaimed %d times, killed %d",
			float64(up)/1e6/long.Seconds(), float64(down)/1e6/long.Seconds(), mib(memory.Peak), memory.Limit>>20, memory.Refused, memory.Killed)
		switch {
		case memory.Limit != 128<<20:
			return figure, errors.New("the limit is another")
		case memory.Killed > 0:
			return figure, errors.New("the kernel killed for want of memory")
		}
		return figure, nodesReady(ctx, b.c2, 1)
	})
	return nil
}

// flow runs streams each way for that long, and counts their bytes.
func (b *bed) flow(ctx context.Context, long time.Duration) (up, down int64, err error) {
	flowing, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	var sent, received atomic.Int64
	g, flowing := errgroup.WithContext(flowing)
	for range streamsEach {
		g.Go(func() error {
			c := b.kubectl(via{}, b.c2.Name, "exec", "--stdin", "pipe", "--", "wc", "-c")
			c.Stdin = &counted{n: &sent}
			return b.until(flowing, c)
		})
		g.Go(func() error {
			c := b.kubectl(via{}, b.c2.Name, "exec", "pipe", "--", "cat", "/dev/zero")
			c.Stdout = &counted{n: &received}
			return b.until(flowing, c)
		})
	}
	err = g.Wait()
	if err == nil && (sent.Load() == 0 || received.Load() == 0) {
		err = errors.New("nothing has flowed")
	}
	return sent.Load(), received.Load(), err
}

// until runs a command that does not end by itself until ctx is done.
func (b *bed) until(ctx context.Context, c lab.Command) error {
	r := b.lab.Run(ctx, c)
	if ctx.Err() == nil {
		return fmt.Errorf("it ended early: %v", r)
	}
	return nil
}

// counted is a source of zeros and a sink, whose bytes are counted.
type counted struct{ n *atomic.Int64 }

func (c *counted) Read(p []byte) (int, error)  { c.n.Add(int64(len(p))); clear(p); return len(p), nil }
func (c *counted) Write(p []byte) (int, error) { c.n.Add(int64(len(p))); return len(p), nil }
