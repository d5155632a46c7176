package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon"
)

const policyFileLong = `FILE is the policy as such, or a manifest with the ConfigMap that holds it under
policy.yaml; - reads standard input. Nothing is asked of any network: it works
where the policy is kept, and in CI.`

func policyCommand(env *environment) *cobra.Command {
	return adminGroup("policy", "Check a cluster's policy, and test whom it admits", policyCheckCommand(env), policyTestCommand(env))
}

func policyCheckCommand(env *environment) *cobra.Command {
	var out outputFlag
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Say what a policy means, or which line is wrong",
		Long: `Read a policy as strictly as a node does, and say whom it admits and when. Parts
that can never have an effect are warned of.

` + policyFileLong + `

Exit codes: 0 a node would take it, warnings or not; 1 a node would not.`,
		Example: `  zt-daemon policy check policy.yaml
  kubectl get configmap zt-policy --namespace zt -o yaml | zt-daemon policy check -`,
		Args: withArgs(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := readPolicy(env, args[0])
			if err != nil {
				if fault, ok := errors.AsType[*auth.PolicyError](err); ok && out.json {
					if err := printJSON(env.stdout, policyReport{File: args[0], Fault: &policyFault{fault.Line, fault.Detail}}); err != nil {
						return err
					}
				}
				return err
			}
			report := newPolicyReport(args[0], p, time.Now())
			if out.json {
				return printJSON(env.stdout, report)
			}
			return report.print(env.stdout)
		},
	}
	out.addTo(cmd)
	return cmd
}

// readPolicy reads a policy from a file, or from standard input.
func readPolicy(env *environment, file string) (*auth.Policy, error) {
	text, err := readInput(env, file)
	if err != nil {
		return nil, err
	}
	p, err := auth.ParsePolicyManifest(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return p, nil
}

// readInput reads no more of a file than a policy may have.
func readInput(env *environment, file string) ([]byte, error) {
	in := env.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	return io.ReadAll(io.LimitReader(in, auth.MaxPolicyBytes+1))
}

// policyReport is what a policy means.
type policyReport struct {
	File         string       `json:"file"`
	Fault        *policyFault `json:"fault,omitempty"` // why no node would take it; the rest is then empty
	Closed       bool         `json:"closed"`
	Issuers      []string     `json:"issuers,omitempty"`
	Openers      []policyRow  `json:"openers,omitempty"`
	Rules        []policyRow  `json:"rules,omitempty"`
	AccessGrants string       `json:"accessGrantsMaxDuration,omitempty"`
	Deny         []policyDeny `json:"deny,omitempty"`
	Warnings     []string     `json:"warnings,omitempty"`
}

type policyFault struct {
	Line   int    `json:"line,omitempty"`
	Detail string `json:"detail"`
}

// policyRow is a rule or an opener.
type policyRow struct {
	Name        string            `json:"name"`
	Issuer      string            `json:"issuer"`
	Everyone    bool              `json:"everyone,omitempty"`
	Groups      []string          `json:"groups,omitempty"`
	Subjects    []string          `json:"subjects,omitempty"`
	Claims      map[string]string `json:"claims,omitempty"`
	Windows     []string          `json:"windows,omitempty"`
	MaxDuration string            `json:"maxDuration,omitempty"`
	Ports       []uint16          `json:"ports,omitempty"`
}

type policyDeny struct {
	Issuer string    `json:"issuer,omitempty"`
	UID    string    `json:"uid,omitempty"`
	Key    string    `json:"key,omitempty"`
	Before time.Time `json:"before,omitzero"`
}

func newPolicyReport(file string, p *auth.Policy, now time.Time) policyReport {
	r := policyReport{File: file, Closed: p.Closed, AccessGrants: p.AccessGrantLimit().String(), Warnings: p.Warnings(now)}
	for _, i := range p.Issuers {
		r.Issuers = append(r.Issuers, i.URL)
	}
	for _, o := range p.Openers {
		r.Openers = append(r.Openers, policyRow{Name: o.Name, Issuer: o.Issuer, Groups: o.Groups, Subjects: o.Subjects, Claims: o.Claims})
	}
	for _, rule := range p.Rules {
		row := policyRow{
			Name: rule.Name, Issuer: rule.Issuer, Everyone: rule.Everyone, Groups: rule.Groups, Subjects: rule.Subjects, Claims: rule.Claims, Ports: rule.Ports,
		}
		for _, w := range rule.Windows {
			row.Windows = append(row.Windows, w.String())
		}
		if rule.MaxDuration != 0 {
			row.MaxDuration = rule.MaxDuration.String()
		}
		r.Rules = append(r.Rules, row)
	}
	for _, d := range p.Deny {
		r.Deny = append(r.Deny, policyDeny{Issuer: d.Issuer, UID: d.UID, Key: d.Key.String(), Before: d.Before})
	}
	return r
}

func (r policyReport) print(w io.Writer) error {
	state := "open: rules admit, and AccessGrants of at most " + r.AccessGrants
	if r.Closed {
		state = "closed: openers are admitted, and whom an AccessGrant of at most " + r.AccessGrants + " names; rules admit nobody"
	}
	fmt.Fprintf(w, "%s is good; the cluster is %s\n", printable(r.File), state)
	one := ""
	if len(r.Issuers) == 1 {
		one = r.Issuers[0]
		fmt.Fprintf(w, "issuer %s\n", printable(one))
	}
	who := func(p policyRow) string {
		if one == "" {
			return p.whom() + " of " + p.Issuer
		}
		return p.whom()
	}
	if len(r.Openers) > 0 {
		rows := [][]string{{"OPENER", "WHO"}}
		for _, o := range r.Openers {
			rows = append(rows, []string{o.Name, who(o)})
		}
		fmt.Fprintln(w)
		if err := table(w, rows); err != nil {
			return err
		}
	}
	if len(r.Rules) > 0 {
		rows := [][]string{{"RULE", "WHO", "WHEN", "AT MOST", "PORTS"}}
		for _, rule := range r.Rules {
			when := "always"
			if len(rule.Windows) > 0 {
				when = strings.Join(rule.Windows, "; ")
			}
			rows = append(rows, []string{rule.Name, who(rule), when, rule.MaxDuration, portList(rule.Ports)})
		}
		fmt.Fprintln(w)
		if err := table(w, rows); err != nil {
			return err
		}
	}
	if len(r.Deny) > 0 {
		rows := [][]string{{"DENY", "LOGINS"}}
		for _, d := range r.Deny {
			whom, logins := d.UID, "all"
			if d.Key != "" {
				whom = "login key " + d.Key
			} else if one == "" {
				whom += " of " + d.Issuer
			}
			if !d.Before.IsZero() {
				logins = "before " + d.Before.UTC().Format(time.RFC3339)
			}
			rows = append(rows, []string{whom, logins})
		}
		fmt.Fprintln(w)
		if err := table(w, rows); err != nil {
			return err
		}
	}
	for n, text := range r.Warnings {
		if n == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "warning: %s\n", printable(text))
	}
	return nil
}

