package auth

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	// DefaultGrantAge is how long after an ID token was issued a grant may live.
	DefaultGrantAge = 12 * time.Hour
	// MaxGrantAge caps what an issuer entry may say.
	MaxGrantAge = 24 * time.Hour
	// DefaultLoginAge is how old the login behind a new ID token may be (max_age
	// of OIDC Core §3.1.2.1).
	DefaultLoginAge = 12 * time.Hour
)

// Issuer says how ID tokens of one OIDC issuer are got and which are accepted.
// The head holds it for laptops and relays, a cluster's policy for its nodes, a
// record for the API server.
type Issuer struct {
	// URL is the issuer identifier, compared byte for byte with `iss`.
	URL string `json:"url"`
	// ClientID is the client that logs people in. In a head and a policy the
	// API server must not accept it.
	ClientID string `json:"clientID"`
	// ClientSecret is only for providers that hand one to native applications
	// and call it public (Google): everybody can read a head.
	ClientSecret string `json:"clientSecret,omitempty"`
	// Audiences are accepted beside ClientID.
	Audiences []string `json:"audiences,omitempty"`
	// Algorithms are the JWS algorithms accepted; default RS256 and ES256.
	Algorithms []string `json:"algorithms,omitempty"`
	// Require names claims which must equal the given text.
	Require map[string]string `json:"require,omitempty"`
	// RedirectHost is 127.0.0.1 (default) or localhost, whichever the provider
	// has registered.
	RedirectHost string `json:"redirectHost,omitempty"`
	// RedirectPorts are the ports registered with the provider; empty = any
	// (RFC 8252 §7.3).
	RedirectPorts []uint16 `json:"redirectPorts,omitempty"`
	// Scopes default to openid, profile, email.
	Scopes []string `json:"scopes,omitempty"`
	// SubjectClaim is what policy calls uid; default sub (Entra: oid).
	SubjectClaim string `json:"subjectClaim,omitempty"`
	// GroupsClaim defaults to groups.
	GroupsClaim string `json:"groupsClaim,omitempty"`
	// CA is PEM: the only roots for this issuer's HTTPS; empty = the system's.
	CA string `json:"ca,omitempty"`
	// AuthTimeRequired refuses ID tokens without auth_time.
	AuthTimeRequired bool `json:"authTimeRequired,omitempty"`
	// LoginAge is max_age of the login, and the bound on auth_time where that is
	// required or present.
	LoginAge Duration `json:"loginAge,omitzero"`
	// GrantAge bounds a grant's life from `iat`; default 12 h, at most 24 h.
	GrantAge Duration `json:"grantAge,omitzero"`
	// Refresh lets refreshed ID tokens keep a relay's lease for this long after
	// the login; zero = a lease ends with its grant.
	Refresh Duration `json:"refresh,omitzero"`
}

// issuerAlgorithms are all asymmetric: a key that verifies must not sign.
var issuerAlgorithms = []string{
	"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
}

// WithDefaults returns i with every optional field filled: Audiences then holds
// ClientID too. It shares no memory with i.
func (i Issuer) WithDefaults() Issuer {
	i = i.clone()
	if !slices.Contains(i.Audiences, i.ClientID) {
		i.Audiences = append([]string{i.ClientID}, i.Audiences...)
	}
	if len(i.Algorithms) == 0 {
		i.Algorithms = []string{"RS256", "ES256"}
	}
	if i.RedirectHost == "" {
		i.RedirectHost = "127.0.0.1"
	}
	if len(i.Scopes) == 0 {
		i.Scopes = []string{"openid", "profile", "email"}
	}
	if i.SubjectClaim == "" {
		i.SubjectClaim = "sub"
	}
	if i.GroupsClaim == "" {
		i.GroupsClaim = "groups"
	}
	if i.LoginAge == 0 {
		i.LoginAge = Duration(DefaultLoginAge)
	}
	if i.GrantAge == 0 {
		i.GrantAge = Duration(DefaultGrantAge)
	}
	return i
}

func (i Issuer) clone() Issuer {
	i.Audiences = slices.Clone(i.Audiences)
	i.Algorithms = slices.Clone(i.Algorithms)
	i.Require = maps.Clone(i.Require)
	i.RedirectPorts = slices.Clone(i.RedirectPorts)
	i.Scopes = slices.Clone(i.Scopes)
	return i
}

// IssuerError is an issuer entry that cannot be used.
type IssuerError struct {
	URL    string // the entry's URL, as written
	Detail string
	Advice string // what to do; may be empty
}

func (e *IssuerError) Error() string {
	return fmt.Sprintf("issuer %q: %s", e.URL, e.Detail)
}

