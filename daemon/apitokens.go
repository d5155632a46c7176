package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth"
)

// apiTokenMargin is how long before its end an ID token is refreshed.
const apiTokenMargin = 30 * time.Second

// apiClient names tokens for API servers: clusters that trust the same client
// of the same issuer share them.
type apiClient struct{ issuer, client string }

// apiTokens are a membership's tokens for API servers. They never go to a relay
// or node but inside TLS to the API server.
type apiTokens struct {
	m       *membership
	mu      sync.Mutex // guards entries
	entries map[apiClient]*apiEntry
}

type apiEntry struct {
	issuer auth.Issuer

	storeMu sync.Mutex // held while the kept secret is written or deleted; guards gone
	gone    bool       // logged out: nothing is kept any more

	mu     sync.Mutex  // held over a refresh: one at a time
	loaded bool        // the kept secret was looked for
	tokens auth.Tokens // zero: none, a person must log in
}

func (a *apiTokens) init(m *membership) { a.m, a.entries = m, make(map[apiClient]*apiEntry) }

func (a *apiTokens) entry(i auth.Issuer) *apiEntry {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := apiClient{i.URL, i.ClientID}
	if a.entries[k] == nil {
		a.entries[k] = &apiEntry{issuer: i}
	}
	return a.entries[k]
}

// keptTokens is what is kept between starts of the daemon, as a secret.
type keptTokens struct {
	IDToken      string `json:"idToken"`
	RefreshToken string `json:"refreshToken"`
}

func (a *apiTokens) secretName(i auth.Issuer) string {
	return fmt.Sprintf("api server token: network %s, client %s of %s", a.m.id, i.ClientID, i.URL)
}

// keep takes the tokens of a login.
func (a *apiTokens) keep(i auth.Issuer, t auth.Tokens) error {
	e := a.entry(i)
	e.mu.Lock()
	defer e.mu.Unlock()
	return a.keepLocked(e, i, t)
}

func (a *apiTokens) keepLocked(e *apiEntry, i auth.Issuer, t auth.Tokens) error {
	e.tokens, e.loaded = t, true
	e.storeMu.Lock()
	defer e.storeMu.Unlock()
	if e.gone {
		return nil
	}
	if t.RefreshToken.IsZero() {
		return a.m.laptop.cfg.Secrets.Delete(a.secretName(i))
	}
	text, err := json.Marshal(keptTokens{t.IDToken.Secret(), t.RefreshToken.Secret()})
	if err != nil {
		return err
	}
	return a.m.laptop.cfg.Secrets.Set(a.secretName(i), NewSecret(string(text)))
}

// loadLocked takes what was kept by an earlier start.
func (a *apiTokens) loadLocked(e *apiEntry, i auth.Issuer) {
	if e.loaded {
		return
	}
	e.loaded = true
	secret, err := a.m.laptop.cfg.Secrets.Get(a.secretName(i))
	if errors.Is(err, ErrNoSecret) {
		return
	}
	var kept keptTokens
	if err == nil {
		err = json.Unmarshal([]byte(secret.Reveal()), &kept)
	}
	if err == nil {
		e.tokens, err = auth.StoredTokens(i, auth.IDTokenFrom(kept.IDToken), auth.RefreshTokenFrom(kept.RefreshToken))
	}
	if err != nil {
		// The text of a JSON error could quote the secret.
		a.m.log.Warn("the token kept for the API server cannot be read; a new login is needed", "issuer", i.URL)
	}
}

// get returns an ID token for the API server that is good for a while yet.
func (a *apiTokens) get(ctx context.Context, i auth.Issuer) (auth.Tokens, error) {
	e := a.entry(i)
	e.mu.Lock()
	defer e.mu.Unlock()
	a.loadLocked(e, i)
	now := wallClock().Add(a.m.clockOffset())
	if e.tokens.Expiry.Sub(now) > apiTokenMargin {
		return e.tokens, nil
	}
	if e.tokens.RefreshToken.IsZero() {
		return auth.Tokens{}, NewLocalError(KindExpired, "run `zt-daemon login`, then try again", "there is no login for the API server at %s", i.URL)
	}
	// The issuer may have rotated the refresh token when the person presses Ctrl-C:
	// its answer is still taken. It ends within some 20 s by itself.
	t, err := auth.Refresh(context.WithoutCancel(ctx), auth.LoginConfig{Issuer: i, HTTP: a.m.laptop.cfg.HTTP.issuerClient(), Log: a.m.log}, e.tokens)
	switch {
	case errors.Is(err, auth.ErrLoginExpired): // the next asks the issuer no more
		e.tokens = auth.Tokens{}
		return auth.Tokens{}, errors.Join(err, a.m.laptop.cfg.Secrets.Delete(a.secretName(i)))
	case err != nil:
		return auth.Tokens{}, err
	}
	if err := a.keepLocked(e, i, t); err != nil {
		a.m.log.Warn("refresh token not kept; the next start needs a new login", "err", err)
	}
	return t, nil
}

// forget drops every token, kept ones included. A refresh that is under way keeps
// nothing afterwards.
func (a *apiTokens) forget() error {
	a.mu.Lock()
	entries := maps.Clone(a.entries)
	clear(a.entries)
	a.mu.Unlock()
	for _, c := range a.m.accesses() { // kept by an earlier start, and not used since
		if i := c.current().Issuer; i != nil {
			if k := (apiClient{i.URL, i.ClientID}); entries[k] == nil {
				entries[k] = &apiEntry{issuer: *i}
			}
		}
	}
	var errs []error
	for _, e := range entries {
		e.storeMu.Lock()
		e.gone = true
		errs = append(errs, a.m.laptop.cfg.Secrets.Delete(a.secretName(e.issuer)))
		e.storeMu.Unlock()
	}
	return errors.Join(errs...)
}

// credential is what kubectl's exec plugin asks for. Edge and token are got at
// the same time; the edge's error comes first, because it says more.
func (c *clusterAccess) credential(ctx context.Context) (CredentialResult, error) {
	issuer := c.current().Issuer
	if issuer == nil {
		if _, err := c.ensure(ctx); err != nil { // at least this can be told
			return CredentialResult{}, err
		}
		return CredentialResult{}, NewLocalError(KindUsage, "use the user that your kubeconfig had for it before",
			"cluster %s keeps its own kubeconfig user; zt-daemon has no credential for it", c.name)
	}
	edge := make(chan error, 1)
	c.m.wg.Go(func() {
		_, err := c.ensure(ctx)
		edge <- err
	})
	tokens, err := c.m.api.get(ctx, *issuer)
	if err := <-edge; err != nil {
		return CredentialResult{}, err
	}
	if err != nil {
		return CredentialResult{}, err
	}
	c.m.wg.Go(c.prepare)
	return CredentialResult{IDToken: NewSecret(tokens.IDToken.Secret()), Expiry: tokens.Expiry}, nil
}
