package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
)

const (
	// loginStepTimeout bounds each step at the issuer: discovery, the exchange
	// with the verification of what it brought, a refresh.
	loginStepTimeout  = 10 * time.Second
	maxDiscoveryBytes = 1 << 20
)

// LoginConfig describes one login. Only Issuer is required.
type LoginConfig struct {
	Issuer Issuer
	// Nonce must come back in the ID token: Commitment.Nonce for the overlay.
	// "" means a random one.
	Nonce string
	// LoginHint tells the issuer who is expected (OIDC Core §3.1.2.1).
	LoginHint string
	// Silent asks without a page first (prompt=none), and again with one if the
	// issuer wants the person.
	Silent bool
	// Prompt is sent on an interactive request: "", login, consent or select_account.
	Prompt string
	// Offline asks for a refresh token.
	Offline bool
	// SameAs, if set, is the login whose person this one must be.
	SameAs *Tokens
	// Keys verifies the ID token; nil means a key set made for this login. One
	// that is given fetches in its own time: a cancelled login may wait for it.
	Keys *KeySet
	HTTP *http.Client     // nil = the default transport's settings; the issuer's CA is put into a copy
	Now  func() time.Time // nil = time.Now
	Log  *slog.Logger     // nil = none
}

// loginClient talks to one issuer for one login or refresh. All its
// connections end when the context that it was made with does.
type loginClient struct {
	cfg      LoginConfig
	issuer   Issuer // with defaults
	http     *http.Client
	keys     *KeySet
	now      func() time.Time
	log      *slog.Logger
	endpoint loginEndpoints
	dates    *dateKeeper
}

// loginEndpoints is what a login needs of a discovery document.
type loginEndpoints struct {
	Issuer         string   `json:"issuer"`
	Authorization  string   `json:"authorization_endpoint"`
	Token          string   `json:"token_endpoint"`
	Scopes         []string `json:"scopes_supported"`
	ResponseHasIss bool     `json:"authorization_response_iss_parameter_supported"` // RFC 9207 §3
}

