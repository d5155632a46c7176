package auth

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/test/issuer"
)

var updatePages = flag.Bool("update-pages", false, "write the golden login pages")

func TestVisitOfTwoLogins(t *testing.T) {
	for name, c := range map[string]issuer.Config{
		"silent":             {},
		"no prompt=none":     {NoPromptNone: true},
		"pairwise, RFC 9207": {PairwiseSubjects: true, IssParameter: true},
		"exact ports":        {ExactRedirectPorts: freePorts(t, 2)},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			i, _ := issuer.Local(t, c)
			overlay, api := overlayEntry(i), apiEntry(i)
			overlay.RedirectPorts = c.ExactRedirectPorts
			api.RedirectPorts = c.ExactRedirectPorts
			p := newPerson(t, "alice")
			var calls int
			tokens, err := p.visit(t.Context(), BrowserConfig{Summary: func(ts []Tokens) LoginSummary {
				return LoginSummary{Person: ts[0].String(), Groups: ts[0].Groups, Clusters: []string{"c1", "c2"}}
			}}, LoginConfig{Issuer: overlay}, func(_ context.Context, got Tokens) (*LoginConfig, error) {
				if calls++; calls == 2 {
					return nil, nil
				}
				return &LoginConfig{Issuer: api, Silent: true, LoginHint: got.Email, SameAs: &got, Offline: true}, nil
			})
			if err != nil {
				t.Fatalf("%v; the browser saw %+v, %v", err, p.page, p.err)
			}
			if len(tokens) != 2 || calls != 2 || tokens[0].ClientID != "zt" || tokens[1].ClientID != "kubernetes" || tokens[0].Nonce == tokens[1].Nonce {
				t.Fatalf("%d tokens, %d calls", len(tokens), calls)
			}
			if (tokens[0].Subject == tokens[1].Subject) == c.PairwiseSubjects {
				t.Errorf("subjects %q and %q", tokens[0].Subject, tokens[1].Subject)
			}
			if !strings.Contains(p.page.Body, "<dd>c2</dd>") {
				t.Errorf("the last page says:\n%s", p.page.Body)
			}
			want := "url code logged_in next code logged_in"
			if c.NoPromptNone {
				want = "url code logged_in next next code logged_in"
			}
			if got := p.kinds(); got != want {
				t.Errorf("events %s, want %s", got, want)
			}
		})
	}
}

// TestVisitAcrossIssuers: the second login is at another issuer, with redirect
// ports of its own, and it is not the person's first tab's account.
func TestVisitAcrossIssuers(t *testing.T) {
	noLeaks(t)
	first, _ := issuer.Local(t, issuer.Config{})
	ports := freePorts(t, 1)
	second, _ := issuer.Local(t, issuer.Config{ExactRedirectPorts: ports, RedirectHosts: []string{"localhost"}})
	api := apiEntry(second)
	api.RedirectHost, api.RedirectPorts = "localhost", ports
	p := newPerson(t, "alice")
	again := func(_ context.Context, got Tokens) (*LoginConfig, error) {
		if got.Issuer == second.URL() {
			return nil, nil
		}
		return &LoginConfig{Issuer: api, Silent: true, SameAs: &got}, nil
	}
	tokens, err := p.visit(t.Context(), BrowserConfig{}, LoginConfig{Issuer: overlayEntry(first)}, again)
	if err != nil || len(tokens) != 2 {
		t.Fatalf("%v; the browser saw %+v, %v", err, p.page, p.err)
	}
	second.SwitchSessions("bob")
	tokens, err = p.visit(t.Context(), BrowserConfig{}, LoginConfig{Issuer: overlayEntry(first)}, again)
	if !errors.Is(err, ErrOtherPerson) || len(tokens) != 1 || tokens[0].Email != "alice@example.test" {
		t.Fatalf("got %v and %d tokens", err, len(tokens))
	}
	if msg := err.Error(); !strings.Contains(msg, "bob@example.test, want alice@example.test") || !strings.Contains(p.page.Body, "not complete") {
		t.Errorf("message %q, page:\n%s", msg, p.page.Body)
	}
}

