// Command zt-daemon is a laptop's, a node's and an administrator's end of zt:
// private reach to Kubernetes API servers that are on no public network.
//
// It owns flags, signals, exit codes and what people read. It must not know
// protocols or policies: those are daemon's and auth's.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, processEnvironment(), os.Args[1:])
	stop()
	os.Exit(code)
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, env *environment, args []string) int {
	root := rootCommand(env)
	root.SetArgs(args)
	root.SetIn(env.stdin)
	root.SetOut(env.stdout)
	root.SetErr(env.stderr)
	return report(env, root.ExecuteContext(ctx))
}

// rootCommand assembles the program. Every file holds one noun and one
// constructor of this shape: func nounCommand(env *environment) *cobra.Command.
// Commands use RunE, print answers to env.stdout and progress to env.stderr,
// and return errors for report to print.
func rootCommand(env *environment) *cobra.Command {
	root := &cobra.Command{
		Use:           "zt-daemon",
		Short:         "Private reach to Kubernetes API servers; an OIDC login is the only key",
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	return root
}
