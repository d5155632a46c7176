package issuer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/html"
)

const maxSteps = 12 // pages and forms of one visit

// Page is where a visit ended.
type Page struct {
	URL    string
	Status int
	Body   string
}

// NewBrowser returns an HTTP client that is a browser to an issuer: it keeps
// cookies, and trusts caPEM besides nothing else (empty: the system's roots).
func NewBrowser(caPEM []byte) (*http.Client, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true} // no goroutine outlives a visit
	if len(caPEM) > 0 {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(caPEM) {
			return nil, fmt.Errorf("no certificate in %q", caPEM)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{Jar: jar, Transport: transport, Timeout: 30 * time.Second}, nil
}

// Visit plays a person who opens url and logs in as user wherever a login form
// is shown: it follows redirects, fills forms, and ends at the first page
// without one, for a login the client's loopback page. browser needs a cookie
// jar; one whose CheckRedirect returns http.ErrUseLastResponse at the callback
// makes Visit end there, unfetched. An error page is an error.
func Visit(ctx context.Context, browser *http.Client, url, user string) (finalURL string, err error) {
	p, err := VisitPage(ctx, browser, url, user)
	if err != nil {
		return "", err
	}
	if p.Status >= 400 {
		return p.URL, fmt.Errorf("visit as %s: %d at %s: %.200q", user, p.Status, withoutQuery(p.URL), p.Body)
	}
	return p.URL, nil
}

// VisitPage is Visit for a caller that wants the last page, whatever its status.
func VisitPage(ctx context.Context, browser *http.Client, url, user string) (Page, error) {
	return visit(ctx, browser, url, map[string]string{"login": user, "password": "any"})
}

// VisitCancel plays a person who opens url and presses Cancel at the login form.
func VisitCancel(ctx context.Context, browser *http.Client, url string) (finalURL string, err error) {
	p, err := visit(ctx, browser, url, map[string]string{"cancel": "yes"})
	return p.URL, err
}

func visit(ctx context.Context, browser *http.Client, at string, fill map[string]string) (Page, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return Page{}, err
	}
	for range maxSteps {
		resp, err := browser.Do(req)
		if err != nil {
			return Page{}, fmt.Errorf("visit: %w", err)
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		resp.Body.Close()
		if err != nil {
			return Page{}, fmt.Errorf("visit: %w", err)
		}
		p := Page{URL: resp.Request.URL.String(), Status: resp.StatusCode, Body: string(body)}
		if to, err := resp.Location(); err == nil { // the browser was told to stop here
			p.URL = to.String()
			return p, nil
		}
		action, form := firstForm(p.Body)
		if form == nil || resp.StatusCode >= 400 {
			return p, nil
		}
		for k, v := range fill {
			form.Set(k, v)
		}
		to, err := resp.Request.URL.Parse(action)
		if err != nil {
			return p, fmt.Errorf("visit: form of %s: %w", withoutQuery(p.URL), err)
		}
		req, err = http.NewRequestWithContext(ctx, http.MethodPost, to.String(), strings.NewReader(form.Encode()))
		if err != nil {
			return p, err
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return Page{}, fmt.Errorf("visit: still at a form after %d pages", maxSteps)
}

// firstForm returns the action and the inputs of a page's first form, buttons
// left out; nil if it has none.
func firstForm(page string) (action string, inputs url.Values) {
	tree, err := html.Parse(strings.NewReader(page))
	if err != nil {
		return "", nil
	}
	for n := range tree.Descendants() {
		if n.Type != html.ElementNode || n.Data != "form" {
			continue
		}
		inputs = url.Values{}
		for in := range n.Descendants() {
			if in.Type == html.ElementNode && in.Data == "input" && attribute(in, "name") != "" {
				inputs.Set(attribute(in, "name"), attribute(in, "value"))
			}
		}
		return attribute(n, "action"), inputs
	}
	return "", nil
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// withoutQuery leaves out what may be a code.
func withoutQuery(raw string) string {
	before, _, _ := strings.Cut(raw, "?")
	return before
}
