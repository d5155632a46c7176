package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon"
)

const loginLong = `Log in to a network with your identity provider, in your browser.

The line to type comes from your platform engineer; its last part is the network
id, which proves everything else. Without an id the relay is asked which network
it serves, and you are asked once whether that is the one you mean. Later, plain
` + "`zt-daemon login`" + ` logs in again.

The daemon is started if it does not run, and your clusters are written into
your kubeconfig.`

const loginExample = `  zt-daemon login https://relay.example.com/kq3v7m2xw5r6p4dzs5fog7h2j3k4l5m6
  zt-daemon login                # again, to the same network
  zt-daemon login --no-browser   # print the page's address only; see also ssh -L`

type loginOptions struct {
	noBrowser    bool
	network      string
	kubeconfig   string
	noKubeconfig bool
}

func loginCommand(env *environment) *cobra.Command {
	var o loginOptions
	cmd := &cobra.Command{
		Use:     "login [URL]",
		Short:   "Log in, in your browser",
		Long:    loginLong,
		Example: loginExample,
		Args:    withArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			typed := ""
			if len(args) == 1 {
				typed = args[0]
			}
			return login(cmd.Context(), env, o, typed)
		},
	}
	noBrowser := env.getenv("ZT_NO_BROWSER") != ""
	cmd.Flags().BoolVar(&o.noBrowser, "no-browser", noBrowser, "do not open a browser, only print the address (ZT_NO_BROWSER)")
	cmd.Flags().Lookup("no-browser").DefValue = "false"
	cmd.Flags().StringVar(&o.kubeconfig, "kubeconfig", "", "write the clusters into this file")
	cmd.Flags().BoolVar(&o.noKubeconfig, "no-kubeconfig", false, "leave the kubeconfig alone")
	addNetworkID(cmd, env, &o.network, "the network to log in to")
	return cmd
}

func login(ctx context.Context, env *environment, o loginOptions, typed string) error {
	req, err := loginTarget(ctx, env, o, typed)
	if err != nil {
		return err
	}
	client, _, err := reachOrStart(ctx, env)
	if err != nil {
		return err
	}
	page := &loginPage{env: env, open: !o.noBrowser && canShowBrowser(env)}
	result, err := client.Login(ctx, req, page.event)
	page.stopCountdown()
	switch {
	case errors.Is(err, context.Canceled):
		return daemon.NewLocalError(daemon.KindCancelled, "", "login cancelled; nothing was changed")
	case err != nil:
		return err
	}
	return loggedIn(ctx, env, o, result)
}

// loggedIn writes the kubeconfig and says what to try.
func loggedIn(ctx context.Context, env *environment, o loginOptions, result daemon.LoginResult) error {
	who := result.Whoami
	name := who.Email
	for _, other := range []string{who.Name, who.Subject} {
		if name == "" {
			name = other
		}
	}
	fmt.Fprintf(env.stdout, "logged in as %s; the login ends %s\n", printable(name), relative(who.Ends, time.Now()))
	if len(result.Clusters) == 0 {
		fmt.Fprintln(env.stdout, "there are no clusters in this network yet")
		return nil
	}
	if o.noKubeconfig {
		return nil
	}
	w, err := writeKubeconfig(ctx, env, kubeconfigOptions{file: o.kubeconfig}, result.Clusters)
	if err != nil {
		return fmt.Errorf("you are logged in, but: %w", err)
	}
	w.tell(env)
	flag := ""
	if o.kubeconfig != "" {
		flag = " --kubeconfig " + o.kubeconfig
	}
	fmt.Fprintf(env.stdout, "\ntry:\n  kubectl%s --context %s get namespaces\n", printable(flag), w.contexts[0])
	return nil
}

// loginTarget finds out which network is meant, at which relay. The trust in
// everything else begins with the id.
func loginTarget(ctx context.Context, env *environment, o loginOptions, typed string) (daemon.LoginRequest, error) {
	if err := checkNetworkID(o.network); err != nil {
		return daemon.LoginRequest{}, err
	}
	known, err := knownNetworks(env)
	if err != nil {
		return daemon.LoginRequest{}, err
	}
	if typed == "" {
		return loginAgain(known, o.network)
	}
	relay, id, err := parseLoginURL(typed)
	if err != nil {
		return daemon.LoginRequest{}, err
	}
	switch {
	case id == "":
		id = o.network
	case o.network != "" && o.network != id:
		return daemon.LoginRequest{}, usagef("", "the URL names the network %s, --network-id names %s", id, o.network)
	}
	// A relay serves one network. Once it was seen with one id, only that counts.
	for _, n := range known {
		if !slices.Contains(n.relays, relay) {
			continue
		}
		if id != "" && id != n.id {
			return daemon.LoginRequest{}, daemon.NewLocalError(daemon.KindFailure,
				"ask your platform engineer which of the two is right; if the network was made anew, run `zt-daemon logout`, remove "+n.dir+" and log in again",
				"%s is a relay of network %s, which is known here; the line says network %s", relay, n.id, id)
		}
		id = n.id
	}
	if id == "" {
		if id, err = confirmNetwork(ctx, env, relay); err != nil {
			return daemon.LoginRequest{}, err
		}
	}
	return daemon.LoginRequest{Relay: relay, Network: id}, nil
}

