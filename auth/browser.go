package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// DefaultVisitTimeout is how long a Browser waits for the person.
	DefaultVisitTimeout = 5 * time.Minute

	nextTimeout   = 10 * time.Second       // of the caller's work between two logins
	pageLinger    = time.Second            // for the browser to come for its last page
	pageShutdown  = 500 * time.Millisecond // to finish sending it
	callbackPath  = "/callback"
	donePath      = "/done"
	maxHeader     = 64 << 10 // bytes of a request to the callback server; codes are long at some issuers
	portAttempts  = 8        // for a random port that is free on both loopback addresses
	eventInterval = time.Second
)

// BrowserConfig configures a Browser. The zero value works, but opens nothing
// and tells nobody the URL.
type BrowserConfig struct {
	// Host and Ports of the redirect, for issuers whose entry says nothing of
	// them: Host "" means 127.0.0.1, no Ports mean any.
	Host  string
	Ports []uint16
	// Timeout bounds a whole visit; 0 means DefaultVisitTimeout.
	Timeout time.Duration
	// Open opens the person's browser. It runs beside the visit and must return
	// when ctx is done. Its failure ends nothing: the URL was told to Progress.
	Open func(ctx context.Context, url string) error
	// Progress hears what happens, one event at a time. It must not block.
	Progress func(BrowserEvent)
	// Summary says what the last page shows; nil means what the first tokens tell.
	Summary func([]Tokens) LoginSummary
	Log     *slog.Logger // nil = none
}

// BrowserEventKind says what a BrowserEvent tells.
type BrowserEventKind string

const (
	// BrowserURL: the person must open URL.
	BrowserURL BrowserEventKind = "url"
	// BrowserOpenFailed: no browser could be opened here; Err says why.
	BrowserOpenFailed BrowserEventKind = "open_failed"
	// BrowserWaiting: the browser has Left to come back; told every second.
	BrowserWaiting BrowserEventKind = "waiting"
	// BrowserCode: the browser came back with a code of Issuer.
	BrowserCode BrowserEventKind = "code"
	// BrowserLoggedIn: Person was logged in at Issuer.
	BrowserLoggedIn BrowserEventKind = "logged_in"
	// BrowserNext: the browser was sent on to Issuer for the next login.
	BrowserNext BrowserEventKind = "next"
)

// BrowserEvent is a step of a visit.
type BrowserEvent struct {
	Kind   BrowserEventKind `json:"kind"`
	URL    string           `json:"url,omitempty"`
	Issuer string           `json:"issuer,omitempty"`
	Person string           `json:"person,omitempty"` // escaped
	Left   Duration         `json:"left,omitzero"`
	Err    string           `json:"error,omitempty"`
}

// NextLogin is the caller's work after a login: what it returns is the login
// that the same visit goes on with; nil ends the visit. An error ends it too,
// and is shown to the person with its Hint, if it has that method. ctx ends
// after 10 s.
type NextLogin func(ctx context.Context, t Tokens) (*LoginConfig, error)

// Browser logs people in through a web browser that comes back to a server on
// loopback (RFC 8252 §7.3). It may be used by several visits at once.
type Browser struct{ cfg BrowserConfig }

// NewBrowser checks cfg. Nothing listens until Visit.
func NewBrowser(cfg BrowserConfig) (*Browser, error) {
	switch cfg.Host {
	case "", "127.0.0.1", "localhost":
	default:
		return nil, fmt.Errorf("redirect host %q: want 127.0.0.1 or localhost", cfg.Host)
	}
	if slices.Contains(cfg.Ports, 0) {
		return nil, errors.New("redirect port 0: leave the list empty for any port")
	}
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("login timeout %s is negative", cfg.Timeout)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultVisitTimeout
	}
	if cfg.Progress == nil {
		cfg.Progress = func(BrowserEvent) {}
	}
	if cfg.Summary == nil {
		cfg.Summary = summarize
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Browser{cfg: cfg}, nil
}

