package daemon_test

import (
	"bufio"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/zt-daemon/zt/daemon"
)

// noticed is how long a person may notice that a node has gone.
const noticed = 2 * time.Second

// connectProxy is what stands between one node and its relays' TCP ports. A node
// that loses it is as good as dead to its relay, and is not told.
type connectProxy struct {
	ln   net.Listener
	wg   sync.WaitGroup
	mu   sync.Mutex // guards conns
	open []net.Conn
}

func newConnectProxy(t *testing.T) *connectProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &connectProxy{ln: ln}
	p.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(p.die)
	return p
}

func (p *connectProxy) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	req, err := http.ReadRequest(r)
	if err != nil || req.Method != http.MethodConnect {
		return
	}
	relay, err := net.Dial("tcp", req.Host)
	if err != nil {
		return
	}
	defer relay.Close()
	p.mu.Lock()
	p.open = append(p.open, c, relay)
	p.mu.Unlock()
	io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	p.wg.Go(func() {
		io.Copy(relay, r)
		relay.Close()
	})
	io.Copy(c, relay)
}

// die lets nothing pass any more.
func (p *connectProxy) die() {
	p.ln.Close()
	p.mu.Lock()
	for _, c := range p.open {
		c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}

// of is the HTTPConfig of a node behind p; issuers are reached directly.
func (p *connectProxy) of(o *overlay) daemon.HTTPConfig {
	return daemon.HTTPConfig{Proxy: func(r *http.Request) (*url.URL, error) {
		if "https://"+r.URL.Host != o.relay.URL() {
			return nil, nil
		}
		return &url.URL{Scheme: "http", Host: p.ln.Addr().String()}, nil
	}}
}

// clusterNode is a node of the test, and what ends it.
type clusterNode struct {
	*daemon.Node
	stop func()
	die  func()
}

// nodes starts as many nodes of the cluster as names, and returns them by overlay
// address once the relay shows them ready.
func (o *overlay) nodes(names ...string) map[string]clusterNode {
	o.t.Helper()
	all := make(map[string]clusterNode)
	for _, name := range names {
		var wg sync.WaitGroup
		p := newConnectProxy(o.t)
		o.nodeName, o.nodeHTTP = name, p.of(o)
		o.startNode(&wg)
		o.t.Cleanup(wg.Wait)
		o.t.Cleanup(o.stopNode)
		all[o.node.Addr().String()] = clusterNode{o.node, o.stopNode, p.die}
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		ready := 0
		for _, n := range o.relay.Status().Clusters["c1"] {
			if n.Here && n.Policy == "in_force" && n.Upstream == "up" {
				ready++
			}
		}
		if ready >= len(names) {
			return all
		} else if time.Now().After(end) {
			o.t.Fatalf("%d of %d nodes are ready: %+v", ready, len(names), o.relay.Status().Clusters["c1"])
		}
	}
}

// inUse is the node that a laptop's new flows go to.
func (l *laptop) inUse(all map[string]clusterNode) clusterNode {
	l.o.t.Helper()
	clusters, err := l.Clusters(l.o.ctx)
	if err != nil || len(clusters) != 1 {
		l.o.t.Fatalf("clusters: %v, %v; want one", clusters, err)
	}
	n, ok := all[clusters[0].Node]
	if !ok {
		l.o.t.Fatalf("node %q is none of the test's", clusters[0].Node)
	}
	return n
}

// reaches checks that the API server answers at once, and by another node.
func (l *laptop) reaches(all map[string]clusterNode, not clusterNode) {
	l.o.t.Helper()
	began := time.Now()
	got, err := l.get()
	if took := time.Since(began); err != nil || got == "" || took > noticed {
		l.o.t.Errorf("get after the node went: %q, %v after %v, want an answer within %v", got, err, took, noticed)
	}
	if now := l.inUse(all); now.Addr() == not.Addr() {
		l.o.t.Error("it went through the node that goes")
	}
}

func TestTwoNodes(t *testing.T) {
	o := newOverlayWith(t, &overlay{grace: 3 * time.Second, nodeName: "first"})
	o.stopNode() // the one that every overlay begins with
	all := o.nodes("a", "b")
	alice := o.laptop(t.TempDir())
	if _, err := alice.login("alice"); err != nil {
		t.Fatal(err)
	}
	alice.admitted()

	t.Run("a laptop reads what the nodes are", func(t *testing.T) {
		clusters, err := alice.Clusters(t.Context())
		if err != nil || len(clusters) != 1 || clusters[0].NodesErr != "" {
			t.Fatalf("clusters: %+v, %v", clusters, err)
		}
		nodes := clusters[0].Nodes
		if len(nodes) != 2 || nodes[0].Name != "a" || nodes[1].Name != "b" {
			t.Fatalf("got %+v, want a and b", nodes)
		}
		for _, n := range nodes {
			if !n.Here || n.Version != "v1.2.3" || n.Policy != daemon.PolicyInForce || n.Upstream != "up" || time.Since(n.Seen) > time.Minute {
				t.Errorf("got %+v, want it here and well", n)
			}
		}
	})

	t.Run("a node that stops in time", func(t *testing.T) {
		gone := alice.inUse(all)
		ended := alice.watch()
		began := time.Now()
		gone.stop()
		for !gone.Health().Stopping {
			time.Sleep(time.Millisecond)
		}
		for range 3 { // from the first moment on
			if got, err := alice.get(); err != nil || got == "" {
				t.Errorf("get while the node stops: %q, %v", got, err)
			}
		}
		alice.reaches(all, gone)
		o.within(o.grace+noticed, "the end of grace", ended)
		if took := time.Since(began); took < o.grace {
			t.Errorf("the watch was cut after %v, want its grace of %v", took, o.grace)
		}
		alice.reaches(all, gone)
		delete(all, gone.Addr().String())
	})

	t.Run("a node that dies", func(t *testing.T) {
		maps.Copy(all, o.nodes("c"))
		gone := alice.inUse(all)
		ended := alice.watch()
		gone.die()
		for end := time.Now().Add(noticed); ; time.Sleep(10 * time.Millisecond) {
			here := 0
			for _, n := range o.relay.Status().Clusters["c1"] {
				if n.Here {
					here++
				}
			}
			if here == 1 {
				break
			} else if time.Now().After(end) {
				t.Fatalf("the relay still sees %+v", o.relay.Status().Clusters["c1"])
			}
		}
		alice.reaches(all, gone)
		o.within(15*time.Second, "the watch on a dead node", ended)
		alice.reaches(all, gone)
	})
}

// TestSilentNode shows that a node whose packets are lost, while all sessions are
// up, costs a new flow little, and that what hangs on it is reset.
func TestSilentNode(t *testing.T) {
	o := newOverlayWith(t, &overlay{nodeName: "first"})
	o.stopNode()
	all := o.nodes("a", "b")
	alice := o.laptop(t.TempDir())
	if _, err := alice.login("alice"); err != nil {
		t.Fatal(err)
	}
	alice.admitted()
	gone := alice.inUse(all)
	ended := alice.watch()
	gone.Mute()
	alice.DropSpare("c1") // it was opened when the node still spoke
	began := time.Now()
	got, err := alice.get()
	if took := time.Since(began); err != nil || got == "" || took > 2*noticed {
		t.Errorf("get with a silent node: %q, %v after %v, want an answer within %v", got, err, took, 2*noticed)
	}
	if now := alice.inUse(all); now.Addr() == gone.Addr() {
		t.Error("it went through the node that is silent")
	}
	o.within(15*time.Second, "the watch on a silent node", ended)
}
