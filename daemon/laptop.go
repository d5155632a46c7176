package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth"
)

// LaptopConfig says what a Laptop is. State, Secrets and Socket are required.
type LaptopConfig struct {
	State   *State
	Secrets *Secrets
	Socket  string // path of the local API's Unix socket
	UID     int    // whose commands and connections are served; normally os.Geteuid()
	HTTP    HTTPConfig
	Version string
	Log     *slog.Logger // nil: none
}

// Laptop is one person's participant: it keeps their memberships in networks,
// a loopback listener for each cluster, and answers their commands. It
// implements LocalHandler.
type Laptop struct {
	cfg     LaptopConfig
	log     *slog.Logger
	started time.Time
	stop    context.CancelCauseFunc // ends Run
	run     context.Context         // Run's, for what outlives one command
	wg      sync.WaitGroup          // memberships

	loginMu sync.Mutex // one login at a time; held over it

	mu      sync.Mutex // guards below
	members map[auth.NetworkID]*membership
	broken  map[auth.NetworkID]error // networks whose state could not be used, and why
}

// NewLaptop checks cfg and starts nothing.
func NewLaptop(cfg LaptopConfig) (*Laptop, error) {
	if cfg.State == nil || cfg.Secrets == nil || cfg.Socket == "" {
		return nil, errors.New("a laptop needs a state directory, secrets and a socket")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Laptop{cfg: cfg, log: cfg.Log, members: make(map[auth.NetworkID]*membership), broken: make(map[auth.NetworkID]error)}, nil
}

// Run serves until ctx is done or Down is called, and returns once all it
// started has ended. It holds the state directory's lock meanwhile.
func (l *Laptop) Run(ctx context.Context) error {
	l.started = time.Now()
	lock, err := l.cfg.State.Lock(DaemonInfo{PID: os.Getpid(), Socket: l.cfg.Socket, Version: l.cfg.Version, Started: l.started})
	if err != nil {
		return err
	}
	defer lock.Close()
	ids, err := l.cfg.State.Networks()
	if err != nil {
		return err
	}
	ctx, l.stop = context.WithCancelCause(ctx)
	defer l.stop(nil)
	l.run = ctx
	defer l.wg.Wait()
	for _, id := range ids {
		if _, err := l.join(id); err != nil {
			// One network's broken state must not take the others down; its
			// commands say it again.
			l.log.Error("network not joined", "network", id, "err", err)
		}
	}
	l.wg.Go(func() {
		if err := watchLinks(ctx, l.log, l.linksChanged); err != nil {
			l.log.Warn("changes of links are not noticed; sessions recover by their own timers", "err", err)
		}
	})
	server, err := NewLocalServer(LocalServerConfig{Handler: l, UID: l.cfg.UID, Log: l.log})
	if err != nil {
		return err
	}
	ln, err := ListenLocal(l.cfg.Socket)
	if err != nil {
		l.stop(nil)
		return err
	}
	l.log.Info("laptop started", "networks", len(ids))
	return server.Run(ctx, ln)
}

// linksChanged proves the UDP address anew and has lost sessions tried at once.
// WireGuard's sessions do not outlive a sleep: their clock stood still.
func (l *Laptop) linksChanged(woke bool) {
	for _, m := range l.all() {
		m.transport.Rebind()
		for _, s := range m.up() {
			s.Retry()
		}
		if woke {
			for _, p := range m.device.Peers() {
				m.device.Handshake(p.PublicKey) // its only error is that the peer has just gone
			}
		}
	}
}

// join returns the membership of a network, and begins it if there is none.
func (l *Laptop) join(id auth.NetworkID) (*membership, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.members[id]; m != nil {
		return m, nil
	}
	m, err := newMembership(l, l.cfg.State.Network(id))
	if err == nil {
		err = m.start(l.run, &l.wg)
	}
	if err != nil {
		l.broken[id] = err
		return nil, err
	}
	delete(l.broken, id)
	l.members[id] = m
	return m, nil
}

// fault is why a network that a request may mean is not served; nil if none is
// broken.
func (l *Laptop) fault(network string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, err := range l.broken {
		if network == "" || network == id.String() {
			return fmt.Errorf("network %s: %w", id, err)
		}
	}
	return nil
}

// all returns the memberships, ordered by id.
func (l *Laptop) all() []*membership {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*membership, 0, len(l.members))
	for _, m := range l.members {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *membership) int { return cmp.Compare(a.id.String(), b.id.String()) })
	return all
}

