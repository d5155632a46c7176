package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

const (
	reconnectJitter = 300 * time.Millisecond // before the first attempt after a loss
	reconnectMax    = 10 * time.Second       // between attempts while flows are open
	reconnectIdle   = 30 * time.Second       // without flows, attempts are spread over this
	refusedRetry    = time.Minute
	steadyAfter     = 10 * time.Second // a connection that lived so long starts the count anew
	eventQueue      = 1024             // events that wait for a Handler
	resolveTimeout  = 3 * time.Second
)

// SessionConfig says whose session it is and with which relay.
type SessionConfig struct {
	Network   auth.NetworkID
	Relay     auth.Relay // of the head
	Static    key.WireGuardPrivate
	Cluster   string // a node's own; empty for a laptop
	Transport *Transport
	Handler   Handler

	// Proof is asked for the grant at each connect. An error is handled like a
	// refusal.
	Proof func(ctx context.Context) (kind wire.GrantKind, body []byte, err error)
	// Busy says whether flows are open: then a lost relay is noticed and sought
	// sooner. Default: never.
	Busy func() bool

	HTTP HTTPConfig
	// RefusedRetry is how long to wait after a refusal before asking again, unless
	// Retry is called: by default a minute. Negative: Run returns the refusal.
	RefusedRetry time.Duration
	Log          *slog.Logger // default: none
}

// A Handler is told what the relay says unasked. All fields are optional. Calls
// come one at a time and in order; one that takes long, such as the judging of an
// offer, starts a goroutine of its own and holds up nothing. They may call the
// Session's methods. ctx ends with the connection.
type Handler struct {
	Up               func(ctx context.Context, a Admitted)                            // admitted, at each connect
	Down             func(err error)                                                  // not connected, and why; Run goes on unless it says otherwise
	EdgeOffer        func(ctx context.Context, o EdgeOffer)                           // to a node: answer with AnswerOffer or RefuseOffer
	EdgeOpen         func(ctx context.Context, e Edge)                                // a channel is there: after an answer, or a reconnect
	EdgeRefused      func(ctx context.Context, e Edge, err *RefusedError)             // remove the peer
	EdgeClosed       func(ctx context.Context, e Edge, reason string)                 // the other side removed its peer: remove it here
	EdgeMove         func(ctx context.Context, e Edge)                                // to a laptop: another node would serve new flows better
	PeerStatement    func(ctx context.Context, peer key.WireGuardPublic, body []byte) // to a node: a laptop's newer statement
	DocumentsChanged func(ctx context.Context)                                        // Documents would bring something new
}

// Admitted is a relay's consent to a grant.
type Admitted struct {
	Expires time.Time  // when the lease ends unless renewed; the relay's clock
	Addr    netip.Addr // this participant's overlay address, as the relay derived it
}

func admitted(m *wire.Admitted) Admitted {
	return Admitted{Expires: time.UnixMilli(int64(min(m.Expires, 1<<52))), Addr: netip.AddrFrom16(m.Addr)}
}

// A Session is a participant's authenticated connection to one relay. Run keeps
// it; everything else may be called by any goroutine at any time, and waits, as
// long as its context allows, for a session that is about to be there.
type Session struct {
	cfg    SessionConfig
	log    *slog.Logger
	dialer *dialer
	link   *link
	retry  chan struct{}

	edges edgeTable

	telling sync.Mutex // held while the relay is told how a node is

	mu     sync.Mutex // guards what follows
	state  SessionStatus
	conn   *control      // nil: down
	path   *binder       // of conn
	change chan struct{} // closed at the next change of conn or state.Err
	proofs uint64        // how often a new proof was asked for
}

// SessionStatus is for people.
type SessionStatus struct {
	Relay    string        `json:"relay"` // URL
	Up       bool          `json:"up"`
	Since    time.Time     `json:"since"`    // up, or not, since then
	Lease    time.Time     `json:"lease"`    // when the relay's lease ends
	Addr     netip.Addr    `json:"addr"`     // overlay address
	Path     PathStatus    `json:"path"`     // UDP
	Edges    int           `json:"edges"`    // held
	Connects uint64        `json:"connects"` // since the start
	Clock    time.Duration `json:"clock"`    // the relay's clock less ours, roughly; a hint
	Err      error         `json:"-"`        // why the session is down
}

