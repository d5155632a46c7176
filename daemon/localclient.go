package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
)

// LocalClient asks the daemon of this person.
type LocalClient struct {
	socket string
	http   *http.Client
}

// ErrNotRunning says that no daemon answers on the socket.
var ErrNotRunning error = NewLocalError(KindNotRunning, "run `zt-daemon up`", "zt-daemon is not running")

// NewLocalClient connects to nothing yet. uid is who the daemon must be:
// normally os.Geteuid().
func NewLocalClient(socket string, uid int) *LocalClient {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, err
		}
		if err := checkPeer(c, uid); err != nil {
			c.Close()
			return nil, err
		}
		return c, nil
	}
	return &LocalClient{socket: socket, http: &http.Client{
		Transport:     &http.Transport{DialContext: dial, DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Status asks how things stand. It is also the question whether a daemon runs.
func (c *LocalClient) Status(ctx context.Context) (s Status, err error) {
	return s, c.ask(ctx, http.MethodGet, "status", nil, &s)
}

// Clusters lists the clusters of all networks.
func (c *LocalClient) Clusters(ctx context.Context) (all []ClusterStatus, err error) {
	return all, c.ask(ctx, http.MethodGet, "clusters", nil, &all)
}

// Whoami lists who the person is, network by network.
func (c *LocalClient) Whoami(ctx context.Context) (all []Whoami, err error) {
	return all, c.ask(ctx, http.MethodGet, "whoami", nil, &all)
}

// Logout ends one login, or all.
func (c *LocalClient) Logout(ctx context.Context, req LogoutRequest) error {
	return c.ask(ctx, http.MethodPost, "logout", req, nil)
}

// Credential asks for the ID token for one cluster's API server.
func (c *LocalClient) Credential(ctx context.Context, req CredentialRequest) (CredentialResult, error) {
	var reply credentialReply
	if err := c.ask(ctx, http.MethodPost, "credential", req, &reply); err != nil {
		return CredentialResult{}, err
	}
	return CredentialResult{IDToken: NewSecret(reply.IDToken), Expiry: reply.Expiry}, nil
}

// RequestAccess asks for access to one cluster.
func (c *LocalClient) RequestAccess(ctx context.Context, req AccessRequest) (result AccessRequestResult, err error) {
	return result, c.ask(ctx, http.MethodPost, "access", req, &result)
}

// Down ends the daemon. It may still run for a moment after that.
func (c *LocalClient) Down(ctx context.Context) error {
	return c.ask(ctx, http.MethodPost, "down", struct{}{}, nil)
}

// Login runs a login and calls event for each step, in order, from the
// caller's goroutine. When ctx ends, the daemon ends the login.
func (c *LocalClient) Login(ctx context.Context, req LoginRequest, event func(LoginEvent)) (LoginResult, error) {
	resp, err := c.send(ctx, http.MethodPost, "login", req)
	if err != nil {
		return LoginResult{}, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, localEventMaxBytes)
	for lines.Scan() {
		var e LoginEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return LoginResult{}, fmt.Errorf("the daemon's answer: %v", err)
		}
		switch {
		case e.Type == LoginFailed && e.Error != nil:
			return LoginResult{}, e.Error
		case e.Type == LoginDone && e.Result != nil:
			return *e.Result, nil
		default: // a type that this version does not know is skipped by event
			event(e)
		}
	}
	if err := ctx.Err(); err != nil {
		return LoginResult{}, err
	}
	if err := lines.Err(); err != nil {
		return LoginResult{}, fmt.Errorf("the daemon's answer: %w", err)
	}
	return LoginResult{}, NewLocalError(KindUnreachable, "run `zt-daemon status`, then try again", "the daemon ended during the login")
}

func (c *LocalClient) ask(ctx context.Context, method, what string, req, into any) error {
	resp, err := c.send(ctx, method, what, req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := readLimited(resp.Body, "the daemon's answer", localReplyMaxBytes)
	if err != nil {
		return err
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("the daemon's answer: %v", err)
	}
	return nil
}

// send returns an answer of status 200, whose body the caller closes, or the
// error that the daemon sent.
func (c *LocalClient) send(ctx context.Context, method, what string, req any) (*http.Response, error) {
	var body io.Reader
	if req != nil {
		b, err := json.Marshal(req)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+localHost+"/v1/"+what, body)
	if err != nil {
		return nil, err
	}
	if req != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(r)
	switch {
	case notListening(err):
		return nil, ErrNotRunning
	case errors.Is(err, context.DeadlineExceeded):
		return nil, NewLocalError(KindUnreachable, "run `zt-daemon down`, then try again; the daemon's log says more",
			"the daemon did not answer in time")
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("ask the daemon (%s): %w", c.socket, err)
	case resp.StatusCode == http.StatusOK:
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := readLimited(resp.Body, "the daemon's answer", localEventMaxBytes)
	if err != nil {
		return nil, err
	}
	var reply struct {
		Error *LocalError `json:"error"`
	}
	if err := json.Unmarshal(b, &reply); err != nil || reply.Error == nil || strings.TrimSpace(reply.Error.Message) == "" {
		return nil, fmt.Errorf("the daemon answered %s", resp.Status)
	}
	return nil, reply.Error
}

func notListening(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}
