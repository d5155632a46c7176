package daemon

import (
	"context"
	"crypto/mlkem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/netstack"
	"github.com/zt-daemon/zt/relay/wire"
)

const (
	// statementLife is how long a statement is good: the most that is allowed.
	statementLife = time.Hour
	// statementRenewal is when a new one is signed: two may be lost.
	statementRenewal = statementLife / 3
	// laptopRelays is how many of the head's relays a laptop keeps a session
	// with: one to use and one that is warm.
	laptopRelays = 2
	// clockTolerance is the difference between this machine's clock and the
	// issuer's of which a person is told.
	clockTolerance = time.Minute
)

// laptopGrant is a login that was kept: what statements are signed under.
type laptopGrant struct {
	grant  auth.Grant // its statement is the last one signed before the start
	tokens auth.Tokens
	ends   time.Time // iat + grantAge
}

// membership is a laptop's part in one network: one login key, one WireGuard
// key, one device, and an access for each cluster.
type membership struct {
	laptop    *Laptop
	log       *slog.Logger
	id        auth.NetworkID
	state     *NetworkState
	login     key.LoginPrivate
	key       key.WireGuardPrivate
	decap     *mlkem.DecapsulationKey768
	transport *Transport
	device    *netstack.Device
	api       apiTokens

	ctx context.Context // from start to the laptop's end
	wg  *sync.WaitGroup

	documentsMu sync.Mutex // held while documents are taken; guards floors
	floors      map[string]recordFloor

	mu        sync.Mutex // guards below
	head      *auth.Head // nil before the first login
	grant     *laptopGrant
	offset    time.Duration // issuer's clock less ours, when it is known
	statement auth.SignedStatement
	sessions  []*memberSession
	clusters  map[string]*clusterAccess
	faults    map[string]error // clusters that cannot be offered, and why
	warnings  []string
	synced    chan struct{} // closed when documents were taken after the last login
}

// recordFloor is the newest record of a cluster that was seen, removed ones and
// those whose signer has ended included: nothing older is taken.
type recordFloor struct {
	record  *auth.Record // nil: one that does not verify now
	version uint64
}

// check says why r may not be taken; auth.ErrSame if it is held.
func (f recordFloor) check(r *auth.Record) error {
	if f.record == nil && r.Version < f.version {
		return &auth.RollbackError{Document: "record " + r.Name, Got: r.Version, Had: f.version}
	}
	return r.Supersedes(f.record)
}

type memberSession struct {
	*Session
	relay auth.Relay
	stop  context.CancelFunc
}

// newMembership reads a network's state. What is corrupt there is set aside and
// returned as an error.
func newMembership(l *Laptop, state *NetworkState) (*membership, error) {
	m := &membership{
		laptop: l, log: l.log.With("network", state.ID().String()), id: state.ID(), state: state, key: key.NewWireGuard(),
		clusters: make(map[string]*clusterAccess), faults: make(map[string]error), floors: make(map[string]recordFloor), synced: make(chan struct{}),
	}
	m.api.init(m)
	var err error
	if m.decap, err = mlkem.GenerateKey768(); err != nil {
		return nil, err
	}
	m.login, err = state.LoginKey()
	if errors.Is(err, ErrNoState) {
		m.login = key.NewLogin()
		err = state.KeepLoginKey(m.login)
	}
	if err != nil {
		return nil, fmt.Errorf("login key: %w", err)
	}
	if m.head, err = state.Head(); err != nil && !errors.Is(err, ErrNoState) {
		return nil, fmt.Errorf("head: %w", err)
	}
	if err := m.loadGrant(); err != nil {
		return nil, err
	}
	if m.transport, err = NewTransport(TransportConfig{Log: m.log}); err != nil {
		return nil, err
	}
	m.device, err = netstack.New(netstack.Config{
		PrivateKey: m.key, Addr: m.id.PersonAddr(m.login.Public()), Transport: m.transport, DropInboundSYN: true, Log: m.log,
	})
	return m, err
}

