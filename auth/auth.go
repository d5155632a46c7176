// Package auth decides who may join the overlay and what that opens: it holds
// networks and their signed documents, verifies ID tokens and the grants that
// are built on them, runs logins, and reads a cluster's policy.
//
// It owns issuers, heads and records, commitments, statements and grants, how
// long each of them lives, and every reason for a refusal. It must not know how
// packets travel: nothing here imports relay, daemon or netstack.
package auth
