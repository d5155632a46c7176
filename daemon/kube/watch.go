package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const (
	listPage = 250 // objects asked for at once
	// maxPage bounds the bytes of one page, maxObject those of one watch event;
	// an API server stores no object above 3 MiB.
	maxPage   = 32 << 20
	maxObject = 8 << 20

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
	Raw       json.RawMessage // JSON; for the duration of the call
}

// Selection is what a Watch follows.
type Selection struct {
	Resource Resource
	Name     string // only this object; empty: all
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
}

// Watch tells w of a selection's objects until ctx is done: first all, then each
// change. It tries again for ever, with growing pauses.
func (c *Client) Watch(ctx context.Context, s Selection, w Watcher) {
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
	var page struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
			Continue        string `json:"continue"`
		} `json:"metadata"`
		Items []json.RawMessage `json:"items"`
	}
	if err := json.NewDecoder(&bounded{r: resp.Body, left: maxPage}).Decode(&page); err != nil {
		return "", "", r.client.fault(req, fmt.Errorf("read the list: %w", err))
	}
	if page.Metadata.ResourceVersion == "" {
		return "", "", r.client.fault(req, errors.New("the answer is no list: it has no resource version"))
	}
	for _, raw := range page.Items {
		o, _, err := parseObject(raw)
		if err != nil {
			return "", "", r.client.fault(req, err)
		}
		r.to.Changed(o)
	}
	return page.Metadata.ResourceVersion, page.Metadata.Continue, nil
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
	stall := time.AfterFunc(watchStall, func() { cancel(errStalled) })
	defer stall.Stop()
	body := &bounded{r: resp.Body}
	decoder := json.NewDecoder(body)
	for {
		body.left = maxObject
		var event struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := decoder.Decode(&event); err != nil {
			return version, err
		}
		stall.Reset(watchStall)
		if event.Type == "ERROR" {
			return version, r.watchError(req, event.Object)
		}
		o, at, err := parseObject(event.Object)
		if err != nil {
			return version, err
		}
		switch event.Type {
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

func parseObject(raw json.RawMessage) (o Object, version string, err error) {
	var parsed struct {
		Metadata struct {
			Name            string `json:"name"`
			UID             string `json:"uid"`
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &parsed); err != nil {
		return o, "", fmt.Errorf("read an object: %w", err)
	}
	m := parsed.Metadata
	return Object{Name: m.Name, UID: m.UID, Raw: raw}, m.ResourceVersion, nil
}

// bounded reads at most left bytes.
type bounded struct {
	r    io.Reader
	left int
}

var errTooLarge = errors.New("more bytes than are read")

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLarge
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
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
