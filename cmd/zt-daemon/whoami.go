package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/daemon"
)

func whoamiCommand(env *environment) *cobra.Command {
	var out outputFlag
	cmd := &cobra.Command{
		Use:     "whoami",
		Short:   "Show who you are logged in as",
		Long:    "Show who your login says you are, to relays and nodes. Ends with code 3 if you are not logged in.",
		Example: "  zt-daemon whoami\n  zt-daemon whoami -o json | jq '.[].groups'",
		Args:    withArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := reachOrStart(cmd.Context(), env)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
			defer cancel()
			all, err := client.Whoami(ctx)
			if err != nil {
				return err
			}
			if out.json {
				return printJSON(env.stdout, all)
			}
			if len(all) == 0 {
				return daemon.NewLocalError(daemon.KindNotLoggedIn, "run `zt-daemon login`", "not logged in")
			}
			return printWhoami(env, all, time.Now())
		},
	}
	out.addTo(cmd)
	return cmd
}

func printWhoami(env *environment, all []daemon.Whoami, now time.Time) error {
	for i, w := range all {
		if i > 0 {
			fmt.Fprintln(env.stdout)
		}
		ends := "ends " + relative(w.Ends, now)
		if w.Expired {
			ends = "ended " + relative(w.Ends, now)
		}
		rows := [][]string{
			{"name", w.Name}, {"e-mail", w.Email}, {"groups", strings.Join(w.Groups, ", ")},
			{"subject", w.Subject}, {"issuer", w.Issuer}, {"login", ends}, {"network", w.Network}, {"address", w.Addr},
		}
		if err := table(env.stdout, rows); err != nil {
			return err
		}
	}
	return nil
}
