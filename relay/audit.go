package relay

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

const (
	auditRecent = 1000 // lines kept in memory for `zt-relay audit`
	auditQueue  = 1024 // lines that the disk, or a follower, may lag behind
)

// Event is one line of the audit log: a login, an edge, a refusal, an act of an
// administrator. It never holds a token. Texts may come from strangers; JSON
// escapes them.
type Event struct {
	Time     time.Time           `json:"time"`
	Event    string              `json:"event"` // see the Event constants
	Kind     string              `json:"kind,omitempty"`
	Session  string              `json:"session,omitempty"` // the relay's number of the session
	Remote   string              `json:"remote,omitempty"`  // TCP address of the session
	Peer     key.WireGuardPublic `json:"peer,omitzero"`
	Issuer   string              `json:"issuer,omitempty"`
	Subject  string              `json:"subject,omitempty"`
	UID      string              `json:"uid,omitempty"`
	Name     string              `json:"name,omitempty"` // for people: e-mail, name or subject
	SID      string              `json:"sid,omitempty"`
	JTI      string              `json:"jti,omitempty"`
	LoginKey key.LoginPublic     `json:"login_key,omitzero"`
	Cluster  string              `json:"cluster,omitempty"`
	Node     key.WireGuardPublic `json:"node,omitzero"`
	Edge     wire.EdgeID         `json:"edge,omitzero"`
	Expires  time.Time           `json:"lease_expires,omitzero"`
	Sent     uint64              `json:"bytes_to_node,omitempty"`   // sealed bytes
	Received uint64              `json:"bytes_from_node,omitempty"` // sealed bytes
	Seconds  float64             `json:"dur,omitempty"`             // seconds
	Reason   string              `json:"reason,omitempty"`
	Detail   string              `json:"detail,omitempty"`
}

// What an audit line tells of.
const (
	EventLogin        = "login"         // a grant was admitted
	EventRefused      = "refused"       // a grant, statement, claim, document or edge was not
	EventSessionEnd   = "session_end"   // an admitted session ended
	EventEdgeOpen     = "edge_open"     // a node consented
	EventEdgeKept     = "edge_kept"     // both sides came back with it
	EventEdgeClose    = "edge_close"    // it ended for good
	EventClaim        = "claim"         // the relay got its first head
	EventDocument     = "document"      // a head or record was stored
	EventRevoke       = "revoke"        // an administrator revoked logins
	EventAdminSession = "admin_session" // somebody proved the network's or a signer's key
)

// audit takes events from anywhere without making anybody wait, writes them in
// one goroutine, and keeps the newest for whoever asks.
type audit struct {
	w        io.Writer // may be nil
	log      *slog.Logger
	failures prometheus.Counter
	queue    chan Event

	mu        sync.Mutex // guards what follows
	recent    [][]byte   // newest last
	followers map[chan []byte]struct{}
}

func newAudit(w io.Writer, log *slog.Logger, failures prometheus.Counter) *audit {
	return &audit{w: w, log: log, failures: failures, queue: make(chan Event, auditQueue), followers: map[chan []byte]struct{}{}}
}

// write queues one line; a full queue loses it, which is counted.
func (a *audit) write(e Event) {
	select {
	case a.queue <- e:
	default:
		a.failures.Inc()
	}
}

// run writes lines until stop is closed and the queue is empty. A full disk does
// not stop the relay.
func (a *audit) run(stop <-chan struct{}) {
	var warned time.Time
	for {
		var e Event
		select {
		case e = <-a.queue:
		default:
			select {
			case e = <-a.queue:
			case <-stop:
				return
			}
		}
		line, err := json.Marshal(e)
		if err == nil {
			line = append(line, '\n')
			a.publish(line)
			if a.w != nil {
				_, err = a.w.Write(line)
			}
		}
		if err != nil {
			a.failures.Inc()
			if time.Since(warned) > time.Minute {
				warned = time.Now()
				a.log.Error("audit line was not written", "event", e.Event, "err", err)
			}
		}
	}
}

func (a *audit) publish(line []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.recent) == auditRecent {
		copy(a.recent, a.recent[1:])
		a.recent = a.recent[:auditRecent-1]
	}
	a.recent = append(a.recent, line)
	for f := range a.followers {
		select {
		case f <- line:
		default: // it lags: it loses this line, nobody waits
		}
	}
}

// follow returns the newest lines and a channel of those to come; stop ends it.
func (a *audit) follow() (recent [][]byte, lines <-chan []byte, stop func()) {
	f := make(chan []byte, auditQueue)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.followers[f] = struct{}{}
	return append([][]byte(nil), a.recent...), f, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.followers, f)
	}
}

// An AuditFile is an append-only file which, when it has grown too large, becomes
// NAME.1, that one NAME.2, and so on. It is safe for concurrent use.
type AuditFile struct {
	path    string
	maxSize int64
	keep    int

	mu   sync.Mutex // guards what follows
	f    *os.File
	size int64
}

// OpenAuditFile opens or makes path, mode 0600. maxSize is in bytes; keep is how
// many full files stay.
func OpenAuditFile(path string, maxSize int64, keep int) (*AuditFile, error) {
	a := &AuditFile{path: path, maxSize: maxSize, keep: keep}
	if err := a.open(); err != nil {
		return nil, fmt.Errorf("audit file: %w", err)
	}
	return a, nil
}

func (a *AuditFile) open() error {
	f, err := os.OpenFile(a.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	a.f, a.size = f, info.Size()
	return nil
}

// Write appends whole lines.
func (a *AuditFile) Write(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.size > 0 && a.size+int64(len(b)) > a.maxSize {
		if err := a.rotateLocked(); err != nil {
			return 0, err
		}
	}
	n, err := a.f.Write(b)
	a.size += int64(n)
	return n, err
}

func (a *AuditFile) rotateLocked() error {
	for i := a.keep; i > 0; i-- {
		from := a.path
		if i > 1 {
			from = fmt.Sprintf("%s.%d", a.path, i-1)
		}
		if err := os.Rename(from, fmt.Sprintf("%s.%d", a.path, i)); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	old := a.f
	if err := a.open(); err != nil {
		return err
	}
	return old.Close()
}

// Close closes the file.
func (a *AuditFile) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.f.Close()
}
