// Package daemon is one participant of the overlay, a laptop or a cluster's
// node: its sessions with relays, the UDP path that carries its peers' packets,
// and what faces people on one side and the API server on the other.
//
// A Transport is the participant's one UDP socket; it hands sealed WireGuard
// messages to a netstack.Device and takes them from it. A Session is the
// authenticated connection to one relay; it keeps itself alive, binds the
// Transport to its relay, and holds the edges along which packets may travel.
// AdminSession and FetchHead are what administrators' commands and a first
// login need beside that.
//
// It owns how a participant behaves. It must not know the relay's server code,
// and decides nothing about who may do what: that is package auth's.
package daemon

import "time"

const (
	// attemptTimeout ends one attempt to reach a relay: TCP, TLS, WebSocket,
	// Noise and admission together.
	attemptTimeout = 10 * time.Second
	// answerTimeout ends the wait for a relay's answer to one request.
	answerTimeout = 15 * time.Second
	// writeTimeout ends a control message that cannot be handed to the kernel.
	writeTimeout = 10 * time.Second
)
