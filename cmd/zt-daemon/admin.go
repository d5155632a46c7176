package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon"
)

// adminFlags choose the network of an administrator's command.
type adminFlags struct{ network, relay string }

func (a *adminFlags) addTo(cmd *cobra.Command, env *environment) {
	cmd.Flags().StringVar(&a.network, "network", env.getenv("ZT_NETWORK"), "network id, if this machine knows several (ZT_NETWORK)")
	cmd.Flags().Lookup("network").DefValue = ""
	cmd.Flags().StringVar(&a.relay, "relay", "", "a relay of the network, where this machine knows none yet: https://HOST")
}

func httpConfig() daemon.HTTPConfig { return daemon.HTTPConfig{Proxy: http.ProxyFromEnvironment} }

func (env *environment) adminState() (*daemon.AdminState, error) {
	dirs, err := env.dirs()
	if err != nil {
		return nil, err
	}
	return daemon.OpenAdminState(dirs.Config)
}

// open finds the network, reads this machine's keys and fetches the newest head,
// which for a command that is to change something (online) a relay must serve.
// The lock is held until close is called.
func (a *adminFlags) open(ctx context.Context, env *environment, online bool) (admin *daemon.Admin, head *auth.Head, close func(), err error) {
	state, err := env.adminState()
	if err != nil {
		return nil, nil, nil, err
	}
	id, err := a.find(state)
	if err != nil {
		return nil, nil, nil, err
	}
	lock, err := state.Lock()
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if admin, err = daemon.OpenAdmin(state, id, httpConfig()); err != nil {
		return nil, nil, nil, err
	}
	var relays []string
	if a.relay != "" {
		relays = append(relays, a.relay)
	}
	head, faults, err := admin.Refresh(ctx, relays...)
	if err != nil {
		return nil, nil, nil, err
	}
	if online && len(faults) > 0 && len(faults) >= len(head.Relays) {
		return nil, nil, nil, faults[0]
	}
	warnRelays(env, faults)
	return admin, head, func() { lock.Close() }, nil
}

func (a *adminFlags) find(state *daemon.AdminState) (auth.NetworkID, error) {
	if a.network != "" {
		id, err := auth.ParseNetworkID(a.network)
		if err != nil {
			return id, usagef("`zt-daemon network show` prints it, and the login line ends with it", "--network: %v", err)
		}
		return id, nil
	}
	ids, err := state.Networks()
	switch {
	case err != nil:
		return auth.NetworkID{}, err
	case len(ids) == 1:
		return ids[0], nil
	case len(ids) == 0:
		return auth.NetworkID{}, usagef("run `zt-daemon network create`, or name one with --network ID --relay https://HOST", "this machine knows no network")
	}
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	return auth.NetworkID{}, usagef("name one with --network", "this machine knows several networks: %s", strings.Join(names, ", "))
}

// warnRelays names the relays that an answer was not had from. What was signed
// reaches them with the next signing.
func warnRelays(env *environment, faults []*daemon.RelayError) {
	for _, f := range faults {
		fmt.Fprintf(env.stderr, "zt-daemon: warning: %s\n", printable(f.Error()))
	}
}

// issuerFlags describe an issuer entry.
type issuerFlags struct {
	url, clientID, secretFile, groupsClaim, subjectClaim, redirectHost, caFile string
	audiences, scopes, algorithms                                              []string
	require                                                                    map[string]string
	redirectPorts                                                              []uint
	loginAge, grantAge                                                         time.Duration
	authTime                                                                   bool
}

func (i *issuerFlags) addTo(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&i.url, "issuer", "", "the identity provider's issuer URL, as its discovery document writes it")
	f.StringVar(&i.clientID, "client-id", "", "its client for this network: native (public), not the API server's")
	f.StringVar(&i.secretFile, "client-secret-file", "", "file with a client secret that the provider calls public (Google)")
	f.StringSliceVar(&i.audiences, "audience", nil, "accept this audience beside the client id")
	f.StringToStringVar(&i.require, "require", nil, "claim=value that every login must carry (Entra tid, Google hd)")
	f.StringVar(&i.groupsClaim, "groups-claim", "", "claim that holds the groups (default groups)")
	f.StringVar(&i.subjectClaim, "subject-claim", "", "claim that policies call uid (default sub; Entra: oid)")
	f.StringVar(&i.redirectHost, "redirect-host", "", "127.0.0.1 (default) or localhost, as registered")
	f.UintSliceVar(&i.redirectPorts, "redirect-port", nil, "registered redirect ports (default any; Okta matches exactly)")
	f.StringSliceVar(&i.scopes, "scope", nil, "scopes to ask for (default openid,profile,email)")
	f.StringSliceVar(&i.algorithms, "algorithm", nil, "signature algorithms to accept (default RS256,ES256)")
	f.StringVar(&i.caFile, "issuer-ca", "", "PEM file of the issuer's certificate authority (default the system's)")
	f.BoolVar(&i.authTime, "require-auth-time", false, "refuse logins that do not tell when the person logged in")
	f.DurationVar(&i.loginAge, "login-age", 0, "how old a login at the provider may be (default 12h)")
	f.DurationVar(&i.grantAge, "grant-age", 0, "how long a login opens the network (default 12h, at most 24h)")
}

