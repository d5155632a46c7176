package daemon_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// grant makes an AccessGrant for a group.
func (k *fakeKube) grant(name, group, reason string, from, to time.Time) {
	k.set(grantObjects+"/"+name, map[string]any{
		"apiVersion": "access.zt-daemon.io/v1alpha1", "kind": "AccessGrant",
		"spec": map[string]any{"group": group, "reason": reason, "notBefore": from.UTC().Format(time.RFC3339Nano), "notAfter": to.UTC().Format(time.RFC3339Nano)},
	})
}

// status waits until an AccessGrant's status says all of says.
func (k *fakeKube) status(name string, says ...string) {
	k.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		k.mu.Lock()
		got := fmt.Sprint(k.objects[grantObjects+"/"+name]["status"])
		k.mu.Unlock()
		ok := true
		for _, s := range says {
			ok = ok && strings.Contains(got, s)
		}
		if ok {
			return
		} else if time.Now().After(end) {
			k.t.Fatalf("status of %s is %s, want %q", name, got, says)
		}
	}
}

func TestAccessGrants(t *testing.T) {
	k := newFakeKube(t)
	o := newOverlayWith(t, &overlay{kube: k})
	o.policy("groups: [others]")
	o.ready(true)
	alice := o.laptop(t.TempDir())
	if _, err := alice.login("alice"); err != nil {
		t.Fatal(err)
	}
	if got, err := alice.get(); err == nil {
		t.Fatalf("alice read %q without an AccessGrant", got)
	}
	minute := time.Minute
	ago, later := time.Now().Add(-minute), time.Now().Add(time.Hour)

	t.Run("one that begins admits, and says who used it", func(t *testing.T) {
		k.grant("begins", "developers", "on call", time.Now().Add(4*time.Second), later)
		k.status("begins", "phase:Pending", "pod:zt-1")
		k.event("AccessGranted", "AccessGrant begins admits group developers until ", "on call")
		alice.admitted()
		k.status("begins", "phase:Active", "lastUsedBy:alice@example.test")
		if !strings.Contains(o.audit.String(), `"access_grant":"begins"`) {
			t.Error("the audit log does not name the AccessGrant")
		}
	})

	t.Run("deletion cuts", func(t *testing.T) {
		ended := alice.watch()
		k.remove(grantObjects + "/begins")
		o.within(2*time.Second, "an AccessGrant that was deleted", ended)
		k.event("AccessRevoked", "begins")
	})

	t.Run("its end cuts", func(t *testing.T) {
		end := time.Now().Add(40 * time.Second) // relays remember a refusal for 30 s
		k.grant("ends", "developers", "incident 7", ago, end)
		alice.admitted()
		ended := alice.watch()
		k.grant("ends", "developers", "incident 7", ago, time.Now().Add(time.Second))
		o.within(3*time.Second, "an AccessGrant that ended", ended)
		k.event("AccessExpired", "ends")
		k.status("ends", "phase:Expired")
	})

	t.Run("without the right to see them none counts", func(t *testing.T) {
		k.grant("seen", "developers", "r", ago, later)
		alice.admitted()
		ended := alice.watch()
		k.refuse("accessgrants", http.StatusForbidden)
		o.within(5*time.Second, "AccessGrants that are not seen any more", ended)
		k.event("AccessGrantsNotWatched", `{apiGroups: ["access.zt-daemon.io"], resources: [accessgrants], verbs: [get, list, watch]}`)
		o.ready(true, "warning: ")
		k.refuse("accessgrants", http.StatusNotFound)
		k.event("AccessGrantsNotWatched", "CustomResourceDefinition")
		k.refuse("accessgrants", 0)
		k.event("AccessGrantsWatched")
		alice.admitted()
	})

	t.Run("nor without the right to anything", func(t *testing.T) {
		ended := alice.watch()
		k.refuse("accessgrants", http.StatusUnauthorized)
		o.within(5*time.Second, "AccessGrants of a service account that is no more", ended)
		k.event("AccessGrantsNotWatched", "admit nobody", "does not accept the service account's token")
		k.refuse("accessgrants", 0)
		alice.admitted()
	})

	t.Run("while the API server is away they count", func(t *testing.T) {
		ended := alice.watch()
		k.refuse("accessgrants", http.StatusServiceUnavailable)
		select {
		case err := <-ended:
			t.Errorf("the stream ended: %v", err)
		case <-time.After(2 * time.Second):
		}
		k.refuse("accessgrants", 0)
	})

	t.Run("one that cannot be read says so", func(t *testing.T) {
		k.grant("nobody", "", "r", ago, later)
		k.event("AccessGrantInvalid", "nobody")
		k.status("nobody", "phase:Invalid")
	})

	t.Run("a status that cannot be written holds up no other, and many come one by one", func(t *testing.T) {
		k.refuse("accessgrants/stuck/status", http.StatusRequestEntityTooLarge)
		k.grant("stuck", "developers", "r", ago, later)
		time.Sleep(3 * time.Second) // of which grantSpread are by chance
		k.mu.Lock()
		k.patched = nil
		k.mu.Unlock()
		began := time.Now()
		for n := range 12 {
			k.grant(fmt.Sprintf("other-%d", n), "developers", "r", ago, later)
		}
		for n := range 12 {
			k.status(fmt.Sprintf("other-%d", n), "phase:Active")
		}
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("12 statuses took %v, want at most 8s", took)
		}
		k.mu.Lock()
		for n := range k.patched {
			if n >= 6 && k.patched[n].Sub(k.patched[n-6]) < time.Second {
				t.Errorf("statuses are written at %v: more than 6 within a second", k.patched)
			}
		}
		k.mu.Unlock()
		k.refuse("accessgrants/stuck/status", 0)
		for n := range 12 {
			k.remove(fmt.Sprintf("%s/other-%d", grantObjects, n))
		}
		k.remove(grantObjects + "/stuck")
	})

	t.Run("statuses are not written for their own sake", func(t *testing.T) {
		time.Sleep(3 * time.Second)
		k.mu.Lock()
		before := k.patches
		k.mu.Unlock()
		time.Sleep(3 * time.Second)
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.patches != before {
			t.Errorf("%d statuses were written while nothing changed", k.patches-before)
		}
	})
	alice.stop()
}