func TestVisitEndsWithNextsError(t *testing.T) {
	noLeaks(t)
	i, _ := issuer.Local(t, issuer.Config{})
	p := newPerson(t, "bob")
	tokens, err := p.visit(t.Context(), BrowserConfig{}, LoginConfig{Issuer: overlayEntry(i)}, func(ctx context.Context, _ Tokens) (*LoginConfig, error) {
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > nextTimeout {
			t.Error("no deadline")
		}
		return nil, &RefusedError{Reason: ReasonPolicy, Detail: "<script>"}
	})
	if got, ok := errors.AsType[*RefusedError](err); !ok || got.Reason != ReasonPolicy || len(tokens) != 1 {
		t.Errorf("got %v and %d tokens", err, len(tokens))
	}
	if b := p.page.Body; !strings.Contains(b, "no rule of the cluster") || !strings.Contains(b, hintAdmin) || strings.Contains(b, "<script>") || !strings.Contains(b, "<dd>none</dd>") {
		t.Errorf("page:\n%s", b)
	}
}

func TestVisitCancelled(t *testing.T) {
	noLeaks(t)
	i, _ := issuer.Local(t, issuer.Config{})
	p := newPerson(t, "")
	begin := time.Now()
	_, err := p.visit(t.Context(), BrowserConfig{}, LoginConfig{Issuer: overlayEntry(i)}, nil)
	le, ok := errors.AsType[*LoginError](err)
	if !ok || !errors.Is(err, ErrLoginCancelled) || le.ExitCode() != 1 || time.Since(begin) > 3*time.Second {
		t.Errorf("after %v: %v", time.Since(begin), err)
	}
	if p.kinds() != "url" {
		t.Errorf("events %s", p.kinds())
	}
}

func TestVisitTimeout(t *testing.T) {
	noLeaks(t)
	i, _ := issuer.Local(t, issuer.Config{})
	b, err := NewBrowser(BrowserConfig{Timeout: 1200 * time.Millisecond, Open: func(context.Context, string) error { return errors.New("no\x1b browser") }, Progress: nil})
	if err != nil {
		t.Fatal(err)
	}
	var left []Duration
	var failed string
	b.cfg.Progress = func(e BrowserEvent) {
		switch e.Kind {
		case BrowserWaiting:
			left = append(left, e.Left)
		case BrowserOpenFailed:
			failed = e.Err
		}
	}
	_, err = b.Visit(t.Context(), LoginConfig{Issuer: overlayEntry(i)}, nil)
	if le, ok := errors.AsType[*LoginError](err); !ok || !errors.Is(err, ErrLoginTimeout) || le.ExitCode() != 3 {
		t.Errorf("got %v", err)
	}
	if len(left) < 2 || left[0] < left[1] || failed != `no\x1b browser` {
		t.Errorf("left %v, open: %q", left, failed)
	}
}

// TestVisitContext: a cancelled visit ends at once, whatever it is doing.
func TestVisitContext(t *testing.T) {
	hang, release := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(release) })
	for name, entry := range map[string]func(*testing.T) Issuer{
		"waiting for the person": func(t *testing.T) Issuer {
			i, _ := issuer.Local(t, issuer.Config{})
			go func() { hang <- struct{}{} }()
			return overlayEntry(i)
		},
		"exchanging the code": func(t *testing.T) Issuer {
			return hostile(t, func(_ http.ResponseWriter, r *http.Request) {
				r.ParseForm() // the server notices that a client hung up only once the body was read
				hang <- struct{}{}
				select {
				case <-r.Context().Done():
				case <-release:
				}
			})
		},
		"discovering": func(t *testing.T) Issuer {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { ln.Close() })
			go func() {
				if c, err := ln.Accept(); err == nil { // and never answer
					hang <- struct{}{}
					<-release
					c.Close()
				}
			}()
			return Issuer{URL: "http://" + ln.Addr().String(), ClientID: "zt"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			e := entry(t)
			browser, err := issuer.NewBrowser(nil)
			if err != nil {
				t.Fatal(err)
			}
			b, err := NewBrowser(BrowserConfig{Open: func(ctx context.Context, url string) error {
				if name == "waiting for the person" {
					return nil
				}
				_, err := issuer.VisitPage(ctx, browser, url, "alice")
				return err
			}})
			if err != nil {
				t.Fatal(err)
			}
			var begin time.Time
			go func() { <-hang; begin = time.Now(); cancel() }()
			_, err = b.Visit(ctx, LoginConfig{Issuer: e}, nil)
			if took := time.Since(begin); !errors.Is(err, context.Canceled) || took > 2*time.Second {
				t.Errorf("after %v: %v", took, err)
			}
		})
	}
}

