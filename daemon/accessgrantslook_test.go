package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon/kube"
)

// grantObject is an AccessGrant as a watch tells it.
func grantObject(name string, from, to time.Time) kube.Object {
	return kube.Object{Name: name, UID: "uid-" + name, Raw: fmt.Appendf(nil, `{"apiVersion":%q,"kind":%q,"metadata":{"name":%q,"generation":1},"spec":{"group":"developers","reason":"r","notBefore":%q,"notAfter":%q}}`,
		auth.AccessGrantAPI, auth.AccessGrantKind, name, from.Format(time.RFC3339), to.Format(time.RFC3339))}
}

// looking runs the looks of AccessGrants in a bubble of synctest; changes counts
// the decisions about everybody.
func looking(t *testing.T) (g *accessGrants, changes *int, events *[]kube.Event) {
	t.Helper()
	changes, events = new(int), new([]kube.Event)
	g = newAccessGrants(new(kube.Client), slog.New(slog.DiscardHandler))
	g.check = func(auth.AccessGrant) error { return nil }
	g.record = func(e kube.Event) { *events = append(*events, e) }
	g.changed = func() { *changes++ }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); g.lookOn(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return g, changes, events
}

// TestAccessGrantsLookOnce shows that what comes together is decided about once,
// and soon.
func TestAccessGrantsLookOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, changes, _ := looking(t)
		synctest.Wait()
		for round := range 5 {
			for n := range 100 {
				g.take(grantObject(fmt.Sprintf("g-%d-%d", round, n), time.Now(), time.Now().Add(time.Hour)))
			}
			time.Sleep(grantPause / 2)
		}
		time.Sleep(grantPause)
		synctest.Wait()
		if got := len(g.all()); got != 500 || *changes < 2 || *changes > 4 {
			t.Errorf("%d AccessGrants count after %d decisions, want 500 after 2 to 4", got, *changes)
		}
		before := *changes
		time.Sleep(10 * grantTick)
		if *changes != before {
			t.Errorf("%d decisions while nothing changed", *changes-before)
		}
		for n := range 100 {
			g.remove(fmt.Sprintf("g-0-%d", n))
		}
		time.Sleep(2 * grantPause)
		synctest.Wait()
		if got := len(g.all()); got != 400 || *changes > before+2 {
			t.Errorf("%d AccessGrants count after %d decisions, want 400 after at most 2", got, *changes-before)
		}
	})
}

// TestAccessGrantsTrust shows how long AccessGrants count that nobody can be seen
// to end, and what is said of it.
func TestAccessGrantsTrust(t *testing.T) {
	away, denied := errors.New("connection refused"), fmt.Errorf("list: %w", kube.ErrUnauthorized)
	for _, tc := range []struct {
		name  string
		steps func(*accessGrants)
		count int    // of AccessGrants that count then
		said  string // in what health was told last; empty: nothing is wrong
	}{
		{"away for a while", func(g *accessGrants) {
			g.watched(away)
			time.Sleep(grantTrust - time.Minute)
		}, 1, "count to their end, for 10m at most: connection refused"},
		{"away for too long", func(g *accessGrants) {
			g.watched(away)
			time.Sleep(grantTrust + time.Second)
		}, 0, "admit nobody: for 10m the API server has said nothing, and nobody could have ended one: connection refused"},
		{"listed again, and not watched", func(g *accessGrants) {
			g.watched(away)
			time.Sleep(grantTrust + time.Second)
			g.watched(nil)
			g.take(grantObject("again", time.Now(), time.Now().Add(time.Hour)))
			time.Sleep(time.Second)
		}, 0, "has said nothing"},
		{"back", func(g *accessGrants) {
			g.watched(away)
			time.Sleep(grantTrust + time.Second)
			g.watched(nil)
			g.hear()
			time.Sleep(time.Second)
		}, 1, ""},
		{"heard now and then", func(g *accessGrants) {
			for range 5 {
				time.Sleep(grantTrust - time.Minute)
				g.hear()
			}
		}, 1, ""},
		{"a watch that hangs", func(*accessGrants) { time.Sleep(grantTrust + time.Second) }, 0, "the watch does not begin"},
		{"a service account that is no more", func(g *accessGrants) {
			g.watched(denied)
			time.Sleep(time.Second)
		}, 0, "admit nobody: list: unauthorized"},
		{"a service account that is back", func(g *accessGrants) {
			g.watched(denied)
			time.Sleep(time.Second)
			g.watched(nil)
			g.hear()
			time.Sleep(time.Second)
		}, 1, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, _, _ := looking(t)
				var mu sync.Mutex
				var said string
				g.health = func(err error) {
					mu.Lock()
					defer mu.Unlock()
					said = ""
					if err != nil {
						said = err.Error()
					}
				}
				g.take(grantObject("g", time.Now(), time.Now().Add(24*time.Hour)))
				g.hear()
				time.Sleep(time.Second)
				tc.steps(g)
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				if got := len(g.all()); got != tc.count || (said == "") != (tc.said == "") || !strings.Contains(said, tc.said) {
					t.Errorf("%d count, and %q is said; want %d and %q", got, said, tc.count, tc.said)
				}
			})
		})
	}
}
