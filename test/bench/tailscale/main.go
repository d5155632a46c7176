// Command tailscale plays the benchmark's roles of Tailscale: tsnet participants,
// a coordination server with a DERP server in it, and a peer relay.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"

	"tailscale.com/derp/derpserver"
	"tailscale.com/envknob"
	_ "tailscale.com/feature/relayserver"
	"tailscale.com/ipn"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"

	"github.com/zt-daemon/zt/test/bench/load"
)

const (
	controlPort = "8080"
	stunPort    = 3478
	flowPort    = "5001"
)

func main() {
	load.Play(map[string]load.Role{"ts-control": control, "ts-relay": relay, "ts-node": node, "ts-client": client})
	fmt.Fprintln(os.Stderr, "tailscale: started by the benchmark only")
	os.Exit(2)
}

// control serves coordination, DERP with TLS on 443, and STUN, on in["host"].
func control(ctx context.Context, in load.Params) (*load.Stack, load.Params, error) {
	host := in["host"]
	derp := derpserver.New(key.NewNode(), logger.Discard)
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "443"))
	if err != nil {
		return nil, nil, err
	}
	server := httptest.NewUnstartedServer(derpserver.Handler(derp))
	server.Listener.Close()
	server.Listener = ln
	server.Config.ErrorLog = logger.StdLogger(logger.Discard)
	server.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){} // DERP takes the connection over: no HTTP/2
	server.StartTLS()
	stun := stunserver.New(ctx)
	if err := stun.Listen(fmt.Sprintf("%s:%d", host, stunPort)); err != nil {
		return nil, nil, err
	}
	go stun.Serve()
	coordination := &testcontrol.Server{
		Logf: logger.Discard, PeerRelayGrants: true, AllNodesSameUser: true, ExplicitBaseURL: "http://" + net.JoinHostPort(host, controlPort),
		DERPMap: &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{1: {RegionID: 1, RegionCode: "bench", Nodes: []*tailcfg.DERPNode{{
			Name: "1", RegionID: 1, HostName: host, IPv4: host, IPv6: "none", STUNPort: stunPort, DERPPort: 443, InsecureForTests: true, STUNTestIP: host,
		}}}}},
	}
	ln, err = net.Listen("tcp", net.JoinHostPort(host, controlPort))
	if err != nil {
		return nil, nil, err
	}
	go http.Serve(ln, coordination) // ends with the process
	return &load.Stack{}, load.Params{"control": coordination.ExplicitBaseURL}, nil
}

// participant joins the network.
func participant(ctx context.Context, in load.Params, name string) (*tsnet.Server, netip.Addr, error) {
	envknob.SetNoLogsNoSupport()
	dir, err := os.MkdirTemp(os.Getenv("HOME"), name)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	s := &tsnet.Server{Dir: dir, Hostname: name, ControlURL: in["control"], UserLogf: logger.Discard}
	st, err := s.Up(ctx)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	for _, a := range st.TailscaleIPs {
		if a.Is4() {
			return s, a, nil
		}
	}
	return nil, netip.Addr{}, errors.New("no IPv4 address")
}

// relay is a participant that relays for others.
func relay(ctx context.Context, in load.Params) (*load.Stack, load.Params, error) {
	s, _, err := participant(ctx, in, "relay")
	if err != nil {
		return nil, nil, err
	}
	local, err := s.LocalClient()
	if err != nil {
		return nil, nil, err
	}
	var port uint16 // any
	_, err = local.EditPrefs(ctx, &ipn.MaskedPrefs{Prefs: ipn.Prefs{RelayServerPort: &port}, RelayServerPortSet: true})
	return &load.Stack{}, in, err
}

func node(ctx context.Context, in load.Params) (*load.Stack, load.Params, error) {
	s, addr, err := participant(ctx, in, "node")
	if err != nil {
		return nil, nil, err
	}
	ln, err := s.Listen("tcp", ":"+flowPort)
	if err != nil {
		return nil, nil, err
	}
	return &load.Stack{Listener: ln}, load.Params{"control": in["control"], "node": addr.String()}, nil
}

func client(ctx context.Context, in load.Params) (*load.Stack, load.Params, error) {
	s, _, err := participant(ctx, in, "client")
	if err != nil {
		return nil, nil, err
	}
	local, err := s.LocalClient()
	if err != nil {
		return nil, nil, err
	}
	node, err := netip.ParseAddr(in["node"])
	if err != nil {
		return nil, nil, err
	}
	return &load.Stack{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return s.Dial(ctx, "tcp", net.JoinHostPort(in["node"], flowPort))
		},
		Path: func(ctx context.Context) (string, error) {
			st, err := local.Status(ctx)
			if err != nil {
				return "", err
			}
			for _, p := range st.Peer {
				if len(p.TailscaleIPs) == 0 || p.TailscaleIPs[0] != node {
					continue
				}
				switch {
				case p.CurAddr != "":
					return "direct", nil
				case p.PeerRelay != "":
					return "peer relay", nil
				case p.Relay != "":
					return "DERP", nil
				}
			}
			return "", errors.New("the node is no peer yet")
		},
	}, nil, nil
}
