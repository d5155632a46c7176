package relay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// grant verifies a grant and admits p, or renews its lease.
func (s *Server) grant(ctx context.Context, p *session, number uint32, m *wire.Grant) *auth.RefusedError {
	ctx, cancel := context.WithTimeout(ctx, s.stepTimeout)
	defer cancel()
	select {
	case s.admissions <- struct{}{}:
		defer func() { <-s.admissions }()
	case <-ctx.Done():
		return refused(string(auth.ReasonBusy), "too many grants are being verified", "try again in a minute")
	}
	switch m.Kind {
	case wire.GrantPerson, wire.GrantWorkload:
		return s.grantPerson(ctx, p, number, m)
	case wire.GrantNode:
		r := s.grantNode(p, number, m.Body)
		if r == nil {
			s.log.Info("node admitted", "peer", p.key, "cluster", p.cluster, "endpoint", p.remote, "lease_expires", p.expires)
		}
		return r
	}
	return refused(wire.ReasonMalformed, fmt.Sprintf("grant kind %d", m.Kind), "")
}

func (s *Server) grantPerson(ctx context.Context, p *session, number uint32, m *wire.Grant) *auth.RefusedError {
	v := s.verifier.Load()
	verify := v.Verify
	if m.Kind == wire.GrantWorkload {
		verify = v.VerifyWorkload
	}
	id, err := verify(ctx, m.Body, p.key)
	if err != nil {
		return asRefused(err)
	}
	g, err := auth.ParseGrant(m.Body)
	if err != nil {
		return asRefused(err)
	}
	if r := s.hub.admitPerson(p, number, id, g); r != nil {
		return r
	}
	s.log.Info("login admitted", "peer", p.key, "issuer", id.Issuer, "subject", id, "endpoint", p.remote, "lease_expires", id.Ends())
	return nil
}

func (s *Server) grantNode(p *session, number uint32, body []byte) *auth.RefusedError {
	g, k, r := s.verifyNode(p, body)
	if r != nil {
		return r
	}
	return s.hub.admitNode(p, number, g, k, s.documents.network().NodeAddr(p.key))
}

// verifyNode also says which of the cluster's keys proved the grant.
func (s *Server) verifyNode(p *session, body []byte) (g auth.NodeGrant, k key.ClusterPublic, r *auth.RefusedError) {
	g, err := auth.ParseNodeGrant(body)
	if err != nil {
		return g, k, asRefused(err)
	}
	if g.Key != p.key {
		return g, k, &auth.RefusedError{Reason: auth.ReasonChannelKey}
	}
	if _, ok := s.documents.cluster(g.Cluster); !ok {
		return g, k, noSuchCluster(g.Cluster)
	}
	now := s.now()
	r = &auth.RefusedError{Reason: auth.ReasonClusterKey, Detail: fmt.Sprintf("node grant for cluster %q", g.Cluster)} // of no live key
	for _, k = range s.documents.clusterKeys(g.Cluster, now) {
		if r = asRefused(g.Verify(s.documents.network(), []key.ClusterPublic{k}, now)); r == nil || r.Reason != auth.ReasonClusterKey {
			break
		}
	}
	return g, k, r
}

// noSuchCluster refuses a node of a cluster that was removed, or never was.
func noSuchCluster(name string) *auth.RefusedError {
	return refused(wire.ReasonUnknownCluster, name, "run `zt-daemon cluster add` for it")
}

// statement renews a lease.
func (s *Server) statement(p *session, number uint32, m *wire.Statement) *auth.RefusedError {
	if p.kind == kindNode {
		return s.grantNode(p, number, m.Body)
	}
	return s.hub.renew(p, number, s.verifier.Load(), bytes.Clone(m.Body)) // it goes into nodes' queues
}

// proveAdmin checks that p's other end holds the network's key or a signer's.
func (s *Server) proveAdmin(m *wire.AdminProof, handshake [32]byte, p *session) *auth.RefusedError {
	h := s.documents.newest()
	message := wire.AdminProofMessage(h.Network, handshake)
	who := ""
	if bytes.Equal(m.Key[:], h.Key.Bytes()) && h.Key.Verify(message, m.Signature[:]) {
		who = "the network key"
	}
	for _, signer := range h.Signers {
		if bytes.Equal(m.Key[:], signer.Key.Bytes()) && s.now().Before(signer.NotAfter) && signer.Key.Verify(message, m.Signature[:]) {
			who = "signer " + signer.Name
		}
	}
	if who == "" {
		return refused(wire.ReasonNotAllowed, "neither the network's key nor a live signer's", "ask the platform engineer to admit this machine's signer: `zt-daemon network sign --signer NAME=KEY`")
	}
	s.audit.write(p.subject(Event{Time: s.now(), Event: EventAdminSession, Detail: who}))
	return nil
}

// serveAdmin answers an administrator, who stays a few minutes.
func (s *Server) serveAdmin(ctx context.Context, p *session) error {
	end := time.Now().Add(maxAdmin)
	for {
		number, m, err := p.link.receive(min(maxAdminIdle, time.Until(end)))
		if err != nil {
			return err
		}
		p.heard.Store(time.Now().UnixMilli())
		switch m := m.(type) {
		case *wire.DocumentsRequest:
			s.sendDocuments(ctx, p, number, "")
		case *wire.PutDocument:
			if r := s.putDocument(m); r != nil {
				s.refused(p, "document", r)
				p.refuse(number, r)
				continue
			}
			p.send(&wire.OK{Re: number})
		case *wire.Ping:
			p.send(&wire.Pong{Re: number})
		case *wire.Pong:
		default:
			return refused(wire.ReasonNotAllowed, "not in an administrator's session", "")
		}
	}
}

func (s *Server) newVerifier(h *auth.Head) (*auth.Verifier, error) {
	return auth.NewVerifier(auth.VerifierConfig{Network: h.Network, Issuers: h.Issuers, HTTP: s.cfg.HTTP, Log: s.log, Now: s.now})
}

func (s *Server) buildVerifier(h *auth.Head) error {
	v, err := s.newVerifier(h)
	if err == nil {
		s.useVerifier(v)
	}
	return err
}

// useVerifier admits by v from now on.
func (s *Server) useVerifier(v *auth.Verifier) {
	s.verifier.Store(v)
	select {
	case s.verifierChanged <- struct{}{}:
	default: // runVerifier has not taken the last one yet
	}
}

// runVerifier keeps the keys of the newest verifier fresh, and holds leases
// against it.
func (s *Server) runVerifier(ctx context.Context) error {
	ticker := time.NewTicker(recheckEvery)
	defer ticker.Stop()
	stop := func() {}
	defer func() { stop() }()
	for {
		v := s.verifier.Load()
		select {
		case <-ctx.Done():
			return nil
		case <-s.verifierChanged:
			stop()
			stop = s.startVerifier(ctx, s.verifier.Load())
			continue
		case <-ticker.C:
		case <-s.recheckNow:
		}
		if v != nil {
			s.hub.recheck(v, func(c string) ([]key.ClusterPublic, bool) {
				_, known := s.documents.cluster(c)
				return s.documents.clusterKeys(c, s.now()), known
			})
		}
	}
}

// startVerifier runs v until the returned func is called, which waits for it.
func (s *Server) startVerifier(ctx context.Context, v *auth.Verifier) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := v.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			s.log.Error("issuers' keys are no longer kept fresh", "err", err)
		}
	}()
	return func() { cancel(); <-done }
}