func TestPorts(t *testing.T) {
	noLeaks(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := uint16(taken.Addr().(*net.TCPAddr).Port)
	free := freePorts(t, 1)[0]
	i, _ := issuer.Local(t, issuer.Config{ExactRedirectPorts: []uint16{port, free}})
	entry := overlayEntry(i)
	entry.RedirectPorts = []uint16{port}
	_, err = newPerson(t, "alice").visit(t.Context(), BrowserConfig{}, LoginConfig{Issuer: entry}, nil)
	if le, ok := errors.AsType[*LoginError](err); !ok || !errors.Is(err, ErrPortTaken) || !strings.Contains(err.Error(), fmt.Sprint(port)) || le.Hint() == "" {
		t.Errorf("got %v", err)
	}
	entry.RedirectPorts = []uint16{port, free}
	if _, err = newPerson(t, "alice").visit(t.Context(), BrowserConfig{}, LoginConfig{Issuer: entry}, nil); err != nil {
		t.Errorf("with a second port: %v", err)
	}
	entry.RedirectPorts = nil
	p := newPerson(t, "alice")
	if _, err = p.visit(t.Context(), BrowserConfig{Host: "localhost", Ports: []uint16{free}}, LoginConfig{Issuer: entry}, nil); err != nil || !strings.HasPrefix(p.page.URL, fmt.Sprintf("http://localhost:%d/", free)) {
		t.Errorf("with ports of the Browser: %v at %s", err, p.page.URL)
	}
	for _, bad := range []BrowserConfig{{Host: "example.test"}, {Ports: []uint16{0}}, {Timeout: -1}} {
		if _, err := NewBrowser(bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

// TestCallbackRefusals knocks at the callback server as strangers do; none of
// it ends the visit.
func TestCallbackRefusals(t *testing.T) {
	noLeaks(t)
	i, _ := issuer.Local(t, issuer.Config{})
	browser, err := issuer.NewBrowser(nil)
	if err != nil {
		t.Fatal(err)
	}
	open := func(ctx context.Context, at string) error {
		u, err := url.Parse(at)
		if err != nil {
			return err
		}
		state, redirect := u.Query().Get("state"), u.Query().Get("redirect_uri")
		base := strings.TrimSuffix(redirect, callbackPath)
		port := strings.TrimPrefix(base, "http://127.0.0.1")
		plain := &http.Client{Transport: browser.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		knock := func(name, method, at, host string, want int) {
			req, err := http.NewRequestWithContext(ctx, method, at, nil)
			if err != nil {
				t.Error(err)
				return
			}
			if host != "" {
				req.Host = host
			}
			resp, err := plain.Do(req)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s: got %d, want %d", name, resp.StatusCode, want)
			}
			if h := resp.Header; !strings.HasPrefix(h.Get("Content-Security-Policy"), "default-src 'none'; style-src 'sha256-") || h.Get("Referrer-Policy") != "no-referrer" || h.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: headers %v", name, h)
			}
		}
		right := redirect + "?code=x&state=" + state
		knock("wrong state", "GET", redirect+"?code=x&state=y", "", 400)
		knock("no state", "GET", redirect+"?code=x", "", 400)
		knock("two states", "GET", right+"&state="+state, "", 400)
		knock("error without state", "GET", redirect+"?error=access_denied", "", 400)
		knock("bad query", "GET", redirect+"?%zz", "", 400)
		knock("POST", "POST", right, "", 405)
		knock("HEAD", "HEAD", right, "", 405)
		knock("rebound name", "GET", right, "evil.example"+port, 403)
		knock("other port", "GET", right, "127.0.0.1:1", 403)
		knock("no port", "GET", right, "127.0.0.1", 403)
		knock("root", "GET", base+"/", "", 404)
		knock("favicon", "GET", base+"/favicon.ico", "", 404)
		knock("longer path", "GET", base+"/callback/?code=x&state="+state, "", 404)
		knock("last page before the end", "GET", base+"/done?view=x", "", 404)
		knock("last page without view", "GET", base+"/done", "", 404)

		// The login itself, stopping before the callback, then two hits.
		browser.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
			if strings.HasPrefix(r.URL.String(), redirect) {
				return http.ErrUseLastResponse
			}
			return nil
		}
		final, err := issuer.Visit(ctx, browser, at, "alice")
		if err != nil {
			t.Error(err)
			return nil
		}
		knock("localhost is the same server", "GET", strings.Replace(final, "127.0.0.1", "localhost", 1), "", 302)
		knock("second hit", "GET", final, "", 400)
		return nil
	}
	b, err := NewBrowser(BrowserConfig{Open: open})
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := b.Visit(t.Context(), LoginConfig{Issuer: overlayEntry(i)}, nil)
	if err != nil || len(tokens) != 1 {
		t.Errorf("got %v and %d tokens", err, len(tokens))
	}
}

// TestAuthorizationAnswers: answers with the right state that are still wrong
// end the visit with a reason.
func TestAuthorizationAnswers(t *testing.T) {
	plain, _ := issuer.Local(t, issuer.Config{})
	named, _ := issuer.Local(t, issuer.Config{IssParameter: true})
	for _, row := range []struct {
		name   string
		issuer *issuer.Issuer
		query  string
		want   error
		says   string
	}{
		{"another issuer", plain, "code=x&iss=https://evil.example", ErrIssuerAnswer, "evil.example"},
		{"no issuer", named, "code=x", ErrIssuerAnswer, "RFC 9207"},
		{"two issuers", named, "code=x&iss=" + named.URL() + "&iss=" + named.URL(), ErrIssuerAnswer, "RFC 9207"},
		{"cancel from another issuer", named, "error=access_denied&iss=x", ErrIssuerAnswer, "RFC 9207"},
		{"no code", plain, "x=y", ErrIssuerAnswer, "no code"},
		{"two codes", plain, "code=x&code=y", ErrIssuerAnswer, "twice"},
		{"a code of nobody", plain, "code=x", ErrIssuerRefused, "invalid_grant"},
		{"bad scope", plain, "error=invalid_scope&error_description=%1b%3Cb%3E", ErrIssuerRefused, `invalid_scope: \x1b<b>`},
		{"login_required, not silent", plain, "error=login_required", ErrIssuerRefused, "login_required"},
		{"cancelled", plain, "error=access_denied&code=x", ErrLoginCancelled, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			noLeaks(t)
			browser, err := issuer.NewBrowser(nil)
			if err != nil {
				t.Fatal(err)
			}
			var page issuer.Page
			b, err := NewBrowser(BrowserConfig{Open: func(ctx context.Context, at string) (err error) {
				u, err := url.Parse(at)
				if err != nil {
					return err
				}
				page, err = issuer.VisitPage(context.WithoutCancel(ctx), browser, u.Query().Get("redirect_uri")+"?"+row.query+"&state="+u.Query().Get("state"), "alice")
				return err
			}})
			if err != nil {
				t.Fatal(err)
			}
			_, err = b.Visit(t.Context(), LoginConfig{Issuer: overlayEntry(row.issuer)}, nil)
			if !errors.Is(err, row.want) || !strings.Contains(err.Error(), row.says) {
				t.Errorf("got %v, want %v that says %q", err, row.want, row.says)
			}
			if page.Status != 200 || strings.Contains(page.Body, "<b></b>") || strings.Contains(page.Body, "\x1b") || strings.Contains(page.URL, "state=") {
				t.Errorf("page %d %s:\n%s", page.Status, page.URL, page.Body)
			}
		})
	}
}

// FuzzCallback: the attacker is a web page or a program on this machine that
// can send requests to loopback but does not know the state.
func FuzzCallback(f *testing.F) {
	f.Add("GET", "127.0.0.1:8000", "/callback", "code=x&state=y")
	f.Add("GET", "localhost:8000", "/callback", "error=access_denied")
	f.Add("GET", "127.0.0.1:8000", "/callback", "state=%zz&state")
	f.Add("GET", "127.0.0.1:8000", "/done", "view=")
	f.Add("POST", "evil.example:8000", "//callback", "")
	b, err := NewBrowser(BrowserConfig{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method, host, path, query string) {
		v := &visit{b: b, over: make(chan struct{}), shown: make(chan struct{}), view: "secret-view"}
		waiting := &authorization{client: &loginClient{}, state: "secret-state"}
		v.current = waiting
		r := &http.Request{Method: method, Host: host, URL: &url.URL{Path: path, RawQuery: query}}
		w := httptest.NewRecorder()
		v.serve(t.Context(), &callbackListener{host: "127.0.0.1", port: 8000}, w, r)
		if w.Code < 400 || v.ended || v.current != waiting {
			t.Errorf("%s %s %s?%s: %d, ended %v", method, host, path, query, w.Code, v.ended)
		}
		if s := w.Body.String(); strings.Contains(s, "secret") || len(s) > 200 {
			t.Errorf("the answer tells: %s", s)
		}
	})
}

// TestLoginPages holds the pages against golden ones, with claims of somebody
// who would like to run a script there.
func TestLoginPages(t *testing.T) {
	hostile := `</style><script>alert(1)</script>"'&` + "\x1b[31m\u202e\u0000"
	many := make([]string, maxPageItems+7)
	for n := range many {
		many[n] = fmt.Sprint("g", n)
	}
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, row := range map[string]struct {
		summary LoginSummary
		tokens  int
		err     error
	}{
		"done":      {LoginSummary{Person: "alice@example.test", Groups: []string{"developers"}, Until: until, Clusters: []string{"c1", "c2"}, Notes: []string{"This machine's clock is 2m fast."}}, 2, nil},
		"hostile":   {LoginSummary{Person: hostile, Groups: []string{hostile, "javascript:alert(1)"}, Clusters: []string{hostile}, Notes: []string{hostile}}, 1, errors.New(hostile)},
		"many":      {LoginSummary{Person: "bob", Groups: many}, 1, nil},
		"failed":    {LoginSummary{}, 0, &LoginError{Issuer: "https://login.example", Err: ErrNonceMissing}},
		"cancelled": {LoginSummary{}, 0, &LoginError{Issuer: "https://login.example", Err: ErrLoginCancelled}},
		"refused":   {LoginSummary{Person: "bob@example.test"}, 1, &RefusedError{Reason: ReasonPolicy}},
	} {
		t.Run(name, func(t *testing.T) {
			got := renderLogin(make([]Tokens, row.tokens), row.err, func([]Tokens) LoginSummary { return row.summary })
			file := filepath.Join("testdata", "loginpage-"+name+".golden")
			if *updatePages {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			if s := string(got); strings.Contains(s, "<script") || strings.ContainsAny(s, "\x1b\u202e\x00") || !strings.Contains(s, "<style>"+loginStyle+"</style>") {
				t.Errorf("not escaped, or not the style whose hash the policy names:\n%s", s)
			}
		})
	}
}
