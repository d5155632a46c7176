package auth

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// accessGrantObject is an object as the API server serves it.
func accessGrantObject(spec string) string {
	return `{"apiVersion":"access.zt-daemon.io/v1alpha1","kind":"AccessGrant",` +
		`"metadata":{"name":"g1","uid":"b0e2","managedFields":[{"manager":"kubectl"}]},` +
		`"spec":{` + spec + `},"status":{"phase":"Active","nodes":[{"pod":"zt-1","phase":"Active","later":{"x":[1]}}]}}`
}

const accessGrantTimes = `"reason":"on call","notBefore":"2026-03-02T08:00:00Z","notAfter":"2026-03-02T12:00:00+02:00"`

func TestParseAccessGrant(t *testing.T) {
	got, err := ParseAccessGrant([]byte(accessGrantObject(`"subject":"alice","issuer":"https://login.example.com","ports":[443,8443],` + accessGrantTimes)))
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "g1" || got.Issuer != "https://login.example.com" || got.Subject != "alice" || got.Group != "" || got.Reason != "on call" ||
		!got.NotBefore.Equal(policyTime(t, "2026-03-02T08:00:00Z")) || !got.NotAfter.Equal(policyTime(t, "2026-03-02T10:00:00Z")) || !slices.Equal(got.Ports, []uint16{443, 8443}) {
		t.Errorf("got %+v", got)
	}
	if got, err = ParseAccessGrant([]byte(accessGrantObject(`"group":"sre",` + accessGrantTimes))); err != nil || got.Group != "sre" || !slices.Equal(got.Ports, []uint16{443}) {
		t.Errorf("got %+v, %v", got, err)
	}
	deleted := strings.Replace(accessGrantObject(`"group":"sre",`+accessGrantTimes), `"uid"`, `"deletionTimestamp":"2026-03-02T08:30:00Z","finalizers":["a/b"],"uid"`, 1)
	if got, err = ParseAccessGrant([]byte(deleted)); err != nil || got.Active(policyTime(t, "2026-03-02T08:30:00Z")) || !got.Active(policyTime(t, "2026-03-02T08:29:59Z")) {
		t.Errorf("one that is being deleted: got %+v, %v", got, err)
	}
}

func TestParseAccessGrantRefuses(t *testing.T) {
	for name, c := range map[string]struct{ object, text string }{
		"not JSON":              {"{", "not JSON"},
		"a list":                {"[]", "list"},
		"too large":             {strings.Repeat(" ", MaxAccessGrantBytes+1), "at most"},
		"another kind":          {strings.Replace(accessGrantObject(`"subject":"a",`+accessGrantTimes), `"AccessGrant"`, `"Secret"`, 1), "Secret"},
		"another version":       {strings.Replace(accessGrantObject(`"subject":"a",`+accessGrantTimes), "v1alpha1", "v2", 1), "v2"},
		"no name":               {strings.Replace(accessGrantObject(`"subject":"a",`+accessGrantTimes), `"name":"g1",`, "", 1), "no name"},
		"no spec":               {`{"apiVersion":"access.zt-daemon.io/v1alpha1","kind":"AccessGrant","metadata":{"name":"a"}}`, "nobody"},
		"unknown field":         {accessGrantObject(`"subject":"a","cidr":"10.0.0.0/8",` + accessGrantTimes), `unknown field "spec.cidr"`},
		"wrong case":            {accessGrantObject(`"Subject":"a",` + accessGrantTimes), "wrong case"},
		"twice":                 {accessGrantObject(`"subject":"a","subject":"b",` + accessGrantTimes), "duplicate"},
		"null":                  {accessGrantObject(`"subject":"a","group":null,` + accessGrantTimes), "null"},
		"nobody":                {accessGrantObject(accessGrantTimes), "names nobody"},
		"two":                   {accessGrantObject(`"subject":"a","group":"b",` + accessGrantTimes), "write two"},
		"no reason":             {accessGrantObject(`"subject":"a","notBefore":"2026-03-02T08:00:00Z","notAfter":"2026-03-02T09:00:00Z"`), "reason"},
		"blank reason":          {accessGrantObject(`"subject":"a","reason":" ","notBefore":"2026-03-02T08:00:00Z","notAfter":"2026-03-02T09:00:00Z"`), "reason"},
		"no begin":              {accessGrantObject(`"subject":"a","reason":"r","notAfter":"2026-03-02T09:00:00Z"`), "notBefore is missing"},
		"no end":                {accessGrantObject(`"subject":"a","reason":"r","notBefore":"2026-03-02T09:00:00Z"`), "notAfter is missing"},
		"an end at once":        {accessGrantObject(`"subject":"a","reason":"r","notBefore":"2026-03-02T09:00:00Z","notAfter":"2026-03-02T09:00:00Z"`), "not later"},
		"a day for a time":      {accessGrantObject(`"subject":"a","reason":"r","notBefore":"2026-03-02","notAfter":"2026-03-03"`), "2026-03-02"},
		"no ports":              {accessGrantObject(`"subject":"a","ports":[],` + accessGrantTimes), "empty list"},
		"port 0":                {accessGrantObject(`"subject":"a","ports":[0],` + accessGrantTimes), "zero"},
		"port twice":            {accessGrantObject(`"subject":"a","ports":[443,443],` + accessGrantTimes), "twice"},
		"port too large":        {accessGrantObject(`"subject":"a","ports":[65536],` + accessGrantTimes), "65536"},
		"too many ports":        {accessGrantObject(`"subject":"a","ports":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17],` + accessGrantTimes), "at most 16"},
		"a broken character":    {accessGrantObject(`"group":"\ud800",` + accessGrantTimes), "broken"},
		"a long group":          {accessGrantObject(`"group":"` + strings.Repeat("x", accessGrantMaxText+1) + `",` + accessGrantTimes), "longer"},
		"metadata that is text": {strings.Replace(accessGrantObject(`"subject":"a",`+accessGrantTimes), `"metadata":{"name":"g1","uid":"b0e2","managedFields":[{"manager":"kubectl"}]}`, `"metadata":"g1"`, 1), "metadata"},
	} {
		t.Run(name, func(t *testing.T) {
			if g, err := ParseAccessGrant([]byte(c.object)); err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %+v, %v; want an error with %q", g, err, c.text)
			}
		})
	}
}

