package wire

import "github.com/zt-daemon/zt/auth/key"

// FeatureNodeStatus, in Welcome and Hello, says that the sender knows the
// messages of this file. Without it from the other end, none is sent.
const FeatureNodeStatus uint64 = 1 << 0

// PolicyState says what became of the policy that a node was given.
type PolicyState uint8

// The states of a policy. A reader takes one it does not know for PolicyUnknown.
const (
	PolicyUnknown PolicyState = 0
	PolicyInForce PolicyState = 1
	PolicyBroken  PolicyState = 2 // the rules before it, if any, stay in force
	PolicyAbsent  PolicyState = 3
)

// NodeFlags are the yes and no of a NodeStatus. Unknown bits are ignored.
type NodeFlags uint8

// The flags of a node.
const (
	NodeUpstreamUp NodeFlags = 1 << 0 // the API server behind it answers
	NodeDraining   NodeFlags = 1 << 1 // it is about to stop and takes no new edges
)

// NodeStatus is how a node is, in its own words: after it was admitted, and at
// each change. The relay answers with OK.
type NodeStatus struct {
	Flags   NodeFlags
	Policy  PolicyState
	Name    string // of its pod or host
	Version string // of its program
	Why     string // Policy is not PolicyInForce; for a person
}

func (*NodeStatus) messageType() Type { return TypeNodeStatus }
func (m *NodeStatus) append(b []byte) []byte {
	b = appendText(append(b, byte(m.Flags), byte(m.Policy)), m.Name, maxHost)
	return appendText(appendText(b, m.Version, maxReason), m.Why, maxText)
}
func (m *NodeStatus) parse(r *reader) {
	m.Flags, m.Policy = NodeFlags(r.u8()), PolicyState(r.u8())
	m.Name, m.Version, m.Why = r.text(maxHost), r.text(maxReason), r.text(maxText)
}

// NodesRequest asks which nodes the clusters have: any number of ClusterNode,
// then OK.
type NodesRequest struct{}

func (*NodesRequest) messageType() Type        { return TypeNodesRequest }
func (m *NodesRequest) append(b []byte) []byte { return b }
func (m *NodesRequest) parse(*reader)          {}

// ClusterNode is a node as the relay knows it. Nothing in it is proved.
type ClusterNode struct {
	Re      uint32
	Cluster string
	Peer    key.WireGuardPublic
	Since   uint64 // Unix milliseconds, the relay's clock: when it came
	Seen    uint64 // when it was last heard
	Here    uint8  // 1: it has a session; else it went without a word
	Status  NodeStatus
}

func (*ClusterNode) messageType() Type { return TypeClusterNode }
func (m *ClusterNode) append(b []byte) []byte {
	b = m.Peer.Append(appendText(appendU32(b, m.Re), m.Cluster, maxName))
	return m.Status.append(append(appendU64(appendU64(b, m.Since), m.Seen), m.Here))
}
func (m *ClusterNode) parse(r *reader) {
	m.Re, m.Cluster, m.Peer = r.u32(), r.text(maxName), r.peer()
	m.Since, m.Seen, m.Here = r.u64(), r.u64(), r.u8()
	m.Status.parse(r)
}

// EdgeMove says that the edge's node is about to stop, has lost its API server or
// is away, and that the cluster has a better one: new flows should go over another
// edge. Those that are open may stay on this one, until it ends.
type EdgeMove struct{ Edge EdgeID }

func (*EdgeMove) messageType() Type        { return TypeEdgeMove }
func (m *EdgeMove) append(b []byte) []byte { return append(b, m.Edge[:]...) }
func (m *EdgeMove) parse(r *reader)        { r.array(m.Edge[:]) }
