package relay

import (
	"sync/atomic"
	"time"
)

// A rate is how often something may happen: so many a second, and as many at
// once.
type rate struct {
	interval int64 // nanoseconds between two
	burst    int64 // nanoseconds that may be drawn in advance
}

func perSecond(n int) rate {
	return rate{interval: int64(time.Second) / int64(n), burst: int64(time.Second)}
}

// A limiter admits events at a rate (the generic cell rate algorithm, ITU-T
// I.371 §A). It is safe for concurrent use; the zero value has its burst unused.
type limiter struct {
	next atomic.Int64 // when the next event would be on schedule
}

// allow reports whether one more event is within r at now, in nanoseconds of
// any one monotonic clock.
func (l *limiter) allow(now int64, r rate) bool {
	for {
		old := l.next.Load()
		next := max(old, now) + r.interval
		if next-now > r.burst {
			return false
		}
		if l.next.CompareAndSwap(old, next) {
			return true
		}
	}
}
