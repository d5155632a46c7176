package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	defaultMaxFlows    = 512
	defaultDialTimeout = 12 * time.Second // above the relay's 10 s wait for a node, below a person's 15 s
	acceptRetryMax     = time.Second

	// Ports are chosen below every system's ephemeral range (Linux 32768–60999,
	// others 49152–65535) and below Kubernetes' node ports (30000–32767), so that
	// neither an outgoing connection nor a local cluster takes a kept one.
	firstPort = 20000
	lastPort  = 29999
)

// ListenerReason names why an accepted connection was not carried. Guard
// refusals use the GuardReason's text. The set is closed.
const (
	ListenerTooManyFlows = "too_many_flows"
	ListenerUnreachable  = "unreachable"   // Dial failed
	ListenerProxyRefused = "proxy_refused" // as an HTTP proxy it was asked for something else
)

// OverlayConn is a stream through the overlay, as netstack gives it.
type OverlayConn interface {
	net.Conn
	CloseWrite() error
	Reset() // RST to the other end, and close
}

// ListenerConfig says what a Listener serves. Cluster, Guard and Dial are required.
type ListenerConfig struct {
	Cluster string
	// Guard refuses a connection with an error, a *GuardError if it can.
	Guard func(net.Conn) error
	// Dial opens a stream to the cluster's API server. Its errors are logged.
	Dial func(context.Context) (OverlayConn, error)
	// Target, the API server's "name:443", is where the listener leads a client
	// that takes it for an HTTP proxy. nil: it is none.
	Target      func() string
	DialTimeout time.Duration // 0: 12 s
	MaxFlows    int           // 0: 512
	Log         *slog.Logger  // nil: none
}

// Listener carries TCP streams from a loopback port into the overlay: each
// accepted connection is checked by the guard, dialled, and spliced. Of what it
// carries it reads nothing but the request of a client of an HTTP proxy.
type Listener struct {
	cfg  ListenerConfig
	slot chan struct{} // one for each flow that is being served

	mu    sync.Mutex // guards flows, stats
	flows map[*localFlow]struct{}
	stats ListenerStats
}

// ListenerStats are counters since New. Bytes of flows still open are included.
type ListenerStats struct {
	Accepted      uint64            `json:"accepted"`
	Open          int               `json:"open"`
	BytesSent     uint64            `json:"bytesSent"`     // towards the cluster
	BytesReceived uint64            `json:"bytesReceived"` // from it
	Refused       map[string]uint64 `json:"refused,omitempty"`
	LastRefusal   string            `json:"lastRefusal,omitempty"` // the latest, in words
}

// NewListener checks cfg and starts nothing.
func NewListener(cfg ListenerConfig) (*Listener, error) {
	if cfg.Guard == nil || cfg.Dial == nil || cfg.Cluster == "" {
		return nil, errors.New("a listener needs a cluster, a guard and a dial function")
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = defaultDialTimeout
	}
	if cfg.MaxFlows <= 0 {
		cfg.MaxFlows = defaultMaxFlows
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Listener{
		cfg:   cfg,
		slot:  make(chan struct{}, cfg.MaxFlows),
		flows: make(map[*localFlow]struct{}),
		stats: ListenerStats{Refused: make(map[string]uint64)},
	}, nil
}

// PortTakenError says that another program listens on a cluster's port.
type PortTakenError struct {
	Port uint16
	Err  error
}

func (e *PortTakenError) Error() string {
	return fmt.Sprintf("listen on 127.0.0.1:%d: %v", e.Port, e.Err)
}

func (e *PortTakenError) Unwrap() error { return e.Err }

// Hint says how to find the other program.
func (e *PortTakenError) Hint() string {
	return fmt.Sprintf("another program holds port %d, which is kept for one of your clusters: stop it (`ss -ltnp 'sport = %d'` or `lsof -iTCP:%d -sTCP:LISTEN` names it), then run `zt-daemon down` and `zt-daemon up`",
		e.Port, e.Port, e.Port)
}

// ListenLoopback opens 127.0.0.1:port. Port 0 chooses one at random that is
// free now, is in no system's ephemeral range, and for which kept reports
// false; the caller keeps it in its settings. A port that is taken is a
// *PortTakenError: it is in kubeconfigs, so no other is chosen in its place.
func ListenLoopback(ctx context.Context, port uint16, kept func(uint16) bool) (net.Listener, error) {
	var lc net.ListenConfig
	listen := func(p uint16) (net.Listener, error) {
		return lc.Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(p))))
	}
	if port != 0 {
		ln, err := listen(port)
		if err != nil {
			return nil, &PortTakenError{Port: port, Err: err}
		}
		return ln, nil
	}
	last := errors.New("all that were tried are kept for other clusters")
	for range 64 {
		p := uint16(firstPort + rand.IntN(lastPort-firstPort+1))
		if kept != nil && kept(p) {
			continue
		}
		ln, err := listen(p)
		if err == nil {
			return ln, nil
		}
		last = err
	}
	return nil, fmt.Errorf("choose a port of 127.0.0.1 between %d and %d: %w", firstPort, lastPort, last)
}

