//go:build !linux

package netstack

// forget does nothing: elsewhere such advice leaves what is read unsaid.
func forget([]byte) {}