// accessGrantFor makes one from Monday 2026-03-02, from and to being "15:04".
func accessGrantFor(t testing.TB, name, subject, group, from, to string, edit ...func(*AccessGrant)) AccessGrant {
	g := AccessGrant{
		Name: name, Subject: subject, Group: group, Reason: "r", Ports: []uint16{443},
		NotBefore: policyTime(t, "2026-03-02T"+from+":00Z"), NotAfter: policyTime(t, "2026-03-02T"+to+":00Z"),
	}
	for _, e := range edit {
		e(&g)
	}
	return g
}

func TestDecideWithAccessGrants(t *testing.T) {
	const (
		open   = "rules:\n- {name: devs, issuer: https://login.example.com, groups: [developers]}\n"
		others = "rules:\n- {issuer: https://login.example.com, groups: [others]}\n"
		closed = "closed: true\n" + open + "openers:\n- {name: sre, issuer: https://login.example.com, groups: [sre], subjects: [carol, dave]}\n"
		two    = "- url: https://login.example.org\n  clientID: zt\n"
	)
	grant := func(name, from, to string, edit ...func(*AccessGrant)) AccessGrant {
		return accessGrantFor(t, name, "alice", "", from, to, edit...)
	}
	group := func(name, group, from, to string) AccessGrant { return accessGrantFor(t, name, "", group, from, to) }
	ports := func(ports ...uint16) func(*AccessGrant) { return func(g *AccessGrant) { g.Ports = ports } }
	issuer := func(url string) func(*AccessGrant) { return func(g *AccessGrant) { g.Issuer = url } }
	sre := func(id *Identity) { id.UID, id.Groups = "carol", []string{"sre"} }
	for name, c := range map[string]struct {
		policy string // after the first issuer
		edit   func(*Identity)
		grants []AccessGrant
		now    string // default 2026-03-02T09:00:00Z
		ports  []uint16
		until  string
		rule   string
		grant  string
		reason Reason
		text   string // in the refusal's Error
		hint   string
	}{
		"open, by rule":        {policy: open, ports: []uint16{443}, rule: "devs"},
		"open, by AccessGrant": {policy: others, grants: []AccessGrant{grant("g", "08:00", "10:00")}, ports: []uint16{443}, until: "2026-03-02T10:00:00Z", grant: "g"},
		"open, both":           {policy: open, grants: []AccessGrant{grant("g", "08:00", "10:00")}, ports: []uint16{443}, rule: "devs"},
		"open, another port": {policy: open, grants: []AccessGrant{grant("g", "08:00", "10:00", ports(443, 8443))},
			ports: []uint16{443, 8443}, until: "2026-03-02T10:00:00Z", rule: "devs", grant: "g"},
		"openers of an open cluster": {policy: strings.TrimPrefix(closed, "closed: true\n"), edit: sre, reason: ReasonPolicy},

		"closed, a rule admits nobody": {policy: closed, reason: ReasonClosed, text: "alice@example.com is in group developers; openers: group sre", hint: "zt-daemon request"},
		"closed, nobody opens":         {policy: "closed: true\n" + open, reason: ReasonClosed, text: "names no openers"},
		"closed, openers elsewhere":    {policy: two + "closed: true\nopeners: [{issuer: https://login.example.org, groups: [sre]}]\n", reason: ReasonClosed, text: "of another issuer"},
		"closed, an opener":            {policy: closed, edit: sre, ports: []uint16{443}, rule: "sre"},
		"closed, half an opener":       {policy: closed, edit: func(id *Identity) { id.Groups = []string{"sre"} }, reason: ReasonClosed},
		"closed, opener by claim":      {policy: "closed: true\nopeners: [{issuer: https://login.example.com, claims: {level: 3}}]\n", ports: []uint16{443}, rule: "opener 1"},
		"closed, an AccessGrant":       {policy: closed, grants: []AccessGrant{grant("g", "08:00", "10:00")}, ports: []uint16{443}, until: "2026-03-02T10:00:00Z", grant: "g"},
		"closed, of a group":           {policy: closed, grants: []AccessGrant{group("g", "developers", "08:00", "10:00")}, ports: []uint16{443}, until: "2026-03-02T10:00:00Z", grant: "g"},
		"closed, of another group":     {policy: closed, grants: []AccessGrant{group("g", "ops", "08:00", "10:00")}, reason: ReasonClosed},
		"closed, of nobody by rule":    {policy: closed, edit: func(id *Identity) { id.Groups = nil }, grants: []AccessGrant{grant("g", "08:00", "10:00")}, ports: []uint16{443}, until: "2026-03-02T10:00:00Z", grant: "g"},
		"a subject is a uid":           {policy: closed, grants: []AccessGrant{accessGrantFor(t, "g", "sub-alice", "", "08:00", "10:00")}, reason: ReasonClosed},
		"a group is no subject":        {policy: closed, grants: []AccessGrant{accessGrantFor(t, "g", "developers", "", "08:00", "10:00")}, reason: ReasonClosed},
		"a subject is no group":        {policy: closed, grants: []AccessGrant{group("g", "alice", "08:00", "10:00")}, reason: ReasonClosed},
		"nobody":                       {policy: closed, edit: func(id *Identity) { id.UID = "" }, grants: []AccessGrant{accessGrantFor(t, "g", "", "", "08:00", "10:00")}, reason: ReasonClosed},

		"it begins":               {policy: closed, grants: []AccessGrant{grant("g", "09:00", "10:00")}, ports: []uint16{443}, until: "2026-03-02T10:00:00Z", grant: "g"},
		"just before it begins":   {policy: closed, grants: []AccessGrant{grant("g", "09:00", "10:00")}, now: "2026-03-02T08:59:59Z", reason: ReasonClosed, until: "2026-03-02T09:00:00Z", text: "AccessGrant g begins at 2026-03-02T09:00:00Z", hint: "Mon 2026-03-02 09:00 UTC"},
		"its last second":         {policy: closed, grants: []AccessGrant{grant("g", "08:00", "09:00")}, now: "2026-03-02T08:59:59Z", ports: []uint16{443}, until: "2026-03-02T09:00:00Z", grant: "g"},
		"it has ended":            {policy: closed, grants: []AccessGrant{grant("g", "08:00", "09:00"), grant("f", "07:00", "08:00")}, reason: ReasonClosed, text: "AccessGrant g ended at 2026-03-02T09:00:00Z", hint: "request"},
		"one ends, another holds": {policy: closed, grants: []AccessGrant{grant("f", "07:00", "10:00"), grant("g", "08:00", "11:00")}, ports: []uint16{443}, until: "2026-03-02T11:00:00Z", grant: "g"},
		"one takes over":          {policy: closed, grants: []AccessGrant{grant("f", "08:00", "10:00"), grant("g", "10:00", "11:00")}, ports: []uint16{443}, until: "2026-03-02T11:00:00Z", grant: "f"},
		"with a gap":              {policy: closed, grants: []AccessGrant{grant("f", "08:00", "10:00"), grant("g", "10:01", "11:00")}, ports: []uint16{443}, until: "2026-03-02T10:00:00Z", grant: "f"},
		"a rule takes over": {policy: "rules:\n- issuer: https://login.example.com\n  groups: [developers]\n  windows: [{from: \"10:00\", to: \"12:00\"}]\n",
			grants: []AccessGrant{grant("g", "08:00", "10:00")}, ports: []uint16{443}, until: "2026-03-02T12:00:00Z", grant: "g"},
		"outside the window": {policy: "rules:\n- issuer: https://login.example.com\n  groups: [developers]\n  windows: [{from: \"12:00\", to: \"13:00\"}]\n",
			grants: []AccessGrant{grant("g", "11:00", "12:00")}, reason: ReasonWindow, until: "2026-03-02T11:00:00Z", text: "AccessGrant g begins", hint: "11:00"},
		"the window is sooner": {policy: "rules:\n- issuer: https://login.example.com\n  groups: [developers]\n  windows: [{from: \"10:00\", to: \"13:00\"}]\n",
			grants: []AccessGrant{grant("g", "11:00", "12:00")}, reason: ReasonWindow, until: "2026-03-02T10:00:00Z", hint: "10:00"},
		"a login too old": {policy: "rules:\n- {issuer: https://login.example.com, groups: [developers], maxDuration: 30m}\n",
			grants: []AccessGrant{grant("g", "08:00", "10:00")}, ports: []uint16{443}, until: "2026-03-02T10:00:00Z", grant: "g"},

		"deny wins":                {policy: closed + "deny: [{issuer: https://login.example.com, uid: alice}]\n", grants: []AccessGrant{grant("g", "08:00", "10:00")}, reason: ReasonDenied},
		"deny wins over an opener": {policy: closed + "deny: [{issuer: https://login.example.com, uid: carol}]\n", edit: sre, reason: ReasonDenied},
		"denied logins":            {policy: closed + "deny: [{issuer: https://login.example.com, uid: alice, before: 2026-03-02T08:00:01Z}]\n", grants: []AccessGrant{grant("g", "08:00", "10:00")}, reason: ReasonRevoked},
		"8 h are the most":         {policy: closed, grants: []AccessGrant{grant("g", "08:00", "16:00")}, ports: []uint16{443}, until: "2026-03-02T16:00:00Z", grant: "g"},
		"too long":                 {policy: closed, grants: []AccessGrant{grant("g", "08:00", "16:01")}, reason: ReasonClosed, text: "AccessGrant g does not count: it lasts for 8h1m, and the policy allows 8h", hint: "request"},
		"a longer maximum":         {policy: closed + "accessGrants: {maxDuration: 24h}\n", grants: []AccessGrant{grant("g", "00:00", "23:59")}, ports: []uint16{443}, until: "2026-03-02T23:59:00Z", grant: "g"},
		"a shorter maximum": {policy: closed + "accessGrants: {maxDuration: 1h}\n", grants: []AccessGrant{grant("g", "08:00", "10:00"), grant("f", "08:30", "09:30")},
			ports: []uint16{443}, until: "2026-03-02T09:30:00Z", grant: "f"},

		"two issuers, none named":    {policy: two + closed, grants: []AccessGrant{grant("g", "08:00", "10:00")}, reason: ReasonClosed, text: "AccessGrant g does not count: it names no issuer"},
		"two issuers, the right one": {policy: two + closed, grants: []AccessGrant{grant("g", "08:00", "10:00", issuer("https://login.example.com"))}, ports: []uint16{443}, until: "2026-03-02T10:00:00Z", grant: "g"},
		"two issuers, the other one": {policy: two + closed, grants: []AccessGrant{grant("g", "08:00", "10:00", issuer("https://login.example.org"))}, reason: ReasonClosed},
		"an issuer that left":        {policy: closed, edit: func(id *Identity) { id.Issuer = "https://login.example.net" }, grants: []AccessGrant{grant("g", "08:00", "10:00")}, reason: ReasonClosed},
		"an issuer that is not accepted": {policy: closed, edit: func(id *Identity) { id.Issuer = "https://login.example.net" },
			grants: []AccessGrant{grant("g", "08:00", "10:00", issuer("https://login.example.net"))}, reason: ReasonClosed, text: "is of issuer https://login.example.net"},
		"only another port": {policy: closed, grants: []AccessGrant{grant("g", "08:00", "10:00", ports(8443))}, ports: []uint16{8443}, until: "2026-03-02T10:00:00Z", grant: "g"},
		"a hostile name":    {policy: closed, grants: []AccessGrant{grant("g\x1b[2J", "10:00", "11:00")}, reason: ReasonClosed, until: "2026-03-02T10:00:00Z", text: `g\x1b[2J begins`},
	} {
		t.Run(name, func(t *testing.T) {
			p := policyParse(t, policyIssuers+c.policy)
			if c.now == "" {
				c.now = "2026-03-02T09:00:00Z"
			}
			// Nothing depends on the order in which a watch told them.
			for range 2 {
				slices.Reverse(c.grants)
				d := p.Decide(policyIdentity(c.edit), c.grants, policyTime(t, c.now))
				var until string
				if !d.Until.IsZero() {
					until = d.Until.UTC().Format(time.RFC3339)
				}
				if !slices.Equal(d.Ports, c.ports) || until != c.until || d.Rule != c.rule || d.AccessGrant != c.grant {
					t.Errorf("got ports %v until %q by rule %q, AccessGrant %q; want %v until %q by %q, %q (%v)",
						d.Ports, until, d.Rule, d.AccessGrant, c.ports, c.until, c.rule, c.grant, d.Refusal)
				}
				if c.reason == "" {
					if d.Refusal != nil {
						t.Errorf("refused: %v", d.Refusal)
					}
					continue
				}
				if d.Refusal == nil || d.Refusal.Reason != c.reason {
					t.Fatalf("refusal is %v, want reason %q", d.Refusal, c.reason)
				}
				if !strings.Contains(d.Refusal.Error(), c.text) || !strings.Contains(d.Refusal.Hint(), c.hint) {
					t.Errorf("refusal is %q (hint %q), want %q (hint with %q)", d.Refusal, d.Refusal.Hint(), c.text, c.hint)
				}
			}
		})
	}
}

