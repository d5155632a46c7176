package daemon_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/test/issuer"
)

// closed closes the cluster to all but the group ops.
func (o *overlay) closed() {
	o.kube.policy(fmt.Sprintf("issuers: [{url: %[1]q, clientID: %[2]s}]\nclosed: true\nopeners: [{issuer: %[1]q, groups: [ops]}]\n",
		o.issuer.URL(), issuer.OverlayClient))
}

// requested waits for the Event about a request, and returns its annotations.
func (k *fakeKube) requested() map[string]any {
	k.t.Helper()
	k.event("AccessRequested")
	k.mu.Lock()
	defer k.mu.Unlock()
	var found map[string]any
	for path, o := range k.objects {
		if filepath.Dir(path) == eventObjects && o["reason"] == "AccessRequested" {
			if found != nil {
				k.t.Error("there are two Events about requests for access")
			}
			metadata, _ := o["metadata"].(map[string]any)
			found, _ = metadata["annotations"].(map[string]any)
		}
	}
	return found
}

func TestRequestAccess(t *testing.T) {
	const prefix = "access.zt-daemon.io/"
	k := newFakeKube(t)
	o := newOverlayWith(t, &overlay{kube: k})
	o.ready(true)
	alice := o.laptop(t.TempDir())
	ask := func(reason string) (daemon.AccessRequestResult, error) {
		return alice.RequestAccess(t.Context(), daemon.AccessRequest{Cluster: "c1", For: auth.Duration(90 * time.Minute), Reason: reason})
	}
	if _, err := ask("r"); daemon.AsLocalError(err).Kind != daemon.KindNotLoggedIn {
		t.Errorf("before the login: %v", err)
	}
	if _, err := alice.login("alice"); err != nil {
		t.Fatal(err)
	}
	if r, err := ask("r"); err != nil || !r.Admitted {
		t.Errorf("while a rule admits: %+v, %v", r, err)
	}
	if got, err := alice.get(); err != nil || got == "" {
		t.Errorf("after that: %q, %v", got, err)
	}
	if r, err := ask("r"); err != nil || !r.Admitted {
		t.Errorf("while an edge is open: %+v, %v", r, err)
	}

	ended := alice.watch()
	o.closed()
	o.within(5*time.Second, "closing", ended)
	_, err := alice.Credential(t.Context(), daemon.CredentialRequest{Cluster: "c1"})
	for end := time.Now().Add(5 * time.Second); err == nil && time.Now().Before(end); { // the reset may come before the word
		_, err = alice.Credential(t.Context(), daemon.CredentialRequest{Cluster: "c1"})
	}
	if e := daemon.AsLocalError(err); e.ExitCode() != daemon.ExitDenied || !strings.Contains(e.Error(), "closed") ||
		!strings.Contains(e.Error(), "openers: group ops") || !strings.Contains(e.Hint(), "zt-daemon request c1 --for 1h") {
		t.Errorf("closed: %v (%s)", err, e.Hint())
	}
	for _, bad := range []string{"", "two\nlines", strings.Repeat("x", 201)} {
		if _, err := ask(bad); daemon.AsLocalError(err).Kind != daemon.KindUsage {
			t.Errorf("reason %q: %v", bad, err)
		}
	}

	r, err := ask(`disk is full; "$(reboot)" 'x'`)
	if err != nil || r.Admitted || r.Detail != "" {
		t.Fatalf("got %+v, %v", r, err)
	}
	k.event("AccessRequested", `alice@example.test (subject user-alice of `+o.issuer.URL()+`) asks for access for 1h30m: disk is full; "$(reboot)" 'x'`)
	note := k.requested()
	want := map[string]any{
		prefix + "issuer": o.issuer.URL(), prefix + "subject": note[prefix+"subject"], prefix + "name": "alice@example.test",
		prefix + "for": "1h30m", prefix + "reason": `disk is full; "$(reboot)" 'x'`,
	}
	if fmt.Sprint(note) != fmt.Sprint(want) || note[prefix+"subject"] == nil {
		t.Errorf("annotations are %v, want %v", note, want)
	}
	if !strings.Contains(o.audit.String(), `"event":"access_requested"`) {
		t.Error("the audit log does not have it")
	}
	if r, err := ask("disk is full"); err != nil || !strings.Contains(r.Detail, "one is there from") {
		t.Errorf("a second within the hour: %+v, %v", r, err)
	}

	// What the Event says is enough to open.
	now := time.Now()
	k.set(grantObjects+"/disk", map[string]any{
		"apiVersion": auth.AccessGrantAPI, "kind": auth.AccessGrantKind,
		"spec": map[string]any{
			"issuer": note[prefix+"issuer"], "subject": note[prefix+"subject"], "reason": "disk is full",
			"notBefore": now.UTC().Format(time.RFC3339), "notAfter": now.Add(90 * time.Minute).UTC().Format(time.RFC3339),
		},
	})
	alice.admitted()
	if r, err := ask("again"); err != nil || !r.Admitted {
		t.Errorf("while an AccessGrant admits: %+v, %v", r, err)
	}
	alice.stop()
}
