package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// script is an API server that answers each request with the next of its lines,
// without a network: time in its tests is synctest's.
type script struct {
	t *testing.T

	mu    sync.Mutex // guards the rest
	steps []step
	asked []string // queries, as far as they differ
	at    []time.Time
}

type step struct {
	code   int
	body   string
	open   bool // the body does not end by itself
	err    error
	header http.Header
}

// steady is a body that ends with the request only.
type steady struct {
	io.Reader
	ctx context.Context
}

func (s steady) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if err != io.EOF {
		return n, err
	}
	<-s.ctx.Done()
	return 0, context.Cause(s.ctx)
}

func (s steady) Close() error { return nil }

func (s *script) RoundTrip(r *http.Request) (*http.Response, error) {
	q := r.URL.Query()
	line := "list"
	if q.Get("watch") == "true" {
		line = "watch " + q.Get("resourceVersion")
		if q.Get("allowWatchBookmarks") != "true" || q.Get("timeoutSeconds") == "" {
			s.t.Errorf("watch asks for no bookmarks or no end: %v", q)
		}
	} else if more := q.Get("continue"); more != "" {
		line += " from " + more
	}
	if f := q.Get("fieldSelector"); f != "" {
		line += " " + f
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked, s.at = append(s.asked, line), append(s.at, time.Now())
	if len(s.steps) == 0 {
		s.steps = []step{{code: 200, open: true}}
	}
	now := s.steps[0]
	s.steps = s.steps[1:]
	if now.err != nil {
		return nil, now.err
	}
	body := io.NopCloser(strings.NewReader(now.body))
	if now.open {
		body = steady{strings.NewReader(now.body), r.Context()}
	}
	return &http.Response{StatusCode: now.code, Body: body, Header: now.header, Request: r}, nil
}

func scripted(t *testing.T, steps ...step) (*Client, *script) {
	t.Helper()
	s := &script{t: t, steps: steps}
	dir := writeAccount(t, map[string]string{"token": "t"})
	return &Client{
		account: account{dir: dir}, base: "https://api.test", pod: podReference{Namespace: "zt", Name: "zt-1"}, name: "zt-daemon",
		http: &http.Client{Transport: s}, log: discard,
	}, s
}

// seen writes down what a Watcher is told.
func seen(log *[]string) Watcher {
	add := func(format string, args ...any) { *log = append(*log, fmt.Sprintf(format, args...)) }
	return Watcher{
		Listing: func() { add("listing") },
		Listed:  func() { add("listed") },
		Changed: func(o Object) {
			if o.Err != nil {
				add("changed %s: %v", o.Name, o.Err)
				return
			}
			add("changed %s", o.Name)
		},
		Deleted: func(o Object) { add("deleted %s", o.Name) },
		Health:  func(err error) { add("health %v", err) },
	}
}

func list(version, more string, names ...string) step {
	var items []string
	for _, n := range names {
		items = append(items, object(n, "1"))
	}
	return step{code: 200, body: fmt.Sprintf(`{"metadata":{"resourceVersion":%q,"continue":%q},"items":[%s]}`, version, more, strings.Join(items, ","))}
}

func object(name, version string) string {
	return fmt.Sprintf(`{"metadata":{"name":%q,"uid":"u","resourceVersion":%q}}`, name, version)
}

func event(kind, object string) string {
	return fmt.Sprintf(`{"type":%q,"object":%s}`+"\n", kind, object)
}

func TestWatch(t *testing.T) {
	away := step{err: errors.New("connection refused")}
	open := func(events ...string) step { return step{code: 200, body: strings.Join(events, ""), open: true} }
	large := `{"metadata":{"name":"large","resourceVersion":"11"},"spec":"` + strings.Repeat("a", maxObject) + `"}`
	forbidden := step{code: 403, body: `{"kind":"Status","message":"no"}`}
	for _, tc := range []struct {
		name  string
		only  string
		steps []step
		after time.Duration // when it is looked at
		told  []string
		asked []string
	}{
		{"all, then changes", "", []step{list("10", "p2", "a"), list("10", "", "b"),
			open(event("ADDED", object("c", "11")), event("MODIFIED", object("a", "12")), event("DELETED", object("b", "13")))}, time.Second,
			[]string{"listing", "changed a", "changed b", "listed", "changed c", "changed a", "deleted b"},
			[]string{"list", "list from p2", "watch 10"}},
		{"one by name", "zt-policy", []step{list("10", "")}, time.Second,
			[]string{"listing", "listed"},
			[]string{"list metadata.name=zt-policy", "watch 10 metadata.name=zt-policy"}},
		{"resumed at a bookmark when nothing comes", "", []step{list("10", ""), open(event("BOOKMARK", object("", "15")))}, watchStall + time.Second,
			[]string{"listing", "listed"}, []string{"list", "watch 10", "watch 15"}},
		{"resumed over an API server's restart", "", []step{list("10", ""), {code: 200, body: event("ADDED", object("a", "11"))}, away, away, open(event("ADDED", object("b", "12")))}, 10 * time.Second,
			[]string{"listing", "listed", "changed a", "health watch configmaps in namespace zt: connection refused", "health watch configmaps in namespace zt: connection refused", "health <nil>", "changed b"},
			[]string{"list", "watch 10", "watch 11", "watch 11", "watch 11"}},
		{"listed again after 410", "", []step{list("10", "", "a"), {code: 410}, list("20", "", "b")}, 10 * time.Second,
			[]string{"listing", "changed a", "listed", "listing", "changed b", "listed"},
			[]string{"list", "watch 10", "list", "watch 20"}},
		{"listed again after an error event", "", []step{list("10", ""), open(event("ERROR", `{"code":410,"message":"too old"}`)), list("20", "")}, 10 * time.Second,
			[]string{"listing", "listed", "listing", "listed"},
			[]string{"list", "watch 10", "list", "watch 20"}},
		{"a list that ends in the middle", "", []step{list("10", "p2", "a"), {code: 410}, list("11", "", "a")}, 10 * time.Second,
			[]string{"listing", "changed a", "listing", "changed a", "listed"},
			[]string{"list", "list from p2", "list", "watch 11"}},
		{"no right, then a right", "", []step{forbidden, forbidden, list("10", "")}, 10 * time.Second,
			[]string{"listing", "health list configmaps in namespace zt: the pod's service account has no right to it", "listing",
				"health list configmaps in namespace zt: the pod's service account has no right to it", "listing", "health <nil>", "listed"},
			[]string{"list", "list", "list", "watch 10"}},
		{"a right to list and none to watch", "", []step{list("10", ""), forbidden, list("10", "")}, 10 * time.Second,
			[]string{"listing", "listed", "health watch configmaps in namespace zt: the pod's service account has no right to it", "listing", "health <nil>", "listed"},
			[]string{"list", "watch 10", "list", "watch 10"}},
		{"no list", "", []step{{code: 200, body: "<html>"}, {code: 200, body: "{}"}, list("10", "")}, 10 * time.Second,
			[]string{"listing", "health list configmaps in namespace zt: read the list: invalid character '<', want '{'", "listing",
				"health list configmaps in namespace zt: the answer is no list: it has no resource version", "listing", "health <nil>", "listed"},
			[]string{"list", "list", "list", "watch 10"}},
		{"objects larger than is kept", "", []step{
			{code: 200, body: `{"items":[` + object("a", "1") + "," + large + "," + object("b", "1") + `],"kind":"List","metadata":{"resourceVersion":"10"}}`},
			open(event("MODIFIED", large), event("ADDED", object("c", "12")))}, watchStall + time.Second,
			[]string{"listing", "changed a", "changed large: is larger than 2097152 bytes", "changed b", "listed", "changed large: is larger than 2097152 bytes", "changed c"},
			[]string{"list", "watch 10", "watch 12"}},
		{"an event without end", "", []step{list("10", ""), {code: 200, body: `{"type":"ADDED","object":{"x":"` + strings.Repeat("a", maxObject)}}, 10 * time.Second,
			[]string{"listing", "listed"}, []string{"list", "watch 10", "watch 10"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, s := scripted(t, tc.steps...)
				var told []string
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					c.Watch(ctx, Selection{Resource: ConfigMaps, Name: tc.only}, seen(&told))
				}()
				time.Sleep(tc.after)
				synctest.Wait()
				cancel()
				<-done
				if !slices.Equal(told, tc.told) {
					t.Errorf("told\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(tc.told, "\n"))
				}
				if !slices.Equal(s.asked, tc.asked) {
					t.Errorf("asked %q, want %q", s.asked, tc.asked)
				}
			})
		})
	}
}

