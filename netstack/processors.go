package netstack

// Processors is how many of a machine's processors (GOMAXPROCS) a process should
// use whose work is a Device: half of them, at least one. A packet is handed from
// goroutine to goroutine some ten times on its way. On one processor a hand-off
// costs a tenth of a microsecond; where others are idle, each wakes a thread that
// looks for work and takes the core that kubectl, the API server or the relay
// beside it needs. On two cores shared by laptop, relay and node, one each instead
// of two took 64 bytes there and back in 191 µs instead of 265 to 336, 1,600 to
// 1,800 connections a second instead of 1,100 to 1,300, and a sixth less CPU a
// byte; no transfer became slower.
func Processors(have int) int { return max(1, have/2) }
