package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	maxKnownEvents = 128  // events whose repetition is counted
	maxMessage     = 1000 // bytes
	// eventMemory is how long a repetition counts as one: API servers forget an
	// event after an hour.
	eventMemory = 50 * time.Minute

	// Of a Recorder's requests: so many at once, then one each eventEvery.
	eventBurst = 20
	eventEvery = 10 * time.Second
	// eventPatience is how long a refusal to record events is not said again,
	// refusedEvery the same of events that are given up.
	eventPatience = 10 * time.Minute
	refusedEvery  = time.Minute
)

// Event is something that people should find with `kubectl describe` of the pod.
type Event struct {
	Warning     bool
	Reason      string // CamelCase, of a fixed set
	Message     string // printable; cut at 1,000 bytes
	Annotations map[string]string

	// Shared, if set, identifies the event among all pods of the namespace: one
	// of them creates it, the others find it there. With Update they bring its
	// text up to date.
	Shared string
	Update bool
}

// Recorder writes events about this pod, each repetition as a count.
type Recorder struct {
	client *Client
	log    *slog.Logger
	wake   chan struct{}

	mu      sync.Mutex // guards what follows
	known   map[string]*recorded
	queue   []*recorded       // those with something to write, oldest first
	written map[string]uint64 // by reason: the turn in which one was written last
	turn    uint64
	dropped int // for want of room
	refused int // by the API server, since it was last said
	saidAt  time.Time
}

// recorded is an event and how often it happened.
type recorded struct {
	Event
	key         string // in known
	name        string // of the Event object; empty: there is none yet
	first, last time.Time
	count       int
	queued      bool
}

// NewRecorder starts nothing: Run does.
func (c *Client) NewRecorder() *Recorder {
	return &Recorder{client: c, log: c.log, wake: make(chan struct{}, 1), known: make(map[string]*recorded), written: make(map[string]uint64)}
}

// Record notes e, to be written soon. It never waits.
func (r *Recorder) Record(e Event) {
	e.Message = cut(e.Message, maxMessage)
	key := e.Shared
	if key == "" {
		key = e.Reason + "\x00" + e.Message
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.known[key]
	if k != nil && !k.queued && now.Sub(k.first) > eventMemory {
		k = nil
	}
	if k == nil {
		if len(r.known) >= maxKnownEvents && r.known[key] == nil && !r.forgetLocked() && !r.crowdLocked(e.Reason) {
			r.dropped++
			return
		}
		k = &recorded{key: key, first: now}
		r.known[key] = k
	}
	k.Event, k.last = e, now
	k.count++
	if !k.queued {
		k.queued = true
		r.queue = append(r.queue, k)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// forgetLocked makes room for one more; false if everything waits to be written.
func (r *Recorder) forgetLocked() bool {
	oldest := ""
	for key, k := range r.known {
		if !k.queued && (oldest == "" || k.last.Before(r.known[oldest].last)) {
			oldest = key
		}
	}
	delete(r.known, oldest)
	return oldest != ""
}

// crowdLocked makes room for an event of a reason by dropping the newest of the
// reason that waits most often: how many ask for access, or how many AccessGrants
// somebody makes, must not keep from anybody what else happens. False if it is
// this reason that waits most often.
func (r *Recorder) crowdLocked(reason string) bool {
	waiting := make(map[string]int)
	for _, k := range r.queue {
		waiting[k.Reason]++
	}
	most := reason
	for other, n := range waiting {
		if n > waiting[most]+1 {
			most = other
		}
	}
	if most == reason {
		return false
	}
	for n, k := range slices.Backward(r.queue) {
		if k.Reason == most {
			r.queue = slices.Delete(r.queue, n, n+1)
			delete(r.known, k.key)
			r.dropped++
			return true
		}
	}
	return false
}

// Run writes events until ctx is done. While the API server is away, or the
// right is missing, they wait.
func (r *Recorder) Run(ctx context.Context) {
	var pause backoff
	var complained time.Time
	room, filled := eventBurst, time.Now()
	for {
		k := r.next()
		if k == nil {
			select {
			case <-ctx.Done():
				return
			case <-r.wake:
				continue
			}
		}
		more := int(time.Since(filled) / eventEvery)
		room, filled = min(room+more, eventBurst), filled.Add(time.Duration(more)*eventEvery)
		if room == 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(eventEvery - time.Since(filled)):
			}
			continue
		}
		room--
		err := r.write(ctx, k)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			pause = 0
			continue
		}
		if time.Since(complained) > eventPatience {
			complained = time.Now()
			var e *Error
			if errors.As(err, &e) {
				r.log.Warn("event not recorded", "err", err, "hint", e.Hint())
			}
		}
		pause.sleep(ctx, err)
	}
}

