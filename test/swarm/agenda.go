//go:build linux

package swarm

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// An agenda calls functions at their times, one after another in one goroutine:
// a timer for each of ten thousand members would cost more than they do.
type agenda struct {
	mu    sync.Mutex // guards items
	items appointments
	wake  chan struct{}
}

type appointment struct {
	at time.Time
	f  func()
}

type appointments []appointment

func (a appointments) Len() int           { return len(a) }
func (a appointments) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a appointments) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *appointments) Push(x any)        { *a = append(*a, x.(appointment)) }
func (a *appointments) Pop() any {
	last := len(*a) - 1
	x := (*a)[last]
	(*a)[last] = appointment{}
	*a = (*a)[:last]
	return x
}

func newAgenda() *agenda { return &agenda{wake: make(chan struct{}, 1)} }

// after has f called in d. f must not block.
func (a *agenda) after(d time.Duration, f func()) {
	at := time.Now().Add(d)
	a.mu.Lock()
	first := len(a.items) == 0 || at.Before(a.items[0].at)
	heap.Push(&a.items, appointment{at, f})
	a.mu.Unlock()
	if first {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}

func (a *agenda) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.wake:
		case <-timer.C:
		}
		for {
			a.mu.Lock()
			if len(a.items) == 0 {
				a.mu.Unlock()
				break
			}
			if wait := time.Until(a.items[0].at); wait > 0 {
				a.mu.Unlock()
				timer.Reset(wait)
				break
			}
			f := heap.Pop(&a.items).(appointment).f
			a.mu.Unlock()
			f()
		}
	}
}