// whom is for people: all of what stands there must be so.
func (p policyRow) whom() string {
	var all []string
	if p.Everyone {
		all = append(all, "everyone")
	}
	list := func(noun string, names []string) {
		if len(names) == 1 {
			all = append(all, noun+" "+names[0])
		} else if len(names) > 1 {
			all = append(all, noun+"s "+strings.Join(names, ", "))
		}
	}
	list("group", p.Groups)
	list("subject", p.Subjects)
	for _, claim := range slices.Sorted(maps.Keys(p.Claims)) {
		all = append(all, claim+" = "+p.Claims[claim])
	}
	if len(all) == 0 {
		return "nobody"
	}
	return strings.Join(all, " and ")
}

func portList(ports []uint16) string {
	texts := make([]string, len(ports))
	for n, p := range ports {
		texts[n] = strconv.Itoa(int(p))
	}
	return strings.Join(texts, ", ")
}

const policyTestLong = `Decide each case of CASES by the policy, and say which come out otherwise than
they want. Keep the cases beside the policy: they say what must not change.

` + policyFileLong + `

A case says who, when and what must come of it:

  at: 2026-03-02T09:00:00Z          # for cases that say no time
  cases:
  - name: developers by day
    identity: {subject: alice, groups: [developers]}
    want: allow
  - name: not at night
    identity: {subject: alice, groups: [developers]}
    at: 2026-03-02T23:00:00Z
    want: deny
    reason: outside_window          # optional

identity has subject (the uid), issuer (if the policy has several), groups,
claims, key (the login key) and loginAge (how long ago the login was). A case may
have accessGrants (name, and the fields of an AccessGrant's spec), and with
allow: ports, exactly those that must be open.

Exit codes: 0 all as wanted; 1 not, or a file cannot be read.`

