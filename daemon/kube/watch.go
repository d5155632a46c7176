package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const (
	listPage = 20 // objects asked for at once, so that a page of the largest comes in time
	// maxObject bounds what is kept of an object where a Selection does not. It
	// holds a ConfigMap of 1 MiB, whose quotes and line ends take two bytes here.
	maxObject = 2 << 20
	maxKept   = 64 << 10 // bytes of memory that stay for the next object

	watchLife = 5 * time.Minute // asked of the API server, and up to half as much again
	// watchStall ends a watch on which nothing comes: API servers send a bookmark
	// each minute.
	watchStall = 150 * time.Second
	// watchTrust is how long resuming is believed to miss nothing. An API server
	// that was restored from a backup may have lost what it told.
	watchTrust = time.Hour

	retryFirst = 500 * time.Millisecond
	retryMax   = 20 * time.Second
)

// Object is one object as the API server sent it.
type Object struct {
	Name, UID string
	Raw       json.RawMessage // JSON, of metadata only what is used; for the duration of the call
	Err       error           // why there is no Raw: a predicate of the object
}

// Selection is what a Watch follows.
type Selection struct {
	Resource Resource
	Name     string // only this object; empty: all
	MaxBytes int    // of an object; a larger one has an Err. Default 2 MiB
}

// Watcher is told what a Watch sees, one call at a time.
type Watcher struct {
	// Listing says that Changed now tells all there is, until Listed.
	Listing func()
	Listed  func()
	Changed func(Object)
	Deleted func(Object)
	// Health is told each change: why nothing is seen now, or nil. What was seen
	// before is kept meanwhile.
	Health func(error)
	// Heard, if set, is called each time that the API server agreed to watch or
	// told something in a watch: what was not told until then has not happened.
	Heard func()
}

// Watch tells w of a selection's objects until ctx is done: first all, then each
// change. It tries again for ever, with growing pauses.
func (c *Client) Watch(ctx context.Context, s Selection, w Watcher) {
	if s.MaxBytes == 0 {
		s.MaxBytes = maxObject
	}
	r := reflector{client: c, selection: s, to: w}
	var pause backoff
	for ctx.Err() == nil {
		version, err := r.list(ctx)
		if err == nil {
			pause = 0
			err = r.follow(ctx, version)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && !errors.Is(err, ErrGone) {
			r.health(err)
		}
		if err != nil {
			pause.sleep(ctx, err)
		}
	}
}

// reflector is one Watch.
type reflector struct {
	client    *Client
	selection Selection
	to        Watcher
	sick      bool // what Health was told last
}

func (r *reflector) health(err error) {
	if err != nil || r.sick {
		r.to.Health(err)
	}
	r.sick = err != nil
}

func (r *reflector) heard() {
	if r.to.Heard != nil {
		r.to.Heard()
	}
}

func (r *reflector) request(verb string, query url.Values) request {
	if r.selection.Name != "" {
		query.Set("fieldSelector", "metadata.name="+r.selection.Name)
	}
	return request{verb: verb, method: http.MethodGet, resource: r.selection.Resource, only: r.selection.Name, query: query}
}

// list tells all objects and returns the resource version that a watch begins at.
func (r *reflector) list(ctx context.Context) (version string, err error) {
	r.to.Listing()
	for more := ""; ; {
		query := url.Values{"limit": {strconv.Itoa(listPage)}}
		if more != "" {
			query.Set("continue", more)
		}
		if version, more, err = r.page(ctx, r.request("list", query)); err != nil {
			return "", err
		}
		if more == "" {
			break
		}
	}
	r.health(nil)
	r.to.Listed()
	return version, nil
}

func (r *reflector) page(ctx context.Context, req request) (version, more string, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := r.client.send(ctx, req)
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	in := newStream(resp.Body, r.selection.MaxBytes)
	err = in.members(func(key string) error {
		switch key {
		case "metadata":
			return in.members(func(key string) (err error) {
				switch key {
				case "resourceVersion":
					version, err = in.word()
				case "continue":
					more, err = in.word()
				default:
					err = in.value(false)
				}
				return err
			})
		case "items":
			return in.elements(func() error {
				o, _, err := in.object()
				if err == nil {
					r.to.Changed(o)
				}
				return err
			})
		}
		return in.value(false)
	})
	if err != nil {
		return "", "", r.client.fault(req, fmt.Errorf("read the list: %w", err))
	}
	if version == "" {
		return "", "", r.client.fault(req, errors.New("the answer is no list: it has no resource version"))
	}
	return version, more, nil
}

// follow watches from version on, over as many connections as it takes, until
// the objects have to be listed again; nil when they just should.
func (r *reflector) follow(ctx context.Context, version string) error {
	var pause backoff
	for listed := time.Now(); time.Since(listed) < watchTrust; {
		began := time.Now()
		next, err := r.watch(ctx, version)
		version = next
		var refused *Error
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &refused) && refused.Code >= 400 && refused.Code < 500 && refused.Code != http.StatusTooManyRequests:
			return err // the same again would be refused again
		case time.Since(began) > time.Second && !errors.Is(err, ErrUnreachable):
			pause = 0 // a watch's ordinary end
			continue
		}
		if errors.As(err, &refused) {
			r.health(err)
		}
		pause.sleep(ctx, err)
	}
	return nil
}