// NewSession checks cfg. It starts nothing: Run does.
func NewSession(cfg SessionConfig) (*Session, error) {
	switch {
	case cfg.Network.IsZero():
		return nil, errors.New("session without a network id")
	case cfg.Transport == nil:
		return nil, errors.New("session without a transport")
	case cfg.Proof == nil:
		return nil, errors.New("session without a proof")
	}
	d, err := newDialer(cfg.Relay, cfg.Network, cfg.Static, cfg.HTTP)
	if err != nil {
		return nil, err
	}
	if cfg.Busy == nil {
		cfg.Busy = func() bool { return false }
	}
	if cfg.RefusedRetry == 0 {
		cfg.RefusedRetry = refusedRetry
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Session{
		cfg: cfg, log: cfg.Log.With("relay", cfg.Relay.URL), dialer: d,
		link: cfg.Transport.newLink(), retry: make(chan struct{}, 1), change: make(chan struct{}),
	}
	s.edges.init(cfg.Transport, s.link)
	s.state.Relay, s.state.Since = cfg.Relay.URL, time.Now()
	return s, nil
}

// Run keeps the session alive until ctx is done, then ends it and forgets its
// edges. It may be called once. The error is nil, or a *RefusedError if
// RefusedRetry is negative.
func (s *Session) Run(ctx context.Context) error {
	s.cfg.Transport.attach(s.link)
	defer func() {
		s.edges.clear()
		s.cfg.Transport.detach(s.link)
		s.dialer.close()
	}()
	for losses := 0; ; losses++ {
		began := time.Now()
		err := s.connect(ctx)
		if ctx.Err() != nil {
			s.down(errors.New("session ended"))
			return nil
		}
		s.down(err)
		refused := isRefused(err)
		if refused && s.cfg.RefusedRetry < 0 {
			return err
		}
		if time.Since(began) > steadyAfter {
			losses = 0
		}
		wait := s.pause(losses)
		if proof := (*proofError)(nil); refused || errors.As(err, &proof) {
			wait = max(s.cfg.RefusedRetry, time.Second)
		}
		s.log.Info("session down", "err", err, "retry", wait.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			return nil
		case <-s.retry:
			// Somebody wants it, who may want it again at once.
			if !refused && losses > 0 {
				sleep(ctx, min(s.pause(losses), time.Second))
			}
		case <-time.After(wait):
		}
	}
}

// pause is how long to wait before the next attempt. A relay that restarts sees
// those first that have work for it.
func (s *Session) pause(losses int) time.Duration {
	if !s.cfg.Busy() {
		if losses == 0 {
			return rand.N(reconnectIdle)
		}
		return reconnectIdle/2 + rand.N(reconnectIdle)
	}
	most := min(reconnectMax, reconnectJitter<<min(losses, 10))
	if losses == 0 {
		return rand.N(reconnectJitter)
	}
	return most/2 + rand.N(most/2)
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// Retry has Run try again at once, also after a refusal: a new grant is there,
// or links changed.
func (s *Session) Retry() {
	s.mu.Lock()
	if s.conn == nil {
		s.state.Err = nil // who waits now, waits for what comes
	}
	s.mu.Unlock()
	notify(s.retry)
}

// proofError is what Proof said.
type proofError struct{ err error }

func (e *proofError) Error() string { return e.err.Error() }
func (e *proofError) Unwrap() error { return e.err }

// connect makes one connection, serves it, and returns, once all it started has
// ended, why it is over.
func (s *Session) connect(ctx context.Context) (err error) {
	defer func() {
		result := "lost"
		switch proof := (*proofError)(nil); {
		case isRefused(err):
			result = "refused"
		case errors.As(err, &proof):
			result = "no_proof"
		case errors.Is(err, ErrUnreachable):
			result = "unreachable"
		}
		s.cfg.Transport.metrics.attempts.WithLabelValues(result).Inc()
	}()
	s.mu.Lock()
	proofs := s.proofs
	s.mu.Unlock()
	kind, body, err := s.cfg.Proof(ctx)
	if err != nil {
		return &proofError{err}
	}
	attempt, cancelAttempt := context.WithTimeout(ctx, attemptTimeout)
	defer cancelAttempt()
	c, err := s.dialer.dial(attempt, ctx)
	if err != nil {
		return err
	}
	s.compareClocks(c)
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan func(), eventQueue)
	var (
		wg      sync.WaitGroup
		readErr error
	)
	wg.Go(func() { // unblocks every read and write
		<-ctx.Done()
		c.ws.CloseNow()
	})
	wg.Go(func() {
		defer cancel()
		defer close(events) // the reader is the only sender
		readErr = c.read(ctx, func(number uint32, m wire.Message) error { return s.receive(ctx, c, number, m, events) })
	})
	serveErr := s.serve(ctx, attempt, c, wire.Grant{Kind: kind, Body: body}, proofs, events)
	cancel()
	for event := range events { // what was received still counts: a revocation, for one
		event()
	}
	wg.Wait()
	switch {
	case isRefused(readErr):
		return readErr
	case serveErr != nil: // what the reader saw is then but the consequence
		return serveErr
	}
	return &UnreachableError{Relay: s.cfg.Relay.URL, Err: fmt.Errorf("connection lost: %w", readErr)}
}

// serve has the relay admit the connection, within attempt, puts it to use, and
// hands out events until there are no more or the relay is lost.
func (s *Session) serve(ctx, attempt context.Context, c *control, grant wire.Grant, proofs uint64, events <-chan func()) error {
	answer, err := c.request(attempt, &grant)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = &UnreachableError{Relay: s.cfg.Relay.URL, Err: fmt.Errorf("no admission within %v", attemptTimeout)}
	}
	if err != nil {
		return err
	}
	m, ok := answer.(*wire.Admitted)
	if !ok {
		return fmt.Errorf("relay answered a grant with %T", answer)
	}
	a := admitted(m)
	path := s.newPath(ctx, c)
	edges := s.edges.all() // before requests make new ones
	if !s.up(c, path, a, proofs) {
		s.Retry()
		return errors.New("another proof is there by now")
	}
	for _, e := range edges {
		if _, err := c.send(ctx, &wire.EdgeHold{Edge: e.ID, Peer: e.Peer, Cluster: e.Cluster}, nil); err != nil {
			return dialError(ctx, s.cfg.Relay.URL, err)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := path.run(ctx); err != nil {
			return &UnreachableError{Relay: s.cfg.Relay.URL, Err: err}
		}
		return nil
	})
	g.Go(func() error {
		if s.cfg.Handler.Up != nil {
			s.cfg.Handler.Up(ctx, a)
		}
		for {
			select {
			case <-ctx.Done():
				return nil
			case event, ok := <-events:
				if !ok {
					return nil // the reader ended, and ends the rest
				}
				event()
			}
		}
	})
	return g.Wait()
}

