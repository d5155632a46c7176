package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth"
)

// fakeLaptop answers as its functions say; nil ones give zero values.
type fakeLaptop struct {
	login      func(ctx context.Context, req LoginRequest, send func(LoginEvent)) (LoginResult, error)
	credential func(ctx context.Context, req CredentialRequest) (CredentialResult, error)
	status     func(ctx context.Context) (Status, error)
	logout     LogoutRequest // the latest
	down       chan struct{} // told of Down, if not nil
}

func (f *fakeLaptop) Status(ctx context.Context) (Status, error) {
	if f.status == nil {
		return Status{PID: 7, Version: "v1"}, nil
	}
	return f.status(ctx)
}

func (f *fakeLaptop) Clusters(context.Context) ([]ClusterStatus, error) { return nil, nil }
func (f *fakeLaptop) Whoami(context.Context) ([]Whoami, error) {
	return []Whoami{{Subject: "alice"}}, nil
}

func (f *fakeLaptop) Login(ctx context.Context, req LoginRequest, send func(LoginEvent)) (LoginResult, error) {
	return f.login(ctx, req, send)
}

func (f *fakeLaptop) Logout(_ context.Context, req LogoutRequest) error {
	f.logout = req
	return nil
}

func (f *fakeLaptop) Credential(ctx context.Context, req CredentialRequest) (CredentialResult, error) {
	return f.credential(ctx, req)
}

func (f *fakeLaptop) RequestAccess(_ context.Context, req AccessRequest) (AccessRequestResult, error) {
	return AccessRequestResult{Detail: fmt.Sprintf("%+v", req)}, nil
}

func (f *fakeLaptop) Down(context.Context) error {
	if f.down != nil {
		close(f.down)
	}
	return nil
}

// runLocal serves h until the test ends, or stop, and checks that nothing is left.
func runLocal(t *testing.T, h LocalHandler, uid int) (socket string, stop func()) {
	t.Helper()
	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" {
		t.Skip("peer credentials are not asked on this system yet")
	}
	checkLeaks(t)
	dir, err := os.MkdirTemp("", "zt-local-") // short: a socket's path may have 103 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "run", "daemon.sock")
	ln, err := ListenLocal(socket)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewLocalServer(LocalServerConfig{Handler: h, UID: uid})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, ln) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not return")
		}
	})
	t.Cleanup(stop)
	return socket, stop
}

func TestLocalAPI(t *testing.T) {
	expiry := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	h := &fakeLaptop{credential: func(_ context.Context, req CredentialRequest) (CredentialResult, error) {
		if req != (CredentialRequest{Network: "n", Cluster: "c1", Interactive: true}) {
			return CredentialResult{}, fmt.Errorf("request is %+v", req)
		}
		return CredentialResult{IDToken: NewSecret("a.b.c"), Expiry: expiry}, nil
	}}
	socket, _ := runLocal(t, h, os.Geteuid())
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket has mode %v, %v", info.Mode(), err)
	}
	if info, err := os.Stat(filepath.Dir(socket)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("its directory has mode %v, %v", info.Mode(), err)
	}
	c := NewLocalClient(socket, os.Geteuid())
	if s, err := c.Status(t.Context()); err != nil || s.PID != 7 {
		t.Errorf("status: %+v, %v", s, err)
	}
	if all, err := c.Clusters(t.Context()); err != nil || all == nil || len(all) != 0 {
		t.Errorf("clusters: %v, %v; want an empty list", all, err)
	}
	if all, err := c.Whoami(t.Context()); err != nil || len(all) != 1 || all[0].Subject != "alice" {
		t.Errorf("whoami: %v, %v", all, err)
	}
	if err := c.Logout(t.Context(), LogoutRequest{Network: "n"}); err != nil || h.logout.Network != "n" {
		t.Errorf("logout: %+v, %v", h.logout, err)
	}
	got, err := c.Credential(t.Context(), CredentialRequest{Network: "n", Cluster: "c1", Interactive: true})
	if err != nil || got.IDToken.Reveal() != "a.b.c" || !got.Expiry.Equal(expiry) {
		t.Errorf("credential: %v", err)
	}
	result, err := c.RequestAccess(t.Context(), AccessRequest{Network: "n", Cluster: "c1", For: auth.Duration(time.Hour), Reason: "disk full"})
	if err != nil || result != (AccessRequestResult{Detail: "{Network:n Cluster:c1 For:1h Reason:disk full}"}) {
		t.Errorf("access: %+v, %v", result, err)
	}
	if err := c.Down(t.Context()); err != nil {
		t.Errorf("down: %v", err)
	}
}

