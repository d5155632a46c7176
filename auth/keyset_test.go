package auth

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// newKeyServer serves over a real loopback socket.
func newKeyServer(t testing.TB, jwks string) *keyServer {
	s := &keyServer{jwks: jwks}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

// keyLog is a log that may be read while it is written.
type keyLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *keyLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *keyLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// inMemoryKeySet fetches from a keyServer without a socket, by the clock of
// the bubble.
func inMemoryKeySet(t testing.TB, jwks string) (*keyServer, *KeySet, *keyLog) {
	s := &keyServer{url: "https://login.example.com", jwks: jwks}
	log := &keyLog{}
	set, err := NewKeySet(KeySetConfig{
		Issuer: Issuer{URL: s.url, ClientID: "zt", Algorithms: []string{"RS256", "ES256"}},
		HTTP:   &http.Client{Transport: s},
		Log:    slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, set, log
}

func wantReason(t testing.TB, err error, want Reason) {
	t.Helper()
	var refused *RefusedError
	if !errors.As(err, &refused) {
		t.Fatalf("got error %v, want a refusal %s", err, want)
	}
	if refused.Reason != want {
		t.Fatalf("refused for %s (%v), want %s", refused.Reason, err, want)
	}
}

const es256Header = `{"alg":"ES256","kid":"e1"}`

func TestKeySetMatchesKeys(t *testing.T) {
	const rs = `{"alg":"RS256","kid":"%s"}`
	private := jwkOf(testRSA(), "leaked", "", "sig")
	private["d"] = "AQAB"
	badChain := jwkOf(testRSA(), "chain", "", "sig")
	badChain["x5c"] = []string{"not a certificate"}
	signOnly := jwkOf(testRSA(), "signonly", "", "")
	signOnly["key_ops"] = []string{"sign"}
	weak := jwkOf(weakRSA{}, "weak", "", "sig")
	s := newKeyServer(t, jwksOf(
		jwkOf(testRSA(), "r1", "RS256", "sig"),
		jwkOf(testRSA(), "noalg", "", ""),
		jwkOf(testRSA(), "ps", "PS256", "sig"),
		jwkOf(testRSA(), "enc", "", "enc"),
		jwkOf(testEC(), "e1", "ES256", "sig"),
		jwkOf(testEC384(), "e384", "", "sig"),
		jwkOf(testEd(), "ed", "EdDSA", "sig"),
		private, badChain, signOnly, weak,
		map[string]any{"kty": "oct", "kid": "oct", "k": "AAAA"},
		map[string]any{"kty": "AKP", "kid": "future", "alg": "ML-DSA-44"},
		map[string]any{"kid": "nokty"},
	))
	now := time.Now()
	set, err := NewKeySet(KeySetConfig{
		Issuer: Issuer{URL: s.url, ClientID: "zt", Algorithms: []string{"RS256", "PS256", "ES256", "EdDSA"}},
		Now:    func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, header string
		key          any
		want         Reason // "" = accepted
	}{
		{"RS256", fmt.Sprintf(rs, "r1"), testRSA(), ""},
		{"a key without alg", fmt.Sprintf(rs, "noalg"), testRSA(), ""},
		{"ES256", es256Header, testEC(), ""},
		{"EdDSA", `{"alg":"EdDSA","kid":"ed"}`, testEd(), ""},
		{"PS256", `{"alg":"PS256","kid":"ps"}`, testRSA(), ""},
		{"certificates that do not parse", fmt.Sprintf(rs, "chain"), testRSA(), ""},
		{"no kid", `{"alg":"ES256"}`, testEC(), ""},
		{"no kid, foreign key", `{"alg":"RS256"}`, testRSA2(), ReasonSignature},
		{"key of another alg", fmt.Sprintf(rs, "ps"), testRSA(), ReasonAlgorithm},
		{"key of another kind", fmt.Sprintf(rs, "e1"), testRSA(), ReasonAlgorithm},
		{"key of another curve", `{"alg":"ES256","kid":"e384"}`, testEC(), ReasonAlgorithm},
		{"encryption key", fmt.Sprintf(rs, "enc"), testRSA(), ReasonUnknownKey},
		{"published private key", fmt.Sprintf(rs, "leaked"), testRSA(), ReasonUnknownKey},
		{"key_ops without verify", fmt.Sprintf(rs, "signonly"), testRSA(), ReasonUnknownKey},
		{"1024-bit RSA", fmt.Sprintf(rs, "weak"), testRSA(), ReasonUnknownKey},
		{"symmetric key", fmt.Sprintf(rs, "oct"), testRSA(), ReasonUnknownKey},
		{"unknown kid", fmt.Sprintf(rs, "nobody"), testRSA(), ReasonUnknownKey},
		{"wrong key under a known kid", fmt.Sprintf(rs, "r1"), testRSA2(), ReasonSignature},
	} {
		t.Run(c.name, func(t *testing.T) {
			payload, err := set.Verify(t.Context(), signJWS(c.header, `{"a":1}`, c.key))
			if c.want != "" {
				wantReason(t, err, c.want)
				if payload != nil {
					t.Error("a refused token gave its payload")
				}
				return
			}
			if err != nil || string(payload) != `{"a":1}` {
				t.Errorf("got %s, %v", payload, err)
			}
		})
	}
	if n := s.fetches.Load(); n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
	if n := set.State().Keys; n != 7 {
		t.Errorf("%d usable keys, want 7", n)
	}
}

// weakRSA is a public key of 1,024 bits, which crypto/rsa no longer makes.
type weakRSA struct{}

func (weakRSA) Public() crypto.PublicKey {
	return &rsa.PublicKey{N: new(big.Int).Rsh(testRSA().N, 1024), E: testRSA().E}
}

func (weakRSA) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

func TestKeySetTooManyUnnamedKeys(t *testing.T) {
	var keys []map[string]any
	for range maxTriedKeys + 1 {
		keys = append(keys, jwkOf(mustKey(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), "", "", ""))
	}
	set, err := NewKeySet(KeySetConfig{Issuer: Issuer{URL: "https://login.example.com", ClientID: "zt"}, JWKS: []byte(jwksOf(keys...))})
	if err != nil {
		t.Fatal(err)
	}
	_, err = set.Verify(t.Context(), signJWS(`{"alg":"ES256"}`, "{}", testEC()))
	wantReason(t, err, ReasonUnknownKey)
}

func TestKeySetFetchFaults(t *testing.T) {
	good := jwksOf(jwkOf(testEC(), "e1", "", ""))
	for _, c := range []struct {
		name string
		set  func(*keyServer)
		want string // in the message
	}{
		{"status 500", func(s *keyServer) {
			s.handler = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }
		}, "500"},
		{"another issuer's document", func(s *keyServer) {
			s.discovery = fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, s.url+"/", s.url+"/keys")
		}, "want"},
		{"no jwks_uri", func(s *keyServer) { s.discovery = fmt.Sprintf(`{"issuer":%q}`, s.url) }, "jwks_uri"},
		{"http jwks_uri off loopback", func(s *keyServer) {
			s.discovery = fmt.Sprintf(`{"issuer":%q,"jwks_uri":"http://keys.example.com/"}`, s.url)
		}, "want https"},
		{"file jwks_uri", func(s *keyServer) {
			s.discovery = fmt.Sprintf(`{"issuer":%q,"jwks_uri":"file:///etc/passwd"}`, s.url)
		}, "jwks_uri"},
		{"credentials in jwks_uri", func(s *keyServer) {
			s.discovery = fmt.Sprintf(`{"issuer":%q,"jwks_uri":"https://u:p@keys.example.com/"}`, s.url)
		}, "jwks_uri"},
		{"discovery is not JSON", func(s *keyServer) { s.discovery = "<html>" }, "discovery"},
		{"keys are not JSON", func(s *keyServer) { s.jwks = "<html>" }, "key set"},
		{"no keys", func(s *keyServer) { s.jwks = `{"keys":[]}` }, "no usable key"},
		{"too many keys", func(s *keyServer) {
			s.jwks = `{"keys":[` + strings.Repeat(`{},`, maxIssuerKeys) + good[len(`{"keys":[`):]
		}, "keys"},
		{"more than 1 MiB", func(s *keyServer) {
			s.jwks = good + strings.Repeat(" ", keyFetchMaxBytes)
		}, "more than"},
		{"more than 1 MiB once decompressed", func(s *keyServer) {
			s.handler = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Encoding", "gzip")
				z := gzip.NewWriter(w)
				z.Write(bytes.Repeat([]byte(" "), 64<<20))
				z.Close()
			}
		}, "more than"},
		{"redirect to another host", func(s *keyServer) {
			s.handler = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://localhost:1/", http.StatusFound)
			}
		}, "another host"},
		{"redirect to another scheme", func(s *keyServer) {
			s.handler = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "https://"+r.Host+"/", http.StatusFound)
			}
		}, "another host or scheme"},
		{"redirect in a circle", func(s *keyServer) {
			s.handler = func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }
		}, "redirects"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newKeyServer(t, good)
			s.set(c.set)
			set, err := NewKeySet(KeySetConfig{Issuer: Issuer{URL: s.url, ClientID: "zt"}})
			if err != nil {
				t.Fatal(err)
			}
			_, err = set.Verify(t.Context(), signJWS(es256Header, "{}", testEC()))
			wantReason(t, err, ReasonIssuerUnreachable)
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q, want %q in it", err, c.want)
			}
			if ReasonIssuerUnreachable.Class() != ClassUnavailable {
				t.Error("an unreachable issuer is not told as something to try again")
			}
		})
	}
}

