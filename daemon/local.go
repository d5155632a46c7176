package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/zt-daemon/zt/auth"
)

// LocalHandler is what stands behind the daemon's own API. Every error may be
// shown to the person; *LocalError, *auth.RefusedError and errors with a Hint
// keep what they say. Methods are called concurrently and must end with ctx,
// which is done when the asking command goes away.
type LocalHandler interface {
	Status(ctx context.Context) (Status, error)
	Clusters(ctx context.Context) ([]ClusterStatus, error)
	Whoami(ctx context.Context) ([]Whoami, error)
	// Login runs one login and returns when the clusters are known and their
	// listeners are open. send must not be called after it returned; done and
	// error events are made from its result.
	Login(ctx context.Context, req LoginRequest, send func(LoginEvent)) (LoginResult, error)
	Logout(ctx context.Context, req LogoutRequest) error
	Credential(ctx context.Context, req CredentialRequest) (CredentialResult, error)
	// RequestAccess asks whoever may open a cluster to do so.
	RequestAccess(ctx context.Context, req AccessRequest) (AccessRequestResult, error)
	// Down begins to end the daemon and returns before it has ended.
	Down(ctx context.Context) error
}

// Status is what `zt-daemon status` shows.
type Status struct {
	PID      int             `json:"pid"`
	Version  string          `json:"version"`
	Started  time.Time       `json:"started"`
	StateDir string          `json:"stateDir"`
	Networks []NetworkStatus `json:"networks"`
	// Warnings are sentences a person should read: a clock that is wrong, a head
	// that is past its date.
	Warnings []string `json:"warnings,omitempty"`
}

// NetworkStatus is one network of this laptop.
type NetworkStatus struct {
	Network  string          `json:"network"` // id
	Person   string          `json:"person,omitempty"`
	LoggedIn bool            `json:"loggedIn"`
	Ends     time.Time       `json:"ends,omitzero"` // of the grant
	Addr     string          `json:"overlayAddr,omitempty"`
	Relays   []RelayStatus   `json:"relays"`
	Clusters []ClusterStatus `json:"clusters"`
}

// RelayStatus is a session with one relay.
type RelayStatus struct {
	URL       string        `json:"url"`
	Connected bool          `json:"connected"`
	Path      string        `json:"path,omitempty"` // "udp" or "tcp"
	RTT       time.Duration `json:"rttNanoseconds,omitempty"`
	Since     time.Time     `json:"since,omitzero"`
	Err       string        `json:"error,omitempty"` // why not, in words
}

// ClusterStatus is one cluster of a network.
type ClusterStatus struct {
	Name    string `json:"name"`
	Network string `json:"network"` // id
	Server  string `json:"server"`  // https://127.0.0.1:PORT
	Port    uint16 `json:"port"`
	// State is "ready" (an edge is up), "idle" (none is needed yet),
	// "connecting", "refused" or "unreachable".
	State    string        `json:"state"`
	Err      string        `json:"error,omitempty"` // of the last attempt, in words
	Node     string        `json:"node,omitempty"`  // overlay address of the node in use
	Since    time.Time     `json:"since,omitzero"`  // of State
	TLSName  string        `json:"tlsName"`
	CA       string        `json:"ca"` // PEM, one or more certificates
	KeepUser bool          `json:"keepUser,omitempty"`
	Listener ListenerStats `json:"listener"`
	Nodes    []ClusterNode `json:"nodes,omitempty"`      // as a relay tells it; only in answer to Clusters
	NodesErr string        `json:"nodesError,omitempty"` // why it does not
}

// Cluster states.
const (
	ClusterReady       = "ready"
	ClusterIdle        = "idle"
	ClusterConnecting  = "connecting"
	ClusterRefused     = "refused"
	ClusterUnreachable = "unreachable"
)

// Whoami is who one network's grant says the person is.
type Whoami struct {
	Network  string    `json:"network"`
	Issuer   string    `json:"issuer"`
	Subject  string    `json:"subject"`
	Name     string    `json:"name,omitempty"`
	Email    string    `json:"email,omitempty"`
	Groups   []string  `json:"groups,omitempty"`
	AuthTime time.Time `json:"authTime,omitzero"`
	Ends     time.Time `json:"ends"`
	Expired  bool      `json:"expired"`
	LoginKey string    `json:"loginKey"` // public half
	Addr     string    `json:"overlayAddr"`
}

// LoginRequest asks for a login to one network.
type LoginRequest struct {
	Relay   string `json:"relay"`   // https://host[:port]
	Network string `json:"network"` // id; the head must prove to be its
}

// LogoutRequest ends the login to one network; an empty id means to all.
type LogoutRequest struct {
	Network string `json:"network,omitempty"`
}

// LoginEventType says which fields of a LoginEvent are set.
type LoginEventType string

const (
	// LoginStep: Message says what is being done now.
	LoginStep LoginEventType = "step"
	// LoginBrowser: the person must open URL before Until.
	LoginBrowser LoginEventType = "browser"
	// LoginWarning: Message is something the person should know.
	LoginWarning LoginEventType = "warning"
	// LoginDone: Result says who logged in. The last event.
	LoginDone LoginEventType = "done"
	// LoginFailed: Error says why. The last event.
	LoginFailed LoginEventType = "error"
)

// LoginEvent is one line of a login's progress.
type LoginEvent struct {
	Type    LoginEventType `json:"type"`
	Message string         `json:"message,omitempty"`
	URL     string         `json:"url,omitempty"`
	Until   time.Time      `json:"until,omitzero"`
	Result  *LoginResult   `json:"result,omitempty"`
	Error   *LocalError    `json:"error,omitempty"`
}

// LoginResult is what a login came to.
type LoginResult struct {
	Whoami   Whoami          `json:"whoami"`
	Clusters []ClusterStatus `json:"clusters"`
}

// AccessRequest asks to be let into a cluster that refuses the person.
type AccessRequest struct {
	Network string        `json:"network,omitempty"` // network id; empty: the only one that has the cluster
	Cluster string        `json:"cluster"`
	For     auth.Duration `json:"for"`
	Reason  string        `json:"reason"`
}

// AccessRequestResult is what an access request came to.
type AccessRequestResult struct {
	Admitted bool   `json:"admitted"`         // there is nothing to ask for
	Detail   string `json:"detail,omitempty"` // the node's words; may be empty
}

// What both ends of the Unix socket agree on.
const (
	// localHost is the only Host that is answered: a page of a browser that was
	// led to the socket by some proxy cannot say it.
	localHost = "zt-daemon.invalid"

	localBodyMaxBytes  = 64 << 10 // of a request
	localReplyMaxBytes = 16 << 20 // of an answer: a thousand clusters with their CAs
	localEventMaxBytes = 4 << 20  // of one login event
)

// credentialReply is CredentialResult on the socket; Secret does not marshal.
type credentialReply struct {
	IDToken string    `json:"idToken"`
	Expiry  time.Time `json:"expiry"`
}

// decodeLocal reads exactly one JSON value with known fields. An empty body is
// the zero value.
func decodeLocal(b []byte, into any) error {
	if len(b) == 0 {
		return nil
	}
	if err := unmarshalStrict(b, into); err != nil {
		return NewLocalError(KindUsage, "use the zt-daemon command of the same version as the daemon", "request: %v", err)
	}
	return nil
}

func unmarshalStrict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("bytes after the JSON value")
	}
	return nil
}
