//go:build linux

package swarm

import (
	"context"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
	"github.com/zt-daemon/zt/test/issuer"
	"github.com/zt-daemon/zt/test/lab"
)

const (
	swarmHost  = "203.0.113.1" // the members' way into the lab's network
	swarmRoute = "10.64.0.0/16"
	dialers    = 8 // goroutines that open TCP connections
	statement  = time.Hour
)

// network is what the members belong to.
type network struct {
	key      key.NetworkPrivate
	id       auth.NetworkID
	issuer   *lab.Issuer
	tls      *tls.Config
	relayKey key.RelayPublic
	clusters []cluster

	sealing [auth.EncapsulationSize]byte // one for all: nobody opens an edge's secret here
}

type cluster struct {
	name string
	key  key.ClusterPrivate
}

// place starts issuer and relay, and gives the members their addresses: those of
// a network behind the lab's, or loopback ones.
func (s *Swarm) place(ctx context.Context) error {
	ca, err := lab.NewAuthority("zt swarm CA")
	if err != nil {
		return err
	}
	var at lab.Network
	first, relayAt, issuerAt := netip.MustParseAddr("127.64.0.1"), "127.0.0.1:", "127.0.0.1:0"
	if s.cfg.Network != nil {
		at = *s.cfg.Network
		first, relayAt, issuerAt = netip.MustParseAddr("10.64.0.1"), lab.RelayHost+":443", lab.IssuerHost+":443"
		for _, args := range [][]string{
			{"ip", "-n", at.Internet.Name, "addr", "add", swarmHost + "/24", "dev", "br0"},
			{"ip", "-n", at.Internet.Name, "route", "add", "local", swarmRoute, "dev", "lo"},
			{"ip", "-n", at.Relay.Name, "route", "add", swarmRoute, "via", swarmHost},
		} {
			if err := s.cfg.Lab.Run(ctx, lab.Command{Name: "ip", Args: args}).OK(); err != nil {
				return err
			}
		}
	}
	s.network = &network{key: key.NewNetwork()}
	s.network.id = auth.IDOf(s.network.key.Public())
	dk, err := mlkem.GenerateKey768()
	if err != nil {
		return err
	}
	copy(s.network.sealing[:], dk.EncapsulationKey().Bytes())
	if s.network.issuer, err = s.cfg.Lab.StartIssuer(ca, at.Issuer, issuerAt, issuer.Config{Algorithm: "ES256"}); err != nil {
		return err
	}
	var claim lab.Claim
	if s.relay, claim, err = s.cfg.Lab.StartRelay(ctx, s.cfg.Program, at.Relay, relayAt); err != nil {
		return err
	}
	s.network.tls = clientTLS(claim.Pin)
	u, err := url.Parse(s.relay.URL)
	if err != nil {
		return err
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(host, "443")
	}
	to, err := netip.ParseAddrPort(host)
	if err != nil {
		return err
	}
	if s.packets, err = newPackets(at.Internet, first, to); err != nil {
		return err
	}
	for range dialers {
		s.wg.Go(func() { _ = at.Internet.Do(func() error { return s.dialer(host) }) })
	}
	return s.first(ctx, claim)
}

// first makes the network's first head, and has the relay claimed with it.
func (s *Swarm) first(ctx context.Context, claim lab.Claim) error {
	entry, err := s.askEntry(ctx)
	if err != nil {
		return err
	}
	s.network.relayKey = entry.Key
	head, err := auth.SignHead(auth.Head{Version: 1, Relays: []auth.Relay{entry}, Issuers: []auth.Issuer{{
		URL: s.network.issuer.URL(), ClientID: issuer.OverlayClient, CA: string(s.network.issuer.CA), Algorithms: []string{"ES256"},
	}}}, s.network.key)
	if err != nil {
		return err
	}
	l, err := s.connect(ctx, s.packets.addr(0), key.NewWireGuard(), auth.NetworkID{})
	if err != nil {
		return err
	}
	defer l.close()
	return l.ask(&wire.Claim{Code: claim.Code, Head: head.Raw()})
}