// loadGrant takes the grant of the last login, if it still belongs here.
func (m *membership) loadGrant() error {
	raw, err := m.state.Grant()
	if errors.Is(err, ErrNoState) {
		return nil
	} else if err != nil {
		return fmt.Errorf("grant: %w", err)
	}
	g, err := auth.ParseGrant(raw)
	if err != nil {
		return fmt.Errorf("grant: %w", err)
	}
	commitment, err := auth.ParseCommitment(g.Commitment)
	if err != nil || commitment.Key != m.login.Public() || commitment.Network != m.id || m.head == nil {
		m.log.Warn("the grant kept here is not of this login key and network; a new login is needed")
		return m.state.RemoveGrant()
	}
	issuer, ok := m.head.Issuer(g.Issuer)
	if !ok {
		m.log.Warn("the grant kept here is of an issuer that the head no longer names; a new login is needed", "issuer", g.Issuer)
		return m.state.RemoveGrant()
	}
	tokens, err := auth.StoredTokens(issuer, auth.IDTokenFrom(g.IDToken), auth.RefreshToken{})
	if err != nil {
		return fmt.Errorf("grant: %w", err)
	}
	m.grant = newLaptopGrant(g, tokens, issuer)
	return nil
}

func newLaptopGrant(g auth.Grant, tokens auth.Tokens, issuer auth.Issuer) *laptopGrant {
	return &laptopGrant{grant: g, tokens: tokens, ends: tokens.IssuedAt.Add(issuer.WithDefaults().GrantAge.Std())}
}

// start begins to work, until ctx is done; wg is told.
func (m *membership) start(ctx context.Context, wg *sync.WaitGroup) error {
	m.ctx, m.wg = ctx, wg
	if err := m.device.Start(); err != nil {
		return err
	}
	wg.Go(func() {
		<-ctx.Done()
		m.device.Close()
	})
	if m.head != nil {
		records, err := m.loadRecords()
		if err != nil {
			return err
		}
		m.takeRecords(records)
		m.takeRelays()
	}
	wg.Go(m.renewStatements)
	return nil
}

// loadRecords reads the records that were kept.
func (m *membership) loadRecords() ([]*auth.Record, error) {
	kept, err := m.state.Records()
	if err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	var records []*auth.Record
	for name, raw := range kept {
		r, err := auth.ParseRecord(raw, m.head, wallClock())
		if err != nil {
			m.log.Warn("record kept here does not verify any more", "cluster", name, "err", err)
			if peeked, version, err := auth.PeekRecord(raw); err == nil && peeked == name {
				m.floors[name] = recordFloor{version: version}
			}
			continue
		}
		records = append(records, r)
	}
	return records, nil
}

// takeRelays begins sessions with the head's first relays, and ends those with
// relays that the head no longer names.
func (m *membership) takeRelays() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions = slices.DeleteFunc(m.sessions, func(s *memberSession) bool {
		now, ok := m.head.Relay(s.relay.URL)
		gone := !ok || !now.Equal(s.relay)
		if gone {
			s.stop()
		}
		return gone
	})
	for _, r := range m.head.Relays {
		if len(m.sessions) == laptopRelays {
			return
		}
		if slices.ContainsFunc(m.sessions, func(s *memberSession) bool { return s.relay.URL == r.URL }) {
			continue
		}
		s, err := m.newSession(r)
		if err != nil {
			m.log.Error("relay of the head cannot be used", "relay", r.URL, "err", err)
			continue
		}
		ctx, stop := context.WithCancel(m.ctx)
		m.sessions = append(m.sessions, &memberSession{Session: s, relay: r, stop: stop})
		m.wg.Go(func() { s.Run(ctx) }) // its only error is a refusal, which is tried again here
	}
}

func (m *membership) newSession(r auth.Relay) (*Session, error) {
	var s *Session
	s, err := NewSession(SessionConfig{
		Network: m.id, Relay: r, Static: m.key, Transport: m.transport, HTTP: m.laptop.cfg.HTTP, Log: m.log,
		Proof: func(context.Context) (wire.GrantKind, []byte, error) {
			g, err := m.liveGrant()
			if err != nil {
				return 0, nil, err
			}
			return wire.GrantPerson, g.Append(nil), nil
		},
		Busy: m.busy,
		Handler: Handler{
			Up:               func(ctx context.Context, _ Admitted) { m.wg.Go(func() { m.fetchDocuments(ctx, s) }) },
			DocumentsChanged: func(ctx context.Context) { m.wg.Go(func() { m.fetchDocuments(ctx, s) }) },
			EdgeRefused: func(_ context.Context, e Edge, err *RefusedError) {
				m.edgeGone(e, err)
			},
			EdgeClosed: func(_ context.Context, e Edge, reason string) {
				m.edgeGone(e, &RefusedError{Relay: r.URL, Reason: reason})
			},
			EdgeMove: func(_ context.Context, e Edge) {
				if c := m.cluster(e.Cluster); c != nil {
					c.move(e.ID)
				}
			},
		},
	})
	return s, err
}

