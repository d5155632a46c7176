package issuer

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"go.uber.org/goleak"
	"golang.org/x/oauth2"
)

// party is a relying party whose loopback page is never fetched.
type party struct {
	*testing.T
	issuer   *Issuer
	browser  *http.Client
	provider *oidc.Provider
	config   oauth2.Config
	verifier string
}

const testRedirect = "http://127.0.0.1:8000/callback"

func newParty(t *testing.T, c Config) *party {
	t.Helper()
	i, _ := Local(t, c)
	browser, err := NewBrowser(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), testRedirect) {
			return http.ErrUseLastResponse
		}
		return nil
	}
	p := &party{T: t, issuer: i, browser: browser, verifier: oauth2.GenerateVerifier()}
	if p.provider, err = oidc.NewProvider(t.Context(), i.URL()); err != nil {
		t.Fatal(err)
	}
	p.config = oauth2.Config{
		ClientID: OverlayClient, ClientSecret: c.ClientSecret, RedirectURL: testRedirect, Endpoint: p.provider.Endpoint(),
		Scopes: []string{"openid", "profile", "email", "offline_access"},
	}
	p.config.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	return p
}

func (p *party) url(extra ...oauth2.AuthCodeOption) string {
	return p.config.AuthCodeURL("s", append([]oauth2.AuthCodeOption{oidc.Nonce("n"), oauth2.S256ChallengeOption(p.verifier)}, extra...)...)
}

// visit returns the parameters that the browser brings to the callback.
func (p *party) visit(at, user string) url.Values {
	p.Helper()
	final, err := Visit(p.Context(), p.browser, at, user)
	if err != nil {
		p.Fatal(err)
	}
	u, err := url.Parse(final)
	if err != nil || !strings.HasPrefix(final, testRedirect+"?") {
		p.Fatalf("visit ended at %q", final)
	}
	return u.Query()
}

func (p *party) exchange(code string) (*oauth2.Token, error) {
	return p.config.Exchange(p.Context(), code, oauth2.VerifierOption(p.verifier))
}

// login logs user in and returns the tokens with the ID token's claims.
func (p *party) login(user string, extra ...oauth2.AuthCodeOption) (*oauth2.Token, map[string]any) {
	p.Helper()
	q := p.visit(p.url(extra...), user)
	tok, err := p.exchange(q.Get("code"))
	if err != nil {
		p.Fatalf("exchange: %v (callback %v)", err, q)
	}
	return tok, p.claims(tok)
}

func (p *party) claims(tok *oauth2.Token) map[string]any {
	p.Helper()
	raw, _ := tok.Extra("id_token").(string)
	id, err := p.provider.VerifierContext(p.Context(), &oidc.Config{ClientID: p.config.ClientID}).Verify(p.Context(), raw)
	if err != nil {
		p.Fatal(err)
	}
	var c map[string]any
	if err := id.Claims(&c); err != nil {
		p.Fatal(err)
	}
	return c
}

func (p *party) refresh(token string) (*oauth2.Token, error) {
	return p.config.TokenSource(p.Context(), &oauth2.Token{RefreshToken: token}).Token()
}

func wantInvalidGrant(t *testing.T, err error) {
	t.Helper()
	if e, ok := errors.AsType[*oauth2.RetrieveError](err); !ok || e.ErrorCode != "invalid_grant" {
		t.Errorf("got %v, want invalid_grant", err)
	}
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { http.DefaultTransport.(*http.Transport).CloseIdleConnections() }))
}

