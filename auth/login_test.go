package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"go.uber.org/goleak"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/test/issuer"
)

// person plays who sits at the browser, and keeps what it saw.
type person struct {
	t       *testing.T
	name    string // "" = presses Cancel
	browser *http.Client

	mu     sync.Mutex
	page   issuer.Page
	err    error
	events []BrowserEvent
}

func newPerson(t *testing.T, name string) *person {
	t.Helper()
	browser, err := issuer.NewBrowser(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &person{t: t, name: name, browser: browser}
}

func (p *person) open(ctx context.Context, url string) error {
	ctx = context.WithoutCancel(ctx) // a browser reads its page to the end, whatever the visit does
	if p.name == "" {
		_, err := issuer.VisitCancel(ctx, p.browser, url)
		return err
	}
	page, err := issuer.VisitPage(ctx, p.browser, url, p.name)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.page, p.err = page, err
	return nil
}

func (p *person) visit(ctx context.Context, cfg BrowserConfig, first LoginConfig, next NextLogin) ([]Tokens, error) {
	p.t.Helper()
	cfg.Open = p.open
	cfg.Progress = func(e BrowserEvent) { p.events = append(p.events, e) }
	b, err := NewBrowser(cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	return b.Visit(ctx, first, next)
}

func (p *person) kinds() string {
	var kinds []string
	for _, e := range p.events {
		if e.Kind != BrowserWaiting {
			kinds = append(kinds, string(e.Kind))
		}
	}
	return strings.Join(kinds, " ")
}

// noLeaks must come before anything that is cleaned up later.
func noLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

func overlayEntry(i *issuer.Issuer) Issuer {
	return Issuer{URL: i.URL(), ClientID: issuer.OverlayClient, Scopes: []string{"openid", "profile", "email"}}
}

func apiEntry(i *issuer.Issuer) Issuer {
	e := overlayEntry(i)
	e.ClientID = issuer.APIServerClient
	return e
}

// freePorts are below what systems give to outgoing connections: the tests that
// run beside this one open thousands.
func freePorts(t *testing.T, n int) []uint16 {
	t.Helper()
	var ports []uint16
	for range 100 {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000)))
		if err != nil {
			continue
		}
		defer ln.Close()
		if ports = append(ports, uint16(ln.Addr().(*net.TCPAddr).Port)); len(ports) == n {
			return ports
		}
	}
	t.Fatalf("found %d of %d free ports", len(ports), n)
	return nil
}

