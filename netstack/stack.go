package netstack

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const nicID tcpip.NICID = 1

// What TCP may use inside the overlay.
const (
	// A flow begins with bufferDefault bytes each way and grows, as the path
	// fills it, up to bufferMax or its share of the budget.
	bufferMin     = 4 << 10
	bufferDefault = 1 << 20
	bufferMax     = 16 << 20

	// A silent flow is probed after keepaliveIdle and given up after
	// keepaliveCount probes without an answer, 4 min in all: longer than a
	// relay's restart or a change of network, which flows outlive, and short
	// enough that a vanished laptop's flows do not pile up on a node.
	keepaliveIdle     = time.Minute
	keepaliveInterval = 20 * time.Second
	keepaliveCount    = 9

	// timeWait is short (RFC 9293 asks for 2 MSL): ports of one address to one
	// other run out after 49,000 flows, and timestamps keep old segments out.
	timeWait = 10 * time.Second

	listenBacklog = 1024
)

// newStack makes a stack of IPv6 and TCP with one interface, l, and one
// address. No neighbour discovery, no router advertisements, no MLD: behind l
// there is no link.
func newStack(l *link, addr netip.Addr) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	if err := setUpStack(s, l, addr); err != nil {
		s.Close()
		s.Wait()
		return nil, err
	}
	return s, nil
}

func setUpStack(s *stack.Stack, l *link, addr netip.Addr) error {
	sack := tcpip.TCPSACKEnabled(true)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	// Without RACK (RFC 8985): gVisor's (20260905) takes data for lost that was only
	// not acknowledged yet. On a path that lost and reordered nothing it sent again
	// and cut the window some fifty times a second, without one SACK from the other
	// side; a flow then kept a tenth to a half of its speed, and of two directions one
	// starved the other. The resequencer does what RACK is for.
	recovery := tcpip.TCPRecovery(0)
	// At 50 ms with 0.01 % of packets lost cubic carried 52 Mbit/s, reno 43 (kernel
	// TCP 62 and 50; three runs each, with RACK); at 20 ms without RACK they were
	// alike (two runs each).
	cubic := tcpip.CongestionControlOption("cubic")
	rx := tcpip.TCPReceiveBufferSizeRangeOption{Min: bufferMin, Default: bufferDefault, Max: bufferMax}
	tx := tcpip.TCPSendBufferSizeRangeOption{Min: bufferMin, Default: bufferDefault, Max: bufferMax}
	wait := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	reuse := tcpip.TCPTimeWaitReuseGlobal
	for _, opt := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &recovery, &cubic, &rx, &tx, &wait, &reuse} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fmt.Errorf("TCP option %T: %v", opt, err)
		}
	}
	if err := s.CreateNIC(nicID, l); err != nil {
		return fmt.Errorf("interface: %v", err)
	}
	own := tcpip.ProtocolAddress{
		Protocol:          ipv6.ProtocolNumber,
		AddressWithPrefix: tcpip.AddrFrom16(addr.As16()).WithPrefix(),
	}
	if err := s.AddProtocolAddress(nicID, own, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("address %v: %v", addr, err)
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv6EmptySubnet, NIC: nicID}})
	return nil
}

// setUpFlow sets what every flow has, dialled or accepted.
func setUpFlow(ep tcpip.Endpoint) {
	// None of these fail on a TCP endpoint.
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	ep.SocketOptions().SetKeepAlive(true)
	ep.SocketOptions().SetDelayOption(false) // as net.TCPConn: no Nagle
}

// abortAll resets every flow and returns how many there were.
func (e *engine) abortAll() int { return e.abort(func(netip.Addr) bool { return true }) }

// abort resets the flows whose other side matches: RSTs are queued on the
// link when it returns. It reaches flows that nobody has accepted yet, and
// closed ones that still have something to send.
func (e *engine) abort(match func(remote netip.Addr) bool) (n int) {
	for ep, remote := range e.flows() {
		if match(remote) {
			ep.Abort()
			n++
		}
	}
	return n
}

// remotes are the other sides that there are flows with.
func (e *engine) remotes() []netip.Addr {
	var all []netip.Addr
	for _, remote := range e.flows() {
		all = append(all, remote)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// flows are all flows, with the addresses of their other sides.
func (e *engine) flows() iter.Seq2[*tcp.Endpoint, netip.Addr] {
	return func(yield func(*tcp.Endpoint, netip.Addr) bool) {
		for _, t := range e.stack.RegisteredEndpoints() {
			ep, ok := t.(*tcp.Endpoint)
			if !ok {
				continue
			}
			info, ok := ep.Info().(*stack.TransportEndpointInfo)
			if !ok || info.ID.RemoteAddress.Len() != 16 { // a listener
				continue
			}
			if !yield(ep, netip.AddrFrom16(info.ID.RemoteAddress.As16())) {
				return
			}
		}
	}
}
