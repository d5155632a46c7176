package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/test/lab"
)

// TestTable looks at what the table says of a check that fails, of one that
// outlasts its limit, and of a scene that cannot be played.
func TestTable(t *testing.T) {
	l, err := lab.New(lab.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := &bed{lab: l}
	v := via{kubectl: kubectl{version: "v1.37.2"}, transport: spdy}
	b.play(t.Context(), scene{"first", func(ctx context.Context, b *bed) error {
		b.check(ctx, "works", v, time.Minute, func(context.Context) (string, error) { return "12 MB/s", nil })
		b.check(ctx, "fails", v, time.Minute, func(context.Context) (string, error) { return "3 MB/s", errors.New("too slow\nby far") })
		b.check(ctx, "hangs", v, time.Millisecond, func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() })
		return nil
	}})
	b.play(t.Context(), scene{"second", func(context.Context, *bed) error { return errors.New("no such cluster") }})
	if n := b.table.faults(); n != 3 {
		t.Errorf("%d faults, want 3", n)
	}
	var text bytes.Buffer
	b.table.print(&text)
	for _, part := range []string{"4 checks, 3 failed", "12 MB/s", "FAILED: first: fails SPDY v1.37.2\ntoo slow\nby far", "FAILED: second: the scene", "no such cluster", "deadline exceeded"} {
		if !strings.Contains(text.String(), part) {
			t.Errorf("no %q in\n%s", part, text.String())
		}
	}
	file := filepath.Join(t.TempDir(), "table.json")
	if err := b.table.write(file); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	if err := json.Unmarshal(written, &rows); err != nil || len(rows) != 4 || rows[1].Fault != "too slow\nby far" {
		t.Errorf("the file holds %+v (%v)", rows, err)
	}
}

func TestChosen(t *testing.T) {
	for _, tc := range []struct {
		name, only string
		want       bool
	}{
		{"verbs", "", true}, {"verbs", "verbs", true}, {"several clusters", "streams, clusters", true}, {"verbs", "streams", false},
	} {
		if got := chosen(tc.name, tc.only); got != tc.want {
			t.Errorf("chosen(%q, %q) is %v", tc.name, tc.only, got)
		}
	}
}