// TestLoginAtEachIssuer logs alice in at every kind of issuer that is right in
// its own way, by configuration alone.
func TestLoginAtEachIssuer(t *testing.T) {
	cert, ca, err := issuer.SelfSigned("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	ports := freePorts(t, 2)
	commitment := NewCommitment(IDOf(key.NewNetwork().Public()), key.NewLogin().Public())
	for _, row := range []struct {
		name   string
		issuer issuer.Config
		entry  func(*Issuer)
		change func(*LoginConfig)
		check  func(t *testing.T, tokens Tokens)
	}{
		{name: "plain"},
		{name: "commitment", change: func(c *LoginConfig) { c.Nonce = commitment.Nonce() }, check: func(t *testing.T, tokens Tokens) {
			if tokens.Claims["nonce"] != commitment.Nonce() {
				t.Errorf("nonce is %v", tokens.Claims["nonce"])
			}
		}},
		{name: "TLS with its own CA", issuer: issuer.Config{Certificate: &cert}, entry: func(e *Issuer) { e.CA = string(ca) }},
		{name: "exact ports", issuer: issuer.Config{ExactRedirectPorts: ports}, entry: func(e *Issuer) { e.RedirectPorts = ports }},
		{name: "localhost", issuer: issuer.Config{RedirectHosts: []string{"localhost"}}, entry: func(e *Issuer) { e.RedirectHost = "localhost" }},
		{name: "client secret", issuer: issuer.Config{ClientSecret: "not so secret"}, entry: func(e *Issuer) { e.ClientSecret = "not so secret" }},
		{name: "groups claim", issuer: issuer.Config{GroupsClaim: "https://example.test/roles"}, entry: func(e *Issuer) { e.GroupsClaim = "https://example.test/roles" }},
		{name: "ES256", issuer: issuer.Config{Algorithm: "ES256"}},
		{name: "RFC 9207", issuer: issuer.Config{IssParameter: true}},
		{name: "path", issuer: issuer.Config{URL: "/realms/test"}},
		{name: "trailing slash", issuer: issuer.Config{URL: "/"}},
		{name: "pairwise", issuer: issuer.Config{PairwiseSubjects: true}, check: func(t *testing.T, tokens Tokens) {
			if tokens.Subject == "user-alice" {
				t.Error("sub is not pairwise")
			}
		}},
		{name: "no auth_time", issuer: issuer.Config{NoAuthTime: true}, check: func(t *testing.T, tokens Tokens) {
			if !tokens.AuthTime.IsZero() {
				t.Errorf("auth_time is %v", tokens.AuthTime)
			}
		}},
		{name: "silent in a new browser", change: func(c *LoginConfig) { c.Silent = true }},
		{name: "silent where that is not known", issuer: issuer.Config{NoPromptNone: true}, change: func(c *LoginConfig) { c.Silent = true }},
		{name: "offline", change: func(c *LoginConfig) { c.Offline = true }, check: func(t *testing.T, tokens Tokens) {
			if tokens.RefreshToken.IsZero() {
				t.Error("no refresh token")
			}
		}},
		{name: "required claim and other uid", issuer: issuer.Config{Users: []issuer.User{{
			Name: "alice", Email: "alice@example.test", EmailVerified: true, Groups: []string{"developers"}, Claims: map[string]any{"tid": "t", "oid": "o"},
		}}}, entry: func(e *Issuer) { e.Require, e.SubjectClaim = map[string]string{"tid": "t"}, "oid" }, check: func(t *testing.T, tokens Tokens) {
			if tokens.UID != "o" {
				t.Errorf("uid is %q", tokens.UID)
			}
		}},
		{name: "login hint is an e-mail address", change: func(c *LoginConfig) { c.LoginHint, c.Prompt = "alice@example.test", "login" }},
	} {
		t.Run(row.name, func(t *testing.T) {
			noLeaks(t)
			i, _ := issuer.Local(t, row.issuer)
			cfg := LoginConfig{Issuer: overlayEntry(i)}
			if row.entry != nil {
				row.entry(&cfg.Issuer)
			}
			if row.change != nil {
				row.change(&cfg)
			}
			p := newPerson(t, "alice")
			if row.issuer.Certificate != nil {
				var err error
				if p.browser, err = issuer.NewBrowser(ca); err != nil {
					t.Fatal(err)
				}
			}
			tokens, err := p.visit(t.Context(), BrowserConfig{}, cfg, nil)
			if err != nil {
				t.Fatalf("%v; the browser saw %+v, %v", err, p.page, p.err)
			}
			if len(tokens) != 1 {
				t.Fatalf("%d tokens", len(tokens))
			}
			got := tokens[0]
			if got.Issuer != i.URL() || got.ClientID != "zt" || got.Email != "alice@example.test" || !slices.Equal(got.Groups, []string{"developers"}) ||
				got.IDToken.IsZero() || got.SID == "" || time.Until(got.Expiry) < time.Minute || time.Since(got.IssuedAt) > time.Minute {
				t.Errorf("tokens: %+v", got.Claims)
			}
			if offset, ok := got.ClockOffset(); !ok || offset.Abs() > 2*time.Second {
				t.Errorf("clock offset %v, %v", offset, ok)
			}
			if p.page.Status != 200 || !strings.HasSuffix(strings.Split(p.page.URL, "?")[0], "/done") || !strings.Contains(p.page.Body, "alice@example.test") || !strings.Contains(p.page.Body, "developers") {
				t.Errorf("the last page is %d %s:\n%s", p.page.Status, p.page.URL, p.page.Body)
			}
			if len(row.issuer.ExactRedirectPorts) > 0 && !strings.Contains(p.page.URL, fmt.Sprint(":", ports[0], "/")) {
				t.Errorf("came back at %s, want the first of %v", p.page.URL, ports)
			}
			if row.check != nil {
				row.check(t, got)
			}
		})
	}
}

// TestLoginRefusesTokens: what an issuer, or who sits before it, may do wrong.
func TestLoginRefusesTokens(t *testing.T) {
	set := func(name string, value any) func(string, map[string]any) {
		return func(_ string, c map[string]any) { c[name] = value }
	}
	refused := func(r Reason) error { return &RefusedError{Reason: r} }
	for _, row := range []struct {
		name   string
		issuer issuer.Config
		entry  func(*Issuer)
		want   error
		says   string
	}{
		{name: "nonce dropped", issuer: issuer.Config{NoNonce: true}, want: ErrNonceMissing},
		{name: "nonce altered", issuer: issuer.Config{EditClaims: set("nonce", "x")}, want: ErrNonceAltered},
		{name: "nonce of another type", issuer: issuer.Config{EditClaims: set("nonce", 1)}, want: ErrNonceAltered},
		{name: "nonce in a list", issuer: issuer.Config{EditClaims: func(_ string, c map[string]any) { c["nonce"] = []any{c["nonce"]} }}, want: ErrNonceAltered},
		{name: "iss", issuer: issuer.Config{EditClaims: set("iss", "https://other.example")}, want: refused(ReasonIssuer)},
		{name: "iss with a slash", issuer: issuer.Config{EditClaims: func(_ string, c map[string]any) { c["iss"] = c["iss"].(string) + "/" }}, want: refused(ReasonIssuer)},
		{name: "aud", issuer: issuer.Config{EditClaims: set("aud", "kubernetes")}, want: refused(ReasonAudience)},
		{name: "one aud too many", issuer: issuer.Config{EditClaims: set("aud", []string{"zt", "kubernetes"})}, want: refused(ReasonAudience)},
		{name: "azp", issuer: issuer.Config{EditClaims: set("azp", "kubernetes")}, want: refused(ReasonAudience)},
		{name: "no sub", issuer: issuer.Config{EditClaims: func(_ string, c map[string]any) { delete(c, "sub") }}, want: refused(ReasonClaims)},
		{name: "no exp", issuer: issuer.Config{EditClaims: func(_ string, c map[string]any) { delete(c, "exp") }}, want: refused(ReasonClaims)},
		{name: "no iat", issuer: issuer.Config{EditClaims: func(_ string, c map[string]any) { delete(c, "iat") }}, want: refused(ReasonClaims)},
		{name: "expired", issuer: issuer.Config{EditClaims: set("exp", time.Now().Add(-2*time.Minute).Unix())}, want: refused(ReasonExpired)},
		{name: "from the future", issuer: issuer.Config{EditClaims: set("iat", time.Now().Add(5*time.Minute).Unix())}, want: refused(ReasonClock)},
		{name: "old login", issuer: issuer.Config{EditClaims: set("auth_time", time.Now().Add(-13*time.Hour).Unix())}, want: refused(ReasonLoginTooOld)},
		{name: "no auth_time", issuer: issuer.Config{NoAuthTime: true}, entry: func(e *Issuer) { e.AuthTimeRequired = true }, want: refused(ReasonNoAuthTime)},
		{name: "group overage", issuer: issuer.Config{GroupOverage: true}, want: refused(ReasonGroupOverage)},
		{name: "hasgroups", issuer: issuer.Config{HasGroups: true}, want: refused(ReasonGroupOverage)},
		{name: "other tenant", entry: func(e *Issuer) { e.Require = map[string]string{"tid": "ours"} }, want: refused(ReasonRequire)},
		{name: "algorithm", entry: func(e *Issuer) { e.Algorithms = []string{"ES256"} }, want: refused(ReasonAlgorithm)},
		{name: "scope", entry: func(e *Issuer) { e.ClientID = "kubernetes"; e.ClientSecret = "x" }, issuer: issuer.Config{ClientSecret: "y"}, want: ErrIssuerRefused, says: "invalid_client"},
	} {
		t.Run(row.name, func(t *testing.T) {
			noLeaks(t)
			i, _ := issuer.Local(t, row.issuer)
			cfg := LoginConfig{Issuer: overlayEntry(i)}
			if row.entry != nil {
				row.entry(&cfg.Issuer)
			}
			p := newPerson(t, "alice")
			tokens, err := p.visit(t.Context(), BrowserConfig{}, cfg, nil)
			le, ok := errors.AsType[*LoginError](err)
			if !ok || len(tokens) != 0 {
				t.Fatalf("got %v and %d tokens, want a *LoginError", err, len(tokens))
			}
			if want, ok := row.want.(*RefusedError); ok {
				got, ok := errors.AsType[*RefusedError](err)
				if !ok || got.Reason != want.Reason {
					t.Errorf("got %v, want reason %s", err, want.Reason)
				}
			} else if !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
			if !strings.Contains(err.Error(), row.says) || le.Hint() == "" || le.ExitCode() != 1 {
				t.Errorf("message %q, hint %q, exit code %d", err, le.Hint(), le.ExitCode())
			}
			if !strings.Contains(p.page.Body, "login failed") || !strings.Contains(p.page.Body, "What to do") {
				t.Errorf("the last page says:\n%s", p.page.Body)
			}
		})
	}
}

func TestUnreachableIssuer(t *testing.T) {
	dead := httptest.NewServer(nil)
	dead.Close()
	serve := func(h http.HandlerFunc) string {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		return s.URL
	}
	other := serve(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"issuer":"https://other.example\u001b[31m"}`)
	})
	notFound := serve(http.NotFound)
	garbage := serve(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") })
	big := serve(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"issuer":"`+strings.Repeat("x", maxDiscoveryBytes)+`"}`)
	})
	away := serve(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://127.0.0.2:1/", http.StatusFound)
	})
	plain := serve(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"issuer":"http://%s","authorization_endpoint":"http://issuer.example/a","token_endpoint":"http://issuer.example/t"}`, r.Host)
	})
	tlsOnly := httptest.NewTLSServer(nil)
	t.Cleanup(tlsOnly.Close)
	tlsOnly.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	for _, row := range []struct{ name, url, says string }{
		{"nobody listens", dead.URL, strings.TrimPrefix(dead.URL, "http://")},
		{"other issuer", other, `of issuer "https://other.example`},
		{"no discovery", notFound, "status 404"},
		{"not JSON", garbage, "did not answer JSON"},
		{"endless", big, "more than"},
		{"redirect to another host", away, "another host"},
		{"endpoints over http", plain, "authorization_endpoint"},
		{"unknown CA", tlsOnly.URL, "certificate"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := newPerson(t, "alice").visit(t.Context(), BrowserConfig{}, LoginConfig{Issuer: Issuer{URL: row.url, ClientID: "zt"}}, nil)
			le, ok := errors.AsType[*LoginError](err)
			if !ok || !errors.Is(err, ErrIssuerUnreachable) || le.ExitCode() != 4 || le.Hint() == "" {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "\x1b") {
				t.Errorf("message %q does not say %q", err, row.says)
			}
		})
	}
}