// newPath prepares to bind the UDP address of c.
func (s *Session) newPath(ctx context.Context, c *control) *binder {
	udp := c.welcome.UDP
	if udp == "" {
		udp = s.dialer.udp
	}
	prefer := []netip.Addr{c.remote}
	if was := s.link.remote.Load(); was != nil {
		prefer = append(prefer, was.Addr())
	}
	resolve, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	addrs, err := resolveUDP(resolve, udp, prefer...)
	if err != nil {
		s.log.Warn("no UDP path", "err", err)
	}
	return &binder{
		link: s.link, keys: &linkKeys{c.welcome.Session, wire.NewBindMAC(c.welcome.Bind)}, addrs: addrs,
		busy: s.cfg.Busy, last: c.lastHeard,
		ping: func() { _, _ = c.send(ctx, &wire.Ping{}, nil) }, // a failure shows as silence
	}
}

// compareClocks notes how far the relay's clock is from ours: before admission,
// which may be refused for it.
func (s *Session) compareClocks(c *control) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Clock = 0
	if t := c.welcome.Time; t != 0 {
		s.state.Clock = time.UnixMilli(int64(min(t, 1<<52))).Sub(c.began).Round(time.Millisecond)
	}
}

// up makes c the connection that requests use; false if Reconnect has asked for
// another proof meanwhile.
func (s *Session) up(c *control, path *binder, a Admitted, proofs uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proofs != proofs {
		return false
	}
	s.link.setUp(true)
	select {
	case <-s.retry: // what was asked for is here
	default:
	}
	s.conn, s.path = c, path
	s.state.Up, s.state.Since, s.state.Err = true, time.Now(), nil
	s.state.Lease, s.state.Addr = a.Expires, a.Addr
	s.state.Connects++
	s.changedLocked()
	s.log.Info("session up", "overlay_addr", a.Addr, "lease_expires", a.Expires)
	return true
}