// What went wrong arrives as it was: kind, words, hint, exit code.
func TestLocalAPIErrors(t *testing.T) {
	var fail error
	h := &fakeLaptop{credential: func(context.Context, CredentialRequest) (CredentialResult, error) { return CredentialResult{}, fail }}
	socket, _ := runLocal(t, h, os.Geteuid())
	c := NewLocalClient(socket, os.Geteuid())
	for _, row := range []struct {
		name string
		err  error
		kind Kind
		code int
		hint bool
	}{
		{"plain", errors.New("disk is full"), KindFailure, 1, false},
		{"of the daemon", NewLocalError(KindNotLoggedIn, "log in", "nobody is logged in"), KindNotLoggedIn, 3, true},
		{"wrapped", fmt.Errorf("cluster c1: %w", NewLocalError(KindExpired, "log in", "over")), KindExpired, 3, true},
		{"policy", &auth.RefusedError{Reason: auth.ReasonPolicy, Detail: "group developers"}, KindDenied, 5, true},
		{"end of a grant", &auth.RefusedError{Reason: auth.ReasonExpired}, KindExpired, 3, true},
		{"another tenant", &auth.RefusedError{Reason: auth.ReasonRequire}, KindDenied, 5, true},
		{"no such cluster", &auth.RefusedError{Reason: auth.ReasonUnknownCluster}, KindUnknownCluster, 1, true},
		{"relay's words", &RefusedError{Reason: string(auth.ReasonRevoked)}, KindDenied, 5, true},
		{"relay away", &UnreachableError{Relay: "https://r", Err: errors.New("x")}, KindUnreachable, 4, true},
		{"dial", fmt.Errorf("x: %w", &net.OpError{Op: "dial", Err: errors.New("refused")}), KindUnreachable, 4, false},
		{"time", fmt.Errorf("x: %w", context.DeadlineExceeded), KindUnreachable, 4, false},
		{"login pressed cancel", &auth.LoginError{Issuer: "https://i", Err: auth.ErrLoginCancelled}, KindCancelled, 1, true},
		{"login not finished", &auth.LoginError{Issuer: "https://i", Err: auth.ErrLoginTimeout}, KindNotLoggedIn, 3, true},
		{"refresh token over", &auth.LoginError{Issuer: "https://i", Err: auth.ErrLoginExpired}, KindExpired, 3, true},
		{"issuer away", &auth.LoginError{Issuer: "https://i", Err: auth.ErrIssuerUnreachable}, KindUnreachable, 4, true},
		{"issuer refused", &auth.LoginError{Issuer: "https://i", Err: auth.ErrIssuerRefused}, KindFailure, 1, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			fail = row.err
			_, err := c.Credential(t.Context(), CredentialRequest{Cluster: "c1"})
			got, ok := errors.AsType[*LocalError](err)
			if !ok {
				t.Fatalf("got %v (%T)", err, err)
			}
			if got.Kind != row.kind || got.ExitCode() != row.code || got.Message != row.err.Error() || (got.Hint() != "") != row.hint {
				t.Errorf("got %+v, want kind %s, code %d, the text %q", got, row.kind, row.code, row.err)
			}
			if direct := AsLocalError(row.err); *direct != *got {
				t.Errorf("it is %+v without the socket", direct)
			}
		})
	}
	if AsLocalError(nil) != nil {
		t.Error("nil became an error")
	}
	for _, e := range []*LocalError{{Kind: KindDenied, Code: 0}, {Kind: KindDenied, Code: 77}} {
		if e.ExitCode() != ExitDenied {
			t.Errorf("exit code of %+v is %d", e, e.ExitCode())
		}
	}
	if code := (&LocalError{Kind: "of the future", Code: -1}).ExitCode(); code != ExitFailure {
		t.Errorf("exit code of an unknown kind is %d", code)
	}
}

