package issuer

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

const (
	requestLifetime = 10 * time.Minute // from /authorize to the code
	codeLifetime    = time.Minute      // RFC 6749 §4.1.2 recommends at most 10
	maxEntries      = 10_000           // of each table; the oldest are dropped
)

// store is everything an issuer remembers; it is op.Storage.
type store struct {
	config   *Config
	loginURL string

	mu       sync.Mutex // guards all below
	users    map[string]User
	sessions map[string]*session // by cookie
	requests map[string]*request // by id
	families map[string]*family  // by id of the request that began it
	access   map[string]access   // by access token id
	keys     []*signingKey       // newest first; [0] signs
}

// session is a browser in which somebody logged in.
type session struct {
	user     string
	sid      string
	authTime time.Time
}

// access is an access token, which opens only /userinfo.
type access struct {
	user, subject string
	scopes        []string
	ends          time.Time
}

var (
	_ op.Storage                   = (*store)(nil)
	_ op.CanSetUserinfoFromRequest = (*store)(nil)
)

func newStore(c *Config) (*store, error) {
	s := &store{
		config: c, users: map[string]User{}, sessions: map[string]*session{}, requests: map[string]*request{},
		families: map[string]*family{}, access: map[string]access{},
	}
	for _, u := range c.Users {
		if err := s.putUserLocked(u); err != nil {
			return nil, err
		}
	}
	k, err := newSigningKey(c.Algorithm)
	if err != nil {
		return nil, err
	}
	s.keys = []*signingKey{k}
	return s, nil
}

type sessionKey struct{}

// CreateAuthRequest refuses what the library lets pass, and answers
// prompt=none. The session of the browser is in ctx.
func (s *store) CreateAuthRequest(ctx context.Context, ar *oidc.AuthRequest, _ string) (op.AuthRequest, error) {
	switch {
	case ar.CodeChallenge == "" || ar.CodeChallengeMethod != oidc.CodeChallengeMethodS256:
		return nil, oidc.ErrInvalidRequest().WithDescription("PKCE with code_challenge_method S256 is required")
	case len(ar.CodeChallenge) != 43: // base64url(SHA-256), RFC 7636 §4.2
		return nil, oidc.ErrInvalidRequest().WithDescription("code_challenge is not base64url of a SHA-256")
	case !slices.Contains(ar.Scopes, oidc.ScopeOpenID):
		return nil, oidc.ErrInvalidScope().WithDescription("scope openid is required")
	case ar.ResponseMode != "" && ar.ResponseMode != oidc.ResponseModeQuery:
		return nil, oidc.ErrInvalidRequest().WithDescription("response_mode must be query")
	}
	r := &request{AuthRequest: *ar, id: rand.Text(), created: time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	cookie, _ := ctx.Value(sessionKey{}).(string)
	silent := slices.Contains(ar.Prompt, oidc.PromptNone)
	if silent && s.config.NoPromptNone {
		return nil, oidc.ErrInteractionRequired().WithDescription("prompt=none is not supported")
	}
	asks := slices.ContainsFunc(ar.Prompt, func(p string) bool { return p == oidc.PromptLogin || p == oidc.PromptSelectAccount })
	b := s.sessions[cookie]
	known := b != nil && !asks && fresh(b.authTime, ar.MaxAge) && s.finishLocked(r, b)
	if silent && !known {
		return nil, oidc.ErrLoginRequired().WithDescription("nobody is logged in in this browser")
	}
	s.expireLocked()
	s.requests[r.id] = r
	return r, nil
}

// fresh reports whether a login of that time satisfies max_age.
func fresh(authTime time.Time, maxAge *uint) bool {
	return maxAge == nil || time.Since(authTime) < time.Duration(*maxAge)*time.Second
}

// finishLocked lets the person of session b answer r, if there is such a one.
func (s *store) finishLocked(r *request, b *session) bool {
	u, ok := s.users[b.user]
	if !ok {
		return false
	}
	r.user, r.subject, r.sid = u.Name, s.subject(u, r.ClientID), b.sid
	if !s.config.NoAuthTime {
		r.authTime = b.authTime
	}
	if s.config.NoNonce {
		r.Nonce = ""
	}
	return true
}

// expireLocked drops what is over, and the oldest where a table is full.
func (s *store) expireLocked() {
	now := time.Now()
	maps.DeleteFunc(s.requests, func(_ string, r *request) bool { return now.Sub(r.created) > requestLifetime })
	maps.DeleteFunc(s.families, func(_ string, f *family) bool { return now.After(f.ends) })
	maps.DeleteFunc(s.access, func(_ string, a access) bool { return now.After(a.ends) })
	if len(s.requests) >= maxEntries {
		clear(s.requests)
	}
	if len(s.sessions) >= maxEntries {
		clear(s.sessions)
	}
}

// AuthRequestByID returns a copy: the one in the table changes under s.mu.
func (s *store) AuthRequestByID(_ context.Context, id string) (op.AuthRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.requests[id]
	if !ok || time.Since(r.created) > requestLifetime {
		return nil, oidc.ErrInvalidRequest().WithDescription("this login is over; begin again")
	}
	c := *r
	return &c, nil
}

// SaveAuthCode gives a request its code, one only.
func (s *store) SaveAuthCode(_ context.Context, id, code string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.requests[id]
	if !ok || r.code != "" {
		return oidc.ErrInvalidRequest().WithDescription("this login already has its code")
	}
	r.code, r.issued = code, time.Now()
	return nil
}

// AuthRequestByCode uses up the code: a second use fails, and revokes the
// refresh tokens that the first one gave (RFC 6749 §4.1.2).
func (s *store) AuthRequestByCode(_ context.Context, code string) (op.AuthRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if r.code == "" || subtle.ConstantTimeCompare([]byte(r.code), []byte(code)) != 1 {
			continue
		}
		if r.redeemed {
			delete(s.families, r.id)
			return nil, errors.New("code was used before")
		}
		r.redeemed = true
		if time.Since(r.issued) > codeLifetime {
			return nil, errors.New("code is too old")
		}
		c := *r
		return &c, nil
	}
	return nil, errors.New("unknown code")
}

