package daemon

import (
	"strings"
	"testing"
)

func TestMergeLines(t *testing.T) {
	for name, c := range map[string]struct{ text, before, after, want string }{
		"nothing":                   {"a\n\n b\n", "a\nb\n", "a\nb\n", "a\n\n b\n"},
		"an insertion":              {"a\n\nb\n", "a\nb\n", "a\nx\nb\n", "a\nx\n\nb\n"},
		"at the end":                {"a\n\nb", "a\nb\n", "a\nb\nx\n", "a\n\nb\nx\n"},
		"before the blanks at end":  {"a\n\n", "a\n", "a\nx\n", "a\nx\n\n"},
		"a removal":                 {"a\n\nx\n\nb\n", "a\nx\nb\n", "a\nb\n", "a\n\n\nb\n"},
		"a change":                  {"a\n\nx\n\nb\n", "a\nx\nb\n", "a\ny\nb\n", "a\n\ny\n\nb\n"},
		"a change of another style": {"a\n'x'   # why\nb\n", "a\nx # why\nb\n", "a\ny # why\nb\n", "a\ny # why\nb\n"},
		"another style elsewhere":   {"'a'\nx\n'b'\n", "a\nx\nb\n", "a\nx\nz\nb\n", "'a'\nx\nz\n'b'\n"},
		"beside another style":      {"'a'\n\nb\n", "a\nb\n", "a\nx\nb\n", "'a'\nx\n\nb\n"},
		"all new":                   {"", "", "a\n", "a\n"},
	} {
		if got, ok := mergeLines(c.text, c.before, c.after); !ok || got != c.want {
			t.Errorf("%s: got %q, %v, want %q", name, got, ok, c.want)
		}
	}
	long := func(s string) string { return strings.Repeat(s+"\n", 5000) }
	if _, ok := mergeLines(long("a"), long("b"), long("c")); ok {
		t.Error("two long texts with nothing in common were aligned")
	}
}
