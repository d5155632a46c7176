package relay

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
)

// Status is a relay as its operator sees it.
type Status struct {
	URL      string            `json:"url"`
	Network  string            `json:"network,omitempty"` // empty: unclaimed
	Head     uint64            `json:"head_version,omitempty"`
	HeadEnds time.Time         `json:"head_expires,omitzero"`
	Key      key.RelayPublic   `json:"relay_key"`
	Pin      string            `json:"pin,omitempty"`
	Started  time.Time         `json:"started"`
	Sessions map[string]int    `json:"sessions"` // by kind
	Edges    int               `json:"edges"`
	Clusters map[string][]Node `json:"clusters"` // by name
	Issuers  map[string]string `json:"issuers"`  // "ok", or what is wrong with its keys
	Revoked  []Revocation      `json:"revocations"`
}

// RevokeResult says what a revocation cut.
type RevokeResult struct {
	Sessions int    `json:"sessions"`
	Edges    int    `json:"edges"`
	Warning  string `json:"warning,omitempty"` // it holds only until the relay restarts
}

// LocalError is the JSON body of an answer that is not 200.
type LocalError struct {
	Message string `json:"error"`
	Advice  string `json:"hint,omitempty"`
}

func (e *LocalError) Error() string { return e.Message }

// Hint says what to do.
func (e *LocalError) Hint() string { return e.Advice }

// ListenLocal listens on a Unix socket that only its owner may use. It takes the
// place of a socket that nobody answers.
func ListenLocal(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: another relay answers there", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
		os.Remove(path)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// local is the API of the operator's commands.
func (s *Server) local() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Status()) })
	mux.HandleFunc("GET /peers", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.hub.peers()) })
	mux.HandleFunc("POST /revoke", s.serveRevoke)
	mux.HandleFunc("GET /audit", s.serveAudit)
	return mux
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(v)
}

// Status tells how the relay is.
func (s *Server) Status() Status {
	st := Status{
		URL: s.cfg.URL, Key: s.Key(), Pin: s.Pin(), Started: s.started,
		Sessions: map[string]int{}, Clusters: map[string][]Node{}, Issuers: map[string]string{}, Revoked: []Revocation{},
	}
	s.documents.mu.RLock()
	if h := s.documents.head; h != nil {
		st.Network, st.Head, st.HeadEnds = h.Network.String(), h.Version, h.NotAfter
	}
	for name, r := range s.documents.records {
		if !r.Removed {
			st.Clusters[name] = []Node{}
		}
	}
	s.documents.mu.RUnlock()
	if v := s.verifier.Load(); v != nil {
		for _, k := range v.KeySets() {
			st.Issuers[k.Issuer] = issuerState(k)
		}
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	for kind, n := range s.hub.kinds {
		st.Sessions[kind] = n
	}
	for name := range st.Clusters {
		for _, n := range s.hub.nodesLocked(name) {
			st.Clusters[name] = append(st.Clusters[name], n.describe())
		}
	}
	st.Edges = len(s.hub.edges)
	st.Revoked = append(st.Revoked, s.hub.revoked...)
	return st
}

func issuerState(k auth.KeySetState) string {
	switch {
	case k.Err != nil && k.Loaded.IsZero():
		return "unreachable: " + k.Err.Error()
	case k.Err != nil:
		return fmt.Sprintf("keys of %s are kept: %v", k.Loaded.UTC().Format(time.RFC3339), k.Err)
	case k.Loaded.IsZero():
		return "not fetched yet"
	}
	return "ok"
}

func (s *Server) serveRevoke(w http.ResponseWriter, r *http.Request) {
	var in Revocation
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 16<<10))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		writeJSON(w, http.StatusBadRequest, &LocalError{Message: "revoke: " + err.Error()})
		return
	}
	sessions, edges, err := s.Revoke(in)
	if bad, ok := errors.AsType[*RevocationError](err); ok {
		writeJSON(w, http.StatusBadRequest, &LocalError{bad.Error(), bad.Hint()})
		return
	}
	out := RevokeResult{Sessions: sessions, Edges: edges}
	if err != nil {
		out.Warning = "it holds only until the relay restarts: " + err.Error()
	}
	writeJSON(w, http.StatusOK, out)
}

// serveAudit writes the newest lines, and with ?follow=1 those to come.
func (s *Server) serveAudit(w http.ResponseWriter, r *http.Request) {
	recent, lines, stop := s.audit.follow()
	defer stop()
	w.Header().Set("Content-Type", "application/jsonl")
	for _, line := range recent {
		if _, err := w.Write(line); err != nil {
			return
		}
	}
	if r.FormValue("follow") == "" {
		return
	}
	flush := http.NewResponseController(w)
	for {
		if err := flush.Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case line := <-lines:
			if _, err := w.Write(line); err != nil {
				return
			}
		}
	}
}
