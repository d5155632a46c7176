package daemon

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
)

// TestPolicyWatchState holds what a policy watch says against what came.
func TestPolicyWatchState(t *testing.T) {
	const good, better = "issuers: [{url: \"http://127.0.0.1:1\", clientID: zt}]\n", "issuers: [{url: \"http://127.0.0.1:1\", clientID: zt}]\nrules: []\n"
	away := &PolicyMissingError{Where: "ConfigMap zt/p", Err: errors.New("forbidden")}
	gone := &PolicyMissingError{Where: "ConfigMap zt/p"}
	for _, tc := range []struct {
		name    string
		steps   []func(*policyWatch)
		inForce bool
		fault   string // in it; empty: none
		changes int
	}{
		{"nothing yet", nil, false, "", 0},
		{"good", []func(*policyWatch){take(good)}, true, "", 1},
		{"the same again", []func(*policyWatch){take(good), take(good)}, true, "", 1},
		{"broken from the start", []func(*policyWatch){take("x")}, false, "everybody is refused", 1},
		{"broken later", []func(*policyWatch){take(good), take("x"), take("x")}, true, "stay in force", 2},
		{"mended", []func(*policyWatch){take(good), take("x"), take(better)}, true, "", 3},
		{"mended to what it was", []func(*policyWatch){take(good), take("x"), take(good)}, true, "", 3},
		{"not to be read, and then as before", []func(*policyWatch){take(good), refuse(away), refuse(away), take(good)}, true, "", 3},
		{"deleted", []func(*policyWatch){take(good), remove(gone), remove(gone)}, false, "does not exist", 2},
		{"deleted and made again", []func(*policyWatch){take(good), remove(gone), take(good)}, true, "", 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			changes := 0
			w := &policyWatch{network: auth.IDOf(key.NewNetwork().Public()), client: HTTPConfig{}.issuerClient(), log: slog.New(slog.DiscardHandler), changed: func() { changes++ }}
			for _, step := range tc.steps {
				step(w)
			}
			if got := w.current() != nil; got != tc.inForce || changes != tc.changes {
				t.Errorf("in force %v after %d changes, want %v after %d", got, changes, tc.inForce, tc.changes)
			}
			if err := w.fault(); (err == nil) != (tc.fault == "") || err != nil && !strings.Contains(err.Error(), tc.fault) {
				t.Errorf("fault %v, want %q", err, tc.fault)
			}
			if w.now != nil {
				w.now.stop()
			}
			w.wg.Wait()
		})
	}
}

func take(text string) func(*policyWatch) {
	return func(w *policyWatch) { w.take(context.Background(), "ConfigMap zt/p", []byte(text)) }
}
func refuse(err error) func(*policyWatch) { return func(w *policyWatch) { w.refuse(err) } }
func remove(err error) func(*policyWatch) { return func(w *policyWatch) { w.remove(err) } }

func TestConfigMapKey(t *testing.T) {
	for _, tc := range []struct{ raw, want, fault string }{
		{`{"metadata":{"name":"p","namespace":"zt"},"data":{"policy.yaml":"a"}}`, "a", ""},
		{`{"metadata":{"name":"p","namespace":"zt"},"data":{"policy.yml":"a"}}`, "", "key policy.yaml of ConfigMap zt/p does not exist"},
		{`{"metadata":{"name":"p","namespace":"zt"}}`, "", "does not exist"},
		{`[]`, "", "ConfigMap"},
	} {
		got, err := configMapKey([]byte(tc.raw), PolicyFile)
		if string(got) != tc.want || (err == nil) != (tc.fault == "") || err != nil && !strings.Contains(err.Error(), tc.fault) {
			t.Errorf("%s: %q, %v; want %q, %q", tc.raw, got, err, tc.want, tc.fault)
		}
	}
}
