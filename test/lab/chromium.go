package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
)

// Chromium is a real browser without a window, in a network of the lab, with
// one tab. It is driven over the Chrome DevTools Protocol. Its methods are for
// one goroutine.
type Chromium struct {
	process *Process
	conn    *websocket.Conn
	session string // of the tab
	last    int    // number of the last message
}

// ChromiumConfig is what a browser needs.
type ChromiumConfig struct {
	Program   string // "chromium" in PATH when empty
	Namespace *Namespace
	User      *User
	// Dir is the browser's own directory, owned by User. It becomes its home.
	Dir string
	// Pins are base64 SHA-256 of public keys whose certificates it believes.
	Pins []string
}

// StartChromium starts a browser and opens an empty tab.
func (l *Lab) StartChromium(ctx context.Context, c ChromiumConfig) (*Chromium, error) {
	if c.Program == "" {
		c.Program = "chromium"
	}
	profile := filepath.Join(c.Dir, "profile")
	p, err := l.Start(Command{
		Name: "chromium", Namespace: c.Namespace, User: c.User, Dir: c.Dir,
		Env: []string{"HOME=" + c.Dir, "TMPDIR=" + c.Dir, "PATH=/usr/bin:/bin", "LANG=C.UTF-8"},
		Args: []string{c.Program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
			"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-default-apps",
			"--ignore-certificate-errors-spki-list=" + strings.Join(c.Pins, ","),
			"--remote-debugging-port=0", "--user-data-dir=" + profile, "about:blank"},
	})
	if err != nil {
		return nil, err
	}
	b := &Chromium{process: p}
	var port, path string
	ready, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := p.WaitFor(ready, "its debugging port", func(context.Context) error {
		text, err := os.ReadFile(filepath.Join(profile, "DevToolsActivePort"))
		if err != nil {
			return err
		}
		var ok bool
		if port, path, ok = strings.Cut(strings.TrimSpace(string(text)), "\n"); !ok {
			return errors.New("incomplete")
		}
		return nil
	}); err != nil {
		return nil, err
	}
	b.conn, _, err = websocket.Dial(ready, "ws://127.0.0.1:"+port+path, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: &http.Transport{DialContext: c.Namespace.DialContext}},
	})
	if err != nil {
		return nil, fmt.Errorf("control chromium: %w", err)
	}
	b.conn.SetReadLimit(64 << 20)
	var target struct{ TargetID string }
	if err := b.call(ready, "", "Target.createTarget", map[string]any{"url": "about:blank"}, &target); err != nil {
		return nil, err
	}
	var attached struct{ SessionID string }
	if err := b.call(ready, "", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached); err != nil {
		return nil, err
	}
	b.session = attached.SessionID
	return b, nil
}

// Close ends the browser.
func (b *Chromium) Close() {
	_ = b.conn.CloseNow()
	b.process.Kill()
}

// call sends one command and waits for its answer; events are not looked at.
func (b *Chromium) call(ctx context.Context, session, method string, params, result any) error {
	b.last++
	message := map[string]any{"id": b.last, "method": method, "params": params}
	if session != "" {
		message["sessionId"] = session
	}
	if err := wsjson.Write(ctx, b.conn, message); err != nil {
		return fmt.Errorf("chromium: %s: %w", method, err)
	}
	for {
		var answer struct {
			ID     int
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if err := wsjson.Read(ctx, b.conn, &answer); err != nil {
			return fmt.Errorf("chromium: %s: %w", method, err)
		}
		switch {
		case answer.ID != b.last:
		case answer.Error != nil:
			return fmt.Errorf("chromium: %s: %s", method, answer.Error.Message)
		case result == nil:
			return nil
		default:
			return json.Unmarshal(answer.Result, result)
		}
	}
}

// Open goes to a page.
func (b *Chromium) Open(ctx context.Context, address string) error {
	var result struct{ ErrorText string }
	if err := b.call(ctx, b.session, "Page.navigate", map[string]any{"url": address}, &result); err != nil {
		return err
	}
	if result.ErrorText != "" {
		return fmt.Errorf("chromium: open page: %s", result.ErrorText)
	}
	return nil
}

// Evaluate runs JavaScript in the page and stores its value, a JSON value, in
// result, which may be nil.
func (b *Chromium) Evaluate(ctx context.Context, script string, result any) error {
	var answer struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct{ Text string }
	}
	if err := b.call(ctx, b.session, "Runtime.evaluate", map[string]any{"expression": script, "returnByValue": true}, &answer); err != nil {
		return err
	}
	if answer.ExceptionDetails != nil {
		return fmt.Errorf("chromium: script: %s", answer.ExceptionDetails.Text)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer.Result.Value, result)
}

// ShownPage is what a browser shows.
type ShownPage struct {
	URL, State, Title, Text string
	Form                    bool
}

// Page is what the tab shows now.
func (b *Chromium) Page(ctx context.Context) (ShownPage, error) {
	var p ShownPage
	err := b.Evaluate(ctx, `({URL: location.href, State: document.readyState, Title: document.title,
		Text: document.body ? document.body.innerText : "", Form: !!document.querySelector("form input[name=login]")})`, &p)
	return p, err
}

// LogIn plays a person who opens address, types user and a password wherever a
// login form is shown, and is done at a page on a loopback address.
func (b *Chromium) LogIn(ctx context.Context, address, user string) (ShownPage, error) {
	if err := b.Open(ctx, address); err != nil {
		return ShownPage{}, err
	}
	name, err := json.Marshal(user)
	if err != nil {
		return ShownPage{}, err
	}
	fill := fmt.Sprintf(`document.querySelector("input[name=login]").value = %s;
		document.querySelector("input[name=password]").value = "any";
		document.querySelector("#submit").click()`, name)
	var page ShownPage
	var submitted string
	err = Eventually(ctx, func(ctx context.Context) error {
		var err error
		if page, err = b.Page(ctx); err != nil { // also while it goes from one page to the next
			return err
		}
		switch u, err := url.Parse(page.URL); {
		case err != nil:
			return err
		case page.State != "complete":
			return fmt.Errorf("%s is loading", u.Host)
		case page.Form && page.URL != submitted:
			submitted = page.URL
			if err := b.Evaluate(ctx, fill, nil); err != nil {
				return err
			}
			return errors.New("the form was sent")
		case page.Form:
			return fmt.Errorf("%s shows the form again: %q", u.Host, page.Text)
		case u.Hostname() != "127.0.0.1" && u.Hostname() != "localhost":
			return fmt.Errorf("%s shows %q", u.Host, page.Text)
		}
		return nil
	})
	return page, err
}
