package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/zt-daemon/zt/test/lab"
)

// drain takes away, one after the other, every node pod of the first cluster
// while alice keeps asking.
func drain(ctx context.Context, b *bed) error {
	v := via{kubectl: b.kubectls[0]}
	b.check(ctx, "every node pod is replaced while kubectl asks", v, 4*time.Minute, func(ctx context.Context) (string, error) {
		stop := b.keepAsking(ctx, v, b.c1)
		err := b.replaceNodes(ctx)
		figure, fault := stop()
		return figure, errors.Join(err, fault)
	})
	b.check(ctx, "a stream that is open when its node is asked to go has the grace period", v, 2*time.Minute, func(ctx context.Context) (string, error) {
		return b.openWhileReplaced(ctx, v)
	})
	return nil
}

// replaceNodes deletes the node pods of the first cluster one by one, each once
// the one before it has its successor.
func (b *bed) replaceNodes(ctx context.Context) error {
	pods, err := nodePods(ctx, b.c1)
	if err != nil {
		return err
	}
	for _, p := range pods {
		if err := b.c1.Kubectl(ctx, nil, "--namespace", p.Metadata.Namespace, "delete", "pod", p.Metadata.Name).OK(); err != nil {
			return err
		}
		if err := lab.Eventually(ctx, func(ctx context.Context) error { return nodesReady(ctx, b.c1, len(pods)) }); err != nil {
			return err
		}
	}
	return nil
}

// openWhileReplaced follows a log while every node pod is asked to go at once.
func (b *bed) openWhileReplaced(ctx context.Context, v via) (string, error) {
	l, err := b.start(v, "logs-drained", nil, "logs", "--follow", "--tail=1", "clock")
	if err != nil {
		return "", err
	}
	defer l.Kill()
	if _, err := l.WaitText(ctx, "line "); err != nil {
		return "", err
	}
	pods, err := nodePods(ctx, b.c1)
	if err != nil {
		return "", err
	}
	args := []string{"--namespace", pods[0].Metadata.Namespace, "delete", "pod", "--wait=false"}
	for _, p := range pods {
		args = append(args, p.Metadata.Name)
	}
	if err := b.c1.Kubectl(ctx, nil, args...).OK(); err != nil {
		return "", err
	}
	begin := time.Now()
	const atLeast = 10 * time.Second
	if err := sleep(ctx, atLeast); err != nil {
		return "", err
	}
	if _, exited := l.Exited(); exited {
		return "", fmt.Errorf("it was cut before %s had passed: %s", atLeast, l.Tail(3))
	}
	lines := strings.Count(l.Output(), "line ")
	if _, err := l.WaitOutput(ctx, "more lines", func(out string) bool { return strings.Count(out, "line ") > lines }); err != nil {
		return "", err
	}
	figure := fmt.Sprintf("it flowed on %s after the end was asked for", time.Since(begin).Round(time.Second))
	return figure, lab.Eventually(ctx, func(ctx context.Context) error {
		return errors.Join(nodesReady(ctx, b.c1, len(pods)), b.lab.Run(ctx, b.kubectl(v, b.c1.Name, "get", "namespaces")).OK())
	})
}
