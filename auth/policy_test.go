package auth

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

const policyIssuers = `issuers:
- url: https://login.example.com
  clientID: zt
`

func policyParse(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := ParsePolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func policyTime(t testing.TB, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestParsePolicyFile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "policy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	p := policyParse(t, string(text))
	if len(p.Issuers) != 1 || p.Issuers[0].GroupsClaim != "groups" || p.Issuers[0].Require["hd"] != "example.com" || p.Issuers[0].GrantAge != Duration(8*time.Hour) {
		t.Errorf("issuers read as %+v", p.Issuers)
	}
	if len(p.Rules) != 3 {
		t.Fatalf("%d rules, want 3", len(p.Rules))
	}
	r := p.Rules[0]
	if r.Name != "developers" || !slices.Equal(r.Groups, []string{"developers", "0123"}) || !slices.Equal(r.Ports, []uint16{443}) ||
		r.MaxDuration != Duration(8*time.Hour) || len(r.Windows) != 1 || r.Windows[0].String() != "mon, tue 08:00–18:00 Europe/Berlin" {
		t.Errorf("rule 1 reads as %+v", r)
	}
	if r := p.Rules[1]; r.Name != "rule 2" || r.Claims["level"] != "3" || r.Claims["mfa"] != "true" || !slices.Equal(r.Ports, []uint16{443, 8443}) {
		t.Errorf("rule 2 reads as %+v", r)
	}
	if len(p.Deny) != 2 || p.Deny[0].UID != "mallory" || !p.Deny[0].Before.Equal(time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)) || p.Deny[1].Key.IsZero() {
		t.Errorf("deny reads as %+v", p.Deny)
	}
}

