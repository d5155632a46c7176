package auth

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

const (
	// MaxPolicyBytes caps a policy file; a ConfigMap holds no more.
	MaxPolicyBytes = 1 << 20

	policyMaxRules   = 1000
	policyMaxWindows = 32 // of one rule
	policyMaxOpeners = 1000
	policyMaxDenials = 10000

	// policyHorizon is how far Decide looks for an end: past the longest grant
	// (MaxGrantAge).
	policyHorizon = 48 * time.Hour
	// policyWeekDays is how far Decide looks for the next opening.
	policyWeekDays = 8
)

// policyDefaultPorts are the ports of a rule that names none.
var policyDefaultPorts = []uint16{443}

// Policy says whom one cluster admits to its API server's address, and when. It
// is the cluster's own: no relay and no head can widen it. One from ParsePolicy
// must not be changed.
type Policy struct {
	// Issuers are the only ones whose ID tokens the cluster's nodes accept.
	Issuers []Issuer `json:"issuers"`
	// Closed: Rules admit nobody. Openers are admitted, and whom an AccessGrant
	// names while it is active.
	Closed bool `json:"closed"`
	// Openers count while the policy is Closed only.
	Openers      []Opener         `json:"openers"`
	Rules        []Rule           `json:"rules"`
	AccessGrants AccessGrantRules `json:"accessGrants"`
	Deny         []Denial         `json:"deny"`

	openers []Rule // Openers, as rules
}

// Opener is who reaches a closed cluster at any time: whoever has all of what it
// names, as in a Rule.
type Opener struct {
	// Name is unique among openers. Empty = "opener N", counted from 1.
	Name     string            `json:"name"`
	Issuer   string            `json:"issuer"`
	Groups   []string          `json:"groups"`
	Subjects []string          `json:"subjects"`
	Claims   map[string]string `json:"claims"`
}

// AccessGrantRules bound the AccessGrants that count.
type AccessGrantRules struct {
	// MaxDuration is the longest from notBefore to notAfter; zero =
	// DefaultAccessGrantDuration.
	MaxDuration Duration `json:"maxDuration"`
}

// Rule admits whoever has all of what it names: one of Groups if there are any,
// one of Subjects if there are any, and each of Claims. A rule that names none
// of these admits nobody unless Everyone is set.
type Rule struct {
	// Name is shown to people and in the audit log; unique. Empty = "rule N",
	// counted from 1.
	Name string `json:"name"`
	// Issuer is the URL of one of the policy's issuers.
	Issuer   string            `json:"issuer"`
	Groups   []string          `json:"groups"`
	Subjects []string          `json:"subjects"` // by uid: see Issuer.SubjectClaim
	Claims   map[string]string `json:"claims"`   // a claim that is a number or a boolean is compared by its JSON text
	// Everyone admits every identity of Issuer; the three above are then empty.
	Everyone bool `json:"everyone"`
	// Windows are when the rule holds; empty = always.
	Windows []Window `json:"windows"`
	// Ports of the overlay address that the rule opens; default 443.
	Ports []uint16 `json:"ports"`
	// MaxDuration bounds access from the login (auth_time, or iat without it);
	// zero = the grant's end.
	MaxDuration Duration `json:"maxDuration"`
}

// Denial refuses whatever a rule says. It names an identity by Issuer and UID,
// or a login key.
type Denial struct {
	Issuer string          `json:"issuer"`
	UID    string          `json:"uid"`
	Key    key.LoginPublic `json:"key"`
	// Before denies logins before that time only: after it, a new login is
	// admitted. Zero = always.
	Before time.Time `json:"before"`
}

// Decision is a policy's answer for one identity at one time.
type Decision struct {
	// Ports that are open, sorted; nil when refused.
	Ports []uint16
	// Until is when the first of Ports closes; zero = the grant's end comes first.
	// With a Refusal it is when a rule or an AccessGrant opens next, if that is
	// known.
	Until time.Time
	// Rule is the name of the first rule that admits, or opener of a closed policy.
	Rule string
	// AccessGrant is the name of the one that admits; empty if all of Ports are
	// open without.
	AccessGrant string
	// Refusal is nil when Ports are open.
	Refusal *RefusedError
}

