package relay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coder/websocket"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/relay/wire"
)

// A link carries control messages: a WebSocket with a Noise session inside. One
// goroutine may send while another receives.
type link struct {
	c      *websocket.Conn
	cipher *wire.Cipher
	out    []byte // of send, used again
	sealed []byte
	in     []byte // of receive, used again
}

// send writes one message and waits no longer than writeTimeout.
func (l *link) send(ctx context.Context, number uint32, m wire.Message) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var err error
	l.out = wire.Append(l.out[:0], number, m)
	if l.sealed, err = l.cipher.Seal(l.sealed[:0], l.out); err != nil {
		return err
	}
	return l.c.Write(ctx, websocket.MessageBinary, l.sealed)
}

// receive reads the next message that this version knows. What it returns
// aliases the link's buffer until the next call.
func (l *link) receive(ctx context.Context, timeout time.Duration) (uint32, wire.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		sealed, err := readBinary(ctx, l.c)
		if err != nil {
			return 0, nil, err
		}
		if l.in, err = l.cipher.Open(l.in[:0], sealed); err != nil {
			return 0, nil, err
		}
		number, m, err := wire.Parse(l.in)
		if errors.Is(err, wire.ErrSkip) {
			continue
		}
		if err != nil {
			return 0, nil, &auth.RefusedError{Reason: wire.ReasonMalformed, Detail: err.Error()}
		}
		return number, m, nil
	}
}

func readBinary(ctx context.Context, c *websocket.Conn) ([]byte, error) {
	typ, b, err := c.Read(ctx)
	if err == nil && typ != websocket.MessageBinary {
		err = fmt.Errorf("a WebSocket message of type %s, want binary", typ)
	}
	return b, err
}

// asRefused gives err the form that a participant is told; nil stays nil.
func asRefused(err error) *auth.RefusedError {
	if err == nil {
		return nil
	}
	if r, ok := errors.AsType[*auth.RefusedError](err); ok {
		return r
	}
	return &auth.RefusedError{Reason: auth.ReasonInternal, Detail: err.Error()}
}
