package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

const (
	maxDocuments     = 20000    // documents of one answer
	maxDocumentBytes = 64 << 20 // and their length together
	maxNodes         = 20000    // nodes of one answer
)

// A dialer opens control connections to one relay.
type dialer struct {
	relay   auth.Relay
	url     string // of the session's WebSocket
	udp     string // host:port, unless the relay names another
	network auth.NetworkID
	static  key.WireGuardPrivate
	http    *http.Client
}

func newDialer(relay auth.Relay, network auth.NetworkID, static key.WireGuardPrivate, cfg HTTPConfig) (*dialer, error) {
	u, err := relayURL(relay.URL)
	if err != nil {
		return nil, err
	}
	if relay.Key.IsZero() {
		return nil, fmt.Errorf("relay %s: no relay key is known", relay.URL)
	}
	if static.IsZero() {
		return nil, errors.New("no WireGuard key")
	}
	return &dialer{
		relay: relay, url: u.String() + "/v1/session", udp: hostPort(u), network: network, static: static,
		http: &http.Client{
			Transport: cfg.transport(cfg.verifyRelay(relay.URL, relay.Pins)),
			CheckRedirect: func(*http.Request, []*http.Request) error {
				return http.ErrUseLastResponse
			},
		},
	}, nil
}

func (d *dialer) close() { d.http.CloseIdleConnections() }

// dial opens a connection and shakes hands. Each of the relay's keys, current and
// next, is tried. It ends with attempt; caller is only asked whether it ended itself.
func (d *dialer) dial(attempt, caller context.Context) (*control, error) {
	c, err := d.dialKey(attempt, caller, d.relay.Key)
	if errors.Is(err, wire.ErrHandshake) && !d.relay.NextKey.IsZero() {
		c, err = d.dialKey(attempt, caller, d.relay.NextKey)
	}
	if errors.Is(err, wire.ErrHandshake) {
		return nil, &RelayKeyError{Relay: d.relay.URL, Want: d.relay.Key, Next: d.relay.NextKey, Network: d.network}
	}
	return c, err
}

func (d *dialer) dialKey(attempt, caller context.Context, relay key.RelayPublic) (*control, error) {
	c := &control{relay: d.relay.URL, waiting: map[uint32]*waiter{}, done: make(chan struct{})}
	traced := httptrace.WithClientTrace(attempt, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if a, ok := info.Conn.RemoteAddr().(*net.TCPAddr); ok {
			c.remote = a.AddrPort().Addr().Unmap()
		}
	}})
	ws, resp, err := websocket.Dial(traced, d.url, &websocket.DialOptions{HTTPClient: d.http})
	if err != nil {
		if resp != nil && resp.StatusCode != http.StatusSwitchingProtocols && resp.Body != nil {
			return nil, statusError(d.relay.URL, resp)
		}
		return nil, dialError(caller, d.relay.URL, err)
	}
	c.ws = ws
	ws.SetReadLimit(wire.MaxMessage)
	if err := c.handshake(attempt, d.static, relay, d.network); err != nil {
		ws.CloseNow()
		if errors.Is(err, wire.ErrHandshake) || isRefused(err) {
			return nil, err
		}
		return nil, dialError(caller, d.relay.URL, err)
	}
	return c, nil
}

func isRefused(err error) bool {
	_, ok := errors.AsType[*RefusedError](err)
	return ok
}

// A control is one control connection, after its handshake: numbered messages
// each way, and answers that find their requests.
type control struct {
	relay   string // URL, for errors
	ws      *websocket.Conn
	cipher  *wire.Cipher
	welcome wire.Welcome
	remote  netip.Addr // where the TCP connection ends: the relay or a proxy
	heard   atomic.Int64
	began   time.Time // what heard counts from, in nanoseconds

	sendMu sync.Mutex // guards cipher's sending half, number and the buffers
	number uint32
	plain  []byte
	sealed []byte

	mu      sync.Mutex // guards waiting and err
	waiting map[uint32]*waiter
	err     error // why it ended; set before done is closed
	done    chan struct{}
}