// DeleteAuthRequest keeps a redeemed request until it expires, so that a second
// use of its code is seen.
func (s *store) DeleteAuthRequest(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.requests[id]; ok && !r.redeemed {
		delete(s.requests, id)
	}
	return nil
}

func (s *store) CreateAccessToken(_ context.Context, tr op.TokenRequest) (string, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accessTokenLocked(tr)
}

func (s *store) accessTokenLocked(tr op.TokenRequest) (string, time.Time, error) {
	var user string
	switch r := tr.(type) {
	case *request:
		user = r.user
	case *refreshRequest:
		user = r.user
	default:
		return "", time.Time{}, oidc.ErrUnsupportedGrantType()
	}
	id, ends := rand.Text(), time.Now().Add(s.config.TokenLifetime)
	s.access[id] = access{user: user, subject: tr.GetSubject(), scopes: tr.GetScopes(), ends: ends}
	return id, ends, nil
}

func (s *store) CreateAccessAndRefreshTokens(_ context.Context, tr op.TokenRequest, current string) (id, refresh string, ends time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r := tr.(type) {
	case *request:
		f := &family{
			clientID: r.ClientID, user: r.user, subject: r.subject, nonce: r.Nonce, scopes: r.Scopes, authTime: r.authTime,
			sid: r.sid, ends: time.Now().Add(s.config.RefreshLifetime), current: rand.Text(), used: map[string]bool{},
		}
		s.families[r.id] = f
		refresh = f.current
	case *refreshRequest:
		if r.current != current { // somebody else was faster: reuse
			s.revokeLocked(r.family)
			return "", "", time.Time{}, oidc.ErrInvalidGrant()
		}
		if !s.config.KeepRefreshTokens {
			r.used[current] = true
			r.current = rand.Text()
		}
		refresh = r.current
	}
	id, ends, err = s.accessTokenLocked(tr)
	return id, refresh, ends, err
}

func (s *store) TokenRequestByRefreshToken(_ context.Context, token string) (op.RefreshTokenRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.families {
		if f.used[token] {
			s.revokeLocked(f)
			return nil, errors.New("refresh token was used before: its family is revoked")
		}
		if f.current != token {
			continue
		}
		if _, ok := s.users[f.user]; !ok || time.Now().After(f.ends) {
			s.revokeLocked(f)
			return nil, errors.New("refresh token has ended")
		}
		return &refreshRequest{family: f, asked: f.scopes}, nil
	}
	return nil, errors.New("unknown refresh token")
}

func (s *store) revokeLocked(f *family) {
	maps.DeleteFunc(s.families, func(_ string, g *family) bool { return f == g })
}

func (s *store) TerminateSession(_ context.Context, subject, clientID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.families, func(_ string, f *family) bool { return f.subject == subject && f.clientID == clientID })
	return nil
}

func (s *store) GetRefreshTokenInfo(_ context.Context, clientID, token string) (string, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.families {
		if f.clientID == clientID && (f.current == token || f.used[token]) {
			return f.subject, token, nil
		}
	}
	return "", "", op.ErrInvalidRefreshToken
}

