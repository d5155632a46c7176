package main

import (
	"context"
	"crypto/mlkem"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/netstack"
	"github.com/zt-daemon/zt/relay/wire"
	"github.com/zt-daemon/zt/test/bench/load"
	"github.com/zt-daemon/zt/test/issuer"
	"github.com/zt-daemon/zt/test/lab"
)

const (
	ztCluster   = "bench"
	ztPort      = 443
	ztGrantLife = time.Hour
)

// ztParticipant is a device on a transport, as laptops and nodes have.
type ztParticipant struct {
	key       key.WireGuardPrivate
	transport *daemon.Transport
	device    *netstack.Device
}

func newZTParticipant(k key.WireGuardPrivate, addr netip.Addr, laptop bool, local netip.AddrPort) (*ztParticipant, error) {
	runtime.GOMAXPROCS(netstack.Processors(runtime.NumCPU())) // as zt-daemon does
	p := &ztParticipant{key: k}
	var err error
	if p.transport, err = daemon.NewTransport(daemon.TransportConfig{Local: local}); err != nil {
		return nil, err
	}
	if p.device, err = netstack.New(netstack.Config{PrivateKey: k, Addr: addr, Transport: p.transport, DropInboundSYN: laptop}); err != nil {
		return nil, err
	}
	return p, p.device.Start()
}

// ztNetwork is what both sides of a network know.
type ztNetwork struct {
	head   *auth.Head
	issuer auth.Issuer
}

