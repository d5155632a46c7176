// Command zt-relay is the public meeting point of a zt network: participants
// find each other there, and it forwards packets that it cannot read.
//
// It owns flags, signals, exit codes and what people read. It must not know
// protocols or policies: those are relay's and auth's.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes, stable: scripts and the documentation depend on them.
const (
	exitFailure     = 1
	exitUsage       = 2
	exitUnreachable = 4
)

// environment is everything a command takes from outside its own flags.
type environment struct {
	stdout io.Writer // answers: what a script reads
	stderr io.Writer // progress, errors and hints
	getenv func(string) string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, &environment{stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}, os.Args[1:])
	stop()
	os.Exit(code)
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, env *environment, args []string) int {
	root := rootCommand(env)
	root.SetArgs(args)
	root.SetOut(env.stdout)
	root.SetErr(env.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(env.stderr, "zt-relay: %s\n", printable(err.Error()))
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok && h.Hint() != "" {
		fmt.Fprintf(env.stderr, "zt-relay: hint: %s\n", printable(h.Hint()))
	}
	if c, ok := errors.AsType[*commandError](err); ok {
		return c.code
	}
	return exitFailure
}

// commandError is an error with a hint and an exit code of its own.
type commandError struct {
	text, hint string
	code       int
}

func (e *commandError) Error() string { return e.text }

// Hint says what to type instead.
func (e *commandError) Hint() string { return e.hint }

func usagef(hint, format string, args ...any) error {
	return &commandError{text: fmt.Sprintf(format, args...), hint: hint, code: exitUsage}
}

const rootLong = `zt-relay is where laptops and cluster nodes meet.

It forwards WireGuard packets that it cannot read, between sessions that nodes
themselves admitted. It has no database and holds no key that opens a cluster:
whoever takes it over can deny service and see who talks when, and no more.`

const rootExample = `  # on a public host, with a name that leads to it
  zt-relay serve --domain relay.example.com

  # from another terminal on that host
  zt-relay status`

func rootCommand(env *environment) *cobra.Command {
	root := &cobra.Command{
		Use: "zt-relay", Short: "The meeting point of a zt network", Long: rootLong, Example: rootExample,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("run `zt-relay --help` for the list of commands", "zt-relay has no command %q", args[0])
			}
			return nil
		},
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("run `"+cmd.CommandPath()+" --help`", "%v", err)
	})
	root.AddCommand(serveCommand(env), statusCommand(env), peersCommand(env), revokeCommand(env), auditCommand(env), versionCommand(env))
	return root
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("usage: "+cmd.UseLine(), "%s takes no argument %q", cmd.CommandPath(), args[0])
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printable escapes what a terminal would obey: text may come from a token's
// claims or another machine.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if strconv.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		q := strconv.QuoteRuneToASCII(r)
		b.WriteString(q[1 : len(q)-1])
	}
	return b.String()
}
