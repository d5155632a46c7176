package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

// An AdminSession is an administrator's connection to a relay: to claim it, and
// to put and fetch signed documents. It is used once, by one command.
type AdminSession struct {
	dialer  *dialer
	control *control
	cancel  context.CancelFunc
	reader  sync.WaitGroup
}

// DialAdmin opens an administrator's session, within ten seconds. With the zero
// network id it can only Claim. ctx ends the attempt, not the session.
func DialAdmin(ctx context.Context, relay auth.Relay, network auth.NetworkID, cfg HTTPConfig) (*AdminSession, error) {
	d, err := newDialer(relay, network, key.NewWireGuard(), cfg) // the key names nobody
	if err != nil {
		return nil, err
	}
	attempt, end := context.WithTimeout(ctx, attemptTimeout)
	defer end()
	c, err := d.dial(attempt, ctx)
	if err != nil {
		d.close()
		return nil, err
	}
	read, cancel := context.WithCancel(context.WithoutCancel(ctx))
	a := &AdminSession{dialer: d, control: c, cancel: cancel}
	a.reader.Go(func() {
		_ = c.read(read, func(_ uint32, m wire.Message) error { // who waits is told why it ended
			switch m := m.(type) {
			case *wire.OK:
				c.answers(m.Re, m)
			case *wire.Refused:
				c.answers(m.Re, m)
			case *wire.DocumentsEnd:
				c.answers(m.Re, m)
			case *wire.Pong, *wire.DocumentsChanged:
			default:
				return fmt.Errorf("relay sent a message %T out of turn", m)
			}
			return nil
		})
		c.ws.CloseNow()
	})
	return a, nil
}

// Close ends the session. It may be called twice.
func (a *AdminSession) Close() error {
	a.cancel()
	a.control.ws.CloseNow()
	a.reader.Wait()
	a.dialer.close()
	return nil
}

// Claim gives a new relay its first head, by the code that it printed. Whether
// code names the relay's key is the caller's to check before DialAdmin.
func (a *AdminSession) Claim(ctx context.Context, code string, head []byte) error {
	if !a.dialer.network.IsZero() {
		return errors.New("claim relay: the session is of a network already")
	}
	return a.done(ctx, "claim relay", &wire.Claim{Code: code, Head: head})
}

// ProveNetwork proves that this session holds the network key.
func (a *AdminSession) ProveNetwork(ctx context.Context, k key.NetworkPrivate) error {
	return a.prove(ctx, k.Public().Bytes(), k.Sign)
}

// ProveSigner proves that this session holds the key of one of the head's signers.
func (a *AdminSession) ProveSigner(ctx context.Context, k key.SignerPrivate) error {
	return a.prove(ctx, k.Public().Bytes(), k.Sign)
}

func (a *AdminSession) prove(ctx context.Context, public []byte, sign func([]byte) [key.SignatureSize]byte) error {
	m := &wire.AdminProof{Signature: sign(wire.AdminProofMessage(a.dialer.network, a.control.cipher.HandshakeHash()))}
	copy(m.Key[:], public)
	return a.done(ctx, "prove the administrator's key", m)
}

// Put has the relay store a signed document and serve it from now on.
func (a *AdminSession) Put(ctx context.Context, kind wire.DocumentKind, raw []byte) error {
	if len(raw) > wire.MaxDocument {
		return fmt.Errorf("store document: %d bytes, at most %d fit", len(raw), wire.MaxDocument)
	}
	return a.done(ctx, "store document", &wire.PutDocument{Kind: kind, Raw: raw})
}

// Documents fetches the head and all records, as signed.
func (a *AdminSession) Documents(ctx context.Context) (head []byte, records [][]byte, err error) {
	return a.control.documents(ctx)
}

func (a *AdminSession) done(ctx context.Context, what string, m wire.Message) error {
	answer, err := a.control.request(ctx, m)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if _, ok := answer.(*wire.OK); !ok {
		return fmt.Errorf("%s: relay answered with %T", what, answer)
	}
	return nil
}
