package issuer

import (
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// request is one authorization request, from /authorize until its code was
// redeemed; it is op.AuthRequest.
type request struct {
	oidc.AuthRequest // as received

	id       string
	created  time.Time
	user     string // "" until somebody logged in
	subject  string
	authTime time.Time
	sid      string
	code     string // "" until issued
	issued   time.Time
	redeemed bool
}

func (r *request) GetID() string          { return r.id }
func (r *request) GetACR() string         { return "" }
func (r *request) GetAMR() []string       { return []string{"pwd"} }
func (r *request) GetAudience() []string  { return []string{r.ClientID} }
func (r *request) GetAuthTime() time.Time { return r.authTime }
func (r *request) GetClientID() string    { return r.ClientID }
func (r *request) GetNonce() string       { return r.Nonce }
func (r *request) GetScopes() []string    { return r.Scopes }
func (r *request) GetSubject() string     { return r.subject }
func (r *request) Done() bool             { return r.user != "" }

func (r *request) GetCodeChallenge() *oidc.CodeChallenge {
	return &oidc.CodeChallenge{Challenge: r.CodeChallenge, Method: r.CodeChallengeMethod}
}

// family is the line of refresh tokens of one login. Using one that was already
// used ends it (RFC 9700 §4.14.2).
type family struct {
	clientID string
	user     string
	subject  string
	nonce    string
	scopes   []string
	authTime time.Time
	sid      string
	ends     time.Time
	current  string          // the one refresh token that works
	used     map[string]bool // those that did
}

// refreshRequest is one use of a refresh token; it is op.RefreshTokenRequest.
type refreshRequest struct {
	*family
	asked []string // scopes of this use
}

func (r *refreshRequest) GetAMR() []string                 { return []string{"pwd"} }
func (r *refreshRequest) GetAudience() []string            { return []string{r.clientID} }
func (r *refreshRequest) GetAuthTime() time.Time           { return r.authTime }
func (r *refreshRequest) GetClientID() string              { return r.clientID }
func (r *refreshRequest) GetScopes() []string              { return r.asked }
func (r *refreshRequest) GetSubject() string               { return r.subject }
func (r *refreshRequest) SetCurrentScopes(scopes []string) { r.asked = scopes }

// client is a native public client; it is op.Client.
type client struct {
	id    string
	store *store
}

func (c *client) GetID() string                       { return c.id }
func (c *client) RedirectURIs() []string              { return []string{"http://127.0.0.1" + callbackPath} }
func (c *client) PostLogoutRedirectURIs() []string    { return nil }
func (c *client) ApplicationType() op.ApplicationType { return op.ApplicationTypeNative }
func (c *client) ResponseTypes() []oidc.ResponseType {
	return []oidc.ResponseType{oidc.ResponseTypeCode}
}
func (c *client) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeCode, oidc.GrantTypeRefreshToken}
}
func (c *client) AuthMethod() oidc.AuthMethod {
	if c.store.config.ClientSecret != "" {
		return oidc.AuthMethodPost
	}
	return oidc.AuthMethodNone
}
func (c *client) LoginURL(id string) string            { return c.store.loginURL + "?id=" + id }
func (c *client) AccessTokenType() op.AccessTokenType  { return op.AccessTokenTypeBearer }
func (c *client) IDTokenLifetime() time.Duration       { return c.store.config.TokenLifetime }
func (c *client) DevMode() bool                        { return false }
func (c *client) IsScopeAllowed(scope string) bool     { return scope == "groups" }
func (c *client) IDTokenUserinfoClaimsAssertion() bool { return true }
func (c *client) ClockSkew() time.Duration             { return 0 }

func (c *client) RestrictAdditionalIdTokenScopes() func([]string) []string {
	return func(scopes []string) []string { return scopes }
}
func (c *client) RestrictAdditionalAccessTokenScopes() func([]string) []string {
	return func(scopes []string) []string { return scopes }
}
