package daemon

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	proxyRequestMaxBytes = 16 << 10
	proxyRequestTimeout  = 5 * time.Second // for the whole of it
	proxyRequestEnd      = "\r\n\r\n"
)

// opening is what a connection to a listener begins with: TLS, or the request of
// a client that takes the listener for its HTTP proxy.
type opening struct {
	proxy bool   // an answer is due before anything else
	rest  []byte // what was read and is the API server's
}

// proxyRefusal is the answer to a request that is not served.
type proxyRefusal struct {
	status int
	text   string // one line; clients show it
}

func (e *proxyRefusal) Error() string { return e.text }

// readOpening reads what c begins with. As a proxy a listener serves one target,
// "name:443", and nothing else; a connection that says nothing within
// proxyRequestTimeout, or something that is no proxy request, is passed on as it is.
func readOpening(c net.Conn, target string) (opening, error) {
	c.SetReadDeadline(time.Now().Add(proxyRequestTimeout))
	defer c.SetReadDeadline(time.Time{})
	buf := make([]byte, 0, 2048)
	for {
		n, err := c.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if len(buf) > 0 && buf[0] != http.MethodConnect[0] || len(buf) == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
			return opening{rest: buf}, nil
		}
		if end := bytes.Index(buf, []byte(proxyRequestEnd)); end >= 0 {
			end += len(proxyRequestEnd)
			return opening{proxy: true, rest: buf[end:]}, checkProxyRequest(buf[:end], target)
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return opening{proxy: true}, &proxyRefusal{http.StatusRequestTimeout, fmt.Sprintf("no whole request came within %v", proxyRequestTimeout)}
		case err != nil:
			return opening{}, err
		case len(buf) == proxyRequestMaxBytes:
			return opening{proxy: true}, &proxyRefusal{http.StatusRequestHeaderFieldsTooLarge, "the request is too long"}
		case len(buf) == cap(buf):
			grown := make([]byte, len(buf), min(2*cap(buf), proxyRequestMaxBytes))
			copy(grown, buf)
			buf = grown
		}
	}
}

// checkProxyRequest accepts a CONNECT to target. The header's fields say nothing
// that counts here.
func checkProxyRequest(header []byte, target string) error {
	req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(header)))
	if err != nil {
		return &proxyRefusal{http.StatusBadRequest, "this is no HTTP request"}
	}
	if req.Method != http.MethodConnect || !strings.EqualFold(req.RequestURI, target) {
		return &proxyRefusal{http.StatusForbidden, "this proxy leads to " + target + " and nowhere else"}
	}
	return nil
}

// answerProxy answers a request: with nil, that bytes follow. Clients show the
// status line to the person, so the reason stands there.
func answerProxy(c io.Writer, err error) error {
	answer := "HTTP/1.1 200 Connection established\r\n\r\n"
	if err != nil {
		status := http.StatusServiceUnavailable
		if refusal, ok := errors.AsType[*proxyRefusal](err); ok {
			status = refusal.status
		}
		text := statusText(err)
		answer = fmt.Sprintf("HTTP/1.1 %d zt-daemon: %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n",
			status, text, len(text)+1, text)
	}
	_, err = io.WriteString(c, answer)
	return err
}

// statusText is an error's words, and what to do, as one line of printable ASCII.
func statusText(err error) string {
	local := AsLocalError(err)
	text := local.Error()
	if hint := local.Hint(); hint != "" {
		text += "; " + hint
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text[:min(len(text), 1024)])
}

// finish sends what was answered before the connection is closed: a reset, which
// unread bytes would cause, could overtake it.
func finish(c net.Conn) {
	if h, ok := c.(halfCloser); ok && h.CloseWrite() == nil {
		c.SetReadDeadline(time.Now().Add(time.Second))
		io.Copy(io.Discard, io.LimitReader(c, proxyRequestMaxBytes))
	}
	c.Close()
}