// newLoginClient checks cfg and discovers the issuer's endpoints. ctx bounds
// the client's life, not only this call.
func newLoginClient(ctx context.Context, cfg LoginConfig) (*loginClient, error) {
	if err := cfg.Issuer.Validate(); err != nil {
		return nil, err
	}
	switch cfg.Prompt {
	case "", "login", "consent", "select_account":
	default:
		return nil, fmt.Errorf("prompt %q: want login, consent or select_account", cfg.Prompt)
	}
	l := &loginClient{cfg: cfg, issuer: cfg.Issuer.WithDefaults(), keys: cfg.Keys, now: cfg.Now, log: cfg.Log}
	if l.now == nil {
		l.now = time.Now
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	base := loginTransport(ctx, cfg.HTTP)
	client, err := issuerClient(base, l.issuer.CA)
	if err != nil {
		return nil, fmt.Errorf("issuer %q: %w", l.issuer.URL, err)
	}
	l.dates = &dateKeeper{next: client.Transport}
	client.Transport = l.dates
	l.http = client
	if l.keys == nil {
		if l.keys, err = NewKeySet(KeySetConfig{Issuer: l.issuer, HTTP: base, Log: l.log, Now: cfg.Now}); err != nil {
			return nil, err
		}
	}
	if err := l.discover(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

// loginTransport copies base so that its connections are closed when ctx ends:
// a cancelled login must not wait for an issuer that hangs, and must leave no
// idle connection behind. A transport of another type is the caller's to end.
func loginTransport(ctx context.Context, base *http.Client) *http.Client {
	c := &http.Client{}
	if base != nil {
		*c = *base
	}
	if c.Transport == nil {
		c.Transport = http.DefaultTransport
	}
	t, ok := c.Transport.(*http.Transport)
	if !ok {
		return c
	}
	t = t.Clone()
	dial := t.DialContext
	if dial == nil {
		dial = (&net.Dialer{Timeout: loginStepTimeout}).DialContext
	}
	t.DialContext = func(dctx context.Context, network, addr string) (net.Conn, error) {
		dctx, cancel := context.WithCancel(dctx)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		conn, err := dial(dctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &loginConn{Conn: conn, stop: context.AfterFunc(ctx, func() { conn.Close() })}, nil
	}
	c.Transport = t
	return c
}

// loginConn forgets its context when it is closed.
type loginConn struct {
	net.Conn
	stop func() bool
}

func (c *loginConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// dateKeeper remembers the Date of the last answer, and when that came.
type dateKeeper struct {
	next http.RoundTripper

	mu       sync.Mutex
	date     time.Time // zero = the last answer had none
	received time.Time
}

func (k *dateKeeper) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := k.next.RoundTrip(req)
	if err == nil {
		date, derr := http.ParseTime(resp.Header.Get("Date"))
		if derr != nil {
			date = time.Time{}
		}
		k.mu.Lock()
		k.date, k.received = date, time.Now()
		k.mu.Unlock()
	}
	return resp, err
}

// now returns the Date of the last answer brought forward to now, or zero. A
// Date has no fraction: half a second is the best guess of it.
func (k *dateKeeper) now() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.date.IsZero() {
		return time.Time{}
	}
	return k.date.Add(time.Second/2 + time.Since(k.received)) // monotonic
}

// discover reads the issuer's discovery document (OIDC Discovery §4).
func (l *loginClient) discover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loginStepTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(l.issuer.URL, "/")+wellKnownPath, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := l.http.Do(req)
	if err != nil {
		return l.stepError(ctx, l.transportError(err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDiscoveryBytes+1))
	if err != nil {
		return l.stepError(ctx, l.transportError(err))
	}
	notIssuer := func(format string, args ...any) error {
		return &LoginError{
			Issuer: l.issuer.URL, Err: ErrIssuerUnreachable, Detail: "discovery: " + fmt.Sprintf(format, args...),
			Advice: "compare `url` of the issuer entry with what the identity provider calls its issuer",
		}
	}
	if resp.StatusCode != http.StatusOK {
		return notIssuer("%s answered status %d", req.URL.Host, resp.StatusCode)
	}
	if len(body) > maxDiscoveryBytes {
		return notIssuer("%s answered more than %d bytes", req.URL.Host, maxDiscoveryBytes)
	}
	if err := json.Unmarshal(body, &l.endpoint); err != nil {
		return notIssuer("%s did not answer JSON", req.URL.Host)
	}
	if l.endpoint.Issuer != l.issuer.URL { // OIDC Discovery §4.3
		return notIssuer("the document is of issuer %q, want %q", foreignText(l.endpoint.Issuer), l.issuer.URL)
	}
	for _, e := range []struct{ name, url string }{
		{"authorization_endpoint", l.endpoint.Authorization}, {"token_endpoint", l.endpoint.Token},
	} {
		if !l.usable(e.url) {
			return notIssuer("%s is not an https URL", e.name)
		}
	}
	return nil
}

// usable wants HTTPS, or http where issuer and endpoint are on loopback.
func (l *loginClient) usable(raw string) bool {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		return false
	}
	own, err := url.Parse(l.issuer.URL)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http" && own.Scheme == "http" && issuerLoopback(u.Hostname()))
}

// stepError prefers the end of the caller's context over its consequence.
func (l *loginClient) stepError(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return &LoginError{Issuer: l.issuer.URL, Err: context.Canceled}
	}
	return err
}

// authorization is one authorization request that a browser carries out.
type authorization struct {
	client   *loginClient
	redirect string // redirect_uri
	state    string
	nonce    string
	verifier string // PKCE's
	silent   bool   // prompt=none
}

func (l *loginClient) newAuthorization(redirect string, silent bool) *authorization {
	a := &authorization{
		client: l, redirect: redirect, state: rand.Text(), nonce: l.cfg.Nonce, verifier: oauth2.GenerateVerifier(), silent: silent,
	}
	if a.nonce == "" {
		var b [32]byte
		rand.Read(b[:])
		a.nonce = base64.RawURLEncoding.EncodeToString(b[:])
	}
	return a
}

func (l *loginClient) oauth(redirect string) *oauth2.Config {
	scopes := slices.Clone(l.issuer.Scopes)
	if l.cfg.Offline && !slices.Contains(scopes, "offline_access") && slices.Contains(l.endpoint.Scopes, "offline_access") {
		scopes = append(scopes, "offline_access") // OIDC Core §11; who does not list it may refuse it
	}
	return &oauth2.Config{
		ClientID: l.issuer.ClientID, ClientSecret: l.issuer.ClientSecret, RedirectURL: redirect, Scopes: scopes,
		Endpoint: oauth2.Endpoint{
			AuthURL: l.endpoint.Authorization, TokenURL: l.endpoint.Token,
			AuthStyle: oauth2.AuthStyleInParams, // probing would burn the code on the first try
		},
	}
}

// url is what the browser opens.
func (a *authorization) url() string {
	cfg := a.client.cfg
	options := []oauth2.AuthCodeOption{
		oauth2.S256ChallengeOption(a.verifier),
		oauth2.SetAuthURLParam("nonce", a.nonce),
		oauth2.SetAuthURLParam("max_age", strconv.FormatInt(int64(a.client.issuer.LoginAge.Std()/time.Second), 10)),
	}
	if cfg.LoginHint != "" {
		options = append(options, oauth2.SetAuthURLParam("login_hint", cfg.LoginHint))
	}
	if a.silent {
		options = append(options, oauth2.SetAuthURLParam("prompt", "none"))
	} else if cfg.Prompt != "" {
		options = append(options, oauth2.SetAuthURLParam("prompt", cfg.Prompt))
	}
	return a.client.oauth(a.redirect).AuthCodeURL(a.state, options...)
}

// wantsPerson reports whether an error of a silent request means that the
// issuer wants to show a page (OIDC Core §3.1.2.6).
func wantsPerson(code string) bool {
	switch code {
	case "login_required", "interaction_required", "consent_required", "account_selection_required":
		return true
	}
	return false
}

// checkSender holds RFC 9207: an answer that names another issuer, or none
// where this one always names itself, is some other issuer's.
func (a *authorization) checkSender(q url.Values) error {
	l := a.client
	iss, present := q["iss"]
	switch {
	case !present && l.endpoint.ResponseHasIss:
		return &LoginError{Issuer: l.issuer.URL, Err: ErrIssuerAnswer, Detail: "it does not name its issuer, which this issuer always does (RFC 9207)"}
	case present && (len(iss) != 1 || iss[0] != l.issuer.URL):
		return &LoginError{Issuer: l.issuer.URL, Err: ErrIssuerAnswer, Detail: fmt.Sprintf("it is from issuer %q (RFC 9207)", foreignText(strings.Join(iss, " ")))}
	}
	return nil
}

// redeem exchanges the code and verifies what it brings.
func (a *authorization) redeem(ctx context.Context, code string) (Tokens, error) {
	l := a.client
	ctx, cancel := context.WithTimeout(ctx, loginStepTimeout)
	defer cancel()
	answer, err := l.oauth(a.redirect).Exchange(context.WithValue(ctx, oauth2.HTTPClient, l.http), code, oauth2.VerifierOption(a.verifier))
	if err != nil {
		return Tokens{}, l.stepError(ctx, l.tokenEndpointError(err))
	}
	return l.accept(ctx, answer, func(t *tokenClaims) error {
		nonce, present := t.claims["nonce"]
		if !present {
			return &LoginError{Issuer: l.issuer.URL, Err: ErrNonceMissing}
		}
		if s, ok := nonce.(string); !ok || subtle.ConstantTimeCompare([]byte(s), []byte(a.nonce)) != 1 {
			return &LoginError{Issuer: l.issuer.URL, Err: ErrNonceAltered}
		}
		return nil
	}, a.nonce)
}

// accept verifies the ID token of a token endpoint's answer as OIDC Core
// §3.1.3.7 demands, with check between signature and times.
func (l *loginClient) accept(ctx context.Context, answer *oauth2.Token, check func(*tokenClaims) error, nonce string) (Tokens, error) {
	raw, _ := answer.Extra("id_token").(string)
	if raw == "" {
		return Tokens{}, &LoginError{
			Issuer: l.issuer.URL, Err: ErrIssuerAnswer, Detail: "no ID token in it",
			Advice: "see that the scopes of the issuer entry hold openid, and that the identity provider's client is an OpenID Connect one",
		}
	}
	local := l.now()
	date := l.dates.now()
	t, refused := verifierEntry{issuer: l.issuer, keys: l.keys}.claims(ctx, raw)
	if refused != nil {
		return Tokens{}, l.stepError(ctx, &LoginError{Issuer: l.issuer.URL, Err: refused})
	}
	if date.IsZero() {
		date = t.iat
	}
	offset := date.Sub(local).Round(time.Second)
	for _, hold := range []func(Issuer) *RefusedError{t.checkIssuer, t.checkPersonAudience, t.checkRequired} {
		if refused := hold(l.issuer); refused != nil {
			return Tokens{}, &LoginError{Issuer: l.issuer.URL, Err: refused}
		}
	}
	if err := check(t); err != nil {
		return Tokens{}, err
	}
	// By the issuer's clock: this machine's may be wrong, and a relay's and a
	// node's opinion of the token does not depend on it.
	now := local.Add(offset)
	if _, refused := t.checkTimes(l.issuer, now); refused != nil {
		return Tokens{}, &LoginError{Issuer: l.issuer.URL, Err: refused}
	}
	if _, refused := t.checkLogin(l.issuer); refused != nil {
		return Tokens{}, &LoginError{Issuer: l.issuer.URL, Err: refused}
	}
	tokens, refused := t.tokens(l.issuer)
	if refused != nil {
		return Tokens{}, &LoginError{Issuer: l.issuer.URL, Err: refused}
	}
	if !tokens.Expiry.After(now.Add(-clockSkew)) {
		return Tokens{}, &LoginError{Issuer: l.issuer.URL, Err: refuse(ReasonExpired, "ID token expired %s ago", aboutDuration(now.Sub(tokens.Expiry)))}
	}
	if same := l.cfg.SameAs; same != nil && !SamePerson(same.Claims, tokens.Claims) {
		return Tokens{}, &LoginError{
			Issuer: l.issuer.URL, Err: ErrOtherPerson, Detail: fmt.Sprintf("%s, want %s", tokens, same),
		}
	}
	tokens.IDToken, tokens.RefreshToken = IDTokenFrom(raw), RefreshTokenFrom(answer.RefreshToken)
	tokens.Nonce, tokens.offset, tokens.known = nonce, offset, true
	return tokens, nil
}
