package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/coder/websocket"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/relay/wire"
)

const (
	linkBuffer = 512 // bytes, of the WebSocket each way: most messages are smaller
	keptBuffer = 512 // bytes of a link's own that it keeps between messages
)

// A link carries control messages: a WebSocket with a Noise session inside. One
// goroutine may send while another receives. It bounds its waits by deadlines of
// the connection: contexts would cost each of many idle sessions a timer and
// what hangs on it.
type link struct {
	c      *websocket.Conn
	conn   net.Conn // below c
	cipher *wire.Cipher
	out    []byte // of send, used again
	sealed []byte
	in     []byte // of receive, used again
}

// accept makes a WebSocket of a request, with small buffers. The handler may
// return: nothing of the HTTP server is used afterwards.
func accept(w http.ResponseWriter, r *http.Request) (*link, error) {
	h := &hijacker{ResponseWriter: w}
	c, err := websocket.Accept(h, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return nil, err
	}
	c.SetReadLimit(wire.MaxMessage)
	return &link{c: c, conn: h.conn}, nil
}

// A hijacker gives a WebSocket smaller buffers than the HTTP server's, which are
// 4 KiB each way.
type hijacker struct {
	http.ResponseWriter
	conn net.Conn
}

// Hijack is http.Hijacker's.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.conn = conn
	r := bufio.NewReaderSize(conn, linkBuffer)
	if n := rw.Reader.Buffered(); n > 0 { // sent before our answer: it must lie in r's buffer
		early, _ := rw.Reader.Peek(n)
		r = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(early), conn), max(n, linkBuffer))
		if _, err := r.Peek(n); err != nil {
			conn.Close()
			return nil, nil, err
		}
	}
	return conn, bufio.NewReadWriter(r, bufio.NewWriterSize(conn, linkBuffer)), nil
}

// send writes one message and waits no longer than writeTimeout.
func (l *link) send(number uint32, m wire.Message) error {
	var err error
	l.out = wire.Append(l.out[:0], number, m)
	if l.sealed, err = l.cipher.Seal(l.sealed[:0], l.out); err != nil {
		return err
	}
	return l.write(l.sealed)
}

// write writes one WebSocket message.
func (l *link) write(b []byte) error {
	l.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	return l.c.Write(context.Background(), websocket.MessageBinary, b)
}

// trim gives up the sender's buffers if they have grown.
func (l *link) trim() {
	if cap(l.sealed) > keptBuffer {
		l.out, l.sealed = nil, nil
	}
}

// receive reads the next message that this version knows. What it returns
// aliases the link's buffer until the next call.
func (l *link) receive(timeout time.Duration) (uint32, wire.Message, error) {
	if cap(l.in) > keptBuffer {
		l.in = nil
	}
	l.conn.SetReadDeadline(time.Now().Add(timeout))
	for {
		sealed, err := l.read()
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

// read reads one WebSocket message, until the connection's deadline.
func (l *link) read() ([]byte, error) {
	typ, b, err := l.c.Read(context.Background())
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
