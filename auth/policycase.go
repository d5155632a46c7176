package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

const policyMaxCases = 10000

// PolicyCase is one test of a policy: who, when, and what must come of it.
type PolicyCase struct {
	Name string
	Line int

	Allow  bool     // what is wanted
	Reason Reason   // of a refusal; empty = any
	Ports  []uint16 // exactly these; nil = the API server's, and whatever else

	at       time.Time
	identity policyCaseIdentity
	grants   []AccessGrant
}

// policyCases is the file.
type policyCases struct {
	At    time.Time        `json:"at"` // for cases that name no time
	Cases []policyCaseYAML `json:"cases"`
}

type policyCaseYAML struct {
	Name         string             `json:"name"`
	Identity     policyCaseIdentity `json:"identity"`
	At           time.Time          `json:"at"`
	AccessGrants []policyCaseGrant  `json:"accessGrants"`
	Want         string             `json:"want"`
	Reason       string             `json:"reason"`
	Ports        []uint16           `json:"ports"`
}

// policyCaseIdentity is what a policy looks at.
type policyCaseIdentity struct {
	Issuer   string            `json:"issuer"`  // empty = the policy's only one
	Subject  string            `json:"subject"` // the uid: what rules and AccessGrants call subject, deny entries uid
	Groups   []string          `json:"groups"`
	Claims   map[string]string `json:"claims"`
	Key      key.LoginPublic   `json:"key"`      // the login key, which a deny entry may name
	LoginAge Duration          `json:"loginAge"` // how long ago the person logged in
}

// policyCaseGrant is an AccessGrant written out: its name, and its spec.
type policyCaseGrant struct {
	Name      string    `json:"name"`
	Issuer    string    `json:"issuer"`
	Subject   string    `json:"subject"`
	Group     string    `json:"group"`
	Reason    string    `json:"reason"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	Ports     []uint16  `json:"ports"`
}

// ParsePolicyCases reads a file of tests as strictly as a policy. Every fault is a
// *PolicyError that names its line.
func ParsePolicyCases(text []byte) ([]PolicyCase, error) {
	var file policyCases
	lines, err := parsePolicyYAML(text, &file)
	var all []PolicyCase
	for n := 0; err == nil && n < len(file.Cases); n++ {
		var c PolicyCase
		if c, err = file.load(n); err != nil {
			err = lines.fault(err, "cases", n)
			break
		}
		c.Line = lines.field("cases").Content[n].Line
		all = append(all, c)
	}
	switch {
	case err != nil:
	case len(all) == 0:
		err = &PolicyError{Detail: "there are no cases"}
	case len(all) > policyMaxCases:
		err = &PolicyError{Detail: fmt.Sprintf("%d cases, want at most %d", len(all), policyMaxCases)}
	}
	if fault, ok := errors.AsType[*PolicyError](err); ok {
		fault.file = "cases"
		return nil, fault
	}
	return all, err
}

func (f *policyCases) load(n int) (PolicyCase, error) {
	y := f.Cases[n]
	c := PolicyCase{Name: y.Name, Allow: y.Want == "allow", Reason: Reason(y.Reason), Ports: y.Ports, at: y.At, identity: y.Identity}
	if c.at.IsZero() {
		c.at = f.At
	}
	switch {
	case y.Name == "":
		return c, errors.New("name is missing")
	case slices.ContainsFunc(f.Cases[:n], func(o policyCaseYAML) bool { return o.Name == y.Name }):
		return c, fmt.Errorf("name %q is taken by another case", y.Name)
	case c.at.IsZero():
		return c, errors.New("at is missing: the outcome must not depend on the day of the test")
	case y.Identity.Subject == "":
		return c, errors.New("identity: subject is missing")
	case y.Want != "allow" && y.Want != "deny":
		return c, fmt.Errorf("want is %q, write allow or deny", y.Want)
	case c.Allow && y.Reason != "":
		return c, errors.New("reason is of a refusal, and allow is wanted")
	case !c.Allow && y.Ports != nil:
		return c, errors.New("ports are open only to whom is allowed, and deny is wanted")
	case y.Reason != "" && !slices.Contains(policyReasons, c.Reason):
		return c, fmt.Errorf("reason is %q, a policy's are %s", y.Reason, policyReasonList())
	}
	for m, y := range y.AccessGrants {
		if y.Name == "" {
			y.Name = fmt.Sprintf("AccessGrant %d", m+1)
		}
		g, err := accessGrantSpec{
			Issuer: y.Issuer, Subject: y.Subject, Group: y.Group, Reason: y.Reason, NotBefore: y.NotBefore, NotAfter: y.NotAfter, Ports: y.Ports,
		}.named(y.Name)
		if err != nil {
			return c, fmt.Errorf("accessGrants[%d]: %v", m, err)
		}
		c.grants = append(c.grants, g)
	}
	slices.Sort(c.Ports)
	return c, nil
}

// policyReasons are those that Decide refuses with.
var policyReasons = []Reason{ReasonClosed, ReasonDenied, ReasonLoginTooOld, ReasonPolicy, ReasonRevoked, ReasonWindow}

func policyReasonList() string {
	var names []string
	for _, r := range policyReasons {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}

// Decide is what p decides in case c. ok reports whether that is what c wants. An
// identity that no node could verify is an error.
func (c PolicyCase) Decide(p *Policy) (d Decision, ok bool, err error) {
	i := c.identity
	if i.Issuer == "" {
		if len(p.Issuers) != 1 {
			return d, false, &PolicyError{Line: c.Line, file: "cases", Detail: fmt.Sprintf("case %q names no issuer, and the policy has %d", c.Name, len(p.Issuers))}
		}
		i.Issuer = p.Issuers[0].URL
	}
	if !slices.ContainsFunc(p.Issuers, func(known Issuer) bool { return known.URL == i.Issuer }) {
		return d, false, &PolicyError{Line: c.Line, file: "cases", Detail: fmt.Sprintf("case %q: issuer %s is not one of the policy's: no node takes its logins", c.Name, i.Issuer)}
	}
	login := c.at.Add(-i.LoginAge.Std())
	id := &Identity{
		Issuer: i.Issuer, Subject: i.Subject, UID: i.Subject, Groups: i.Groups, LoginKey: i.Key,
		AuthTime: login, IssuedAt: login, Claims: make(map[string]any),
	}
	for name, value := range i.Claims {
		id.Claims[name] = value
	}
	d = p.Decide(id, c.grants, c.at)
	if !c.Allow {
		return d, d.Refusal != nil && (c.Reason == "" || c.Reason == d.Refusal.Reason), nil
	}
	if c.Ports != nil {
		return d, slices.Equal(d.Ports, c.Ports), nil
	}
	return d, containsAll(d.Ports, policyDefaultPorts), nil
}

// At is when c happens.
func (c PolicyCase) At() time.Time { return c.at }
