package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/zt-daemon/zt/auth"
)

const maxHead = 1 << 20 // bytes of an answer to GET /v1/head

// WrongNetworkError says that a relay serves another network than the one asked for.
type WrongNetworkError struct {
	Relay string
	Want  auth.NetworkID
	Got   auth.NetworkID
}

func (e *WrongNetworkError) Error() string {
	return fmt.Sprintf("relay %s serves network %s, not %s", e.Relay, e.Got, e.Want)
}

// Hint says what to do.
func (e *WrongNetworkError) Hint() string {
	return "compare the login line with the one the platform engineer gave out"
}

// FetchHead gets the head that a relay serves, with GET /v1/head. With a network
// id the relay's certificate need not be trusted, because the head proves itself
// against the id. With the zero id it must be valid for the relay's name: then it
// is all that vouches for the head, and a person is to confirm what it says.
// It takes at most ten seconds.
func FetchHead(ctx context.Context, relay string, id auth.NetworkID, cfg HTTPConfig) (*auth.Head, error) {
	u, err := relayURL(relay)
	if err != nil {
		return nil, err
	}
	verify := trustAnyone
	if id.IsZero() {
		verify = cfg.verifyRelay(relay, nil)
	}
	raw, err := get(ctx, relay, u.String()+"/v1/head", cfg.transport(verify))
	if err != nil {
		return nil, err
	}
	head, err := auth.ParseHead(raw)
	if err != nil {
		return nil, fmt.Errorf("head from %s: %w", relay, err)
	}
	if !id.IsZero() && head.Network != id {
		return nil, &WrongNetworkError{Relay: relay, Want: id, Got: head.Network}
	}
	return head, nil
}

// get reads a small answer from a relay.
func get(ctx context.Context, relay, url string, transport *http.Transport) ([]byte, error) {
	attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	defer transport.CloseIdleConnections()
	transport.DisableKeepAlives = true
	client := &http.Client{
		Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // a relay does not send elsewhere
		},
	}
	req, err := http.NewRequestWithContext(attempt, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("relay %s: %v", relay, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, dialError(ctx, relay, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, statusError(relay, resp)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxHead+1))
	if err != nil {
		return nil, dialError(ctx, relay, err)
	}
	if len(b) > maxHead {
		return nil, fmt.Errorf("relay %s: answer to %s of more than %d bytes", relay, req.URL.Path, maxHead)
	}
	return b, nil
}

// statusError says what a relay answered instead of what it should have. The
// body is another machine's text.
func statusError(relay string, resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
	err := fmt.Errorf("HTTP status %s", printable(resp.Status))
	if len(text) > 0 {
		err = fmt.Errorf("HTTP status %s: %s", printable(resp.Status), printable(string(text)))
	}
	return &UnreachableError{Relay: relay, Err: err}
}

// dialError types an error of reaching a relay: what the caller's context ended
// is its own, a certificate is named, and the rest is unreachable.
func dialError(ctx context.Context, relay string, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	if untrusted, ok := errors.AsType[*UntrustedError](err); ok {
		return untrusted
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v: %w", attemptTimeout, err)
	}
	return &UnreachableError{Relay: relay, Err: err}
}
