package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const testTarget = "kubernetes.example:443"

// proxyListener is a listener that is a proxy before upstream.
func proxyListener(t *testing.T, dial func(context.Context) (OverlayConn, error)) (l *Listener, addr string) {
	t.Helper()
	l, addr, _ = runListener(t, ListenerConfig{Dial: dial, Target: func() string { return testTarget }})
	return l, addr
}

// TestProxyOfAPIServer uses the port both ways, with the client that kubectl is.
func TestProxyOfAPIServer(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	}))
	t.Cleanup(server.Close)
	_, addr := proxyListener(t, func(ctx context.Context) (OverlayConn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
		if err != nil {
			return nil, err
		}
		return tcpOverlay{c.(*net.TCPConn)}, nil
	})
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	proxy := &url.URL{Scheme: "http", Host: addr}
	for name, c := range map[string]struct {
		transport *http.Transport
		url, want string
	}{
		"listener": {&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"}}, "https://" + addr, ""},
		"proxy":    {&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"}, Proxy: http.ProxyURL(proxy)}, "https://kubernetes.example", ""},
		"elsewhere": {&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, Proxy: http.ProxyURL(proxy)}, "https://example.com",
			"this proxy leads to kubernetes.example:443 and nowhere else"},
		"another port": {&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, Proxy: http.ProxyURL(proxy)}, "https://kubernetes.example:6443",
			"this proxy leads to kubernetes.example:443 and nowhere else"},
	} {
		t.Run(name, func(t *testing.T) {
			defer c.transport.CloseIdleConnections()
			body := strings.Repeat("x", 1<<20)
			resp, err := (&http.Client{Transport: c.transport, Timeout: 10 * time.Second}).Post(c.url, "text/plain", strings.NewReader(body))
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if got, err := io.ReadAll(resp.Body); err != nil || string(got) != body {
				t.Errorf("got %d bytes back, %v; want %d", len(got), err, len(body))
			}
		})
	}
}

func TestProxyAnswers(t *testing.T) {
	u := newUpstream(t)
	down := NewLocalError(KindNotLoggedIn, "run `zt-daemon login`, then try again", "nobody is logged in")
	for name, c := range map[string]struct {
		request string
		dial    error
		want    string // how the answer begins
		far     string // what the API server gets
	}{
		"served":             {"CONNECT kubernetes.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", nil, "HTTP/1.1 200 ", ""},
		"in capitals":        {"CONNECT Kubernetes.EXAMPLE:443 HTTP/1.1\r\nHost: x\r\n\r\n", nil, "HTTP/1.1 200 ", ""},
		"with more":          {"CONNECT kubernetes.example:443 HTTP/1.1\r\nHost: x\r\n\r\n\x16more", nil, "HTTP/1.1 200 ", "\x16more"},
		"no HTTP":            {"Connect me\r\n\r\n", nil, "HTTP/1.1 400 ", ""},
		"another method":     {"COPY kubernetes.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", nil, "HTTP/1.1 403 ", ""},
		"another target":     {"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: kubernetes.example:443\r\n\r\n", nil, "HTTP/1.1 403 zt-daemon: this proxy leads to kubernetes.example:443", ""},
		"an absolute target": {"CONNECT https://kubernetes.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", nil, "HTTP/1.1 403 ", ""},
		"too long":           {"CONNECT kubernetes.example:443 HTTP/1.1\r\nX: " + strings.Repeat("y", proxyRequestMaxBytes), nil, "HTTP/1.1 431 ", ""},
		"no way there": {"CONNECT kubernetes.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", down,
			"HTTP/1.1 503 zt-daemon: nobody is logged in; run `zt-daemon login`, then try again\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, addr := proxyListener(t, func(ctx context.Context) (OverlayConn, error) {
				if c.dial != nil {
					return nil, c.dial
				}
				return u.dial(ctx)
			})
			conn := dialLoopback(t, addr)
			for i := range 2 { // in two pieces
				half := len(c.request) / 2
				if _, err := io.WriteString(conn, c.request[i*half:half+i*(len(c.request)-half)]); err != nil {
					t.Fatal(err)
				}
			}
			got := make([]byte, len(c.want))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != c.want {
				t.Fatalf("got %q, %v; want %q", got, err, c.want)
			}
			if !strings.HasPrefix(c.want, "HTTP/1.1 200 ") {
				if _, err := io.Copy(io.Discard, conn); err != nil {
					t.Errorf("the answer ended with %v", err)
				}
				return
			}
			conn.CloseWrite()
			far := <-u.conns
			if got, err := io.ReadAll(far); err != nil || string(got) != c.far {
				t.Errorf("the API server got %q, %v; want %q", got, err, c.far)
			}
			far.Close()
		})
	}
}

// TestProxyRequestInTime bounds how long a connection may take to say what it is.
func TestProxyRequestInTime(t *testing.T) {
	for name, c := range map[string]struct {
		begin string
		want  error
	}{
		"silence":        {"", nil},
		"half a request": {"CONNECT kubern", &proxyRefusal{}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				defer near.Close()
				defer far.Close()
				go io.WriteString(near, c.begin)
				began := time.Now()
				first, err := readOpening(far, testTarget)
				if took := time.Since(began); took != proxyRequestTimeout {
					t.Errorf("it took %v, want %v", took, proxyRequestTimeout)
				}
				_, refused := errors.AsType[*proxyRefusal](err)
				if refused != (c.want != nil) || first.proxy != refused || len(first.rest) != 0 {
					t.Errorf("got %+v, %v", first, err)
				}
			})
		})
	}
}

// Attacker: a program of the same person that was made to talk to the port, such
// as a browser.
func FuzzProxyRequest(f *testing.F) {
	f.Add([]byte("CONNECT kubernetes.example:443 HTTP/1.1\r\nHost: x\r\n\r\nrest"))
	f.Add([]byte("CONNECT evil:443 HTTP/1.1\r\nHost: kubernetes.example:443\r\n\r\n"))
	f.Add([]byte("\x16\x03\x01"))
	f.Add([]byte("C"))
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := net.Pipe()
		go func() {
			near.Write(b)
			near.Close()
		}()
		defer far.Close()
		first, err := readOpening(far, testTarget)
		if err != nil {
			return
		}
		if first.proxy {
			line, _, _ := bytes.Cut(b, []byte("\n"))
			if !strings.EqualFold(strings.Fields(string(line))[1], testTarget) {
				t.Errorf("%q was served", b)
			}
			if !bytes.HasSuffix(b, first.rest) && len(b) <= proxyRequestMaxBytes {
				t.Errorf("%q is passed on of %q", first.rest, b)
			}
		} else if !bytes.HasPrefix(b, first.rest) {
			t.Errorf("%q is passed on of %q", first.rest, b)
		}
	})
}
