package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// AccessGrantAPI is the apiVersion of an AccessGrant.
	AccessGrantAPI = "access.zt-daemon.io/v1alpha1"
	// AccessGrantKind is its kind.
	AccessGrantKind = "AccessGrant"

	// MaxAccessGrantBytes caps one object, its metadata and status included; etcd
	// stores no more.
	MaxAccessGrantBytes = 3 << 19

	// DefaultAccessGrantDuration is how long an AccessGrant may be where the policy
	// does not say.
	DefaultAccessGrantDuration = Duration(8 * time.Hour)

	accessGrantMaxText  = 4096 // bytes of one field; the resource's schema allows 1,024 characters
	accessGrantMaxPorts = 16
)

// AccessGrant is a time-boxed opening, as a node reads it: an object that
// somebody with the right to do so has put into the cluster.
type AccessGrant struct {
	Name                   string
	Issuer, Subject, Group string // Subject (a uid) or Group; Issuer may be empty when the policy has one issuer
	Reason                 string
	NotBefore, NotAfter    time.Time // holds at the first, and not at the second
	Ports                  []uint16  // default 443
}

// accessGrantSpec is the part that a person writes.
type accessGrantSpec struct {
	Issuer    string    `json:"issuer"`
	Subject   string    `json:"subject"`
	Group     string    `json:"group"`
	Reason    string    `json:"reason"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	Ports     []uint16  `json:"ports"`
}

// ParseAccessGrant reads the JSON of one object. It is strict about spec: what
// this version does not understand could have narrowed it. metadata and status
// are the API server's and the nodes', and may hold anything.
//
// An object that is being deleted ends when its deletion was asked for, whatever
// finalizer still holds it.
func ParseAccessGrant(object []byte) (AccessGrant, error) {
	if len(object) > MaxAccessGrantBytes {
		return AccessGrant{}, fmt.Errorf("AccessGrant of %d bytes, want at most %d", len(object), MaxAccessGrantBytes)
	}
	var o struct {
		APIVersion string          `json:"apiVersion"`
		Kind       string          `json:"kind"`
		Metadata   json.RawMessage `json:"metadata"`
		Spec       accessGrantSpec `json:"spec"`
		Status     json.RawMessage `json:"status"`
	}
	if err := strictJSON(object, &o); err != nil {
		return AccessGrant{}, fmt.Errorf("AccessGrant: %v", err)
	}
	if o.APIVersion != AccessGrantAPI || o.Kind != AccessGrantKind {
		return AccessGrant{}, fmt.Errorf("AccessGrant: is a %q of %q, want %q of %q", o.Kind, o.APIVersion, AccessGrantKind, AccessGrantAPI)
	}
	var metadata struct {
		Name    string     `json:"name"`
		Deleted *time.Time `json:"deletionTimestamp"`
	}
	if len(o.Metadata) > 0 {
		if err := json.Unmarshal(o.Metadata, &metadata); err != nil {
			return AccessGrant{}, fmt.Errorf("AccessGrant: metadata: %v", err)
		}
	}
	g, err := o.Spec.named(metadata.Name)
	if err != nil {
		return AccessGrant{}, fmt.Errorf("AccessGrant: %v", err)
	}
	if t := metadata.Deleted; t != nil && t.Before(g.NotAfter) {
		g.NotAfter = *t
	}
	return g, nil
}

// named checks s and gives it its name.
func (s accessGrantSpec) named(name string) (AccessGrant, error) {
	if len(name) == 0 || len(name) > 253 { // a DNS subdomain, which the API server sees to
		return AccessGrant{}, errors.New("has no name")
	}
	for _, f := range []struct{ name, text string }{
		{"issuer", s.Issuer}, {"subject", s.Subject}, {"group", s.Group}, {"reason", s.Reason},
	} {
		if len(f.text) > accessGrantMaxText {
			return AccessGrant{}, fmt.Errorf("%s is longer than %d bytes", f.name, accessGrantMaxText)
		}
		if strings.Contains(f.text, replacementRune) { // two different names could read alike
			return AccessGrant{}, fmt.Errorf("%s holds a broken character", f.name)
		}
	}
	switch {
	case s.Subject == "" && s.Group == "":
		return AccessGrant{}, errors.New("names nobody: write a subject or a group")
	case s.Subject != "" && s.Group != "":
		return AccessGrant{}, errors.New("names a subject and a group: write two")
	case strings.TrimSpace(s.Reason) == "":
		return AccessGrant{}, errors.New("reason is missing")
	case s.NotBefore.IsZero():
		return AccessGrant{}, errors.New("notBefore is missing")
	case s.NotAfter.IsZero():
		return AccessGrant{}, errors.New("notAfter is missing")
	case !s.NotAfter.After(s.NotBefore):
		return AccessGrant{}, errors.New("notAfter is not later than notBefore")
	case s.Ports != nil && len(s.Ports) == 0:
		return AccessGrant{}, errors.New("ports is an empty list: leave it out for 443")
	case len(s.Ports) > accessGrantMaxPorts:
		return AccessGrant{}, fmt.Errorf("%d ports, want at most %d", len(s.Ports), accessGrantMaxPorts)
	}
	for n, port := range s.Ports {
		if port == 0 || slices.Contains(s.Ports[:n], port) {
			return AccessGrant{}, fmt.Errorf("port %d is zero or listed twice", port)
		}
	}
	if s.Ports == nil {
		s.Ports = slices.Clone(policyDefaultPorts)
	}
	return AccessGrant{
		Name: name, Issuer: s.Issuer, Subject: s.Subject, Group: s.Group, Reason: s.Reason,
		NotBefore: s.NotBefore, NotAfter: s.NotAfter, Ports: s.Ports,
	}, nil
}

// Active reports whether g's time is now.
func (g AccessGrant) Active(now time.Time) bool {
	return !now.Before(g.NotBefore) && now.Before(g.NotAfter)
}

// CheckAccessGrant says why g counts for nothing under p, whatever the time is;
// nil if it counts.
func (p *Policy) CheckAccessGrant(g AccessGrant) error {
	if g.Issuer == "" && len(p.Issuers) > 1 {
		return fmt.Errorf("names no issuer, and the policy has %d: write issuer", len(p.Issuers))
	}
	if g.Issuer != "" && !slices.ContainsFunc(p.Issuers, func(i Issuer) bool { return i.URL == g.Issuer }) {
		return fmt.Errorf("is of issuer %s, which is not one of the policy's", printable(g.Issuer))
	}
	if long, most := g.NotAfter.Sub(g.NotBefore), p.AccessGrantLimit(); long > most.Std() {
		return fmt.Errorf("lasts for %s, and the policy allows %s", aboutDuration(long), most)
	}
	return nil
}

// AccessGrantLimit is the longest AccessGrant that counts.
func (p *Policy) AccessGrantLimit() Duration {
	if d := p.AccessGrants.MaxDuration; d != 0 {
		return d
	}
	return DefaultAccessGrantDuration
}

// names reports whether g is about id, at whatever time.
func (g AccessGrant) names(id *Identity, p *Policy) bool {
	if g.Issuer == "" {
		if !slices.ContainsFunc(p.Issuers, func(i Issuer) bool { return i.URL == id.Issuer }) {
			return false
		}
	} else if g.Issuer != id.Issuer {
		return false
	}
	if g.Group != "" {
		return slices.Contains(id.Groups, g.Group)
	}
	return g.Subject != "" && g.Subject == id.UID
}

// accessGrantsOf are those about id, sorted into those that count and, of the
// others, the one to tell the person about. By what counts the decision is the
// same in whatever order they came: the one that ends last stands first.
func (p *Policy) accessGrantsOf(id *Identity, grants []AccessGrant) (mine []AccessGrant, faulty *accessGrantFault) {
	for _, g := range grants {
		if !g.names(id, p) {
			continue
		}
		if err := p.CheckAccessGrant(g); err == nil {
			mine = append(mine, g)
		} else if faulty == nil || g.NotAfter.After(faulty.grant.NotAfter) {
			faulty = &accessGrantFault{g, err}
		}
	}
	slices.SortFunc(mine, func(a, b AccessGrant) int {
		if c := b.NotAfter.Compare(a.NotAfter); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return mine, faulty
}

// accessGrantFault is an AccessGrant that counts for nothing, and why.
type accessGrantFault struct {
	grant AccessGrant
	err   error
}

// accessGrantNote tells a person who is refused about AccessGrants that name
// them: one that has not begun, one that does not count, or the last that ended.
// opens is zero unless one will begin.
func accessGrantNote(mine []AccessGrant, faulty *accessGrantFault, now time.Time) (note string, opens time.Time) {
	var next, last *AccessGrant
	for n := range mine {
		g := &mine[n]
		switch {
		case now.Before(g.NotBefore):
			if g.NotBefore.Before(g.NotAfter) && (next == nil || g.NotBefore.Before(next.NotBefore)) {
				next = g
			}
		case last == nil: // sorted by their ends
			last = g
		}
	}
	switch {
	case next != nil:
		return fmt.Sprintf("AccessGrant %s begins at %s", printable(next.Name), next.NotBefore.UTC().Format(time.RFC3339)), next.NotBefore
	case faulty != nil && now.Before(faulty.grant.NotAfter):
		return fmt.Sprintf("AccessGrant %s does not count: it %v", printable(faulty.grant.Name), faulty.err), time.Time{}
	case last != nil:
		return fmt.Sprintf("AccessGrant %s ended at %s", printable(last.Name), last.NotAfter.UTC().Format(time.RFC3339)), time.Time{}
	}
	return "", time.Time{}
}