// FuzzParseAccessGrant: the attacker may create AccessGrants for some group, and
// wants a node to crash, or to read one otherwise than the API server checked it.
func FuzzParseAccessGrant(f *testing.F) {
	f.Add([]byte(accessGrantObject(`"subject":"alice",` + accessGrantTimes)))
	f.Add([]byte(accessGrantObject(`"group":"sre","issuer":"https://a.example","ports":[1,65535],` + accessGrantTimes)))
	f.Add([]byte(`{"apiVersion":"access.zt-daemon.io/v1alpha1","kind":"AccessGrant","metadata":{"name":1},"spec":{}}`))
	f.Add([]byte(`{"spec":{"notAfter":"9999-12-31T23:59:59Z","notBefore":"0000-01-01T00:00:00Z"}}`))
	p := policyParse(f, policyIssuers+"closed: true\n")
	f.Fuzz(func(t *testing.T, object []byte) {
		g, err := ParseAccessGrant(object)
		if err != nil {
			return
		}
		if g.Name == "" || (g.Subject == "") == (g.Group == "") || g.Reason == "" || len(g.Ports) == 0 || slices.Contains(g.Ports, 0) {
			t.Errorf("read %+v", g)
		}
		id := policyIdentity(func(id *Identity) {
			id.UID, id.Groups = g.Subject, []string{g.Group}
		})
		d := p.Decide(id, []AccessGrant{g}, g.NotBefore)
		if admitted, counts := d.Refusal == nil, p.CheckAccessGrant(g) == nil && g.Active(g.NotBefore); admitted != counts {
			t.Errorf("admitted %v, counts %v: %+v", admitted, counts, g)
		}
		// What was read reads back from what the API server would serve of it.
		spec := map[string]any{"reason": g.Reason, "notBefore": g.NotBefore, "notAfter": g.NotAfter, "ports": g.Ports}
		for name, text := range map[string]string{"issuer": g.Issuer, "subject": g.Subject, "group": g.Group} {
			if text != "" {
				spec[name] = text
			}
		}
		if !g.NotAfter.After(g.NotBefore) {
			return // deleted before it began
		}
		b, err := json.Marshal(map[string]any{"apiVersion": AccessGrantAPI, "kind": AccessGrantKind, "metadata": map[string]string{"name": g.Name}, "spec": spec})
		if err != nil {
			t.Skip(err) // a year past 9999 in another zone
		}
		again, err := ParseAccessGrant(b)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(g) {
			t.Errorf("read back %+v, %v; want %+v", again, err, g)
		}
	})
}
