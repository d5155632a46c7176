package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/daemon"
)

func networkCommand(env *environment) *cobra.Command {
	return adminGroup("network", "Make a network; sign what it says of itself",
		networkCreateCommand(env), networkShowCommand(env), networkSignCommand(env))
}

const networkCreateLong = `Make a network: a key that is made here and stays here, the issuer whose logins
count, and the relay that printed the claim code.

The network id that is printed is a hash of the key. Whoever types it needs to
trust no relay: everything else is proved from it. Back up the key file; without
it nobody can add relays, signers or issuers, and the network ends with its head.`

func networkCreateCommand(env *environment) *cobra.Command {
	var issuer issuerFlags
	var relay, claim, pin string
	cmd := &cobra.Command{
		Use: "create", Short: "Make a network and claim its first relay", Long: networkCreateLong, Args: withArgs(cobra.NoArgs),
		Example: "  zt-daemon network create --relay https://relay.example.com --claim CODE \\\n    --issuer https://login.example.com --client-id zt",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, flag := range [][2]string{{"--relay", relay}, {"--claim", claim}, {"--issuer", issuer.url}, {"--client-id", issuer.clientID}} {
				if flag[1] == "" {
					return usagef("`zt-relay serve` prints the line at its first start", "%s is missing", flag[0])
				}
			}
			return createNetwork(cmd, env, relay, claim, pin, &issuer)
		},
	}
	f := cmd.Flags()
	f.StringVar(&relay, "relay", "", "the relay's URL, https://HOST")
	f.StringVar(&claim, "claim", "", "the code that the relay printed; good once")
	f.StringVar(&pin, "pin", "", "the TLS pin that the relay printed, for one with a certificate of its own")
	issuer.addTo(cmd)
	return cmd
}

func createNetwork(cmd *cobra.Command, env *environment, relay, claim, pin string, flags *issuerFlags) error {
	ctx := cmd.Context()
	issuer, err := flags.changeEntry(cmd, auth.Issuer{})
	if err != nil {
		return err
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
	found, code, err := fetchClaimable(ctx, env, relay, claim, pin)
	if err != nil {
		return err
	}
	k := key.NewNetwork()
	head, err := auth.SignHead(auth.Head{
		Version: 1, NotAfter: time.Now().Add(auth.DocumentLife), Relays: []auth.Relay{found}, Issuers: []auth.Issuer{issuer},
	}, k)
	if err != nil {
		return err
	}
	network := state.Network(head.Network)
	// Before the claim: a relay must never belong to a key that was lost.
	err = network.KeepKey(k)
	if err == nil {
		_, err = network.TakeHead(head)
	}
	if err == nil {
		err = daemon.ClaimRelay(ctx, found, code, head, httpConfig())
	}
	if lost, ok := errors.AsType[*daemon.ClaimLostError](err); ok {
		fmt.Fprintf(env.stderr, "zt-daemon: the network key is kept: %s\n", network.KeyPath())
		return lost
	} else if err != nil {
		return errors.Join(err, network.Forget()) // nobody has seen it
	}
	fmt.Fprintf(env.stdout, `network %s
network key %s (back it up; it never leaves this machine by itself)

Next, where kubectl reaches a cluster as its admin:

  zt-daemon cluster add c1 --context CONTEXT --api-client-id CLIENT --group GROUP

Everybody then logs in with:

  zt-daemon login %s/%s
`, head.Network, network.KeyPath(), found.URL, head.Network)
	return nil
}

func networkShowCommand(env *environment) *cobra.Command {
	var flags adminFlags
	var out outputFlag
	cmd := &cobra.Command{
		Use: "show", Short: "Show the network's head", Args: withArgs(cobra.NoArgs),
		Example: "  zt-daemon network show\n  zt-daemon network show -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			admin, head, done, err := flags.open(cmd.Context(), env, false)
			if err != nil {
				return err
			}
			defer done()
			if out.json {
				return printJSON(env.stdout, head)
			}
			rows := [][]string{
				{"network", head.Network.String()},
				{"head", fmt.Sprintf("version %d, ends %s", head.Version, relative(head.NotAfter, time.Now()))},
			}
			for _, r := range head.Relays {
				rows = append(rows, []string{"relay", r.URL + "  key " + r.Key.String()})
				for _, p := range r.Pins {
					rows = append(rows, []string{"", "TLS pin " + p})
				}
			}
			for _, i := range head.Issuers {
				rows = append(rows, []string{"issuer", i.URL + "  client " + i.ClientID})
			}
			for _, s := range head.Signers {
				rows = append(rows, []string{"signer", s.Name + "  ends " + relative(s.NotAfter, time.Now()) + "  key " + s.Key.String()})
			}
			for _, name := range slices.Sorted(maps.Keys(head.MinRecord)) {
				rows = append(rows, []string{"least record", fmt.Sprintf("%s version %d", name, head.MinRecord[name])})
			}
			held := "not on this machine"
			if !admin.Network.IsZero() {
				held = admin.State.KeyPath()
			}
			rows = append(rows, []string{"network key", held})
			for _, r := range head.Relays {
				rows = append(rows, []string{"login", "zt-daemon login " + r.URL + "/" + head.Network.String()})
			}
			return table(env.stdout, rows)
		},
	}
	flags.addTo(cmd, env)
	out.addTo(cmd)
	return cmd
}
