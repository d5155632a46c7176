package main

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/zt-daemon/zt/test/lab"
)

// helmReleases installs, upgrades and uninstalls a small chart, as alice through
// the overlay.
func helmReleases(ctx context.Context, b *bed) error {
	chart := filepath.Join(b.module, "test", "k8s", "chart")
	for _, x := range []struct {
		what string
		args []string
		text string // of the ConfigMap afterwards; empty: it is gone
	}{
		{"helm install --wait", []string{"install", "small", chart, "--set", "image=" + lab.PodImage, "--wait", "--timeout", "60s"}, "first"},
		{"helm upgrade --wait", []string{"upgrade", "small", chart, "--reuse-values", "--set", "text=second", "--wait", "--timeout", "60s"}, "second"},
		{"helm uninstall --wait", []string{"uninstall", "small", "--wait", "--timeout", "60s"}, ""},
	} {
		b.check(ctx, x.what, via{}, 90*time.Second, func(ctx context.Context) (string, error) {
			args := append([]string{b.helm, "--kube-context", "zt-" + b.c1.Name, "--namespace", play}, x.args...)
			command := b.alice.Command("helm", args)
			command.Dir = "/"
			if err := b.lab.Run(ctx, command).OK(); err != nil {
				return "", err
			}
			r := b.c1.Kubectl(ctx, nil, "--namespace", play, "get", "configmap", "small", "-o", "jsonpath={.data.text}")
			if x.text == "" && r.Code == 0 {
				return "", errors.New("the chart's ConfigMap is there still")
			} else if x.text == "" {
				return "", nil
			}
			return "", errors.Join(r.OK(), want(r.Stdout, x.text))
		})
	}
	return nil
}