// Visit is one visit of the browser: it logs in as first says, asks next what
// to go on with, and so on, and shows the person how it ended. It returns the
// tokens of every login that succeeded, in turn, and the error that ended the
// visit: a *LoginError, an error of next, or ctx's. When it returns nothing
// listens and nothing runs any more.
func (b *Browser) Visit(ctx context.Context, first LoginConfig, next NextLogin) ([]Tokens, error) {
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	v := &visit{b: b, next: next, events: make(chan BrowserEvent), over: make(chan struct{}), shown: make(chan struct{}), view: rand.Text()}
	defer v.running.Wait()
	defer cancel()
	defer v.stop()
	start, err := v.prepare(ctx, first)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	v.current = start
	v.mu.Unlock()
	b.cfg.Progress(BrowserEvent{Kind: BrowserURL, URL: start.url(), Issuer: start.client.issuer.URL})
	if b.cfg.Open != nil {
		v.running.Go(func() {
			if err := b.cfg.Open(ctx, start.url()); err != nil && ctx.Err() == nil {
				v.emit(ctx, BrowserEvent{Kind: BrowserOpenFailed, Err: foreignText(err.Error())})
			}
		})
	}
	v.wait(outer, start.client.issuer.URL)
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.tokens, v.err
}

// wait tells progress until the visit is over and its last page was sent.
func (v *visit) wait(ctx context.Context, issuer string) {
	end := time.Now().Add(v.b.cfg.Timeout)
	timeout := time.NewTimer(v.b.cfg.Timeout)
	defer timeout.Stop()
	tick := time.NewTicker(eventInterval)
	defer tick.Stop()
	var linger <-chan time.Time
	over := v.over
	v.tellWaiting(end)
	for {
		select {
		case e := <-v.events:
			v.b.cfg.Progress(e)
		case <-tick.C:
			if over != nil {
				v.tellWaiting(end)
			}
		case <-timeout.C:
			v.finish(&LoginError{Issuer: issuer, Err: ErrLoginTimeout, Detail: "waited " + Duration(v.b.cfg.Timeout).String()})
			return // no page of ours is open in the browser
		case <-ctx.Done():
			v.finish(&LoginError{Issuer: issuer, Err: ctx.Err()})
			return
		case <-over:
			over = nil
			t := time.NewTimer(pageLinger)
			defer t.Stop()
			linger = t.C
		case <-linger:
			return
		case <-v.shown:
			return
		}
	}
}

func (v *visit) tellWaiting(end time.Time) {
	v.b.cfg.Progress(BrowserEvent{Kind: BrowserWaiting, Left: Duration(max(0, time.Until(end)).Round(time.Second))})
}

// visit is the state of one Visit.
type visit struct {
	b      *Browser
	next   NextLogin
	events chan BrowserEvent
	over   chan struct{} // closed by finish
	shown  chan struct{} // closed when the last page is being sent
	view   string        // opens the last page: other programs on this machine must not read it

	running sync.WaitGroup // servers, their connections, Open

	mu        sync.Mutex // guards what follows
	listeners []*callbackListener
	current   *authorization // that waits for its answer; nil = none
	tokens    []Tokens
	ended     bool
	err       error
	page      []byte
	served    bool
}

func (v *visit) emit(ctx context.Context, e BrowserEvent) {
	select {
	case v.events <- e:
	case <-ctx.Done():
	}
}

// finish sets how the visit ended; only its first call counts.
func (v *visit) finish(err error) {
	v.mu.Lock()
	tokens, ended := v.tokens, v.ended
	v.mu.Unlock()
	if ended {
		return
	}
	page := renderLogin(tokens, err, v.b.cfg.Summary)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return
	}
	v.ended, v.err, v.page, v.current = true, err, page, nil
	close(v.over)
}

// prepare discovers cfg's issuer and sees that its redirect is listened on.
func (v *visit) prepare(ctx context.Context, cfg LoginConfig) (*authorization, error) {
	if cfg.Issuer.RedirectHost == "" {
		cfg.Issuer.RedirectHost = v.b.cfg.Host
	}
	if len(cfg.Issuer.RedirectPorts) == 0 {
		cfg.Issuer.RedirectPorts = v.b.cfg.Ports
	}
	l, err := newLoginClient(ctx, cfg)
	if err != nil {
		return nil, err
	}
	redirect, err := v.listen(ctx, l.issuer)
	if err != nil {
		return nil, err
	}
	return l.newAuthorization(redirect, cfg.Silent), nil
}

