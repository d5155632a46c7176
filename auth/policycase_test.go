package auth

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParsePolicyManifest(t *testing.T) {
	policy, err := os.ReadFile(filepath.Join("testdata", "policy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	indented := strings.ReplaceAll("\n"+strings.TrimSuffix(string(policy), "\n"), "\n", "\n    ")
	manifest := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: zt-policy}\ndata:\n  policy.yaml: |" + indented + "\n"
	other := "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n---\n"
	for name, c := range map[string]struct {
		text string
		line int    // of the fault
		says string // empty: it is good
	}{
		"as it is":             {string(policy), 0, ""},
		"a ConfigMap":          {manifest, 0, ""},
		"among others":         {other + manifest + "---\n" + other, 0, ""},
		"quoted":               {"apiVersion: v1\nkind: ConfigMap\ndata: {policy.yaml: \"issuers: [{url: 'https://a.example', clientID: zt}]\"}\n", 0, ""},
		"two":                  {manifest + "---\n" + manifest, 34, "a second ConfigMap"},
		"of another kind":      {strings.Replace(manifest, "ConfigMap", "Secret", 1), 0, "none of the manifests"},
		"without it":           {strings.Replace(manifest, "policy.yaml", "policy.yml", 1), 0, "none of the manifests"},
		"not a text":           {"apiVersion: v1\nkind: ConfigMap\ndata:\n  policy.yaml: {issuers: []}\n", 4, "not a text"},
		"a fault in the first": {strings.Replace(manifest, "issuers:", "issuer:", 1), 7, "unknown field"},
		"a fault further down": {strings.Replace(other+manifest, "maxDuration: 8h", "maxDuration: 8", 1), 22, "not a duration"},
		"no YAML":              {"a: [\n", 1, ""},
		"too large":            {strings.Repeat("#", MaxPolicyBytes+1), 0, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParsePolicyManifest([]byte(c.text))
			if c.says == "" && c.line == 0 {
				if err != nil || len(p.Issuers) != 1 {
					t.Errorf("got %v, %v", p, err)
				}
				return
			}
			fault, ok := errors.AsType[*PolicyError](err)
			if !ok || fault.Line != c.line || !strings.Contains(fault.Detail, c.says) {
				t.Errorf("got %v, want line %d with %q", err, c.line, c.says)
			}
		})
	}
}

func TestParsePolicyCasesRefuses(t *testing.T) {
	good := "at: 2026-03-02T09:00:00Z\ncases:\n- name: a\n  identity: {subject: alice}\n  want: deny\n" // 5 lines
	for name, c := range map[string]struct {
		text string
		line int
		says string
	}{
		"empty":                   {"", 0, "empty"},
		"no cases":                {"cases: []\n", 0, "no cases"},
		"a policy":                {policyIssuers, 1, `unknown field "issuers", want one of at, cases`},
		"unknown field":           {good + "  wants: deny\n", 6, `unknown field "cases[0].wants"`},
		"unknown identity":        {good + "- name: b\n  identity: {uid: alice}\n", 7, `unknown field "cases[1].identity.uid", want one of issuer, subject`},
		"no name":                 {good + "- identity: {subject: alice}\n  want: deny\n", 6, "name is missing"},
		"a name twice":            {good + "- name: a\n  identity: {subject: alice}\n  want: deny\n", 6, "taken"},
		"no time":                 {strings.TrimPrefix(good, "at: 2026-03-02T09:00:00Z\n"), 2, "at is missing"},
		"a day for a time":        {strings.Replace(good, "T09:00:00Z", "", 1), 1, "at: "},
		"nobody":                  {strings.Replace(good, "subject: alice", "groups: [a]", 1), 3, "subject is missing"},
		"no want":                 {strings.Replace(good, "  want: deny\n", "", 1), 3, "write allow or deny"},
		"another want":            {strings.Replace(good, "deny", "maybe", 1), 3, `want is "maybe"`},
		"allow for a reason":      {strings.Replace(good, "deny", "allow", 1) + "  reason: denied_by_policy\n", 3, "reason is of a refusal"},
		"deny with ports":         {good + "  ports: [443]\n", 3, "deny is wanted"},
		"a reason of no policy":   {good + "  reason: bad_signature\n", 3, "a policy's are cluster_closed, denied_by_name"},
		"an AccessGrant of none":  {good + "  accessGrants: [{name: g, reason: r, notBefore: 2026-03-02T09:00:00Z, notAfter: 2026-03-02T10:00:00Z}]\n", 3, "accessGrants[0]: names nobody"},
		"an AccessGrant of a day": {good + "  accessGrants: [{name: g, subject: a, reason: r, notBefore: 2026-03-02, notAfter: 2026-03-03}]\n", 6, "notBefore"},
	} {
		t.Run(name, func(t *testing.T) {
			cases, err := ParsePolicyCases([]byte(c.text))
			fault, ok := errors.AsType[*PolicyError](err)
			if !ok || cases != nil {
				t.Fatalf("got %v, %v; want a *PolicyError", cases, err)
			}
			if fault.Line != c.line || !strings.Contains(fault.Detail, c.says) || !strings.HasPrefix(fault.Error(), "cases: ") {
				t.Errorf("got %v, want line %d with %q", fault, c.line, c.says)
			}
		})
	}
}

