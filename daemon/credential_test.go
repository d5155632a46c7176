package daemon

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestExecCredential(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	token := CredentialResult{IDToken: NewSecret("a.b.c"), Expiry: now.Add(time.Hour)}
	b, err := token.ExecCredential(now)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","spec":{},"status":{"expirationTimestamp":"2026-01-02T04:03:55Z","token":"a.b.c"}}` + "\n"
	if string(b) != want {
		t.Errorf("got %s, want %s", b, want)
	}
	for name, c := range map[string]CredentialResult{
		"expired":             {NewSecret("a.b.c"), now.Add(-time.Second)},
		"about to expire":     {NewSecret("a.b.c"), now.Add(CredentialMargin)},
		"without an end":      {NewSecret("a.b.c"), time.Time{}},
		"no token":            {Secret{}, now.Add(time.Hour)},
		"a token with spaces": {NewSecret("a.b.c\nx"), now.Add(time.Hour)},
	} {
		if b, err := c.ExecCredential(now); err == nil {
			t.Errorf("%s: got %s", name, b)
		} else if strings.Contains(err.Error(), "a.b.c") {
			t.Errorf("%s: the error tells the token", name)
		}
	}
	_, err = CredentialResult{NewSecret("a.b.c"), now}.ExecCredential(now)
	if code := AsLocalError(err).ExitCode(); code != ExitLogin {
		t.Errorf("exit code of an expired token is %d, want %d", code, ExitLogin)
	}
}

func TestParseExecInfo(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       ExecInfo
		ok         bool
	}{
		{"a person typed it", "", ExecInfo{}, true},
		{"kubectl", `{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","spec":{"interactive":true}}`, ExecInfo{Interactive: true}, true},
		{"with the cluster", `{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","spec":{"cluster":{"server":"https://a","config":null},"interactive":false},"new":1}`, ExecInfo{Server: "https://a"}, true},
		{"old version", `{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1beta1","spec":{"interactive":true}}`, ExecInfo{}, false},
		{"other kind", `{"kind":"Pod","apiVersion":"client.authentication.k8s.io/v1"}`, ExecInfo{}, false},
		{"not JSON", `{`, ExecInfo{}, false},
		{"too large", `"` + strings.Repeat("x", execInfoMaxBytes) + `"`, ExecInfo{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseExecInfo(c.text)
			if got != c.want || (err == nil) != c.ok {
				t.Errorf("got %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

// Attacker: whoever wrote the kubeconfig, whose parts client-go puts in there.
func FuzzParseExecInfo(f *testing.F) {
	f.Add(`{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","spec":{"interactive":true,"cluster":{"server":"x"}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := ParseExecInfo(text); err == nil && text != "" && !json.Valid([]byte(text)) {
			t.Errorf("%q was taken", text)
		}
	})
}
