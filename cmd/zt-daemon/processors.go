package main

import (
	"runtime"

	"github.com/zt-daemon/zt/netstack"
)

// limitProcessors leaves the processors to others that a device's work does not
// gain by, unless the environment names a number (GOMAXPROCS).
func limitProcessors(env *environment) {
	if env.getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(netstack.Processors(runtime.GOMAXPROCS(0)))
	}
}
