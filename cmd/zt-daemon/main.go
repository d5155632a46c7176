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
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends at once what takes its time
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

const rootLong = `zt-daemon reaches Kubernetes API servers that are on no public network.

Your laptop and the cluster's nodes meet at a relay and talk WireGuard through
it; nothing but your login with your identity provider opens the way. No root,
no TUN device, no routes: one port of 127.0.0.1 for each cluster, and kubectl
as you know it.`

const rootExample = `  # once, with the line that your platform engineer gave you
  zt-daemon login https://relay.example.com/kq3v7m2xw5r6p4dzs5fog7h2j3k4l5m6

  # from then on
  kubectl --context zt-c1 get pods`

// Groups of commands in the help.
const (
	groupLaptop = "laptop"
	groupServer = "server"
	groupAdmin  = "admin"
)

// rootCommand assembles the program. Every file holds one noun and one
// constructor of this shape: func nounCommand(env *environment) *cobra.Command.
// Commands use RunE, print answers to env.stdout and progress to env.stderr,
// and return errors for report to print.
func rootCommand(env *environment) *cobra.Command {
	root := &cobra.Command{
		Use:               "zt-daemon",
		Short:             "Private reach to Kubernetes API servers; an OIDC login is the only key",
		Long:              rootLong,
		Example:           rootExample,
		Args:              noSuchCommand,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SuggestionsMinimumDistance = 2 // letters; cobra sets its default too late for noSuchCommand
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("run `"+cmd.CommandPath()+" --help`", "%v", err)
	})
	root.PersistentFlags().StringVar(&env.stateDir, "state-dir", env.getenv("ZT_STATE_DIR"),
		"keep state, socket and log in this directory (ZT_STATE_DIR)")
	root.PersistentFlags().Lookup("state-dir").DefValue = "" // the help is the same everywhere
	root.AddGroup(
		&cobra.Group{ID: groupLaptop, Title: "On your laptop:"},
		&cobra.Group{ID: groupServer, Title: "Beside an API server:"},
		&cobra.Group{ID: groupAdmin, Title: "For administrators:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupLaptop, loginCommand(env), logoutCommand(env), whoamiCommand(env), clustersCommand(env), statusCommand(env),
		kubeconfigCommand(env), requestCommand(env), requestsCommand(env), credentialCommand(env), upCommand(env), downCommand(env))
	add(groupServer, nodeCommand(env))
	add(groupAdmin, networkCommand(env), clusterCommand(env), policyCommand(env), signerCommand(env))
	root.AddCommand(versionCommand(env), probeCommand(env))

	return root
}

// noSuchCommand is the argument check of commands that only hold others.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "run `" + cmd.CommandPath() + " --help` for the list of commands"
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		hint = "did you mean `" + cmd.CommandPath() + " " + strings.Join(like, "` or `"+cmd.CommandPath()+" ") + "`?"
	}
	return usagef(hint, "%s has no command %q", cmd.CommandPath(), args[0])
}

// withArgs makes a cobra check of the arguments a usage error.
func withArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usagef("usage: "+cmd.UseLine(), "%v", err)
		}
		return nil
	}
}
