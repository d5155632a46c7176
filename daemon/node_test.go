package daemon_test

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/test/lab"
)

// ready waits until the node's probe says what it should, and returns its body.
func (o *overlay) ready(want bool, says ...string) string {
	o.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		w := httptest.NewRecorder()
		o.node.ServeReady(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		body := w.Body.String()
		ok := (w.Code == http.StatusOK) == want
		for _, s := range says {
			ok = ok && strings.Contains(body, s)
		}
		if ok {
			return body
		} else if time.Now().After(end) {
			o.t.Fatalf("/readyz says %d, want ready = %v and %q:\n%s", w.Code, want, says, body)
		}
	}
}

// admitted waits until a laptop gets an answer from the API server.
func (l *laptop) admitted() {
	l.o.t.Helper()
	for end := time.Now().Add(45 * time.Second); ; time.Sleep(200 * time.Millisecond) { // relays remember a refusal for 30 s
		if got, err := l.get(); err == nil && got != "" {
			return
		} else if time.Now().After(end) {
			l.o.t.Fatalf("not admitted: %v", err)
		}
	}
}

func TestNodeInPod(t *testing.T) {
	k := newFakeKube(t)
	o := newOverlayWith(t, &overlay{kube: k})
	o.ready(true, "connected", "API server: answers", "policy: in_force")
	k.event("PolicyInForce", "1 rules")
	k.event("RelayConnected", o.relay.URL())
	alice := o.laptop(t.TempDir())
	if _, err := alice.login("alice"); err != nil {
		t.Fatal(err)
	}
	alice.admitted()

	t.Run("a broken policy keeps the rules", func(t *testing.T) {
		ended := alice.watch()
		k.policy("rules: nonsense")
		k.event("PolicyBroken", "zt/zt-policy", "the rules before it stay in force", "line 1")
		o.ready(true, "policy: broken", "warning: ")
		if got := o.node.Health(); got.Policy != daemon.PolicyBroken || !strings.Contains(got.Why, "line 1") {
			t.Errorf("health %+v, want a broken policy and its line", got)
		}
		select {
		case err := <-ended:
			t.Errorf("the stream ended: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		o.policy("groups: [others]")
		o.within(2*time.Second, "a right that a watched policy takes away", ended)
		o.policy("groups: [developers]")
		alice.admitted()
	})

	t.Run("without the API server the rules stay", func(t *testing.T) {
		ended := alice.watch()
		k.refuse("configmaps", http.StatusServiceUnavailable)
		time.Sleep(time.Second)
		o.ready(true, "policy: in_force")
		k.policy("rules: nonsense")
		o.policy("groups: [developers], ports: [8443]")
		k.refuse("configmaps", 0)
		o.within(25*time.Second, "what changed meanwhile", ended)
		o.policy("groups: [developers]")
		alice.admitted()
	})

	t.Run("a right that is missing is named", func(t *testing.T) {
		k.refuse("configmaps", http.StatusForbidden)
		k.event("PolicyNotWatched", "resources: [configmaps], resourceNames: [zt-policy], verbs: [get, list, watch]")
		o.ready(true, "warning: ", "has no right")
		k.refuse("configmaps", 0)
		k.event("PolicyWatched")
	})

	t.Run("an object that is replaced cuts nobody", func(t *testing.T) {
		ended := alice.watch()
		k.remove(policyObject)
		time.Sleep(500 * time.Millisecond)
		o.policy("groups: [developers], ports: [443]")
		select {
		case err := <-ended:
			t.Errorf("the stream ended: %v", err)
		case <-time.After(4 * time.Second):
		}
		k.remove(policyObject)
		o.within(6*time.Second, "a policy that was deleted", ended)
		k.event("PolicyMissing", "ConfigMap zt/zt-policy does not exist", "cluster add")
		o.ready(false, "policy: absent")
		o.policy("groups: [developers]")
		o.ready(true)
		alice.admitted()
	})

	t.Run("an object that loses its key is as good as deleted", func(t *testing.T) {
		ended := alice.watch()
		k.set(policyObject, map[string]any{"data": map[string]string{}})
		time.Sleep(500 * time.Millisecond)
		o.policy("groups: [developers], ports: [443]")
		select {
		case err := <-ended:
			t.Errorf("the stream ended: %v", err)
		case <-time.After(4 * time.Second):
		}
		k.set(policyObject, map[string]any{"data": map[string]string{}})
		o.within(6*time.Second, "a policy that was emptied", ended)
		k.event("PolicyMissing", "key policy.yaml of ConfigMap zt/zt-policy does not exist", "everybody is refused")
		o.ready(false, "policy: absent")
		o.policy("groups: [developers]")
		o.ready(true)
		alice.admitted()
	})

	t.Run("a cluster that is removed from the network", func(t *testing.T) {
		o.remove()
		k.event("RelayRefused", "the cluster was removed from the network")
		o.ready(false, "no cluster of this name")
	})

	t.Run("an API server that is down", func(t *testing.T) {
		o.upstream.CloseClientConnections()
		o.upstream.Listener.Close()
		k.event("UpstreamDown", o.upstream.Listener.Addr().String())
		o.ready(false, "API server: API server 127.0.0.1")
	})
	alice.stop()
}

// TestNodeStops shows what a person notices of a node that is stopped in time: a
// flow ends by itself or at the end of grace, and nobody else is let in.
func TestNodeStops(t *testing.T) {
	const grace = 3 * time.Second
	o := newOverlayWith(t, &overlay{grace: grace})
	alice, carol := o.laptop(t.TempDir()), o.laptop(t.TempDir())
	for _, l := range []*laptop{alice, carol} {
		if _, err := l.login("alice"); err != nil {
			t.Fatal(err)
		}
		l.admitted()
	}
	o.ready(true)
	ended := alice.watch()
	began := time.Now()
	o.stopNode()
	o.ready(false, "the node stops")
	if got, err := alice.get(); err != nil || got == "" {
		t.Errorf("another call of who has a flow open: %q, %v", got, err)
	}
	for end := time.Now().Add(grace / 2); ; time.Sleep(10 * time.Millisecond) { // let go: no flow
		if _, err := carol.Credential(t.Context(), daemon.CredentialRequest{Cluster: "c1"}); err != nil {
			if !strings.Contains(err.Error(), "stop") {
				t.Errorf("who comes now reads %q, want that the node stops", err)
			}
			break
		} else if time.Now().After(end) {
			t.Fatal("a node that stops takes another laptop")
		}
	}
	o.within(grace+time.Second, "the end of grace", ended)
	if took := time.Since(began); took < grace {
		t.Errorf("the flow was cut after %v, within its grace", took)
	}
	if !strings.Contains(o.audit.String(), `"reason":"node_stops"`) {
		t.Error("the audit log does not say that the node stopped")
	}
	alice.stop()
	carol.stop()
}

// strangersServer serves with a certificate of an authority that nobody knows.
func strangersServer(t *testing.T) (address string) {
	t.Helper()
	ca, err := lab.NewAuthority("a stranger's CA")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Server("127.0.0.1", "example.com")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert.Certificate, cert.Key)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail, as they should
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// TestNodeBadInput gives a node what is wrong, and looks for the one Event that
// says so with its fix, and for a probe that fails.
func TestNodeBadInput(t *testing.T) {
	away := func() string { // an address where nobody listens
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		return ln.Addr().String()
	}()
	for _, tc := range []struct {
		name     string
		spoil    func(*overlay, *daemon.NodeSettings)
		relayNow func() time.Time
		relayUDP string
		reason   string   // of the Event
		says     []string // in its message
		probe    string   // in the body of /readyz
	}{
		{"a wrong relay address", func(_ *overlay, s *daemon.NodeSettings) { s.Relay = "https://" + away }, nil, "",
			"RelayUnreachable", []string{away, "`relay` of node.yaml"}, "relay: none is known yet"},
		{"no egress to the relays", func(o *overlay, _ *daemon.NodeSettings) {
			o.write(daemon.NodeHeadFile, o.head.Raw())
			o.stop()
		}, nil, "", "RelayUnreachable", []string{"is unreachable", "TCP 443"}, "unreachable"},
		{"no UDP to the relay", nil, nil, away, "RelaySilent", []string{"no UDP packet comes back", away, "let UDP to that address"}, "no UDP packet"},
		{"a wrong network id", func(o *overlay, s *daemon.NodeSettings) {
			s.Network = auth.IDOf(key.NewNetwork().Public())
		}, nil, "", "WrongNetwork", []string{"`network` or `relay` of node.yaml is wrong", "cluster add"}, "relay: none is known yet"},
		{"another cluster's key", func(o *overlay, _ *daemon.NodeSettings) {
			o.write(daemon.ClusterKeyFile, key.NewCluster().PEM())
		}, nil, "", "RelayRefused", []string{"cluster.key is not the key of this cluster", "cluster add c1"}, "no live key of the cluster"},
		{"a cluster that was removed", func(o *overlay, _ *daemon.NodeSettings) { o.remove() }, nil, "",
			"RelayRefused", []string{"the cluster was removed from the network", "cluster add c1"}, "no cluster of this name"},
		{"a clock that is an hour ahead", nil, func() time.Time { return time.Now().Add(-time.Hour) }, "",
			"ClockOff", []string{"clock is 1h0m0s ahead of", "NTP"}, "clocks disagree"},
		{"a clock that is an hour behind", nil, func() time.Time { return time.Now().Add(time.Hour + time.Second) }, "",
			"ClockOff", []string{"clock is 1h0m1s behind", "NTP"}, "expired"},
		{"an issuer that does not answer", func(o *overlay, _ *daemon.NodeSettings) {
			o.kube.policy("issuers: [{url: \"http://" + away + "\", clientID: zt}]\n")
		}, nil, "", "IssuerUnreachable", []string{away, "who logs in there is refused", "NetworkPolicy"}, "keys of issuer"},
		{"no right to the policy", func(o *overlay, _ *daemon.NodeSettings) { o.kube.refuse("configmaps", http.StatusForbidden) }, nil, "",
			"PolicyMissing", []string{"resourceNames: [zt-policy], verbs: [get, list, watch]"}, "policy: absent"},
		{"no policy", func(o *overlay, _ *daemon.NodeSettings) { o.kube.remove(policyObject) }, nil, "",
			"PolicyMissing", []string{"ConfigMap zt/zt-policy does not exist", "cluster add"}, "policy: absent"},
		{"a ConfigMap without its key", func(o *overlay, _ *daemon.NodeSettings) {
			o.kube.set(policyObject, map[string]any{"data": map[string]string{"policy.yml": ""}})
		}, nil, "", "PolicyMissing", []string{"key policy.yaml of ConfigMap zt/zt-policy does not exist"}, "policy: absent"},
		{"a broken policy", func(o *overlay, _ *daemon.NodeSettings) { o.kube.policy("issuers: []\nrules: nonsense\n") }, nil, "",
			"PolicyBroken", []string{"everybody is refused", "line 2", "policy check"}, "policy: broken"},
		{"an API server that is down", func(_ *overlay, s *daemon.NodeSettings) { s.Upstream = away }, nil, "",
			"UpstreamDown", []string{away, "`upstream` of node.yaml"}, "API server: API server " + away},
		{"an API server with another's certificate", func(o *overlay, s *daemon.NodeSettings) {
			s.Upstream = strangersServer(o.t)
		}, nil, "", "UpstreamDown", []string{"certificate", "cluster add"}, "does not serve"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := newOverlayWith(t, &overlay{kube: newFakeKube(t), spoil: tc.spoil, relayNow: tc.relayNow, relayUDP: tc.relayUDP})
			o.kube.event(tc.reason, tc.says...)
			o.ready(false, tc.probe)
			w := httptest.NewRecorder()
			o.node.ServeReady(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
			if !strings.Contains(w.Body.String(), "warning: ") {
				t.Errorf("/readyz has no warning:\n%s", w.Body)
			}
		})
	}
}
