package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/relay"
)

// operator is what the operator's commands share: where the relay's socket is,
// and how to print.
type operator struct {
	env              *environment
	stateDir, socket string
	output           string
}

func (o *operator) addTo(cmd *cobra.Command) {
	addStateDir(cmd, o.env, &o.stateDir)
	addSocket(cmd, o.env, &o.socket)
	cmd.Flags().StringVarP(&o.output, "output", "o", "text", "text or json")
}

// checkOutput refuses an --output that no command has.
func checkOutput(output string) error {
	if output != "text" && output != "json" {
		return usagef("give --output text or --output json", "--output is %q, want text or json", output)
	}
	return nil
}

// ask sends a request to the running relay and returns the answer's body.
func (o *operator) ask(ctx context.Context, method, path string, body any) (io.ReadCloser, error) {
	if err := checkOutput(o.output); err != nil {
		return nil, err
	}
	socket := socketPath(o.socket, o.stateDir)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
		},
	}}
	var in bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&in).Encode(body); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://relay"+path, &in)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		if dial, ok := errors.AsType[*net.OpError](err); ok {
			return nil, &commandError{
				text: fmt.Sprintf("no relay answers at %s: %v", socket, dial.Err), code: exitUnreachable,
				hint: "run this on the relay's host as the relay's user, with the same --state-dir or --socket",
			}
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		local := &relay.LocalError{}
		if json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(local) != nil || local.Message == "" {
			local.Message = "the relay answered " + resp.Status
		}
		return nil, local
	}
	return resp.Body, nil
}

// get reads a JSON answer, and prints it if that was asked for.
func (o *operator) get(ctx context.Context, method, path string, body, into any) (printed bool, err error) {
	answer, err := o.ask(ctx, method, path, body)
	if err != nil {
		return false, err
	}
	defer answer.Close()
	if err := json.NewDecoder(answer).Decode(into); err != nil {
		return false, fmt.Errorf("read the relay's answer: %v", err)
	}
	if o.output == "json" {
		return true, printJSON(o.env.stdout, into)
	}
	return false, nil
}

func statusCommand(env *environment) *cobra.Command {
	o := &operator{env: env}
	cmd := &cobra.Command{
		Use: "status", Short: "Show how the relay is", Args: noArgs,
		Example: "  zt-relay status\n  zt-relay status -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s relay.Status
			if printed, err := o.get(cmd.Context(), http.MethodGet, "/status", nil, &s); printed || err != nil {
				return err
			}
			w := tabwriter.NewWriter(env.stdout, 0, 0, 2, ' ', 0)
			row := func(name, format string, args ...any) {
				fmt.Fprintf(w, "%s\t%s\n", name, printable(fmt.Sprintf(format, args...)))
			}
			row("relay", "%s, up %s", s.URL, time.Since(s.Started).Round(time.Second))
			if s.Network == "" {
				row("network", "none has claimed this relay yet")
			} else {
				row("network", "%s, head version %d until %s", s.Network, s.Head, s.HeadEnds.Format(time.DateOnly))
			}
			row("key", "%s", s.Key)
			if s.Pin != "" {
				row("TLS pin", "%s", s.Pin)
			}
			for _, kind := range slices.Sorted(maps.Keys(s.Sessions)) {
				row(kind+" sessions", "%d", s.Sessions[kind])
			}
			row("edges", "%d", s.Edges)
			for _, name := range slices.Sorted(maps.Keys(s.Clusters)) {
				nodes := s.Clusters[name]
				here := 0
				for _, n := range nodes {
					if n.Here {
						here++
					}
				}
				row("cluster "+printable(name), "nodes here: %d", here)
				for _, n := range nodes {
					row("  "+nodeName(n), "%s", nodeText(n, time.Now()))
				}
			}
			for _, url := range slices.Sorted(maps.Keys(s.Issuers)) {
				row("issuer "+printable(url), "%s", s.Issuers[url])
			}
			if len(s.Revoked) > 0 {
				row("revocations", "%d in force", len(s.Revoked))
			}
			return w.Flush()
		},
	}
	o.addTo(cmd)
	return cmd
}

// nodeName is what people call a node: the name that it gave, else its key.
func nodeName(n relay.Node) string {
	if n.Name != "" {
		return printable(n.Name)
	}
	return n.Peer.String()
}

// nodeText is what a node says of itself, and when it last did.
func nodeText(n relay.Node, now time.Time) string {
	parts := []string{n.Version}
	if n.Version == "" {
		parts[0] = "says nothing of itself"
	}
	if n.Policy != "" {
		parts = append(parts, "policy "+strings.ReplaceAll(n.Policy, "_", " "))
	}
	if n.Upstream != "" {
		parts = append(parts, "API server "+n.Upstream)
	}
	if n.Here && n.Draining {
		parts = append(parts, "about to stop")
	}
	seen := "seen " + now.Sub(n.Seen).Round(time.Second).String() + " ago"
	if !n.Here {
		seen = "gone, " + seen
	}
	text := strings.Join(append(parts, seen), ", ")
	if n.Why != "" {
		text += ": " + n.Why
	}
	return text
}