func TestClaims(t *testing.T) {
	for _, row := range []struct {
		name   string
		config Config
		path   string
		user   string
		want   map[string]string // JSON of a claim; "" = absent
	}{
		{name: "plain", user: "alice", want: map[string]string{
			"nonce": `"n"`, "groups": `["developers"]`, "email": `"alice@example.test"`, "email_verified": `true`, "sub": `"user-alice"`,
			"name": `"Alice Example"`, "azp": `"zt"`, "aud": `["zt"]`,
		}},
		{name: "bob has no groups", user: "bob", want: map[string]string{"groups": "", "email": `"bob@example.test"`}},
		{name: "ES256", config: Config{Algorithm: "ES256"}, user: "alice", want: map[string]string{"nonce": `"n"`}},
		{name: "path", config: Config{URL: "/realms/test"}, user: "alice", want: map[string]string{"nonce": `"n"`}},
		{name: "trailing slash", config: Config{URL: "/"}, user: "alice", want: map[string]string{"nonce": `"n"`}},
		{name: "groups claim", config: Config{GroupsClaim: "https://example.test/roles"}, user: "alice", want: map[string]string{"groups": "", "https://example.test/roles": `["developers"]`}},
		{name: "overage", config: Config{GroupOverage: true}, user: "alice", want: map[string]string{"groups": "", "_claim_names": `{"groups":"src1"}`}},
		{name: "hasgroups", config: Config{HasGroups: true}, user: "alice", want: map[string]string{"groups": "", "hasgroups": "true"}},
		{name: "no auth_time", config: Config{NoAuthTime: true}, user: "alice", want: map[string]string{"auth_time": ""}},
		{name: "no nonce", config: Config{NoNonce: true}, user: "alice", want: map[string]string{"nonce": ""}},
		{name: "client secret", config: Config{ClientSecret: "hush"}, user: "alice", want: map[string]string{"nonce": `"n"`}},
		{name: "edited", config: Config{EditClaims: func(id string, c map[string]any) { c["nonce"] = "of " + id }}, user: "alice", want: map[string]string{"nonce": `"of zt"`}},
		{name: "own claims", config: Config{Users: []User{{Name: "eve", Claims: map[string]any{"tid": "t1"}}}}, user: "eve", want: map[string]string{"tid": `"t1"`, "email": ""}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newParty(t, row.config)
			_, claims := p.login(row.user)
			for k, want := range row.want {
				got := ""
				if v, ok := claims[k]; ok {
					b, _ := json.Marshal(v)
					got = string(b)
				}
				if got != want {
					t.Errorf("%s: got %s, want %s", k, got, want)
				}
			}
			for _, k := range []string{"sid", "jti"} {
				if s, _ := claims[k].(string); s == "" {
					t.Errorf("no %s in %v", k, claims)
				}
			}
			if _, ok := claims["auth_time"]; !ok && !row.config.NoAuthTime {
				t.Error("no auth_time")
			}
			if d := claims["exp"].(float64) - claims["iat"].(float64); d != DefaultTokenLifetime.Seconds() {
				t.Errorf("token lives %v s", d)
			}
		})
	}
}

func TestClockOffsetAndLifetime(t *testing.T) {
	p := newParty(t, Config{ClockOffset: 10 * time.Minute, TokenLifetime: time.Minute})
	_, claims := p.login("alice")
	if d := time.Until(time.Unix(int64(claims["iat"].(float64)), 0)); d < 9*time.Minute || d > 11*time.Minute {
		t.Errorf("iat is %v ahead, want 10m", d)
	}
	if d := claims["exp"].(float64) - claims["iat"].(float64); d != 60 {
		t.Errorf("token lives %v s, want 60", d)
	}
}

func TestAuthorizeRefusals(t *testing.T) {
	p := newParty(t, Config{ExactRedirectPorts: []uint16{8000, 8001}, ClientSecret: "hush"})
	edit := func(k, v string) string {
		u, err := url.Parse(p.url())
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		if q.Set(k, v); v == "" {
			q.Del(k)
		}
		u.RawQuery = q.Encode()
		return u.String()
	}
	for _, row := range []struct{ name, url, want string }{ // want: error at the callback, or "400"
		{"no PKCE", edit("code_challenge", ""), "invalid_request"},
		{"plain PKCE", edit("code_challenge_method", "plain"), "invalid_request"},
		{"default PKCE method", edit("code_challenge_method", ""), "invalid_request"},
		{"short challenge", edit("code_challenge", "abc"), "invalid_request"},
		{"no openid", edit("scope", "email"), "invalid_scope"},
		{"implicit", edit("response_type", "id_token"), "unauthorized_client"},
		{"fragment", edit("response_mode", "fragment"), "invalid_request"},
		{"two prompts", edit("prompt", "none login"), "invalid_request"},
		{"unknown client", edit("client_id", "other"), "400"},
		{"other path", edit("redirect_uri", "http://127.0.0.1:8000/other"), "400"},
		{"query", edit("redirect_uri", testRedirect+"?x=1"), "400"},
		{"port not listed", edit("redirect_uri", "http://127.0.0.1:8002/callback"), "400"},
		{"no port", edit("redirect_uri", "http://127.0.0.1/callback"), "400"},
		{"other host", edit("redirect_uri", "http://example.test:8000/callback"), "400"},
		{"host by suffix", edit("redirect_uri", "http://127.0.0.1:8000@example.test/callback"), "400"},
		{"https", edit("redirect_uri", "https://127.0.0.1:8000/callback"), "400"},
		{"twice", p.url() + "&state=t", "400"},
	} {
		t.Run(row.name, func(t *testing.T) {
			page, err := VisitPage(t.Context(), p.browser, row.url, "alice")
			if err != nil {
				t.Fatal(err)
			}
			got := "400"
			if page.Status != http.StatusBadRequest {
				u, _ := url.Parse(page.URL)
				f, _ := url.ParseQuery(u.Fragment)
				got = u.Query().Get("error") + f.Get("error")
			}
			if got != row.want {
				t.Errorf("got %q at %s, want %q", got, page.URL, row.want)
			}
		})
	}
	for _, port := range []string{"8000", "8001"} {
		if !p.issuer.registered("http://localhost:" + port + "/callback") {
			t.Errorf("port %s is refused", port)
		}
	}
}

