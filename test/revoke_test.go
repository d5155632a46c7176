//go:build e2e && linux

package test

import (
	"encoding/json"
	"testing"
	"time"
)

// revokeAlice takes alice's login away with the relay's own commands, by what
// `zt-relay peers` says of her. It returns when the revocation was asked for.
func (s *stage) revokeAlice(t *testing.T) (begin time.Time) {
	t.Helper()
	r := s.Relay.Command(s.within(t, 15*time.Second), "peers", "-o", "json")
	if err := r.OK(); err != nil {
		t.Fatal(err)
	}
	var peers []struct{ Issuer, UID, Name string }
	if err := json.Unmarshal([]byte(r.Stdout), &peers); err != nil {
		t.Fatalf("peers -o json: %v: %v", err, r)
	}
	for _, p := range peers {
		if p.Name == canaryEmail {
			begin = time.Now()
			r := s.Relay.Command(s.within(t, 15*time.Second), "revoke", "--issuer", p.Issuer, "--uid", p.UID)
			if err := r.OK(); err != nil {
				t.Fatal(err)
			}
			t.Logf("%v", r)
			return begin
		}
	}
	t.Fatalf("zt-relay peers does not show %s: %v", canaryEmail, r)
	return begin
}
