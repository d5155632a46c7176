package auth

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Warnings are what a careful administrator should look at again: parts that
// can never have an effect, or have another than they seem to. A policy with
// warnings is in force all the same.
func (p *Policy) Warnings(now time.Time) []string {
	var all []string
	warn := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	switch {
	case p.Closed && len(p.Openers) == 0:
		warn("the cluster is closed and has no openers: whoever creates an AccessGrant must reach it by another way")
	case !p.Closed && len(p.Openers) > 0:
		warn("openers count only while closed is true: they are admitted by rules like everybody")
	}
	if !p.Closed && len(p.Rules) == 0 {
		warn("there are no rules: only an AccessGrant admits anybody")
	}
	for _, i := range p.Issuers {
		used := func(r Rule) bool { return r.Issuer == i.URL }
		if !slices.ContainsFunc(p.Rules, used) && !slices.ContainsFunc(p.openers, used) {
			warn("issuer %s: no rule and no opener is of it", i.URL)
		}
	}
	for n := range p.openers {
		p.warnWhom("opener "+p.openers[n].Name, &p.openers[n], warn)
	}
	for n := range p.Rules {
		r := &p.Rules[n]
		name := r.Name
		if !strings.HasPrefix(name, "rule ") {
			name = "rule " + name
		}
		if r.anonymous() && !r.Everyone {
			warn("%s matches nobody: write groups, subjects or claims, or everyone: true", name)
			continue
		}
		p.warnWhom(name, r, warn)
		if !containsAll(r.Ports, policyDefaultPorts) {
			warn("%s does not open port %d, where the API server is", name, policyDefaultPorts[0])
		}
		for m := range n {
			if p.Rules[m].covers(r) {
				warn("%s adds nothing: %s admits the same at any time", name, p.Rules[m].Name)
				break
			}
		}
	}
	for _, d := range p.Deny {
		if d.Before.After(now) {
			warn("deny of %s: before lies in the future, so that until %s not even a new login helps", d.whom(), d.Before.UTC().Format(time.RFC3339))
		}
	}
	return all
}

// warnWhom finds what makes r match nobody, or others than it seems to.
func (p *Policy) warnWhom(name string, r *Rule, warn func(format string, args ...any)) {
	n := slices.IndexFunc(p.Issuers, func(i Issuer) bool { return i.URL == r.Issuer })
	issuer := p.Issuers[n]
	for _, claim := range slices.Sorted(maps.Keys(r.Claims)) {
		if must, ok := issuer.Require[claim]; ok && must != r.Claims[claim] {
			warn("%s matches nobody: it wants claim %s = %q, and the issuer's require holds it at %q", name, claim, r.Claims[claim], must)
		}
	}
	denied := func(uid string) bool {
		return slices.ContainsFunc(p.Deny, func(d Denial) bool {
			return d.Key.IsZero() && d.Issuer == r.Issuer && d.UID == uid && d.Before.IsZero()
		})
	}
	if len(r.Subjects) > 0 && !slices.ContainsFunc(r.Subjects, func(s string) bool { return !denied(s) }) {
		warn("%s matches nobody: deny names all of its subjects", name)
	}
	for _, s := range r.Subjects {
		if strings.Contains(s, "@") && issuer.SubjectClaim != "email" {
			warn("%s: subject %q looks like an e-mail address, and is compared with the claim %s: `zt-daemon whoami` shows a person's", name, s, issuer.SubjectClaim)
		}
	}
	for _, s := range slices.Concat(r.Groups, r.Subjects) {
		if strings.TrimSpace(s) != s {
			warn("%s: %q begins or ends with a space", name, s)
		}
	}
}

// covers reports whether whoever other admits is admitted by r at any time, to
// the same ports.
func (r *Rule) covers(other *Rule) bool {
	if r.Issuer != other.Issuer || len(r.Windows) > 0 || r.MaxDuration != 0 || !containsAll(r.Ports, other.Ports) || r.anonymous() && !r.Everyone {
		return false
	}
	if r.Everyone {
		return true
	}
	// Each condition of r must follow from one of other's.
	within := func(all, some []string) bool {
		return len(all) == 0 || len(some) > 0 && !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
	}
	for name, value := range r.Claims {
		if got, ok := other.Claims[name]; !ok || got != value {
			return false
		}
	}
	return within(r.Groups, other.Groups) && within(r.Subjects, other.Subjects)
}

// whom is for people.
func (d Denial) whom() string {
	if !d.Key.IsZero() {
		return "login key " + d.Key.String()
	}
	return fmt.Sprintf("%s of %s", printable(d.UID), d.Issuer)
}