// knownNetwork is one that this machine has a head of.
type knownNetwork struct {
	id, dir string
	relays  []string // URLs
}

func knownNetworks(env *environment) ([]knownNetwork, error) {
	state, _, err := env.state()
	if err != nil {
		return nil, err
	}
	ids, err := state.Networks()
	if err != nil {
		return nil, err
	}
	var known []knownNetwork
	for _, id := range ids {
		head, err := state.Network(id).Head()
		if errors.Is(err, daemon.ErrNoState) {
			continue
		} else if err != nil {
			return nil, err
		}
		n := knownNetwork{id: id.String(), dir: state.Network(id).Dir()}
		for _, r := range head.Relays {
			n.relays = append(n.relays, strings.TrimSuffix(r.URL, "/"))
		}
		if len(n.relays) > 0 {
			known = append(known, n)
		}
	}
	return known, nil
}

// loginAgain chooses among the networks of earlier logins.
func loginAgain(known []knownNetwork, id string) (daemon.LoginRequest, error) {
	const line = "zt-daemon login https://RELAY/NETWORK-ID, as your platform engineer gave it to you"
	if id != "" {
		known = slices.DeleteFunc(known, func(n knownNetwork) bool { return n.id != id })
	}
	switch len(known) {
	case 1:
		return daemon.LoginRequest{Relay: known[0].relays[0], Network: known[0].id}, nil
	case 0:
		return daemon.LoginRequest{}, usagef(line, "to which network? This machine knows none yet")
	}
	var lines []string
	for _, n := range known {
		lines = append(lines, "zt-daemon login "+n.relays[0]+"/"+n.id)
	}
	return daemon.LoginRequest{}, usagef(strings.Join(lines, "\n"), "to which network? This machine knows %d", len(known))
}

// parseLoginURL splits https://relay/NETWORKID; the id may be missing.
func parseLoginURL(typed string) (relay, id string, err error) {
	const want = "want https://RELAY or https://RELAY/NETWORK-ID"
	u, err := url.Parse(typed)
	if err != nil {
		return "", "", usagef(want, "%q is not a URL", typed)
	}
	if u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", "", usagef(want, "%q is not the URL of a relay", typed)
	}
	if id = strings.Trim(u.Path, "/"); id != "" {
		n, err := auth.ParseNetworkID(id)
		if err != nil {
			return "", "", usagef(want, "%q ends with no network id: %v", typed, err)
		}
		id = n.String()
	}
	return "https://" + strings.ToLower(u.Host), id, nil
}

// confirmNetwork asks the relay for its head, whose TLS certificate must be
// valid as nothing else vouches for it, and the person whether they mean it.
func confirmNetwork(ctx context.Context, env *environment, relay string) (string, error) {
	if !env.isTerminal() {
		return "", usagef("type the whole line: zt-daemon login "+relay+"/NETWORK-ID", "the network id is missing, and there is no terminal to ask at")
	}
	head, err := daemon.FetchHead(ctx, relay, auth.NetworkID{}, daemon.HTTPConfig{Proxy: http.ProxyFromEnvironment})
	if err != nil {
		return "", err
	}
	fmt.Fprintf(env.stderr, "The relay %s serves this network:\n\n", printable(relay))
	rows := [][]string{{"  network id", head.Network.String()}}
	for _, i := range head.Issuers {
		host := i.URL
		if u, err := url.Parse(i.URL); err == nil && u.Host != "" {
			host = u.Host
		}
		rows = append(rows, []string{"  identity provider", host}, []string{"  client id", i.ClientID})
	}
	if err := table(env.stderr, rows); err != nil {
		return "", err
	}
	fmt.Fprint(env.stderr, "\nIf somebody told you the id, compare it. It is asked once.\nIs this the network you mean? [y/N] ")
	answer, err := readLine(ctx, env.stdin)
	if err != nil {
		fmt.Fprintln(env.stderr)
		return "", err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return head.Network.String(), nil
	}
	return "", daemon.NewLocalError(daemon.KindCancelled, "", "login cancelled; nothing was changed")
}

// readLine reads one line, or ends with ctx. A read of a terminal cannot be
// stopped: its goroutine ends with the program.
func readLine(ctx context.Context, r io.Reader) (string, error) {
	type read struct {
		line string
		err  error
	}
	done := make(chan read, 1)
	go func() {
		line, err := bufio.NewReader(io.LimitReader(r, 1024)).ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = nil // no answer is an answer
		}
		done <- read{line, err}
	}()
	select {
	case l := <-done:
		return l.line, l.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}
