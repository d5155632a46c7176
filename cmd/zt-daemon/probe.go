package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/daemon"
)

const (
	probeWait     = 30 * time.Second // well within what helm test waits
	probeTimeout  = 5 * time.Second  // of one question
	probePause    = time.Second
	probeMaxBytes = 4 << 10
)

// probeCommand is what `helm test` runs in a pod of its own: the image holds no
// other program that could ask.
func probeCommand(env *environment) *cobra.Command {
	wait := probeWait
	cmd := &cobra.Command{
		Use: "probe HOST PORT", Short: "Ask a node whether it is ready", Hidden: true, Args: withArgs(cobra.ExactArgs(2)),
		Example: "  zt-daemon probe 127.0.0.1 9090",
		RunE: func(cmd *cobra.Command, args []string) error {
			return probe(cmd.Context(), env, "http://"+net.JoinHostPort(args[0], args[1])+"/readyz", wait)
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", wait, "how long to wait for it")
	return cmd
}

// probe asks url until the answer is 200, and prints it; after wait, the last
// answer is the error.
func probe(ctx context.Context, env *environment, url string, wait time.Duration) error {
	limit, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		answer, err := probeOnce(limit, url)
		if err == nil {
			for line := range strings.Lines(answer) {
				fmt.Fprintln(env.stdout, printable(strings.TrimSpace(line)))
			}
			return nil
		}
		select {
		case <-time.After(probePause):
			continue
		case <-limit.Done():
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return daemon.NewLocalError(daemon.KindUnreachable, "the log of the node's pod says why", "the node is not ready after %v: %v", wait, err)
	}
}

func probeOnce(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, probeMaxBytes))
	if err != nil {
		return "", err
	}
	answer := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", resp.Status, strings.ReplaceAll(answer, "\n", "; "))
	}
	return answer, nil
}