// ParsePolicy reads policy.yaml. Every fault is a *PolicyError that names its
// line: an unknown field, a duplicate, a value of the wrong kind, a rule of an
// issuer that is not listed.
func ParsePolicy(text []byte) (*Policy, error) {
	p := &Policy{}
	lines, err := parsePolicyYAML(text, p)
	if err != nil {
		return nil, err
	}
	if len(p.Issuers) == 0 {
		return nil, &PolicyError{Line: 1, Detail: "issuers is empty: nobody could prove who they are"}
	}
	for n, i := range p.Issuers {
		if err := validateIssuers(p.Issuers[:n+1]); err != nil {
			return nil, lines.fault(err, "issuers", n)
		}
		p.Issuers[n] = i.WithDefaults()
	}
	if len(p.Rules) > policyMaxRules {
		return nil, &PolicyError{Line: lines.line("rules"), Detail: fmt.Sprintf("%d rules, want at most %d", len(p.Rules), policyMaxRules)}
	}
	for n := range p.Rules {
		if err := p.loadRule(n); err != nil {
			return nil, lines.fault(err, "rules", n)
		}
	}
	if err := p.loadOpeners(lines); err != nil {
		return nil, err
	}
	if p.AccessGrants.MaxDuration == 0 && lines.has("accessGrants", "maxDuration") {
		return nil, &PolicyError{Line: lines.line("accessGrants"), Detail: fmt.Sprintf("accessGrants: maxDuration is zero: leave it out for %s", DefaultAccessGrantDuration)}
	}
	if len(p.Deny) > policyMaxDenials {
		return nil, &PolicyError{Line: lines.line("deny"), Detail: fmt.Sprintf("%d denials, want at most %d", len(p.Deny), policyMaxDenials)}
	}
	for n, d := range p.Deny {
		if err := p.checkDenial(d); err != nil {
			return nil, lines.fault(err, "deny", n)
		}
	}
	return p, nil
}

func (p *Policy) loadOpeners(lines policyLines) error {
	if len(p.Openers) > policyMaxOpeners {
		return &PolicyError{Line: lines.line("openers"), Detail: fmt.Sprintf("%d openers, want at most %d", len(p.Openers), policyMaxOpeners)}
	}
	for n := range p.Openers {
		o := &p.Openers[n]
		r := Rule{Name: o.Name, Issuer: o.Issuer, Groups: o.Groups, Subjects: o.Subjects, Claims: o.Claims, Ports: policyDefaultPorts}
		err := r.loadName(p.openers, "opener")
		if err == nil {
			err = p.checkWhom(&r)
		}
		if err == nil && r.anonymous() {
			err = errors.New("names nobody: write groups, subjects or claims")
		}
		if err != nil {
			return lines.fault(err, "openers", n)
		}
		o.Name = r.Name
		p.openers = append(p.openers, r)
	}
	return nil
}

// loadName checks r's name, or gives it one, beside those before it.
func (r *Rule) loadName(before []Rule, noun string) error {
	if err := documentText(r.Name); err != nil {
		return fmt.Errorf("name: %v", err)
	}
	if r.Name == "" {
		r.Name = noun + " " + strconv.Itoa(len(before)+1)
	}
	for m := range before {
		if before[m].Name == r.Name {
			return fmt.Errorf("name %q is taken by %s %d", r.Name, noun, m+1)
		}
	}
	return nil
}

// checkWhom checks what says whom r is about.
func (p *Policy) checkWhom(r *Rule) error {
	if !slices.ContainsFunc(p.Issuers, func(i Issuer) bool { return i.URL == r.Issuer }) {
		if r.Issuer == "" {
			return errors.New("issuer is missing")
		}
		return fmt.Errorf("issuer %q is not one of issuers", r.Issuer)
	}
	if slices.Contains(r.Groups, "") || slices.Contains(r.Subjects, "") {
		return errors.New("an empty group or subject")
	}
	if _, empty := r.Claims[""]; empty {
		return errors.New("a claim without a name")
	}
	return nil
}

