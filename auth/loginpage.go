package auth

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"html"
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

// write appends the page. It stands alone: no script, no image, no font, nothing
// from elsewhere, so that its Content-Security-Policy can refuse all of that. It
// is written by hand and not by html/template: that package calls methods by
// name, and a linker that sees such calls keeps every exported method of every
// package, a fifth of the program.
func (p loginPage) write(b *bytes.Buffer) {
	// markup holds only what stands in this file; text is anybody's.
	markup := func(s string) { b.WriteString(s) }
	text := func(before, s, after string) {
		b.WriteString(before)
		b.WriteString(html.EscapeString(s))
		b.WriteString(after)
	}
	markup(`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
`)
	text("<title>zt: ", p.Title, "</title>\n")
	markup("<style>" + loginStyle + "</style>\n</head>\n<body>\n")
	if p.What == "" {
		text("<h1>", p.Title, "</h1>\n")
	} else {
		text(`<h1 class="bad">`, p.Title, "</h1>\n")
		text("<p>", p.What, "</p>\n")
	}
	if p.Hint != "" {
		text("<p><b>What to do:</b> ", p.Hint, "</p>\n")
	}
	if s := p.Summary; s.Person != "" {
		text("<dl>\n<dt>Logged in as</dt><dd>", s.Person, "</dd>\n")
		if len(s.Groups) == 0 {
			markup("<dt>Groups</dt><dd>none</dd>\n")
		} else {
			markup("<dt>Groups</dt>\n")
		}
		for _, g := range s.Groups {
			text("<dd>", g, "</dd>\n")
		}
		if p.Until != "" {
			text("<dt>Until</dt><dd>", p.Until, "</dd>\n")
		}
		if len(s.Clusters) > 0 {
			markup("<dt>Clusters</dt>\n")
		}
		for _, c := range s.Clusters {
			text("<dd>", c, "</dd>\n")
		}
		markup("</dl>\n")
	}
	for _, n := range p.Summary.Notes {
		text("<p>", n, "</p>\n")
	}
	markup("<p>You can close this page and go back to the terminal.</p>\n</body>\n</html>\n")
}

type loginPage struct {
	Title, What, Hint, Until string
	Summary                  LoginSummary
}

// renderLogin makes the last page of a visit that brought tokens and ended
// with err.
func renderLogin(tokens []Tokens, err error, summary func([]Tokens) LoginSummary) []byte {
	p := loginPage{Title: "You are logged in"}
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
	p.write(&b)
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