// next is the event to write, the oldest of the reason whose turn was longest ago;
// nil: none.
func (r *Recorder) next() *recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dropped > 0 {
		r.log.Warn("events dropped: too many wait to be recorded", "count", r.dropped)
		r.dropped = 0
	}
	var first *recorded
	for _, k := range r.queue {
		if first == nil || r.written[k.Reason] < r.written[first.Reason] {
			first = k
		}
	}
	return first
}

// write brings the Event object of k up to date, and takes k off the queue if
// that succeeded and nothing came meanwhile. What could not be written goes to
// the queue's end.
func (r *Recorder) write(ctx context.Context, k *recorded) error {
	r.mu.Lock()
	now := *k
	r.mu.Unlock()
	name, err := now.name, error(nil)
	if name != "" {
		if err = r.update(ctx, &now); errors.Is(err, ErrNotFound) {
			name = "" // the API server has forgotten it
		}
	}
	if name == "" {
		name, err = r.create(ctx, &now)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turn++
	r.written[now.Reason] = r.turn
	at := slices.Index(r.queue, k)
	if at < 0 { // it gave way meanwhile
		return err
	}
	var e *Error
	if errors.As(err, &e) && e.permanent() {
		r.refusedLocked(now.Reason, err)
		name, err = now.name, nil
	}
	if err == nil {
		k.name = name
	}
	if err != nil || k.count != now.count {
		r.queue = append(slices.Delete(r.queue, at, at+1), k)
		return err
	}
	k.queued = false
	r.queue = slices.Delete(r.queue, at, at+1)
	return nil
}

// refusedLocked counts an event that is given up, and says so now and then.
func (r *Recorder) refusedLocked(reason string, err error) {
	r.refused++
	if time.Since(r.saidAt) < refusedEvery {
		return
	}
	r.log.Error("events not taken by the API server", "count", r.refused, "reason", reason, "err", err)
	r.refused, r.saidAt = 0, time.Now()
}

// timestamp is a time as Kubernetes' objects have it.
func timestamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func (r *Recorder) create(ctx context.Context, k *recorded) (name string, err error) {
	c := r.client
	switch {
	case k.Shared == "":
		name = fmt.Sprintf("%s.%016x", c.pod.Name, rand.Uint64())
	default:
		h := sha256.Sum256([]byte(k.Reason + "\x00" + k.Shared))
		name = "zt." + hex.EncodeToString(h[:10])
	}
	kind := "Normal"
	if k.Warning {
		kind = "Warning"
	}
	pod := c.pod
	pod.Kind, pod.APIVersion = "Pod", "v1"
	metadata := map[string]any{"name": name, "namespace": pod.Namespace}
	if len(k.Annotations) > 0 {
		metadata["annotations"] = k.Annotations
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": pod,
		"type": kind, "reason": k.Reason, "message": k.Message, "count": k.count,
		"firstTimestamp": timestamp(k.first), "lastTimestamp": timestamp(k.last),
		"source":             map[string]string{"component": c.name, "host": c.node},
		"reportingComponent": c.name, "reportingInstance": pod.Name,
	})
	if err != nil {
		return "", fmt.Errorf("event %s: %v", k.Reason, err)
	}
	err = c.do(ctx, request{verb: "create", method: http.MethodPost, resource: events, contentType: "application/json", body: body})
	if errors.Is(err, ErrConflict) { // another pod was first
		err = nil
		if k.Update {
			k.name = name
			err = r.update(ctx, k)
		}
	}
	return name, err
}

func (r *Recorder) update(ctx context.Context, k *recorded) error {
	change := map[string]any{"count": k.count, "lastTimestamp": timestamp(k.last), "message": k.Message}
	if len(k.Annotations) > 0 {
		change["metadata"] = map[string]any{"annotations": k.Annotations}
	}
	body, err := json.Marshal(change)
	if err != nil {
		return fmt.Errorf("event %s: %v", k.Reason, err)
	}
	return r.client.do(ctx, request{
		verb: "patch", method: http.MethodPatch, resource: events, name: k.name, query: url.Values{},
		contentType: "application/merge-patch+json", body: body,
	})
}

// cut is s without what is no UTF-8, of at most n bytes.
func cut(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	n -= len("…")
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
