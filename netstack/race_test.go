//go:build race

package netstack

// raceEnabled: sync.Pool then drops what it is given at random, so that
// allocations cannot be counted.
const raceEnabled = true