func TestKeySetCA(t *testing.T) {
	s := &keyServer{jwks: jwksOf(jwkOf(testEC(), "e1", "", ""))}
	srv := httptest.NewUnstartedServer(s)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	srv.StartTLS()
	defer srv.Close()
	s.url = srv.URL
	token := signJWS(es256Header, "{}", testEC())

	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	set := mustKey(NewKeySet(KeySetConfig{Issuer: Issuer{URL: s.url, ClientID: "zt", CA: ca}}))
	if _, err := set.Verify(t.Context(), token); err != nil {
		t.Errorf("with the issuer's CA: %v", err)
	}
	set = mustKey(NewKeySet(KeySetConfig{Issuer: Issuer{URL: s.url, ClientID: "zt"}}))
	_, err := set.Verify(t.Context(), token)
	wantReason(t, err, ReasonIssuerUnreachable)

	if _, err := NewKeySet(KeySetConfig{Issuer: Issuer{URL: s.url, ClientID: "zt", CA: "x"}}); err == nil {
		t.Error("a CA that is not PEM was accepted")
	}
	if _, err := NewKeySet(KeySetConfig{Issuer: Issuer{URL: s.url, CA: ca}, HTTP: &http.Client{Transport: s}}); err == nil {
		t.Error("a CA was dropped in silence")
	}
	if _, err := NewKeySet(KeySetConfig{Issuer: Issuer{URL: "http://login.example.com"}}); err == nil {
		t.Error("an http issuer off loopback was accepted")
	}
}

