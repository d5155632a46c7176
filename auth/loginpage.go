package auth

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"time"
)

// LoginSummary is what the last page of a visit shows. All of it is escaped.
type LoginSummary struct {
	Person   string    // who logged in
	Groups   []string  // as the issuer tells them
	Until    time.Time // when the login ends; zero = not shown
	Clusters []string  // what can be reached now
	Notes    []string  // anything else worth a line
}

// summarize is the summary of who asks for none.
func summarize(tokens []Tokens) LoginSummary {
	if len(tokens) == 0 {
		return LoginSummary{}
	}
	return LoginSummary{Person: tokens[0].String(), Groups: tokens[0].Groups}
}

const maxPageItems = 50 // of a list; a claim may hold thousands

const loginStyle = `body{font:16px/1.5 system-ui,sans-serif;max-width:38em;margin:4em auto;padding:0 1em;color:#1b1f24;background:#fff}
h1{font-size:1.4em}dt{font-weight:600;margin-top:.8em}dd{margin:0;overflow-wrap:anywhere}.bad{color:#a40e26}
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}.bad{color:#ff7b72}}`

// loginTemplate stands alone: no script, no image, no font, nothing from
// elsewhere, so that its Content-Security-Policy can refuse all of that.
var loginTemplate = template.Must(template.New("login").Parse(`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>zt: {{.Title}}</title>
<style>{{.Style}}</style>
</head>
<body>
<h1{{if .What}} class="bad"{{end}}>{{.Title}}</h1>
{{- with .What}}
<p>{{.}}</p>
{{- end}}
{{- with .Hint}}
<p><b>What to do:</b> {{.}}</p>
{{- end}}
{{- with .Summary}}{{if .Person}}
<dl>
<dt>Logged in as</dt><dd>{{.Person}}</dd>
{{- if .Groups}}
<dt>Groups</dt>
{{- range .Groups}}
<dd>{{.}}</dd>
{{- end}}
{{- else}}
<dt>Groups</dt><dd>none</dd>
{{- end}}
{{- with $.Until}}
<dt>Until</dt><dd>{{.}}</dd>
{{- end}}
{{- if .Clusters}}
<dt>Clusters</dt>
{{- range .Clusters}}
<dd>{{.}}</dd>
{{- end}}
{{- end}}
</dl>
{{- end}}
{{- range .Notes}}
<p>{{.}}</p>
{{- end}}{{end}}
<p>You can close this page and go back to the terminal.</p>
</body>
</html>
`))

type loginPage struct {
	Title, What, Hint, Until string
	Style                    template.CSS
	Summary                  LoginSummary
}

// renderLogin makes the last page of a visit that brought tokens and ended
// with err.
func renderLogin(tokens []Tokens, err error, summary func([]Tokens) LoginSummary) []byte {
	p := loginPage{Title: "You are logged in", Style: loginStyle}
	if len(tokens) > 0 {
		p.Summary = printableSummary(summary(tokens))
	}
	if !p.Summary.Until.IsZero() {
		p.Until = p.Summary.Until.Format("Monday 2 January 2006, 15:04 MST")
	}
	switch {
	case err == nil:
	case errors.Is(err, ErrLoginCancelled):
		p.Title, p.What = "Login cancelled", "Nothing was changed."
	case len(tokens) > 0:
		p.Title = "The login is not complete"
	default:
		p.Title = "The login failed"
	}
	if err != nil {
		if p.What == "" {
			p.What = printable(err.Error())
		}
		if h, ok := errors.AsType[interface {
			error
			Hint() string
		}](err); ok {
			p.Hint = printable(h.Hint())
		}
	}
	var b bytes.Buffer
	if terr := loginTemplate.Execute(&b, p); terr != nil { // the data are texts: a fault of the template
		return []byte("<!doctype html><title>zt</title><p>The login is over. Go back to the terminal.")
	}
	return b.Bytes()
}

func printableSummary(s LoginSummary) LoginSummary {
	list := func(in []string) []string {
		var out []string
		for n, v := range in {
			if n == maxPageItems {
				return append(out, fmt.Sprintf("and %d more", len(in)-n))
			}
			out = append(out, printable(v))
		}
		return out
	}
	s.Person = printable(s.Person)
	s.Groups, s.Clusters, s.Notes = list(s.Groups), list(s.Clusters), list(s.Notes)
	return s
}

// loginHeaders are those of every answer of the callback server.
func loginHeaders(h http.Header) {
	style := sha256.Sum256([]byte(loginStyle))
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(style[:])+
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
}