// liveGrant is the grant with a statement that is live for a while yet, signed
// anew when it is not. Every relay is given the same one.
func (m *membership) liveGrant() (auth.Grant, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.grant == nil {
		return auth.Grant{}, errNotLoggedIn
	}
	now := wallClock().Add(m.offset)
	if !now.Before(m.grant.ends) {
		return auth.Grant{}, NewLocalError(KindExpired, "run `zt-daemon login`, then try again",
			"the login of %s ended %s", m.grant.tokens, m.grant.ends.UTC().Format(time.RFC3339))
	}
	if m.statement.Expires.Sub(now) < statementLife-statementRenewal {
		m.signLocked(now, false)
	}
	g := m.grant.grant
	g.Statement = m.statement
	return g, nil
}

// signLocked signs a statement newer than the last.
func (m *membership) signLocked(now time.Time, end bool) {
	if !now.After(m.statement.Issued) {
		now = m.statement.Issued.Add(time.Millisecond)
	}
	s := auth.Statement{End: end, Key: m.key.Public(), Issued: now, Expires: now.Add(statementLife)}
	copy(s.Encapsulation[:], m.decap.EncapsulationKey().Bytes())
	m.statement = auth.SignStatement(s, m.grant.grant.IDToken, m.login)
}

// renewStatements hands every relay a new statement in time.
func (m *membership) renewStatements() {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	var sent time.Time
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
		}
		m.closeIdle()
		g, err := m.liveGrant()
		if err != nil || g.Statement.Issued.Equal(sent) {
			continue
		}
		sent = g.Statement.Issued
		for _, s := range m.up() {
			ctx, cancel := context.WithTimeout(m.ctx, answerTimeout)
			if _, err := s.SendStatement(ctx, g.Statement.Append(nil)); err != nil && m.ctx.Err() == nil {
				m.log.Warn("statement not renewed", "relay", s.relay.URL, "err", err)
			}
			cancel()
		}
	}
}

// relaySessions returns the sessions, up or not.
func (m *membership) relaySessions() []*memberSession {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.sessions)
}

// up returns the sessions that are up; all of them if none is.
func (m *membership) up() []*memberSession {
	all := m.relaySessions()
	up := slices.DeleteFunc(slices.Clone(all), func(s *memberSession) bool { return !s.Status().Up })
	if len(up) == 0 {
		return all
	}
	return up
}

// busy reports whether flows are open.
func (m *membership) busy() bool {
	for _, c := range m.accesses() {
		if c.listener.Stats().Open > 0 {
			return true
		}
	}
	return false
}

// fetchDocuments takes what a relay has that is newer, and proves itself.
func (m *membership) fetchDocuments(ctx context.Context, s *Session) {
	m.mu.Lock()
	synced := m.synced // a login after this waits for what its own proof brings
	m.mu.Unlock()
	raw, records, err := s.Documents(ctx)
	if err == nil {
		err = m.takeDocuments(raw, records)
	}
	if err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		select {
		case <-synced:
		default:
			close(synced)
		}
	}
	if err != nil && ctx.Err() == nil {
		m.log.Warn("documents not taken", "relay", s.cfg.Relay.URL, "err", err)
		m.warn(err)
	}
}

func (m *membership) takeDocuments(rawHead []byte, rawRecords [][]byte) error {
	m.documentsMu.Lock()
	defer m.documentsMu.Unlock()
	head, err := auth.ParseHead(rawHead)
	if err == nil {
		err = m.takeHeadLocked(head)
	}
	if err != nil {
		return err
	}
	var records []*auth.Record
	for _, raw := range rawRecords {
		r, err := auth.ParseRecord(raw, m.head, wallClock())
		if err != nil {
			m.log.Warn("record not taken", "err", err)
			m.warn(err)
			continue
		}
		records = append(records, r)
	}
	m.takeRecords(records)
	m.takeRelays()
	return nil
}