func TestKeySetFromFile(t *testing.T) {
	set, err := NewKeySet(KeySetConfig{
		Issuer: Issuer{URL: "https://login.example.com", ClientID: "zt"},
		JWKS:   []byte(jwksOf(jwkOf(testEC(), "e1", "", ""))),
		HTTP:   &http.Client{Transport: &keyServer{fail: errors.New("a fetch")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := set.Verify(t.Context(), signJWS(es256Header, "{}", testEC())); err != nil {
		t.Error(err)
	}
	_, err = set.Verify(t.Context(), signJWS(`{"alg":"ES256","kid":"e2"}`, "{}", testEC()))
	wantReason(t, err, ReasonUnknownKey)
	if st := set.State(); st.Fetches != 0 || st.Keys != 1 || st.Stale {
		t.Errorf("got state %+v", st)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := set.Run(ctx); err != nil {
		t.Error(err)
	}
	if _, err := NewKeySet(KeySetConfig{Issuer: Issuer{URL: "https://login.example.com"}, JWKS: []byte("{}")}); err == nil {
		t.Error("an empty key set was accepted from a file")
	}
}

func TestKeySetFetchesOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, set, _ := inMemoryKeySet(t, jwksOf(jwkOf(testEC(), "e1", "", "")))
		s.set(func(s *keyServer) { s.delay = time.Second })
		unknown := signJWS(`{"alg":"ES256","kid":"nobody"}`, "{}", testEC())

		var wg sync.WaitGroup
		for range 50 { // they share one fetch
			wg.Go(func() {
				_, err := set.Verify(t.Context(), unknown)
				wantReason(t, err, ReasonUnknownKey)
			})
		}
		wg.Wait()
		if n := s.fetches.Load(); n != 1 {
			t.Fatalf("%d fetches for 50 tokens at once, want 1", n)
		}
		for range 600 { // ten minutes, a token each second
			time.Sleep(time.Second)
			if _, err := set.Verify(t.Context(), unknown); err == nil {
				t.Fatal("an unknown key was accepted")
			}
		}
		if n := s.fetches.Load(); n < 9 || n > 11 {
			t.Errorf("%d fetches in ten minutes, want about 10", n)
		}
		before := s.fetches.Load()
		for range 100 { // a wrong signature is no cause to fetch
			time.Sleep(2 * time.Minute)
			_, err := set.Verify(t.Context(), signJWS(es256Header, "{}", mustKey(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))))
			wantReason(t, err, ReasonSignature)
		}
		if n := s.fetches.Load(); n != before {
			t.Errorf("%d fetches for wrong signatures, want none", n-before)
		}
	})
}

func TestKeySetSurvivesHangingIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, set, _ := inMemoryKeySet(t, jwksOf(jwkOf(testEC(), "e1", "", "")))
		s.set(func(s *keyServer) { s.hang = true })
		token := signJWS(es256Header, "{}", testEC())

		start := time.Now()
		_, err := set.Verify(t.Context(), token)
		wantReason(t, err, ReasonIssuerUnreachable)
		if d := time.Since(start); d != keyFetchTimeout {
			t.Errorf("gave up after %s, want %s", d, keyFetchTimeout)
		}
		start = time.Now()
		_, err = set.Verify(t.Context(), token) // within the minute: at once
		wantReason(t, err, ReasonIssuerUnreachable)
		if d := time.Since(start); d != 0 {
			t.Errorf("the second refusal took %s, want none", d)
		}
		s.set(func(s *keyServer) { s.hang = false })
		time.Sleep(time.Minute)
		if _, err := set.Verify(t.Context(), token); err != nil {
			t.Errorf("after the issuer came back: %v", err)
		}
	})
}

