package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth"
)

// policyInterval is how often the policy file is read. A ConfigMap's volume is
// swapped by symlink, which no file watch sees on every file system; a small
// file a second costs nothing.
const policyInterval = time.Second

// policyState is a node's policy in force, with the verifier of its issuers.
// It does not change.
type policyState struct {
	policy   *auth.Policy
	verifier *auth.Verifier
	stop     context.CancelFunc // ends the verifier's fetching
}

// policyWatch reads a policy file and keeps its last good content in force.
type policyWatch struct {
	dir     string
	network auth.NetworkID
	client  *http.Client
	log     *slog.Logger
	changed func(broken error) // after every change; broken: why the new file is not in force

	wg sync.WaitGroup

	mu    sync.Mutex // guards below
	now   *policyState
	text  []byte // last read, good or not
	fault error  // why text is not in force
}

// current returns the state in force; nil if none ever was.
func (w *policyWatch) current() *policyState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

// run reads the file until ctx is done.
func (w *policyWatch) run(ctx context.Context) {
	defer w.wg.Wait()
	tick := time.NewTicker(policyInterval)
	defer tick.Stop()
	for {
		w.load(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// load takes the file's content into force if it is new and good. ctx bounds
// the life of the verifier that it starts.
func (w *policyWatch) load(ctx context.Context) {
	text, err := readNodeFile(w.dir, PolicyFile)
	w.mu.Lock()
	was, same, known := w.now, err == nil && bytes.Equal(text, w.text), w.fault
	w.mu.Unlock()
	if same || err != nil && known != nil && known.Error() == err.Error() {
		return
	}
	var next *policyState
	if err == nil {
		next, err = w.parse(ctx, text, was)
		if err != nil {
			err = &NodeFileError{File: w.dir + "/" + PolicyFile, Err: err}
		}
	}
	w.mu.Lock()
	w.text, w.fault = text, err
	if next != nil {
		w.now = next
	}
	w.mu.Unlock()
	if next != nil && was != nil && next.verifier != was.verifier {
		was.stop()
	}
	switch {
	case err != nil && was != nil:
		w.log.Error("policy file is broken; the rules before it stay in force", "err", err)
	case err != nil && errors.Is(err, context.Canceled):
	case err != nil:
		w.log.Error("no policy: everybody is refused", "err", err)
	default:
		w.log.Info("policy in force", "rules", len(next.policy.Rules), "issuers", len(next.policy.Issuers))
	}
	w.changed(err)
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
