//go:build linux

package swarm

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

const (
	attemptTimeout = 20 * time.Second // of everything until the relay's welcome
	writeTimeout   = 10 * time.Second
	readBuffer     = 512 // bytes; most messages are smaller
)

// WebSocket frames (RFC 6455 §5.2), as far as a session has them.
const (
	frameBinary = 0x82 // the first byte: final, binary
	framePing   = 0x89
	framePong   = 0x8a
	frameClose  = 0x88
	frameMask   = 0x80 // of the second byte
)

// A dial is a TCP connection to be opened inside the swarm's namespace.
type dial struct {
	ctx  context.Context
	from netip.Addr
	done chan<- dialed
}

type dialed struct {
	conn net.Conn
	err  error
}

// dialer opens connections until the swarm ends. It runs in the namespace.
func (s *Swarm) dialer(to string) error {
	for {
		select {
		case <-s.ctx.Done():
			return nil
		case d := <-s.dials:
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: d.from.AsSlice()}}
			c, err := dialer.DialContext(d.ctx, "tcp4", to)
			d.done <- dialed{c, err}
		}
	}
}

// A link is a control connection: TLS, a WebSocket in it, and Noise in that. It
// is written by hand because it must be cheap: one goroutine, small buffers.
type link struct {
	conn    *tls.Conn
	r       *bufio.Reader
	cipher  *wire.Cipher
	welcome *wire.Welcome
	in      []byte // of receive, used again

	mu     sync.Mutex // guards what follows, and the order of writes
	number uint32
	plain  []byte
	sealed []byte
	frame  []byte
}

// connect opens a link as the holder of static.
func (s *Swarm) connect(ctx context.Context, from netip.Addr, static key.WireGuardPrivate, id auth.NetworkID) (_ *link, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	done := make(chan dialed, 1)
	select {
	case s.dials <- dial{ctx, from, done}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	d := <-done
	if d.err != nil {
		return nil, d.err
	}
	l := &link{conn: tls.Client(d.conn, s.network.tls)}
	defer func() {
		if err != nil {
			d.conn.Close()
		}
	}()
	deadline, _ := ctx.Deadline()
	d.conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { d.conn.Close() })
	defer stop()
	if err := l.conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	if err := l.upgrade(s.relay.URL); err != nil {
		return nil, err
	}
	if err := l.handshake(static, s.network.relayKey, id); err != nil {
		return nil, err
	}
	d.conn.SetDeadline(time.Time{})
	return l, nil
}

// upgrade makes a WebSocket of the connection (RFC 6455 §4.1).
func (l *link) upgrade(relay string) error {
	u, err := url.Parse(relay)
	if err != nil {
		return err
	}
	var nonce [16]byte
	rand.Read(nonce[:])
	_, err = fmt.Fprintf(l.conn, "GET /v1/session HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", u.Host, base64.StdEncoding.EncodeToString(nonce[:]))
	if err != nil {
		return err
	}
	l.r = bufio.NewReaderSize(l.conn, readBuffer)
	resp, err := http.ReadResponse(l.r, nil)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("upgrade: %s", resp.Status)
	}
	return nil
}

func (l *link) handshake(static key.WireGuardPrivate, relay key.RelayPublic, id auth.NetworkID) error {
	initiator, first, err := wire.NewInitiator(static, relay, id)
	if err != nil {
		return err
	}
	if err := l.writeFrame(frameBinary, first); err != nil {
		return err
	}
	second, err := l.readFrame()
	if err != nil {
		return err
	}
	if l.cipher, err = initiator.Finish(second); err != nil {
		return err
	}
	_, m, err := l.receive()
	if err != nil {
		return err
	}
	var ok bool
	if l.welcome, ok = m.(*wire.Welcome); !ok {
		return fmt.Errorf("the relay began with %T", m)
	}
	_, err = l.send(&wire.Hello{Version: wire.Version})
	return err
}

// send writes one message.
func (l *link) send(m wire.Message) (number uint32, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.number++
	l.plain = wire.Append(l.plain[:0], l.number, m)
	if l.sealed, err = l.cipher.Seal(l.sealed[:0], l.plain); err != nil {
		return 0, err
	}
	l.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	return l.number, l.writeFrame(frameBinary, l.sealed)
}

// receive reads one message. What it returns is valid until the next call.
func (l *link) receive() (uint32, wire.Message, error) {
	for {
		sealed, err := l.readFrame()
		if err != nil {
			return 0, nil, err
		}
		plain, err := l.cipher.Open(nil, sealed)
		if err != nil {
			return 0, nil, err
		}
		number, m, err := wire.Parse(plain)
		if errors.Is(err, wire.ErrSkip) {
			continue
		}
		return number, m, err
	}
}

// writeFrame writes one masked frame. The mask is zero: TLS is below.
func (l *link) writeFrame(first byte, payload []byte) error {
	b := append(l.frame[:0], first)
	switch n := len(payload); {
	case n < 126:
		b = append(b, frameMask|byte(n))
	case n <= wire.MaxMessage:
		b = binary.BigEndian.AppendUint16(append(b, frameMask|126), uint16(n))
	default:
		return fmt.Errorf("a frame of %d bytes", n)
	}
	b = append(b, 0, 0, 0, 0)
	l.frame = append(b, payload...)
	_, err := l.conn.Write(l.frame)
	return err
}

// readFrame reads a binary message, which a relay sends in one frame. It is
// valid until the next call.
func (l *link) readFrame() ([]byte, error) {
	for {
		head, err := l.r.Peek(2)
		if err != nil {
			return nil, err
		}
		first, n := head[0], int(head[1])
		l.r.Discard(2)
		switch n {
		case 126:
			size, err := l.r.Peek(2)
			if err != nil {
				return nil, err
			}
			n = int(binary.BigEndian.Uint16(size))
			l.r.Discard(2)
		default:
			if n > 126 { // 127: longer than any message; above: masked
				return nil, fmt.Errorf("a frame whose length begins with %d", n)
			}
		}
		l.in = slices.Grow(l.in[:0], n)[:n]
		if _, err := io.ReadFull(l.r, l.in); err != nil {
			return nil, err
		}
		switch first {
		case frameBinary:
			return l.in, nil
		case framePing:
			l.mu.Lock()
			err := l.writeFrame(framePong, l.in)
			l.mu.Unlock()
			if err != nil {
				return nil, err
			}
		case framePong:
		case frameClose:
			return nil, io.EOF
		default:
			return nil, fmt.Errorf("a frame that begins with %#x", first)
		}
	}
}

// close ends the connection without a word, as a laptop does.
func (l *link) close() { l.conn.NetConn().Close() }

// clientTLS believes a relay by the pin of its certificate, and resumes.
func clientTLS(pin string) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection does it
		ServerName:         "relay",
		NextProtos:         []string{"http/1.1"},
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
		VerifyConnection: func(c tls.ConnectionState) error {
			sum := sha256.Sum256(c.PeerCertificates[0].RawSubjectPublicKeyInfo)
			if got := base64.StdEncoding.EncodeToString(sum[:]); got != pin {
				return fmt.Errorf("the certificate's pin is %s, want %s", got, pin)
			}
			return nil
		},
	}
}
