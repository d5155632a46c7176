//go:build !linux

// Command k8s needs Linux: network namespaces, kubelets.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "k8s: needs Linux")
	os.Exit(1)
}
