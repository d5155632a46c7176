package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// point is where a figure was measured.
type point struct {
	rtt       time.Duration
	path      string
	streams   int
	contender string
}

// results are goodputs in bits per second, one a round.
type results map[point][]float64

func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(all))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// row is a figure in the form that `make bench` collects.
type row struct {
	Contender string  `json:"contender"`
	Test      string  `json:"test"`
	Median    float64 `json:"median"`
	Min       float64 `json:"min"`
	Max       float64 `json:"max"`
	Unit      string  `json:"unit"`
}

func (r results) rows() []row {
	var rows []row
	for k, all := range r {
		rows = append(rows, row{
			Contender: k.contender, Test: fmt.Sprintf("path_%s_rtt%d_s%d", k.path, k.rtt.Milliseconds(), k.streams),
			Median: median(all) / 1e9, Min: slices.Min(all) / 1e9, Max: slices.Max(all) / 1e9, Unit: "Gbit/s",
		})
	}
	slices.SortFunc(rows, func(a, b row) int {
		return strings.Compare(a.Test+" "+a.Contender, b.Test+" "+b.Contender)
	})
	return rows
}

const (
	share   = 0.8   // of what is compared with
	farRate = 1.5e9 // one stream at 20 ms without faults
)

// print writes the table, one line a path, and then the bars.
func (r results) print(w io.Writer, o options) {
	names := []string{}
	for _, name := range []string{"zt", "tcp-reno", "tcp-cubic", "tcp-bbr"} {
		if slices.ContainsFunc(slices.Collect(keys(r)), func(k point) bool { return k.contender == name }) {
			names = append(names, name)
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "round trip\tpath\tstreams\t%s\n", strings.Join(names, "\t"))
	for _, rtt := range o.rtts {
		for _, kind := range o.kinds {
			for _, n := range o.streams {
				fmt.Fprintf(t, "%v\t%s\t%d", rtt, kind, n)
				for _, name := range names {
					all := r[point{rtt, kind, n, name}]
					if len(all) == 0 {
						fmt.Fprint(t, "\t-")
						continue
					}
					fmt.Fprintf(t, "\t%.0f [%.0f-%.0f]", median(all)/1e6, slices.Min(all)/1e6, slices.Max(all)/1e6)
				}
				fmt.Fprintln(t)
			}
		}
	}
	t.Flush()
	fmt.Fprintf(w, "Mbit/s: median [min-max] of %d; measured for %v after %v\n\n", o.rounds, o.window, o.warm)

	b := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(b, "bar\tgot\twant\t")
	bar := func(name string, got, want float64, unit string) {
		verdict := "met"
		if got < want {
			verdict = "NOT MET"
		}
		fmt.Fprintf(b, "%s\t%.2f%s\t>= %.2f%s\t%s\n", name, got, unit, want, unit, verdict)
	}
	get := func(rtt time.Duration, kind string, n int, name string) float64 {
		return median(r[point{rtt, kind, n, name}])
	}
	for _, rtt := range o.rtts {
		for _, n := range o.streams {
			clean := get(rtt, "clean", n, "zt")
			if rtt == 20*time.Millisecond && n == 1 && clean > 0 {
				bar("20ms, one stream without faults", clean/1e9, farRate/1e9, " Gbit/s")
			}
			if late := get(rtt, "late", n, "zt"); clean > 0 && late > 0 {
				bar(fmt.Sprintf("%v, %d: late packets / clean path", rtt, n), late/clean, share, "")
			}
			if rtt == 0 { // what a machine loses to itself is no path: the figures are for reference
				continue
			}
			for _, kind := range []string{"loss0.01", "loss0.1"} {
				ours, theirs := get(rtt, kind, n, "zt"), get(rtt, kind, n, "tcp-"+ourControl)
				if ours > 0 && theirs > 0 {
					bar(fmt.Sprintf("%v, %d: %s, zt / kernel %s", rtt, n, kind, ourControl), ours/theirs, share, "")
				}
			}
		}
	}
	b.Flush()
}

// ourControl is the congestion control of netstack's flows, which a bar compares
// with. The overlay's segments carry 1,348 bytes, kernel TCP's 1,448: at the same
// loss that alone makes 0.93.
const ourControl = "cubic"

func keys(r results) func(func(point) bool) {
	return func(yield func(point) bool) {
		for k := range r {
			if !yield(k) {
				return
			}
		}
	}
}
