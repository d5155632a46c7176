package auth

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

const (
	keyFetchTimeout   = 10 * time.Second
	keyFetchMaxBytes  = 1 << 20 // of the discovery document, and of the key set
	keyFetchGap       = time.Minute
	keyFetchEvery     = 15 * time.Minute
	keyStaleAfter     = 24 * time.Hour
	keyFetchRedirects = 3

	wellKnownPath = "/.well-known/openid-configuration" // OIDC Discovery §4
)

// KeySetConfig configures a KeySet.
type KeySetConfig struct {
	Issuer Issuer
	// JWKS, when not empty, is the issuer's key set (RFC 7517 §5) from a file
	// that an administrator keeps; nothing is fetched then.
	JWKS []byte
	HTTP *http.Client // nil = the default transport's settings; the issuer's CA is put into a copy
	Log  *slog.Logger // nil = none
	Now  func() time.Time
}

// KeySet holds the keys of one issuer: it finds them through discovery, over
// HTTPS, and keeps the last good ones while the issuer is away. Unlike go-oidc's
// RemoteKeySet it reads no more than 1 MiB, fetches at most once a minute
// whatever it is asked to verify, and notices that a key was withdrawn.
type KeySet struct {
	issuer Issuer
	client *http.Client
	log    *slog.Logger
	now    func() time.Time
	static bool

	mu        sync.Mutex // guards what follows
	keys      issuerKeys
	withdrawn map[string]bool // ids of keys that this process saw go
	loaded    time.Time       // of the last good fetch; zero = never
	attempted time.Time
	inflight  chan struct{} // closed when the running fetch ends; nil = none runs
	err       error         // of the last fetch
	fetches   uint64
	since     time.Time // of the first try, until something was loaded
}

// KeySetState is a KeySet's condition, for health and metrics.
type KeySetState struct {
	Issuer  string
	Keys    int
	Loaded  time.Time // last good fetch; zero = never
	Fetches uint64    // tried, good or not
	Err     error     // of the last fetch; nil = good
	Stale   bool      // no good fetch for 24 hours: a person must act
}

// NewKeySet checks cfg and fetches nothing. Keys are fetched by Run, or when
// Verify first needs them.
func NewKeySet(cfg KeySetConfig) (*KeySet, error) {
	s := &KeySet{
		issuer:    cfg.Issuer.WithDefaults(),
		log:       cfg.Log,
		now:       cfg.Now,
		withdrawn: map[string]bool{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.log = s.log.With("issuer", s.issuer.URL)
	if err := issuerCheckURL(s.issuer.URL); err != nil {
		return nil, fmt.Errorf("issuer %q: %v", s.issuer.URL, err)
	}
	if len(cfg.JWKS) > 0 {
		keys, err := parseJWKS(cfg.JWKS)
		if err != nil {
			return nil, fmt.Errorf("keys of issuer %q: %w", s.issuer.URL, err)
		}
		s.keys, s.loaded, s.static = keys, s.now(), true
		return s, nil
	}
	var err error
	if s.client, err = issuerClient(cfg.HTTP, s.issuer.CA); err != nil {
		return nil, fmt.Errorf("issuer %q: %w", s.issuer.URL, err)
	}
	return s, nil
}

// issuerClient copies base, with the issuer's CA as its only roots, a bound on
// everything, and no redirect that leaves the host or the scheme.
func issuerClient(base *http.Client, ca string) (*http.Client, error) {
	c := &http.Client{}
	if base != nil {
		*c = *base
	}
	c.Jar = nil
	c.Timeout = keyFetchTimeout
	c.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		first := via[0].URL
		if req.URL.Scheme != first.Scheme || req.URL.Host != first.Host {
			return fmt.Errorf("redirected from %s://%s to another host or scheme", first.Scheme, first.Host)
		}
		if len(via) > keyFetchRedirects {
			return errors.New("too many redirects")
		}
		return nil
	}
	if c.Transport == nil {
		c.Transport = http.DefaultTransport
	}
	t, ok := c.Transport.(*http.Transport)
	if !ok {
		if ca != "" {
			return nil, fmt.Errorf("has a CA, which a transport of type %T cannot take", c.Transport)
		}
		return c, nil
	}
	t = t.Clone()
	t.MaxResponseHeaderBytes = 64 << 10
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{}
	}
	t.TLSClientConfig.MinVersion = max(t.TLSClientConfig.MinVersion, tls.VersionTLS12)
	if ca != "" {
		certs, err := parseCertificates(ca)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		for _, cert := range certs {
			t.TLSClientConfig.RootCAs.AddCert(cert)
		}
	}
	c.Transport = t
	return c, nil
}

