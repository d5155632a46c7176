package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// outputFlag is -o of a command that scripts read.
type outputFlag struct{ json bool }

// addTo adds -o to cmd.
func (o *outputFlag) addTo(cmd *cobra.Command) {
	cmd.Flags().VarP(o, "output", "o", "text or json")
}

func (o *outputFlag) String() string {
	if o.json {
		return "json"
	}
	return "text"
}

// Type is what the help shows.
func (o *outputFlag) Type() string { return "format" }

// Set takes text or json.
func (o *outputFlag) Set(s string) error {
	switch s {
	case "text", "json":
		o.json = s == "json"
		return nil
	}
	return fmt.Errorf("want text or json")
}

// printJSON writes v, indented, for scripts and for people who pipe it on.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table writes rows in aligned columns. Every cell is escaped.
func table(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if cell == "" {
				cell = "-"
			}
			if row[i] = printable(cell); i > 0 {
				io.WriteString(t, "\t")
			}
			io.WriteString(t, row[i])
		}
		io.WriteString(t, "\n")
	}
	return t.Flush()
}

// relative says when t is, seen from now: "in 3h12m", "2d4h ago".
func relative(t, now time.Time) string {
	switch d := t.Sub(now); {
	case t.IsZero():
		return ""
	case d >= 0:
		return "in " + span(d)
	default:
		return span(-d) + " ago"
	}
}

// span is a duration in its two largest units.
func span(d time.Duration) string {
	d = d.Round(time.Second)
	switch day := 24 * time.Hour; {
	case d >= day:
		return pair(int(d/day), "d", int(d%day/time.Hour), "h")
	case d >= time.Hour:
		return pair(int(d/time.Hour), "h", int(d%time.Hour/time.Minute), "m")
	case d >= time.Minute:
		return pair(int(d/time.Minute), "m", int(d%time.Minute/time.Second), "s")
	default:
		return strconv.Itoa(int(d/time.Second)) + "s"
	}
}

func pair(a int, unitA string, b int, unitB string) string {
	if b == 0 {
		return strconv.Itoa(a) + unitA
	}
	return strconv.Itoa(a) + unitA + strconv.Itoa(b) + unitB
}

// plural is "1 thing" or "2 things".
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return strconv.Itoa(n) + " " + thing + "s"
}

// printable escapes what a terminal would obey or hide: control characters,
// bidirectional overrides, invisible runes, bytes that are not UTF-8. Use it
// on all text that comes from outside.
func printable(s string) string {
	clean := utf8.ValidString(s)
	for _, r := range s {
		clean = clean && unicode.IsPrint(r)
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r != utf8.RuneError && unicode.IsPrint(r) || r == utf8.RuneError && n > 1 {
			b.WriteString(s[i : i+n])
		} else {
			q := strconv.QuoteToASCII(s[i : i+n])
			b.WriteString(q[1 : len(q)-1])
		}
		i += n
	}
	return b.String()
}
