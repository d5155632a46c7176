// Command report reads what `go test -json` prints and writes it for a person:
// a line for each package, all that failing tests said, and at the end every
// test that was skipped, with its reason. Its exit code is 1 when a test
// failed, or none ran, or, with -skips=fail, one was skipped.
//
//	go test -json ./... | go run ./test/report
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// event is one line of `go test -json` (go doc test2json, go help buildjson).
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Output      string
	Elapsed     float64 // seconds
	FailedBuild string
}

// tally is what one run came to.
type tally struct {
	passed, failed, skipped int
	broken                  bool // a package failed outside its tests, or a line was unreadable
	skips                   []string
}

func main() {
	verbose := flag.Bool("v", false, "print the tests' output as it comes")
	skips := flag.String("skips", "list", "`list` the skipped tests, or fail when there is one")
	flag.Parse()
	begin := time.Now()
	t := report(os.Stdin, os.Stdout, *verbose)
	fmt.Printf("\nafter %s:\n%d passed, %d failed, %d skipped\n", time.Since(begin).Round(time.Second), t.passed, t.failed, t.skipped)
	switch {
	case t.broken || t.failed > 0:
		os.Exit(1)
	case t.skipped > 0 && *skips == "fail":
		fmt.Println("nothing may be skipped here")
		os.Exit(1)
	case t.passed == 0:
		fmt.Println("no test ran")
		os.Exit(1)
	}
}

// report copies events from in to out as text.
func report(in io.Reader, out io.Writer, verbose bool) tally {
	var t tally
	said := map[string]*strings.Builder{} // by package and test
	scan := bufio.NewScanner(in)
	scan.Buffer(nil, 16<<20)
	for scan.Scan() {
		var e event
		if err := json.Unmarshal(scan.Bytes(), &e); err != nil {
			fmt.Fprintln(out, scan.Text()) // what go itself says before it begins
			t.broken = true
			continue
		}
		key := e.Package + "\x00" + e.Test
		switch e.Action {
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "build-fail":
			t.broken = true
		case "output":
			if verbose {
				fmt.Fprint(out, e.Output)
			}
			b := said[key]
			if b == nil {
				b = &strings.Builder{}
				said[key] = b
			}
			b.WriteString(e.Output)
		case "pass", "fail", "skip":
			t.add(out, e, said[key], verbose)
			delete(said, key)
		}
	}
	if err := scan.Err(); err != nil {
		fmt.Fprintln(out, "report:", err)
		t.broken = true
	}
	if len(t.skips) > 0 {
		fmt.Fprintln(out, "\nskipped:")
		for _, s := range t.skips {
			fmt.Fprintln(out, "  "+s)
		}
	}
	return t
}

// add counts the end of a test or package; said is what it printed.
func (t *tally) add(out io.Writer, e event, said *strings.Builder, verbose bool) {
	text := ""
	if said != nil {
		text = said.String()
	}
	if e.Test == "" {
		switch {
		case e.Action == "fail":
			t.broken = true
			fmt.Fprintf(out, "FAIL\t%s\t%.1fs\n", e.Package, e.Elapsed)
			if !verbose {
				fmt.Fprint(out, text)
			}
		case e.Action == "pass" && !verbose:
			fmt.Fprintf(out, "ok  \t%s\t%.1fs\n", e.Package, e.Elapsed)
		}
		return
	}
	switch e.Action {
	case "pass":
		t.passed++
	case "fail":
		t.failed++
		if !verbose {
			fmt.Fprint(out, text)
		}
	case "skip":
		t.skipped++
		t.skips = append(t.skips, fmt.Sprintf("%s %s: %s", e.Package, e.Test, reason(text)))
	}
}

// reason is what a test gave t.Skip.
func reason(text string) string {
	var kept []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, " ")
}