// A waiter is a request whose answer is to come.
type waiter struct {
	answer chan wire.Message // takes one
	docs   []*wire.Document
	nodes  []*wire.ClusterNode
	bytes  int
}

func (c *control) handshake(ctx context.Context, static key.WireGuardPrivate, relay key.RelayPublic, network auth.NetworkID) error {
	initiator, first, err := wire.NewInitiator(static, relay, network)
	if err != nil {
		return err
	}
	if err := c.ws.Write(ctx, websocket.MessageBinary, first); err != nil {
		return err
	}
	_, second, err := c.ws.Read(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		// A relay that cannot read the first message says nothing and closes.
		return fmt.Errorf("%w: %v", wire.ErrHandshake, err)
	}
	if c.cipher, err = initiator.Finish(second); err != nil {
		return err
	}
	c.began = time.Now()
	_, m, err := c.receive(ctx)
	if err != nil {
		return err
	}
	switch m := m.(type) {
	case *wire.Welcome:
		c.welcome = *m
	case *wire.Refused:
		return refusedBy(c.relay, m)
	default:
		return fmt.Errorf("relay began with a message %T", m)
	}
	if c.welcome.Version != wire.Version {
		return &RefusedError{Relay: c.relay, Reason: wire.ReasonVersion,
			Detail: fmt.Sprintf("relay speaks version %d, this program %d", c.welcome.Version, wire.Version)}
	}
	_, err = c.send(ctx, &wire.Hello{Version: wire.Version, Features: wire.FeatureNodeStatus}, nil)
	return err
}

// send sends m and returns its number. w, if any, is told the answer; it is
// registered before the message leaves.
//
// ctx is only asked before: a message that is sealed must be sent whole, or the
// other end opens nothing any more. So the write has a time limit of its own, and
// a write that fails ends the connection.
func (c *control) send(ctx context.Context, m wire.Message, w *waiter) (uint32, error) {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	write, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	c.number++
	if c.number == 0 { // Re 0 is the session
		c.number++
	}
	c.plain = wire.Append(c.plain[:0], c.number, m)
	if len(c.plain) > wire.MaxPlaintext {
		return 0, fmt.Errorf("message %T of %d bytes, at most %d fit", m, len(c.plain), wire.MaxPlaintext)
	}
	if w != nil {
		c.mu.Lock()
		c.waiting[c.number] = w
		c.mu.Unlock()
	}
	var err error
	if c.sealed, err = c.cipher.Seal(c.sealed[:0], c.plain); err != nil {
		c.ws.CloseNow()
		return c.number, err
	}
	if err := c.ws.Write(write, websocket.MessageBinary, c.sealed); err != nil {
		c.ws.CloseNow()
		return c.number, err
	}
	return c.number, nil
}

// receive reads one message; the message's bytes are the caller's.
func (c *control) receive(ctx context.Context) (uint32, wire.Message, error) {
	for {
		_, sealed, err := c.ws.Read(ctx)
		if err != nil {
			return 0, nil, err
		}
		plain, err := c.cipher.Open(nil, sealed)
		if err != nil {
			return 0, nil, err
		}
		c.heard.Store(int64(time.Since(c.began)))
		number, m, err := wire.Parse(plain)
		if errors.Is(err, wire.ErrSkip) {
			continue
		}
		return number, m, err
	}
}

// lastHeard is when the relay was last heard.
func (c *control) lastHeard() time.Time { return c.began.Add(time.Duration(c.heard.Load())) }

// request sends m and waits for the message that answers it. A refusal is a
// *RefusedError; a connection that ends, or an answer that does not come within
// answerTimeout, an *UnreachableError.
func (c *control) request(ctx context.Context, m wire.Message) (wire.Message, error) {
	answer, _, err := c.ask(ctx, m)
	return answer, err
}