func policyTestCommand(env *environment) *cobra.Command {
	var out outputFlag
	cmd := &cobra.Command{
		Use:     "test FILE CASES",
		Short:   "Test whom a policy admits",
		Long:    policyTestLong,
		Example: "  zt-daemon policy test policy.yaml policy-cases.yaml",
		Args:    withArgs(cobra.ExactArgs(2)),
		RunE: func(_ *cobra.Command, args []string) error {
			if args[0] == "-" && args[1] == "-" {
				return usagef("give one of them a file", "the policy and its cases cannot both be standard input")
			}
			p, err := readPolicy(env, args[0])
			if err != nil {
				return err
			}
			text, err := readInput(env, args[1])
			if err != nil {
				return err
			}
			cases, err := auth.ParsePolicyCases(text)
			if err != nil {
				return fmt.Errorf("%s: %w", args[1], err)
			}
			report, err := testPolicy(p, cases)
			if err != nil {
				return fmt.Errorf("%s: %w", args[1], err)
			}
			if out.json {
				err = printJSON(env.stdout, report)
			} else {
				report.print(env.stdout)
			}
			if err == nil && report.Failed > 0 {
				err = daemon.NewLocalError(daemon.KindFailure, "", "%d of %s came out otherwise", report.Failed, plural(len(cases), "case"))
			}
			return err
		},
	}
	out.addTo(cmd)
	return cmd
}

// policyTestReport is what came of the cases.
type policyTestReport struct {
	Passed int                `json:"passed"`
	Failed int                `json:"failed"`
	Cases  []policyCaseReport `json:"cases"`
}

type policyCaseReport struct {
	Name string            `json:"name"`
	Line int               `json:"line"`
	OK   bool              `json:"ok"`
	Want policyCaseOutcome `json:"want"`
	Got  policyCaseOutcome `json:"got"`
}

type policyCaseOutcome struct {
	Allow       bool      `json:"allow"`
	Ports       []uint16  `json:"ports,omitempty"`
	Rule        string    `json:"rule,omitempty"`
	AccessGrant string    `json:"accessGrant,omitempty"`
	Until       time.Time `json:"until,omitzero"`
	Reason      string    `json:"reason,omitempty"`
	Detail      string    `json:"detail,omitempty"`
}

func testPolicy(p *auth.Policy, cases []auth.PolicyCase) (policyTestReport, error) {
	var report policyTestReport
	for _, c := range cases {
		d, ok, err := c.Decide(p)
		if err != nil {
			return report, err
		}
		got := policyCaseOutcome{Allow: d.Refusal == nil, Ports: d.Ports, Rule: d.Rule, AccessGrant: d.AccessGrant, Until: d.Until}
		if d.Refusal != nil {
			got.Reason, got.Detail = string(d.Refusal.Reason), d.Refusal.Error()
		}
		want := policyCaseOutcome{Allow: c.Allow, Ports: c.Ports, Reason: string(c.Reason)}
		if want.Allow && want.Ports == nil && got.Allow && !ok {
			want.Ports = []uint16{443} // the API server's
		}
		if ok {
			report.Passed++
		} else {
			report.Failed++
		}
		report.Cases = append(report.Cases, policyCaseReport{Name: c.Name, Line: c.Line, OK: ok, Want: want, Got: got})
	}
	return report, nil
}

func (r policyTestReport) print(w io.Writer) {
	for _, c := range r.Cases {
		if c.OK {
			fmt.Fprintf(w, "ok    %s\n", printable(c.Name))
			continue
		}
		fmt.Fprintf(w, "FAIL  %s (line %d)\n    - %s\n    + %s\n", printable(c.Name), c.Line, printable(c.Want.String()), printable(c.Got.String()))
	}
	if r.Failed == 0 {
		fmt.Fprintf(w, "%s as wanted\n", plural(r.Passed, "case"))
	}
}

// String is for people.
func (o policyCaseOutcome) String() string {
	if !o.Allow {
		text := "deny"
		if o.Reason != "" {
			text += " " + o.Reason
		}
		if o.Detail != "" {
			text += ": " + o.Detail
		}
		return text
	}
	text := "allow"
	if len(o.Ports) > 0 {
		text += " port " + portList(o.Ports)
	}
	if o.Rule != "" {
		text += " by rule " + o.Rule
	}
	if o.AccessGrant != "" {
		text += " by AccessGrant " + o.AccessGrant
	}
	if !o.Until.IsZero() {
		text += " until " + o.Until.UTC().Format(time.RFC3339)
	}
	return text
}