// pick returns the memberships that a request names; an empty id names all.
func (l *Laptop) pick(network string) ([]*membership, error) {
	if network == "" {
		return l.all(), nil
	}
	id, err := auth.ParseNetworkID(network)
	if err != nil {
		return nil, NewLocalError(KindUsage, "", "network: %v", err)
	}
	for _, m := range l.all() {
		if m.id == id {
			return []*membership{m}, nil
		}
	}
	return nil, NewLocalError(KindNotLoggedIn, hintLoginURL, "this machine is in no network %s", id)
}

const hintLoginURL = "run `zt-daemon login https://RELAY/NETWORK-ID` with the line the platform engineer gave out"

// Status implements LocalHandler.
func (l *Laptop) Status(context.Context) (Status, error) {
	s := Status{
		PID: os.Getpid(), Version: l.cfg.Version, Started: l.started, StateDir: l.cfg.State.Dir(),
		Networks: []NetworkStatus{},
	}
	for _, m := range l.all() {
		status, warnings := m.status()
		s.Networks = append(s.Networks, status)
		s.Warnings = append(s.Warnings, warnings...)
	}
	if err := l.fault(""); err != nil {
		s.Warnings = append(s.Warnings, err.Error())
	}
	return s, nil
}

// Clusters implements LocalHandler.
func (l *Laptop) Clusters(ctx context.Context) ([]ClusterStatus, error) {
	clusters := []ClusterStatus{}
	for _, m := range l.all() {
		of := m.clusterStatus()
		m.addNodes(ctx, of)
		clusters = append(clusters, of...)
	}
	return clusters, nil
}

// Whoami implements LocalHandler.
func (l *Laptop) Whoami(context.Context) ([]Whoami, error) {
	people := []Whoami{}
	for _, m := range l.all() {
		if who, ok := m.whoami(); ok {
			people = append(people, who)
		}
	}
	return people, nil
}

// Logout implements LocalHandler.
func (l *Laptop) Logout(ctx context.Context, req LogoutRequest) error {
	members, err := l.pick(req.Network)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range members {
		errs = append(errs, m.logout(ctx))
	}
	return errors.Join(errs...)
}

// Credential implements LocalHandler. It has the edge opened too, so that a
// refusal is read here and not guessed from a connection that is reset.
func (l *Laptop) Credential(ctx context.Context, req CredentialRequest) (CredentialResult, error) {
	c, err := l.access(req.Network, req.Cluster)
	if err != nil {
		return CredentialResult{}, err
	}
	return c.credential(ctx)
}

// RequestAccess implements LocalHandler.
func (l *Laptop) RequestAccess(ctx context.Context, req AccessRequest) (AccessRequestResult, error) {
	c, err := l.access(req.Network, req.Cluster)
	if err != nil {
		return AccessRequestResult{}, err
	}
	return c.requestAccess(ctx, req.For.Std(), req.Reason)
}

// access finds the one cluster that a request means.
func (l *Laptop) access(network, cluster string) (*clusterAccess, error) {
	members, err := l.pick(network)
	if broken := l.fault(network); broken != nil && len(members) == 0 {
		return nil, broken
	} else if err != nil {
		return nil, err
	}
	var found []*clusterAccess
	for _, m := range members {
		if c := m.cluster(cluster); c != nil {
			found = append(found, c)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, NewLocalError(KindUsage, "name one with --network-id", "%d networks have a cluster %q", len(found), cluster)
	}
	if err := l.fault(network); err != nil {
		return nil, err
	}
	loggedIn := false
	for _, m := range members {
		if err := m.fault(cluster); err != nil {
			return nil, err
		}
		if _, err := m.liveGrant(); err == nil {
			loggedIn = true
		}
	}
	if !loggedIn {
		return nil, errNotLoggedIn
	}
	return nil, NewLocalError(KindUnknownCluster, "`zt-daemon clusters` lists those there are", "no network of this machine has a cluster %q", cluster)
}

var errNotLoggedIn = NewLocalError(KindNotLoggedIn, "run `zt-daemon login`, then try again", "nobody is logged in")

// Down implements LocalHandler.
func (l *Laptop) Down(context.Context) error {
	l.stop(nil)
	return nil
}

// overlayDialer is a Listener's Dial.
func (c *clusterAccess) overlayDialer(ctx context.Context) (OverlayConn, error) {
	conn, err := c.dial(ctx)
	if err != nil { // not a typed nil
		return nil, err
	}
	return conn, nil
}