func TestTokenRefusals(t *testing.T) {
	p := newParty(t, Config{ClientSecret: "hush"})
	code := func() string { return p.visit(p.url(), "alice").Get("code") }
	try := func(name string, want string, change func(q url.Values)) {
		q := url.Values{
			"grant_type": {"authorization_code"}, "code": {code()}, "redirect_uri": {testRedirect}, "client_id": {OverlayClient},
			"client_secret": {"hush"}, "code_verifier": {p.verifier},
		}
		change(q)
		resp, err := p.browser.PostForm(p.config.Endpoint.TokenURL, q)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var answer struct{ Error string }
		json.NewDecoder(resp.Body).Decode(&answer)
		if answer.Error != want {
			t.Errorf("%s: got %q (%d), want %q", name, answer.Error, resp.StatusCode, want)
		}
	}
	try("right", "", func(url.Values) {})
	try("no verifier", "invalid_request", func(q url.Values) { q.Del("code_verifier") })
	try("wrong verifier", "invalid_grant", func(q url.Values) { q.Set("code_verifier", oauth2.GenerateVerifier()) })
	try("no secret", "invalid_client", func(q url.Values) { q.Del("client_secret") })
	try("wrong secret", "invalid_client", func(q url.Values) { q.Set("client_secret", "x") })
	try("other client", "invalid_grant", func(q url.Values) { q.Set("client_id", APIServerClient) })
	try("other redirect", "invalid_grant", func(q url.Values) { q.Set("redirect_uri", "http://127.0.0.1:8001/callback") })
	try("unknown code", "invalid_grant", func(q url.Values) { q.Set("code", "x") })
	try("device flow", "unsupported_grant_type", func(q url.Values) { q.Set("grant_type", "urn:ietf:params:oauth:grant-type:device_code") })
}

