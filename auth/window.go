package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // a node's image has no zone files, and a window must mean the same everywhere
)

// Day is a day of the week, written mon, tue, wed, thu, fri, sat or sun.
type Day time.Weekday

var windowDays = [7]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} // by time.Weekday

// String is the written form.
func (d Day) String() string { return windowDays[int(d)%len(windowDays)] }

// MarshalText gives String's form.
func (d Day) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads String's form.
func (d *Day) UnmarshalText(text []byte) error {
	n := slices.Index(windowDays[:], string(text))
	if n < 0 {
		return fmt.Errorf("%q is not a day: write mon, tue, wed, thu, fri, sat or sun", text)
	}
	*d = Day(n)
	return nil
}

// Clock is a time of day in minutes after midnight, written "08:00"; "24:00" is
// the end of the day.
type Clock int

const windowDayMinutes = 24 * 60

// String is the written form.
func (c Clock) String() string { return fmt.Sprintf("%02d:%02d", int(c)/60, int(c)%60) }

// MarshalText gives String's form.
func (c Clock) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads exactly HH:MM.
func (c *Clock) UnmarshalText(text []byte) error {
	bad := fmt.Errorf("%q is not a time of day such as \"08:00\"", text)
	if len(text) != 5 || text[2] != ':' {
		return bad
	}
	var digits [4]int
	for n, i := range []int{0, 1, 3, 4} {
		if text[i] < '0' || text[i] > '9' {
			return bad
		}
		digits[n] = int(text[i] - '0')
	}
	h, m := digits[0]*10+digits[1], digits[2]*10+digits[3]
	if m > 59 || h*60+m > windowDayMinutes {
		return bad
	}
	*c = Clock(h*60 + m)
	return nil
}

// Window is a span of each of some days, by the clocks of one zone. It holds
// From and not To. If To is not after From it ends on the next day; it belongs
// to the day on which it begins.
//
// Where the zone's clocks are put back, a time that comes twice means the first
// of the two; where they are put forward, a time that does not come means the
// moment of the change.
type Window struct {
	Days []Day  `json:"days"` // empty = every day
	From Clock  `json:"from"`
	To   Clock  `json:"to"`
	Zone string `json:"zone"` // of the IANA database; empty = UTC

	zone *time.Location
}

// load resolves Zone and checks the rest.
func (w *Window) load() error {
	for n, d := range w.Days {
		if slices.Contains(w.Days[:n], d) {
			return fmt.Errorf("day %s is listed twice", d)
		}
	}
	switch {
	case w.From == w.To:
		return fmt.Errorf("from and to are both %s; a whole day is from \"00:00\" to \"24:00\"", w.From)
	case w.From == windowDayMinutes:
		return errors.New("from is 24:00; write 00:00 and the next day")
	case w.Zone == "Local": // would change with the machine
		return errors.New("zone Local is not a zone of the IANA database")
	}
	zone, err := time.LoadLocation(w.Zone)
	if err != nil {
		return fmt.Errorf("zone %q is not in the IANA database (write it as Europe/Berlin)", w.Zone)
	}
	w.zone = zone
	return nil
}

// String is for people: "mon, tue 08:00–18:00 Europe/Berlin".
func (w Window) String() string {
	days := "daily"
	if len(w.Days) > 0 {
		names := make([]string, len(w.Days))
		for n, d := range w.Days {
			names[n] = d.String()
		}
		days = strings.Join(names, ", ")
	}
	zone := w.Zone
	if zone == "" {
		zone = "UTC"
	}
	return fmt.Sprintf("%s %s–%s %s", days, w.From, w.To, zone)
}

// contains reports whether now lies in the window.
func (w Window) contains(now time.Time) bool {
	for begin, end := range w.spans(now, 2) {
		if !now.Before(begin) && now.Before(end) {
			return true
		}
	}
	return false
}

// edges yields the beginnings and ends of the window that come after now, in no
// order, for the given number of days.
func (w Window) edges(now time.Time, days int) func(func(time.Time) bool) {
	return func(yield func(time.Time) bool) {
		for begin, end := range w.spans(now, days+2) {
			for _, t := range []time.Time{begin, end} {
				if t.After(now) && !yield(t) {
					return
				}
			}
		}
	}
}

// spans yields the window's spans which begin on n days from the day before now.
// A span that the clocks swallow whole is left out.
func (w Window) spans(now time.Time, n int) func(func(begin, end time.Time) bool) {
	return func(yield func(begin, end time.Time) bool) {
		y, m, d := now.In(w.zone).Date()
		for i := range n {
			day := d - 1 + i
			weekday := Day(time.Date(y, m, day, 12, 0, 0, 0, time.UTC).Weekday())
			if len(w.Days) > 0 && !slices.Contains(w.Days, weekday) {
				continue
			}
			last := day
			if w.To <= w.From {
				last++
			}
			begin, end := windowInstant(y, m, day, w.From, w.zone), windowInstant(y, m, last, w.To, w.zone)
			if begin.Before(end) && !yield(begin, end) {
				return
			}
		}
	}
}

// windowInstant is when the zone's clocks show c on that day: the first time if
// they do so twice, the moment of the change if they skip it. time.Date promises
// neither.
func windowInstant(y int, m time.Month, d int, c Clock, zone *time.Location) time.Time {
	t := time.Date(y, m, d, int(c)/60, int(c)%60, 0, 0, zone)
	want := time.Date(y, m, d, int(c)/60, int(c)%60, 0, 0, time.UTC) // the same reading, as a number to compare
	reading := func(t time.Time) time.Time {
		_, offset := t.Zone()
		return t.UTC().Add(time.Duration(offset) * time.Second)
	}
	start, end := t.ZoneBounds()
	if r := reading(t); r.After(want) {
		return start // skipped, and t is past the change
	} else if r.Before(want) {
		return end // skipped, and t is ahead of the change
	}
	if start.IsZero() {
		return t
	}
	_, before := start.Add(-time.Second).In(zone).Zone()
	_, after := t.Zone()
	if first := t.Add(time.Duration(after-before) * time.Second); first.Before(start) && reading(first.In(zone)).Equal(want) {
		return first
	}
	return t
}
