// Package issuer is a strict OpenID Connect issuer for tests, with everything
// in memory: the protocol is zitadel/oidc's certified op package, and what that
// library leaves to its user (PKCE as a duty, prompt=none, max_age, exact
// redirects, single-use codes, refresh token families) is done here.
//
// It owns users, browser sessions, clients, signing keys and the deviations of
// real identity providers that Config names. It must not know zt: it is told
// client ids and claims, and nothing here reads a grant.
//
// It is no identity provider for anybody: every password is right.
package issuer

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/zitadel/oidc/v3/pkg/op"
)

// The clients of an issuer whose Config names none.
const (
	// OverlayClient is the client whose ID tokens open the overlay.
	OverlayClient = "zt"
	// APIServerClient is the client whose ID tokens an API server accepts.
	APIServerClient = "kubernetes"
)

// DefaultTokenLifetime is how long tokens live when Config says nothing: as
// short as the shortest of the large providers.
const DefaultTokenLifetime = 5 * time.Minute

// Config describes an issuer. Only URL is required. The other fields make it
// deviate as some real provider does, and they combine.
type Config struct {
	// URL is the issuer's identifier: https, or http on a loopback address. It
	// may have a path (as Keycloak's realms) and a trailing slash (as Auth0).
	URL string
	// Certificate makes Run serve TLS.
	Certificate *tls.Certificate
	// Clients are the client ids; nil means OverlayClient and APIServerClient.
	Clients []string
	// Users are the people; nil means alice (developers) and bob (no groups).
	Users []User

	// ExactRedirectPorts makes redirect ports count, as Okta's do. nil allows
	// any port of a loopback address (RFC 8252 §7.3).
	ExactRedirectPorts []uint16
	// RedirectHosts are the loopback names that redirects may use; nil means
	// 127.0.0.1 and localhost.
	RedirectHosts []string
	// NoPromptNone answers every prompt=none with interaction_required.
	NoPromptNone bool
	// ClientSecret, if set, is demanded at the token endpoint though the client
	// is a native one and cannot keep it (Google).
	ClientSecret string
	// GroupsClaim is the claim that names groups; "" means "groups".
	GroupsClaim string
	// GroupOverage replaces the groups by a pointer to a graph API
	// (_claim_names and _claim_sources), as Entra ID does above 200 groups.
	GroupOverage bool
	// HasGroups replaces the groups by hasgroups: true, Entra ID's other form.
	HasGroups bool
	// TokenLifetime of ID and access tokens; 0 means DefaultTokenLifetime.
	TokenLifetime time.Duration
	// RefreshLifetime of a family of refresh tokens; 0 means 24 h.
	RefreshLifetime time.Duration
	// KeepRefreshTokens answers a refresh with the same refresh token (Google)
	// where the default is a new one, the old one's reuse revoking the family.
	KeepRefreshTokens bool
	// PairwiseSubjects gives a person another sub at each client (Entra ID).
	PairwiseSubjects bool
	// RefreshWithNonce repeats the nonce in refreshed ID tokens (OIDC Core
	// §12.2 says they should not have one).
	RefreshWithNonce bool
	// NoAuthTime leaves auth_time out even when max_age was asked (Google).
	NoAuthTime bool
	// NoNonce leaves the nonce out, which OIDC Core §2 forbids.
	NoNonce bool
	// IssParameter adds iss to authorization responses (RFC 9207).
	IssParameter bool
	// Algorithm signs ID tokens: RS256 (default) or ES256.
	Algorithm string
	// ClockOffset is added to the times in ID tokens and to the Date of answers:
	// an issuer whose clock is fast (positive) or slow, or a client's that is the
	// other.
	ClockOffset time.Duration
	// EditClaims, if set, may change the claims of an ID token before it is
	// signed: for issuers that are wrong in a way no field above names.
	EditClaims func(clientID string, claims map[string]any)
}

// Issuer is one issuer. Make it with New.
type Issuer struct {
	config   Config
	url      string // as given: what iss must be
	prefix   string // path of url, without a trailing slash
	cookie   string // name of the session cookie; cookies know no ports
	store    *store
	provider *op.Provider
}