// hostile is an issuer whose token endpoint answers what a test wants.
func hostile(t *testing.T, token http.HandlerFunc) Issuer {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc(wellKnownPath, func(w http.ResponseWriter, r *http.Request) {
		u := "http://" + r.Host
		fmt.Fprintf(w, `{"issuer":%q,"authorization_endpoint":%q,"token_endpoint":%q,"jwks_uri":%q}`, u, u+"/authorize", u+"/token", u+"/keys")
	})
	mux.HandleFunc("/authorize", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.FormValue("redirect_uri")+"?code=canary-code&state="+r.FormValue("state"), http.StatusFound)
	})
	mux.HandleFunc("/token", token)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return Issuer{URL: s.URL, ClientID: "zt", ClientSecret: "canary-secret"}
}

// TestTokenErrorsDoNotLeak: what the token endpoint says reaches people without
// codes, tokens or control characters.
func TestTokenErrorsDoNotLeak(t *testing.T) {
	long := strings.Repeat("long ", 200)
	for _, row := range []struct {
		name, body, contentType string
		status                  int
		want                    error
		says                    string
	}{
		{"error with tokens beside it", `{"error":"invalid_grant","error_description":"bad\u001b[31m\u202e` + long + `","id_token":"canary-token"}`, "application/json", 400, ErrIssuerRefused, "invalid_grant"},
		{"error without a code", `{"id_token":"canary-token"}`, "application/json", 400, ErrIssuerRefused, "status 400"},
		{"not JSON", `canary-token`, "application/json", 200, ErrIssuerAnswer, "not readable"},
		{"page", `<html>canary-token`, "text/html", 403, ErrIssuerRefused, "status 403"},
		{"down", `canary-token`, "text/plain", 503, ErrIssuerUnreachable, "status 503"},
		{"no access token", `{"id_token":"canary-token"}`, "application/json", 200, ErrIssuerAnswer, ""},
		{"no ID token", `{"access_token":"canary-token"}`, "application/json", 200, ErrIssuerAnswer, "no ID token"},
		{"ID token is none", `{"access_token":"canary-token","id_token":"canary-token"}`, "application/json", 200, &RefusedError{Reason: ReasonMalformed}, "segments"},
		{"form", `error=invalid_grant&error_description=x&refresh_token=canary-token`, "application/x-www-form-urlencoded", 400, ErrIssuerRefused, "invalid_grant"},
	} {
		t.Run(row.name, func(t *testing.T) {
			noLeaks(t)
			entry := hostile(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", row.contentType)
				w.WriteHeader(row.status)
				io.WriteString(w, row.body)
			})
			p := newPerson(t, "alice")
			_, err := p.visit(t.Context(), BrowserConfig{}, LoginConfig{Issuer: entry}, nil)
			if want, ok := row.want.(*RefusedError); ok {
				if got, ok := errors.AsType[*RefusedError](err); !ok || got.Reason != want.Reason {
					t.Errorf("got %v, want reason %s", err, want.Reason)
				}
			} else if !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
			all := fmt.Sprintf("%v %+v %#v %s", err, err, err, p.page.Body)
			if strings.Contains(all, "canary") || strings.ContainsAny(all, "\x1b\u202e") {
				t.Errorf("leaks: %s", all)
			}
			if msg := err.Error(); !strings.Contains(msg, row.says) || len(msg) > 600 {
				t.Errorf("message of %d bytes: %s", len(msg), msg)
			}
		})
	}
}

