package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon/kube"
)

const (
	// policyInterval is how often a policy file is read. A volume is swapped by
	// symlink, which no file watch sees on every file system; a small file a second
	// costs nothing.
	policyInterval = time.Second
	// policyGrace is how long the policy of a deleted ConfigMap stays in force:
	// what replaces an object deletes it and creates another.
	policyGrace = 3 * time.Second
)

// policyState is a node's policy in force, with the verifier of its issuers.
// It does not change.
type policyState struct {
	policy   *auth.Policy
	verifier *auth.Verifier
	stop     context.CancelFunc // ends the verifier's fetching
}

// policyWatch reads a policy and keeps its last good content in force.
type policyWatch struct {
	network auth.NetworkID
	client  *http.Client
	log     *slog.Logger
	changed func() // after every change of what current or fault returns

	wg sync.WaitGroup // verifiers

	mu   sync.Mutex // guards below
	now  *policyState
	text []byte // last taken, good or not
	why  error  // why text is not in force
}

// PolicyMissingError says that there is no policy where it should be, or none
// that could be read yet.
type PolicyMissingError struct {
	Where string
	Err   error // nil: it is not there
}

func (e *PolicyMissingError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("there is no policy: %s does not exist", e.Where)
	}
	return fmt.Sprintf("there is no policy: %v", e.Err)
}

// Unwrap returns why it could not be read.
func (e *PolicyMissingError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *PolicyMissingError) Hint() string {
	if h, ok := errors.AsType[hinter](e.Err); ok {
		return h.Hint()
	}
	return "run `zt-daemon cluster add` again, or create it with the key " + PolicyFile + "; until then everybody is refused"
}

// PolicyBrokenError says that a policy was read that cannot be used.
type PolicyBrokenError struct {
	Where string
	Kept  bool // the rules before it stay in force
	Err   error
}

func (e *PolicyBrokenError) Error() string {
	consequence := "everybody is refused"
	if e.Kept {
		consequence = "the rules before it stay in force"
	}
	return fmt.Sprintf("%s is broken, and %s: %v", e.Where, consequence, e.Err)
}

// Unwrap returns the fault.
func (e *PolicyBrokenError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *PolicyBrokenError) Hint() string {
	return "mend it; `zt-daemon policy check FILE` says the same before it is applied"
}

// current returns the state in force; nil if there is none.
func (w *policyWatch) current() *policyState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// fault is why what is there is not in force; nil if it is. It is a
// *PolicyMissingError, a *PolicyBrokenError or a *NodeFileError.
func (w *policyWatch) fault() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.why
}

// readFile follows the file of a directory until ctx is done. A file that has
// gone is as good as a broken one: who writes it may not do so in one step.
func (w *policyWatch) readFile(ctx context.Context, dir string) {
	defer w.wg.Wait()
	tick := time.NewTicker(policyInterval)
	defer tick.Stop()
	for {
		text, err := readNodeFile(dir, PolicyFile)
		if err != nil {
			w.refuse(err)
		} else {
			w.take(ctx, dir+"/"+PolicyFile, text)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// policyRead is one look at a ConfigMap.
type policyRead struct {
	text   []byte
	absent bool  // there is no policy, which ends the one before
	err    error // why text is none
}

// watchConfigMap follows a ConfigMap of the pod's namespace until ctx is done.
// While the API server is away the rules stay in force.
func (w *policyWatch) watchConfigMap(ctx context.Context, c *kube.Client, name string, health func(error)) {
	defer w.wg.Wait()
	where := fmt.Sprintf("ConfigMap %s/%s", c.Namespace(), name)
	gone := &PolicyMissingError{Where: where}
	reads := make(chan policyRead)
	read := func(r policyRead) {
		select {
		case reads <- r:
		case <-ctx.Done():
		}
	}
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() {
		there := false
		c.Watch(ctx, kube.Selection{Resource: kube.ConfigMaps, Name: name}, kube.Watcher{
			Listing: func() { there = false },
			Listed: func() {
				if !there {
					read(policyRead{absent: true, err: gone})
				}
			},
			Changed: func(o kube.Object) {
				there = true
				if o.Err != nil {
					read(policyRead{err: &PolicyBrokenError{Where: where, Kept: w.current() != nil, Err: o.Err}})
					return
				}
				text, err := configMapKey(o.Raw, PolicyFile)
				_, missing := errors.AsType[*PolicyMissingError](err)
				read(policyRead{text: text, absent: missing, err: err})
			},
			Deleted: func(kube.Object) { read(policyRead{absent: true, err: gone}) },
			Health: func(err error) {
				health(err)
				if err != nil && w.current() == nil {
					read(policyRead{err: &PolicyMissingError{Where: where, Err: err}})
				}
			},
		})
	})
	var absent <-chan time.Time
	var why error // of absent
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-reads:
			switch {
			case r.absent && w.current() != nil:
				if absent == nil {
					absent = time.After(policyGrace)
				}
				why = r.err
				continue
			case r.absent:
				w.remove(r.err)
			case r.err != nil:
				w.refuse(r.err)
			default:
				w.take(ctx, where, r.text)
			}
			absent = nil
		case <-absent:
			absent = nil
			w.remove(why)
		}
	}
}