// ListenerPort is the TCP port of ln; 0 if it is not a TCP listener.
func ListenerPort(ln net.Listener) uint16 {
	a, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		return 0
	}
	return a.AddrPort().Port()
}

// Run serves ln, which it closes, until ctx is done; then it cuts every flow
// and returns when all of them have ended. Use it once.
func (l *Listener) Run(ctx context.Context, ln net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		err := ln.Close() // unblocks Accept
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		return err
	})
	g.Go(func() error { return l.accept(ctx, ln, g) })
	return g.Wait()
}

func (l *Listener) accept(ctx context.Context, ln net.Listener, g *errgroup.Group) error {
	var wait time.Duration
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept connections for %s: %w", l.cfg.Cluster, err)
			}
			// Out of descriptors, or a connection that went while it waited: the
			// listener itself is well.
			if wait = min(max(2*wait, 5*time.Millisecond), acceptRetryMax); wait == acceptRetryMax {
				l.cfg.Log.Warn("connections are not accepted", "cluster", l.cfg.Cluster, "err", err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			continue
		}
		wait = 0
		select {
		case l.slot <- struct{}{}:
		default:
			l.refuse(c, ListenerTooManyFlows, fmt.Errorf("%d connections to %s are open already", l.cfg.MaxFlows, l.cfg.Cluster))
			continue
		}
		g.Go(func() error { // one connection's fault is not the listener's
			defer func() { <-l.slot }()
			l.serve(ctx, c)
			return nil
		})
	}
}

func (l *Listener) serve(ctx context.Context, c net.Conn) {
	if err := l.cfg.Guard(c); err != nil {
		reason := string(GuardNoAnswer)
		if g, ok := errors.AsType[*GuardError](err); ok {
			reason = string(g.Reason)
		}
		l.refuse(c, reason, err)
		return
	}
	ctx, cut := context.WithCancel(ctx)
	defer cut()
	f := &localFlow{local: c, since: time.Now(), cut: cut}
	l.add(f)
	defer l.remove(f)
	aborted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(aborted)
		f.abort()
	})
	defer func() {
		if !stop() {
			<-aborted
		}
	}()

	var first opening
	if l.cfg.Target != nil {
		var err error
		if first, err = readOpening(c, l.cfg.Target()); err != nil {
			if refusal := (*proxyRefusal)(nil); errors.As(err, &refusal) && answerProxy(c, err) == nil {
				l.count(c, ListenerProxyRefused, err)
				finish(c)
			}
			resetConn(c) // it ended before it said anything
			return
		}
	}
	dialCtx, cancel := context.WithTimeout(ctx, l.cfg.DialTimeout)
	o, err := l.cfg.Dial(dialCtx)
	cancel()
	switch {
	case err == nil && first.proxy && answerProxy(c, nil) != nil:
		o.Reset()
		resetConn(c)
	case err == nil:
		f.early = first.rest
		f.splice(o)
	case ctx.Err() != nil: // cut while it was dialled
		resetConn(c)
	case first.proxy && answerProxy(c, err) == nil:
		l.count(c, ListenerUnreachable, err)
		finish(c)
	default:
		l.refuse(c, ListenerUnreachable, err)
	}
}

// refuse resets c, so that the program behind it fails at once.
func (l *Listener) refuse(c net.Conn, reason string, err error) {
	resetConn(c)
	l.count(c, reason, err)
}

// count notes that c was not carried.
func (l *Listener) count(c net.Conn, reason string, err error) {
	remote := c.RemoteAddr()
	l.mu.Lock()
	l.stats.Refused[reason]++
	n := l.stats.Refused[reason]
	l.stats.LastRefusal = err.Error()
	l.mu.Unlock()
	if n&(n-1) == 0 { // the 1st, 2nd, 4th, 8th …: a flood does not fill the log
		l.cfg.Log.Warn("connection refused", "cluster", l.cfg.Cluster, "endpoint", remote, "reason", reason, "count", n, "err", err)
	}
}

// CutAll resets every open flow and returns how many there were. The listener
// goes on accepting.
func (l *Listener) CutAll() int {
	l.mu.Lock()
	cut := make([]*localFlow, 0, len(l.flows))
	for f := range l.flows {
		cut = append(cut, f)
	}
	l.mu.Unlock()
	for _, f := range cut {
		f.cut()
	}
	return len(cut)
}

// Flows returns the open connections in no order.
func (l *Listener) Flows() []LocalFlow {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]LocalFlow, 0, len(l.flows))
	for f := range l.flows {
		all = append(all, f.describe())
	}
	return all
}

// Stats returns the counters.
func (l *Listener) Stats() ListenerStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Open = len(l.flows)
	s.Refused = make(map[string]uint64, len(l.stats.Refused))
	for reason, n := range l.stats.Refused {
		s.Refused[reason] = n
	}
	for f := range l.flows {
		d := f.describe()
		s.BytesSent += d.BytesSent
		s.BytesReceived += d.BytesReceived
	}
	return s
}

func (l *Listener) add(f *localFlow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flows[f] = struct{}{}
	l.stats.Accepted++
}

func (l *Listener) remove(f *localFlow) {
	d := f.describe()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.flows, f)
	l.stats.BytesSent += d.BytesSent
	l.stats.BytesReceived += d.BytesReceived
}