// askEntry asks the relay how a head is to name it.
func (s *Swarm) askEntry(ctx context.Context) (auth.Relay, error) {
	c := &http.Client{Transport: &http.Transport{
		TLSClientConfig: s.network.tls.Clone(),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			done := make(chan dialed, 1)
			select {
			case s.dials <- dial{ctx, s.packets.addr(0), done}:
				d := <-done
				return d.conn, d.err
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
	}}
	defer c.CloseIdleConnections()
	var entry auth.Relay
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.relay.URL+"/v1/relay", nil)
	if err != nil {
		return entry, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return entry, err
	}
	defer resp.Body.Close()
	return entry, json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 1<<16)).Decode(&entry)
}

// claim puts a record for each cluster, as the network key's holder.
func (s *Swarm) claim(ctx context.Context) error {
	n := s.network
	l, err := s.connect(ctx, s.packets.addr(0), key.NewWireGuard(), n.id)
	if err != nil {
		return err
	}
	defer l.close()
	proof := &wire.AdminProof{Signature: n.key.Sign(wire.AdminProofMessage(n.id, l.cipher.HandshakeHash()))}
	copy(proof.Key[:], n.key.Public().Bytes())
	if err := l.ask(proof); err != nil {
		return err
	}
	for i := range s.cfg.Clusters {
		c := cluster{fmt.Sprintf("c%d", i), key.NewCluster()}
		r, err := auth.SignRecord(auth.Record{
			Network: n.id, Name: c.name, Version: 1, TLSName: "kubernetes", KeepUser: true,
			CAs:  []auth.Dated[string]{{Value: string(n.issuer.CA)}},
			Keys: []auth.Dated[key.ClusterPublic]{{Value: c.key.Public()}},
		}, auth.NetworkSigner(n.key))
		if err != nil {
			return err
		}
		if err := l.ask(&wire.PutDocument{Kind: wire.DocumentRecord, Raw: r.Raw()}); err != nil {
			return fmt.Errorf("record of %s: %w", c.name, err)
		}
		n.clusters = append(n.clusters, c)
	}
	return nil
}

// ask sends m, which must be answered by OK.
func (l *link) ask(m wire.Message) error {
	number, err := l.send(m)
	if err != nil {
		return err
	}
	for {
		_, answer, err := l.receive()
		if err != nil {
			return err
		}
		switch a := answer.(type) {
		case *wire.OK:
			if a.Re == number {
				return nil
			}
		case *wire.Refused:
			return fmt.Errorf("%T: %s: %s", m, a.Reason, a.Detail)
		}
	}
}

// person makes the grant of somebody new: a login key, an ID token of the issuer
// and a statement for wg.
func (n *network) person(wg key.WireGuardPublic) ([]byte, error) {
	login, now := key.NewLogin(), time.Now()
	c := auth.NewCommitment(n.id, login.Public())
	subject := rand.Text()
	claims, err := json.Marshal(map[string]any{
		"iss": n.issuer.URL(), "sub": subject, "aud": issuer.OverlayClient, "nonce": c.Nonce(), "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"email": subject + "@example.com", "email_verified": true, "name": "A Member of the Swarm", "groups": []string{"developers", "oncall"}, "sid": rand.Text(),
	})
	if err != nil {
		return nil, err
	}
	token, err := n.issuer.Sign(claims)
	if err != nil {
		return nil, err
	}
	g := auth.Grant{Issuer: n.issuer.URL(), IDToken: token, Commitment: c.Append(nil)}
	g.Statement = auth.SignStatement(auth.Statement{Key: wg, Encapsulation: n.sealing, Issued: now, Expires: now.Add(statement)}, token, login)
	return g.Append(nil), nil
}

// node makes the grant of a cluster's node.
func (n *network) node(c cluster, wg key.WireGuardPublic) []byte {
	now := time.Now()
	return auth.SignNodeGrant(n.id, c.name, wg, now, now.Add(statement), c.key).Append(nil)
}
