package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// row is one check.
type row struct {
	Scene     string        `json:"scene"`
	What      string        `json:"what"`
	Transport string        `json:"transport,omitempty"`
	Kubectl   string        `json:"kubectl,omitempty"`
	Took      time.Duration `json:"nanoseconds"`
	Figure    string        `json:"figure,omitempty"`
	Fault     string        `json:"fault,omitempty"` // empty: it went as it should
}

// table is what has been checked so far.
type table struct {
	mu   sync.Mutex // guards rows
	rows []row
}

// add puts a row into the table and shows it.
func (b *bed) add(r row) {
	r.Scene = b.scene
	b.table.mu.Lock()
	b.table.rows = append(b.table.rows, r)
	b.table.mu.Unlock()
	text := strings.Join(strings.Fields(strings.Join([]string{r.Kubectl, r.Transport, r.What}, " ")), " ")
	if r.Figure != "" {
		text += ": " + r.Figure
	}
	if r.Fault != "" {
		b.lab.Say("  FAILED  %s (%s): %s", text, r.Took.Round(time.Millisecond), r.Fault)
		return
	}
	b.lab.Say("  ok      %s (%s)", text, r.Took.Round(time.Millisecond))
}

// check runs f for at most limit, and puts into the table what became of it.
func (b *bed) check(ctx context.Context, what string, v via, limit time.Duration, f func(context.Context) (figure string, err error)) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	begin := time.Now()
	r := row{What: what, Transport: v.transport, Kubectl: v.version}
	figure, err := f(ctx)
	r.Took, r.Figure = time.Since(begin), figure
	if err != nil {
		r.Fault = err.Error()
	}
	b.add(r)
}

func (t *table) faults() int {
	n := 0
	for _, r := range t.rows {
		if r.Fault != "" {
			n++
		}
	}
	return n
}

// print shows the whole table, and then what the failed checks said.
func (t *table) print(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "\nscene\tcheck\ttransport\tkubectl\tresult\ttime\t")
	for _, r := range t.rows {
		result := "ok"
		if r.Fault != "" {
			result = "FAILED"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Scene, r.What, r.Transport, r.Kubectl, result, r.Took.Round(time.Millisecond), r.Figure)
	}
	tw.Flush()
	fmt.Fprintf(w, "\n%d checks, %d failed\n", len(t.rows), t.faults())
	for _, r := range t.rows {
		if r.Fault != "" {
			fmt.Fprintf(w, "\nFAILED: %s: %s %s %s\n%s\n", r.Scene, r.What, r.Transport, r.Kubectl, r.Fault)
		}
	}
}

func (t *table) write(file string) error {
	text, err := json.MarshalIndent(t.rows, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
