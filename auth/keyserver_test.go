package auth

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Keys are made once: RSA takes a while.
var (
	testRSA   = sync.OnceValue(func() *rsa.PrivateKey { return mustKey(rsa.GenerateKey(rand.Reader, 2048)) })
	testRSA2  = sync.OnceValue(func() *rsa.PrivateKey { return mustKey(rsa.GenerateKey(rand.Reader, 2048)) })
	testEC    = sync.OnceValue(func() *ecdsa.PrivateKey { return mustKey(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	testEC384 = sync.OnceValue(func() *ecdsa.PrivateKey { return mustKey(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	testEd    = sync.OnceValue(func() ed25519.PrivateKey { _, k, err := ed25519.GenerateKey(rand.Reader); return mustKey(k, err) })
)

func mustKey[K any](k K, err error) K {
	if err != nil {
		panic(err)
	}
	return k
}

// jwkOf is the JWK of k's public half.
func jwkOf(k crypto.Signer, kid, alg, use string) map[string]any {
	b := mustKey((jose.JSONWebKey{Key: k.Public(), KeyID: kid, Algorithm: alg, Use: use}).MarshalJSON())
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		panic(err)
	}
	return m
}

func jwksOf(keys ...map[string]any) string {
	return string(mustKey(json.Marshal(map[string]any{"keys": keys})))
}

// signJWS signs header.payload as they stand, whatever they say. k is a
// crypto.Signer, or []byte for HMAC-SHA256.
func signJWS(header, payload string, k any) string {
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	digest := sha256.Sum256([]byte(input))
	var sig []byte
	switch k := k.(type) {
	case *rsa.PrivateKey:
		if strings.Contains(header, "PS256") {
			sig = mustKey(rsa.SignPSS(rand.Reader, k, crypto.SHA256, digest[:], nil))
		} else {
			sig = mustKey(rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, digest[:]))
		}
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, k, digest[:])
		if err != nil {
			panic(err)
		}
		n := (k.Curve.Params().BitSize + 7) / 8
		sig = make([]byte, 2*n)
		r.FillBytes(sig[:n])
		s.FillBytes(sig[n:])
	case ed25519.PrivateKey:
		sig = ed25519.Sign(k, []byte(input))
	case []byte:
		mac := hmac.New(sha256.New, k)
		mac.Write([]byte(input))
		sig = mac.Sum(nil)
	}
	return input + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// keyServer answers discovery and key set requests of the issuer at url. It is
// an http.RoundTripper too, so that tests with a fake clock need no socket.
type keyServer struct {
	url     string
	fetches atomic.Int64 // of discovery documents

	mu        sync.Mutex
	jwks      string
	discovery string        // replaces the honest document
	fail      error         // instead of an answer
	hang      bool          // no answer until the request's end
	delay     time.Duration // before an answer
	handler   http.HandlerFunc
}

func (s *keyServer) set(change func(*keyServer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *keyServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	jwks, discovery, handler := s.jwks, s.discovery, s.handler
	s.mu.Unlock()
	if strings.HasSuffix(r.URL.Path, wellKnownPath) {
		s.fetches.Add(1)
	}
	switch {
	case handler != nil:
		handler(w, r)
	case strings.HasSuffix(r.URL.Path, wellKnownPath):
		if discovery == "" {
			discovery = fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, s.url, s.url+"/keys")
		}
		io.WriteString(w, discovery)
	default:
		io.WriteString(w, jwks)
	}
}

func (s *keyServer) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	fail, hang, delay := s.fail, s.hang, s.delay
	s.mu.Unlock()
	if fail != nil || hang {
		s.fetches.Add(1)
	}
	if hang {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	time.Sleep(delay)
	if fail != nil {
		return nil, fail
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	res := w.Result()
	res.Request = r
	return res, nil
}
