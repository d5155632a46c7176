package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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
			for name, value := range map[string]string{"--relay": relay, "--claim": claim, "--issuer": issuer.url, "--client-id": issuer.clientID} {
				if value == "" {
					return usagef("`zt-relay serve` prints the line at its first start", "%s is missing", name)
				}
			}
			return createNetwork(cmd.Context(), env, relay, claim, pin, &issuer)
		},
	}
	f := cmd.Flags()
	f.StringVar(&relay, "relay", "", "the relay's URL, https://HOST")
	f.StringVar(&claim, "claim", "", "the code that the relay printed; good once")
	f.StringVar(&pin, "pin", "", "the TLS pin that the relay printed, for one with a certificate of its own")
	issuer.addTo(cmd)
	return cmd
}

func createNetwork(ctx context.Context, env *environment, relay, claim, pin string, flags *issuerFlags) error {
	code, err := daemon.ParseClaimCode(claim)
	if err != nil {
		return usagef("copy it from the relay's first lines", "--claim: %v", err)
	}
	issuer, err := flags.entry()
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
	found, err := daemon.FetchClaimable(ctx, relay, code, pin, httpConfig())
	if err != nil {
		return err
	}
	if !found.Vouched {
		fmt.Fprintf(env.stderr, "zt-daemon: warning: nothing vouches for the relay's certificate; its pin %s goes into the head. Compare it with the one the relay printed.\n", found.Relay.Pins[0])
	}
	k := key.NewNetwork()
	head, err := auth.SignHead(auth.Head{
		Version: 1, NotAfter: time.Now().Add(documentLife), Relays: []auth.Relay{found.Relay}, Issuers: []auth.Issuer{issuer},
	}, k)
	if err != nil {
		return err
	}
	network := state.Network(head.Network)
	// Before the claim: a relay must never belong to a key that was lost.
	if err := network.KeepKey(k); err != nil {
		return err
	}
	if err := daemon.ClaimRelay(ctx, found.Relay, code, head, httpConfig()); err != nil {
		if _, refused := errors.AsType[*daemon.RefusedError](err); refused {
			return errors.Join(err, network.Forget())
		}
		return fmt.Errorf("%w (the network key %s is kept: whether the relay took the claim is not known)", err, network.KeyPath())
	}
	if _, err := network.TakeHead(head); err != nil {
		return err
	}
	fmt.Fprintf(env.stdout, `network %s
network key %s (back it up; it never leaves this machine by itself)

Next, where kubectl reaches a cluster as its admin:

  zt-daemon cluster add c1 --context CONTEXT --api-client-id CLIENT --group GROUP

Everybody then logs in with:

  zt-daemon login %s/%s
`, head.Network, network.KeyPath(), found.Relay.URL, head.Network)
	return nil
}

