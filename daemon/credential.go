package daemon

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

const (
	// ExecAPIVersion is the only version of the exec credential protocol spoken
	// here; client-go has it since Kubernetes 1.22.
	ExecAPIVersion = "client.authentication.k8s.io/v1"
	execKind       = "ExecCredential"

	// execInfoMaxBytes bounds KUBERNETES_EXEC_INFO: a CA bundle may be inside.
	execInfoMaxBytes = 1 << 20

	// CredentialMargin is how long before its end an ID token counts as over: a
	// request that carries it must still arrive.
	CredentialMargin = 10 * time.Second
)

// A CredentialResult is an ID token for one cluster's API server. The token
// never prints; take it out with Reveal.
type CredentialResult struct {
	IDToken Secret
	Expiry  time.Time // of the ID token; required
}

// CredentialRequest asks for the API server's ID token of one cluster.
type CredentialRequest struct {
	Network     string `json:"network,omitempty"` // network id; empty: the only one that has the cluster
	Cluster     string `json:"cluster"`
	Interactive bool   `json:"interactive"` // whether a person is there
}

// ExecInfo is what client-go says to an exec plugin.
type ExecInfo struct {
	Interactive bool   // standard input may be used to talk to a person
	Server      string // URL of the cluster, if provideClusterInfo is set
}

// ParseExecInfo reads KUBERNETES_EXEC_INFO. An empty text (kubectl did not
// start us: a person did) gives the zero value. Unknown fields are ignored,
// because newer versions of client-go may add some; an unknown version is an
// error. Attacker: whoever wrote the kubeconfig.
func ParseExecInfo(text string) (ExecInfo, error) {
	if text == "" {
		return ExecInfo{}, nil
	}
	if len(text) > execInfoMaxBytes {
		return ExecInfo{}, fmt.Errorf("KUBERNETES_EXEC_INFO is %d bytes, want at most %d", len(text), execInfoMaxBytes)
	}
	var in struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Spec       struct {
			Interactive bool `json:"interactive"`
			Cluster     *struct {
				Server string `json:"server"`
			} `json:"cluster"`
		} `json:"spec"`
	}
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		return ExecInfo{}, fmt.Errorf("KUBERNETES_EXEC_INFO: %v", err)
	}
	if in.Kind != execKind || in.APIVersion != ExecAPIVersion {
		return ExecInfo{}, NewLocalError(KindFailure, "run `zt-daemon kubeconfig` to write the entry anew",
			"KUBERNETES_EXEC_INFO asks for %q of %q, want %q of %q", in.Kind, in.APIVersion, execKind, ExecAPIVersion)
	}
	info := ExecInfo{Interactive: in.Spec.Interactive}
	if in.Spec.Cluster != nil {
		info.Server = in.Spec.Cluster.Server
	}
	return info, nil
}

// ExecCredential is the JSON that client-go reads, with a line feed. It holds
// the token: write it to the pipe and nowhere else. A token that is over, or
// will be within CredentialMargin of now, is an error: client-go would keep it
// and every request would fail.
func (c CredentialResult) ExecCredential(now time.Time) ([]byte, error) {
	token := c.IDToken.Reveal()
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return nil, NewLocalError(KindFailure, "", "the daemon gave no ID token")
	}
	end := c.Expiry.Add(-CredentialMargin)
	if !end.After(now) {
		return nil, NewLocalError(KindExpired, "run `zt-daemon login`, then try again",
			"the ID token for the API server expired %s", c.Expiry.UTC().Format(time.RFC3339))
	}
	type status struct {
		ExpirationTimestamp string `json:"expirationTimestamp"`
		Token               string `json:"token"`
	}
	b, err := json.Marshal(struct {
		APIVersion string   `json:"apiVersion"`
		Kind       string   `json:"kind"`
		Spec       struct{} `json:"spec"`
		Status     status   `json:"status"`
	}{ExecAPIVersion, execKind, struct{}{}, status{end.UTC().Format(time.RFC3339), token}})
	if err != nil {
		return nil, fmt.Errorf("write ExecCredential: %w", err)
	}
	return append(b, '\n'), nil
}
