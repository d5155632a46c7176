package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/daemon"
)

const downTimeout = 10 * time.Second

func downCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the daemon",
		Long: `End the daemon. Open connections to clusters are cut.

You stay logged in: the next command that needs the daemon starts it again.`,
		Example: "  zt-daemon down",
		Args:    withArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), downTimeout)
			defer cancel()
			client, status, err := reach(ctx, env)
			if errors.Is(err, daemon.ErrNotRunning) {
				fmt.Fprintln(env.stdout, "zt-daemon is not running")
				return nil
			} else if err != nil {
				return err
			}
			if err := client.Down(ctx); err != nil && !errors.Is(err, daemon.ErrNotRunning) {
				return err
			}
			for { // its socket goes last
				if _, err := client.Status(ctx); errors.Is(err, daemon.ErrNotRunning) {
					break
				}
				select {
				case <-ctx.Done():
					return daemon.NewLocalError(daemon.KindFailure, "", "the daemon (process %d) is still there after %v", status.PID, downTimeout)
				case <-time.After(startPoll):
				}
			}
			fmt.Fprintln(env.stdout, "zt-daemon has ended")
			return nil
		},
	}
}
