package main

import (
	"fmt"
	"io"
	"net/url"
	"time"

	"github.com/pkg/browser"

	"github.com/zt-daemon/zt/daemon"
)

// loginPage shows the progress of a login: the page to open, how long it waits.
type loginPage struct {
	env  *environment
	open bool // a browser shall be opened

	stop chan struct{} // ends the countdown; nil: none runs
	done chan struct{} // it has ended
}

// event shows one event of a login.
func (p *loginPage) event(e daemon.LoginEvent) {
	p.stopCountdown()
	w := p.env.stderr
	switch e.Type {
	case daemon.LoginStep:
		fmt.Fprintf(w, "%s\n", printable(e.Message))
	case daemon.LoginWarning:
		fmt.Fprintf(w, "zt-daemon: warning: %s\n", printable(e.Message))
	case daemon.LoginBrowser:
		u, err := url.Parse(e.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			fmt.Fprintf(w, "zt-daemon: warning: the login page has no address that a browser takes: %s\n", printable(e.URL))
			return
		}
		if p.open {
			fmt.Fprintf(w, "Your browser opens the login page. If it does not, open it yourself:\n\n  %s\n\n", u)
			if err := p.env.openBrowser(u.String()); err != nil {
				fmt.Fprintf(w, "zt-daemon: warning: no browser was opened: %s\n", printable(err.Error()))
			}
		} else {
			fmt.Fprintf(w, "Open this page in a browser to log in:\n\n  %s\n\n", u)
			if port := callbackPort(u); port != "" && p.env.getenv("SSH_CONNECTION") != "" {
				fmt.Fprintf(w, "The browser is on another machine? There, first run: ssh -L %s:127.0.0.1:%s THIS-MACHINE\n", port, port)
			}
		}
		p.countdown(e.Until)
	}
}

// callbackPort is the port of this machine that the login page returns to.
func callbackPort(page *url.URL) string {
	back, err := url.Parse(page.Query().Get("redirect_uri"))
	if err != nil || back.Hostname() != "127.0.0.1" && back.Hostname() != "localhost" {
		return ""
	}
	return back.Port()
}

// countdown says how long is left: every second on a terminal, else once.
func (p *loginPage) countdown(until time.Time) {
	if until.IsZero() {
		return
	}
	w := p.env.stderr
	if !p.env.isTerminal() {
		fmt.Fprintf(w, "waiting for the browser, up to %s\n", span(time.Until(until).Round(time.Minute)))
		return
	}
	p.stop, p.done = make(chan struct{}), make(chan struct{})
	go func(stop <-chan struct{}, done chan<- struct{}) {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			left := max(time.Until(until), 0)
			fmt.Fprintf(w, "\r\x1b[Kwaiting for the browser, %s left (Ctrl-C cancels)", span(left))
			select {
			case <-stop:
				io.WriteString(w, "\r\x1b[K")
				return
			case <-tick.C:
			}
		}
	}(p.stop, p.done)
}

func (p *loginPage) stopCountdown() {
	if p.stop == nil {
		return
	}
	close(p.stop)
	<-p.done
	p.stop = nil
}

// canShowBrowser reports whether there is a display: without one, xdg-open
// starts a browser inside the terminal.
func canShowBrowser(env *environment) bool {
	switch env.goos {
	case "windows", "darwin":
		return true
	}
	for _, name := range []string{"DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME", "BROWSER"} {
		if env.getenv(name) != "" {
			return true
		}
	}
	return false
}

// openBrowser hands a page to the desktop's browser, whose output would garble
// ours. Some launchers return only when the browser is closed: they are not
// waited for, and end with this program or live on.
func openBrowser(page string) error {
	browser.Stdout, browser.Stderr = io.Discard, io.Discard
	failed := make(chan error, 1)
	go func() { failed <- browser.OpenURL(page) }()
	select {
	case err := <-failed:
		return err
	case <-time.After(time.Second):
		return nil
	}
}
