package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

var discard = slog.New(slog.DiscardHandler)

func writeToken(dir string) error {
	return os.WriteFile(filepath.Join(dir, "token"), []byte("t"), 0o600)
}

// eventStore is an API server that keeps events.
type eventStore struct {
	mu       sync.Mutex // guards the rest
	objects  map[string]map[string]any
	requests []time.Time
	refuse   int // this many requests, with refuseAs
	refuseAs int
	never    map[string]refusal // reasons of events that are refused each time
}

type refusal struct {
	code    int
	message string
}

func (s *eventStore) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, time.Now())
	answer := func(code int) (*http.Response, error) {
		return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader("{}")), Request: r}, nil
	}
	if s.refuse > 0 {
		s.refuse--
		return answer(s.refuseAs)
	}
	var body map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return answer(http.StatusBadRequest)
	}
	reason, _ := body["reason"].(string)
	if no, ok := s.never[reason]; ok {
		text, _ := json.Marshal(map[string]string{"message": no.message})
		return &http.Response{StatusCode: no.code, Body: io.NopCloser(bytes.NewReader(text)), Request: r}, nil
	}
	if r.Method == http.MethodPost {
		name := body["metadata"].(map[string]any)["name"].(string)
		if s.objects[name] != nil {
			return answer(http.StatusConflict)
		}
		s.objects[name] = body
		return answer(http.StatusCreated)
	}
	name := filepath.Base(r.URL.Path)
	if s.objects[name] == nil {
		return answer(http.StatusNotFound)
	}
	for k, v := range body {
		s.objects[name][k] = v
	}
	return answer(http.StatusOK)
}

func (s *eventStore) texts() []string {
	var all []string
	for _, o := range s.objects {
		all = append(all, fmt.Sprintf("%v %v %v x%v", o["type"], o["reason"], o["message"], o["count"]))
	}
	return all
}

// recording runs a Recorder of a pod in a bubble of synctest.
func recording(t *testing.T, s *eventStore, pod string) (r *Recorder, stop func()) {
	if s.objects == nil {
		s.objects = map[string]map[string]any{}
	}
	c := &Client{account: account{dir: writeAccount(t, map[string]string{"token": "t"})}, base: "https://api.test", name: "zt-daemon", node: "worker-1",
		pod: podReference{Namespace: "zt", Name: pod, UID: "uid-" + pod}, http: &http.Client{Transport: s}, log: discard}
	r = c.NewRecorder()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	return r, func() { cancel(); <-done }
}