func TestParsePolicyRefuses(t *testing.T) {
	rule := policyIssuers + "rules:\n- issuer: https://login.example.com\n  groups: [a]\n" // 6 lines
	for name, c := range map[string]struct {
		yaml string
		line int
		text string
	}{
		"empty":                   {"", 0, "empty"},
		"a comment":               {"# nothing\n", 0, "empty"},
		"a list":                  {"- a\n", 1, "mapping"},
		"not YAML":                {policyIssuers + "rules: [\n", 4, ""},
		"a tab":                   {policyIssuers + "rules:\n\t- a\n", 5, ""},
		"two documents":           {policyIssuers + "---\n" + policyIssuers, 0, "more than one"},
		"too large":               {strings.Repeat("#", MaxPolicyBytes+1), 0, "at most"},
		"no issuers":              {"rules: []\n", 1, "issuers"},
		"unknown field":           {rule + "allow: all\n", 7, `unknown field "allow"`},
		"unknown field in a rule": {rule + "  group: [b]\n", 7, `unknown field "rules[0].group"`},
		"wrong case":              {rule + "  Ports: [443]\n", 7, `unknown field "rules[0].Ports"`},
		"unknown issuer field":    {"issuers:\n- url: https://a.example\n  clientId: zt\n", 3, `unknown field "issuers[0].clientId"`},
		"unknown window field":    {rule + "  windows:\n  - from: \"08:00\"\n    until: \"09:00\"\n", 9, `unknown field "rules[0].windows[0].until"`},
		"duplicate field":         {rule + "  groups: [b]\n", 7, `duplicate field "rules[0].groups", first on line 6`},
		"duplicate at the top":    {rule + "rules: []\n", 7, `duplicate field "rules", first on line 4`},
		"duplicate claim":         {rule + "  claims:\n    a: b\n    a: c\n", 9, `duplicate field "rules[0].claims.a"`},
		"no value":                {rule + "  ports:\n", 7, "no value"},
		"null":                    {rule + "  name: null\n", 7, "no value"},
		"an anchor":               {rule + "  name: &x a\n", 7, "anchors"},
		"an alias":                {policyIssuers + "rules: &r []\ndeny: *r\n", 4, "anchors"},
		"a merge":                 {rule + "  <<: {name: a}\n", 7, "plain text"},
		"a tag":                   {rule + "  name: !!binary YQ==\n", 7, "tags"},
		"text for a list":         {rule + "  subjects: alice\n", 7, "not a list"},
		"list for a text":         {rule + "  name: [a]\n", 7, "single value"},
		"port too large":          {rule + "  ports: [443, 65536]\n", 7, "65536"},
		"port as text":            {rule + "  ports: [\"443\"]\n", 7, "443"},
		"port 0":                  {rule + "  ports: [0]\n", 5, "zero"},
		"no ports":                {rule + "  ports: []\n", 5, "empty list"},
		"boolean":                 {rule + "  everyone: yes\n", 7, "true or false"},
		"duration":                {rule + "  maxDuration: 8\n", 7, "duration"},
		"negative duration":       {rule + "  maxDuration: -8h\n", 7, "negative"},
		"day":                     {rule + "  windows: [{days: [monday], from: \"08:00\", to: \"18:00\"}]\n", 7, "monday"},
		"day twice":               {rule + "  windows: [{days: [mon, mon], from: \"08:00\", to: \"18:00\"}]\n", 5, "twice"},
		"clock":                   {rule + "  windows: [{from: \"8:00\", to: \"18:00\"}]\n", 7, "time of day"},
		"clock past the day":      {rule + "  windows: [{from: \"08:00\", to: \"24:01\"}]\n", 7, "time of day"},
		"clock with seconds":      {rule + "  windows: [{from: \"08:00:00\", to: \"18:00\"}]\n", 7, "time of day"},
		"no window":               {rule + "  windows: [{from: \"08:00\", to: \"08:00\"}]\n", 5, "both"},
		"from the end of the day": {rule + "  windows: [{from: \"24:00\", to: \"08:00\"}]\n", 5, "24:00"},
		"zone":                    {rule + "  windows: [{from: \"08:00\", to: \"18:00\", zone: Europe/Berlim}]\n", 5, "Europe/Berlim"},
		"zone as a path":          {rule + "  windows: [{from: \"08:00\", to: \"18:00\", zone: ../../etc/passwd}]\n", 5, "IANA"},
		"zone of the machine":     {rule + "  windows: [{from: \"08:00\", to: \"18:00\", zone: Local}]\n", 5, "Local"},
		"issuer http":             {"issuers:\n- url: http://login.example.com\n  clientID: zt\n", 2, "loopback"},
		"issuer twice":            {policyIssuers + "- url: https://login.example.com\n  clientID: b\n", 4, "twice"},
		"rule of no issuer":       {policyIssuers + "rules:\n- groups: [a]\n", 5, "issuer is missing"},
		"rule of another issuer":  {policyIssuers + "rules:\n- issuer: https://login.example.com/\n", 5, "not one of"},
		"name twice":              {rule + "  name: x\n- name: x\n  issuer: https://login.example.com\n", 8, "taken by rule 1"},
		"name of an unnamed rule": {rule + "- name: rule 1\n  issuer: https://login.example.com\n", 7, "taken by rule 1"},
		"name with an escape":     {rule + "  name: \"\\e[2J\"\n", 5, "printable"},
		"everyone and a group":    {rule + "  everyone: true\n", 5, "everyone"},
		"empty group":             {policyIssuers + "rules:\n- issuer: https://login.example.com\n  groups: [\"\"]\n", 5, "empty"},
		"closed as text":          {rule + "closed: on\n", 7, "true or false"},
		"opener of no issuer":     {rule + "openers:\n- groups: [a]\n", 8, "issuer is missing"},
		"opener who is nobody":    {rule + "openers:\n- issuer: https://login.example.com\n", 8, "names nobody"},
		"opener with ports":       {rule + "openers:\n- issuer: https://login.example.com\n  groups: [a]\n  ports: [443]\n", 10, `unknown field "openers[0].ports"`},
		"opener twice":            {rule + "openers:\n- {name: x, issuer: https://login.example.com, groups: [a]}\n- {name: x, issuer: https://login.example.com, groups: [a]}\n", 9, "taken by opener 1"},
		"no AccessGrants at all":  {rule + "accessGrants:\n  maxDuration: 0s\n", 8, "zero"},
		"deny nobody":             {rule + "deny:\n- before: 2026-01-02T15:04:05Z\n", 8, "nobody"},
		"deny without issuer":     {rule + "deny:\n- uid: a\n", 8, "nobody"},
		"deny of another issuer":  {rule + "deny:\n- {issuer: https://login.example.org, uid: a}\n", 8, "deny nobody"},
		"deny two things":         {rule + "deny:\n- {issuer: https://login.example.com, uid: a, key: " + key.NewLogin().Public().String() + "}\n", 8, "two entries"},
		"deny a bad key":          {rule + "deny:\n- key: AAAA\n", 8, "65"},
		"deny before a day":       {rule + "deny:\n- {issuer: https://login.example.com, uid: a, before: 2026-01-02}\n", 8, "before"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ParsePolicy([]byte(c.yaml))
			e, ok := errors.AsType[*PolicyError](err)
			if p != nil || !ok {
				t.Fatalf("got %v, %v; want a *PolicyError", p, err)
			}
			if e.Line != c.line || !strings.Contains(e.Detail, c.text) || e.Hint() == "" {
				t.Errorf("got line %d, %q (hint %q); want line %d with %q", e.Line, e.Detail, e.Hint(), c.line, c.text)
			}
		})
	}
}