func (p *Policy) loadRule(n int) error {
	r := &p.Rules[n]
	if err := r.loadName(p.Rules[:n], "rule"); err != nil {
		return err
	}
	if err := p.checkWhom(r); err != nil {
		return err
	}
	if r.Everyone && !r.anonymous() {
		return errors.New("everyone stands beside groups, subjects or claims: it would admit more than they say")
	}
	if len(r.Windows) > policyMaxWindows {
		return fmt.Errorf("%d windows, want at most %d", len(r.Windows), policyMaxWindows)
	}
	for m := range r.Windows {
		if err := r.Windows[m].load(); err != nil {
			return fmt.Errorf("window %d: %v", m+1, err)
		}
	}
	for m, port := range r.Ports {
		if port == 0 || slices.Contains(r.Ports[:m], port) {
			return fmt.Errorf("port %d is zero or listed twice", port)
		}
	}
	if r.Ports == nil {
		r.Ports = slices.Clone(policyDefaultPorts)
	}
	if len(r.Ports) == 0 {
		return errors.New("ports is an empty list: leave it out for 443")
	}
	return nil
}

func (p *Policy) checkDenial(d Denial) error {
	switch {
	case d.Key.IsZero() && (d.Issuer == "" || d.UID == ""):
		return errors.New("names nobody: write issuer and uid, or key")
	case !d.Key.IsZero() && (d.Issuer != "" || d.UID != ""):
		return errors.New("names a key and an identity: write two entries")
	case d.Key.IsZero() && !slices.ContainsFunc(p.Issuers, func(i Issuer) bool { return i.URL == d.Issuer }):
		return fmt.Errorf("issuer %q is not one of issuers, so the entry would deny nobody", d.Issuer)
	}
	return nil
}

// Decide says what id may reach at now. id was returned by a Verifier; grants are
// the cluster's AccessGrants, of whomever and of whatever time.
func (p *Policy) Decide(id *Identity, grants []AccessGrant, now time.Time) Decision {
	login := policyLoginTime(id)
	for _, d := range p.Deny {
		if d.matches(id, login) {
			return Decision{Refusal: d.refusal(id)}
		}
	}
	rules := p.Rules
	if p.Closed {
		rules = p.openers
	}
	var mine []*Rule
	var openings []opening
	for n := range rules {
		if rules[n].admits(id) {
			mine = append(mine, &rules[n])
			openings = append(openings, opening{rule: &rules[n]})
		}
	}
	byRule := policyPorts(openings, login, now)
	granted, faulty := p.accessGrantsOf(id, grants)
	for n := range granted {
		openings = append(openings, opening{grant: &granted[n]})
	}
	ports := policyPorts(openings, login, now)
	if len(ports) == 0 {
		d := p.refuse(id, mine, login, now)
		note, opens := accessGrantNote(granted, faulty, now)
		if note != "" {
			d.Refusal.Detail += "; " + note
		}
		if !opens.IsZero() && (d.Until.IsZero() || opens.Before(d.Until)) {
			d.Until = opens
			d.Refusal.HintText = "try again at " + opens.UTC().Format("Mon 2006-01-02 15:04 MST")
		}
		return d
	}
	d := Decision{Ports: ports, Until: policyEnd(openings, ports, login, now)}
	for _, o := range openings {
		switch {
		case !o.open(login, now):
		case o.rule != nil && d.Rule == "":
			d.Rule = o.rule.Name
		case o.grant != nil && d.AccessGrant == "" && !containsAll(byRule, o.grant.Ports):
			d.AccessGrant = o.grant.Name
		}
	}
	return d
}

// opening is what may open ports to an identity: a rule, or an AccessGrant.
type opening struct {
	rule  *Rule
	grant *AccessGrant // or this
}

func (o opening) open(login, now time.Time) bool {
	if o.grant != nil {
		return o.grant.Active(now)
	}
	return o.rule.open(login, now)
}

func (o opening) ports() []uint16 {
	if o.grant != nil {
		return o.grant.Ports
	}
	return o.rule.Ports
}

// edges yields the times after now, for the given number of days, at which o
// begins or ends, in no order.
func (o opening) edges(login, now time.Time, days int) func(func(time.Time) bool) {
	return func(yield func(time.Time) bool) {
		if o.grant != nil {
			_ = yield(o.grant.NotBefore) && yield(o.grant.NotAfter)
			return
		}
		if o.rule.MaxDuration != 0 && !yield(login.Add(o.rule.MaxDuration.Std())) {
			return
		}
		for _, w := range o.rule.Windows {
			for t := range w.edges(now, days) {
				if !yield(t) {
					return
				}
			}
		}
	}
}

