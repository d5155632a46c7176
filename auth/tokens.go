package auth

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
)

// IDToken is an ID token as its issuer wrote it. It never prints. The zero
// value is none.
type IDToken struct{ tokenSecret }

// RefreshToken is a refresh token. It never prints. The zero value is none.
type RefreshToken struct{ tokenSecret }

// IDTokenFrom takes an ID token that was stored.
func IDTokenFrom(s string) IDToken { return IDToken{tokenSecret{s}} }

// RefreshTokenFrom takes a refresh token that was stored.
func RefreshTokenFrom(s string) RefreshToken { return RefreshToken{tokenSecret{s}} }

type tokenSecret struct{ s string }

const tokenRedacted = "[token]"

// Secret returns the token for who sends or stores it. Do not print it.
func (t tokenSecret) Secret() string { return t.s }

// IsZero reports whether t is none.
func (t tokenSecret) IsZero() bool { return t.s == "" }

// Format prints a fixed text for every verb.
func (tokenSecret) Format(f fmt.State, _ rune) { io.WriteString(f, tokenRedacted) }

// LogValue logs a fixed text.
func (tokenSecret) LogValue() slog.Value { return slog.StringValue(tokenRedacted) }

// MarshalText refuses, so that no encoder writes the token by accident.
func (tokenSecret) MarshalText() ([]byte, error) {
	return nil, errors.New("a token is not marshalled: use Secret")
}

// Tokens is what one login, or one refresh, brought. All but RefreshToken comes
// from an ID token whose signature, issuer, audience, nonce and times were
// checked.
type Tokens struct {
	Issuer   string // iss
	ClientID string // that logged in
	IDToken  IDToken
	// RefreshToken is zero if the issuer gave none. After a refresh it is the
	// one to use next: store it before the old one is forgotten.
	RefreshToken RefreshToken
	Expiry       time.Time // exp
	IssuedAt     time.Time // iat
	AuthTime     time.Time // of the login at the issuer; zero = not told

	Subject string // sub
	UID     string // the issuer entry's subject claim
	Name    string // for display only; may be empty
	Email   string // only if the issuer verified it
	Groups  []string
	SID     string // of the issuer's session; may be empty
	Nonce   string // that was asked for; a refreshed token keeps it

	// Claims is the verified payload; numbers are json.Number.
	Claims map[string]any

	offset time.Duration
	known  bool // offset was measured
}

// String names the person: the verified e-mail address, else the name, else the
// subject, escaped.
func (t Tokens) String() string {
	return (&Identity{Email: t.Email, Name: t.Name, Subject: t.Subject}).String()
}

// Format prints String's form for every verb, so that no verb walks into the
// claims.
func (t Tokens) Format(f fmt.State, _ rune) { io.WriteString(f, t.String()) }

// LogValue logs String's form: tokens and claims stay out of logs.
func (t Tokens) LogValue() slog.Value { return slog.StringValue(t.String()) }

// ClockOffset is what to add to this machine's clock to get the issuer's, as
// its token endpoint told it beside the token: by the Date of its answer, or
// where that is missing by iat. (By iat alone Entra ID seems five minutes slow:
// it dates tokens back.) ok is false for tokens that were not just received.
func (t Tokens) ClockOffset() (offset time.Duration, ok bool) { return t.offset, t.known }

// SamePerson reports whether two ID tokens of different clients, perhaps of
// different issuers, are of one person: by oid and tid where both have them
// (Entra ID, whose sub differs between clients), else by verified e-mail
// address where both have one, else by iss and sub.
func SamePerson(a, b map[string]any) bool {
	text := func(claims map[string]any, name string) string {
		s, _ := claims[name].(string)
		return s
	}
	if ao, bo := text(a, "oid"), text(b, "oid"); ao != "" && bo != "" {
		if at, bt := text(a, "tid"), text(b, "tid"); at != "" && bt != "" {
			return ao == bo && at == bt
		}
	}
	mail := func(claims map[string]any) string {
		if !claimTrue(claims["email_verified"]) {
			return ""
		}
		return text(claims, "email")
	}
	if am, bm := mail(a), mail(b); am != "" && bm != "" {
		return strings.EqualFold(am, bm)
	}
	return text(a, "sub") != "" && text(a, "sub") == text(b, "sub") && text(a, "iss") == text(b, "iss")
}

// StoredTokens reads back an ID token and a refresh token that this machine
// stored after a login, so that Refresh can go on from them. The signature is
// not checked again: the file's protection stands for it, and relays, nodes and
// API servers check it anyway.
func StoredTokens(issuer Issuer, id IDToken, refresh RefreshToken) (Tokens, error) {
	issuer = issuer.WithDefaults()
	compact, refused := parseCompact(id.s, issuer.Algorithms)
	if refused != nil {
		return Tokens{}, fmt.Errorf("stored ID token: %w", refused)
	}
	claims, refused := parseClaims(compact.payload)
	if refused != nil {
		return Tokens{}, fmt.Errorf("stored ID token: %w", refused)
	}
	t := &tokenClaims{claims: claims, hash: sha256.Sum256([]byte(id.s))}
	if refused := t.readIssuedAt(); refused != nil {
		return Tokens{}, fmt.Errorf("stored ID token: %w", refused)
	}
	for _, refused := range []*RefusedError{t.checkIssuer(issuer), t.checkPersonAudience(issuer)} {
		if refused != nil {
			return Tokens{}, fmt.Errorf("stored ID token: %w", refused)
		}
	}
	tokens, refused := t.tokens(issuer)
	if refused != nil {
		return Tokens{}, fmt.Errorf("stored ID token: %w", refused)
	}
	tokens.IDToken, tokens.RefreshToken = id, refresh
	tokens.Nonce, _ = claims["nonce"].(string)
	return tokens, nil
}

// tokens fills what claims tell; exp must be there.
func (t *tokenClaims) tokens(issuer Issuer) (Tokens, *RefusedError) {
	id, refused := t.identify(issuer)
	if refused != nil {
		return Tokens{}, refused
	}
	exp, present, refused := claimTime(t.claims, "exp")
	if refused != nil {
		return Tokens{}, refused
	}
	if !present {
		return Tokens{}, refuse(ReasonClaims, "no exp")
	}
	authTime, _, refused := claimTime(t.claims, "auth_time")
	if refused != nil {
		return Tokens{}, refused
	}
	return Tokens{
		Issuer: issuer.URL, ClientID: issuer.ClientID, Expiry: exp, IssuedAt: t.iat, AuthTime: authTime,
		Subject: id.Subject, UID: id.UID, Name: id.Name, Email: id.Email, Groups: id.Groups, SID: id.SID, Claims: t.claims,
	}, nil
}
