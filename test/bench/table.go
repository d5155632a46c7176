package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// A test's figure has a unit, and decimals enough to compare.
type test struct {
	name, unit string
	decimals   int
}

// tests are what is printed, in this order. All figures go into the JSON file.
var tests = []test{
	{"S1", "Gbit/s", 2}, {"R1", "Gbit/s", 2}, {"S8", "Gbit/s", 2}, {"R8", "Gbit/s", 2},
	{"B8", "Gbit/s", 2}, {"B8_up", "Gbit/s", 2}, {"B8_down", "Gbit/s", 2},
	{"E50", "µs", 0}, {"E99", "µs", 0}, {"C1", "1/s", 0}, {"C16", "1/s", 0}, {"C10000_worst", "ms", 1}, {"C10000_stalls", "1", 0},
	{"cpu_per_gb", "CPU-s", 2}, {"client_cpu_per_gb", "CPU-s", 2}, {"relay_cpu_per_gb", "CPU-s", 2}, {"node_cpu_per_gb", "CPU-s", 2}, {"client_load_cpu_per_gb", "CPU-s", 2}, {"node_load_cpu_per_gb", "CPU-s", 2},
	{"B8_cpu_per_gb", "CPU-s", 2}, {"B8_client_cpu_per_gb", "CPU-s", 2}, {"B8_relay_cpu_per_gb", "CPU-s", 2}, {"B8_node_cpu_per_gb", "CPU-s", 2}, {"B8_client_load_cpu_per_gb", "CPU-s", 2}, {"B8_node_load_cpu_per_gb", "CPU-s", 2},
	{"S1_pps", "1/s", 0}, {"R1_pps", "1/s", 0},
	{"rss_idle", "MiB", 1}, {"rss_idle_anon", "MiB", 1}, {"rss_loaded", "MiB", 1}, {"rss_loaded_anon", "MiB", 1}, {"rss_peak", "MiB", 1}, {"relay_rss_idle", "MiB", 1}, {"relay_rss_loaded", "MiB", 1},
}

// A figure is what one contender's rounds came to in one test.
type figure struct {
	Contender string  `json:"contender"`
	Test      string  `json:"test"`
	Median    float64 `json:"median"`
	Min       float64 `json:"min"`
	Max       float64 `json:"max"`
	Unit      string  `json:"unit"`
}

// results are the figures of all rounds.
type results struct {
	order   []string                        // contenders
	figures map[string]map[string][]float64 // by contender and test
	notes   []string
}

func (r *results) note(text string) { r.notes = append(r.notes, text) }

func (r *results) add(contender string, figures map[string]float64) {
	if r.figures == nil {
		r.figures = make(map[string]map[string][]float64)
	}
	if r.figures[contender] == nil {
		r.figures[contender] = make(map[string][]float64)
		r.order = append(r.order, contender)
	}
	for t, v := range figures {
		r.figures[contender][t] = append(r.figures[contender][t], v)
	}
}

// of is what a contender came to in a test.
func (r *results) of(contender string, t test) (f figure, ok bool) {
	all := slices.Sorted(slices.Values(r.figures[contender][t.name]))
	if len(all) == 0 {
		return f, false
	}
	n := len(all)
	return figure{contender, t.name, (all[n/2] + all[(n-1)/2]) / 2, all[0], all[n-1], t.unit}, true
}

// median is that of a test by name.
func (r *results) median(contender, name string) (float64, bool) {
	f, ok := r.of(contender, test{name: name})
	return f.Median, ok
}

func (r *results) all() []figure {
	figures := []figure{}
	for _, c := range r.order {
		for _, t := range tests {
			if f, ok := r.of(c, t); ok {
				figures = append(figures, f)
			}
		}
	}
	return figures
}