func TestRuleCovers(t *testing.T) {
	rule := func(text string) *Rule {
		p := policyParse(t, policyIssuers+"rules:\n- {issuer: https://login.example.com, "+text+"}\n")
		return &p.Rules[0]
	}
	for _, c := range []struct {
		first, second string
		want          bool
	}{
		{"groups: [a, b]", "groups: [a]", true},
		{"groups: [a]", "groups: [a, b]", false},
		{"groups: [a]", "subjects: [a]", false},
		{"groups: [a]", "groups: [a], subjects: [x]", true},
		{"groups: [a], subjects: [x]", "groups: [a]", false},
		{"claims: {c: d}", "claims: {c: d, e: f}", true},
		{"claims: {c: d, e: f}", "claims: {c: d}", false},
		{"claims: {c: d}", "claims: {c: e}", false},
		{"everyone: true", "groups: [a]", true},
		{"ports: [443]", "groups: [a]", false}, // admits nobody
		{"groups: [a]", "groups: [a], maxDuration: 1h", true},
		{"groups: [a], maxDuration: 1h", "groups: [a]", false},
		{"groups: [a], windows: [{from: \"08:00\", to: \"09:00\"}]", "groups: [a]", false},
		{"groups: [a]", "groups: [a], ports: [443, 8443]", false},
		{"groups: [a], ports: [443, 8443]", "groups: [a]", true},
	} {
		if got := rule(c.first).covers(rule(c.second)); got != c.want {
			t.Errorf("{%s} covers {%s}: got %v, want %v", c.first, c.second, got, c.want)
		}
	}
}

// FuzzPolicyFiles: the attacker sends a pull request with a policy and its tests.
func FuzzPolicyFiles(f *testing.F) {
	text, err := os.ReadFile(filepath.Join("testdata", "policy.yaml"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, []byte("at: 2026-03-02T09:00:00Z\ncases:\n- {name: a, identity: {subject: alice, claims: {level: 3}}, want: allow}\n"))
	f.Add([]byte("apiVersion: v1\nkind: ConfigMap\ndata:\n  policy.yaml: |\n    issuers:\n    - {url: https://a.example, clientID: zt}\n    closed: true\n"), []byte("cases: [{}]\n"))
	f.Fuzz(func(t *testing.T, policy, tests []byte) {
		p, err := ParsePolicyManifest(policy)
		if _, ok := errors.AsType[*PolicyError](err); err != nil && !ok {
			t.Errorf("%T: %v, want a *PolicyError", err, err)
		}
		cases, cerr := ParsePolicyCases(tests)
		if _, ok := errors.AsType[*PolicyError](cerr); cerr != nil && !ok {
			t.Errorf("%T: %v, want a *PolicyError", cerr, cerr)
		}
		if err != nil || cerr != nil {
			return
		}
		p.Warnings(time.Unix(0, 0))
		for _, c := range cases {
			if d, _, err := c.Decide(p); err == nil && (d.Refusal == nil) != (len(d.Ports) > 0) {
				t.Errorf("decision %+v", d)
			}
		}
	})
}
