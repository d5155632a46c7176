//go:build !linux

// Command paths needs Linux: network namespaces, TUN devices.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "paths: needs Linux")
	os.Exit(1)
}
