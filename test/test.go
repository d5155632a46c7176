// Package test is the end-to-end test: one scene of lab with everything in it,
// in network namespaces, played through by `make e2e` (tag e2e, root).
package test
