package wire

import (
	"fmt"

	"github.com/zt-daemon/zt/auth/key"
)

// Type is a control message's type.
type Type uint16

// The types of control messages. P is a participant (laptop L or node N), A an
// administrator's tool, R the relay.
const (
	TypeWelcome          Type = 0x01 // R→P, first: the session
	TypeHello            Type = 0x02 // P→R, first
	TypeGrant            Type = 0x03 // P→R: proof of a login, a workload or a cluster
	TypeAdmitted         Type = 0x04 // R→P: the lease
	TypeOK               Type = 0x05 // either way: done
	TypeRefused          Type = 0x06 // either way: not done, and why
	TypeStatement        Type = 0x07 // P→R: renews what Grant began
	TypePeerStatement    Type = 0x08 // R→N: a laptop's newer statement
	TypeClaim            Type = 0x09 // A→R: the first head of a new relay
	TypeAdminProof       Type = 0x0a // A→R: this session holds the network's or a signer's key
	TypePutDocument      Type = 0x0b // A→R
	TypeDocumentsRequest Type = 0x0c // P→R
	TypeDocument         Type = 0x0d // R→P, any number of them
	TypeDocumentsEnd     Type = 0x0e // R→P
	TypeDocumentsChanged Type = 0x0f // R→P: ask again
	TypeEdgeRequest      Type = 0x10 // L→R
	TypeEdgeOffer        Type = 0x11 // R→N: may this grant's key become your peer?
	TypeEdgeAnswer       Type = 0x12 // N→R
	TypeEdgeOpen         Type = 0x13 // R→N: your channel for the edge
	TypeEdgeReady        Type = 0x14 // R→L: your channel, and the node's answer
	TypeEdgeHold         Type = 0x15 // P→R after a reconnect: I hold this edge
	TypeEdgeKept         Type = 0x16 // R→P: both sides do; your channel
	TypeEdgePending      Type = 0x17 // R→P: the other side is not back yet
	TypeEdgeRefused      Type = 0x18 // R→P: remove the peer
	TypeEdgeClose        Type = 0x19 // P→R: I gave the edge up
	TypeEdgeClosed       Type = 0x1a // R→P: the other side gave it up
	TypePing             Type = 0x1b // either way
	TypePong             Type = 0x1c // either way
	TypeNodeStatus       Type = 0x1d // N→R: how the node is
	TypeNodesRequest     Type = 0x1e // L→R
	TypeClusterNode      Type = 0x1f // R→L, any number of them
	TypeEdgeMove         Type = 0x20 // R→L: ask for another edge for new flows
)

// String names the type as the specification of the messages does.
func (t Type) String() string {
	if m := newMessage(t); m != nil {
		return fmt.Sprintf("%T", m)[len("*wire."):]
	}
	return fmt.Sprintf("type 0x%04x", uint16(t))
}

func newMessage(t Type) Message {
	switch t {
	case TypeWelcome:
		return new(Welcome)
	case TypeHello:
		return new(Hello)
	case TypeGrant:
		return new(Grant)
	case TypeAdmitted:
		return new(Admitted)
	case TypeOK:
		return new(OK)
	case TypeRefused:
		return new(Refused)
	case TypeStatement:
		return new(Statement)
	case TypePeerStatement:
		return new(PeerStatement)
	case TypeClaim:
		return new(Claim)
	case TypeAdminProof:
		return new(AdminProof)
	case TypePutDocument:
		return new(PutDocument)
	case TypeDocumentsRequest:
		return new(DocumentsRequest)
	case TypeDocument:
		return new(Document)
	case TypeDocumentsEnd:
		return new(DocumentsEnd)
	case TypeDocumentsChanged:
		return new(DocumentsChanged)
	case TypeEdgeRequest:
		return new(EdgeRequest)
	case TypeEdgeOffer:
		return new(EdgeOffer)
	case TypeEdgeAnswer:
		return new(EdgeAnswer)
	case TypeEdgeOpen:
		return new(EdgeOpen)
	case TypeEdgeReady:
		return new(EdgeReady)
	case TypeEdgeHold:
		return new(EdgeHold)
	case TypeEdgeKept:
		return new(EdgeKept)
	case TypeEdgePending:
		return new(EdgePending)
	case TypeEdgeRefused:
		return new(EdgeRefused)
	case TypeEdgeClose:
		return new(EdgeClose)
	case TypeEdgeClosed:
		return new(EdgeClosed)
	case TypePing:
		return new(Ping)
	case TypePong:
		return new(Pong)
	case TypeNodeStatus:
		return new(NodeStatus)
	case TypeNodesRequest:
		return new(NodesRequest)
	case TypeClusterNode:
		return new(ClusterNode)
	case TypeEdgeMove:
		return new(EdgeMove)
	}
	return nil
}

// Limits of fields, in bytes.
const (
	maxName   = 63  // a DNS label
	maxReason = 63  // a name from a fixed table
	maxText   = 512 // for people
	maxHost   = 253 // a DNS name
	maxAddr   = 261 // a DNS name, a colon and a port

	maxAccessRequest = 1024 // package auth's AccessRequest has at most 879
)

