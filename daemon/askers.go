package daemon

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth"
)

const (
	// accessRequestInterval is how often a person's request is written down.
	accessRequestInterval = time.Hour
	// maxAskers bounds the persons who are remembered; the oldest goes first.
	maxAskers = 4096
)

// requestableReasons are the refusals that an AccessGrant would end.
var requestableReasons = []auth.Reason{auth.ReasonClosed, auth.ReasonPolicy, auth.ReasonWindow, auth.ReasonLoginTooOld}

// askers remembers who asked for access when, so that nobody floods those who
// read it. The zero value remembers nobody.
type askers struct {
	mu    sync.Mutex // guards asked
	asked map[asker]time.Time
}

type asker struct{ issuer, uid string }

// allow notes that a person asks at now. Within accessRequestInterval of the last
// time that was allowed it returns that time and false.
func (a *askers) allow(id *auth.Identity, now time.Time) (last time.Time, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	who := asker{id.Issuer, id.UID}
	// A clock that was set back must not silence anybody for longer.
	if last, known := a.asked[who]; known && now.Sub(last) < accessRequestInterval && !now.Before(last) {
		return last, false
	}
	if a.asked == nil {
		a.asked = make(map[asker]time.Time)
	}
	if _, known := a.asked[who]; !known && len(a.asked) >= maxAskers {
		var oldest asker
		for k, t := range a.asked {
			if oldest == (asker{}) || t.Before(a.asked[oldest]) {
				oldest = k
			}
		}
		delete(a.asked, oldest)
	}
	a.asked[who] = now
	return now, true
}

// accessRequested writes down what a person who is refused asks for, and returns
// what they are told instead of the refusal. Only their own login key can have
// signed it: the relay that carried it is not believed.
func (n *Node) accessRequested(id *auth.Identity, o EdgeOffer, refused *auth.RefusedError) *auth.RefusedError {
	if len(o.AccessRequest) == 0 || id == nil || !slices.Contains(requestableReasons, refused.Reason) {
		return refused
	}
	now := wallClock()
	r, err := auth.ParseAccessRequest(o.AccessRequest)
	if err == nil {
		err = r.Verify(n.files.settings.Network, n.files.settings.Cluster, id, now)
	}
	if err != nil {
		n.log.Warn("access request not taken", "edge", o.ID, "subject", id, "err", err)
		told := *refused
		told.Detail += "; the request for access was not written down: " + err.Error()
		return &told
	}
	told := &auth.RefusedError{Reason: auth.ReasonRequested, HintText: fmt.Sprintf("an opener sees it with `zt-daemon requests %s`", n.files.settings.Cluster)}
	if n.kube == nil {
		told.Detail = "the node is in no pod: the request is in its audit log alone"
	}
	last, ok := n.askers.allow(id, now)
	if !ok {
		told.Detail = fmt.Sprintf("one is there from %s ago, and the next is written down in %s",
			auth.Duration(now.Sub(last).Round(time.Second)), auth.Duration(last.Add(accessRequestInterval).Sub(now).Round(time.Second)))
		return told
	}
	n.audit.write(AuditEvent{Event: "access_requested", Seconds: r.For.Seconds(), Reason: string(refused.Reason), Detail: r.Reason}.who(id).on(o.ID))
	n.log.Info("access requested", "edge", o.ID, "subject", id, "dur", r.For, "reason", r.Reason)
	n.recordEvent(AccessEvent{Name: id.String(), Issuer: id.Issuer, Subject: id.UID, For: auth.Duration(r.For), Reason: r.Reason}.event())
	return told
}
