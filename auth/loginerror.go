package auth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	"golang.org/x/oauth2"
)

// How a login, or a refresh, can end without tokens. They are wrapped in a
// *LoginError; one whose token was refused wraps a *RefusedError instead.
var (
	// ErrLoginCancelled: the person pressed Cancel at the issuer (access_denied).
	ErrLoginCancelled = errors.New("the login was cancelled in the browser")
	// ErrLoginTimeout: nobody finished the login in the browser in time.
	ErrLoginTimeout = errors.New("the login was not finished in the browser")
	// ErrLoginExpired: the issuer no longer takes the refresh token, or there is none.
	ErrLoginExpired = errors.New("the login has expired")
	// ErrIssuerUnreachable: the issuer does not answer, or not as an issuer.
	ErrIssuerUnreachable = errors.New("the issuer cannot be reached")
	// ErrIssuerRefused: the issuer answered with another error.
	ErrIssuerRefused = errors.New("the issuer refused the login")
	// ErrIssuerAnswer: what came back is not an answer to what was asked.
	ErrIssuerAnswer = errors.New("the issuer's answer is not acceptable")
	// ErrNonceMissing: the issuer left the nonce out of the ID token.
	ErrNonceMissing = errors.New("the issuer left the nonce out of the ID token")
	// ErrNonceAltered: the ID token's nonce is another than was asked for.
	ErrNonceAltered = errors.New("the ID token carries another nonce than was asked for")
	// ErrOtherPerson: the second login of a visit was another person's.
	ErrOtherPerson = errors.New("the issuer logged in another person")
	// ErrPortTaken: no redirect port is free.
	ErrPortTaken = errors.New("no port is free for the browser to come back to")
)

// LoginError is a login or a refresh that brought no tokens.
type LoginError struct {
	Issuer string // URL of the issuer
	Err    error  // an Err… of this file, a *RefusedError, or a context's end
	// Detail is what is known besides. It may come from the issuer: it was
	// escaped and cut, and holds neither code nor token.
	Detail string
	Advice string // replaces the hint that belongs to Err
}

// Error says what happened and at which issuer.
func (e *LoginError) Error() string {
	s := "log in at " + printable(e.Issuer) + ": " + e.Err.Error()
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// Unwrap makes errors.Is find Err.
func (e *LoginError) Unwrap() error { return e.Err }

var loginHints = map[error]string{
	ErrLoginCancelled:    "run `zt-daemon login` again when you want to log in",
	ErrLoginTimeout:      "run `zt-daemon login` again and finish the page it opens; without a browser here, forward the port (ssh -L) or use --no-browser",
	ErrLoginExpired:      hintLogin,
	ErrIssuerUnreachable: "see that this machine reaches the issuer over HTTPS (network, proxy, its CA, this machine's clock), then try again",
	ErrIssuerRefused:     hintIdP,
	ErrIssuerAnswer:      "try again; if it stays, " + hintIdP,
	ErrNonceMissing:      "this issuer cannot be used: the nonce ties the login to this machine's key. See that the client is an OpenID Connect one (scope openid) and uses the authorization code flow",
	ErrNonceAltered:      "try again; if it stays, something between the browser and the issuer changes requests",
	ErrOtherPerson:       "log out at the issuer in the browser, then run `zt-daemon login` as one person; if it was one person, give both clients the scope email",
	ErrPortTaken:         "end the program that holds the port, or register more redirect ports with the issuer",
}

// Hint says what to do.
func (e *LoginError) Hint() string {
	if e.Advice != "" {
		return e.Advice
	}
	if h, ok := loginHints[e.Err]; ok {
		return h
	}
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](e.Err); ok {
		return h.Hint()
	}
	return ""
}

