package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	followed = "followed" // the namespace
	// informerResync is how often the informer hands its store over again.
	informerResync = 10 * time.Second
)

// tally is what the informer prints each second.
type tally struct {
	Objects                                  int
	Added, Updated, Deleted, Resyncs, Faults int64
}

// startInformer starts a client-go informer through the overlay, which goes on
// until the scene of its name.
func (b *bed) startInformer(ctx context.Context) (err error) {
	if err := b.c1.Kubectl(ctx, nil, "create", "namespace", followed).OK(); err != nil {
		return err
	}
	b.informerBegan = time.Now()
	b.informer, err = b.lab.Start(b.alice.Command("informer", []string{b.kubernetes, "informer", "--context", "zt-" + b.c1.Name,
		"--namespace", followed, "--resync", informerResync.String()}))
	return err
}

// informerSaw asks what the informer has seen since the first scene, and whether
// it sees what happens now.
func informerSaw(ctx context.Context, b *bed) error {
	b.check(ctx, "client-go informer", via{}, time.Minute, func(ctx context.Context) (string, error) {
		defer b.informer.Kill()
		before, err := b.tally(ctx, func(tally) bool { return true })
		if err != nil {
			return "", err
		}
		for _, args := range [][]string{
			{"create", "configmap", "late"}, {"label", "configmap", "late", "a=b"}, {"delete", "configmap", "late"},
		} {
			if err := b.c1.Kubectl(ctx, nil, append([]string{"--namespace", followed}, args...)...).OK(); err != nil {
				return "", err
			}
		}
		now, err := b.tally(ctx, func(t tally) bool {
			return t.Added > before.Added && t.Updated > before.Updated && t.Deleted > before.Deleted
		})
		if err != nil {
			return "", err
		}
		ran := time.Since(b.informerBegan)
		figure := fmt.Sprintf("%d resyncs in %s, %d faults", now.Resyncs, ran.Round(time.Second), now.Faults)
		if due := int64(ran/informerResync) - 2; now.Resyncs < due*int64(now.Objects) {
			return figure, fmt.Errorf("%d resyncs of %d objects were due", due, now.Objects)
		}
		if now.Faults > 0 {
			return figure, errors.New("watches ended with errors")
		}
		return figure, nil
	})
	return nil
}

// tally is the informer's last line once it is as wanted.
func (b *bed) tally(ctx context.Context, wanted func(tally) bool) (last tally, err error) {
	_, err = b.informer.WaitOutput(ctx, "what it was shown", func(out string) bool {
		for line := range strings.Lines(out) {
			var t tally
			if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &t) == nil {
				last = t
			}
		}
		return last != tally{} && wanted(last)
	})
	return last, err
}