func containsAll(set, all []uint16) bool {
	return !slices.ContainsFunc(all, func(p uint16) bool { return !slices.Contains(set, p) })
}

// policyLoginTime is when the person proved to be there. Without auth_time the
// ID token's own time is the closest that is known.
func policyLoginTime(id *Identity) time.Time {
	if !id.AuthTime.IsZero() {
		return id.AuthTime
	}
	return id.IssuedAt
}

func (d Denial) matches(id *Identity, login time.Time) bool {
	if d.Key.IsZero() {
		if d.Issuer != id.Issuer || d.UID != id.UID {
			return false
		}
	} else if d.Key != id.LoginKey {
		return false
	}
	return d.Before.IsZero() || login.Before(d.Before)
}

func (d Denial) refusal(id *Identity) *RefusedError {
	if d.Before.IsZero() {
		return refuse(ReasonDenied, "%s is on the cluster's deny list", id)
	}
	return &RefusedError{
		Reason:   ReasonRevoked,
		Detail:   fmt.Sprintf("%s: logins before %s are denied", id, d.Before.UTC().Format(time.RFC3339)),
		HintText: "log out at the identity provider, then run `zt-daemon login`",
	}
}

// anonymous reports whether r names nobody in particular.
func (r *Rule) anonymous() bool {
	return len(r.Groups) == 0 && len(r.Subjects) == 0 && len(r.Claims) == 0
}

// admits reports whether r is about id, at whatever time.
func (r *Rule) admits(id *Identity) bool {
	if r.Issuer != id.Issuer {
		return false
	}
	if r.anonymous() {
		return r.Everyone
	}
	if len(r.Groups) > 0 && !slices.ContainsFunc(r.Groups, func(g string) bool { return slices.Contains(id.Groups, g) }) {
		return false
	}
	if len(r.Subjects) > 0 && !slices.Contains(r.Subjects, id.UID) {
		return false
	}
	for name, want := range r.Claims {
		if got, ok := id.Claim(name); !ok || got != want {
			return false
		}
	}
	return true
}

// open reports whether r holds at now for a login at the given time.
func (r *Rule) open(login, now time.Time) bool { return r.fresh(login, now) && r.inWindow(now) }

func (r *Rule) fresh(login, now time.Time) bool {
	return r.MaxDuration == 0 || now.Before(login.Add(r.MaxDuration.Std()))
}

func (r *Rule) inWindow(now time.Time) bool {
	return len(r.Windows) == 0 || slices.ContainsFunc(r.Windows, func(w Window) bool { return w.contains(now) })
}

