package relay

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
)

// A Revocation refuses logins that were made up to a moment: of one person, by
// issuer and uid, or of one login key.
type Revocation struct {
	Issuer string          `json:"issuer,omitempty"`
	UID    string          `json:"uid,omitempty"`
	Key    key.LoginPublic `json:"key,omitzero"`
	Before time.Time       `json:"before"` // logins up to then
	Until  time.Time       `json:"until"`  // no grant of such a login lives longer
}

// A RevocationError is a revocation that names nobody.
type RevocationError struct{ Detail string }

func (e *RevocationError) Error() string { return "revoke: " + e.Detail }

// Hint says what to type.
func (*RevocationError) Hint() string {
	return "name a person with --uid U --issuer I, or a login key with --key K; `zt-relay peers -o json` shows them"
}

// maxRevocations bounds the file; it is emptied by time.
const maxRevocations = 10_000

// revokee is what a revocation may match.
type revokee struct {
	issuer, uid string
	key         key.LoginPublic
	login       time.Time
}

func revokeeOf(id *auth.Identity) *revokee {
	if id == nil {
		return nil
	}
	return &revokee{id.Issuer, id.UID, id.LoginKey, id.IssuedAt}
}

func (r Revocation) matches(who *revokee) bool {
	return r.names(who) && !who.login.After(r.Before)
}

// names reports whether r means that person or key, whenever they logged in.
func (r Revocation) names(who *revokee) bool {
	if who == nil {
		return false
	}
	if !r.Key.IsZero() {
		return r.Key == who.key
	}
	return r.Issuer == who.issuer && r.UID == who.uid
}

func (h *hub) refusedByRevocationLocked(id *auth.Identity) *auth.RefusedError {
	who := revokeeOf(id)
	for _, r := range h.revoked {
		if r.matches(who) {
			return &auth.RefusedError{Reason: auth.ReasonRevoked, Detail: fmt.Sprintf("logins before %s", r.Before.UTC().Format(time.RFC3339))}
		}
	}
	return nil
}

// pruneRevocationsLocked forgets what no grant can outlive, unless the wall clock
// has left the monotonic one: a leap must not forget them for when it leaps back.
func (h *hub) pruneRevocationsLocked(now time.Time) {
	if leap := now.Round(0).Sub(h.began.Round(0)) - now.Sub(h.began); leap.Abs() > time.Minute {
		return
	}
	h.revoked = slices.DeleteFunc(h.revoked, func(r Revocation) bool { return !now.Before(r.Until) })
}

// revoke cuts who matches r and refuses them from now on. It returns how many
// sessions and edges were cut, and the revocations to store.
//
// now says that r means every login there is: one whose issuer's clock is ahead
// of this relay's too.
func (h *hub) revoke(r Revocation, now bool) (sessions, edges int, all []Revocation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now {
		for _, s := range h.snapshotLocked() {
			if who := revokeeOf(s.identity); r.names(who) && who.login.After(r.Before) {
				r.Before = who.login
			}
		}
		for _, e := range h.edges {
			if r.names(e.login) && e.login.login.After(r.Before) {
				r.Before = e.login.login
			}
		}
	}
	r.Until = r.Before.Add(auth.MaxGrantAge + time.Minute) // a minute: clocks
	h.revoked = append(h.revoked, r)
	why := &auth.RefusedError{Reason: auth.ReasonRevoked}
	for _, s := range h.snapshotLocked() {
		if r.matches(revokeeOf(s.identity)) {
			sessions++
			edges += len(s.edges)
			h.cutLocked(s, why)
		}
	}
	for _, e := range h.edges { // of a laptop that is away just now
		if r.matches(e.login) {
			edges++
			h.refuseLocked(e, string(why.Reason), "")
		}
	}
	return sessions, edges, slices.Clone(h.revoked)
}

// Revoke cuts the sessions and edges of a person or a login key at once, and
// refuses their logins made up to r.Before (zero: now). An error of type
// *StateError means that they are cut, but that a restart would forget it.
func (s *Server) Revoke(r Revocation) (sessions, edges int, err error) {
	now := s.now()
	every := r.Before.IsZero()
	switch {
	case r.Key.IsZero() && (r.Issuer == "" || r.UID == ""):
		return 0, 0, &RevocationError{"neither a person (issuer and uid) nor a login key is named"}
	case !r.Key.IsZero() && (r.Issuer != "" || r.UID != ""):
		return 0, 0, &RevocationError{"a person and a login key are named: revoke one after the other"}
	case r.Before.After(now):
		return 0, 0, &RevocationError{fmt.Sprintf("%s is in the future", r.Before.Format(time.RFC3339))}
	case r.Before.IsZero():
		r.Before = now
	}
	r.Before = r.Before.UTC()
	if !now.Before(r.Before.Add(auth.MaxGrantAge)) {
		return 0, 0, &RevocationError{fmt.Sprintf("logins of before %s are all over by now: a grant lives at most %s", r.Before.Format(time.RFC3339), auth.MaxGrantAge)}
	}
	s.revocationMu.Lock()
	defer s.revocationMu.Unlock()
	sessions, edges, all := s.hub.revoke(r, every)
	s.audit.write(Event{Time: now, Event: EventRevoke, Issuer: r.Issuer, UID: r.UID, LoginKey: r.Key,
		Detail: fmt.Sprintf("logins up to %s: %d sessions, %d edges cut", r.Before.Format(time.RFC3339), sessions, edges)})
	s.log.Info("revoked", "issuer", r.Issuer, "uid", r.UID, "login_key", r.Key, "before", r.Before, "sessions", sessions, "edges", edges)
	if len(all) > maxRevocations {
		err = &StateError{s.store.path(fileRevocations), errors.New("too many revocations"), "the oldest end within a day"}
	} else {
		err = s.store.writeJSON(fileRevocations, all)
	}
	if err != nil {
		s.metrics.storeFailures.Inc()
	}
	return sessions, edges, err
}

func (s *Server) loadRevocations() error {
	var all []Revocation
	if _, err := s.store.readJSON(fileRevocations, &all); err != nil {
		return err
	}
	s.hub.revoked = all
	s.hub.pruneRevocationsLocked(s.now())
	return nil
}
