package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/daemon"
)

func clustersCommand(env *environment) *cobra.Command {
	var out outputFlag
	cmd := &cobra.Command{
		Use:   "clusters [NAME]",
		Short: "List the clusters you can ask for",
		Long: `List the clusters of your networks, and how things stand with each; with a NAME,
that cluster's nodes. What is said of nodes is the relay's word.`,
		Example: "  zt-daemon clusters\n  zt-daemon clusters c1\n  zt-daemon clusters -o json | jq -r '.[].name'",
		Args:    withArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, names []string) error {
			client, _, err := reachOrStart(cmd.Context(), env)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
			defer cancel()
			all, err := client.Clusters(ctx)
			if err != nil {
				return err
			}
			if len(names) == 1 {
				all = slices.DeleteFunc(all, func(c daemon.ClusterStatus) bool { return c.Name != names[0] })
				if len(all) == 0 {
					return daemon.NewLocalError(daemon.KindUnknownCluster, "run `zt-daemon clusters` for the list", "there is no cluster %s", names[0])
				}
			}
			if out.json {
				return printJSON(env.stdout, all)
			}
			if len(names) == 1 {
				return nodeTable(env, all, time.Now())
			}
			if len(all) == 0 {
				fmt.Fprintln(env.stderr, "no clusters: log in first, or ask your platform engineer to add one")
				return nil
			}
			return clusterTable(env.stdout, all, time.Now(), true)
		},
	}
	out.addTo(cmd)
	return cmd
}

// nodeSummary is what the relay tells of a cluster's nodes, in four cells: how many
// are connected, their versions, when one was last seen, what became of the policy.
func nodeSummary(c daemon.ClusterStatus, now time.Time) []string {
	here, seen := 0, time.Time{}
	var versions, policies []string
	add := func(list []string, s string) []string {
		if s == "" || slices.Contains(list, s) {
			return list
		}
		return append(list, s)
	}
	for _, n := range c.Nodes {
		if n.Seen.After(seen) {
			seen = n.Seen
		}
		if n.Here {
			here++
			versions = add(versions, n.Version)
			policies = add(policies, strings.ReplaceAll(n.Policy, "_", " "))
		}
	}
	nodes := strconv.Itoa(here)
	if c.NodesErr != "" {
		nodes = "?"
	}
	return []string{nodes, strings.Join(versions, ","), relative(seen, now), strings.Join(policies, ", ")}
}

// nodeTable shows the nodes of a cluster, which is of one network as a rule.
func nodeTable(env *environment, clusters []daemon.ClusterStatus, now time.Time) error {
	rows := [][]string{{"NODE", "VERSION", "SEEN", "POLICY", "API SERVER", "STATE"}}
	for _, c := range clusters {
		if c.NodesErr != "" {
			return daemon.NewLocalError(daemon.KindUnreachable, "run `zt-daemon status`", "cluster %s: nothing is known of its nodes: %s", c.Name, c.NodesErr)
		}
		for _, n := range c.Nodes {
			name, state := n.Name, "connected"
			if name == "" {
				name = n.Peer.String()
			}
			switch {
			case !n.Here:
				state = "gone"
			case n.Draining:
				state = "about to stop"
			}
			rows = append(rows, []string{name, n.Version, relative(n.Seen, now), strings.ReplaceAll(n.Policy, "_", " "), n.Upstream, state})
		}
	}
	if len(rows) == 1 {
		fmt.Fprintln(env.stderr, "no node of the cluster is connected, and the relay remembers none")
		return nil
	}
	return table(env.stdout, rows)
}

// clusterTable shows clusters; the network's column only if there are two.
func clusterTable(w io.Writer, clusters []daemon.ClusterStatus, now time.Time, nodes bool) error {
	several := false
	for _, c := range clusters {
		several = several || c.Network != clusters[0].Network
	}
	head := []string{"CLUSTER", "STATE", "SINCE", "PORT", "OPEN"}
	if nodes {
		head = append(head, "NODES", "VERSION", "SEEN", "POLICY")
	}
	head = append(head, "PROBLEM")
	if several {
		head = append(head, "NETWORK")
	}
	rows := [][]string{head}
	for _, c := range clusters {
		row := []string{c.Name, c.State, relative(c.Since, now), strconv.Itoa(int(c.Port)), strconv.Itoa(c.Listener.Open)}
		if nodes {
			row = append(row, nodeSummary(c, now)...)
		}
		row = append(row, c.Err)
		if several {
			row = append(row, c.Network)
		}
		rows = append(rows, row)
	}
	return table(w, rows)
}
