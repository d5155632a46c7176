package issuer

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// User is a person that may log in. Every password is right.
type User struct {
	// Name is what is typed at the login page.
	Name string `json:"name"`
	// Subject is the sub claim; "" means "user-" and the name.
	Subject string `json:"subject,omitempty"`
	// DisplayName is the name claim.
	DisplayName string `json:"displayName,omitempty"`
	// Email and EmailVerified are the claims of scope email.
	Email         string   `json:"email,omitempty"`
	EmailVerified bool     `json:"emailVerified,omitempty"`
	Groups        []string `json:"groups,omitempty"`
	// Claims go into the ID token as they are (tid, oid, hd …).
	Claims map[string]any `json:"claims,omitempty"`
}

// DefaultUsers are alice, a developer, and bob, who is in no group.
func DefaultUsers() []User {
	return []User{
		{Name: "alice", DisplayName: "Alice Example", Email: "alice@example.test", EmailVerified: true, Groups: []string{"developers"}},
		{Name: "bob", DisplayName: "Bob Example", Email: "bob@example.test", EmailVerified: true},
	}
}

// PutUser adds a person, or replaces the one of that name: tokens issued from
// now on, refreshed ones too, say what u says.
func (i *Issuer) PutUser(u User) error {
	i.store.mu.Lock()
	defer i.store.mu.Unlock()
	return i.store.putUserLocked(u)
}

// SetGroups changes the groups of a person.
func (i *Issuer) SetGroups(name string, groups ...string) error {
	i.store.mu.Lock()
	defer i.store.mu.Unlock()
	u, ok := i.store.users[name]
	if !ok {
		return fmt.Errorf("no user %q", name)
	}
	u.Groups = slices.Clone(groups)
	i.store.users[name] = u
	return nil
}

// RemoveUser removes a person: browser sessions end, refresh tokens become
// invalid_grant. ID tokens that are out stay valid, as everywhere.
func (i *Issuer) RemoveUser(name string) {
	i.store.mu.Lock()
	defer i.store.mu.Unlock()
	delete(i.store.users, name)
	maps.DeleteFunc(i.store.sessions, func(_ string, s *session) bool { return s.user == name })
	maps.DeleteFunc(i.store.families, func(_ string, f *family) bool { return f.user == name })
}

// SignOut ends every browser session; refresh tokens stay.
func (i *Issuer) SignOut() {
	i.store.mu.Lock()
	defer i.store.mu.Unlock()
	clear(i.store.sessions)
}

// SwitchSessions makes every browser session that of another person, as when
// somebody logs in as another account in a second tab.
func (i *Issuer) SwitchSessions(name string) {
	i.store.mu.Lock()
	defer i.store.mu.Unlock()
	for _, s := range i.store.sessions {
		s.user = name
	}
}

func (s *store) putUserLocked(u User) error {
	if u.Name == "" {
		return errors.New("a user needs a name")
	}
	if u.Subject == "" {
		u.Subject = "user-" + u.Name
	}
	u.Groups = slices.Clone(u.Groups)
	u.Claims = maps.Clone(u.Claims)
	s.users[u.Name] = u
	return nil
}

// subject is the sub of u at a client.
func (s *store) subject(u User, clientID string) string {
	if s.config.PairwiseSubjects {
		return digest("pairwise", clientID, u.Subject)
	}
	return u.Subject
}

// digest is hex(SHA-256) over parts, each ended by a zero byte.
func digest(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))
}