// TestWatchLists shows that a watch which has been resumed for an hour is begun
// anew: an API server restored from a backup may have lost what it told.
func TestWatchLists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s := scripted(t, list("10", "", "a"))
		var told []string
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); c.Watch(ctx, Selection{Resource: ConfigMaps}, seen(&told)) }()
		time.Sleep(watchTrust - watchStall)
		synctest.Wait()
		s.mu.Lock()
		if n := len(s.asked) - 1; n < 20 || slices.Contains(s.asked[1:], "list") {
			t.Errorf("asked %q within the hour, want one list and a watch after each stall", s.asked)
		}
		s.steps = []step{{code: 200, open: true}, list("30", "", "b")}
		s.mu.Unlock()
		time.Sleep(2 * watchStall)
		synctest.Wait()
		cancel()
		<-done
		if got := told[len(told)-1]; got != "listed" || !slices.Contains(told, "changed b") {
			t.Errorf("told %q, want another list", told)
		}
	})
}

// TestWatchPauses shows that an API server which refuses is asked ever more
// rarely, and not sooner than it says.
func TestWatchPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		steps := make([]step, 100)
		for i := range steps {
			steps[i] = step{code: 503}
		}
		steps[10] = step{code: 429, header: http.Header{"Retry-After": {"60"}}}
		c, s := scripted(t, steps...)
		var told []string
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); c.Watch(ctx, Selection{Resource: ConfigMaps}, seen(&told)) }()
		time.Sleep(5 * time.Minute)
		cancel()
		<-done
		if n := len(s.at); n < 15 || n > 40 {
			t.Errorf("asked %d times in 5 minutes, want 15 to 40", n)
		}
		for i := 1; i < len(s.at); i++ {
			gap := s.at[i].Sub(s.at[i-1])
			if gap > retryMax && i != 11 || i == 11 && gap < time.Minute || gap < retryFirst/2 {
				t.Errorf("pause %d is %v", i, gap)
			}
		}
	})
}