func (c *control) ask(ctx context.Context, m wire.Message) (wire.Message, *waiter, error) {
	timeout := time.NewTimer(answerTimeout)
	defer timeout.Stop()
	w := &waiter{answer: make(chan wire.Message, 1)}
	number, err := c.send(ctx, m, w)
	defer func() {
		c.mu.Lock()
		delete(c.waiting, number)
		c.mu.Unlock()
	}()
	if err != nil {
		return nil, w, dialError(ctx, c.relay, err)
	}
	var answer wire.Message
	select {
	case answer = <-w.answer:
	case <-ctx.Done():
		return nil, w, context.Cause(ctx)
	case <-timeout.C:
		return nil, w, &UnreachableError{Relay: c.relay, Err: fmt.Errorf("no answer to %T within %v", m, answerTimeout)}
	case <-c.done:
		select {
		case answer = <-w.answer: // it came before the end
		default:
			return nil, w, c.ended()
		}
	}
	if refused, ok := answer.(*wire.Refused); ok {
		return nil, w, refusedBy(c.relay, refused)
	}
	return answer, w, nil
}

// documents asks for the signed documents that this session may see.
func (c *control) documents(ctx context.Context) (head []byte, records [][]byte, err error) {
	answer, w, err := c.ask(ctx, &wire.DocumentsRequest{})
	if err != nil {
		return nil, nil, fmt.Errorf("fetch documents: %w", err)
	}
	if _, ok := answer.(*wire.DocumentsEnd); !ok {
		return nil, nil, fmt.Errorf("fetch documents: relay answered with %T", answer)
	}
	for _, d := range w.docs {
		switch d.Kind {
		case wire.DocumentHead:
			head = d.Raw
		case wire.DocumentRecord:
			records = append(records, d.Raw)
		}
	}
	return head, records, nil
}

// read receives until the connection ends, hands answers to who waits for them
// and the rest to other, and says why it ended. Only one goroutine may read.
func (c *control) read(ctx context.Context, other func(number uint32, m wire.Message) error) error {
	err := c.readAll(ctx, other)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	close(c.done)
	return err
}

func (c *control) readAll(ctx context.Context, other func(number uint32, m wire.Message) error) error {
	for {
		number, m, err := c.receive(ctx)
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *wire.Ping:
			if _, err := c.send(ctx, &wire.Pong{Re: number}, nil); err != nil {
				return err
			}
			continue
		case *wire.Document:
			if err := c.collect(m); err != nil {
				return err
			}
			continue
		case *wire.ClusterNode:
			if err := c.collectNode(m); err != nil {
				return err
			}
			continue
		case *wire.Refused:
			if m.Re == 0 { // the session as a whole
				return refusedBy(c.relay, m)
			}
		}
		if err := other(number, m); err != nil {
			return err
		}
	}
}

// answers delivers m to the request that it names; false if none waits.
func (c *control) answers(re uint32, m wire.Message) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waiting[re]
	if w == nil {
		return false
	}
	delete(c.waiting, re)
	w.answer <- m // has room: this is the only answer
	return true
}

func (c *control) collect(d *wire.Document) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waiting[d.Re]
	if w == nil {
		return nil // nobody waits any more
	}
	w.bytes += len(d.Raw)
	if len(w.docs) == maxDocuments || w.bytes > maxDocumentBytes {
		return fmt.Errorf("relay sent more than %d documents or %d bytes of them", maxDocuments, maxDocumentBytes)
	}
	w.docs = append(w.docs, d)
	return nil
}

func (c *control) collectNode(n *wire.ClusterNode) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waiting[n.Re]
	if w == nil {
		return nil // nobody waits any more
	}
	if len(w.nodes) == maxNodes {
		return fmt.Errorf("relay told of more than %d nodes", maxNodes)
	}
	w.nodes = append(w.nodes, n)
	return nil
}

// knows reports whether the relay knows the messages of a feature.
func (c *control) knows(feature uint64) bool { return c.welcome.Features&feature != 0 }

// ended is why the connection is over, for those who waited for it.
func (c *control) ended() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if isRefused(c.err) {
		return c.err
	}
	return &UnreachableError{Relay: c.relay, Err: fmt.Errorf("connection lost: %w", c.err)}
}
