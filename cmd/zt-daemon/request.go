package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon"
)

const requestLong = `Ask whoever may open the cluster NAME to let you in for a while.

Your request is signed by your login and written down in the cluster, as an
Event that its openers see; one an hour. It opens nothing by itself: an opener
answers it with an AccessGrant, and then kubectl works until that ends.

Exit codes: 0 the request was written down, or you are admitted already; 3 not
logged in; 4 relay or cluster cannot be reached; 5 refused, and not written
down.`

func requestCommand(env *environment) *cobra.Command {
	var network, length, reason string
	cmd := &cobra.Command{
		Use:     "request NAME --reason TEXT",
		Short:   "Ask to be let into a cluster that refuses you",
		Long:    requestLong,
		Example: "  zt-daemon request c1 --for 1h --reason \"disk of web-0 is full\"",
		Args:    withArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkNetworkID(network); err != nil {
				return err
			}
			if err := auth.ValidName(args[0]); err != nil {
				return usagef("`zt-daemon clusters` lists the names", "%v", err)
			}
			req := daemon.AccessRequest{Network: network, Cluster: args[0], Reason: reason}
			if err := req.For.UnmarshalText([]byte(length)); err != nil {
				return usagef("for example --for 1h", "--for: %v", err)
			}
			if reason == "" {
				return usagef("say why with --reason: an opener reads it", "the reason is missing")
			}
			if err := (auth.AccessRequest{For: req.For.Std(), Reason: reason}).Check(); err != nil {
				return usagef("", "%v", err)
			}
			client, _, err := reachOrStart(cmd.Context(), env)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
			defer cancel()
			result, err := client.RequestAccess(ctx, req)
			if err != nil {
				return err
			}
			if result.Admitted {
				fmt.Fprintf(env.stdout, "you are admitted to cluster %s already: use it\n", req.Cluster)
				return nil
			}
			fmt.Fprintf(env.stdout, "request sent to cluster %[1]s: an opener sees it with `zt-daemon requests %[1]s`\n", req.Cluster)
			if result.Detail != "" {
				fmt.Fprintf(env.stdout, "the cluster says: %s\n", printable(result.Detail))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&length, "for", "1h", "for how long, from 1m to 24h")
	cmd.Flags().StringVar(&reason, "reason", "", "why, in at most 200 characters")
	addNetworkID(cmd, env, &network, "the network that the cluster is in")
	return cmd
}