func policyIdentity(edit func(*Identity)) *Identity {
	login := time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC) // a Monday
	id := &Identity{
		Issuer: "https://login.example.com", Subject: "sub-alice", UID: "alice", Email: "alice@example.com",
		Groups: []string{"developers"}, AuthTime: login, IssuedAt: login.Add(time.Minute),
		Claims: map[string]any{"level": "3", "mfa": true, "list": []any{"a"}},
	}
	if edit != nil {
		edit(id)
	}
	return id
}

func TestDecide(t *testing.T) {
	alice := key.NewLogin().Public()
	rule := func(lines ...string) string {
		return "- issuer: https://login.example.com\n  " + strings.Join(lines, "\n  ") + "\n"
	}
	for name, c := range map[string]struct {
		rules  string // after "rules:"
		edit   func(*Identity)
		now    string // default 2026-03-02T09:00:00Z, a Monday
		ports  []uint16
		until  string // "" = zero
		rule   string
		reason Reason
		text   string // in the refusal's Error
		hint   string
	}{
		"group":                                {rules: rule("name: devs", "groups: [ops, developers]"), ports: []uint16{443}, rule: "devs"},
		"unnamed":                              {rules: rule("groups: [ops]") + rule("groups: [developers]"), ports: []uint16{443}, rule: "rule 2"},
		"subject":                              {rules: rule("subjects: [alice]"), ports: []uint16{443}, rule: "rule 1"},
		"subject is uid":                       {rules: rule("subjects: [sub-alice]"), reason: ReasonPolicy, text: "only persons by name or claim"},
		"claim":                                {rules: rule("claims: {level: 3, mfa: true}"), ports: []uint16{443}, rule: "rule 1"},
		"claim differs":                        {rules: rule("claims: {level: 3, mfa: false}"), reason: ReasonPolicy},
		"claim is missing":                     {rules: rule("claims: {absent: x}"), reason: ReasonPolicy},
		"claim is missing and empty is wanted": {rules: rule("claims: {absent: \"\"}"), reason: ReasonPolicy},
		"claim is a list":                      {rules: rule("claims: {list: a}"), reason: ReasonPolicy},
		"group and claim":                      {rules: rule("groups: [developers]", "claims: {level: 4}"), reason: ReasonPolicy},
		"group and subject":                    {rules: rule("groups: [developers]", "subjects: [bob]"), reason: ReasonPolicy},
		"union of ports":                       {rules: rule("groups: [developers]", "ports: [8443, 443]") + rule("subjects: [alice]", "ports: [22, 443]"), ports: []uint16{22, 443, 8443}, rule: "rule 1"},
		"nobody":                               {rules: rule("ports: [443]"), reason: ReasonPolicy},
		"everyone":                             {rules: rule("everyone: true"), edit: func(id *Identity) { id.Groups = nil }, ports: []uint16{443}, rule: "rule 1"},
		"everyone of another":                  {rules: rule("everyone: true"), edit: func(id *Identity) { id.Issuer = "https://evil.example" }, reason: ReasonPolicy, text: "no rule admits anybody of issuer https://evil.example"},
		"no rules":                             {rules: "", reason: ReasonPolicy},
		"bob": {rules: rule("groups: [developers]") + rule("groups: [ops]"), edit: func(id *Identity) { id.Email, id.UID, id.Groups = "bob@example.com", "bob", []string{"guests", "all"} },
			reason: ReasonPolicy, text: "bob@example.com is in groups guests, all; admitted: groups developers, ops", hint: "group"},
		"in no group":   {rules: rule("groups: [developers]"), edit: func(id *Identity) { id.Groups = nil }, reason: ReasonPolicy, text: "alice@example.com is in no group; admitted: group developers"},
		"hostile names": {rules: rule("groups: [developers]"), edit: func(id *Identity) { id.Groups = []string{"\x1b[2Jx\n"} }, reason: ReasonPolicy, text: `\x1b[2Jx\n`},
		"a hundred groups": {rules: rule("groups: [developers]"), edit: func(id *Identity) {
			id.Groups = nil
			for n := range 100 {
				id.Groups = append(id.Groups, fmt.Sprint("g", n))
			}
		}, reason: ReasonPolicy, text: "and 92 more; admitted: group developers"},

		"duration":              {rules: rule("groups: [developers]", "maxDuration: 2h"), ports: []uint16{443}, until: "2026-03-02T10:00:00Z", rule: "rule 1"},
		"duration from iat":     {rules: rule("groups: [developers]", "maxDuration: 2h"), edit: func(id *Identity) { id.AuthTime = time.Time{} }, ports: []uint16{443}, until: "2026-03-02T10:01:00Z", rule: "rule 1"},
		"duration over":         {rules: rule("groups: [developers]", "maxDuration: 1h"), reason: ReasonLoginTooOld, text: "admits for 1h", hint: "login"},
		"duration covered":      {rules: rule("groups: [developers]", "maxDuration: 2h") + rule("subjects: [alice]"), ports: []uint16{443}, rule: "rule 1"},
		"duration covered long": {rules: rule("groups: [developers]", "maxDuration: 2h") + rule("subjects: [alice]", "maxDuration: 5h"), ports: []uint16{443}, until: "2026-03-02T13:00:00Z", rule: "rule 1"},
		"one port ends first":   {rules: rule("groups: [developers]", "maxDuration: 2h", "ports: [8443]") + rule("subjects: [alice]"), ports: []uint16{443, 8443}, until: "2026-03-02T10:00:00Z", rule: "rule 1"},

		"window":                   {rules: rule("groups: [developers]", `windows: [{days: [mon], from: "08:00", to: "18:00", zone: UTC}]`), ports: []uint16{443}, until: "2026-03-02T18:00:00Z", rule: "rule 1"},
		"window without zone":      {rules: rule("groups: [developers]", `windows: [{from: "08:00", to: "18:00"}]`), ports: []uint16{443}, until: "2026-03-02T18:00:00Z", rule: "rule 1"},
		"window in Berlin":         {rules: rule("groups: [developers]", `windows: [{from: "08:00", to: "18:00", zone: Europe/Berlin}]`), ports: []uint16{443}, until: "2026-03-02T17:00:00Z", rule: "rule 1"},
		"window begins":            {rules: rule("groups: [developers]", `windows: [{from: "09:00", to: "09:01"}]`), ports: []uint16{443}, until: "2026-03-02T09:01:00Z", rule: "rule 1"},
		"window has ended":         {rules: rule("groups: [developers]", `windows: [{days: [mon], from: "08:00", to: "09:00"}]`), reason: ReasonWindow, until: "2026-03-09T08:00:00Z", text: "mon 08:00–09:00 UTC", hint: "Mon 2026-03-09 08:00 UTC"},
		"window is later":          {rules: rule("groups: [developers]", `windows: [{from: "10:00", to: "11:00"}]`), reason: ReasonWindow, until: "2026-03-02T10:00:00Z", hint: "10:00"},
		"window of another day":    {rules: rule("groups: [developers]", `windows: [{days: [tue, wed], from: "08:00", to: "18:00"}]`), reason: ReasonWindow, until: "2026-03-03T08:00:00Z"},
		"windows touch":            {rules: rule("groups: [developers]", `windows: [{from: "08:00", to: "12:00"}, {from: "12:00", to: "14:00"}]`), ports: []uint16{443}, until: "2026-03-02T14:00:00Z", rule: "rule 1"},
		"rules touch":              {rules: rule("groups: [developers]", `windows: [{from: "08:00", to: "12:00"}]`) + rule("subjects: [alice]", `windows: [{from: "12:00", to: "14:00"}]`), ports: []uint16{443}, until: "2026-03-02T14:00:00Z", rule: "rule 1"},
		"whole days":               {rules: rule("groups: [developers]", `windows: [{from: "00:00", to: "24:00"}]`), ports: []uint16{443}, rule: "rule 1"},
		"whole Monday":             {rules: rule("groups: [developers]", `windows: [{days: [mon], from: "00:00", to: "24:00"}]`), ports: []uint16{443}, until: "2026-03-03T00:00:00Z", rule: "rule 1"},
		"duration before window":   {rules: rule("groups: [developers]", "maxDuration: 90m", `windows: [{from: "08:00", to: "18:00"}]`), ports: []uint16{443}, until: "2026-03-02T09:30:00Z", rule: "rule 1"},
		"window before duration":   {rules: rule("groups: [developers]", "maxDuration: 90m", `windows: [{from: "08:00", to: "09:10"}]`), ports: []uint16{443}, until: "2026-03-02T09:10:00Z", rule: "rule 1"},
		"too old and outside":      {rules: rule("groups: [developers]", "maxDuration: 30m", `windows: [{from: "08:00", to: "08:30"}]`), reason: ReasonLoginTooOld, text: "only daily 08:00–08:30", hint: "at one of these times"},
		"a start is no end":        {rules: rule("groups: [developers]") + rule("subjects: [alice]", "ports: [8443]", `windows: [{from: "10:00", to: "11:00"}]`), ports: []uint16{443}, rule: "rule 1"},
		"across midnight, before":  {rules: rule("groups: [developers]", `windows: [{days: [mon], from: "22:00", to: "06:00", zone: Europe/Berlin}]`), now: "2026-03-02T22:30:00Z", ports: []uint16{443}, until: "2026-03-03T05:00:00Z", rule: "rule 1"},
		"across midnight, after":   {rules: rule("groups: [developers]", `windows: [{days: [mon], from: "22:00", to: "06:00", zone: Europe/Berlin}]`), now: "2026-03-03T04:59:59Z", ports: []uint16{443}, until: "2026-03-03T05:00:00Z", rule: "rule 1"},
		"across midnight, over":    {rules: rule("groups: [developers]", `windows: [{days: [mon], from: "22:00", to: "06:00", zone: Europe/Berlin}]`), now: "2026-03-03T05:00:00Z", reason: ReasonWindow, until: "2026-03-09T21:00:00Z"},
		"across midnight, Sunday":  {rules: rule("groups: [developers]", `windows: [{days: [mon], from: "22:00", to: "06:00", zone: Europe/Berlin}]`), now: "2026-03-02T02:00:00Z", reason: ReasonWindow, until: "2026-03-02T21:00:00Z"},
		"another date in its zone": {rules: rule("groups: [developers]", `windows: [{days: [tue], from: "00:00", to: "24:00", zone: Pacific/Auckland}]`), now: "2026-03-02T12:00:00Z", ports: []uint16{443}, until: "2026-03-03T11:00:00Z", rule: "rule 1"},

		"spring, hours lost": {rules: rule("groups: [developers]", `windows: [{from: "22:00", to: "06:00", zone: Europe/Berlin}]`), now: "2026-03-28T22:00:00Z", ports: []uint16{443}, until: "2026-03-29T04:00:00Z", rule: "rule 1"},
		"autumn, hours won":  {rules: rule("groups: [developers]", `windows: [{from: "22:00", to: "06:00", zone: Europe/Berlin}]`), now: "2026-10-24T21:00:00Z", ports: []uint16{443}, until: "2026-10-25T05:00:00Z", rule: "rule 1"},
		"ends in the gap":    {rules: rule("groups: [developers]", `windows: [{from: "00:00", to: "02:30", zone: Europe/Berlin}]`), now: "2026-03-29T00:30:00Z", ports: []uint16{443}, until: "2026-03-29T01:00:00Z", rule: "rule 1"},
		"begins in the gap":  {rules: rule("groups: [developers]", `windows: [{from: "02:30", to: "05:00", zone: Europe/Berlin}]`), now: "2026-03-29T00:59:59Z", reason: ReasonWindow, until: "2026-03-29T01:00:00Z"},
		"all in the gap":     {rules: rule("groups: [developers]", `windows: [{from: "02:10", to: "02:50", zone: Europe/Berlin}]`), now: "2026-03-29T01:00:00Z", reason: ReasonWindow, until: "2026-03-30T00:10:00Z"},
		"ends twice":         {rules: rule("groups: [developers]", `windows: [{from: "00:00", to: "02:30", zone: Europe/Berlin}]`), now: "2026-10-25T00:00:00Z", ports: []uint16{443}, until: "2026-10-25T00:30:00Z", rule: "rule 1"},
		"begins twice":       {rules: rule("groups: [developers]", `windows: [{from: "02:30", to: "05:00", zone: Europe/Berlin}]`), now: "2026-10-25T01:15:00Z", ports: []uint16{443}, until: "2026-10-25T04:00:00Z", rule: "rule 1"},
		"west, ends twice":   {rules: rule("groups: [developers]", `windows: [{from: "00:00", to: "01:30", zone: America/New_York}]`), now: "2026-11-01T05:00:00Z", ports: []uint16{443}, until: "2026-11-01T05:30:00Z", rule: "rule 1"},
		"west, in the gap":   {rules: rule("groups: [developers]", `windows: [{from: "02:30", to: "05:00", zone: America/New_York}]`), now: "2026-03-08T06:30:00Z", reason: ReasonWindow, until: "2026-03-08T07:00:00Z"},
		"half an hour moved": {rules: rule("groups: [developers]", `windows: [{from: "01:45", to: "03:00", zone: Australia/Lord_Howe}]`), now: "2026-04-04T14:50:00Z", ports: []uint16{443}, until: "2026-04-04T16:30:00Z", rule: "rule 1"},

		"denied by name":       {rules: rule("everyone: true") + "deny:\n- {issuer: https://login.example.com, uid: alice}\n", reason: ReasonDenied, text: "alice@example.com"},
		"denied by key":        {rules: rule("everyone: true") + "deny:\n- key: " + alice.String() + "\n", edit: func(id *Identity) { id.LoginKey = alice }, reason: ReasonDenied},
		"another key":          {rules: rule("everyone: true") + "deny:\n- key: " + alice.String() + "\n", ports: []uint16{443}, rule: "rule 1"},
		"another person":       {rules: rule("everyone: true") + "deny:\n- {issuer: https://login.example.com, uid: bob}\n", ports: []uint16{443}, rule: "rule 1"},
		"login before":         {rules: rule("everyone: true") + "deny:\n- {issuer: https://login.example.com, uid: alice, before: 2026-03-02T08:00:01Z}\n", reason: ReasonRevoked, text: "2026-03-02T08:00:01Z", hint: "login"},
		"login not before":     {rules: rule("everyone: true") + "deny:\n- {issuer: https://login.example.com, uid: alice, before: 2026-03-02T08:00:00Z}\n", ports: []uint16{443}, rule: "rule 1"},
		"new token, old login": {rules: rule("everyone: true") + "deny:\n- {issuer: https://login.example.com, uid: alice, before: 2026-03-02T08:30:00Z}\n", edit: func(id *Identity) { id.IssuedAt = id.IssuedAt.Add(time.Hour) }, reason: ReasonRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			p := policyParse(t, policyIssuers+"rules:"+map[bool]string{true: " []\n", false: "\n"}[c.rules == ""]+c.rules)
			if c.now == "" {
				c.now = "2026-03-02T09:00:00Z"
			}
			d := p.Decide(policyIdentity(c.edit), nil, policyTime(t, c.now))
			var until string
			if !d.Until.IsZero() {
				until = d.Until.UTC().Format(time.RFC3339)
			}
			if !slices.Equal(d.Ports, c.ports) || until != c.until || d.Rule != c.rule {
				t.Errorf("got ports %v until %q by %q, want %v until %q by %q (%v)", d.Ports, until, d.Rule, c.ports, c.until, c.rule, d.Refusal)
			}
			if c.reason == "" {
				if d.Refusal != nil {
					t.Errorf("refused: %v", d.Refusal)
				}
				return
			}
			if d.Refusal == nil || d.Refusal.Reason != c.reason {
				t.Fatalf("refusal is %v, want reason %q", d.Refusal, c.reason)
			}
			if !strings.Contains(d.Refusal.Error(), c.text) || !strings.Contains(d.Refusal.Hint(), c.hint) || d.Refusal.Hint() == "" {
				t.Errorf("refusal is %q (hint %q), want %q (hint with %q)", d.Refusal, d.Refusal.Hint(), c.text, c.hint)
			}
		})
	}
}

