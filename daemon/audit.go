package daemon

import (
	"encoding/json"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/relay/wire"
)

// AuditEvent is one line of a node's audit log. Empty fields are left out. It
// never holds a token. Edge is the same at the laptop, the relay and the node.
type AuditEvent struct {
	Time        time.Time `json:"time"`
	Event       string    `json:"event"` // edge_opened, edge_ended, edge_refused, flow_began, flow_ended, flow_refused, policy_changed, policy_broken, access_requested
	Cluster     string    `json:"cluster,omitempty"`
	Node        string    `json:"node,omitempty"` // the node's overlay address
	Edge        string    `json:"edge,omitempty"`
	Issuer      string    `json:"issuer,omitempty"`
	UID         string    `json:"uid,omitempty"`
	Subject     string    `json:"subject,omitempty"`
	Name        string    `json:"name,omitempty"`
	Key         string    `json:"key,omitempty"` // the login key
	JTI         string    `json:"jti,omitempty"`
	SID         string    `json:"sid,omitempty"`
	Rule        string    `json:"rule,omitempty"`
	AccessGrant string    `json:"access_grant,omitempty"` // the name of the one that admits
	Port        uint16    `json:"port,omitempty"`
	In          int64     `json:"bytes_in,omitempty"`  // from the laptop
	Out         int64     `json:"bytes_out,omitempty"` // to the laptop
	Seconds     float64   `json:"seconds,omitempty"`   // of a flow; asked for
	Reason      string    `json:"reason,omitempty"`
	Detail      string    `json:"detail,omitempty"`
}

// who fills in an identity; nil leaves it out.
func (e AuditEvent) who(id *auth.Identity) AuditEvent {
	if id == nil {
		return e
	}
	e.Issuer, e.UID, e.Subject, e.Name = id.Issuer, id.UID, id.Subject, id.String()
	e.Key, e.JTI, e.SID = id.LoginKey.String(), id.JTI, id.SID
	return e
}

// on fills in an edge.
func (e AuditEvent) on(edge wire.EdgeID) AuditEvent {
	e.Edge = edge.String()
	return e
}

// An auditLog writes events as JSON lines. A line that cannot be written is
// reported once a minute and does not stop the service.
type auditLog struct {
	mu       sync.Mutex // guards w, reported
	w        io.Writer
	reported time.Time
	base     AuditEvent // what every line of this participant says
	log      *slog.Logger
}

func newAuditLog(w io.Writer, base AuditEvent, log *slog.Logger) *auditLog {
	return &auditLog{w: w, base: base, log: log}
}

func (a *auditLog) write(e AuditEvent) {
	if a.w == nil {
		return
	}
	e.Time, e.Cluster, e.Node = time.Now().UTC(), a.base.Cluster, a.base.Node
	line, err := json.Marshal(e)
	if err == nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		_, err = a.w.Write(append(line, '\n'))
	}
	if err != nil && time.Since(a.reported) > time.Minute {
		a.reported = time.Now()
		a.log.Error("audit line not written", "err", err)
	}
}