// configMapKey is one value of a ConfigMap's data.
func configMapKey(raw []byte, key string) ([]byte, error) {
	var object struct {
		Metadata struct{ Namespace, Name string } `json:"metadata"`
		Data     map[string]string                `json:"data"`
	}
	if err := json.Unmarshal(raw, &object); err != nil {
		return nil, fmt.Errorf("ConfigMap: %w", err)
	}
	text, ok := object.Data[key]
	if !ok {
		return nil, &PolicyMissingError{Where: fmt.Sprintf("key %s of ConfigMap %s/%s", key, object.Metadata.Namespace, object.Metadata.Name)}
	}
	return []byte(text), nil
}

// take puts a text into force if it is new and good. ctx bounds the life of the
// verifier that it starts.
func (w *policyWatch) take(ctx context.Context, where string, text []byte) {
	w.mu.Lock()
	was, same := w.now, w.text != nil && bytes.Equal(text, w.text)
	if same && w.why != nil { // a policy that could not be read for a while
		_, broken := errors.AsType[*PolicyBrokenError](w.why)
		same = broken
	}
	w.mu.Unlock()
	if same {
		return
	}
	next, err := w.parse(ctx, text, was)
	if err != nil {
		err = &PolicyBrokenError{Where: where, Kept: was != nil, Err: err}
	}
	w.mu.Lock()
	w.text, w.why = bytes.Clone(text), err
	if next != nil {
		w.now = next
	}
	w.mu.Unlock()
	if next != nil && was != nil && next.verifier != was.verifier {
		was.stop()
	}
	w.changed()
}

// refuse notes that what is there cannot be read; the rules in force stay.
func (w *policyWatch) refuse(err error) {
	w.mu.Lock()
	same := w.why != nil && w.why.Error() == err.Error()
	w.why = err
	w.mu.Unlock()
	if !same {
		w.changed()
	}
}

// remove takes the rules out of force: the policy is no more.
func (w *policyWatch) remove(err error) {
	w.mu.Lock()
	was := w.now
	same := was == nil && w.why != nil && w.why.Error() == err.Error()
	w.now, w.text, w.why = nil, nil, err
	w.mu.Unlock()
	if was != nil {
		was.stop()
	}
	if !same {
		w.changed()
	}
}

// parse builds the state of a text. The verifier of the state before is kept
// when the issuers are the same, so that its keys need not be fetched again.
func (w *policyWatch) parse(ctx context.Context, text []byte, was *policyState) (*policyState, error) {
	p, err := auth.ParsePolicy(text)
	if err != nil {
		return nil, err
	}
	if was != nil && reflect.DeepEqual(was.policy.Issuers, p.Issuers) {
		return &policyState{policy: p, verifier: was.verifier, stop: was.stop}, nil
	}
	v, err := auth.NewVerifier(auth.VerifierConfig{Network: w.network, Issuers: p.Issuers, HTTP: w.client, Log: w.log})
	if err != nil {
		return nil, fmt.Errorf("issuers: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	w.wg.Go(func() { v.Run(ctx) })
	return &policyState{policy: p, verifier: v, stop: stop}, nil
}