// Hint says what to change.
func (e *IssuerError) Hint() string { return e.Advice }

// Validate reports the first fault of i as an *IssuerError. Optional fields may
// be empty.
func (i Issuer) Validate() error {
	bad := func(advice, format string, args ...any) error {
		return &IssuerError{URL: i.URL, Detail: fmt.Sprintf(format, args...), Advice: advice}
	}
	if err := issuerCheckURL(i.URL); err != nil {
		return bad("write the issuer exactly as its discovery document does, for example https://login.example.com", "%v", err)
	}
	if i.ClientID == "" {
		return bad("register a native (public) client with the issuer and name it", "no clientID")
	}
	for _, list := range []struct {
		name   string
		values []string
	}{{"audiences", i.Audiences}, {"scopes", i.Scopes}, {"algorithms", i.Algorithms}} {
		for n, v := range list.values {
			if v == "" {
				return bad("", "%s holds an empty text", list.name)
			}
			if slices.Contains(list.values[:n], v) {
				return bad("", "%s holds %q twice", list.name, v)
			}
		}
	}
	for _, a := range i.Algorithms {
		if !slices.Contains(issuerAlgorithms, a) {
			return bad("use some of "+strings.Join(issuerAlgorithms, ", "), "algorithm %q is not accepted", a)
		}
	}
	if len(i.Scopes) > 0 && !slices.Contains(i.Scopes, "openid") {
		return bad("add the scope openid", "scopes without openid bring no ID token")
	}
	for _, s := range i.Scopes {
		if strings.ContainsAny(s, " \t\r\n\"\\") {
			return bad("give each scope by itself", "scope %q holds a character that RFC 6749 §3.3 forbids", s)
		}
	}
	for _, c := range slices.Sorted(maps.Keys(i.Require)) {
		if c == "" || i.Require[c] == "" {
			return bad("write require as claim: value", "require has an empty claim or value")
		}
	}
	switch i.RedirectHost {
	case "", "127.0.0.1", "localhost":
	default:
		return bad("use 127.0.0.1 or localhost", "redirectHost %q is not a loopback name", i.RedirectHost)
	}
	for n, p := range i.RedirectPorts {
		if p == 0 || slices.Contains(i.RedirectPorts[:n], p) {
			return bad("list each port once, from 1 to 65535; leave the list out for any port", "redirectPorts holds %d wrongly", p)
		}
	}
	if i.CA != "" {
		if _, err := parseCertificates(i.CA); err != nil {
			return bad("give the CA as PEM certificates", "ca: %v", err)
		}
	}
	if i.GrantAge < 0 || i.GrantAge.Std() > MaxGrantAge {
		return bad(fmt.Sprintf("use at most %s", Duration(MaxGrantAge)), "grantAge %s is out of range", i.GrantAge)
	}
	if i.LoginAge < 0 || i.Refresh < 0 {
		return bad("", "a duration is negative")
	}
	if i.LoginAge != 0 && i.LoginAge.Std() < time.Second {
		return bad("", "loginAge %s is less than a second, the unit of max_age", i.LoginAge)
	}
	return i.checkTenant(bad)
}

// issuerCheckURL holds OIDC Discovery §3 (https, no query, no fragment); http
// serves tests and single-machine demos on loopback.
func issuerCheckURL(raw string) error {
	if raw == "" {
		return errors.New("no url")
	}
	if len(raw) > 2048 {
		return errors.New("url is longer than 2048 bytes")
	}
	for _, r := range raw {
		if r <= ' ' || r > '~' {
			return errors.New("url holds a character that must be escaped")
		}
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return errors.New("url does not parse")
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(raw, "#"):
		return errors.New("url holds a user, a query or a fragment")
	case u.Hostname() == "" || u.Opaque != "":
		return errors.New("url names no host")
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http":
		if issuerLoopback(u.Hostname()) {
			return nil
		}
		return errors.New("url is http, which is for loopback hosts only")
	}
	return fmt.Errorf("url's scheme is %q, want https", u.Scheme)
}

func issuerLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && (a == netip.AddrFrom4([4]byte{127, 0, 0, 1}) || a == netip.IPv6Loopback())
}

// issuerTenant is an issuer that signs for everybody: without a required claim
// any of its customers could present a token.
type issuerTenant struct {
	host   string
	path   func(first string) bool // of the path's first segment; nil = any
	claims []string                // one of them must be required; the first is advised
	advice string
}

func issuerEntraShared(first string) bool {
	switch strings.ToLower(first) {
	case "common", "organizations", "consumers", "9188040d-6c67-4c5b-b112-36a304b66dad": // the last is consumers' own tenant id
		return true
	}
	return false
}

