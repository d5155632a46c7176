package main

import (
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	for _, tc := range []struct {
		name, in, want string
		verbose        bool
		tally          tally
	}{
		{
			name: "a pass is one line",
			in: `{"Action":"output","Package":"p","Test":"A","Output":"=== RUN   A\n"}
{"Action":"pass","Package":"p","Test":"A","Elapsed":0.1}
{"Action":"pass","Package":"p","Elapsed":0.2}`,
			want:  "ok  \tp\t0.2s\n",
			tally: tally{passed: 1},
		}, {
			name: "a failure says all",
			in: `{"Action":"output","Package":"p","Test":"A","Output":"    a_test.go:1: got 1\n"}
{"Action":"fail","Package":"p","Test":"A","Elapsed":0.1}
{"Action":"fail","Package":"p","Elapsed":0.2}`,
			want:  "    a_test.go:1: got 1\nFAIL\tp\t0.2s\n",
			tally: tally{failed: 1, broken: true},
		}, {
			name: "a skip gives its reason",
			in: `{"Action":"output","Package":"p","Test":"A","Output":"=== RUN   A\n"}
{"Action":"output","Package":"p","Test":"A","Output":"    a_test.go:1: needs root\n"}
{"Action":"output","Package":"p","Test":"A","Output":"--- SKIP: A (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Elapsed":0}`,
			want:  "ok  \tp\t0.0s\n\nskipped:\n  p A: a_test.go:1: needs root\n",
			tally: tally{skipped: 1},
		}, {
			name:  "what does not build",
			in:    `{"ImportPath":"p","Action":"build-output","Output":"p/a.go:1: no\n"}` + "\n" + `{"ImportPath":"p","Action":"build-fail"}`,
			want:  "p/a.go:1: no\n",
			tally: tally{broken: true},
		}, {
			name:    "verbose is as it comes",
			verbose: true,
			in: `{"Action":"output","Package":"p","Test":"A","Output":"=== RUN   A\n"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.2s\n"}
{"Action":"pass","Package":"p","Elapsed":0.2}`,
			want:  "=== RUN   A\nok  \tp\t0.2s\n",
			tally: tally{passed: 1},
		}, {
			name:  "what is not JSON is an error",
			in:    "go: no such directory",
			want:  "go: no such directory\n",
			tally: tally{broken: true},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			got := report(strings.NewReader(tc.in), &out, tc.verbose)
			got.skips = nil
			if out.String() != tc.want || got.passed != tc.tally.passed || got.failed != tc.tally.failed || got.skipped != tc.tally.skipped || got.broken != tc.tally.broken {
				t.Errorf("printed %q and came to %+v, want %q and %+v", out.String(), got, tc.want, tc.tally)
			}
		})
	}
}
