package daemon

import (
	"slices"
	"strings"
)

// maxLineTable bounds the memory of aligning two texts: 32 MiB.
const maxLineTable = 16 << 20

// mergeLines makes in text the edit that leads from before to after, which say
// the same as text in another layout: lines that the edit leaves alone stay as
// they are in text, with the blank ones, quotes and spaces that before has lost.
// It reports false if the texts are too long.
func mergeLines(text, before, after string) (string, bool) {
	had, from, to := lines(text), lines(before), lines(after)
	inText, ok := align(from, had)
	inAfter, ok2 := align(from, to)
	if !ok || !ok2 {
		return "", false
	}
	pair(inText, from, had)
	var b strings.Builder
	write := func(ls []string) {
		for _, l := range ls {
			b.WriteString(l)
		}
	}
	i, h, t := 0, 0, 0 // what was written, as far as each text is concerned
	for i < len(from) || h < len(had) || t < len(to) {
		// A stable line is in all three; up to the next one, they may differ.
		next := i
		for next < len(from) && (inText[next] < 0 || inAfter[next] < 0) {
			next++
		}
		hEnd, tEnd := len(had), len(to)
		if next < len(from) {
			hEnd, tEnd = inText[next], inAfter[next]
		}
		if slices.Equal(from[i:next], to[t:tEnd]) {
			write(had[h:hEnd])
		} else {
			leading, trailing := blankEnds(had[h:hEnd])
			write(leading)
			write(to[t:tEnd])
			write(trailing)
		}
		if next == len(from) {
			break
		}
		b.WriteString(had[hEnd])
		i, h, t = next+1, hEnd+1, tEnd+1
	}
	return b.String(), true
}

// lines are the lines of s, each with its line feed; a last one without is given one.
func lines(s string) []string {
	if s != "" && !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	return slices.Collect(strings.Lines(s))
}

// blankEnds are the blank lines that ls begins and ends with; if all are blank,
// it ends with them.
func blankEnds(ls []string) (leading, trailing []string) {
	first, last := 0, len(ls)
	for last > 0 && strings.TrimSpace(ls[last-1]) == "" {
		last--
	}
	for first < last && strings.TrimSpace(ls[first]) == "" {
		first++
	}
	return ls[:first], ls[last:]
}

// pair matches in order what align left between two matches, where that is as
// many lines, but for blank ones, on both sides: the same ones in another style.
func pair(match []int, a, b []string) {
	for i, j := 0, 0; i <= len(a); {
		end := i
		for end < len(a) && match[end] < 0 {
			end++
		}
		to := len(b)
		if end < len(a) {
			to = match[end]
		}
		left, right := filled(a, i, end), filled(b, j, to)
		if len(left) == len(right) {
			for n := range left {
				match[left[n]] = right[n]
			}
		}
		i, j = end+1, to+1
	}
}

// filled are the indexes from start to end of lines that are not blank.
func filled(ls []string, start, end int) (at []int) {
	for i := start; i < end; i++ {
		if strings.TrimSpace(ls[i]) != "" {
			at = append(at, i)
		}
	}
	return at
}

// align finds a longest common subsequence of a and b: for each line of a the
// index of its match in b, or -1. It reports false if that takes too much memory.
func align(a, b []string) (match []int, ok bool) {
	match = make([]int, len(a))
	for i := range match {
		match[i] = -1
	}
	start := 0
	for start < len(a) && start < len(b) && a[start] == b[start] {
		match[start] = start
		start++
	}
	endA, endB := len(a), len(b)
	for endA > start && endB > start && a[endA-1] == b[endB-1] {
		endA, endB = endA-1, endB-1
		match[endA] = endB
	}
	n, m := endA-start, endB-start
	if n*m > maxLineTable {
		return nil, false
	}
	// longest[i*(m+1)+j] is the length for a[start+i:endA] and b[start+j:endB].
	longest := make([]uint16, (n+1)*(m+1))
	at := func(i, j int) *uint16 { return &longest[i*(m+1)+j] }
	for i := n - 1; i >= 0; i-- {
		for j := m - 1; j >= 0; j-- {
			if a[start+i] == b[start+j] {
				*at(i, j) = *at(i+1, j+1) + 1
			} else {
				*at(i, j) = max(*at(i+1, j), *at(i, j+1))
			}
		}
	}
	for i, j := 0, 0; i < n && j < m; {
		switch {
		case a[start+i] == b[start+j]:
			match[start+i] = start + j
			i, j = i+1, j+1
		case *at(i+1, j) >= *at(i, j+1):
			i++
		default:
			j++
		}
	}
	return match, true
}