// policyPorts is the union of what is open, sorted.
func policyPorts(openings []opening, login, now time.Time) []uint16 {
	var ports []uint16
	for _, o := range openings {
		if o.open(login, now) {
			ports = append(ports, o.ports()...)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// policyEnd is the first time after now at which one of ports is closed. Where
// one opening takes over from another without a gap there is no end. It is zero
// when there is none within policyHorizon.
func policyEnd(openings []opening, ports []uint16, login, now time.Time) time.Time {
	for _, t := range policyEdges(openings, login, now, int(policyHorizon/(24*time.Hour))) {
		if !containsAll(policyPorts(openings, login, t), ports) {
			return t
		}
	}
	return time.Time{}
}

// policyEdges are the times after now at which an opening begins or ends, sorted.
func policyEdges(openings []opening, login, now time.Time, days int) []time.Time {
	last := now.Add(time.Duration(days) * 24 * time.Hour)
	var edges []time.Time
	for _, o := range openings {
		for t := range o.edges(login, now, days) {
			if t.After(now) && !t.After(last) {
				edges = append(edges, t)
			}
		}
	}
	slices.SortFunc(edges, time.Time.Compare)
	return slices.CompactFunc(edges, time.Time.Equal)
}

// refuse says why none of the policy's rules opens anything; mine are those
// which are about id.
func (p *Policy) refuse(id *Identity, mine []*Rule, login, now time.Time) Decision {
	if p.Closed {
		return Decision{Refusal: refuse(ReasonClosed, "%s is %s; %s", id, policyGroupList(id.Groups), p.openerList(id))}
	}
	var closed, stale *Rule
	for _, r := range mine {
		switch {
		case closed == nil && r.fresh(login, now):
			closed = r
		case stale == nil && r.inWindow(now):
			stale = r
		}
	}
	switch {
	case stale != nil:
		return Decision{Refusal: &RefusedError{
			Reason:   ReasonLoginTooOld,
			Detail:   fmt.Sprintf("%s logged in at %s, and %s admits for %s", id, login.UTC().Format(time.RFC3339), stale.Name, stale.MaxDuration),
			HintText: "log out at the identity provider, then run `zt-daemon login`",
		}}
	case closed != nil:
		return p.refuseWindow(id, mine, closed, login, now)
	case len(mine) > 0: // too old and outside: the first is what the person can mend
		return Decision{Refusal: &RefusedError{
			Reason:   ReasonLoginTooOld,
			Detail:   fmt.Sprintf("%s logged in at %s, and %s admits for %s, %s", id, login.UTC().Format(time.RFC3339), mine[0].Name, mine[0].MaxDuration, policyWindowList(mine[0])),
			HintText: "run `zt-daemon login` at one of these times",
		}}
	}
	return Decision{Refusal: &RefusedError{
		Reason:   ReasonPolicy,
		Detail:   fmt.Sprintf("%s is %s; %s", id, policyGroupList(id.Groups), p.admittedList(id)),
		HintText: "ask the identity provider's administrator for a group, or the cluster's for a rule; then run `zt-daemon login` again",
	}}
}

func (p *Policy) refuseWindow(id *Identity, mine []*Rule, r *Rule, login, now time.Time) Decision {
	d := Decision{Refusal: &RefusedError{
		Reason: ReasonWindow,
		Detail: fmt.Sprintf("%s is admitted by %s %s", id, r.Name, policyWindowList(r)),
	}}
	openings := make([]opening, len(mine))
	for n, r := range mine {
		openings[n].rule = r
	}
	for _, t := range policyEdges(openings, login, now, policyWeekDays) {
		if len(policyPorts(openings, login, t)) > 0 {
			d.Until = t
			d.Refusal.HintText = "try again at " + t.In(r.Windows[0].zone).Format("Mon 2006-01-02 15:04 MST")
			return d
		}
	}
	return d
}

func policyWindowList(r *Rule) string {
	texts := make([]string, len(r.Windows))
	for n, w := range r.Windows {
		texts[n] = w.String()
	}
	return "only " + strings.Join(texts, "; ")
}

const policyListed = 8 // names shown of one list: an ID token may hold hundreds

func policyGroupList(groups []string) string {
	if len(groups) == 0 {
		return "in no group"
	}
	return "in " + policyNames("group", groups)
}

// admittedList names the groups which the policy would admit from id's issuer.
func (p *Policy) admittedList(id *Identity) string {
	groups := make(map[string]bool)
	rules := 0
	for _, r := range p.Rules {
		if r.Issuer == id.Issuer {
			rules++
			for _, g := range r.Groups {
				groups[g] = true
			}
		}
	}
	switch {
	case rules == 0:
		return fmt.Sprintf("no rule admits anybody of issuer %s", id.Issuer)
	case len(groups) == 0:
		return "no group is admitted, only persons by name or claim"
	}
	return "admitted: " + policyNames("group", slices.Sorted(maps.Keys(groups)))
}

// openerList names the groups that reach the closed cluster from id's issuer. Who
// is an opener by uid is nobody else's business.
func (p *Policy) openerList(id *Identity) string {
	var groups []string
	for _, o := range p.openers {
		if o.Issuer == id.Issuer {
			groups = append(groups, o.Groups...)
		}
	}
	slices.Sort(groups)
	switch {
	case len(groups) > 0:
		return "openers: " + policyNames("group", slices.Compact(groups))
	case len(p.openers) > 0:
		return "its openers are named one by one, or of another issuer"
	}
	return "its policy names no openers"
}

func policyNames(noun string, names []string) string {
	if len(names) != 1 {
		noun += "s"
	}
	shown := make([]string, 0, policyListed)
	for _, n := range names[:min(len(names), policyListed)] {
		shown = append(shown, printable(n))
	}
	list := noun + " " + strings.Join(shown, ", ")
	if more := len(names) - len(shown); more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return list
}
