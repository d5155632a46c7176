package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// readsClock is where the time package of Go 1.26 asks the system for the time of
// day.
const readsClock = "\tsec, nsec, mono := runtimeNow()\n"

// BuildWithClock builds zt-daemon as it is on a machine whose time of day is wrong
// by that much; what measures durations is right. There is no namespace for that
// clock (time_namespaces(7)), so the program's own reading of it is changed.
func (l *Lab) BuildWithClock(ctx context.Context, module, file string, wrong time.Duration) error {
	defer l.During(fmt.Sprintf("building a zt-daemon whose clock is %s wrong", wrong))()
	r := l.Run(ctx, Command{Name: "go env", Dir: module, Args: []string{"go", "env", "GOROOT"}})
	if err := r.OK(); err != nil {
		return fmt.Errorf("build with a wrong clock: %w", err)
	}
	source := filepath.Join(strings.TrimSpace(r.Stdout), "src", "time", "time.go")
	b, err := os.ReadFile(source)
	if err != nil {
		return fmt.Errorf("build with a wrong clock: %w", err)
	}
	if n := bytes.Count(b, []byte(readsClock)); n != 1 {
		return fmt.Errorf("build with a wrong clock: %s reads the clock in %d places, want one", source, n)
	}
	changed := strings.Replace(string(b), readsClock, fmt.Sprintf("%s\tsec += %d\n", readsClock, int64(wrong.Seconds())), 1)
	dir, err := os.MkdirTemp(l.Dir, "clock-")
	if err != nil {
		return err
	}
	into, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{source: into}})
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{into: []byte(changed), overlay: replace} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			return err
		}
	}
	r = l.Run(ctx, Command{
		Name: "go build", Dir: module, Env: append(os.Environ(), "CGO_ENABLED=0"),
		Args: []string{"go", "build", "-overlay", overlay, "-o", file, "./cmd/zt-daemon"},
	})
	if err := r.OK(); err != nil {
		return fmt.Errorf("build with a wrong clock: %w", err)
	}
	return nil
}
