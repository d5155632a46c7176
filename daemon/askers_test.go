package daemon

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
)

func TestAskers(t *testing.T) {
	var a askers
	now := time.Now()
	alice, bob := &auth.Identity{Issuer: "https://i", UID: "alice"}, &auth.Identity{Issuer: "https://i", UID: "bob"}
	other := &auth.Identity{Issuer: "https://j", UID: "alice"}
	for _, c := range []struct {
		name string
		id   *auth.Identity
		at   time.Duration
		ok   bool
	}{
		{"first", alice, 0, true},
		{"again", alice, time.Second, false},
		{"another person", bob, time.Second, true},
		{"of another issuer", other, time.Second, true},
		{"just before an hour", alice, time.Hour - 1, false},
		{"an hour later", alice, time.Hour, true},
		{"again after that", alice, time.Hour + time.Minute, false},
		{"a clock that was set back", alice, time.Minute, true},
	} {
		last, ok := a.allow(c.id, now.Add(c.at))
		if ok != c.ok || ok && !last.Equal(now.Add(c.at)) || !ok && now.Add(c.at).Sub(last) >= time.Hour {
			t.Errorf("%s: got %v, %v", c.name, last.Sub(now), ok)
		}
	}
	for i := range maxAskers + 10 {
		a.allow(&auth.Identity{Issuer: "https://i", UID: fmt.Sprint(i)}, now.Add(2*time.Hour+time.Duration(i)))
	}
	if len(a.asked) != maxAskers {
		t.Errorf("%d are remembered, want %d", len(a.asked), maxAskers)
	}
	if _, ok := a.allow(&auth.Identity{Issuer: "https://i", UID: fmt.Sprint(maxAskers + 9)}, now.Add(3*time.Hour)); ok {
		t.Error("the newest was forgotten")
	}
}

// TestAccessRequested: only what the person signed, for this cluster and not long
// ago, is written down, and only where an AccessGrant would help.
func TestAccessRequested(t *testing.T) {
	network, login, clusterKey := auth.IDOf(key.NewNetwork().Public()), key.NewLogin(), key.NewCluster()
	sign := func(cluster string, age time.Duration, k key.LoginPrivate) []byte {
		r, err := auth.SignAccessRequest(network, cluster, auth.AccessRequest{Issued: time.Now().Add(-age), For: 90 * time.Minute, Reason: "disk is full"}, k)
		if err != nil {
			t.Fatal(err)
		}
		return r.Append(nil)
	}
	alice := &auth.Identity{Issuer: "https://i", UID: "alice", Email: "alice@example.test", LoginKey: login.Public()}
	for name, c := range map[string]struct {
		id      *auth.Identity
		reason  auth.Reason
		request []byte
		told    auth.Reason
		text    string
	}{
		"closed":               {alice, auth.ReasonClosed, sign("c1", 0, login), auth.ReasonRequested, ""},
		"no rule":              {alice, auth.ReasonPolicy, sign("c1", 0, login), auth.ReasonRequested, ""},
		"outside the window":   {alice, auth.ReasonWindow, sign("c1", 0, login), auth.ReasonRequested, ""},
		"login too old":        {alice, auth.ReasonLoginTooOld, sign("c1", 0, login), auth.ReasonRequested, ""},
		"denied by name":       {alice, auth.ReasonDenied, sign("c1", 0, login), auth.ReasonDenied, ""},
		"no policy":            {alice, auth.ReasonNoPolicy, sign("c1", 0, login), auth.ReasonNoPolicy, ""},
		"who is not known":     {nil, auth.ReasonPolicy, sign("c1", 0, login), auth.ReasonPolicy, ""},
		"nothing asked":        {alice, auth.ReasonClosed, nil, auth.ReasonClosed, ""},
		"nonsense":             {alice, auth.ReasonClosed, []byte("please"), auth.ReasonClosed, "not written down: "},
		"for another cluster":  {alice, auth.ReasonClosed, sign("c2", 0, login), auth.ReasonClosed, "did not sign it for cluster c1"},
		"of another login key": {alice, auth.ReasonClosed, sign("c1", 0, key.NewLogin()), auth.ReasonClosed, "did not sign"},
		"kept back by a relay": {alice, auth.ReasonClosed, sign("c1", 11*time.Minute, login), auth.ReasonClosed, "signed 11m ago"},
	} {
		t.Run(name, func(t *testing.T) {
			var lines strings.Builder
			log := slog.New(slog.DiscardHandler)
			n := &Node{log: log, audit: newAuditLog(&lines, AuditEvent{Cluster: "c1"}, log)}
			n.files.settings.Network, n.files.settings.Cluster, n.files.key = network, "c1", clusterKey
			refused := &auth.RefusedError{Reason: c.reason, Detail: "as it was"}
			told := n.accessRequested(c.id, EdgeOffer{AccessRequest: c.request}, refused)
			if told.Reason != c.told || !strings.Contains(told.Detail, c.text) || refused.Detail != "as it was" {
				t.Errorf("told %s: %v", told.Reason, told)
			}
			wrote := strings.Contains(lines.String(), `"event":"access_requested"`)
			if wrote != (c.told == auth.ReasonRequested) {
				t.Errorf("audit log: %s", lines.String())
			}
			if wrote && !(strings.Contains(lines.String(), `"seconds":5400`) && strings.Contains(lines.String(), `"detail":"disk is full"`) && strings.Contains(lines.String(), `"uid":"alice"`)) {
				t.Errorf("audit log: %s", lines.String())
			}
		})
	}
}
