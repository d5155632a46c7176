package auth

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestIssuerDefaults(t *testing.T) {
	in := Issuer{URL: "https://a.example", ClientID: "zt", Audiences: []string{"other"}}
	got := in.WithDefaults()
	want := Issuer{
		URL: "https://a.example", ClientID: "zt", Audiences: []string{"zt", "other"}, Algorithms: []string{"RS256", "ES256"},
		RedirectHost: "127.0.0.1", Scopes: []string{"openid", "profile", "email"}, SubjectClaim: "sub", GroupsClaim: "groups",
		LoginAge: Duration(12 * time.Hour), GrantAge: Duration(12 * time.Hour),
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if !reflect.DeepEqual(got.WithDefaults(), got) {
		t.Error("defaults of defaults differ")
	}
	got.Audiences[1] = "changed"
	if in.Audiences[0] != "other" || len(in.Algorithms) != 0 {
		t.Error("WithDefaults shares memory with its receiver")
	}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b), `{"url":"https://a.example","clientID":"zt","audiences":["other"]}`; got != want {
		t.Errorf("JSON is %s, want %s", got, want)
	}
}

func TestIssuerValidate(t *testing.T) {
	ca := documentCA(t)
	for name, c := range map[string]struct {
		edit func(*Issuer)
		text string // "" = accepted
	}{
		"least":                    {func(i *Issuer) {}, ""},
		"with defaults":            {func(i *Issuer) { *i = i.WithDefaults() }, ""},
		"all algorithms":           {func(i *Issuer) { i.Algorithms = slices.Clone(issuerAlgorithms) }, ""},
		"path and slash":           {func(i *Issuer) { i.URL = "https://id.example:8443/realms/x/" }, ""},
		"loopback http":            {func(i *Issuer) { i.URL = "http://127.0.0.1:5556/dex" }, ""},
		"loopback http v6":         {func(i *Issuer) { i.URL = "http://[::1]:5556" }, ""},
		"localhost http":           {func(i *Issuer) { i.URL = "http://localhost" }, ""},
		"two CAs":                  {func(i *Issuer) { i.CA = ca + ca }, ""},
		"ports":                    {func(i *Issuer) { i.RedirectPorts = []uint16{8000, 18000}; i.RedirectHost = "localhost" }, ""},
		"grant age at the cap":     {func(i *Issuer) { i.GrantAge = Duration(24 * time.Hour) }, ""},
		"no url":                   {func(i *Issuer) { i.URL = "" }, "no url"},
		"http":                     {func(i *Issuer) { i.URL = "http://login.example.com" }, "loopback"},
		"http to a near loopback":  {func(i *Issuer) { i.URL = "http://127.0.0.1.example.com" }, "loopback"},
		"http to 127.0.0.2":        {func(i *Issuer) { i.URL = "http://127.0.0.2" }, "loopback"},
		"http localhost.":          {func(i *Issuer) { i.URL = "http://localhost.example" }, "loopback"},
		"scheme":                   {func(i *Issuer) { i.URL = "file:///etc/passwd" }, "no host"},
		"ftp":                      {func(i *Issuer) { i.URL = "ftp://login.example.com" }, "scheme"},
		"no scheme":                {func(i *Issuer) { i.URL = "login.example.com" }, "no host"},
		"query":                    {func(i *Issuer) { i.URL = "https://login.example.com?a=b" }, "query"},
		"empty query":              {func(i *Issuer) { i.URL = "https://login.example.com?" }, "query"},
		"fragment":                 {func(i *Issuer) { i.URL = "https://login.example.com#" }, "fragment"},
		"user":                     {func(i *Issuer) { i.URL = "https://u:p@login.example.com" }, "user"},
		"space":                    {func(i *Issuer) { i.URL = "https://login.example.com/a b" }, "escaped"},
		"control":                  {func(i *Issuer) { i.URL = "https://login.example.com/\x1b[2J" }, "escaped"},
		"look-alike":               {func(i *Issuer) { i.URL = "https://lоgin.example.com" }, "escaped"}, // Cyrillic о
		"no client":                {func(i *Issuer) { i.ClientID = "" }, "clientID"},
		"algorithm none":           {func(i *Issuer) { i.Algorithms = []string{"none"} }, "none"},
		"HS256":                    {func(i *Issuer) { i.Algorithms = []string{"RS256", "HS256"} }, "HS256"},
		"lower-case algorithm":     {func(i *Issuer) { i.Algorithms = []string{"rs256"} }, "rs256"},
		"empty audience":           {func(i *Issuer) { i.Audiences = []string{""} }, "audiences"},
		"audience twice":           {func(i *Issuer) { i.Audiences = []string{"a", "a"} }, "twice"},
		"scopes without openid":    {func(i *Issuer) { i.Scopes = []string{"email"} }, "openid"},
		"two scopes in one":        {func(i *Issuer) { i.Scopes = []string{"openid", "email groups"} }, "forbids"},
		"require nothing":          {func(i *Issuer) { i.Require = map[string]string{"hd": ""} }, "require"},
		"redirect host":            {func(i *Issuer) { i.RedirectHost = "0.0.0.0" }, "loopback"},
		"redirect port 0":          {func(i *Issuer) { i.RedirectPorts = []uint16{0} }, "redirectPorts"},
		"redirect port twice":      {func(i *Issuer) { i.RedirectPorts = []uint16{80, 80} }, "redirectPorts"},
		"CA is not PEM":            {func(i *Issuer) { i.CA = "x" }, "PEM"},
		"CA is a key":              {func(i *Issuer) { i.CA = string(documentPEM(t, 5)) }, "PRIVATE KEY"},
		"CA with a tail":           {func(i *Issuer) { i.CA = ca + "x" }, "PEM"},
		"grant age":                {func(i *Issuer) { i.GrantAge = Duration(24*time.Hour + 1) }, "grantAge"},
		"negative":                 {func(i *Issuer) { i.LoginAge = -1 }, "negative"},
		"login age below a second": {func(i *Issuer) { i.LoginAge = 1 }, "second"},

		"Entra tenant":          {func(i *Issuer) { i.URL = "https://login.microsoftonline.com/8a1f0d52-0000-4000-8000-000000000000/v2.0" }, ""},
		"Entra common":          {func(i *Issuer) { i.URL = "https://login.microsoftonline.com/common/v2.0" }, "tid"},
		"Entra Common":          {func(i *Issuer) { i.URL = "https://LOGIN.microsoftonline.com/Common/v2.0" }, "tid"},
		"Entra organizations":   {func(i *Issuer) { i.URL = "https://login.microsoftonline.com/organizations/v2.0" }, "tid"},
		"Entra consumers":       {func(i *Issuer) { i.URL = "https://login.microsoftonline.com/consumers/v2.0" }, "tid"},
		"Entra consumers by id": {func(i *Issuer) { i.URL = "https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0" }, "tid"},
		"Entra common with tid": {func(i *Issuer) {
			i.URL = "https://login.microsoftonline.com/common/v2.0"
			i.Require = map[string]string{"tid": "x"}
		}, ""},
		"Entra common, another claim": {func(i *Issuer) {
			i.URL = "https://login.microsoftonline.com/common/v2.0"
			i.Require = map[string]string{"hd": "x"}
		}, "tid"},
		"Google":                       {func(i *Issuer) { i.URL = "https://accounts.google.com" }, "hd"},
		"Google with a dot and a port": {func(i *Issuer) { i.URL = "https://accounts.google.com.:443" }, "hd"},
		"Google with hd": {func(i *Issuer) {
			i.URL = "https://accounts.google.com"
			i.Require = map[string]string{"hd": "example.com"}
		}, ""},
		"GitHub Actions": {func(i *Issuer) { i.URL = "https://token.actions.githubusercontent.com" }, "repository_owner_id"},
		"GitHub Actions, owner": {func(i *Issuer) {
			i.URL = "https://token.actions.githubusercontent.com"
			i.Require = map[string]string{"repository_owner_id": "1"}
		}, ""},
		"GitHub Actions, owner by name": {func(i *Issuer) {
			i.URL = "https://token.actions.githubusercontent.com"
			i.Require = map[string]string{"repository_owner": "x"}
		}, "repository_owner_id"},
	} {
		t.Run(name, func(t *testing.T) {
			i := Issuer{URL: "https://login.example.com", ClientID: "zt"}
			c.edit(&i)
			err := i.Validate()
			if c.text == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if e, ok := errors.AsType[*IssuerError](err); !ok || !strings.Contains(e.Error(), c.text) {
				t.Errorf("got %v, want an *IssuerError with %q", err, c.text)
			}
		})
	}
}