func TestKeySetIsNotSpoiledByWhoHangsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, set, _ := inMemoryKeySet(t, jwksOf(jwkOf(testEC(), "e1", "", "")))
		s.set(func(s *keyServer) { s.delay = time.Second })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := set.Verify(ctx, signJWS(es256Header, "{}", testEC())); err != nil {
			t.Errorf("the minute's only fetch was given up: %v", err)
		}
	})
}

func TestKeySetRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, set, log := inMemoryKeySet(t, jwksOf(jwkOf(testEC(), "e1", "", ""), jwkOf(testRSA(), "r1", "", "")))
		old, kept := signJWS(es256Header, "{}", testEC()), signJWS(`{"alg":"RS256","kid":"r1"}`, "{}", testRSA())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- set.Run(ctx) }()
		synctest.Wait()
		if st := set.State(); st.Keys != 2 || st.Err != nil {
			t.Fatalf("after the start: %+v", st)
		}

		// Rotation: the key goes, and what it signed with it, unasked.
		s.set(func(s *keyServer) { s.jwks = jwksOf(jwkOf(testRSA(), "r1", "", "")) })
		if _, err := set.Verify(ctx, old); err != nil {
			t.Errorf("before the next fetch: %v", err)
		}
		time.Sleep(15*time.Minute + time.Second)
		if n := s.fetches.Load(); n != 2 {
			t.Errorf("%d fetches in 15 minutes, want 2", n)
		}
		_, err := set.Verify(ctx, old)
		wantReason(t, err, ReasonWithdrawnKey)
		if _, err := set.Verify(ctx, kept); err != nil {
			t.Errorf("the key that stayed: %v", err)
		}

		// The issuer is away: the last good keys stay; a day later it is told.
		s.set(func(s *keyServer) { s.fail = errors.New("no route to host") })
		time.Sleep(23 * time.Hour)
		if _, err := set.Verify(ctx, kept); err != nil {
			t.Errorf("with the issuer away: %v", err)
		}
		if st := set.State(); st.Stale || st.Err == nil {
			t.Errorf("after 23 hours: %+v", st)
		}
		if strings.Contains(log.String(), "level=ERROR") {
			t.Error("an alarm before a day has passed")
		}
		time.Sleep(2 * time.Hour)
		if st := set.State(); !st.Stale {
			t.Errorf("after 25 hours: %+v", st)
		}
		if !strings.Contains(log.String(), "level=ERROR") {
			t.Error("no alarm after a day")
		}
		if _, err := set.Verify(ctx, kept); err != nil {
			t.Errorf("with stale keys: %v", err)
		}
		for range 2 { // the second within the same minute
			_, err = set.Verify(ctx, signJWS(`{"alg":"RS256","kid":"new"}`, "{}", testRSA()))
			wantReason(t, err, ReasonIssuerUnreachable)
		}

		// Back again, and the withdrawn key with it.
		s.set(func(s *keyServer) { s.fail = nil; s.jwks = jwksOf(jwkOf(testEC(), "e1", "", "")) })
		time.Sleep(17 * time.Minute)
		if _, err := set.Verify(ctx, old); err != nil {
			t.Errorf("the key that came back: %v", err)
		}
		if st := set.State(); st.Stale || st.Err != nil {
			t.Errorf("after the issuer came back: %+v", st)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestKeySetRunRetriesSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, set, _ := inMemoryKeySet(t, jwksOf(jwkOf(testEC(), "e1", "", "")))
		s.set(func(s *keyServer) { s.fail = errors.New("connection refused") })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- set.Run(ctx) }()
		synctest.Wait()
		s.set(func(s *keyServer) { s.fail = nil })
		time.Sleep(67 * time.Second)
		synctest.Wait()
		if st := set.State(); st.Keys != 1 {
			t.Errorf("a minute after a fault: %+v", st)
		}
		cancel()
		<-done
	})
}

func TestKeySetRunEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, set, _ := inMemoryKeySet(t, "")
		s.set(func(s *keyServer) { s.hang = true })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- set.Run(ctx) }()
		synctest.Wait()
		start := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("Run ended after %s, want at once", d)
		}
	})
}

func FuzzParseJWKS(f *testing.F) { // attacker: whoever stands in for an issuer's key set
	f.Add([]byte(jwksOf(jwkOf(testEC(), "e1", "", ""), jwkOf(testEd(), "ed", "EdDSA", "sig"))))
	f.Add([]byte(jwksOf(jwkOf(testRSA(), "r1", "RS256", "sig"))))
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := parseJWKS(b)
		if err == nil && (len(keys) == 0 || len(keys) > maxIssuerKeys) {
			t.Errorf("%d keys", len(keys))
		}
		for _, k := range keys {
			fits := false
			for _, kind := range signatureKinds {
				fits = fits || kind(k.public)
			}
			if !fits {
				continue // P-224 and the like never match an algorithm
			}
			if k.thumb == (keyThumbprint{}) {
				t.Error("a key without a thumbprint")
			}
		}
	})
}