// EdgeID names an edge at both its ends, at the relay and in every audit line:
// the random nonce of the laptop's request.
type EdgeID [16]byte

// String is the id in hexadecimal.
func (e EdgeID) String() string { return fmt.Sprintf("%x", e[:]) }

// MarshalText gives String's form.
func (e EdgeID) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// Welcome is the relay's first message.
type Welcome struct {
	Version  uint16
	Features uint64   // what the relay knows beside the version
	Session  uint64   // random; names the session in BIND
	Bind     key.Bind // authenticates BIND; random, because the handshake hash is public
	UDP      string   // "host:port" of the relay's UDP; empty: the URL's host and port
	Time     uint64   // the relay's clock, Unix milliseconds; a hint, never trusted
}

func (*Welcome) messageType() Type { return TypeWelcome }
func (m *Welcome) append(b []byte) []byte {
	b = appendU64(appendU16(b, m.Version), m.Features)
	secret := m.Bind.Bytes()
	b = append(appendU64(b, m.Session), secret[:]...)
	return appendU64(appendText(b, m.UDP, maxAddr), m.Time)
}
func (m *Welcome) parse(r *reader) {
	m.Version, m.Features, m.Session = r.u16(), r.u64(), r.u64()
	var secret [key.SecretSize]byte
	r.array(secret[:])
	m.Bind = key.BindFrom(secret)
	m.UDP, m.Time = r.text(maxAddr), r.u64()
}

// Hello is a participant's first message.
type Hello struct {
	Version  uint16
	Features uint64 // what the sender knows beside the version
}

func (*Hello) messageType() Type        { return TypeHello }
func (m *Hello) append(b []byte) []byte { return appendU64(appendU16(b, m.Version), m.Features) }
func (m *Hello) parse(r *reader)        { m.Version, m.Features = r.u16(), r.u64() }

// GrantKind says which table a grant is verified by.
type GrantKind uint8

// The kinds of grants.
const (
	GrantPerson   GrantKind = 1
	GrantWorkload GrantKind = 2
	GrantNode     GrantKind = 3
)

// Grant proves who holds the session's static key: package auth's Grant for a
// person or workload, its NodeGrant for a node.
type Grant struct {
	Kind GrantKind
	Body []byte
}

func (*Grant) messageType() Type        { return TypeGrant }
func (m *Grant) append(b []byte) []byte { return appendBytes(append(b, byte(m.Kind)), m.Body) }
func (m *Grant) parse(r *reader)        { m.Kind, m.Body = GrantKind(r.u8()), r.bytes() }

// Admitted answers Grant and Statement.
type Admitted struct {
	Re      uint32
	Expires uint64 // Unix milliseconds: when the lease ends unless renewed
	Addr    [16]byte
}

func (*Admitted) messageType() Type { return TypeAdmitted }
func (m *Admitted) append(b []byte) []byte {
	return append(appendU64(appendU32(b, m.Re), m.Expires), m.Addr[:]...)
}
func (m *Admitted) parse(r *reader) { m.Re, m.Expires = r.u32(), r.u64(); r.array(m.Addr[:]) }

// OK answers a request that has no other answer.
type OK struct{ Re uint32 }

func (*OK) messageType() Type        { return TypeOK }
func (m *OK) append(b []byte) []byte { return appendU32(b, m.Re) }
func (m *OK) parse(r *reader)        { m.Re = r.u32() }

// Refused answers a request that was not granted. Re 0 refuses the session.
type Refused struct {
	Re     uint32
	Reason string // from a fixed table: package auth's reasons, and those below
	Detail string // what happened and why, for a person; untrusted
	Hint   string // what to do; untrusted
}

// Reasons of relays beside those of package auth.
const (
	ReasonUnknownCluster = "unknown_cluster" // no live record of that name
	ReasonClusterOffline = "cluster_offline" // no node of it has a session
	ReasonTimeout        = "timeout"         // the other side did not answer
	ReasonTooMany        = "too_many"        // a limit of sessions, edges or requests
	ReasonReplaced       = "replaced"        // a newer session or key of the same holder
	ReasonRevoked        = "revoked"         // by the relay's administrator or the cluster's policy
	ReasonUnclaimed      = "unclaimed"       // the relay serves no network yet
	ReasonWrongCode      = "wrong_code"      // not the claim code, or it was used
	ReasonWrongNetwork   = "wrong_network"   // this relay serves another network
	ReasonVersion        = "version"         // no common protocol version
	ReasonMalformed      = "malformed"       // a message that cannot be read, or out of turn
	ReasonNotHeld        = "not_held"        // the other side does not hold this edge
	ReasonStale          = "stale"           // a document older than, or conflicting with, the one held
	ReasonBadDocument    = "bad_document"    // a document that does not verify
	ReasonNotAllowed     = "not_allowed"     // not with this kind of session
	ReasonStorage        = "storage"         // the relay could not write its state
	ReasonEnded          = "ended"           // logged out, or the other side left for good
	ReasonIdle           = "idle"            // no flow for a while
	ReasonExpired        = "expired"         // the grant, login or statement is over
)