// write writes every figure as JSON.
func (r *results) write(file string) error {
	b, err := json.MarshalIndent(r.all(), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

// print prints medians with their spread, how zt's compare, and the bars.
func (r *results) print(w io.Writer) {
	r.table(w, "median", func(c string, t test) string {
		f, ok := r.of(c, t)
		return shown(ok, "%.*f", t.decimals, f.Median)
	})
	r.table(w, "least–most", func(c string, t test) string {
		f, ok := r.of(c, t)
		return shown(ok && len(r.figures[c][t.name]) > 1, "%.*f–%.*f", t.decimals, f.Min, t.decimals, f.Max)
	})
	r.table(w, "zt's median as a multiple of theirs", func(c string, t test) string {
		mine, ok := r.median("zt", t.name)
		theirs, also := r.median(c, t.name)
		return shown(ok && also && theirs != 0 && c != "zt", "%.2f", mine/theirs)
	})
	r.printBars(w)
	if len(r.notes) > 0 {
		fmt.Fprintln(w, "\nnotes")
		for _, n := range r.notes {
			fmt.Fprintln(w, "  "+n)
		}
	}
}

func shown(ok bool, format string, args ...any) string {
	if !ok {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

// table prints a row for each test and a column for each contender, but no row
// without a cell and no table without a row.
func (r *results) table(w io.Writer, title string, cell func(contender string, t test) string) {
	rows := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := fmt.Sprintf("\n%s\n\t\t%s\t\n", title, strings.Join(r.order, "\t"))
	for _, t := range tests {
		line, empty := t.name+"\t"+t.unit, true
		for _, c := range r.order {
			text := cell(c, t)
			line, empty = line+"\t"+text, empty && text == ""
		}
		if !empty {
			fmt.Fprint(rows, head+line+"\t\n")
			head = ""
		}
	}
	rows.Flush()
}

// A bar is what a figure of zt's should reach: over divided by under, where there
// is an under, less what there is to subtract.
type bar struct {
	over, under string // CONTENDER TEST
	less        string // CONTENDER TEST
	at          float64
	most        bool // at most, rather than at least
	stretch     bool
}

var bars = []bar{
	{over: "zt S1", under: "ts-peer S1", at: 2},
	{over: "zt S1", under: "ts-direct S1", at: 1.6},
	{over: "zt S1", under: "ts-derp S1", at: 16},
	{over: "zt S1", under: "wg S1", at: 6},
	{over: "zt S8", under: "zt S1", at: 0.95},
	{over: "zt B8", under: "zt S1", at: 1.3},
	{over: "zt B8_slower", under: "zt B8_faster", at: 0.8},
	{over: "zt cpu_per_gb", at: 5.5, most: true},
	{over: "zt B8_cpu_per_gb", at: 4.2, most: true},
	{over: "zt relay_cpu_per_gb", at: 0.8, most: true},
	{over: "zt relay_cpu_per_gb", under: "ts-peer relay_cpu_per_gb", at: 0.55, most: true},
	{over: "zt E50", at: 350, most: true},
	{over: "zt E50", less: "zt-direct E50", at: 100, most: true},
	{over: "zt C1", at: 1000},
	{over: "zt C16", at: 3000},
	{over: "zt C10000_stalls", at: 0, most: true},
	{over: "zt rss_idle", at: 20, most: true},
	{over: "zt rss_loaded", at: 80, most: true},
	{over: "zt-full rss_idle", at: 20, most: true},
	{over: "zt-full rss_loaded", at: 80, most: true},
	{over: "zt S1", at: 3, stretch: true},
	{over: "zt rss_loaded", at: 64, most: true, stretch: true},
	{over: "zt E50", at: 300, most: true, stretch: true},
}

// value finds a median. Of B8's directions the slower and the faster have names.
func (r *results) value(name string) (float64, bool) {
	contender, test, _ := strings.Cut(name, " ")
	if test != "B8_slower" && test != "B8_faster" {
		return r.median(contender, test)
	}
	up, ok := r.median(contender, "B8_up")
	down, also := r.median(contender, "B8_down")
	if test == "B8_slower" {
		return min(up, down), ok && also
	}
	return max(up, down), ok && also
}

// reached is what b's figure came to; false: it was not measured.
func (b bar) reached(r *results) (float64, bool) {
	v, ok := r.value(b.over)
	if b.under != "" {
		under, also := r.value(b.under)
		return v / cmp.Or(under, 1), ok && also && under != 0
	}
	if b.less != "" {
		less, also := r.value(b.less)
		return v - less, ok && also
	}
	return v, ok
}

func (b bar) String() string {
	text := b.over
	if b.under != "" {
		text += " / " + b.under
	}
	if b.less != "" {
		text += " − " + b.less
	}
	sign := "≥"
	if b.most {
		sign = "≤"
	}
	return fmt.Sprintf("%s %s %v", text, sign, b.at)
}

func (r *results) printBars(w io.Writer) {
	rows := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	title := "\nbars\n"
	for _, b := range bars {
		v, ok := b.reached(r)
		if !ok {
			continue
		}
		verdict := "met"
		if b.most && v > b.at || !b.most && v < b.at {
			verdict = "MISSED"
		}
		if b.stretch {
			verdict += " (stretch)"
		}
		fmt.Fprint(w, title)
		title = ""
		fmt.Fprintf(rows, "  %v\t%.4g\t%s\n", b, v, verdict)
	}
	rows.Flush()
}
