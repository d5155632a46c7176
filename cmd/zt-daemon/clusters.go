package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/daemon"
)

func clustersCommand(env *environment) *cobra.Command {
	var out outputFlag
	cmd := &cobra.Command{
		Use:     "clusters",
		Short:   "List the clusters you can ask for",
		Long:    "List the clusters of your networks, and how things stand with each.",
		Example: "  zt-daemon clusters\n  zt-daemon clusters -o json | jq -r '.[].name'",
		Args:    withArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
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
			if out.json {
				return printJSON(env.stdout, all)
			}
			if len(all) == 0 {
				fmt.Fprintln(env.stderr, "no clusters: log in first, or ask your platform engineer to add one")
				return nil
			}
			return clusterTable(env.stdout, all, time.Now())
		},
	}
	out.addTo(cmd)
	return cmd
}

// clusterTable shows clusters; the network's column only if there are two.
func clusterTable(w io.Writer, clusters []daemon.ClusterStatus, now time.Time) error {
	several := false
	for _, c := range clusters {
		several = several || c.Network != clusters[0].Network
	}
	head := []string{"CLUSTER", "STATE", "SINCE", "PORT", "OPEN", "PROBLEM"}
	if several {
		head = append(head, "NETWORK")
	}
	rows := [][]string{head}
	for _, c := range clusters {
		problem := c.Err
		if problem == "" && c.State == daemon.ClusterReady {
			problem = ""
		}
		row := []string{c.Name, c.State, relative(c.Since, now), strconv.Itoa(int(c.Port)), strconv.Itoa(c.Listener.Open), problem}
		if several {
			row = append(row, c.Network)
		}
		rows = append(rows, row)
	}
	return table(w, rows)
}