// RevokeToken ends an access token, or the whole family of a refresh token; an
// unknown token is no error (RFC 7009 §2.2).
func (s *store) RevokeToken(_ context.Context, token, _, clientID string) *oidc.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.access, token)
	maps.DeleteFunc(s.families, func(_ string, f *family) bool {
		return f.clientID == clientID && (f.current == token || f.used[token])
	})
	return nil
}

func (s *store) SigningKey(context.Context) (op.SigningKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[0], nil
}

func (s *store) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.SignatureAlgorithm(s.config.Algorithm)}, nil
}

func (s *store) KeySet(context.Context) ([]op.Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []op.Key
	for _, k := range s.keys {
		keys = append(keys, verifyKey{k})
	}
	return keys, nil
}

func (s *store) GetClientByClientID(_ context.Context, id string) (op.Client, error) {
	if !slices.Contains(s.config.Clients, id) {
		return nil, oidc.ErrInvalidClient().WithDescription("unknown client_id")
	}
	return &client{id: id, store: s}, nil
}

func (s *store) AuthorizeClientIDSecret(_ context.Context, id, secret string) error {
	if !slices.Contains(s.config.Clients, id) || s.config.ClientSecret == "" ||
		subtle.ConstantTimeCompare([]byte(secret), []byte(s.config.ClientSecret)) != 1 {
		return oidc.ErrInvalidClient().WithDescription("unknown client_id or wrong client_secret")
	}
	return nil
}

// SetUserinfoFromRequest fills an ID token.
func (s *store) SetUserinfoFromRequest(_ context.Context, info *oidc.UserInfo, ir op.IDTokenRequest, scopes []string) error {
	var user, sid string
	switch r := ir.(type) {
	case *request:
		user, sid = r.user, r.sid
	case *refreshRequest:
		user, sid = r.user, r.sid
		if s.config.RefreshWithNonce && !s.config.NoNonce {
			info.AppendClaims("nonce", r.nonce)
		}
	}
	if err := s.describe(info, user, ir.GetSubject(), scopes); err != nil {
		return err
	}
	info.AppendClaims("sid", sid)
	info.AppendClaims("jti", rand.Text())
	return nil
}

// describe writes what scopes say of a person, as of now.
func (s *store) describe(info *oidc.UserInfo, user, subject string, scopes []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	u, ok := s.users[user]
	if !ok {
		return oidc.ErrInvalidGrant().WithDescription("the user is gone")
	}
	for k, v := range u.Claims {
		info.AppendClaims(k, v)
	}
	info.Subject = subject
	if slices.Contains(scopes, oidc.ScopeProfile) {
		info.Name, info.PreferredUsername = u.DisplayName, u.Name
	}
	if slices.Contains(scopes, oidc.ScopeEmail) && u.Email != "" {
		info.AppendClaims("email", u.Email)
		info.AppendClaims("email_verified", u.EmailVerified)
	}
	switch {
	case len(u.Groups) == 0: // most providers leave an empty list out
	case s.config.HasGroups:
		info.AppendClaims("hasgroups", true)
	case s.config.GroupOverage:
		info.AppendClaims("_claim_names", map[string]any{s.config.GroupsClaim: "src1"})
		info.AppendClaims("_claim_sources", map[string]any{
			"src1": map[string]any{"endpoint": "https://graph.example.test/users/" + subject + "/getMemberObjects"},
		})
	default:
		info.AppendClaims(s.config.GroupsClaim, u.Groups)
	}
	return nil
}

func (s *store) SetUserinfoFromToken(_ context.Context, info *oidc.UserInfo, id, subject, _ string) error {
	s.mu.Lock()
	a, ok := s.access[id]
	s.mu.Unlock()
	if !ok || a.subject != subject || time.Now().After(a.ends) {
		return oidc.ErrInvalidRequest().WithDescription("access token has ended")
	}
	return s.describe(info, a.user, subject, a.scopes)
}

// SetUserinfoFromScopes is superseded by SetUserinfoFromRequest; the library
// asks for it to do nothing.
func (s *store) SetUserinfoFromScopes(context.Context, *oidc.UserInfo, string, string, []string) error {
	return nil
}

func (s *store) SetIntrospectionFromToken(context.Context, *oidc.IntrospectionResponse, string, string, string) error {
	return oidc.ErrUnauthorizedClient()
}

func (s *store) GetPrivateClaimsFromScopes(context.Context, string, string, []string) (map[string]any, error) {
	return nil, nil
}

func (s *store) GetKeyByIDAndClientID(context.Context, string, string) (*jose.JSONWebKey, error) {
	return nil, oidc.ErrInvalidClient()
}

func (s *store) ValidateJWTProfileScopes(context.Context, string, []string) ([]string, error) {
	return nil, oidc.ErrUnsupportedGrantType()
}

func (s *store) Health(context.Context) error { return nil }