// New checks c and makes an issuer. It serves nothing yet.
func New(c Config) (*Issuer, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("issuer URL %q: want https://HOST[:PORT][/PATH]", c.URL)
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return nil, fmt.Errorf("issuer URL %q: http is for loopback addresses only", c.URL)
	}
	if c.Clients == nil {
		c.Clients = []string{OverlayClient, APIServerClient}
	}
	if c.Users == nil {
		c.Users = DefaultUsers()
	}
	if c.RedirectHosts == nil {
		c.RedirectHosts = []string{"127.0.0.1", "localhost"}
	}
	if c.GroupsClaim == "" {
		c.GroupsClaim = "groups"
	}
	if c.TokenLifetime == 0 {
		c.TokenLifetime = DefaultTokenLifetime
	}
	if c.RefreshLifetime == 0 {
		c.RefreshLifetime = 24 * time.Hour
	}
	if c.Algorithm == "" {
		c.Algorithm = "RS256"
	}
	s, err := newStore(&c)
	if err != nil {
		return nil, err
	}
	i := &Issuer{config: c, url: c.URL, prefix: strings.TrimSuffix(u.Path, "/"), store: s}
	i.cookie = "zt_test_issuer_" + digest(c.URL)[:8]
	s.loginURL = strings.TrimSuffix(c.URL, "/") + loginPath
	oc := &op.Config{
		CodeMethodS256:        true,
		AuthMethodPost:        true,
		GrantTypeRefreshToken: true,
		SupportedScopes:       []string{"openid", "profile", "email", "groups", "offline_access"},
	}
	rand.Read(oc.CryptoKey[:])
	options := []op.Option{op.WithCORSOptions(nil)} // no page of another origin has business here
	if u.Scheme == "http" {
		options = append(options, op.WithAllowInsecure())
	}
	if i.provider, err = op.NewProvider(oc, s, op.StaticIssuer(c.URL), options...); err != nil {
		return nil, fmt.Errorf("issuer %s: %w", c.URL, err)
	}
	return i, nil
}

// URL is the issuer's identifier.
func (i *Issuer) URL() string { return i.url }

// Run serves the issuer on ln (over TLS if Config has a certificate) until ctx
// is done, and returns once every request it began has ended.
func (i *Issuer) Run(ctx context.Context, ln net.Listener) error {
	if i.config.Certificate != nil {
		ln = tls.NewListener(ln, &tls.Config{
			Certificates: []tls.Certificate{*i.config.Certificate}, MinVersion: tls.VersionTLS12,
		})
	}
	return Serve(ctx, ln, i.Handler())
}

// Serve serves h on ln until ctx is done, and returns once every request it
// began has ended.
func Serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	var conns sync.WaitGroup
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew: // called before Serve returns
				conns.Add(1)
			case http.StateClosed, http.StateHijacked: // the handler has ended
				conns.Done()
			}
		},
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	err := srv.Serve(ln)
	if stop() { // Serve ended by itself
		srv.Close()
	}
	conns.Wait()
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", ln.Addr(), err)
}

// TB is what Local needs of a *testing.T or *testing.B.
type TB interface {
	Helper()
	Fatal(...any)
	Cleanup(func())
}

// Local runs an issuer on a free loopback port for one test: over http, or over
// TLS if c has a certificate for 127.0.0.1. c.URL may be empty or a path
// ("/realms/test"). The second result takes the issuer off the air before the
// test ends; calling it twice is safe.
func Local(t TB, c Config) (*Issuer, func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	scheme := "http"
	if c.Certificate != nil {
		scheme = "https"
	}
	c.URL = scheme + "://" + ln.Addr().String() + c.URL
	i, err := New(c)
	if err != nil {
		ln.Close()
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background()) // the test's end is its Cleanup
	done := make(chan struct{})
	go func() { defer close(done); i.Run(ctx, ln) }()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return i, stop
}

func loopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
