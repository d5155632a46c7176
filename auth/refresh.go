package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/oauth2"
)

// Refresh gets a new ID token with prev's refresh token and verifies it as
// strictly as a login's: the same issuer, subject and audience, auth_time and
// sid equal where both tell them, nonce absent or the login's (OIDC Core
// §12.2), the login not older than the entry's loginAge. Of cfg it reads Issuer, Keys, HTTP, Now and Log. It ends within some
// 20 s.
//
// Errors are *LoginError: ErrLoginExpired when a person must log in again,
// ErrIssuerUnreachable when the same call may succeed later. The issuer may
// have replaced the refresh token: use the result's, never prev's again.
func Refresh(ctx context.Context, cfg LoginConfig, prev Tokens) (Tokens, error) {
	if prev.Subject == "" || prev.Issuer != cfg.Issuer.URL || prev.ClientID != cfg.Issuer.ClientID {
		return Tokens{}, fmt.Errorf("refresh at %s: the tokens are not of this issuer and client", cfg.Issuer.URL)
	}
	if prev.RefreshToken.IsZero() {
		return Tokens{}, &LoginError{Issuer: cfg.Issuer.URL, Err: ErrLoginExpired, Detail: "the issuer gave no refresh token"}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // closes the client's connections
	cfg.SameAs = nil
	l, err := newLoginClient(ctx, cfg)
	if err != nil {
		return Tokens{}, err
	}
	step, stop := context.WithTimeout(ctx, loginStepTimeout)
	defer stop()
	source := l.oauth("").TokenSource(context.WithValue(step, oauth2.HTTPClient, l.http), &oauth2.Token{RefreshToken: prev.RefreshToken.s})
	answer, err := source.Token()
	if err != nil {
		le := l.tokenEndpointError(err)
		if retrieve, ok := errors.AsType[*oauth2.RetrieveError](err); ok && (retrieve.ErrorCode == "invalid_grant" || wantsPerson(retrieve.ErrorCode)) {
			le.Err, le.Advice = ErrLoginExpired, ""
		}
		return Tokens{}, l.stepError(step, le)
	}
	next, err := l.accept(step, answer, func(t *tokenClaims) error { return l.checkRefreshed(t, prev) }, prev.Nonce)
	if refused, ok := errors.AsType[*RefusedError](err); ok && refused.Reason == ReasonLoginTooOld {
		return Tokens{}, &LoginError{Issuer: l.issuer.URL, Err: ErrLoginExpired, Detail: refused.Error()}
	}
	if err != nil {
		return Tokens{}, err
	}
	if next.AuthTime.IsZero() {
		next.AuthTime = prev.AuthTime
	}
	if next.SID == "" {
		next.SID = prev.SID
	}
	return next, nil
}

// checkRefreshed holds a refreshed token against the login's.
func (l *loginClient) checkRefreshed(t *tokenClaims, prev Tokens) error {
	differs := func(claim string) error {
		return &LoginError{
			Issuer: l.issuer.URL, Err: ErrIssuerAnswer,
			Detail: "the refreshed ID token has another " + claim + " than the login's", Advice: hintLogin,
		}
	}
	if sub, _ := t.claims["sub"].(string); sub != prev.Subject {
		return differs("sub")
	}
	if before, ok := claimList(prev.Claims["aud"]); ok {
		after, _ := claimList(t.claims["aud"]) // checkPersonAudience saw that it is a list
		slices.Sort(before)
		slices.Sort(after)
		if !slices.Equal(before, after) {
			return differs("aud")
		}
	}
	if nonce, present := t.claims["nonce"]; present {
		if s, ok := nonce.(string); !ok || s != prev.Nonce {
			return &LoginError{Issuer: l.issuer.URL, Err: ErrNonceAltered}
		}
	}
	authTime, present, refused := claimTime(t.claims, "auth_time")
	if refused != nil {
		return &LoginError{Issuer: l.issuer.URL, Err: refused}
	}
	if present && !prev.AuthTime.IsZero() && !authTime.Equal(prev.AuthTime) {
		return differs("auth_time")
	}
	if sid, _ := t.claims["sid"].(string); sid != "" && prev.SID != "" && sid != prev.SID {
		return differs("sid")
	}
	return nil
}