// down takes the connection away. The channels stay: a relay may still forward,
// and the next connection replaces them.
func (s *Session) down(err error) {
	s.link.setUp(false)
	s.mu.Lock()
	if s.state.Up || s.state.Err == nil {
		s.state.Since = time.Now()
	}
	s.conn, s.path = nil, nil
	s.state.Up, s.state.Err = false, err
	s.changedLocked()
	s.mu.Unlock()
	if s.cfg.Handler.Down != nil {
		s.cfg.Handler.Down(err)
	}
}

func (s *Session) changedLocked() {
	close(s.change)
	s.change = make(chan struct{})
}

// await waits for a connection, and has one tried for at once. A relay that
// refused is not waited for, nor is one for which there is no grant.
func (s *Session) await(ctx context.Context) (*control, error) {
	for asked := false; ; asked = true {
		s.mu.Lock()
		c, err, change := s.conn, s.state.Err, s.change
		s.mu.Unlock()
		if c != nil {
			return c, nil
		}
		proof := (*proofError)(nil)
		if isRefused(err) || errors.As(err, &proof) {
			return nil, err
		}
		if !asked {
			notify(s.retry)
		}
		select {
		case <-change:
		case <-ctx.Done():
			if err == nil {
				err = context.Cause(ctx)
			}
			if errors.Is(err, ErrUnreachable) {
				return nil, err
			}
			return nil, &UnreachableError{Relay: s.cfg.Relay.URL, Err: err}
		}
	}
}

// SendStatement renews the grant: an auth.SignedStatement, for a node an
// auth.NodeGrant. A statement that ends the grant is answered with the zero
// Admitted. If the connection is lost meanwhile, Proof is asked anyway.
func (s *Session) SendStatement(ctx context.Context, body []byte) (Admitted, error) {
	c, err := s.await(ctx)
	if err != nil {
		return Admitted{}, fmt.Errorf("send statement: %w", err)
	}
	answer, err := c.request(ctx, &wire.Statement{Body: body})
	if err != nil {
		return Admitted{}, fmt.Errorf("send statement: %w", err)
	}
	if _, ok := answer.(*wire.OK); ok { // to an end
		return Admitted{}, nil
	}
	m, ok := answer.(*wire.Admitted)
	if !ok {
		return Admitted{}, fmt.Errorf("send statement: relay answered with %T", answer)
	}
	a := admitted(m)
	s.mu.Lock()
	s.state.Lease = a.Expires
	s.mu.Unlock()
	return a, nil
}

// Documents fetches the head and the records that this participant may see, as
// signed. The caller verifies them.
func (s *Session) Documents(ctx context.Context) (head []byte, records [][]byte, err error) {
	c, err := s.await(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("fetch documents: %w", err)
	}
	return c.documents(ctx)
}

// Rebind proves the UDP address again at once.
func (s *Session) Rebind() { notify(s.link.rebind) }

// Status says how the session is.
func (s *Session) Status() SessionStatus {
	s.mu.Lock()
	st, path := s.state, s.path
	s.mu.Unlock()
	if path != nil {
		st.Path = path.status()
	}
	st.Edges = s.edges.len()
	return st
}

// Reconnect gives the present connection up and makes another, with a new
// proof: a person logged in, or out. Edges are held over it.
func (s *Session) Reconnect() {
	s.mu.Lock()
	c := s.conn
	s.proofs++
	s.state.Err = nil // what the old proof came to says nothing of the new one
	s.changedLocked()
	s.mu.Unlock()
	if c != nil {
		c.ws.CloseNow()
	}
	s.Retry()
}