var issuerTenants = func() []issuerTenant {
	t := []issuerTenant{
		{host: "accounts.google.com", claims: []string{"hd", "email", "sub"}, advice: "require hd=YOUR-DOMAIN"},
		{host: "token.actions.githubusercontent.com", claims: []string{"repository_owner_id", "repository_id", "enterprise_id"},
			advice: "require repository_owner_id=NUMBER, the number of your organisation"},
		{host: "gitlab.com", claims: []string{"namespace_id", "project_id", "sub"}, advice: "require namespace_id=NUMBER"},
		{host: "agent.buildkite.com", claims: []string{"organization_id", "organization_slug"}, advice: "require organization_id=UUID"},
		{host: "app.terraform.io", claims: []string{"terraform_organization_id"}, advice: "require terraform_organization_id=ID"},
		{host: "oidc.vercel.com", path: func(first string) bool { return first == "" }, claims: []string{"owner_id"}, advice: "require owner_id=ID"},
		{host: "appleid.apple.com", claims: []string{"sub", "email"}, advice: "require sub=ID"},
	}
	for _, host := range []string{"login.microsoftonline.com", "login.microsoftonline.us", "login.partner.microsoftonline.cn", "login.windows.net", "sts.windows.net"} {
		t = append(t, issuerTenant{host: host, path: issuerEntraShared, claims: []string{"tid"},
			advice: "use your tenant's own issuer (https://" + host + "/TENANT-ID/v2.0), or require tid=TENANT-ID"})
	}
	return t
}()

func (i Issuer) checkTenant(bad func(advice, format string, args ...any) error) error {
	u, err := url.Parse(i.URL)
	if err != nil {
		return bad("", "url does not parse")
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	first, _, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	for _, t := range issuerTenants {
		if t.host != host || t.path != nil && !t.path(first) {
			continue
		}
		if !slices.ContainsFunc(t.claims, func(c string) bool { return i.Require[c] != "" }) {
			return bad(t.advice, "signs for every tenant, so it needs a required claim (%s)", strings.Join(t.claims, ", "))
		}
	}
	return nil
}

// validateIssuers also refuses two entries with one URL: `iss` chooses the entry.
func validateIssuers(issuers []Issuer) error {
	for n, i := range issuers {
		if err := i.Validate(); err != nil {
			return err
		}
		for _, other := range issuers[:n] {
			if issuerSame(i.URL, other.URL) {
				return &IssuerError{URL: i.URL, Detail: "is listed twice", Advice: "merge the two entries; several audiences go into one"}
			}
		}
	}
	return nil
}

// issuerSame compares two URLs as a hurried reader would: one slash at the end
// or the case of the host must not make two issuers.
func issuerSame(a, b string) bool {
	norm := func(s string) string {
		u, err := url.Parse(s)
		if err != nil {
			return s
		}
		host := strings.ToLower(u.Host)
		if u.Scheme == "https" {
			host = strings.TrimSuffix(host, ":443")
		}
		return u.Scheme + "://" + host + strings.TrimRight(u.EscapedPath(), "/")
	}
	return norm(a) == norm(b)
}

// AudienceError is an overlay client that an API server would accept too. The
// token sent to relays would then open that API server.
type AudienceError struct {
	Issuer   string
	Audience string
}

func (e *AudienceError) Error() string {
	return fmt.Sprintf("issuer %q: the overlay would accept audience %q, which is an API server's client", e.Issuer, e.Audience)
}

// Hint says what to change.
func (*AudienceError) Hint() string {
	return "register a second client with the issuer: one for the overlay, one for API servers; neither token may be accepted in the other's place"
}

// CheckAudiences refuses, with an *AudienceError, overlay issuers (a head's or
// a policy's) which accept the client of an API server's issuer or an audience
// of it. Who signs a record calls it with the head's issuers; who signs a head,
// with each record in force; who makes a policy, with its cluster's record.
func CheckAudiences(overlay []Issuer, apiServer *Issuer) error {
	if apiServer == nil {
		return nil
	}
	theirs := apiServer.WithDefaults()
	for _, o := range overlay {
		if !issuerSame(o.URL, theirs.URL) {
			continue
		}
		for _, a := range o.WithDefaults().Audiences {
			if slices.Contains(theirs.Audiences, a) {
				return &AudienceError{Issuer: o.URL, Audience: a}
			}
		}
	}
	return nil
}

// parseCertificates reads one or more PEM certificates and nothing else.
func parseCertificates(text string) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	rest := []byte(text)
	for len(strings.TrimSpace(string(rest))) > 0 {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			return nil, errors.New("not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block of type %q, want CERTIFICATE", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %v", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate")
	}
	return certs, nil
}
