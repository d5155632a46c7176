package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/daemon"
)

func statusCommand(env *environment) *cobra.Command {
	var out outputFlag
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how things stand",
		Long: `Show the daemon, its relays and your clusters. It does not start the daemon:
if none runs, it says so and ends with code 4.`,
		Example: "  zt-daemon status\n  zt-daemon status -o json | jq '.networks[].relays'",
		Args:    withArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, status, err := reach(cmd.Context(), env)
			if err != nil {
				return err
			}
			if out.json {
				return printJSON(env.stdout, status)
			}
			return printStatus(env, status, time.Now())
		},
	}
	out.addTo(cmd)
	return cmd
}

func printStatus(env *environment, s daemon.Status, now time.Time) error {
	fmt.Fprintf(env.stdout, "zt-daemon %s, process %d, up for %s\n", printable(s.Version), s.PID, span(now.Sub(s.Started)))
	for _, w := range s.Warnings {
		fmt.Fprintf(env.stdout, "warning: %s\n", printable(w))
	}
	if len(s.Networks) == 0 {
		fmt.Fprintln(env.stdout, "no network yet: run `zt-daemon login` with the line that your platform engineer gave you")
	}
	for _, n := range s.Networks {
		fmt.Fprintf(env.stdout, "\nnetwork %s\n", printable(n.Network))
		login := "not logged in"
		if n.LoggedIn {
			login = n.Person + ", login ends " + relative(n.Ends, now)
		} else if n.Person != "" && !n.Ends.IsZero() {
			login = n.Person + ", login ended " + relative(n.Ends, now)
		}
		fmt.Fprintf(env.stdout, "login   %s\n", printable(login))
		rows := [][]string{{"RELAY", "PATH", "RTT", "SINCE", "PROBLEM"}}
		for _, r := range n.Relays {
			path, rtt := r.Path, ""
			if !r.Connected {
				path = "down"
			}
			if r.RTT > 0 {
				rtt = r.RTT.Round(100 * time.Microsecond).String()
			}
			rows = append(rows, []string{r.URL, path, rtt, relative(r.Since, now), r.Err})
		}
		if len(n.Relays) > 0 {
			fmt.Fprintln(env.stdout)
			if err := table(env.stdout, rows); err != nil {
				return err
			}
		}
		if len(n.Clusters) > 0 {
			fmt.Fprintln(env.stdout)
			if err := clusterTable(env.stdout, n.Clusters, now, false); err != nil {
				return err
			}
		}
	}
	return nil
}
