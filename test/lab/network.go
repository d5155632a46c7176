package lab

// Network is an internet of the lab's own, in network namespaces:
//
//	laptop ── nat-a ──┐          ┌── relay
//	192.168.1.2       ├── inet ──┤
//	cluster ── nat-b ─┘          └── issuer
//	10.20.0.2            203.0.113.0/24
//
// Both NATs masquerade what goes out and drop what comes in unasked. There is
// no route between laptop and cluster.
type Network struct {
	Laptop, Cluster, Relay, Issuer, NATA, NATB, Internet *Namespace
}

// Site is a private network behind a NAT of its own. Inside is its one machine,
// or the first of several.
type Site struct {
	NAT, Inside *Namespace
}

// ClusterSite is the site that a Network has for a cluster; NewSite makes more.
func (n *Network) ClusterSite() *Site { return &Site{NAT: n.NATB, Inside: n.Cluster} }

// Addresses of a Network. The public ones are of TEST-NET-3 (RFC 5737).
const (
	RelayHost   = "203.0.113.10"
	IssuerHost  = "203.0.113.20"
	LaptopNAT   = "203.0.113.31" // what the world sees of the laptop
	ClusterNAT  = "203.0.113.32" // what the world sees of the cluster
	LaptopHost  = "192.168.1.2"
	ClusterHost = "10.20.0.2"

	clusterGateway = "10.20.0.1"
)

// Bridge is three machines on one Ethernet segment, in network namespaces: for
// measuring, with nothing between them that costs anything.
type Bridge struct {
	Client, Relay, Node *Namespace
	Inside              *Namespace // the bridge itself, which has an address too

	lab *Lab
}

// Addresses of a Bridge.
const (
	BridgeClient = "10.99.0.1"
	BridgeRelay  = "10.99.0.2"
	BridgeNode   = "10.99.0.3"
	BridgeInside = "10.99.0.254"
)