func networkShowCommand(env *environment) *cobra.Command {
	var flags adminFlags
	var out outputFlag
	cmd := &cobra.Command{
		Use: "show", Short: "Show the network's head", Args: withArgs(cobra.NoArgs),
		Example: "  zt-daemon network show\n  zt-daemon network show -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			admin, head, done, err := flags.open(cmd.Context(), env)
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
				rows = append(rows, []string{"signer", s.Name + "  ends " + relative(s.NotAfter, time.Now())})
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

const networkSignLong = `Sign the head anew, with changes if any are named. Any signing renews it for a
year. It needs the network key, so it runs where ` + "`network create`" + ` ran.`

func networkSignCommand(env *environment) *cobra.Command {
	var flags adminFlags
	var issuer issuerFlags
	var signers map[string]string
	var removeSigners, removeRelays []string
	var addRelay, addClaim, addPin string
	var life time.Duration
	cmd := &cobra.Command{
		Use: "sign", Short: "Sign the head: renew it, admit signers, change relays or issuers", Long: networkSignLong, Args: withArgs(cobra.NoArgs),
		Example: "  zt-daemon network sign\n  zt-daemon network sign --signer mona=BKx…\n  zt-daemon network sign --add-relay https://relay2.example.com --claim CODE",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			admin, old, done, err := flags.open(ctx, env)
			if err != nil {
				return err
			}
			defer done()
			if admin.Network.IsZero() {
				return daemon.NewLocalError(daemon.KindFailure, "run this where `zt-daemon network create` ran", "signing the head needs the key of network %s, which is not on this machine", old.Network)
			}
			next := *old
			next.Version, next.NotAfter = old.Version+1, time.Now().Add(life)
			next.Relays, next.Issuers, next.Signers = slices.Clone(old.Relays), slices.Clone(old.Issuers), slices.Clone(old.Signers)
			for name, text := range signers {
				var k key.SignerPublic
				if err := k.UnmarshalText([]byte(text)); err != nil {
					return usagef("`zt-daemon signer create` prints NAME=KEY", "--signer %s: %v", name, err)
				}
				next.Signers = slices.DeleteFunc(next.Signers, func(s auth.Signer) bool { return s.Name == name })
				next.Signers = append(next.Signers, auth.Signer{Name: name, Key: k, NotAfter: next.NotAfter})
			}
			next.Signers = slices.DeleteFunc(next.Signers, func(s auth.Signer) bool { return slices.Contains(removeSigners, s.Name) })
			next.Relays = slices.DeleteFunc(next.Relays, func(r auth.Relay) bool { return slices.Contains(removeRelays, r.URL) })
			if issuer.url != "" {
				entry, err := issuer.entry()
				if err != nil {
					return err
				}
				next.Issuers = slices.DeleteFunc(next.Issuers, func(i auth.Issuer) bool { return i.URL == entry.URL })
				next.Issuers = append(next.Issuers, entry)
			}
			var code daemon.ClaimCode
			var added *auth.Relay
			if addRelay != "" {
				if code, err = daemon.ParseClaimCode(addClaim); err != nil {
					return usagef("a relay is added with the code that it printed", "--claim: %v", err)
				}
				found, err := daemon.FetchClaimable(ctx, addRelay, code, addPin, httpConfig())
				if err != nil {
					return err
				}
				next.Relays = append(next.Relays, found.Relay)
				added = &found.Relay
			}
			head, err := auth.SignHead(next, admin.Network)
			if err != nil {
				return err
			}
			if added != nil {
				if err := daemon.ClaimRelay(ctx, *added, code, head, httpConfig()); err != nil {
					return err
				}
			}
			faults, err := admin.PublishHead(ctx, head, old)
			if err != nil {
				return err
			}
			if added != nil {
				records, err := admin.Records(ctx, old)
				if err == nil {
					err = admin.PutRecords(ctx, head, *added, records)
				}
				if err != nil {
					return fmt.Errorf("relay %s has the head but not every record: %w", added.URL, err)
				}
			}
			warnRelays(env, faults)
			fmt.Fprintf(env.stdout, "head version %d signed, good until %s; relays: %s\n", head.Version, head.NotAfter.Format(time.DateOnly), relayList(head))
			return nil
		},
	}
	flags.addTo(cmd, env)
	issuer.addTo(cmd)
	f := cmd.Flags()
	f.StringToStringVar(&signers, "signer", nil, "NAME=KEY: admit a signer of records, or renew it")
	f.StringSliceVar(&removeSigners, "remove-signer", nil, "NAME: its records end with the next signing of each")
	f.StringVar(&addRelay, "add-relay", "", "URL of another relay")
	f.StringVar(&addClaim, "claim", "", "the code that the added relay printed")
	f.StringVar(&addPin, "pin", "", "the TLS pin that the added relay printed")
	f.StringSliceVar(&removeRelays, "remove-relay", nil, "URL of a relay to leave")
	f.DurationVar(&life, "life", documentLife, "how long the head is good")
	return cmd
}

func relayList(h *auth.Head) string {
	urls := make([]string, len(h.Relays))
	for i, r := range h.Relays {
		urls[i] = r.URL
	}
	return strings.Join(urls, ", ")
}
