package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

func TestProbe(t *testing.T) {
	var asked, readyAt atomic.Int32
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := asked.Add(1); r.URL.Path != "/readyz" || n < readyAt.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, "not ready\nno session with a relay\n")
			return
		}
		io.WriteString(w, "ready\nrelay: connected\x1b\n")
	}))
	defer node.Close()
	u, err := url.Parse(node.URL)
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t)
	readyAt.Store(2)
	if out := m.ok("probe", u.Hostname(), u.Port()); out != "ready\nrelay: connected\\x1b\n" || asked.Load() != 2 {
		t.Errorf("after %d questions: %q", asked.Load(), out)
	}
	readyAt.Store(1 << 30)
	m.refused(4, []string{"not ready after 100ms", "503", "not ready; no session with a relay"}, "probe", u.Hostname(), u.Port(), "--wait", "100ms")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(free.Addr().String(), ":")
	free.Close()
	m.refused(4, []string{"not ready", "refused"}, "probe", "127.0.0.1", port, "--wait", "100ms")
	m.refused(2, nil, "probe", "127.0.0.1")
}