// takeHead takes a head unless it is older than one already seen.
func (m *membership) takeHead(h *auth.Head) error {
	m.documentsMu.Lock()
	defer m.documentsMu.Unlock()
	return m.takeHeadLocked(h)
}

func (m *membership) takeHeadLocked(h *auth.Head) error {
	if h.Network != m.id {
		return &WrongNetworkError{Relay: "of this session", Want: m.id, Got: h.Network}
	}
	m.mu.Lock()
	had := m.head
	m.mu.Unlock()
	if had != nil {
		if err := h.Supersedes(had); errors.Is(err, auth.ErrSame) {
			return nil
		} else if err != nil {
			return err
		}
	}
	if h.Expired(wallClock()) {
		return NewLocalError(KindFailure, "ask the platform engineer to run `zt-daemon network sign`, which renews it",
			"the network's head ended %s; nothing new is taken", h.NotAfter.UTC().Format(time.RFC3339))
	}
	if err := m.state.KeepHead(h); err != nil {
		return fmt.Errorf("keep the network's head: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.head = h
	return nil
}

// takeRecords takes those records that are newer than the ones held.
func (m *membership) takeRecords(records []*auth.Record) {
	for _, r := range records {
		c := m.cluster(r.Name)
		err := m.floors[r.Name].check(r)
		same := errors.Is(err, auth.ErrSame)
		if same && c != nil {
			continue
		} else if err != nil && !same {
			m.log.Warn("record not taken", "cluster", r.Name, "err", err)
			m.warn(err)
			continue
		}
		if !same {
			if err := m.state.KeepRecord(r); err != nil {
				m.log.Error("record not kept", "cluster", r.Name, "err", err)
				m.warn(err)
				continue
			}
			m.floors[r.Name] = recordFloor{record: r, version: r.Version}
		}
		switch {
		case c != nil:
			c.take(r)
		case r.Removed: // and never known here
		default:
			err := m.addCluster(r)
			m.mu.Lock()
			delete(m.faults, r.Name)
			if err != nil {
				m.faults[r.Name] = err
			}
			m.mu.Unlock()
			if err != nil {
				m.log.Error("cluster without a listener", "cluster", r.Name, "err", err)
				m.warn(err)
			}
		}
	}
}

// fault is why a cluster cannot be offered; nil if nothing is known against it.
func (m *membership) fault(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.faults[name]; err != nil {
		return fmt.Errorf("cluster %s: %w", name, err)
	}
	return nil
}

func (m *membership) cluster(name string) *clusterAccess {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.clusters[name]
}

// accesses are the clusters by name.
func (m *membership) accesses() []*clusterAccess {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*clusterAccess, 0, len(m.clusters))
	for _, c := range m.clusters {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *clusterAccess) int { return strings.Compare(a.name, b.name) })
	return all
}

// warn keeps what status shows, the latest few.
func (m *membership) warn(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	text := err.Error()
	m.warnings = slices.DeleteFunc(m.warnings, func(w string) bool { return w == text })
	m.warnings = append(m.warnings, text)
	m.warnings = m.warnings[max(0, len(m.warnings)-5):]
}

// logout ends the grant everywhere: relays and nodes are told, flows are reset,
// what was kept is forgotten. That a relay cannot be told is an error, after
// all else is done.
func (m *membership) logout(ctx context.Context) error {
	m.mu.Lock()
	if m.grant == nil {
		m.mu.Unlock()
		return errors.Join(m.api.forget(), m.state.RemoveGrant())
	}
	m.signLocked(wallClock().Add(m.offset), true)
	end := m.statement.Append(nil)
	m.grant = nil
	m.mu.Unlock()
	var errs []error
	for _, s := range m.up() {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		// The relay answers an end by ending the session.
		if _, err := s.SendStatement(ctx, end); err != nil && !isRefused(err) && !errors.Is(err, ErrUnreachable) {
			errs = append(errs, fmt.Errorf("relay %s was not told: %w", s.relay.URL, err))
		}
		cancel()
	}
	for _, c := range m.accesses() {
		c.drop(nil, errNotLoggedIn)
	}
	errs = append(errs, m.api.forget(), m.state.RemoveGrant())
	for _, s := range m.up() {
		s.Reconnect()
	}
	m.log.Info("logged out")
	return errors.Join(errs...)
}