// issuerFlagNames are the flags of issuerFlags but for --issuer.
var issuerFlagNames = []string{"client-id", "client-secret-file", "audience", "require", "groups-claim", "subject-claim", "redirect-host",
	"redirect-port", "scope", "algorithm", "issuer-ca", "require-auth-time", "login-age", "grant-age"}

// changed is the name of a flag that was given; empty if none was.
func (i *issuerFlags) changed(cmd *cobra.Command) string {
	for _, name := range issuerFlagNames {
		if cmd.Flags().Changed(name) {
			return name
		}
	}
	return ""
}

// changeEntry is e with what the flags that were given say.
func (i *issuerFlags) changeEntry(cmd *cobra.Command, e auth.Issuer) (auth.Issuer, error) {
	e.URL = i.url
	set := map[string]func() error{
		"client-id":          func() error { e.ClientID = i.clientID; return nil },
		"client-secret-file": func() (err error) { e.ClientSecret, err = readFlagFile(i.secretFile); return },
		"audience":           func() error { e.Audiences = i.audiences; return nil },
		"require":            func() error { e.Require = i.require; return nil },
		"groups-claim":       func() error { e.GroupsClaim = i.groupsClaim; return nil },
		"subject-claim":      func() error { e.SubjectClaim = i.subjectClaim; return nil },
		"redirect-host":      func() error { e.RedirectHost = i.redirectHost; return nil },
		"redirect-port":      func() (err error) { e.RedirectPorts, err = portsOf(i.redirectPorts); return },
		"scope":              func() error { e.Scopes = i.scopes; return nil },
		"algorithm":          func() error { e.Algorithms = i.algorithms; return nil },
		"issuer-ca":          func() (err error) { e.CA, err = readFlagFile(i.caFile); return },
		"require-auth-time":  func() error { e.AuthTimeRequired = i.authTime; return nil },
		"login-age":          func() error { e.LoginAge = auth.Duration(i.loginAge); return nil },
		"grant-age":          func() error { e.GrantAge = auth.Duration(i.grantAge); return nil },
	}
	for _, name := range issuerFlagNames {
		if !cmd.Flags().Changed(name) {
			continue
		}
		if err := set[name](); err != nil {
			return e, fmt.Errorf("--%s: %w", name, err)
		}
	}
	return e, e.Validate()
}

// maxFlagFile bounds a file that a flag names, which a signed document has to hold.
const maxFlagFile = 64 << 10

// readFlagFile reads a small text file; an empty name is an empty text.
func readFlagFile(name string) (string, error) {
	if name == "" {
		return "", nil
	}
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFlagFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxFlagFile {
		return "", fmt.Errorf("%s has more than %d bytes", name, maxFlagFile)
	}
	return strings.TrimSpace(string(b)), nil
}

func portsOf(values []uint) ([]uint16, error) {
	var ports []uint16
	for _, p := range values {
		if p == 0 || p > 65535 {
			return nil, usagef("leave it out for any port", "%d is not from 1 to 65535", p)
		}
		ports = append(ports, uint16(p))
	}
	return ports, nil
}

// fetchClaimable asks the relay that a command line names for what a head is to
// say of it.
func fetchClaimable(ctx context.Context, env *environment, relay, claim, pin string) (auth.Relay, daemon.ClaimCode, error) {
	code, err := daemon.ParseClaimCode(claim)
	if err != nil {
		return auth.Relay{}, code, usagef("copy it from the relay's first lines", "--claim: %v", err)
	}
	if err := auth.ValidRelayURL(strings.TrimRight(relay, "/")); err != nil {
		return auth.Relay{}, code, usagef("write it as the relay printed it, https://HOST or https://HOST:PORT", "%v", err)
	}
	if b, err := base64.StdEncoding.Strict().DecodeString(pin); pin != "" && (err != nil || len(b) != sha256.Size) {
		return auth.Relay{}, code, usagef("copy it from the relay's first lines", "--pin %q is not base64 of %d bytes", pin, sha256.Size)
	}
	found, err := daemon.FetchClaimable(ctx, relay, code, pin, httpConfig())
	if err != nil {
		return auth.Relay{}, code, err
	}
	warnUnvouched(env, found)
	return found.Relay, code, nil
}

// warnUnvouched says so if a relay's TLS rests on its first sight.
func warnUnvouched(env *environment, found daemon.ClaimableRelay) {
	if !found.Vouched {
		fmt.Fprintf(env.stderr, "zt-daemon: warning: nothing vouches for the certificate of %s; its pin %s goes into the head. Compare it with the one that the relay printed.\n",
			found.Relay.URL, found.Relay.Pins[0])
	}
}

// adminGroup is a command that only holds others.
func adminGroup(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: noSuchCommand, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(commands...)
	return cmd
}
