package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon"
)

func clusterCommand(env *environment) *cobra.Command {
	return adminGroup("cluster", "Add clusters to the network", clusterAddCommand(env), clusterListCommand(env), clusterRemoveCommand(env))
}

func clusterListCommand(env *environment) *cobra.Command {
	var flags adminFlags
	var out outputFlag
	cmd := &cobra.Command{
		Use: "list", Short: "List the network's clusters, as signed", Args: withArgs(cobra.NoArgs),
		Example: "  zt-daemon cluster list\n  zt-daemon cluster list -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			admin, head, done, err := flags.open(cmd.Context(), env, true)
			if err != nil {
				return err
			}
			defer done()
			fetched, err := admin.Records(cmd.Context(), head)
			if err != nil {
				return err
			}
			for _, f := range fetched {
				if f.Err != nil {
					fmt.Fprintf(env.stderr, "zt-daemon: warning: a record that claims to be of cluster %q does not verify: %s\n", f.Name, printable(f.Err.Error()))
				}
			}
			if out.json {
				records := []*auth.Record{}
				for _, f := range fetched {
					if f.Err == nil {
						records = append(records, f.Record)
					}
				}
				return printJSON(env.stdout, records)
			}
			rows := [][]string{{"NAME", "VERSION", "ENDS", "API SERVER", "USER"}}
			for _, f := range fetched {
				if f.Err == nil && !f.Record.Removed {
					user := "kept"
					if f.Record.Issuer != nil {
						user = "client " + f.Record.Issuer.ClientID
					}
					rows = append(rows, []string{f.Record.Name, fmt.Sprint(f.Record.Version), relative(f.Record.NotAfter, time.Now()), f.Record.TLSName, user})
				}
			}
			return table(env.stdout, rows)
		},
	}
	flags.addTo(cmd, env)
	out.addTo(cmd)
	return cmd
}

func clusterRemoveCommand(env *environment) *cobra.Command {
	var flags adminFlags
	cmd := &cobra.Command{
		Use: "remove NAME", Short: "Remove a cluster from the network", Args: withArgs(cobra.ExactArgs(1)),
		Example: "  zt-daemon cluster remove c1",
		RunE: func(cmd *cobra.Command, args []string) error {
			admin, head, done, err := flags.open(cmd.Context(), env, true)
			if err != nil {
				return err
			}
			defer done()
			signer, err := admin.DocumentSigner(head, "signing a record")
			if err != nil {
				return err
			}
			old, version, err := admin.NextRecord(cmd.Context(), head, args[0])
			if err != nil {
				return err
			}
			if old == nil || old.Removed {
				return daemon.NewLocalError(daemon.KindUnknownCluster, "`zt-daemon cluster list` shows those there are", "the network has no cluster %q", args[0])
			}
			record, err := auth.SignRecord(auth.Record{
				Network: head.Network, Name: args[0], Version: version, NotAfter: time.Now().Add(auth.DocumentLife), Removed: true,
			}, signer)
			if err != nil {
				return err
			}
			faults, err := admin.PublishRecord(cmd.Context(), head, record)
			if err != nil {
				return err
			}
			warnRelays(env, faults)
			fmt.Fprintf(env.stdout, "cluster %s removed; its nodes are refused from now on\n", args[0])
			return nil
		},
	}
	flags.addTo(cmd, env)
	return cmd
}