func peersCommand(env *environment) *cobra.Command {
	o := &operator{env: env}
	cmd := &cobra.Command{
		Use: "peers", Short: "List the sessions: who is connected", Args: noArgs,
		Example: "  zt-relay peers\n  zt-relay peers -o json | jq -r '.[] | [.issuer, .uid] | @tsv'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var peers []relay.Peer
			if printed, err := o.get(cmd.Context(), http.MethodGet, "/peers", nil, &peers); printed || err != nil {
				return err
			}
			w := tabwriter.NewWriter(env.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "KIND\tWHO\tUID\tFROM\tUDP\tEDGES\tLEASE\tNODE")
			for _, p := range peers {
				who, udp := p.Name, p.Endpoint
				if p.Cluster != "" {
					who = "cluster " + p.Cluster
				}
				node := "-"
				if p.Node != nil {
					node = nodeText(*p.Node, time.Now())
					if p.Node.Name != "" {
						node = p.Node.Name + ", " + node
					}
				}
				if udp == "" {
					udp = "-"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\tends in %s\t%s\n", p.Kind, printable(orDash(who)), printable(orDash(p.UID)),
					p.Remote, udp, p.Edges, time.Until(p.Expires).Round(time.Second), printable(node))
			}
			return w.Flush()
		},
	}
	o.addTo(cmd)
	return cmd
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

const revokeLong = `Cut a person's or a login key's sessions and edges at once, open flows included,
and refuse logins made until now. A later login is admitted again: take the right
away at the identity provider first. Other relays are not told; a cluster's own
policy denies everywhere (deny: in policy.yaml).`

func revokeCommand(env *environment) *cobra.Command {
	o := &operator{env: env}
	var in struct{ uid, issuer, key, before string }
	cmd := &cobra.Command{
		Use: "revoke", Short: "Cut a person or a login key off, now", Long: revokeLong, Args: noArgs,
		Example: "  zt-relay revoke --issuer https://login.example.com --uid 248289761001\n  zt-relay revoke --key BJ3…",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r := relay.Revocation{Issuer: in.issuer, UID: in.uid}
			if in.key == "" && (in.uid == "" || in.issuer == "") {
				return usagef("`zt-relay peers -o json` shows issuer, uid and login key", "name a person with --issuer and --uid, or a login key with --key")
			}
			if in.key != "" {
				if err := r.Key.UnmarshalText([]byte(in.key)); err != nil {
					return usagef("`zt-relay peers -o json` shows login keys", "--key: %v", err)
				}
			}
			if in.before != "" {
				t, err := time.Parse(time.RFC3339, in.before)
				if err != nil {
					return usagef("for example --before 2026-01-02T15:04:05Z", "--before: %v", err)
				}
				r.Before = t
			}
			var out relay.RevokeResult
			if printed, err := o.get(cmd.Context(), http.MethodPost, "/revoke", r, &out); printed || err != nil {
				return err
			}
			fmt.Fprintf(env.stdout, "revoked: sessions cut %d, edges cut %d\n", out.Sessions, out.Edges)
			if out.Warning != "" {
				fmt.Fprintf(env.stderr, "zt-relay: warning: %s\n", printable(out.Warning))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&in.uid, "uid", "", "the person's uid: the issuer entry's subject claim")
	f.StringVar(&in.issuer, "issuer", "", "the issuer's URL")
	f.StringVar(&in.key, "key", "", "a login key, base64url")
	f.StringVar(&in.before, "before", "", "only logins until then, RFC 3339 (default: now)")
	o.addTo(cmd)
	return cmd
}

func auditCommand(env *environment) *cobra.Command {
	o := &operator{env: env}
	follow := false
	cmd := &cobra.Command{
		Use: "audit", Short: "Print the newest audit lines, as JSON lines", Args: noArgs,
		Example: "  zt-relay audit\n  zt-relay audit -f | jq 'select(.event == \"refused\")'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := "/audit"
			if follow {
				path += "?follow=1"
			}
			lines, err := o.ask(cmd.Context(), http.MethodGet, path, nil)
			if err != nil {
				return err
			}
			defer lines.Close()
			if _, err := io.Copy(env.stdout, lines); err != nil && cmd.Context().Err() == nil {
				return fmt.Errorf("read the audit log: %v", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new lines until Ctrl-C")
	o.addTo(cmd)
	return cmd
}

// linkedVersion is what the linker was told (-X main.linkedVersion=1.2.3); empty
// otherwise.
var linkedVersion string

func versionCommand(env *environment) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			v := struct {
				Version  string `json:"version"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
			}{"devel", runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			if linkedVersion != "" {
				v.Version = linkedVersion
			} else if info, ok := debug.ReadBuildInfo(); ok && strings.HasPrefix(info.Main.Version, "v") {
				v.Version = info.Main.Version[1:]
			}
			if output == "json" {
				return printJSON(env.stdout, v)
			}
			fmt.Fprintf(env.stdout, "zt-relay %s (%s, %s)\n", v.Version, v.Go, v.Platform)
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}
