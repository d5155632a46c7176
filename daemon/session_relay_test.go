package daemon_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/relay/wire"
)

// listening is a transport that somebody reads, as a device would.
type listening struct {
	*daemon.Transport
	t    *testing.T
	read sync.WaitGroup
}

func listen(t *testing.T) *listening {
	t.Helper()
	tr, err := daemon.NewTransport(daemon.TransportConfig{})
	if err != nil {
		t.Fatal(err)
	}
	l := &listening{Transport: tr, t: t}
	l.open()
	t.Cleanup(l.close)
	return l
}

func (l *listening) open() {
	l.t.Helper()
	receive, err := l.Open()
	if err != nil {
		l.t.Fatal(err)
	}
	l.read.Go(func() {
		bufs, sizes, from := make([][]byte, 8), make([]int, 8), make([]key.WireGuardPublic, 8)
		for i := range bufs {
			bufs[i] = make([]byte, 2048)
		}
		for {
			if _, err := receive(bufs, sizes, from); err != nil {
				return
			}
		}
	})
}

func (l *listening) close() {
	l.Close()
	l.read.Wait()
}

func soon(t *testing.T, what string, claim func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !claim(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 15 s: %s", what)
		}
	}
}

// A node's session against the relay itself: admission, the UDP address and its
// moves, signed documents, and a restart of the relay.
func TestSessionWithRelay(t *testing.T) {
	o := newOverlay(t)
	pem, err := os.ReadFile(filepath.Join(o.nodeDir, daemon.ClusterKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := key.ParseClusterPEM(pem)
	if err != nil {
		t.Fatal(err)
	}
	static := key.NewWireGuard()
	proof := func(static key.WireGuardPrivate, k key.ClusterPrivate) func(context.Context) (wire.GrantKind, []byte, error) {
		return func(context.Context) (wire.GrantKind, []byte, error) {
			now := time.Now()
			return wire.GrantNode, auth.SignNodeGrant(o.head.Network, "c1", static.Public(), now, now.Add(time.Hour), k).Append(nil), nil
		}
	}
	tr := listen(t)
	config := daemon.SessionConfig{
		Network: o.head.Network, Relay: o.relay.Entry(), Static: static, Cluster: "c1", Transport: tr.Transport,
		Proof: proof(static, cluster), Busy: func() bool { return true },
	}
	s, err := daemon.NewSession(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	defer run.Wait()
	defer cancel()

	soon(t, "bound", func() bool { return s.Status().Path.Bound })
	st := s.Status()
	if want := o.head.Network.NodeAddr(static.Public()); st.Addr != want {
		t.Errorf("the relay derived the address %v, want %v", st.Addr, want)
	}
	if st.Path.Observed.Port() != tr.Status().Local.Port() {
		t.Errorf("the relay sees port %d, want %d", st.Path.Observed.Port(), tr.Status().Local.Port())
	}
	head, records, err := s.Documents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h, err := auth.ParseHead(head)
	if err != nil || h.Hash() != o.head.Hash() || len(records) != 1 {
		t.Errorf("documents: head %v, %v, %d records", h, err, len(records))
	}
	_, statement, _ := proof(static, cluster)(t.Context())
	if a, err := s.SendStatement(t.Context(), statement); err != nil || time.Until(a.Expires) < 50*time.Minute {
		t.Errorf("renewed until %v, %v", a.Expires, err)
	}

	// The address moves: another port, challenged and bound, on one connection.
	tr.close()
	tr.open()
	soon(t, "another port observed", func() bool { return s.Status().Path.Observed.Port() == tr.Status().Local.Port() })
	if n := s.Status().Connects; n != 1 {
		t.Errorf("%d connects, want 1", n)
	}

	tcp, udp := o.relay.Entry().URL[len("https://"):], st.Path.Relay.String()
	o.stop()
	soon(t, "down", func() bool { return !s.Status().Up })
	if _, _, err := documentsWithin(s, 200*time.Millisecond); !errors.Is(err, daemon.ErrUnreachable) {
		t.Errorf("without a relay: %v", err)
	}
	o.startRelay(tcp, udp)
	soon(t, "bound again", func() bool { return s.Status().Up && s.Status().Path.Bound })

	// Another cluster's key proves nothing.
	config.Static, config.RefusedRetry = key.NewWireGuard(), -1
	config.Proof = proof(config.Static, key.NewCluster())
	bad, err := daemon.NewSession(config)
	if err != nil {
		t.Fatal(err)
	}
	var refused *daemon.RefusedError
	if err := bad.Run(t.Context()); !errors.As(err, &refused) || refused.Reason != string(auth.ReasonClusterKey) {
		t.Errorf("a stranger's node grant: %v, want %s", err, auth.ReasonClusterKey)
	}
}

func documentsWithin(s *daemon.Session, d time.Duration) (head []byte, records [][]byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return s.Documents(ctx)
}

// What an administrator's session gets wrong, the relay says by name.
func TestAdminWithRelay(t *testing.T) {
	o := newOverlay(t)
	a, err := daemon.DialAdmin(t.Context(), o.relay.Entry(), o.head.Network, daemon.HTTPConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var refused *daemon.RefusedError
	if err := a.ProveSigner(t.Context(), key.NewSigner()); !errors.As(err, &refused) {
		t.Errorf("a stranger's key: %v, want a refusal", err)
	}
	if _, err := daemon.DialAdmin(t.Context(), o.relay.Entry(), auth.NetworkID{1}, daemon.HTTPConfig{}); err == nil {
		t.Error("a session of another network was opened")
	} else if wrong, ok := errors.AsType[*daemon.RelayKeyError](err); !ok || wrong.Network != (auth.NetworkID{1}) {
		t.Errorf("another network: %v", err)
	}
	head, err := daemon.FetchHead(t.Context(), o.relay.URL(), o.head.Network, daemon.HTTPConfig{})
	if err != nil || head.Hash() != o.head.Hash() {
		t.Errorf("head: %v, %v", head, err)
	}
}
