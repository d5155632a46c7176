package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/test/bench/load"
)

func TestMain(m *testing.M) {
	load.Play(roles)
	os.Exit(m.Run())
}

// A whole run, though too short to mean anything: every figure is there, those
// that belong together agree, and zt went through the relay.
func TestRun(t *testing.T) {
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skipf("cannot make a network namespace: %v (Debian: apt-get install iproute2)", err)
	}
	b := &bench{rounds: 1, say: func(text string) { t.Log(text) }, pace: pace{
		warm: 50 * time.Millisecond, window: 300 * time.Millisecond, echo: 200 * time.Millisecond, churn: 200 * time.Millisecond, row: 100, rowAll: true,
	}}
	if err := b.choose("tcp,zt"); err != nil {
		t.Fatal(err)
	}
	if err := b.run(t.Context()); errors.Is(err, errors.ErrUnsupported) {
		t.Skipf("cannot make a network namespace (needs root or CAP_SYS_ADMIN): %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "figures.json")
	if err := b.results.write(file); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var figures []figure
	if err := json.Unmarshal(raw, &figures); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range figures {
		got[f.Contender+" "+f.Test] = f.Median
		if f.Min != f.Median || f.Max != f.Median || f.Unit == "" {
			t.Errorf("one round: %+v", f)
		}
	}
	for _, c := range []string{"zt", "tcp"} {
		for _, limits := range []struct {
			test        string
			least, most float64
		}{
			{"S1", 0.01, 500}, {"R1", 0.01, 500}, {"S8", 0.01, 500}, {"R8", 0.01, 500}, {"B8", 0.01, 500},
			{"E50", 1, 1e6}, {"E99", 1, 1e6}, {"C1", 1, 1e6}, {"C16", 1, 1e6}, {"C10000_worst", 0.01, 1e4},
			{"cpu_per_gb", 0.01, 1e3}, {"rss_idle", 1, 1e4}, {"rss_loaded", 1, 1e4}, {"rss_peak", 1, 1e4},
		} {
			if v, ok := got[c+" "+limits.test]; !ok || v < limits.least || v > limits.most {
				t.Errorf("%s %s is %v, %v; want %v to %v", c, limits.test, v, ok, limits.least, limits.most)
			}
		}
		if got[c+" E50"] > got[c+" E99"] || got[c+" rss_loaded"] > got[c+" rss_peak"] {
			t.Errorf("%s: E50 %v, E99 %v, rss_loaded %v, rss_peak %v", c, got[c+" E50"], got[c+" E99"], got[c+" rss_loaded"], got[c+" rss_peak"])
		}
		for _, sum := range [][]string{{"B8", "B8_up", "B8_down"}, {"cpu_per_gb", "client_cpu_per_gb", "relay_cpu_per_gb", "node_cpu_per_gb"}} {
			total := 0.0
			for _, part := range sum[1:] {
				total += got[c+" "+part]
			}
			if whole := got[c+" "+sum[0]]; math.Abs(total-whole) > whole/1000 {
				t.Errorf("%s %s is %v, its parts %v", c, sum[0], whole, total)
			}
		}
	}
	if got["zt relay_cpu_per_gb"] <= 0 || got["tcp relay_cpu_per_gb"] != 0 {
		t.Errorf("relay's work: zt %v, tcp %v", got["zt relay_cpu_per_gb"], got["tcp relay_cpu_per_gb"])
	}
	var text bytes.Buffer
	b.results.print(&text)
	for _, want := range []string{"median", "zt's median as a multiple of theirs", "zt E50 ≤ 350"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &text)
		}
	}
}

func TestChoose(t *testing.T) {
	var b bench
	if err := b.choose("zt,nobody"); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("a stranger: %v", err)
	}
	if err := b.choose("wg,zt"); err != nil || len(b.contenders) != 2 || b.contenders[0].name != "zt" {
		t.Errorf("chosen %v, %v", b.contenders, err)
	}
}

func TestBars(t *testing.T) {
	var r results
	r.add("zt", map[string]float64{"S1": 4, "E50": 250, "B8_up": 3, "B8_down": 1})
	r.add("zt", map[string]float64{"S1": 2, "E50": 350, "B8_up": 3, "B8_down": 1})
	r.add("zt", map[string]float64{"S1": 3, "E50": 300, "B8_up": 3, "B8_down": 1})
	r.add("wg", map[string]float64{"S1": 0.5, "E50": 280})
	for _, c := range []struct {
		bar  bar
		want float64
		ok   bool
	}{
		{bar{over: "zt S1", at: 1}, 3, true},
		{bar{over: "zt S1", under: "wg S1"}, 6, true},
		{bar{over: "zt E50", less: "wg E50"}, 20, true},
		{bar{over: "zt B8_slower", under: "zt B8_faster"}, 1.0 / 3, true},
		{bar{over: "zt S1", under: "ts-peer S1"}, 0, false},
		{bar{over: "zt C1"}, 0, false},
	} {
		if v, ok := c.bar.reached(&r); ok != c.ok || ok && math.Abs(v-c.want) > 1e-9 {
			t.Errorf("%v came to %v, %v; want %v, %v", c.bar, v, ok, c.want, c.ok)
		}
	}
	if f, _ := r.of("zt", test{name: "S1"}); f.Min != 2 || f.Max != 4 || f.Median != 3 {
		t.Errorf("three rounds: %+v", f)
	}
	var text bytes.Buffer
	r.printBars(&text)
	if !strings.Contains(text.String(), "0.3333  MISSED") || !strings.Contains(text.String(), "6       met") {
		t.Errorf("bars:\n%s", &text)
	}
}