func TestCheckAudiences(t *testing.T) {
	overlay := []Issuer{
		{URL: "https://login.example.com", ClientID: "zt", Audiences: []string{"zt-cli"}},
		{URL: "https://other.example.com", ClientID: "kubernetes"},
	}
	for name, c := range map[string]struct {
		api *Issuer
		bad string
	}{
		"kept user":           {nil, ""},
		"two clients":         {&Issuer{URL: "https://login.example.com", ClientID: "kubernetes"}, ""},
		"same client":         {&Issuer{URL: "https://login.example.com", ClientID: "zt"}, "zt"},
		"same audience":       {&Issuer{URL: "https://login.example.com", ClientID: "zt-cli"}, "zt-cli"},
		"among its audiences": {&Issuer{URL: "https://login.example.com", ClientID: "kubernetes", Audiences: []string{"zt"}}, "zt"},
		"one slash more":      {&Issuer{URL: "https://login.example.com/", ClientID: "zt"}, "zt"},
		"host in other case":  {&Issuer{URL: "https://Login.example.com:443", ClientID: "zt"}, "zt"},
		"another issuer":      {&Issuer{URL: "https://third.example.com", ClientID: "zt"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckAudiences(overlay, c.api)
			if c.bad == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if e, ok := errors.AsType[*AudienceError](err); !ok || e.Audience != c.bad || e.Hint() == "" {
				t.Errorf("got %v, want audience %q refused", err, c.bad)
			}
		})
	}
}
