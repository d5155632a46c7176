package relay

import (
	"crypto/rand"
	"time"

	"github.com/zt-daemon/zt/relay/wire"
)

const (
	channelRest = 10 * time.Minute // before a channel may be used again
	maxChannels = 1 << 14          // resting ones; beyond, the oldest are forgotten
)

// channels are the numbers of one session: random, so that a stale packet of an
// earlier edge finds nothing. The zero value is ready.
type channels struct {
	used    map[uint32]bool // in use, or resting
	resting []restingChannel
}

type restingChannel struct {
	channel uint32
	since   time.Time
}

// take returns a channel that was not in use for channelRest. The channels of
// both sides of an edge have the low byte in common, by which the kernel chooses
// the socket that receives them (see spread): beside is the other side's, 0 if
// it has none. 16 bits are left to chance.
func (c *channels) take(now time.Time, beside uint32) uint32 {
	n := 0
	for n < len(c.resting) && (now.Sub(c.resting[n].since) >= channelRest || len(c.resting)-n > maxChannels) {
		delete(c.used, c.resting[n].channel)
		n++
	}
	c.resting = c.resting[n:]
	if c.used == nil {
		c.used = map[uint32]bool{}
	}
	for {
		var b [4]byte
		rand.Read(b[:])
		channel := wire.Channel(b[:])
		if beside != 0 {
			channel = channel&^0xff | beside&0xff
		}
		if channel != 0 && !c.used[channel] {
			c.used[channel] = true
			return channel
		}
	}
}

// give lays a channel to rest.
func (c *channels) give(channel uint32, now time.Time) {
	if channel != 0 {
		c.resting = append(c.resting, restingChannel{channel, now})
	}
}
