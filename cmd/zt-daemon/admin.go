package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon"
)

// documentLife is how long a head or record that is signed here is good.
const documentLife = 365 * 24 * time.Hour

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

// open finds the network, reads this machine's keys and fetches the newest head.
// The lock is held until close is called.
func (a *adminFlags) open(ctx context.Context, env *environment) (admin *daemon.Admin, head *auth.Head, close func(), err error) {
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
	warnRelays(env, faults)
	return admin, head, func() { lock.Close() }, nil
}

func (a *adminFlags) find(state *daemon.AdminState) (auth.NetworkID, error) {
	if a.network != "" {
		id, err := auth.ParseNetworkID(a.network)
		if err != nil {
			return id, usagef("", "--network: %v", err)
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

func (i *issuerFlags) entry() (auth.Issuer, error) {
	e := auth.Issuer{
		URL: i.url, ClientID: i.clientID, Audiences: i.audiences, Require: i.require, GroupsClaim: i.groupsClaim, SubjectClaim: i.subjectClaim,
		RedirectHost: i.redirectHost, Scopes: i.scopes, Algorithms: i.algorithms, AuthTimeRequired: i.authTime,
		LoginAge: auth.Duration(i.loginAge), GrantAge: auth.Duration(i.grantAge),
	}
	for _, p := range i.redirectPorts {
		if p == 0 || p > 65535 {
			return e, usagef("", "--redirect-port %d is not a port", p)
		}
		e.RedirectPorts = append(e.RedirectPorts, uint16(p))
	}
	if i.secretFile != "" {
		b, err := os.ReadFile(i.secretFile)
		if err != nil {
			return e, fmt.Errorf("client secret: %w", err)
		}
		e.ClientSecret = strings.TrimSpace(string(b))
	}
	if i.caFile != "" {
		b, err := os.ReadFile(i.caFile)
		if err != nil {
			return e, fmt.Errorf("issuer CA: %w", err)
		}
		e.CA = string(b)
	}
	return e, e.Validate()
}

// adminGroup is a command that only holds others.
func adminGroup(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: noSuchCommand, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(commands...)
	return cmd
}