// callbackListener serves one redirect host and port.
type callbackListener struct {
	host string
	port uint16
	srv  *http.Server
}

// listen returns a redirect URI of issuer that is listened on: one that already
// is, else the first free port.
func (v *visit) listen(ctx context.Context, issuer Issuer) (string, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	uri := func(l *callbackListener) string {
		return "http://" + net.JoinHostPort(l.host, strconv.Itoa(int(l.port))) + callbackPath
	}
	for _, l := range v.listeners {
		if l.host == issuer.RedirectHost && (len(issuer.RedirectPorts) == 0 || slices.Contains(issuer.RedirectPorts, l.port)) {
			return uri(l), nil
		}
	}
	ports := issuer.RedirectPorts
	if len(ports) == 0 {
		ports = []uint16{0}
	}
	var faults []string
	for _, port := range ports {
		lns, err := listenLoopback(issuer.RedirectHost, port)
		if err != nil {
			if op, ok := errors.AsType[*net.OpError](err); ok {
				err = op.Err
			}
			faults = append(faults, fmt.Sprintf("%s port %d: %v", issuer.RedirectHost, port, err))
			continue
		}
		l := &callbackListener{host: issuer.RedirectHost, port: uint16(lns[0].Addr().(*net.TCPAddr).Port)}
		v.serveLocked(ctx, l, lns)
		return uri(l), nil
	}
	return "", &LoginError{Issuer: issuer.URL, Err: ErrPortTaken, Detail: strings.Join(faults, ", ")}
}

// listenLoopback listens on port, or any port for 0, of the addresses that host
// names. For localhost that is ::1 too, where there is one: a browser may try
// it first, and must not find another program there.
func listenLoopback(host string, port uint16) ([]net.Listener, error) {
	var last error
	for range portAttempts {
		v4, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
		if err != nil {
			return nil, err
		}
		if host != "localhost" || !hasLoopback6() {
			return []net.Listener{v4}, nil
		}
		v6, err := net.Listen("tcp6", net.JoinHostPort("::1", strconv.Itoa(v4.Addr().(*net.TCPAddr).Port)))
		if err == nil {
			return []net.Listener{v4, v6}, nil
		}
		v4.Close()
		if last = err; port != 0 {
			break
		}
	}
	return nil, last
}

func hasLoopback6() bool {
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err == nil {
		ln.Close()
	}
	return err == nil
}

// serveLocked serves l until stop.
func (v *visit) serveLocked(ctx context.Context, l *callbackListener, lns []net.Listener) {
	l.srv = &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { v.serve(ctx, l, w, r) }),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       10 * time.Second,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          log.New(io.Discard, "", 0), // what strangers on loopback do wrong
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew: // before Serve returns, so before running is waited for
				v.running.Add(1)
			case http.StateClosed, http.StateHijacked:
				v.running.Done()
			}
		},
	}
	v.listeners = append(v.listeners, l)
	for _, ln := range lns {
		v.running.Go(func() { l.srv.Serve(ln) })
	}
}

// stop ends every server, sending what is being sent.
func (v *visit) stop() {
	v.mu.Lock()
	listeners := v.listeners
	v.mu.Unlock()
	// Detached: the visit's context may be what ended it.
	ctx, cancel := context.WithTimeout(context.Background(), pageShutdown)
	defer cancel()
	for _, l := range listeners {
		l.srv.Shutdown(ctx)
		l.srv.Close()
	}
}

