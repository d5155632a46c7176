package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/daemon"
)

const networkSignLong = `Sign the head anew, with changes if any are named. Any signing renews it for a
year. It needs the network key, so it runs where ` + "`network create`" + ` ran.

An issuer that is there already keeps what no flag names. When a cluster's key
was stolen: ` + "`cluster add --new-key`" + `, then --min-record with the version that it
printed, so that no relay can serve an older record.`

// networkSign is the flags of network sign.
type networkSign struct {
	admin                                      adminFlags
	issuer                                     issuerFlags
	signers, minRecords                        map[string]string
	removeSigners, removeRelays, removeIssuers []string
	addRelay, addClaim, addPin                 string
	life                                       time.Duration
}

func networkSignCommand(env *environment) *cobra.Command {
	var n networkSign
	cmd := &cobra.Command{
		Use: "sign", Short: "Sign the head: renew it, admit signers, change relays or issuers", Long: networkSignLong, Args: withArgs(cobra.NoArgs),
		Example: "  zt-daemon network sign\n  zt-daemon network sign --signer mona=BKx…\n  zt-daemon network sign --add-relay https://relay2.example.com --claim CODE",
		RunE:    func(cmd *cobra.Command, _ []string) error { return n.run(cmd, env) },
	}
	n.admin.addTo(cmd, env)
	n.issuer.addTo(cmd)
	f := cmd.Flags()
	f.StringToStringVar(&n.signers, "signer", nil, "NAME=KEY: admit a signer of records, or renew it")
	f.StringSliceVar(&n.removeSigners, "remove-signer", nil, "NAME: the records that it signed no longer count")
	f.StringVar(&n.addRelay, "add-relay", "", "URL of another relay")
	f.StringVar(&n.addClaim, "claim", "", "the code that the added relay printed")
	f.StringVar(&n.addPin, "pin", "", "the TLS pin that the added relay printed")
	f.StringSliceVar(&n.removeRelays, "remove-relay", nil, "URL of a relay to leave")
	f.StringSliceVar(&n.removeIssuers, "remove-issuer", nil, "URL of an issuer whose logins no longer count")
	f.StringToStringVar(&n.minRecords, "min-record", nil, "CLUSTER=VERSION: accept no older record of that cluster")
	f.DurationVar(&n.life, "life", auth.DocumentLife, "how long the head is good")
	return cmd
}

func (n *networkSign) run(cmd *cobra.Command, env *environment) error {
	ctx := cmd.Context()
	switch {
	case n.life <= 0:
		return usagef("give a length of time, for example 8760h", "--life %s is not in the future", n.life)
	case n.addRelay == "" && (n.addClaim != "" || n.addPin != ""):
		return usagef("name the relay with --add-relay https://HOST", "--claim and --pin are of a relay to add")
	case n.issuer.url == "":
		if flag := n.issuer.changed(cmd); flag != "" {
			return usagef("say which with --issuer URL", "--%s is of an issuer", flag)
		}
	}
	// A relay to add may be the one that replaces those which are gone for good.
	admin, old, done, err := n.admin.open(ctx, env, n.addRelay == "")
	if err != nil {
		return err
	}
	defer done()
	if admin.Network.IsZero() {
		return daemon.NewLocalError(daemon.KindFailure, "run this where `zt-daemon network create` ran",
			"signing the head needs the key of network %s, which is not on this machine", old.Network)
	}
	next, err := n.change(cmd, old)
	if err != nil {
		return err
	}
	records, err := admin.Records(ctx, old)
	if n.addRelay != "" && errors.Is(err, daemon.ErrUnreachable) {
		fmt.Fprintln(env.stderr, "zt-daemon: warning: no relay serves records: only those that this machine signed are put on the new one")
		records, err = admin.KeptRecords(old)
	}
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.Err != nil {
			continue
		}
		if err := auth.CheckAudiences(next.Issuers, r.Record.Issuer); err != nil {
			return fmt.Errorf("cluster %s: %w", r.Name, err)
		}
	}
	var code daemon.ClaimCode
	var added auth.Relay
	if n.addRelay != "" {
		if added, code, err = fetchClaimable(ctx, env, n.addRelay, n.addClaim, n.addPin); err != nil {
			return err
		}
		next.Relays = append(next.Relays, added)
	}
	head, err := auth.SignHead(next, admin.Network)
	if err != nil {
		return err
	}
	if n.addRelay != "" {
		if err := daemon.ClaimRelay(ctx, added, code, head, httpConfig()); err != nil {
			return err
		}
	}
	faults, err := admin.PublishHead(ctx, head, old)
	if err != nil {
		return err
	}
	warnRelays(env, faults)
	if n.addRelay != "" {
		if err := admin.PutRecords(ctx, head, added, records); err != nil {
			return fmt.Errorf("relay %s has the head but not every record: %w", added.URL, err)
		}
	}
	fmt.Fprintf(env.stdout, "head version %d signed, good until %s; relays: %s\n", head.Version, head.NotAfter.Format(time.DateOnly), relayList(head))
	return nil
}

