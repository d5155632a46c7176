package issuer

import (
	"crypto/rand"
	"html/template"
	"net/http"
	"strings"
	"time"

	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// loginTemplate is the login page: the field names are what Visit and other
// robots fill in.
var loginTemplate = template.Must(template.New("login").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Test issuer: log in</title>
<style>body{font-family:sans-serif;max-width:24em;margin:4em auto}label{display:block;margin:1em 0}</style>
<h1>Test issuer</h1>
<p>{{.Client}} asks who you are. Any password is right.</p>
{{with .Problem}}<p role="alert">{{.}}</p>{{end}}
<form method="post" action="{{.Action}}">
<input type="hidden" name="id" value="{{.ID}}">
<label>User <input name="login" value="{{.Hint}}" autofocus autocomplete="off"></label>
<label>Password <input name="password" type="password" autocomplete="off"></label>
<button type="submit" id="submit">Log in</button>
<button type="submit" id="cancel" name="cancel" value="yes">Cancel</button>
</form></html>
`))

type loginPage struct{ Client, Action, ID, Hint, Problem string }

// pending returns a copy of the request of that id, or answers the browser.
func (i *Issuer) pending(w http.ResponseWriter, r *http.Request, id string) *request {
	ar, err := i.store.AuthRequestByID(r.Context(), id)
	if err != nil {
		http.Error(w, "this login is over; begin again", http.StatusBadRequest)
		return nil
	}
	return ar.(*request)
}

// serveLogin shows the form, or goes on when the browser's session answered the
// request already.
func (i *Issuer) serveLogin(w http.ResponseWriter, r *http.Request) {
	ar := i.pending(w, r, r.URL.Query().Get("id"))
	if ar == nil {
		return
	}
	if ar.Done() {
		i.finish(w, r, ar)
		return
	}
	i.showLogin(w, http.StatusOK, ar, ar.LoginHint, "")
}

func (i *Issuer) showLogin(w http.ResponseWriter, code int, ar *request, hint, problem string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	w.WriteHeader(code)
	loginTemplate.Execute(w, loginPage{
		Client: ar.ClientID, Action: i.prefix + loginPath, ID: ar.id, Hint: hint, Problem: problem,
	})
}

func (i *Issuer) serveLoginForm(w http.ResponseWriter, r *http.Request) {
	ar := i.pending(w, r, r.PostFormValue("id"))
	if ar == nil {
		return
	}
	if r.PostFormValue("cancel") != "" {
		i.store.DeleteAuthRequest(r.Context(), ar.id)
		i.deny(w, r, ar)
		return
	}
	name, cookie := r.PostFormValue("login"), rand.Text()
	if local, _, ok := strings.Cut(name, "@"); ok { // an e-mail address, as login_hint may give
		name = local
	}
	s := i.store
	s.mu.Lock()
	if _, ok := s.users[name]; !ok {
		s.mu.Unlock()
		i.showLogin(w, http.StatusUnauthorized, ar, r.PostFormValue("login"), "There is no such user.")
		return
	}
	b := &session{user: name, sid: rand.Text(), authTime: time.Now()}
	if c, err := r.Cookie(i.cookie); err == nil {
		if old := s.sessions[c.Value]; old != nil && old.user == name {
			b.sid = old.sid // the same person again: the session goes on
		}
		delete(s.sessions, c.Value)
	}
	s.expireLocked()
	s.sessions[cookie] = b
	if pending := s.requests[ar.id]; pending != nil {
		s.finishLocked(pending, b)
	}
	s.mu.Unlock()
	http.SetCookie(w, &http.Cookie{
		Name: i.cookie, Value: cookie, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode,
		Secure: strings.HasPrefix(i.url, "https:"),
	})
	i.finish(w, r, ar)
}

func (i *Issuer) finish(w http.ResponseWriter, r *http.Request, ar *request) {
	http.Redirect(w, r, op.AuthCallbackURL(i.provider)(op.ContextWithIssuer(r.Context(), i.url), ar.id), http.StatusSeeOther)
}

// deny answers error=access_denied, through the library and with iss.
func (i *Issuer) deny(w http.ResponseWriter, r *http.Request, ar *request) {
	var b buffer
	op.AuthRequestError(&b, r, ar, oidc.ErrAccessDenied().WithDescription("the person cancelled"), i.provider)
	i.addIss(&b)
	b.writeTo(w)
}