// serve answers one request to the callback server. ctx is the visit's: what
// was begun goes on if the browser hangs up.
func (v *visit) serve(ctx context.Context, l *callbackListener, w http.ResponseWriter, r *http.Request) {
	loginHeaders(w.Header())
	port := ":" + strconv.Itoa(int(l.port))
	switch {
	case r.Host != "127.0.0.1"+port && r.Host != "localhost"+port: // a name that was rebound to loopback
		http.Error(w, "wrong host", http.StatusForbidden)
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
	case r.URL.Path == callbackPath:
		v.serveCallback(ctx, w, r)
	case r.URL.Path == donePath:
		v.serveDone(w, r)
	default:
		http.Error(w, "not found", http.StatusNotFound)
	}
}

func (v *visit) serveCallback(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		http.Error(w, "the answer of the issuer cannot be read", http.StatusBadRequest)
		return
	}
	a := v.take(q["state"])
	if a == nil {
		v.b.cfg.Log.Debug("callback refused", "reason", "state")
		http.Error(w, "this is not the answer to a login that waits for one; go back to the terminal and begin again", http.StatusBadRequest)
		return
	}
	next, err := v.advance(ctx, a, q)
	if err != nil || next == nil {
		v.finish(err)
		// A redirect, so that neither code nor state stays in the address bar
		// and the history.
		http.Redirect(w, r, donePath+"?view="+v.view, http.StatusFound)
		return
	}
	v.mu.Lock()
	if !v.ended {
		v.current = next
	}
	v.mu.Unlock()
	http.Redirect(w, r, next.url(), http.StatusFound)
}

// take returns the authorization that waits for an answer with this state, and
// lets no second answer have it.
func (v *visit) take(state []string) *authorization {
	v.mu.Lock()
	defer v.mu.Unlock()
	a := v.current
	if a == nil || len(state) != 1 || subtle.ConstantTimeCompare([]byte(state[0]), []byte(a.state)) != 1 {
		return nil
	}
	v.current = nil
	return a
}

// advance works on one answer and returns where the browser goes next, nil for
// the last page.
func (v *visit) advance(ctx context.Context, a *authorization, q url.Values) (*authorization, error) {
	l := a.client
	for _, name := range []string{"code", "error", "error_description"} {
		if len(q[name]) > 1 { // RFC 6749 §3.1
			return nil, &LoginError{Issuer: l.issuer.URL, Err: ErrIssuerAnswer, Detail: name + " is given twice"}
		}
	}
	if err := a.checkSender(q); err != nil {
		return nil, err
	}
	if code := q.Get("error"); code != "" {
		if a.silent && wantsPerson(code) {
			v.emit(ctx, BrowserEvent{Kind: BrowserNext, Issuer: l.issuer.URL})
			return l.newAuthorization(a.redirect, false), nil
		}
		return nil, l.authorizeError(code, q.Get("error_description"))
	}
	code := q.Get("code")
	if code == "" {
		return nil, &LoginError{Issuer: l.issuer.URL, Err: ErrIssuerAnswer, Detail: "the browser brought no code"}
	}
	v.emit(ctx, BrowserEvent{Kind: BrowserCode, Issuer: l.issuer.URL})
	t, err := a.redeem(ctx, code)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	if !v.ended {
		v.tokens = append(v.tokens, t)
	}
	v.mu.Unlock()
	v.emit(ctx, BrowserEvent{Kind: BrowserLoggedIn, Issuer: l.issuer.URL, Person: t.String()})
	if v.next == nil {
		return nil, nil
	}
	work, cancel := context.WithTimeout(ctx, nextTimeout)
	cfg, err := v.next(work, t)
	cancel()
	if err != nil || cfg == nil {
		return nil, err
	}
	next, err := v.prepare(ctx, *cfg)
	if err != nil {
		return nil, err
	}
	v.emit(ctx, BrowserEvent{Kind: BrowserNext, Issuer: next.client.issuer.URL})
	return next, nil
}

func (v *visit) serveDone(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	page, first := v.page, !v.served
	ok := page != nil && subtle.ConstantTimeCompare([]byte(r.URL.Query().Get("view")), []byte(v.view)) == 1
	if ok {
		v.served = true
	}
	v.mu.Unlock()
	if !ok {
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Connection", "close") // the server ends now
	w.Write(page)
	if first {
		close(v.shown)
	}
}