// TestUntilIsTheFirstChange walks a year of one policy minute by minute: what
// Decide says lasts until Until, and not longer.
func TestUntilIsTheFirstChange(t *testing.T) {
	p := policyParse(t, policyIssuers+`rules:
- {issuer: https://login.example.com, everyone: true, windows: [{days: [fri, sat], from: "21:00", to: "02:30", zone: Europe/Berlin}, {days: [sun], from: "01:15", to: "04:00", zone: Europe/Berlin}]}
- {issuer: https://login.example.com, everyone: true, ports: [8443], windows: [{from: "02:15", to: "02:45", zone: America/New_York}]}
`)
	for _, begin := range []string{"2026-03-06T00:00:00Z", "2026-03-27T00:00:00Z", "2026-10-23T00:00:00Z", "2026-10-30T00:00:00Z"} {
		now := policyTime(t, begin)
		var previous Decision
		for range 4 * 24 * 60 {
			d := p.Decide(policyIdentity(nil), nil, now)
			if previous.Refusal == nil && len(previous.Ports) > 0 {
				lost := slices.ContainsFunc(previous.Ports, func(port uint16) bool { return !slices.Contains(d.Ports, port) })
				due := !previous.Until.IsZero() && !now.Before(previous.Until)
				if lost != due {
					t.Fatalf("at %s: a port closed: %v, Until had come: %v (%v, %v)", now, lost, due, previous, d)
				}
			}
			if previous.Refusal != nil && (d.Refusal == nil) != (!previous.Until.IsZero() && !now.Before(previous.Until)) {
				t.Fatalf("at %s: refusal said %s until %s", now, previous.Refusal, previous.Until)
			}
			previous = d
			now = now.Add(time.Minute)
		}
	}
}

// FuzzParsePolicy: the attacker writes the cluster's ConfigMap, and wants the
// node to crash, to run out of memory, or to read it otherwise than a person.
func FuzzParsePolicy(f *testing.F) {
	text, err := os.ReadFile(filepath.Join("testdata", "policy.yaml"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(policyIssuers))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("issuers: [{}]\n---\n"))
	f.Add([]byte("? [a]\n: b\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParsePolicy(text)
		if err != nil {
			if _, ok := errors.AsType[*PolicyError](err); !ok {
				t.Errorf("%T: %v, want a *PolicyError", err, err)
			}
			return
		}
		if len(p.Issuers) == 0 {
			t.Error("a policy without issuers")
		}
		id := policyIdentity(nil)
		d := p.Decide(id, nil, id.IssuedAt)
		if (d.Refusal == nil) != (len(d.Ports) > 0) {
			t.Errorf("decision %+v", d)
		}
	})
}