func (*Refused) messageType() Type { return TypeRefused }
func (m *Refused) append(b []byte) []byte {
	b = appendText(appendU32(b, m.Re), m.Reason, maxReason)
	return appendText(appendText(b, m.Detail, maxText), m.Hint, maxText)
}
func (m *Refused) parse(r *reader) {
	m.Re, m.Reason, m.Detail, m.Hint = r.u32(), r.text(maxReason), r.text(maxText), r.text(maxText)
}

// Statement renews a grant: package auth's SignedStatement, for a node its NodeGrant.
type Statement struct{ Body []byte }

func (*Statement) messageType() Type        { return TypeStatement }
func (m *Statement) append(b []byte) []byte { return appendBytes(b, m.Body) }
func (m *Statement) parse(r *reader)        { m.Body = r.bytes() }

// PeerStatement hands a laptop's newer statement to a node that has it as a peer.
type PeerStatement struct {
	Peer key.WireGuardPublic
	Body []byte
}

func (*PeerStatement) messageType() Type        { return TypePeerStatement }
func (m *PeerStatement) append(b []byte) []byte { return appendBytes(m.Peer.Append(b), m.Body) }
func (m *PeerStatement) parse(r *reader)        { m.Peer, m.Body = r.peer(), r.bytes() }

func (r *reader) peer() key.WireGuardPublic {
	b := r.take(key.DHSize)
	if b == nil {
		return key.WireGuardPublic{}
	}
	p, err := key.ParseWireGuard(b)
	if err != nil {
		r.err = err
	}
	return p
}

// Claim gives a new relay its first head. Sent only in a session whose network
// id was all zero, and never but inside Noise to the relay key that the code names.
type Claim struct {
	Code string
	Head []byte
}

func (*Claim) messageType() Type        { return TypeClaim }
func (m *Claim) append(b []byte) []byte { return appendBytes(appendText(b, m.Code, maxText), m.Head) }
func (m *Claim) parse(r *reader)        { m.Code, m.Head = r.text(maxText), r.bytes() }

// AdminProof proves that the session's other end holds the network key or a
// signer's key. Signature signs AdminProofMessage.
type AdminProof struct {
	Key       [key.PublicSize]byte // SEC1 uncompressed
	Signature [key.SignatureSize]byte
}

func (*AdminProof) messageType() Type { return TypeAdminProof }
func (m *AdminProof) append(b []byte) []byte {
	return append(append(b, m.Key[:]...), m.Signature[:]...)
}
func (m *AdminProof) parse(r *reader) { r.array(m.Key[:]); r.array(m.Signature[:]) }

// AdminProofMessage is what an AdminProof signs: bound to one network and, by
// the Noise handshake hash, to one session with one relay.
func AdminProofMessage(network [20]byte, handshake [32]byte) []byte {
	return append(append([]byte("zt-admin-v1"), network[:]...), handshake[:]...)
}

// DocumentKind tells heads from records.
type DocumentKind uint8

// The kinds of signed documents.
const (
	DocumentHead   DocumentKind = 1
	DocumentRecord DocumentKind = 2
)

// PutDocument asks the relay to store and serve a signed document.
type PutDocument struct {
	Kind DocumentKind
	Raw  []byte // compact JWS
}

func (*PutDocument) messageType() Type        { return TypePutDocument }
func (m *PutDocument) append(b []byte) []byte { return appendBytes(append(b, byte(m.Kind)), m.Raw) }
func (m *PutDocument) parse(r *reader)        { m.Kind, m.Raw = DocumentKind(r.u8()), r.bytes() }

// DocumentsRequest asks for the head and the records this session may see.
type DocumentsRequest struct{}

func (*DocumentsRequest) messageType() Type        { return TypeDocumentsRequest }
func (m *DocumentsRequest) append(b []byte) []byte { return b }
func (m *DocumentsRequest) parse(*reader)          {}

// Document is one answer to DocumentsRequest.
type Document struct {
	Re   uint32
	Kind DocumentKind
	Raw  []byte
}

func (*Document) messageType() Type { return TypeDocument }
func (m *Document) append(b []byte) []byte {
	return appendBytes(append(appendU32(b, m.Re), byte(m.Kind)), m.Raw)
}
func (m *Document) parse(r *reader) { m.Re, m.Kind, m.Raw = r.u32(), DocumentKind(r.u8()), r.bytes() }

// DocumentsEnd follows the last Document.
type DocumentsEnd struct{ Re uint32 }

func (*DocumentsEnd) messageType() Type        { return TypeDocumentsEnd }
func (m *DocumentsEnd) append(b []byte) []byte { return appendU32(b, m.Re) }
func (m *DocumentsEnd) parse(r *reader)        { m.Re = r.u32() }

// DocumentsChanged says that asking again would bring something new.
type DocumentsChanged struct{}

func (*DocumentsChanged) messageType() Type        { return TypeDocumentsChanged }
func (m *DocumentsChanged) append(b []byte) []byte { return b }
func (m *DocumentsChanged) parse(*reader)          {}
