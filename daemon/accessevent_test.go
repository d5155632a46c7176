package daemon

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/zt-daemon/zt/auth"
)

// eventObject is e as the API server would serve it.
func eventObject(t testing.TB, e AccessEvent) []byte {
	b, err := json.Marshal(map[string]any{
		"lastTimestamp": e.Time, "reason": accessEventReason, "metadata": map[string]any{"annotations": e.event().Annotations},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzAccessEvent: the attacker may write Events into zt's namespace, and wants
// the opener who reads them to grant something else than is shown.
func FuzzAccessEvent(f *testing.F) {
	good := AccessEvent{
		Time: time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC), Name: "alice@example.test", Issuer: "https://login.example.com",
		Subject: "00u1", For: auth.Duration(90 * time.Minute), Reason: "disk of “web-0” is full",
	}
	if got, err := parseAccessEvent(eventObject(f, good)); err != nil || got != good {
		f.Fatalf("got %+v, %v, want %+v", got, err, good)
	}
	f.Add(eventObject(f, good))
	hostile := good
	hostile.Subject, hostile.Name, hostile.Reason = "\"\nEOF\n---\n\x00\u2028\U000e0001", "\nEOF", "` $(x) ' \" \\ # : {}"
	f.Add(eventObject(f, hostile))
	f.Add([]byte(`{"metadata":{"annotations":{"access.zt-daemon.io/for":"-1h"}}}`))
	f.Fuzz(func(t *testing.T, object []byte) {
		e, err := parseAccessEvent(object)
		if err != nil {
			return
		}
		now := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
		text := e.AccessGrant(now)
		if lines := strings.Count(text, "\n"); lines != 10 {
			t.Errorf("%d lines:\n%s", lines, text)
		}
		object, err = yaml.YAMLToJSONStrict([]byte(text))
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		g, err := auth.ParseAccessGrant(object)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if g.Issuer != e.Issuer || g.Subject != e.Subject || g.Reason != e.Reason || !g.NotBefore.Equal(now) || !g.NotAfter.Equal(now.Add(e.For.Std())) {
			t.Errorf("asked %+v, the manifest grants %+v", e, g)
		}
		if name := e.GrantName(); strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.HasPrefix(name, "-") || len(name) > 63 {
			t.Errorf("name %q", name)
		}
	})
}
