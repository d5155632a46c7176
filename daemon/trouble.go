package daemon

import (
	"cmp"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/zt-daemon/zt/daemon/kube"
)

const (
	// troubleRepeat is how often what lasts is said again: an API server forgets an
	// event after an hour.
	troubleRepeat = 30 * time.Minute
	// troubleSteady is how long another wording of the same trouble says nothing
	// new: errors of the network name ports and addresses that change each time.
	troubleSteady = 10 * time.Minute
)

// trouble is something that a node needs and lacks.
type trouble struct {
	reason string // of the Event; CamelCase
	err    error
	exact  bool // another wording is another trouble
}

func (t trouble) text() string { return printable(t.err.Error()) }

// hint is what to do; it may be empty.
func (t trouble) hint() string {
	if h, ok := errors.AsType[hinter](t.err); ok {
		return printable(h.Hint())
	}
	return ""
}

// sentence is what happened and what to do.
func (t trouble) sentence() string {
	if hint := t.hint(); hint != "" {
		return t.text() + "; " + hint
	}
	return t.text()
}

// hinter is an error that says what to do.
type hinter interface {
	error
	Hint() string
}

// troubles is what a node lacks now, by what it is about. Each is said once in
// the log and as an Event of the pod, and so is its end.
type troubles struct {
	log    *slog.Logger
	record func(kube.Event) // does nothing outside a pod

	mu  sync.Mutex // guards now
	now map[string]*saidTrouble
}

type saidTrouble struct {
	trouble
	said string // the wording
	at   time.Time
}

func newTroubles(log *slog.Logger, record func(kube.Event)) *troubles {
	return &troubles{log: log, record: record, now: make(map[string]*saidTrouble)}
}

// begin notes that something is wrong with what; again and again while it lasts.
func (s *troubles) begin(what string, t trouble) {
	s.mu.Lock()
	was := s.now[what]
	now := &saidTrouble{trouble: t, said: t.sentence(), at: time.Now()}
	if was != nil && was.reason == t.reason {
		quiet := troubleSteady
		if was.said == now.said {
			quiet = troubleRepeat
		} else if t.exact {
			quiet = 0
		}
		if time.Since(was.at) < quiet {
			now.said, now.at = was.said, was.at
			s.now[what] = now
			s.mu.Unlock()
			return
		}
	}
	s.now[what] = now
	s.mu.Unlock()
	s.log.Warn("trouble", "reason", t.reason, "err", t.text(), "hint", t.hint())
	s.record(kube.Event{Warning: true, Reason: t.reason, Message: now.said})
}

// end notes that what is as it should be. reason and message are the Event's,
// which is recorded if it was not so before, or if always is set.
func (s *troubles) end(what, reason, message string, always bool) {
	s.mu.Lock()
	was := s.now[what]
	delete(s.now, what)
	s.mu.Unlock()
	if was != nil {
		s.log.Info("trouble is over", "reason", was.reason, "now", message)
	}
	if was != nil || always {
		s.record(kube.Event{Reason: reason, Message: message})
	}
}

// forget drops what is no longer of interest.
func (s *troubles) forget(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.now, what)
}

// all are the troubles of now, sorted by what they are about.
func (s *troubles) all() []trouble {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []trouble
	for _, what := range slices.SortedFunc(maps.Keys(s.now), cmp.Compare[string]) {
		all = append(all, s.now[what].trouble)
	}
	return all
}