// FuzzForeignText: the attacker is the issuer, or whoever wrote the URL that
// the browser came back with.
func FuzzForeignText(f *testing.F) {
	f.Add("invalid_grant")
	f.Add("\x1b]0;title\a\u202e\xff")
	f.Add(strings.Repeat("é", 300))
	f.Fuzz(func(t *testing.T, s string) {
		got := foreignText(s)
		if len(got) > maxPrintable+16 {
			t.Errorf("%d bytes of %d", len(got), len(s))
		}
		for _, r := range got {
			if r != ' ' && !unicode.IsPrint(r) {
				t.Errorf("%q holds %U", got, r)
			}
		}
	})
}

func TestClockOffset(t *testing.T) {
	for _, offset := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		i, _ := issuer.Local(t, issuer.Config{ClockOffset: offset, TokenLifetime: time.Minute})
		tokens, err := newPerson(t, "alice").visit(t.Context(), BrowserConfig{}, LoginConfig{Issuer: overlayEntry(i)}, nil)
		if err != nil {
			t.Fatalf("offset %v: %v", offset, err)
		}
		if got, ok := tokens[0].ClockOffset(); !ok || (got-offset).Abs() > 2*time.Second {
			t.Errorf("got %v, want %v", got, offset)
		}
	}
	// An issuer that dates its tokens back (Entra ID) is not slow.
	i, _ := issuer.Local(t, issuer.Config{EditClaims: func(_ string, c map[string]any) {
		c["iat"] = time.Now().Add(-5 * time.Minute).Unix()
		delete(c, "auth_time")
	}})
	tokens, err := newPerson(t, "alice").visit(t.Context(), BrowserConfig{}, LoginConfig{Issuer: overlayEntry(i)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := tokens[0].ClockOffset(); got.Abs() > 2*time.Second {
		t.Errorf("got %v, want 0", got)
	}
}

func TestSamePerson(t *testing.T) {
	c := func(kv ...string) map[string]any {
		m := map[string]any{"email_verified": true}
		for n := 0; n < len(kv); n += 2 {
			m[kv[n]] = kv[n+1]
		}
		return m
	}
	unverified := func(m map[string]any) map[string]any {
		m = maps.Clone(m)
		m["email_verified"] = false
		return m
	}
	for _, row := range []struct {
		name string
		a, b map[string]any
		want bool
	}{
		{"nothing", c(), c(), false},
		{"same sub and issuer", c("sub", "1", "iss", "i"), c("sub", "1", "iss", "i"), true},
		{"same sub, other issuer", c("sub", "1", "iss", "i"), c("sub", "1", "iss", "j"), false},
		{"pairwise sub, same mail", c("sub", "1", "email", "a@x"), c("sub", "2", "email", "A@x"), true},
		{"same sub, other mail", c("sub", "1", "iss", "i", "email", "a@x"), c("sub", "1", "iss", "i", "email", "b@x"), false},
		{"mail not verified", unverified(c("sub", "1", "email", "a@x")), c("sub", "2", "email", "a@x"), false},
		{"oid and tid beat mail", c("oid", "o", "tid", "t", "email", "a@x"), c("oid", "o", "tid", "t", "email", "b@x"), true},
		{"other oid, same mail", c("oid", "o", "tid", "t", "email", "a@x"), c("oid", "p", "tid", "t", "email", "a@x"), false},
		{"other tid", c("oid", "o", "tid", "t"), c("oid", "o", "tid", "u"), false},
		{"oid on one side", c("oid", "o", "tid", "t", "email", "a@x"), c("email", "a@x"), true},
		{"sub of another type", map[string]any{"sub": 1, "iss": "i"}, map[string]any{"sub": 1, "iss": "i"}, false},
	} {
		if got := SamePerson(row.a, row.b); got != row.want {
			t.Errorf("%s: got %v", row.name, got)
		}
		if got := SamePerson(row.b, row.a); got != row.want {
			t.Errorf("%s, the other way round: got %v", row.name, got)
		}
	}
}

func TestTokensNeverPrint(t *testing.T) {
	tokens := Tokens{
		IDToken: IDTokenFrom("canary-id"), RefreshToken: RefreshTokenFrom("canary-refresh"),
		Name: "Alice\x1b[31m", Claims: map[string]any{"secret": "canary-claim"},
	}
	holder := struct{ A, B, C any }{tokens, tokens.IDToken, tokens.RefreshToken}
	var b strings.Builder
	log := slog.New(slog.NewJSONHandler(&b, nil))
	log.Info("x", "tokens", tokens, "id", tokens.IDToken, "refresh", tokens.RefreshToken)
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "tokens", tokens, "id", tokens.IDToken, "refresh", tokens.RefreshToken)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&b, verb+verb+verb+verb, tokens, tokens.IDToken, tokens.RefreshToken, holder)
		fmt.Fprintf(&b, verb, []Tokens{tokens})
	}
	if s := b.String(); strings.Contains(s, "canary") || strings.Contains(s, fmt.Sprintf("%x", "canary")) || strings.Contains(s, "\x1b") {
		t.Errorf("printed: %s", s)
	}
	if out, err := json.Marshal(tokens); err == nil {
		t.Errorf("json.Marshal wrote %s", out)
	}
	if tokens.IDToken.Secret() != "canary-id" {
		t.Error("Secret is lost")
	}
}