func TestCodeReuseRevokes(t *testing.T) {
	p := newParty(t, Config{})
	q := p.visit(p.url(), "alice")
	tok, err := p.exchange(q.Get("code"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.exchange(q.Get("code"))
	wantInvalidGrant(t, err)
	_, err = p.refresh(tok.RefreshToken)
	wantInvalidGrant(t, err)
}

func TestSessionAndPromptNone(t *testing.T) {
	none := oauth2.SetAuthURLParam("prompt", "none")
	p := newParty(t, Config{})
	if q := p.visit(p.url(none), "nobody"); q.Get("error") != "login_required" || q.Get("state") != "s" {
		t.Errorf("prompt=none in a new browser: %v", q)
	}
	_, first := p.login("alice", oauth2.SetAuthURLParam("max_age", "3600"))
	_, second := p.login("nobody") // a form would refuse this name
	if second["sid"] != first["sid"] || second["auth_time"] != first["auth_time"] || second["sub"] != first["sub"] {
		t.Errorf("the second visit is another session: %v, %v", first, second)
	}
	p.config.ClientID = APIServerClient
	_, third := p.login("nobody", none)
	if third["sid"] != first["sid"] || third["azp"] != APIServerClient {
		t.Errorf("prompt=none at another client: %v", third)
	}
	if q := p.visit(p.url(none, oauth2.SetAuthURLParam("max_age", "0")), "nobody"); q.Get("error") != "login_required" {
		t.Errorf("prompt=none with max_age=0: %v", q)
	}
	if _, again := p.login("alice", oauth2.SetAuthURLParam("max_age", "0")); again["sid"] != first["sid"] {
		t.Errorf("the same person again is another session: %v", again)
	}
	if _, bob := p.login("bob", oauth2.SetAuthURLParam("prompt", "login")); bob["sub"] != "user-bob" || bob["sid"] == first["sid"] {
		t.Errorf("prompt=login as bob: %v", bob)
	}
	p.issuer.SwitchSessions("alice")
	if _, c := p.login("nobody", none); c["sub"] != "user-alice" {
		t.Errorf("after the switch: %v", c)
	}
	p.issuer.SignOut()
	if q := p.visit(p.url(none), "nobody"); q.Get("error") != "login_required" {
		t.Errorf("prompt=none after sign-out: %v", q)
	}
}

func TestNoPromptNone(t *testing.T) {
	p := newParty(t, Config{NoPromptNone: true})
	p.login("alice")
	if q := p.visit(p.url(oauth2.SetAuthURLParam("prompt", "none")), "nobody"); q.Get("error") != "interaction_required" {
		t.Errorf("got %v", q)
	}
	p.login("nobody") // silent all the same
}

func TestCancelAndIss(t *testing.T) {
	p := newParty(t, Config{IssParameter: true})
	final, err := VisitCancel(t.Context(), p.browser, p.url())
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(final)
	if q := u.Query(); q.Get("error") != "access_denied" || q.Get("state") != "s" || q.Get("iss") != p.issuer.URL() {
		t.Errorf("cancel: %v", q)
	}
	if q := p.visit(p.url(oauth2.SetAuthURLParam("prompt", "none")), "x"); q.Get("iss") != p.issuer.URL() || q.Get("error") != "login_required" {
		t.Errorf("error: %v", q)
	}
	if q := p.visit(p.url(), "alice"); q.Get("iss") != p.issuer.URL() || q.Get("code") == "" {
		t.Errorf("code: %v", q)
	}
}

func TestUnknownUserStaysAtForm(t *testing.T) {
	p := newParty(t, Config{})
	if page, err := VisitPage(t.Context(), p.browser, p.url(), `<b>"eve`); err != nil || page.Status != http.StatusUnauthorized || strings.Contains(page.Body, "<b>") {
		t.Errorf("got %d %v:\n%s", page.Status, err, page.Body)
	}
}

func TestRefresh(t *testing.T) {
	p := newParty(t, Config{})
	tok, first := p.login("alice")
	if err := p.issuer.SetGroups("alice", "operators"); err != nil {
		t.Fatal(err)
	}
	next, err := p.refresh(tok.RefreshToken)
	if err != nil {
		t.Fatal(err)
	}
	c := p.claims(next)
	if _, ok := c["nonce"]; ok || c["sid"] != first["sid"] || c["auth_time"] != first["auth_time"] || c["jti"] == first["jti"] {
		t.Errorf("refreshed claims: %v", c)
	}
	if g, _ := c["groups"].([]any); !slices.Equal(g, []any{"operators"}) {
		t.Errorf("refreshed groups: %v", g)
	}
	if next.RefreshToken == tok.RefreshToken {
		t.Error("the refresh token did not rotate")
	}
	_, err = p.refresh(tok.RefreshToken) // reuse
	wantInvalidGrant(t, err)
	_, err = p.refresh(next.RefreshToken) // so the family is gone
	wantInvalidGrant(t, err)

	tok, _ = p.login("alice")
	p.issuer.RemoveUser("alice")
	_, err = p.refresh(tok.RefreshToken)
	wantInvalidGrant(t, err)
}

func TestRefreshRaceHasOneWinner(t *testing.T) {
	p := newParty(t, Config{})
	tok, _ := p.login("alice")
	var wg sync.WaitGroup
	won := make(chan struct{}, 8)
	for range 8 {
		wg.Go(func() {
			if _, err := p.refresh(tok.RefreshToken); err == nil {
				won <- struct{}{}
			}
		})
	}
	wg.Wait()
	if len(won) > 1 {
		t.Errorf("%d uses of one refresh token succeeded", len(won))
	}
}

func TestRefreshModes(t *testing.T) {
	p := newParty(t, Config{RefreshWithNonce: true, KeepRefreshTokens: true})
	tok, _ := p.login("alice")
	for range 2 {
		next, err := p.refresh(tok.RefreshToken)
		if err != nil {
			t.Fatal(err)
		}
		if c := p.claims(next); c["nonce"] != "n" {
			t.Errorf("refreshed claims: %v", c)
		}
	}
	p = newParty(t, Config{RefreshLifetime: time.Nanosecond})
	tok, _ = p.login("alice")
	_, err := p.refresh(tok.RefreshToken)
	wantInvalidGrant(t, err)
}

func TestPairwise(t *testing.T) {
	p := newParty(t, Config{PairwiseSubjects: true})
	_, a := p.login("alice")
	p.config.ClientID = APIServerClient
	_, b := p.login("alice")
	p.config.ClientID = OverlayClient
	_, c := p.login("alice")
	if a["sub"] == b["sub"] || a["sub"] != c["sub"] {
		t.Errorf("subjects %v, %v, %v", a["sub"], b["sub"], c["sub"])
	}
}

func TestRotateKeys(t *testing.T) {
	p := newParty(t, Config{Algorithm: "ES256"})
	tok, _ := p.login("alice")
	raw := tok.Extra("id_token").(string)
	verify := func() error { // with keys fetched now
		keys := oidc.NewRemoteKeySet(t.Context(), p.issuer.URL()+"/keys")
		_, err := oidc.NewVerifier(p.issuer.URL(), keys, &oidc.Config{ClientID: OverlayClient, SupportedSigningAlgs: []string{"ES256"}}).Verify(t.Context(), raw)
		return err
	}
	for _, row := range []struct {
		withdraw, ok bool
	}{{false, true}, {true, false}} {
		if err := p.issuer.RotateKeys(row.withdraw); err != nil {
			t.Fatal(err)
		}
		if err := verify(); (err == nil) != row.ok {
			t.Errorf("after RotateKeys(%v): %v", row.withdraw, err)
		}
	}
	p.login("alice")
}

func TestTLSAndControl(t *testing.T) {
	cert, ca, err := SelfSigned("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	i, stop := Local(t, Config{Certificate: &cert})
	browser, err := NewBrowser(ca)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := browser.Get(i.URL() + "/.well-known/openid-configuration")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if !strings.Contains(string(b), `"issuer":"`+i.URL()+`"`) || strings.Contains(string(b), "implicit") {
		t.Errorf("discovery: %s", b)
	}
	stop()
	stop()
	if _, err := browser.Get(i.URL()); err == nil {
		t.Error("the issuer answers after stop")
	}

	control := i.Control()
	for _, row := range []struct {
		path, body string
		code       int
	}{
		{"users", `{"name":"carol","groups":["g"]}`, 204},
		{"groups", `{"user":"carol","groups":["h"]}`, 204},
		{"groups", `{"user":"nobody"}`, 400},
		{"users", `{"name":"x","grups":[]}`, 400},
		{"switch", `{"user":"carol"}`, 204},
		{"signout", `{}`, 204},
		{"rotate", `{"withdrawOld":true}`, 204},
		{"remove", `{"user":"alice"}`, 204},
	} {
		w := httptest.NewRecorder()
		control.ServeHTTP(w, httptest.NewRequest("POST", "/control/"+row.path, strings.NewReader(row.body)))
		if w.Code != row.code {
			t.Errorf("%s %s: %d %s", row.path, row.body, w.Code, w.Body)
		}
	}
	if u := i.store.users["carol"]; !slices.Equal(u.Groups, []string{"h"}) || len(i.store.users) != 2 || len(i.store.keys) != 1 {
		t.Errorf("users %v, %d keys", i.store.users, len(i.store.keys))
	}
}

func TestConfigAndModes(t *testing.T) {
	for _, u := range []string{"", "example.test", "http://example.test", "https://x.test/?q", "https://u@x.test", "ftp://127.0.0.1"} {
		if _, err := New(Config{URL: u}); err == nil {
			t.Errorf("URL %q was accepted", u)
		}
	}
	var c Config
	for _, m := range []string{"exact-ports=8000,8001", "no-prompt-none", "client-secret=s", "groups-claim=roles", "group-overage", "has-groups", "token-lifetime=1m", "refresh-lifetime=1h", "keep-refresh-tokens", "pairwise", "refresh-with-nonce", "no-auth-time", "no-nonce", "iss-parameter", "algorithm=ES256", "clock-offset=-90s"} {
		if err := c.SetMode(m); err != nil {
			t.Error(err)
		}
	}
	if len(c.ExactRedirectPorts) != 2 || !c.NoPromptNone || c.ClientSecret != "s" || c.GroupsClaim != "roles" || !c.GroupOverage || !c.HasGroups ||
		c.TokenLifetime != time.Minute || c.RefreshLifetime != time.Hour || !c.KeepRefreshTokens || !c.PairwiseSubjects || !c.RefreshWithNonce ||
		!c.NoAuthTime || !c.NoNonce || !c.IssParameter || c.Algorithm != "ES256" || c.ClockOffset != -90*time.Second {
		t.Errorf("modes made %+v", c)
	}
	for _, m := range []string{"", "x", "pairwise=1", "client-secret", "exact-ports=0", "exact-ports=x", "token-lifetime=x"} {
		if err := c.SetMode(m); err == nil {
			t.Errorf("mode %q was accepted", m)
		}
	}
}