// session keeps a session with the network's relay and waits until its UDP
// address is bound.
func (p *ztParticipant) session(ctx context.Context, n ztNetwork, cluster string, proof func() (wire.GrantKind, []byte), handler daemon.Handler) (*daemon.Session, error) {
	s, err := daemon.NewSession(daemon.SessionConfig{
		Network: n.head.Network, Relay: n.head.Relays[0], Static: p.key, Cluster: cluster, Transport: p.transport, Handler: handler,
		Proof: func(context.Context) (wire.GrantKind, []byte, error) {
			kind, body := proof()
			return kind, body, nil
		},
		Busy: func() bool { return true }, RefusedRetry: -1,
	})
	if err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }() // ends with the process
	for limit := time.After(20 * time.Second); !s.Status().Path.Bound; {
		select {
		case err := <-ended:
			return nil, fmt.Errorf("session: %w", err)
		case <-limit:
			return nil, fmt.Errorf("no UDP path to the relay: %+v", s.Status())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return s, nil
}

// ztFound makes a network of one relay, which it claims, and one cluster. It is
// what an administrator's laptop does.
func ztFound(ctx context.Context, in load.Params) (n ztNetwork, cluster key.ClusterPrivate, record *auth.Record, err error) {
	n.issuer = auth.Issuer{URL: in["issuer"], ClientID: issuer.OverlayClient, CA: in["ca"]}.WithDefaults()
	code, err := daemon.ParseClaimCode(in["claim"])
	if err != nil {
		return n, cluster, nil, err
	}
	relay, err := daemon.FetchClaimable(ctx, in["relay"], code, in["pin"], daemon.HTTPConfig{})
	if err != nil {
		return n, cluster, nil, err
	}
	network := key.NewNetwork()
	n.head, err = auth.SignHead(auth.Head{Version: 1, NotAfter: time.Now().Add(ztGrantLife), Relays: []auth.Relay{relay.Relay}, Issuers: []auth.Issuer{n.issuer}}, network)
	if err != nil {
		return n, cluster, nil, err
	}
	if err := daemon.ClaimRelay(ctx, relay.Relay, code, n.head, daemon.HTTPConfig{}); err != nil {
		return n, cluster, nil, err
	}
	cluster = key.NewCluster()
	api := auth.Issuer{URL: in["issuer"], ClientID: issuer.APIServerClient, CA: in["ca"]}.WithDefaults()
	record, err = auth.SignRecord(auth.Record{
		Network: n.head.Network, Name: ztCluster, Version: 1, NotAfter: time.Now().Add(ztGrantLife), TLSName: "kubernetes", Issuer: &api,
		CAs:  []auth.Dated[string]{{Value: in["ca"]}},
		Keys: []auth.Dated[key.ClusterPublic]{{Value: cluster.Public()}},
	}, auth.NetworkSigner(network))
	if err != nil {
		return n, cluster, nil, err
	}
	a, err := daemon.DialAdmin(ctx, relay.Relay, n.head.Network, daemon.HTTPConfig{})
	if err != nil {
		return n, cluster, nil, err
	}
	defer a.Close()
	if err := a.ProveNetwork(ctx, network); err != nil {
		return n, cluster, nil, err
	}
	return n, cluster, record, a.Put(ctx, wire.DocumentRecord, record.Raw())
}

// ztNode claims the relay, has a session with it and admits whose grant it has
// verified.
func ztNode(ctx context.Context, in load.Params) (*load.Stack, load.Params, error) {
	n, cluster, record, err := ztFound(ctx, in)
	if err != nil {
		return nil, nil, fmt.Errorf("make the network: %w", err)
	}
	verifier, err := auth.NewVerifier(auth.VerifierConfig{Network: n.head.Network, Issuers: []auth.Issuer{n.issuer}})
	if err != nil {
		return nil, nil, err
	}
	go verifier.Run(ctx) // ends with the process
	k := key.NewWireGuard()
	addr := n.head.Network.NodeAddr(k.Public())
	p, err := newZTParticipant(k, addr, false, netip.AddrPort{})
	if err != nil {
		return nil, nil, err
	}
	ln, err := p.device.Listen(netip.AddrPortFrom(addr, ztPort))
	if err != nil {
		return nil, nil, err
	}
	var s *daemon.Session
	ready := make(chan struct{})
	proof := func() (wire.GrantKind, []byte) {
		now := time.Now()
		return wire.GrantNode, auth.SignNodeGrant(n.head.Network, ztCluster, k.Public(), now, now.Add(ztGrantLife), cluster).Append(nil)
	}
	s, err = p.session(ctx, n, ztCluster, proof, daemon.Handler{EdgeOffer: func(ctx context.Context, o daemon.EdgeOffer) {
		go func() {
			<-ready
			if err := p.admit(ctx, s, o, verifier, n, cluster); err != nil {
				fmt.Println(err)
				_ = s.RefuseOffer(ctx, o, string(auth.ReasonInternal), err.Error(), "")
			}
		}()
	}})
	if err != nil {
		return nil, nil, err
	}
	close(ready)
	return &load.Stack{Listener: ln}, load.Params{
		"head": string(n.head.Raw()), "record": string(record.Raw()), "ca": in["ca"],
	}, nil
}

// admit makes the holder of an offered grant a peer.
func (p *ztParticipant) admit(ctx context.Context, s *daemon.Session, o daemon.EdgeOffer, verifier *auth.Verifier, n ztNetwork, cluster key.ClusterPrivate) error {
	grant, err := auth.ParseGrant(o.Grant)
	if err != nil {
		return err
	}
	id, err := verifier.Verify(ctx, o.Grant, grant.Statement.Key)
	if err != nil {
		return err
	}
	edge := auth.EdgeOf(n.head.Network, id, ztCluster, cluster.Public(), p.key.Public())
	ct, shared, err := edge.Encapsulate()
	if err != nil {
		return err
	}
	if err := p.device.SetPeer(netstack.Peer{PublicKey: id.WireGuardKey, Preshared: edge.Preshared(shared, ct), Addr: id.Addr}); err != nil {
		return err
	}
	now := time.Now()
	return s.AnswerOffer(ctx, o, id.WireGuardKey, edge.Answer(cluster, o.ID, ct, now, now.Add(ztGrantLife)).Append(nil))
}

// ztLaptop logs alice in, has a session with the relay, and gets its edge to the
// node when the first flow asks for it.
type ztLaptop struct {
	*ztParticipant
	network ztNetwork
	record  *auth.Record
	session *daemon.Session
	tokens  auth.Tokens
	login   key.LoginPrivate
	grant   auth.Grant
	decap   *mlkem.DecapsulationKey768

	mu   sync.Mutex // guards node
	node netip.Addr // invalid: no edge yet
}

func ztClient(ctx context.Context, in load.Params) (*load.Stack, load.Params, error) {
	head, err := auth.ParseHead([]byte(in["head"]))
	if err != nil {
		return nil, nil, err
	}
	l := &ztLaptop{network: ztNetwork{head: head, issuer: head.Issuers[0]}, login: key.NewLogin()}
	if l.record, err = auth.ParseRecord([]byte(in["record"]), head, time.Now()); err != nil {
		return nil, nil, err
	}
	if l.decap, err = mlkem.GenerateKey768(); err != nil {
		return nil, nil, err
	}
	l.ztParticipant, err = newZTParticipant(key.NewWireGuard(), head.Network.PersonAddr(l.login.Public()), true, netip.AddrPort{})
	if err != nil {
		return nil, nil, err
	}
	if err := l.logIn(ctx, in["ca"]); err != nil {
		return nil, nil, fmt.Errorf("log in: %w", err)
	}
	proof := func() (wire.GrantKind, []byte) { return wire.GrantPerson, l.grant.Append(nil) }
	if l.session, err = l.ztParticipant.session(ctx, l.network, "", proof, daemon.Handler{}); err != nil {
		return nil, nil, err
	}
	return &load.Stack{Dial: l.dial, Path: func(context.Context) (string, error) {
		st := l.session.Status()
		if !st.Up || !st.Path.Bound || st.Edges != 1 {
			return "", fmt.Errorf("no edge through the relay: %+v", st)
		}
		return "relay", nil
	}}, nil, nil
}

// logIn makes the grant: a login at the issuer that commits to the login key.
func (l *ztLaptop) logIn(ctx context.Context, ca string) error {
	person, err := issuer.NewBrowser([]byte(ca))
	if err != nil {
		return err
	}
	visited := make(chan error, 1)
	browser, err := auth.NewBrowser(auth.BrowserConfig{Progress: func(e auth.BrowserEvent) {
		if e.Kind == auth.BrowserURL {
			go func() {
				_, err := issuer.Visit(ctx, person, e.URL, "alice")
				visited <- err
			}()
		}
	}})
	if err != nil {
		return err
	}
	commitment := auth.NewCommitment(l.network.head.Network, l.login.Public())
	tokens, err := browser.Visit(ctx, auth.LoginConfig{Issuer: l.network.issuer, Nonce: commitment.Nonce()},
		func(context.Context, auth.Tokens) (*auth.LoginConfig, error) { return nil, nil })
	if err != nil {
		return err
	}
	if err := <-visited; err != nil {
		return err
	}
	l.tokens = tokens[0]
	now := time.Now()
	statement := auth.Statement{Key: l.key.Public(), Issued: now, Expires: now.Add(auth.StatementMaxAge)}
	copy(statement.Encapsulation[:], l.decap.EncapsulationKey().Bytes())
	l.grant = auth.Grant{Issuer: l.network.issuer.URL, IDToken: l.tokens.IDToken.Secret(), Commitment: commitment.Append(nil)}
	l.grant.Statement = auth.SignStatement(statement, l.grant.IDToken, l.login)
	return nil
}

func (l *ztLaptop) dial(ctx context.Context) (net.Conn, error) {
	l.mu.Lock()
	if !l.node.IsValid() {
		if err := l.openEdge(ctx); err != nil {
			l.mu.Unlock()
			return nil, err
		}
	}
	node := l.node
	l.mu.Unlock()
	return l.device.DialContext(ctx, netip.AddrPortFrom(node, ztPort))
}

// openEdge asks for an edge and makes the node a peer.
func (l *ztLaptop) openEdge(ctx context.Context) error {
	ready, err := l.session.RequestEdge(ctx, ztCluster)
	if err != nil {
		return err
	}
	answer, err := auth.ParseAnswer(ready.Answer)
	if err != nil {
		return err
	}
	edge := auth.Edge{
		Network: l.network.head.Network, Issuer: l.tokens.Issuer, Subject: l.tokens.Subject, LoginKey: l.login.Public(), LaptopKey: l.key.Public(),
		Encapsulation: l.grant.Statement.Encapsulation, Cluster: ztCluster, NodeKey: answer.Key,
	}
	if edge.ClusterKey, err = answer.Verify(edge, l.record.LiveKeys(time.Now()), ready.ID, time.Now()); err != nil {
		return err
	}
	shared, err := l.decap.Decapsulate(answer.Ciphertext[:])
	if err != nil {
		return err
	}
	addr := l.network.head.Network.NodeAddr(answer.Key)
	if err := l.device.SetPeer(netstack.Peer{PublicKey: answer.Key, Preshared: edge.Preshared(shared, answer.Ciphertext), Addr: addr}); err != nil {
		return err
	}
	l.node = addr
	return nil
}

// A ztRelay is an issuer and a zt-relay that no network has claimed yet.
type ztRelay struct {
	issuer *lab.Issuer
	relay  *lab.Relay
	params load.Params // of ztFound
}

func startZTRelay(ctx context.Context, r *rig) (*ztRelay, error) {
	ca, err := lab.NewAuthority("zt bench CA")
	if err != nil {
		return nil, err
	}
	z := &ztRelay{}
	if z.issuer, err = r.StartIssuer(ca, r.machines.Inside, lab.BridgeInside+":443", issuer.Config{}); err != nil {
		return nil, err
	}
	relay, claim, err := r.StartRelay(ctx, filepath.Join(r.bin, "zt-relay"), r.machines.Relay, lab.BridgeRelay+":443")
	if err != nil {
		return nil, err
	}
	z.relay = relay
	r.count(atRelay, relay.Process)
	z.params = load.Params{"relay": relay.URL, "claim": claim.Code, "pin": claim.Pin, "issuer": z.issuer.URL(), "ca": string(z.issuer.CA)}
	return z, nil
}

func ztScene(ctx context.Context, r *rig) (*scene, error) {
	z, err := startZTRelay(ctx, r)
	if err != nil {
		return nil, err
	}
	_, out, err := r.play(ctx, atNode, "zt-node", z.params)
	if err != nil {
		return nil, err
	}
	_, _, err = r.play(ctx, atClient, "zt-client", out)
	return &r.scene, err
}

// ztStraight is a participant whose transport is joined with the other's: no
// relay, no session, no grant.
func ztStraight(in load.Params, local string) (*ztParticipant, func(load.Params) error, load.Params, error) {
	k := key.NewWireGuard()
	addr := auth.NetworkID{1}.NodeAddr(k.Public())
	p, err := newZTParticipant(k, addr, false, netip.MustParseAddrPort(local))
	if err != nil {
		return nil, nil, nil, err
	}
	meet := func(other load.Params) error {
		var peer key.WireGuardPublic
		if err := peer.UnmarshalText([]byte(other["key"])); err != nil {
			return err
		}
		at, err := netip.ParseAddrPort(other["at"])
		if err != nil {
			return err
		}
		p.transport.Join(peer, at, 1)
		return p.device.SetPeer(netstack.Peer{PublicKey: peer, Addr: auth.NetworkID{1}.NodeAddr(peer)})
	}
	if in["key"] != "" {
		err = meet(in)
	}
	return p, meet, load.Params{"key": k.Public().String(), "at": local, "addr": addr.String()}, err
}

func ztDirectNode(_ context.Context, in load.Params) (*load.Stack, load.Params, error) {
	p, meet, out, err := ztStraight(in, lab.BridgeNode+":51820")
	if err != nil {
		return nil, nil, err
	}
	ln, err := p.device.Listen(netip.AddrPortFrom(p.device.Addr(), ztPort))
	if err != nil {
		return nil, nil, err
	}
	return &load.Stack{Listener: ln, Meet: meet}, out, nil
}

func ztDirectClient(_ context.Context, in load.Params) (*load.Stack, load.Params, error) {
	p, _, out, err := ztStraight(in, lab.BridgeClient+":51820")
	if err != nil {
		return nil, nil, err
	}
	node, err := netip.ParseAddr(in["addr"])
	if err != nil {
		return nil, nil, err
	}
	return &load.Stack{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return p.device.DialContext(ctx, netip.AddrPortFrom(node, ztPort))
		},
	}, out, nil
}

func ztDirectScene(ctx context.Context, r *rig) (*scene, error) {
	return r.pair(ctx, "zt-direct-node", "zt-direct-client", nil)
}
