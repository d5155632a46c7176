package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon"
)

func logoutCommand(env *environment) *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use:   "logout",
		Short: "End your login",
		Long: `End your login: relays and nodes are told, open connections to clusters are
cut, the login's grant and tokens are removed from this machine.

Your kubeconfig keeps its entries; kubectl then says that you are not logged in.`,
		Example: "  zt-daemon logout",
		Args:    withArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkNetworkID(network); err != nil {
				return err
			}
			client, _, err := reachOrStart(cmd.Context(), env)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
			defer cancel()
			if err := client.Logout(ctx, daemon.LogoutRequest{Network: network}); err != nil {
				return err
			}
			fmt.Fprintln(env.stdout, "logged out")
			return nil
		},
	}
	addNetworkID(cmd, env, &network, "end the login to this network only")
	return cmd
}

// addNetworkID adds --network-id, whose default is in ZT_NETWORK_ID.
func addNetworkID(cmd *cobra.Command, env *environment, id *string, usage string) {
	cmd.Flags().StringVar(id, "network-id", env.getenv("ZT_NETWORK_ID"), usage+" (ZT_NETWORK_ID)")
	cmd.Flags().Lookup("network-id").DefValue = ""
}

// checkNetworkID refuses what cannot be a network id; empty means none is given.
func checkNetworkID(id string) error {
	if id == "" {
		return nil
	}
	if _, err := auth.ParseNetworkID(id); err != nil {
		return usagef("a network id has 32 characters; it is the last part of the login line", "--network-id %s: %v", id, err)
	}
	return nil
}
