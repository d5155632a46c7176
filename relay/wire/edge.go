package wire

import "github.com/zt-daemon/zt/auth/key"

// EdgeRequest asks for an edge to some node of a cluster.
type EdgeRequest struct {
	Edge    EdgeID // random
	Cluster string // a DNS label
	// AccessRequest is package auth's AccessRequest, for the node, should it refuse.
	// Empty: none.
	AccessRequest []byte
}

func (*EdgeRequest) messageType() Type { return TypeEdgeRequest }
func (m *EdgeRequest) append(b []byte) []byte {
	return appendOptional(appendText(append(b, m.Edge[:]...), m.Cluster, maxName), m.AccessRequest)
}
func (m *EdgeRequest) parse(r *reader) {
	r.array(m.Edge[:])
	m.Cluster, m.AccessRequest = r.text(maxName), r.optional(maxAccessRequest)
}

// EdgeOffer passes a request on to a node, with the laptop's whole grant.
type EdgeOffer struct {
	Edge          EdgeID
	Grant         []byte // package auth's Grant, with the laptop's newest statement
	AccessRequest []byte // as in EdgeRequest
}

func (*EdgeOffer) messageType() Type { return TypeEdgeOffer }
func (m *EdgeOffer) append(b []byte) []byte {
	return appendOptional(appendBytes(append(b, m.Edge[:]...), m.Grant), m.AccessRequest)
}
func (m *EdgeOffer) parse(r *reader) {
	r.array(m.Edge[:])
	m.Grant, m.AccessRequest = r.bytes(), r.optional(maxAccessRequest)
}

// EdgeAnswer is a node's consent: it has installed the laptop as its peer.
// It refuses with Refused.
type EdgeAnswer struct {
	Re     uint32
	Edge   EdgeID
	Answer []byte // package auth's Answer
}

func (*EdgeAnswer) messageType() Type { return TypeEdgeAnswer }
func (m *EdgeAnswer) append(b []byte) []byte {
	return appendBytes(append(appendU32(b, m.Re), m.Edge[:]...), m.Answer)
}
func (m *EdgeAnswer) parse(r *reader) { m.Re = r.u32(); r.array(m.Edge[:]); m.Answer = r.bytes() }

// EdgeOpen tells the node its channel for an edge it consented to.
type EdgeOpen struct {
	Edge    EdgeID
	Peer    key.WireGuardPublic // the laptop's
	Channel uint32              // 24 bits, never 0
}

func (*EdgeOpen) messageType() Type { return TypeEdgeOpen }
func (m *EdgeOpen) append(b []byte) []byte {
	return appendU32(m.Peer.Append(append(b, m.Edge[:]...)), m.Channel)
}
func (m *EdgeOpen) parse(r *reader) {
	r.array(m.Edge[:])
	m.Peer, m.Channel = r.peer(), r.channel()
}

// EdgeReady answers EdgeRequest.
type EdgeReady struct {
	Re      uint32
	Edge    EdgeID
	Peer    key.WireGuardPublic // the node's, as the relay has it; the signed answer counts
	Channel uint32              // 24 bits, never 0
	Answer  []byte              // package auth's Answer
}

func (*EdgeReady) messageType() Type { return TypeEdgeReady }
func (m *EdgeReady) append(b []byte) []byte {
	b = m.Peer.Append(append(appendU32(b, m.Re), m.Edge[:]...))
	return appendBytes(appendU32(b, m.Channel), m.Answer)
}
func (m *EdgeReady) parse(r *reader) {
	m.Re = r.u32()
	r.array(m.Edge[:])
	m.Peer, m.Channel, m.Answer = r.peer(), r.channel(), r.bytes()
}

// EdgeHold says, after a reconnect, that the sender still has Peer installed.
type EdgeHold struct {
	Edge    EdgeID
	Peer    key.WireGuardPublic
	Cluster string
}

func (*EdgeHold) messageType() Type { return TypeEdgeHold }
func (m *EdgeHold) append(b []byte) []byte {
	return appendText(m.Peer.Append(append(b, m.Edge[:]...)), m.Cluster, maxName)
}
func (m *EdgeHold) parse(r *reader) {
	r.array(m.Edge[:])
	m.Peer, m.Cluster = r.peer(), r.text(maxName)
}

// EdgeKept says that both sides hold the edge.
type EdgeKept struct {
	Edge    EdgeID
	Channel uint32 // 24 bits, never 0; the old one is void
}

func (*EdgeKept) messageType() Type        { return TypeEdgeKept }
func (m *EdgeKept) append(b []byte) []byte { return appendU32(append(b, m.Edge[:]...), m.Channel) }
func (m *EdgeKept) parse(r *reader)        { r.array(m.Edge[:]); m.Channel = r.channel() }

// EdgePending says that the other side has not come back yet; EdgeKept or
// EdgeRefused follows.
type EdgePending struct{ Edge EdgeID }

func (*EdgePending) messageType() Type        { return TypeEdgePending }
func (m *EdgePending) append(b []byte) []byte { return append(b, m.Edge[:]...) }
func (m *EdgePending) parse(r *reader)        { r.array(m.Edge[:]) }

// EdgeRefused ends an edge for good: the receiver removes the peer.
type EdgeRefused struct {
	Edge   EdgeID
	Reason string
	Detail string
}

func (*EdgeRefused) messageType() Type { return TypeEdgeRefused }
func (m *EdgeRefused) append(b []byte) []byte {
	return appendText(appendText(append(b, m.Edge[:]...), m.Reason, maxReason), m.Detail, maxText)
}
func (m *EdgeRefused) parse(r *reader) {
	r.array(m.Edge[:])
	m.Reason, m.Detail = r.text(maxReason), r.text(maxText)
}

// EdgeClose says that the sender has removed the peer.
type EdgeClose struct {
	Edge   EdgeID
	Reason string
}

func (*EdgeClose) messageType() Type { return TypeEdgeClose }
func (m *EdgeClose) append(b []byte) []byte {
	return appendText(append(b, m.Edge[:]...), m.Reason, maxReason)
}
func (m *EdgeClose) parse(r *reader) { r.array(m.Edge[:]); m.Reason = r.text(maxReason) }

// EdgeClosed passes EdgeClose on to the other side.
type EdgeClosed struct {
	Edge   EdgeID
	Reason string
}

func (*EdgeClosed) messageType() Type { return TypeEdgeClosed }
func (m *EdgeClosed) append(b []byte) []byte {
	return appendText(append(b, m.Edge[:]...), m.Reason, maxReason)
}
func (m *EdgeClosed) parse(r *reader) { r.array(m.Edge[:]); m.Reason = r.text(maxReason) }

// Ping asks whether the other end lives.
type Ping struct{}

func (*Ping) messageType() Type        { return TypePing }
func (m *Ping) append(b []byte) []byte { return b }
func (m *Ping) parse(*reader)          {}

// Pong answers Ping.
type Pong struct{ Re uint32 }

func (*Pong) messageType() Type        { return TypePong }
func (m *Pong) append(b []byte) []byte { return appendU32(b, m.Re) }
func (m *Pong) parse(r *reader)        { m.Re = r.u32() }

func (r *reader) channel() uint32 {
	c := r.u32()
	if r.err == nil && (c == 0 || c > MaxChannel) {
		r.err = errChannel
	}
	return c
}