// change is the next head, but for a relay to add.
func (n *networkSign) change(cmd *cobra.Command, old *auth.Head) (auth.Head, error) {
	next := *old
	next.Version, next.NotAfter = old.Version+1, time.Now().Add(n.life)
	next.Relays, next.Issuers, next.Signers = slices.Clone(old.Relays), slices.Clone(old.Issuers), slices.Clone(old.Signers)
	if err := n.changeSigners(&next); err != nil {
		return next, err
	}
	for _, url := range n.removeRelays {
		kept := slices.DeleteFunc(slices.Clone(next.Relays), func(r auth.Relay) bool { return r.URL == strings.TrimRight(url, "/") })
		if len(kept) == len(next.Relays) {
			return next, usagef("`zt-daemon network show` lists them", "the network has no relay %q", url)
		}
		next.Relays = kept
	}
	if n.issuer.url != "" {
		at := slices.IndexFunc(next.Issuers, func(i auth.Issuer) bool { return i.URL == n.issuer.url })
		if at < 0 {
			next.Issuers = append(next.Issuers, auth.Issuer{})
			at = len(next.Issuers) - 1
		}
		entry, err := n.issuer.changeEntry(cmd, next.Issuers[at])
		if err != nil {
			return next, err
		}
		next.Issuers[at] = entry
	}
	for _, url := range n.removeIssuers {
		kept := slices.DeleteFunc(slices.Clone(next.Issuers), func(i auth.Issuer) bool { return i.URL == url })
		if len(kept) == len(next.Issuers) {
			return next, usagef("`zt-daemon network show` lists them", "the network has no issuer %q", url)
		}
		next.Issuers = kept
	}
	next.MinRecord = maps.Clone(old.MinRecord)
	for _, name := range slices.Sorted(maps.Keys(n.minRecords)) {
		v, err := strconv.ParseUint(n.minRecords[name], 10, 64)
		if err != nil {
			return next, usagef("write --min-record CLUSTER=VERSION", "--min-record %s: %q is not a version", name, n.minRecords[name])
		}
		if next.MinRecord == nil {
			next.MinRecord = make(map[string]uint64)
		}
		if v < next.MinRecord[name] {
			return next, usagef("`zt-daemon cluster list` shows the versions", "--min-record %s=%d is less than the head's %d: what was withdrawn stays withdrawn", name, v, next.MinRecord[name])
		}
		next.MinRecord[name] = v
	}
	return next, nil
}

func (n *networkSign) changeSigners(next *auth.Head) error {
	for _, name := range slices.Sorted(maps.Keys(n.signers)) {
		var k key.SignerPublic
		if err := k.UnmarshalText([]byte(n.signers[name])); err != nil {
			return usagef("`zt-daemon signer create` prints NAME=KEY", "--signer %s: %v", name, err)
		}
		next.Signers = slices.DeleteFunc(next.Signers, func(s auth.Signer) bool { return s.Name == name })
		next.Signers = append(next.Signers, auth.Signer{Name: name, Key: k, NotAfter: next.NotAfter})
	}
	for _, name := range n.removeSigners {
		kept := slices.DeleteFunc(slices.Clone(next.Signers), func(s auth.Signer) bool { return s.Name == name })
		if len(kept) == len(next.Signers) {
			return usagef("`zt-daemon network show` lists them", "the network has no signer %q", name)
		}
		next.Signers = kept
	}
	return nil
}

func relayList(h *auth.Head) string {
	urls := make([]string, len(h.Relays))
	for i, r := range h.Relays {
		urls[i] = r.URL
	}
	return strings.Join(urls, ", ")
}