// ExitCode is what a command ends with: 3 when the login is over or was not
// finished in time, 4 unreachable, else 1.
func (e *LoginError) ExitCode() int {
	switch {
	case errors.Is(e.Err, ErrLoginTimeout), errors.Is(e.Err, ErrLoginExpired):
		return 3
	case errors.Is(e.Err, ErrIssuerUnreachable):
		return 4
	}
	if refused, ok := errors.AsType[*RefusedError](e.Err); ok && refused.Reason == ReasonIssuerUnreachable {
		return 4
	}
	return 1
}

const maxForeignText = 200 // characters of an issuer's own words

// foreignText is an issuer's words for a person: cut, then escaped.
func foreignText(s string) string {
	if utf8.RuneCountInString(s) > maxForeignText {
		s = string([]rune(s)[:maxForeignText]) + "…"
	}
	return printable(s)
}

// oauthErrorText is an OAuth error code with its description (RFC 6749 §5.2).
func oauthErrorText(code, description string) string {
	s := foreignText(code)
	if description != "" {
		s += ": " + foreignText(description)
	}
	return s
}

// transportError tells that the issuer could not be asked. Of err only what
// names hosts and faults is kept: an *url.Error's URL may hold a query.
func (l *loginClient) transportError(err error) *LoginError {
	e := &LoginError{Issuer: l.issuer.URL, Err: ErrIssuerUnreachable}
	host := ""
	if u, perr := url.Parse(l.issuer.URL); perr == nil {
		host = u.Host
	}
	if ue, ok := errors.AsType[*url.Error](err); ok {
		if u, perr := url.Parse(ue.URL); perr == nil && u.Host != "" {
			host = u.Host
		}
		err = ue.Err
	}
	cause := foreignText(err.Error())
	if errors.Is(err, context.DeadlineExceeded) {
		cause = fmt.Sprintf("no answer within %s", aboutDuration(loginStepTimeout))
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		e.Advice = "compare `ca` of the issuer entry with the issuer's certificate, and see that this machine's clock is right"
	}
	e.Detail = host + ": " + cause
	return e
}

// tokenEndpointError turns what golang.org/x/oauth2 returned into words without
// a body: a body may hold tokens.
func (l *loginClient) tokenEndpointError(err error) *LoginError {
	retrieve, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok {
		if _, ok := errors.AsType[*url.Error](err); ok {
			return l.transportError(err)
		}
		return &LoginError{Issuer: l.issuer.URL, Err: ErrIssuerAnswer, Detail: "the token endpoint's answer is not readable"}
	}
	e := &LoginError{Issuer: l.issuer.URL, Err: ErrIssuerRefused, Detail: oauthErrorText(retrieve.ErrorCode, retrieve.ErrorDescription)}
	status := 0
	if retrieve.Response != nil {
		status = retrieve.Response.StatusCode
	}
	if retrieve.ErrorCode == "" {
		e.Detail = fmt.Sprintf("the token endpoint answered status %d", status)
	}
	switch {
	case status >= 500 || status == 429 || retrieve.ErrorCode == "temporarily_unavailable" || retrieve.ErrorCode == "server_error":
		e.Err = ErrIssuerUnreachable
		e.Advice = "try again in a minute"
	case retrieve.ErrorCode == "invalid_client":
		e.Advice = "compare clientID and clientSecret of the issuer entry with the identity provider's client: it should be a native (public) one"
	}
	return e
}

// authorizeError turns error= of an authorization response into words.
func (l *loginClient) authorizeError(code, description string) *LoginError {
	e := &LoginError{Issuer: l.issuer.URL, Err: ErrIssuerRefused, Detail: oauthErrorText(code, description)}
	switch code {
	case "access_denied":
		e.Err, e.Detail = ErrLoginCancelled, foreignText(description)
	case "temporarily_unavailable", "server_error":
		e.Advice = "try again in a minute"
	case "invalid_scope":
		e.Advice = "compare `scopes` of the issuer entry with those that the identity provider offers: " + strings.Join(l.issuer.Scopes, " ")
	}
	return e
}
