//go:build linux

package lab

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/test/issuer"
)

// TestChromium logs in with a real browser: the issuer's form, its cookie and
// the redirect to a loopback page.
func TestChromium(t *testing.T) {
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Skipf("no browser: %v (Debian: apt-get install chromium)", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l := newLab(t)
	ca, err := NewAuthority("zt lab CA")
	if err != nil {
		t.Fatal(err)
	}
	i, err := l.StartIssuer(ca, nil, "127.0.0.1:0", issuer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan url.Values, 1)
	callback := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/callback" {
			http.NotFound(w, r)
			return
		}
		got <- r.URL.Query()
		fmt.Fprint(w, "<!doctype html><title>done</title><p>You may close this page.")
	}))
	defer callback.Close()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b, err := l.StartChromium(ctx, ChromiumConfig{Program: program, Dir: dir, Pins: []string{i.Pin}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	q := url.Values{"client_id": {issuer.OverlayClient}, "redirect_uri": {callback.URL + "/callback"}, "response_type": {"code"}, "scope": {"openid"},
		"state": {"s"}, "nonce": {"n"}, "code_challenge": {"E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"}, "code_challenge_method": {"S256"}}
	page, err := b.LogIn(ctx, i.URL()+"/authorize?"+q.Encode(), "alice")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(page.Text, "You may close this page.") || page.Title != "done" {
		t.Errorf("the last page is %+v", page)
	}
	if v := <-got; v.Get("code") == "" || v.Get("state") != "s" {
		t.Errorf("the callback got %v", v)
	}
}