func TestLocalClientFindsNoDaemon(t *testing.T) {
	dir := t.TempDir()
	if _, err := NewLocalClient(filepath.Join(dir, "none.sock"), os.Geteuid()).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no socket: got %v", err)
	}
	socket, stop := runLocal(t, &fakeLaptop{}, os.Geteuid())
	stop()
	if _, err := NewLocalClient(socket, os.Geteuid()).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a daemon that ended: got %v", err)
	}
	if ExitUnreachable != AsLocalError(ErrNotRunning).ExitCode() {
		t.Error("exit code of ErrNotRunning is not 4")
	}
}

// dialSocket sends a request as it stands and returns the answer's status and body.
func dialSocket(t *testing.T, socket, request string) (status int, body string) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, request)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("answer to %q: %v", request, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestLocalAPIRefusesRequests(t *testing.T) {
	asked := false
	h := &fakeLaptop{
		credential: func(context.Context, CredentialRequest) (CredentialResult, error) {
			asked = true
			return CredentialResult{}, errors.New("x")
		},
		status: func(context.Context) (Status, error) { asked = true; return Status{}, nil },
	}
	socket, _ := runLocal(t, h, os.Geteuid())
	const host = "Host: " + localHost + "\r\nConnection: close\r\n"
	post := func(path, headers, body string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n%s", path, host, headers, len(body), body)
	}
	const isJSON = "Content-Type: application/json\r\n"
	for _, row := range []struct {
		name, request string
		status        int
	}{
		{"wrong host", "GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 403},
		{"host with a port", "GET /v1/status HTTP/1.1\r\nHost: " + localHost + ":80\r\nConnection: close\r\n\r\n", 403},
		{"no host", "GET /v1/status HTTP/1.0\r\n\r\n", 403},
		{"origin", "GET /v1/status HTTP/1.1\r\n" + host + "Origin: null\r\n\r\n", 403},
		{"referer", "GET /v1/status HTTP/1.1\r\n" + host + "Referer: http://a/\r\n\r\n", 403},
		{"fetch metadata", "GET /v1/status HTTP/1.1\r\n" + host + "Sec-Fetch-Site: same-origin\r\n\r\n", 403},
		{"forwarded", "GET /v1/status HTTP/1.1\r\n" + host + "X-Forwarded-For: 10.0.0.1\r\n\r\n", 403},
		{"other path", "GET /v2/status HTTP/1.1\r\n" + host + "\r\n", 404},
		{"other method", "DELETE /v1/status HTTP/1.1\r\n" + host + "\r\n", 404},
		{"get what changes", "GET /v1/down HTTP/1.1\r\n" + host + "\r\n", 404},
		{"a form", post("/v1/credential", "Content-Type: application/x-www-form-urlencoded\r\n", "a=b"), 400},
		{"no content type", post("/v1/credential", "", `{"cluster":"c1"}`), 400},
		{"unknown field", post("/v1/credential", isJSON, `{"cluster":"c1","admin":true}`), 400},
		{"two values", post("/v1/credential", isJSON, `{"cluster":"c1"}{}`), 400},
		{"not JSON", post("/v1/credential", isJSON, `{`), 400},
		{"too large", post("/v1/credential", isJSON, `{"cluster":"`+strings.Repeat("x", localBodyMaxBytes)+`"}`), 400},
		{"login, not JSON", post("/v1/login", isJSON, `[`), 400},
	} {
		t.Run(row.name, func(t *testing.T) {
			status, body := dialSocket(t, socket, row.request)
			// The mux answers a known path with another method by itself.
			if status != row.status && !(row.status == 404 && status == 405) {
				t.Errorf("status is %d, want %d: %s", status, row.status, body)
			}
			if asked {
				t.Error("the handler was asked")
			}
		})
	}
}

func TestLocalAPIRefusesAnotherUser(t *testing.T) {
	// The server's side: our own connection, to a server of another user.
	socket, _ := runLocal(t, &fakeLaptop{}, os.Geteuid()+1)
	if s, err := NewLocalClient(socket, os.Geteuid()).Status(t.Context()); err == nil || errors.Is(err, ErrNotRunning) {
		t.Errorf("got %+v, %v; want a refusal", s, err)
	}
	// The client's side: a daemon that is not ours is not asked.
	socket, _ = runLocal(t, &fakeLaptop{}, os.Geteuid())
	if _, err := NewLocalClient(socket, os.Geteuid()+1).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "not user") {
		t.Errorf("got %v, want the other user named", err)
	}
}

func TestListenLocal(t *testing.T) {
	dir, err := os.MkdirTemp("", "zt-local-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if _, err := ListenLocal(filepath.Join(dir, strings.Repeat("x", 100), "daemon.sock")); err == nil || AsLocalError(err).Hint() == "" {
		t.Errorf("a path that is too long: got %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenLocal(file); err == nil || readFile(t, file) != "precious" {
		t.Errorf("a file in the way: got %v", err)
	}
	// What a dead daemon left is replaced.
	socket := filepath.Join(dir, "daemon.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	ln, err := ListenLocal(socket)
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
}

func TestLocalLogin(t *testing.T) {
	until := time.Now().Add(time.Minute).UTC().Truncate(time.Second)
	h := &fakeLaptop{login: func(_ context.Context, req LoginRequest, send func(LoginEvent)) (LoginResult, error) {
		send(LoginEvent{Type: LoginStep, Message: "step one"})
		send(LoginEvent{Type: LoginBrowser, URL: "https://" + req.Network, Until: until})
		return LoginResult{Whoami: Whoami{Subject: "alice"}, Clusters: []ClusterStatus{{Name: "c1"}}}, nil
	}}
	socket, _ := runLocal(t, h, os.Geteuid())
	c := NewLocalClient(socket, os.Geteuid())
	var events []LoginEvent
	result, err := c.Login(t.Context(), LoginRequest{Relay: "https://r", Network: "n"}, func(e LoginEvent) { events = append(events, e) })
	if err != nil || result.Whoami.Subject != "alice" || len(result.Clusters) != 1 {
		t.Fatalf("got %+v, %v", result, err)
	}
	if len(events) != 2 || events[0].Message != "step one" || events[1].URL != "https://n" || !events[1].Until.Equal(until) {
		t.Errorf("events are %+v", events)
	}
	h.login = func(context.Context, LoginRequest, func(LoginEvent)) (LoginResult, error) {
		return LoginResult{}, NewLocalError(KindDenied, "ask", "no rule admits you")
	}
	_, err = c.Login(t.Context(), LoginRequest{}, func(LoginEvent) {})
	if e, ok := errors.AsType[*LocalError](err); !ok || e.Kind != KindDenied || e.Hint() != "ask" {
		t.Errorf("got %v", err)
	}
}

// Ctrl-C at the command ends the login in the daemon; so does the daemon's end.
func TestLocalLoginIsCancelled(t *testing.T) {
	began, ended := make(chan struct{}, 2), make(chan error, 2)
	h := &fakeLaptop{login: func(ctx context.Context, _ LoginRequest, send func(LoginEvent)) (LoginResult, error) {
		send(LoginEvent{Type: LoginStep, Message: "waiting"})
		began <- struct{}{}
		<-ctx.Done()
		ended <- ctx.Err()
		return LoginResult{}, ctx.Err()
	}}
	socket, stop := runLocal(t, h, os.Geteuid())
	c := NewLocalClient(socket, os.Geteuid())

	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Login(ctx, LoginRequest{}, func(LoginEvent) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	receive(t, began, "the login begins")
	receive(t, ended, "the login ends with the command")

	failed := make(chan error, 1)
	go func() {
		_, err := c.Login(context.Background(), LoginRequest{}, func(LoginEvent) {})
		failed <- err
	}()
	receive(t, began, "the second login begins")
	stop()
	receive(t, ended, "the login ends with the daemon")
	if err := receive(t, failed, "the command ends"); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want to be told that the daemon ended", err)
	}
}

// An answer under way when the daemon ends is still given; one that hangs is cut.
func TestLocalServerStops(t *testing.T) {
	inside, release := make(chan struct{}), make(chan struct{})
	h := &fakeLaptop{status: func(ctx context.Context) (Status, error) {
		close(inside)
		<-release
		return Status{PID: 9}, nil
	}}
	socket, stop := runLocal(t, h, os.Geteuid())
	got := make(chan Status, 1)
	go func() {
		s, _ := NewLocalClient(socket, os.Geteuid()).Status(context.Background())
		got <- s
	}()
	<-inside
	stopped := make(chan struct{})
	go func() { defer close(stopped); stop() }()
	time.Sleep(50 * time.Millisecond)
	close(release)
	if s := receive(t, got, "the answer"); s.PID != 9 {
		t.Errorf("got %+v", s)
	}
	receive(t, stopped, "the server stops")

	hung := make(chan struct{})
	h = &fakeLaptop{status: func(ctx context.Context) (Status, error) {
		close(hung)
		<-ctx.Done()
		return Status{}, ctx.Err()
	}}
	socket, stop = runLocal(t, h, os.Geteuid())
	go func() {
		s, _ := NewLocalClient(socket, os.Geteuid()).Status(context.Background())
		got <- s
	}()
	<-hung
	stop() // within 10 s
	receive(t, got, "the cut answer")
}

// Attacker: a process of the same person that speaks to the socket, and a
// daemon of another version.
func FuzzLocalJSON(f *testing.F) {
	for _, seed := range []string{
		`{"cluster":"c1","interactive":true}`, `{"relay":"https://r","network":"n"}`, `{}`, `[]`, `{"cluster":1}`,
		`{"type":"browser","url":"https://a","until":"2030-01-01T00:00:00Z"}`, `{"type":"error","error":{"kind":"denied","message":"m","exitCode":5}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, into := range []any{new(CredentialRequest), new(LoginRequest), new(LogoutRequest), new(struct{})} {
			if decodeLocal(b, into) == nil && len(b) > 0 {
				again, err := json.Marshal(into)
				if err != nil {
					t.Fatal(err)
				}
				if err := decodeLocal(again, into); err != nil {
					t.Errorf("%q became %q: %v", b, again, err)
				}
			}
		}
		var e LoginEvent
		if json.Unmarshal(b, &e) == nil && e.Error != nil {
			if code := e.Error.ExitCode(); code < ExitFailure || code > ExitDenied {
				t.Errorf("exit code %d", code)
			}
		}
		// A login's stream, whole: the client ends and does not panic.
		c := &LocalClient{http: &http.Client{Transport: answerWith(b)}}
		c.Login(t.Context(), LoginRequest{}, func(LoginEvent) {})
		c.Credential(t.Context(), CredentialRequest{})
	})
}

// answerWith answers every request with these bytes.
type answerWith []byte

func (a answerWith) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(a)), Request: r}, nil
}
