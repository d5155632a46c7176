package auth

import (
	"fmt"
	"strings"
	"time"
)

// Duration is a length of time whose JSON and YAML form is text: "12h",
// "1h30m", "45s", as time.ParseDuration reads it. It is never negative when it
// was read from text.
type Duration time.Duration

// Std returns d in the standard library's type.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String is the shortest text that reads back as d: "12h", not "12h0m0s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText gives String's form.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads String's form and refuses a negative length.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"12h\" or \"30m\"", text)
	}
	if v < 0 {
		return fmt.Errorf("duration %q is negative", text)
	}
	*d = Duration(v)
	return nil
}
