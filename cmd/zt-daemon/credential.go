package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon"
)

func credentialCommand(env *environment) *cobra.Command {
	var network string
	cmd := &cobra.Command{
		Use:   "credential NAME",
		Short: "Give kubectl an ID token for a cluster (kubectl calls it)",
		Long: `Print an ExecCredential (client.authentication.k8s.io/v1) with an ID token for
the API server of the cluster NAME. kubectl calls this command, because your
kubeconfig says so; you need not.

Exit codes: 3 not logged in or the login has expired, 4 the identity provider or
the daemon cannot be reached, 5 a policy denies it.`,
		Example: "  zt-daemon credential c1",
		Args:    withArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkNetworkID(network); err != nil {
				return err
			}
			if err := auth.ValidName(args[0]); err != nil {
				return usagef("`zt-daemon clusters` lists the names", "%v", err)
			}
			info, err := daemon.ParseExecInfo(env.getenv("KUBERNETES_EXEC_INFO"))
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
			defer cancel()
			c, err := askCredential(ctx, env, daemon.CredentialRequest{
				Network: network, Cluster: args[0], Interactive: info.Interactive && env.isTerminal(),
			})
			if err != nil {
				return err
			}
			out, err := c.ExecCredential(time.Now())
			if err != nil {
				return err
			}
			_, err = env.stdout.Write(out)
			return err
		},
	}
	addNetworkID(cmd, env, &network, "the network that the cluster is in")
	return cmd
}

// askCredential asks the running daemon at once: this is what every kubectl
// waits for. Only if there is none, one is started.
func askCredential(ctx context.Context, env *environment, req daemon.CredentialRequest) (daemon.CredentialResult, error) {
	dirs, err := env.dirs()
	if err != nil {
		return daemon.CredentialResult{}, err
	}
	c, err := daemon.NewLocalClient(dirs.Socket(), env.uid).Credential(ctx, req)
	if !errors.Is(err, daemon.ErrNotRunning) {
		return c, err
	}
	client, _, err := reachOrStart(ctx, env)
	if err != nil {
		return c, err
	}
	return client.Credential(ctx, req)
}
