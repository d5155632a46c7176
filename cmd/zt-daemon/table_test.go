package main

import (
	"strings"
	"testing"
	"time"
	"unicode"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                 "plain",
		"Zoë – 山":               "Zoë – 山",
		"a\x1b[31mred":          `a\x1b[31mred`,
		"two\nlines\ttab\r":     `two\nlines\ttab\r`,
		"\u202eevil":            `\u202eevil`,
		"zero\u200bwidth":       `zero\u200bwidth`,
		"not\xffUTF-8":          `not\xffUTF-8`,
		"replacement \ufffd on": "replacement \ufffd on",
		"bell\a":                `bell\a`,
		"c1 control\u009b":      `c1 control\u009b`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) is %q, want %q", in, got, want)
		}
	}
}

// Attacker: whoever names a cluster, a person, an issuer.
func FuzzPrintable(f *testing.F) {
	f.Add("a\x1b]0;title\a\xc3\x28\u202e")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range printable(s) {
			if !unicode.IsPrint(r) && r != '\ufffd' {
				t.Errorf("printable(%q) holds %U", s, r)
			}
		}
	})
}

func TestRelative(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		0:                                     "in 0s",
		42 * time.Second:                      "in 42s",
		-90 * time.Second:                     "1m30s ago",
		12 * time.Hour:                        "in 12h",
		-(3*time.Hour + 12*time.Minute):       "3h12m ago",
		50 * time.Hour:                        "in 2d2h",
		59*time.Second + 700*time.Millisecond: "in 1m",
	} {
		if got := relative(now.Add(d), now); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
	if got := relative(time.Time{}, now); got != "" {
		t.Errorf("no time is %q", got)
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	if err := table(&b, [][]string{{"NAME", "STATE"}, {"long-name", ""}, {"a", "b\x1b"}}); err != nil {
		t.Fatal(err)
	}
	const want = "NAME       STATE\nlong-name  -\na          b\\x1b\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
