package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zt-daemon/zt/auth"
)

// Login implements LocalHandler: one visit of the browser for the overlay's
// grant and, by the same session at the issuer, for the API server's token.
func (l *Laptop) Login(ctx context.Context, req LoginRequest, send func(LoginEvent)) (LoginResult, error) {
	if !l.loginMu.TryLock() {
		return LoginResult{}, NewLocalError(KindBusy, "finish it in the browser, or end that command with Ctrl-C", "another login is under way")
	}
	defer l.loginMu.Unlock()
	id, err := auth.ParseNetworkID(req.Network)
	if err != nil {
		return LoginResult{}, NewLocalError(KindUsage, hintLoginURL, "network: %v", err)
	}
	step := func(format string, args ...any) {
		send(LoginEvent{Type: LoginStep, Message: fmt.Sprintf(format, args...)})
	}
	step("fetching what network %s says of itself from %s", id, req.Relay)
	head, err := FetchHead(ctx, req.Relay, id, l.cfg.HTTP)
	if err != nil {
		return LoginResult{}, err
	}
	m, err := l.join(id)
	if err != nil {
		return LoginResult{}, err
	}
	if err := m.takeHead(head); err != nil {
		return LoginResult{}, err
	}
	return m.logIn(ctx, send, step)
}

// logIn runs the visit and returns when the clusters are known.
func (m *membership) logIn(ctx context.Context, send func(LoginEvent), step func(string, ...any)) (LoginResult, error) {
	m.mu.Lock()
	issuer := m.head.Issuers[0]
	m.mu.Unlock()
	commitment := auth.NewCommitment(m.id, m.login.Public())
	client := m.laptop.cfg.HTTP.issuerClient()
	browser, err := auth.NewBrowser(auth.BrowserConfig{
		Host: issuer.RedirectHost, Ports: issuer.RedirectPorts,
		Progress: func(e auth.BrowserEvent) {
			switch e.Kind {
			case auth.BrowserURL:
				send(LoginEvent{Type: LoginBrowser, URL: e.URL, Until: time.Now().Add(auth.DefaultVisitTimeout)})
			case auth.BrowserLoggedIn:
				step("%s logged in at %s", e.Person, e.Issuer)
			}
		},
		Summary: m.summary,
		Log:     m.log,
	})
	if err != nil {
		return LoginResult{}, err
	}
	var apiServer *auth.Issuer // of the login under way; nil: the overlay's
	first := auth.LoginConfig{Issuer: issuer, Nonce: commitment.Nonce(), HTTP: client, Log: m.log}
	tokens, err := browser.Visit(ctx, first, func(ctx context.Context, t auth.Tokens) (*auth.LoginConfig, error) {
		if apiServer != nil {
			return nil, m.api.keep(*apiServer, t)
		}
		if err := m.admit(ctx, t, commitment, send, step); err != nil {
			return nil, err
		}
		if apiServer = m.defaultIssuer(); apiServer == nil {
			return nil, nil
		}
		return &auth.LoginConfig{
			Issuer: *apiServer, LoginHint: t.Email, Silent: true, Offline: true, SameAs: &t, HTTP: client, Log: m.log,
		}, nil
	})
	if err != nil && len(tokens) > 0 && apiServer != nil {
		return LoginResult{}, fmt.Errorf("logged in to the network, but there is no token for the API servers: %w", err)
	} else if err != nil {
		return LoginResult{}, err
	}
	who, _ := m.whoami()
	return LoginResult{Whoami: who, Clusters: m.clusterStatus()}, nil
}

// admit keeps the login, has the relay admit it, and waits for the documents
// that tell which clusters there are.
func (m *membership) admit(ctx context.Context, t auth.Tokens, c auth.Commitment, send func(LoginEvent), step func(string, ...any)) error {
	if offset, ok := t.ClockOffset(); ok {
		m.mu.Lock()
		m.offset = 0
		if offset.Abs() > time.Second { // HTTP dates have no finer step
			m.offset = offset
		}
		m.mu.Unlock()
		if offset.Abs() > clockTolerance {
			send(LoginEvent{Type: LoginWarning, Message: clockWarning(offset)})
		}
	}
	if err := m.keepGrant(t, c); err != nil {
		return err
	}
	m.takeRelays()
	for _, s := range m.up() {
		s.Reconnect()
	}
	step("the relay verifies the grant")
	m.mu.Lock()
	synced := m.synced
	m.mu.Unlock()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		select {
		case <-synced:
			for _, c := range m.accesses() {
				c.refresh()
			}
			return nil
		case <-ctx.Done():
			if last == nil {
				last = &UnreachableError{Relay: m.up()[0].relay.URL, Err: context.Cause(ctx)}
			}
			return last
		case <-tick.C:
		}
		refused := 0
		sessions := m.up()
		for _, s := range sessions {
			if st := s.Status(); !st.Up && st.Err != nil {
				last = st.Err
				if isRefused(st.Err) {
					refused++
				}
			}
		}
		if len(sessions) > 0 && refused == len(sessions) {
			m.mu.Lock()
			m.grant = nil
			m.mu.Unlock()
			return errors.Join(last, m.state.RemoveGrant())
		}
		if len(sessions) == 0 {
			return NewLocalError(KindUnreachable, "see the daemon's log", "no relay of the network can be used")
		}
	}
}

// keepGrant makes the login the one that statements are signed under.
func (m *membership) keepGrant(t auth.Tokens, c auth.Commitment) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	issuer, ok := m.head.Issuer(t.Issuer)
	if !ok {
		return fmt.Errorf("the network's head no longer names issuer %s", t.Issuer)
	}
	was := m.grant
	m.grant = newLaptopGrant(auth.Grant{Issuer: t.Issuer, IDToken: t.IDToken.Secret(), Commitment: c.Append(nil)}, t, issuer)
	m.signLocked(wallClock().Add(m.offset), false)
	m.grant.grant.Statement = m.statement
	if err := m.state.KeepGrant(m.grant.grant.Append(nil)); err != nil {
		m.grant = was
		return fmt.Errorf("keep the login: %w", err)
	}
	m.synced = make(chan struct{})
	return nil
}

// refresh has the node see a newer grant: an open edge is asked for again, and
// its flows go on. What was refused before is forgotten.
func (c *clusterAccess) refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.edge == nil {
		c.setStateLocked(ClusterIdle, nil)
		return
	}
	c.beginLocked()
}

// defaultIssuer is the API servers' issuer that most clusters have; nil if none.
func (m *membership) defaultIssuer() *auth.Issuer {
	count := make(map[apiClient]int)
	var best *auth.Issuer
	for _, c := range m.accesses() {
		r := c.current()
		if r.Removed || r.Issuer == nil {
			continue
		}
		k := apiClient{r.Issuer.URL, r.Issuer.ClientID}
		count[k]++
		if best == nil || count[k] > count[apiClient{best.URL, best.ClientID}] {
			best = r.Issuer
		}
	}
	return best
}

// summary is what the browser's last page shows.
func (m *membership) summary(tokens []auth.Tokens) auth.LoginSummary {
	who, _ := m.whoami()
	s := auth.LoginSummary{Person: who.Email, Groups: who.Groups, Until: who.Ends}
	if len(tokens) > 0 {
		s.Person = tokens[0].String()
	}
	for _, c := range m.clusterStatus() {
		s.Clusters = append(s.Clusters, c.Name)
	}
	return s
}
