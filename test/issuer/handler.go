package issuer

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

const (
	loginPath     = "/login"
	callbackPath  = "/callback" // of clients, on loopback
	authorizePath = "/authorize"
	tokenPath     = "/oauth/token"
	maxBody       = 64 << 10 // bytes of a request
)

// Handler serves the issuer under its URL's path.
func (i *Issuer) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+i.prefix+oidc.DiscoveryEndpoint, i.serveDiscovery)
	mux.HandleFunc(i.prefix+authorizePath, i.serveAuthorize)
	mux.HandleFunc("GET "+i.prefix+authorizePath+"/callback", i.serveResponse)
	mux.HandleFunc("GET "+i.prefix+loginPath, i.serveLogin)
	mux.HandleFunc("POST "+i.prefix+loginPath, i.serveLoginForm)
	mux.HandleFunc("POST "+i.prefix+tokenPath, i.serveToken)
	library := http.StripPrefix(i.prefix, i.provider)
	for _, path := range []string{"/keys", "/userinfo", "/revoke", "/end_session", "/healthz"} {
		mux.Handle(i.prefix+path, library)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if i.config.ClockOffset != 0 {
			w.Header().Set("Date", time.Now().Add(i.config.ClockOffset).UTC().Format(http.TimeFormat))
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		mux.ServeHTTP(w, r)
	})
}

// serveDiscovery tells the truth about what is served, where the library lists
// all it could do.
func (i *Issuer) serveDiscovery(w http.ResponseWriter, r *http.Request) {
	ctx := op.ContextWithIssuer(r.Context(), i.url)
	b, err := json.Marshal(op.CreateDiscoveryConfig(ctx, i.provider, i.store))
	var doc map[string]any
	if err == nil {
		err = json.Unmarshal(b, &doc)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for _, k := range []string{"introspection_endpoint", "device_authorization_endpoint", "check_session_iframe"} {
		delete(doc, k)
	}
	doc["response_types_supported"] = []string{"code"}
	doc["response_modes_supported"] = []string{"query"}
	doc["grant_types_supported"] = []string{"authorization_code", "refresh_token"}
	doc["token_endpoint_auth_methods_supported"] = []string{"none"}
	if i.config.ClientSecret != "" {
		doc["token_endpoint_auth_methods_supported"] = []string{"client_secret_post"}
	}
	if i.config.PairwiseSubjects {
		doc["subject_types_supported"] = []string{"pairwise"}
	}
	doc["authorization_response_iss_parameter_supported"] = i.config.IssParameter
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(doc)
}

// serveAuthorize refuses, before the library sees it, what must not even be
// answered by a redirect.
func (i *Issuer) serveAuthorize(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, "cannot read the request", http.StatusBadRequest)
		return
	}
	for k, v := range r.Form {
		if len(v) > 1 { // RFC 6749 §3.1
			http.Error(w, "parameter "+strconv.Quote(k)+" is given twice", http.StatusBadRequest)
			return
		}
	}
	if !slices.Contains(i.config.Clients, r.Form.Get("client_id")) {
		http.Error(w, "unknown client_id", http.StatusBadRequest)
		return
	}
	if !i.registered(r.Form.Get("redirect_uri")) {
		http.Error(w, "redirect_uri is not registered for this client", http.StatusBadRequest)
		return
	}
	if c, err := r.Cookie(i.cookie); err == nil {
		r = r.WithContext(context.WithValue(r.Context(), sessionKey{}, c.Value))
	}
	i.serveResponse(w, r)
}

// registered reports whether uri is one of the clients' redirect URIs, by its
// exact text but for the port where any port is allowed.
func (i *Issuer) registered(uri string) bool {
	for _, host := range i.config.RedirectHosts {
		port, ok := strings.CutPrefix(uri, "http://"+host+":")
		if !ok {
			continue
		}
		port, ok = strings.CutSuffix(port, callbackPath)
		n, err := strconv.ParseUint(port, 10, 16)
		if !ok || err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
			continue
		}
		if i.config.ExactRedirectPorts == nil || slices.Contains(i.config.ExactRedirectPorts, uint16(n)) {
			return true
		}
	}
	return false
}

// serveResponse lets the library answer and adds RFC 9207's iss to redirects
// that lead back to a client.
func (i *Issuer) serveResponse(w http.ResponseWriter, r *http.Request) {
	var b buffer
	http.StripPrefix(i.prefix, i.provider).ServeHTTP(&b, r)
	i.addIss(&b)
	b.Header().Set("Cache-Control", "no-store")
	b.writeTo(w)
}

// addIss adds iss to a redirect that leads back to a client (RFC 9207 §2).
func (i *Issuer) addIss(b *buffer) {
	u, err := url.Parse(b.Header().Get("Location"))
	if err != nil || !i.config.IssParameter || u.Scheme != "http" || u.Path != callbackPath || !loopback(u.Hostname()) {
		return
	}
	q := u.Query()
	q.Set("iss", i.url)
	u.RawQuery = q.Encode()
	b.Header().Set("Location", u.String())
	b.body.Reset() // it repeats the location
}

// serveToken lets the library answer and edits the ID token where Config asks
// for what the library would never say.
func (i *Issuer) serveToken(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(r.URL.RawQuery, "=") {
		http.Error(w, `{"error":"invalid_request","error_description":"parameters belong into the body"}`, http.StatusBadRequest)
		return
	}
	var b buffer
	http.StripPrefix(i.prefix, i.provider).ServeHTTP(&b, r)
	if b.code == http.StatusOK && (i.config.EditClaims != nil || i.config.ClockOffset != 0) {
		if err := i.edit(&b.body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		b.Header().Del("Content-Length")
	}
	b.Header().Set("Cache-Control", "no-store") // RFC 6749 §5.1
	b.writeTo(w)
}

func (i *Issuer) edit(body *bytes.Buffer) error {
	var answer map[string]any
	if err := json.Unmarshal(body.Bytes(), &answer); err != nil {
		return err
	}
	token, _ := answer["id_token"].(string)
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	raw, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return err
	}
	claims := map[string]any{}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&claims); err != nil {
		return err
	}
	for _, k := range []string{"iat", "exp", "auth_time", "nbf"} {
		if n, ok := claims[k].(json.Number); ok && i.config.ClockOffset != 0 {
			v, err := n.Int64()
			if err != nil {
				return err
			}
			claims[k] = v + int64(i.config.ClockOffset/time.Second)
		}
	}
	if i.config.EditClaims != nil {
		clientID, _ := claims["client_id"].(string)
		i.config.EditClaims(clientID, claims)
	}
	if raw, err = json.Marshal(claims); err != nil {
		return err
	}
	if answer["id_token"], err = i.Sign(raw); err != nil {
		return err
	}
	body.Reset()
	return json.NewEncoder(body).Encode(answer)
}

// buffer holds an answer until it was looked at.
type buffer struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (b *buffer) Header() http.Header {
	if b.header == nil {
		b.header = http.Header{}
	}
	return b.header
}

func (b *buffer) WriteHeader(code int) {
	if b.code == 0 {
		b.code = code
	}
}

func (b *buffer) Write(p []byte) (int, error) {
	b.WriteHeader(http.StatusOK)
	return b.body.Write(p)
}

func (b *buffer) writeTo(w http.ResponseWriter) {
	for k, v := range b.Header() {
		w.Header()[k] = v
	}
	b.WriteHeader(http.StatusOK)
	w.WriteHeader(b.code)
	w.Write(b.body.Bytes())
}