// errStalled ends a watch on which nothing comes.
var errStalled = errors.New("nothing came for too long")

// watch follows one connection. It returns the version to go on from; an error
// that is no *Error is the end of a watch that was answered.
func (r *reflector) watch(ctx context.Context, version string) (string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	life := watchLife + rand.N(watchLife/2)
	req := r.request("watch", url.Values{
		"watch": {"true"}, "allowWatchBookmarks": {"true"}, "resourceVersion": {version},
		"timeoutSeconds": {strconv.Itoa(int(life.Seconds()))},
	})
	resp, err := r.client.send(ctx, req)
	if err != nil {
		return version, err
	}
	defer resp.Body.Close()
	r.health(nil)
	r.heard()
	stall := time.AfterFunc(watchStall, func() { cancel(errStalled) })
	defer stall.Stop()
	in := newStream(resp.Body, r.selection.MaxBytes)
	for {
		var kind, at string
		var o Object
		err := in.members(func(key string) (err error) {
			switch key {
			case "type":
				kind, err = in.word()
			case "object":
				o, at, err = in.object()
			default:
				err = in.value(false)
			}
			return err
		})
		if err == nil && o.Raw == nil && o.Err == nil {
			err = errors.New("an event is about no object")
		}
		if err != nil {
			return version, err
		}
		stall.Reset(watchStall)
		if kind != "ERROR" {
			r.heard()
		}
		switch kind {
		case "ERROR":
			return version, r.watchError(req, o.Raw)
		case "ADDED", "MODIFIED":
			r.to.Changed(o)
		case "DELETED":
			r.to.Deleted(o)
		}
		if at != "" {
			version = at
		}
	}
}

// watchError is what an API server says within a watch. Whatever it is, the
// objects are listed again.
func (r *reflector) watchError(req request, raw json.RawMessage) error {
	var status struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}
	e := r.client.fault(req, nil)
	e.Code = http.StatusGone
	if json.Unmarshal(raw, &status) == nil {
		e.Message = status.Message
	}
	return e
}

// backoff is the pause before the next attempt; zero before the first fault.
type backoff time.Duration

// sleep waits, as long as the API server asks for if it does, and doubles the
// next pause.
func (b *backoff) sleep(ctx context.Context, err error) {
	wait := max(time.Duration(*b), retryFirst)
	*b = backoff(min(2*wait, retryMax))
	wait = wait/2 + rand.N(wait/2)
	var e *Error
	if errors.As(err, &e) {
		wait = max(wait, e.retryAfter)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