// FuzzWatch has an API server, or what stands in its place, send any bytes as a
// watch: nothing is told that is not an event, and nothing panics.
func FuzzWatch(f *testing.F) {
	f.Add([]byte(event("ADDED", object("a", "1")) + event("BOOKMARK", object("", "2"))))
	f.Add([]byte(`{"type":"ERROR","object":{"code":410}}`))
	f.Add([]byte(`{"type":"ADDED","object":null}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &script{t: t, steps: []step{{code: 200, body: string(b)}}}
		c := &Client{account: account{dir: dir}, base: "https://api.test", http: &http.Client{Transport: s}, log: discard}
		if err := writeToken(dir); err != nil {
			t.Fatal(err)
		}
		changes := 0
		r := reflector{client: c, selection: Selection{Resource: ConfigMaps}, to: Watcher{
			Changed: func(Object) { changes++ }, Deleted: func(Object) { changes++ }, Health: func(error) {},
		}}
		if _, err := r.watch(t.Context(), "1"); err == nil {
			t.Error("a watch ended without a reason")
		}
		if n := bytes.Count(b, []byte(`"object"`)); changes > n && !bytes.Contains(bytes.ToLower(b), []byte("object")) {
			t.Errorf("%d changes from %d objects", changes, n)
		}
	})
}
