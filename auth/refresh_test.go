package auth

import (
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/zt-daemon/zt/test/issuer"
)

// loginOffline logs alice in with a refresh token.
func loginOffline(t *testing.T, c issuer.Config) (*issuer.Issuer, LoginConfig, Tokens) {
	t.Helper()
	i, _ := issuer.Local(t, c)
	cfg := LoginConfig{Issuer: apiEntry(i), Offline: true}
	tokens, err := newPerson(t, "alice").visit(t.Context(), BrowserConfig{}, cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	return i, cfg, tokens[0]
}

func TestRefresh(t *testing.T) {
	for name, c := range map[string]issuer.Config{
		"plain":             {},
		"nonce repeated":    {RefreshWithNonce: true},
		"same token again":  {KeepRefreshTokens: true},
		"no auth_time":      {NoAuthTime: true},
		"pairwise, ES256":   {PairwiseSubjects: true, Algorithm: "ES256"},
		"five-minute token": {TokenLifetime: 5 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			i, cfg, first := loginOffline(t, c)
			if err := i.SetGroups("alice"); err != nil {
				t.Fatal(err)
			}
			prev := first
			for range 3 {
				next, err := Refresh(t.Context(), cfg, prev)
				if err != nil {
					t.Fatal(err)
				}
				if next.Subject != first.Subject || next.SID != first.SID || !next.AuthTime.Equal(first.AuthTime) || next.Nonce != first.Nonce || len(next.Groups) != 0 {
					t.Errorf("refreshed: %v, first: %v", next.Claims, first.Claims)
				}
				if next.IDToken == prev.IDToken || (next.RefreshToken == prev.RefreshToken) != c.KeepRefreshTokens {
					t.Error("the tokens were not renewed as they should be")
				}
				prev = next
			}
			stored, err := StoredTokens(cfg.Issuer, prev.IDToken, prev.RefreshToken)
			if err != nil {
				t.Fatal(err)
			}
			if stored.Nonce = first.Nonce; stored.Subject != first.Subject {
				t.Errorf("stored: %v", stored.Claims)
			}
			if _, err := Refresh(t.Context(), cfg, stored); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRefreshExpired(t *testing.T) {
	_, cfg, first := loginOffline(t, issuer.Config{})
	expired := func(name string, tokens Tokens) {
		t.Helper()
		_, err := Refresh(t.Context(), cfg, tokens)
		le, ok := errors.AsType[*LoginError](err)
		if !ok || !errors.Is(err, ErrLoginExpired) || le.ExitCode() != 3 || le.Hint() != hintLogin {
			t.Errorf("%s: got %v", name, err)
		}
	}
	without := first
	without.RefreshToken = RefreshToken{}
	expired("no refresh token", without)
	if _, err := Refresh(t.Context(), cfg, first); err != nil {
		t.Fatal(err)
	}
	expired("used twice", first)
	_, cfg, first = loginOffline(t, issuer.Config{RefreshLifetime: time.Nanosecond})
	expired("too old", first)
	i, gone, login := loginOffline(t, issuer.Config{})
	i.RemoveUser("alice")
	cfg = gone
	expired("user gone", login)

	refreshed := false
	_, cfg, first = loginOffline(t, issuer.Config{NoAuthTime: true, EditClaims: func(_ string, c map[string]any) {
		if refreshed {
			c["auth_time"] = time.Now().Add(-DefaultLoginAge - 2*clockSkew).Unix()
		}
	}})
	refreshed = true
	expired("login too old", first)

	other := cfg
	other.Issuer.ClientID = issuer.OverlayClient
	if _, err := Refresh(t.Context(), other, first); err == nil {
		t.Error("tokens of another client were taken")
	}
}

func TestRefreshRefusesAnotherToken(t *testing.T) {
	for name, edit := range map[string]func(map[string]any){
		"sub":       func(c map[string]any) { c["sub"] = "user-bob" },
		"aud":       func(c map[string]any) { c["aud"] = []string{"kubernetes", "more"} },
		"iss":       func(c map[string]any) { c["iss"] = "https://other.example" },
		"auth_time": func(c map[string]any) { c["auth_time"] = time.Now().Add(-time.Hour).Unix() },
		"sid":       func(c map[string]any) { c["sid"] = "other" },
		"nonce":     func(c map[string]any) { c["nonce"] = "other" },
		"exp":       func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() },
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			hostile := false
			_, cfg, first := loginOffline(t, issuer.Config{EditClaims: func(_ string, c map[string]any) {
				if hostile {
					edit(c)
				}
			}})
			cfg.Issuer.Audiences = []string{"more"}
			hostile = true // the issuer's goroutine reads it after the next request only
			next, err := Refresh(t.Context(), cfg, first)
			if _, ok := errors.AsType[*LoginError](err); !ok || !next.IDToken.IsZero() {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRefreshUnreachable(t *testing.T) {
	noLeaks(t)
	i, cfg, first := loginOffline(t, issuer.Config{})
	if err := i.RotateKeys(true); err != nil {
		t.Fatal(err)
	}
	next, err := Refresh(t.Context(), cfg, first)
	if err != nil {
		t.Fatalf("after a key rotation: %v", err)
	}
	if !slices.Equal(next.Groups, first.Groups) {
		t.Errorf("groups %v", next.Groups)
	}
	i2, stop := issuer.Local(t, issuer.Config{})
	cfg.Issuer.URL = i2.URL()
	next.Issuer = i2.URL()
	stop()
	_, err = Refresh(t.Context(), cfg, next)
	if le, ok := errors.AsType[*LoginError](err); !ok || !errors.Is(err, ErrIssuerUnreachable) || le.ExitCode() != 4 {
		t.Errorf("got %v", err)
	}
	entry := hostile(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy", http.StatusTooManyRequests) })
	cfg.Issuer, next.Issuer, next.ClientID = entry, entry.URL, entry.ClientID
	if _, err := Refresh(t.Context(), cfg, next); !errors.Is(err, ErrIssuerUnreachable) {
		t.Errorf("429: got %v", err)
	}
}