// Run keeps the keys fresh, every 15 minutes and sooner after a fault, until
// ctx is done.
func (s *KeySet) Run(ctx context.Context) error {
	if s.static {
		<-ctx.Done()
		return nil
	}
	defer s.client.CloseIdleConnections()
	wait := keyFetchGap // after a fault; doubles
	for {
		pause := keyFetchEvery - rand.N(keyFetchEvery/10) // so that many nodes do not come at once
		err := s.refresh(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil || errors.Is(err, errFetchedLately):
			wait = keyFetchGap
		default:
			if s.State().Stale {
				s.log.Error("issuer's keys have not been refreshed for a day; the last good ones are in use", "err", err)
			} else {
				s.log.Warn("issuer's keys could not be fetched", "err", err)
			}
			pause = wait + rand.N(wait/10)
			wait = min(2*wait, keyFetchEvery)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// State returns s's condition.
func (s *KeySet) State() KeySetState {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := KeySetState{Issuer: s.issuer.URL, Keys: len(s.keys), Loaded: s.loaded, Fetches: s.fetches, Err: s.err}
	if !s.static {
		from := s.loaded
		if from.IsZero() {
			from = s.since
		}
		st.Stale = !from.IsZero() && s.now().Sub(from) > keyStaleAfter
	}
	return st
}

// Verify checks rawJWS, a compact JWS, strictly: its form, its header, that the
// entry lists its algorithm, and that a key which the issuer publishes today
// signed it. It returns the payload, whose claims say nothing yet. Every error
// is a *RefusedError.
func (s *KeySet) Verify(ctx context.Context, rawJWS string) (payload []byte, err error) {
	token, _, refused := s.verify(ctx, rawJWS, s.issuer.Algorithms)
	if refused != nil {
		return nil, refused
	}
	return token.payload, nil
}

// verify takes the entry's algorithms, for one set may serve two entries of an
// issuer, and also tells which key signed.
func (s *KeySet) verify(ctx context.Context, raw string, algorithms []string) (compactToken, keyThumbprint, *RefusedError) {
	token, refused := parseCompact(raw, algorithms)
	if refused != nil {
		return token, keyThumbprint{}, refused
	}
	keys, refused := s.candidates(ctx, token)
	if refused != nil {
		return token, keyThumbprint{}, refused
	}
	thumb, ok := verifySignature(token, keys)
	if !ok && token.kid == "" {
		// Without a key id only trying tells that the keys have changed.
		s.refresh(context.WithoutCancel(ctx))
		if keys, refused = s.candidates(ctx, token); refused != nil {
			return token, keyThumbprint{}, refused
		}
		thumb, ok = verifySignature(token, keys)
	}
	if !ok {
		return token, keyThumbprint{}, refuse(ReasonSignature, "no key of %s made it", s.issuer.URL)
	}
	return token, thumb, nil
}

// verifySignature tries each candidate by itself, to learn which one signed.
func verifySignature(token compactToken, keys issuerKeys) (keyThumbprint, bool) {
	for _, k := range keys {
		one := oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{k.public}}
		payload, err := one.VerifySignature(context.Background(), token.raw)
		if err == nil && bytes.Equal(payload, token.payload) {
			return k.thumb, true
		}
	}
	return keyThumbprint{}, false
}

// candidates returns the keys which may have signed token, fetching at most
// once when none has its id.
func (s *KeySet) candidates(ctx context.Context, token compactToken) (issuerKeys, *RefusedError) {
	keys, _ := s.current()
	fitting, refused := keys.fit(token)
	if len(fitting) > 0 || refused != nil {
		return fitting, refused
	}
	// Detached: a stranger who hangs up must not spoil the minute's only fetch
	// for everybody. It ends after keyFetchTimeout all the same.
	err := s.refresh(context.WithoutCancel(ctx))
	keys, loaded := s.current()
	if !loaded {
		return nil, refuse(ReasonIssuerUnreachable, "%s: %v", s.issuer.URL, err)
	}
	fitting, refused = keys.fit(token)
	switch {
	case len(fitting) > 0 || refused != nil:
		return fitting, refused
	case s.wasWithdrawn(token.kid):
		return nil, refuse(ReasonWithdrawnKey, "key %q of %s", token.kid, s.issuer.URL)
	case err != nil && !errors.Is(err, errFetchedLately):
		return nil, refuse(ReasonIssuerUnreachable, "key %q is not known and %s: %v", token.kid, s.issuer.URL, err)
	}
	return nil, refuse(ReasonUnknownKey, "key %q for %s of %s", token.kid, token.alg, s.issuer.URL)
}

// current returns the keys; they are replaced, never changed.
func (s *KeySet) current() (keys issuerKeys, loaded bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys, !s.loaded.IsZero()
}

func (s *KeySet) wasWithdrawn(kid string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return kid != "" && s.withdrawn[kid]
}

// publishes reports whether the issuer still publishes the key. Before the
// first good fetch it is taken to.
func (s *KeySet) publishes(thumb keyThumbprint) bool {
	keys, loaded := s.current()
	if !loaded {
		return true
	}
	for _, k := range keys {
		if k.thumb == thumb {
			return true
		}
	}
	return false
}

// errFetchedLately: the minute's fetch was good, so another would tell nothing.
var errFetchedLately = errors.New("keys were fetched less than a minute ago")

// refresh fetches the keys, unless that was tried less than a minute ago. All
// who ask while a fetch runs wait for it. It returns how the last fetch ended.
func (s *KeySet) refresh(ctx context.Context) error {
	if s.static {
		return errFetchedLately
	}
	s.mu.Lock()
	if running := s.inflight; running != nil {
		s.mu.Unlock()
		select {
		case <-running:
		case <-ctx.Done():
			return ctx.Err()
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.err
	}
	now := s.now()
	// A clock that was set back must not stop fetching: hence the lower bound.
	if since := now.Sub(s.attempted); !s.attempted.IsZero() && since >= 0 && since < keyFetchGap {
		defer s.mu.Unlock()
		if s.err != nil {
			return s.err
		}
		return errFetchedLately
	}
	s.attempted = now
	s.fetches++
	if s.since.IsZero() {
		s.since = now
	}
	done := make(chan struct{})
	s.inflight = done
	s.mu.Unlock()

	fetchCtx, cancel := context.WithTimeout(ctx, keyFetchTimeout)
	keys, err := s.fetch(fetchCtx)
	cancel()

	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	if err == nil {
		s.replaceLocked(keys)
	}
	s.inflight = nil
	close(done)
	return err
}

// maxWithdrawn bounds the memory of key ids; issuers rotate a few times a year.
const maxWithdrawn = 1024

func (s *KeySet) replaceLocked(keys issuerKeys) {
	now := map[string]bool{}
	for _, k := range keys {
		now[k.kid] = true
		delete(s.withdrawn, k.kid)
	}
	for _, k := range s.keys {
		if !now[k.kid] {
			if len(s.withdrawn) >= maxWithdrawn {
				clear(s.withdrawn)
			}
			s.withdrawn[k.kid] = true
			s.log.Info("issuer withdrew a key", "kid", k.kid)
		}
	}
	s.keys, s.loaded = keys, s.now()
}

// fetch reads the discovery document, then the key set that it names.
func (s *KeySet) fetch(ctx context.Context) (issuerKeys, error) {
	doc, err := s.get(ctx, strings.TrimSuffix(s.issuer.URL, "/")+wellKnownPath)
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	var found struct {
		Issuer string `json:"issuer"`
		JWKS   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(doc, &found); err != nil {
		return nil, fmt.Errorf("discovery: %v", err)
	}
	if found.Issuer != s.issuer.URL { // OIDC Discovery §4.3
		return nil, fmt.Errorf("discovery: document is of issuer %q, want %q", found.Issuer, s.issuer.URL)
	}
	if err := s.checkJWKSURL(found.JWKS); err != nil {
		return nil, fmt.Errorf("discovery: jwks_uri: %w", err)
	}
	raw, err := s.get(ctx, found.JWKS)
	if err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	keys, err := parseJWKS(raw)
	if err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	return keys, nil
}

// checkJWKSURL wants HTTPS; http only where issuer and key set are on loopback.
func (s *KeySet) checkJWKSURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return errors.New("not a URL that can be fetched")
	}
	own, err := url.Parse(s.issuer.URL)
	if err != nil {
		return err
	}
	if u.Scheme == "https" || u.Scheme == "http" && own.Scheme == "http" && issuerLoopback(u.Hostname()) {
		return nil
	}
	return fmt.Errorf("scheme %q of host %q, want https", u.Scheme, u.Host)
}

// get reads at most keyFetchMaxBytes, after decompression.
func (s *KeySet) get(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	res, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", req.URL.Redacted(), res.Status)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, keyFetchMaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", req.URL.Redacted(), err)
	}
	if len(body) > keyFetchMaxBytes {
		return nil, fmt.Errorf("%s answered more than %d bytes", req.URL.Redacted(), keyFetchMaxBytes)
	}
	return body, nil
}
