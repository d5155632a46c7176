package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zt-daemon/zt/daemon/kube"
)

// TestTroubles shows when what is wrong is said again: each row is said so many
// times over an hour in which it is noticed every second.
func TestTroubles(t *testing.T) {
	for _, tc := range []struct {
		name  string
		of    func(second int) trouble
		times int
	}{
		{"the same", func(int) trouble { return trouble{reason: "A", err: errors.New("x")} }, 2},
		{"another wording each time", func(n int) trouble { return trouble{reason: "A", err: fmt.Errorf("port %d", n)} }, 6},
		{"another fault each minute, where the wording counts", func(n int) trouble { return trouble{reason: "A", err: fmt.Errorf("line %d", n/60), exact: true} }, 60},
		{"another reason after half of it", func(n int) trouble { return trouble{reason: fmt.Sprint(n / 1800), err: errors.New("x")} }, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var events []kube.Event
				s := newTroubles(slog.New(slog.DiscardHandler), func(e kube.Event) { events = append(events, e) })
				for n := range 3600 {
					s.begin("relay", tc.of(n))
					time.Sleep(time.Second)
				}
				if len(events) != tc.times {
					t.Errorf("said %d times in an hour, want %d", len(events), tc.times)
				}
				if all := s.all(); len(all) != 1 {
					t.Errorf("%d troubles, want one", len(all))
				}
				s.end("relay", "RelayConnected", "connected", false)
				s.end("relay", "RelayConnected", "connected", false)
				if last := events[len(events)-1]; last.Reason != "RelayConnected" || last.Warning || len(events) != tc.times+1 || len(s.all()) != 0 {
					t.Errorf("the end was told as %+v, %d events in all", last, len(events))
				}
			})
		})
	}
}

// TestTroubleIsPrintable shows that what other machines say comes to nobody's
// terminal or Event as it came.
func TestTroubleIsPrintable(t *testing.T) {
	var events []kube.Event
	s := newTroubles(slog.New(slog.DiscardHandler), func(e kube.Event) { events = append(events, e) })
	s.begin("relay", trouble{reason: "A", err: &RefusedError{Reason: "unknown_cluster", Detail: "\x1b[31mred\n" + strings.Repeat("x", 9000)}})
	got := events[0].Message
	if strings.ContainsAny(got, "\x1b\n") || len(got) > 1200 || !strings.Contains(got, `\x1b[31mred\n`) {
		t.Errorf("message of %d bytes: %.80q", len(got), got)
	}
}