func TestRecorder(t *testing.T) {
	broken := Event{Warning: true, Reason: "PolicyBroken", Message: "line 3"}
	t.Run("the same again counts", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &eventStore{}
			r, stop := recording(t, s, "zt-1")
			for range 3 {
				r.Record(broken)
				time.Sleep(time.Minute)
			}
			stop()
			if got := s.texts(); len(got) != 1 || got[0] != "Warning PolicyBroken line 3 x3" {
				t.Errorf("events %q, want one with count 3", got)
			}
			for name, o := range s.objects {
				ref := o["involvedObject"].(map[string]any)
				if ref["kind"] != "Pod" || ref["name"] != "zt-1" || ref["uid"] != "uid-zt-1" || !strings.HasPrefix(name, "zt-1.") || o["firstTimestamp"] == o["lastTimestamp"] {
					t.Errorf("event %s: %v", name, o)
				}
			}
		})
	})
	t.Run("a repetition after the API server forgot", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &eventStore{}
			r, stop := recording(t, s, "zt-1")
			r.Record(broken)
			time.Sleep(time.Minute)
			s.mu.Lock()
			clear(s.objects)
			s.mu.Unlock()
			r.Record(broken)
			time.Sleep(time.Minute)
			stop()
			if got := s.texts(); len(got) != 1 || got[0] != "Warning PolicyBroken line 3 x2" {
				t.Errorf("events %q, want it again", got)
			}
		})
	})
	t.Run("shared by pods", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &eventStore{}
			first, stopFirst := recording(t, s, "zt-1")
			second, stopSecond := recording(t, s, "zt-2")
			granted := Event{Reason: "AccessGranted", Message: "g", Shared: "u1"}
			asked := Event{Reason: "AccessRequested", Message: "for 1h", Shared: "alice", Update: true}
			first.Record(granted)
			first.Record(asked)
			time.Sleep(time.Minute)
			asked.Message = "for 2h"
			second.Record(granted)
			second.Record(asked)
			time.Sleep(time.Minute)
			stopFirst()
			stopSecond()
			got := strings.Join(s.texts(), "; ")
			if len(s.objects) != 2 || !strings.Contains(got, "Normal AccessGranted g x1") || !strings.Contains(got, "AccessRequested for 2h") {
				t.Errorf("events %q, want one of each, with the newest text", got)
			}
		})
	})
	t.Run("a flood", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &eventStore{}
			r, stop := recording(t, s, "zt-1")
			for i := range 10_000 {
				r.Record(Event{Reason: "AccessRequested", Message: fmt.Sprint(i)})
			}
			time.Sleep(100 * time.Second)
			stop()
			if n := len(s.requests); n < eventBurst || n > eventBurst+11 {
				t.Errorf("%d requests in 100 s, want %d to %d", n, eventBurst, eventBurst+11)
			}
			if n := len(r.known); n > maxKnownEvents {
				t.Errorf("%d events are remembered, at most %d should be", n, maxKnownEvents)
			}
		})
	})
	t.Run("a flood keeps nothing else away", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &eventStore{}
			r, stop := recording(t, s, "zt-1")
			flood := func() {
				for i := range 1000 {
					r.Record(Event{Reason: "AccessRequested", Message: fmt.Sprint(i), Shared: fmt.Sprint(i)})
					r.Record(Event{Reason: "AccessGrantInvalid", Message: fmt.Sprint(i)})
				}
			}
			flood()
			r.Record(broken)
			flood()
			time.Sleep(3 * eventEvery)
			r.Record(Event{Reason: "AccessRevoked", Message: "g"})
			flood()
			time.Sleep(3 * eventEvery)
			stop()
			got := strings.Join(s.texts(), "; ")
			if !strings.Contains(got, "PolicyBroken line 3 x1") || !strings.Contains(got, "AccessRevoked g x1") || !strings.Contains(got, "AccessRequested") || !strings.Contains(got, "AccessGrantInvalid") {
				t.Errorf("events %q, want one of each reason at least", got)
			}
			if n, q := len(r.known), len(r.queue); n > maxKnownEvents || q > maxKnownEvents {
				t.Errorf("%d events are remembered and %d wait, at most %d should", n, q, maxKnownEvents)
			}
		})
	})
	for name, no := range map[string]refusal{
		"a quota":            {http.StatusForbidden, `events "x" is forbidden: exceeded quota: few`},
		"too large":          {http.StatusRequestEntityTooLarge, ""},
		"an admission hook":  {http.StatusForbidden, `admission webhook "w" denied the request`},
		"a hook that breaks": {http.StatusInternalServerError, ""},
	} {
		t.Run("one is refused each time by "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &eventStore{never: map[string]refusal{"AccessRequested": no}}
				r, stop := recording(t, s, "zt-1")
				r.Record(Event{Reason: "AccessRequested", Message: "alice"})
				r.Record(Event{Reason: "AccessRequested", Message: "bob"})
				r.Record(broken)
				time.Sleep(10 * time.Second)
				stop()
				if got := s.texts(); len(got) != 1 || got[0] != "Warning PolicyBroken line 3 x1" {
					t.Errorf("events %q, want the one that is taken", got)
				}
				if waits := len(r.queue); (waits > 0) != (no.code == http.StatusInternalServerError) {
					t.Errorf("%d events wait", waits)
				}
			})
		})
	}
	t.Run("while the right is missing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &eventStore{refuse: 5, refuseAs: http.StatusForbidden}
			r, stop := recording(t, s, "zt-1")
			r.Record(broken)
			time.Sleep(5 * time.Minute)
			stop()
			if got := s.texts(); len(got) != 1 {
				t.Errorf("events %q, want one once the right is there", got)
			}
		})
	})
	t.Run("one that the API server does not take", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &eventStore{refuse: 1, refuseAs: http.StatusUnprocessableEntity}
			r, stop := recording(t, s, "zt-1")
			r.Record(Event{Reason: "bad reason"})
			r.Record(broken)
			time.Sleep(time.Minute)
			stop()
			if got := s.texts(); len(got) != 1 || len(s.requests) != 2 {
				t.Errorf("events %q after %d requests, want the second one after two", got, len(s.requests))
			}
		})
	})
}

func TestCut(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"short", "short"},
		{strings.Repeat("a", 20), "aaaaaaa…"},
		{"ääääääääää", "äää…"},
		{"a\xffb", "a\uFFFDb"},
	} {
		if got := cut(tc.in, 10); got != tc.want || !utf8.ValidString(got) {
			t.Errorf("cut(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}
