package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/daemon"
)

func signerCommand(env *environment) *cobra.Command {
	return adminGroup("signer", "Let this machine sign cluster records", signerCreateCommand(env))
}

const signerCreateLong = `Make this machine's signer key, or show it, and print the line by which the
platform engineer admits it. A signer may add clusters; it cannot change relays,
issuers or other signers.`

func signerCreateCommand(env *environment) *cobra.Command {
	name := ""
	cmd := &cobra.Command{
		Use: "create", Short: "Make this machine's signer key", Long: signerCreateLong, Args: withArgs(cobra.NoArgs),
		Example: "  zt-daemon signer create --name mona",
		RunE: func(*cobra.Command, []string) error {
			if err := auth.ValidName(name); name != "" && err != nil {
				return usagef("a signer's name is a DNS label, for example mona", "--name: %v", err)
			}
			state, err := env.adminState()
			if err != nil {
				return err
			}
			lock, err := state.Lock()
			if err != nil {
				return err
			}
			defer lock.Close()
			k, err := state.Signer()
			if errors.Is(err, daemon.ErrNoState) {
				k = key.NewSigner()
				err = state.KeepSigner(k)
			}
			if err != nil {
				return err
			}
			if name == "" {
				host, _ := os.Hostname()
				name, _, _ = strings.Cut(strings.ToLower(host), ".")
			}
			if auth.ValidName(name) != nil {
				name = "signer"
			}
			fmt.Fprintf(env.stdout, "signer key %s\n\nThe platform engineer admits it with:\n\n  zt-daemon network sign --signer %s=%s\n", state.SignerPath(), name, k.Public())
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "what the head shall call it (default: this machine's name)")
	return cmd
}
