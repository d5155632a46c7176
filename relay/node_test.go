package relay

import (
	"reflect"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/relay/wire"
)

// says sends a node's status, which the relay must take.
func (p *participant) says(m *wire.NodeStatus) {
	p.t.Helper()
	n := p.send(m)
	if ok := expect[*wire.OK](p); ok.Re != n {
		p.t.Fatalf("answer to %d, want %d", ok.Re, n)
	}
}

func serving(name string) *wire.NodeStatus {
	return &wire.NodeStatus{Flags: wire.NodeUpstreamUp, Policy: wire.PolicyInForce, Name: name, Version: "v1"}
}

// nodes asks for the nodes, as a laptop does.
func (p *participant) nodes() (all []*wire.ClusterNode) {
	p.t.Helper()
	n := p.send(&wire.NodesRequest{})
	for {
		select {
		case in := <-p.in:
			switch m := in.m.(type) {
			case *wire.ClusterNode:
				if m.Re != n {
					p.t.Fatalf("a node in answer to %d, want %d", m.Re, n)
				}
				all = append(all, m)
			case *wire.OK:
				return all
			case *wire.DocumentsChanged:
			default:
				p.t.Fatalf("got %T %+v", m, m)
			}
		case <-time.After(10 * time.Second):
			p.t.Fatal("no end of the nodes came")
		}
	}
}

func TestDrain(t *testing.T) {
	w := newWorld(t)
	w.features = wire.FeatureNodeStatus
	laptop, a := w.login("alice"), w.node("c1")
	if laptop.welcome.Features&wire.FeatureNodeStatus == 0 {
		t.Error("the relay does not say that it knows of statuses")
	}
	a.says(serving("a"))
	id, c, n := join(laptop, a, "c1")
	u, v := laptop.bind(), a.bind()

	// There is no other node yet: the laptop is left alone, its edge goes on.
	leaving := serving("a")
	leaving.Flags |= wire.NodeDraining
	a.says(leaving)
	laptop.nothing()
	u.passes(c, v, n)
	// No new edge goes to it; the request waits for another node.
	next := newEdge()
	laptop.send(&wire.EdgeRequest{Edge: next, Cluster: "c1"})
	laptop.nothing()
	a.nothing()

	w.skew.Add(int64(waitForNode))
	laptop.expectRefused(string(auth.ReasonNodeStops))
	next = newEdge()
	laptop.send(&wire.EdgeRequest{Edge: next, Cluster: "c1"})

	// One comes: the request goes there, and the laptop is told once to leave a.
	b := w.node("c1")
	b.consent(next)
	if m := expect[*wire.EdgeReady](laptop); m.Edge != next || m.Peer != b.wg.Public() {
		t.Errorf("ready with %+v, want edge %s with b", m, next)
	}
	expect[*wire.EdgeOpen](b)
	b.says(serving("b"))
	if m := expect[*wire.EdgeMove](laptop); m.Edge != id {
		t.Errorf("told to leave %s, want %s", m.Edge, id)
	}
	b.says(serving("b"))
	laptop.nothing()
	u.passes(c, v, n) // what is open goes on
	v.passes(n, u, c)
}

func TestSickNode(t *testing.T) {
	w := newWorld(t)
	w.features = wire.FeatureNodeStatus
	laptop, a, b := w.login("alice"), w.node("c1"), w.node("c1")
	a.says(serving("a"))
	b.says(&wire.NodeStatus{Policy: wire.PolicyInForce, Name: "b"}) // its API server does not answer
	ids := make([]wire.EdgeID, 2)
	for i := range ids { // both edges go to a, though b has none
		ids[i], _, _ = join(laptop, a, "c1")
	}
	a.says(&wire.NodeStatus{Flags: wire.NodeUpstreamUp, Policy: wire.PolicyBroken, Name: "a"})
	b.says(serving("b"))
	laptop.nothing() // a broken policy has rules before it: who is there may stay
	join(laptop, b, "c1")

	a.says(&wire.NodeStatus{Policy: wire.PolicyInForce, Name: "a"})
	told := map[wire.EdgeID]bool{expect[*wire.EdgeMove](laptop).Edge: true, expect[*wire.EdgeMove](laptop).Edge: true}
	if !told[ids[0]] || !told[ids[1]] {
		t.Errorf("told to leave %v, want %v", told, ids)
	}
	// If none does well, one that does badly is better than none.
	b.says(&wire.NodeStatus{Name: "b"})
	b.close()
	w.events(EventSessionEnd, 1)
	id, _, _ := join(laptop, a, "c1")
	if id == (wire.EdgeID{}) {
		t.Error("no edge")
	}
}

func TestDeadNode(t *testing.T) {
	w := newWorld(t)
	w.features = wire.FeatureNodeStatus
	laptop, a := w.login("alice"), w.node("c1")
	old := w.login("bob")
	a.says(serving("a"))
	id, _, _ := join(laptop, a, "c1")
	bobs, _, _ := join(old, a, "c1")
	b := w.node("c1")
	b.says(serving("b"))
	laptop.nothing()
	a.close() // without a word
	if m := expect[*wire.EdgeMove](laptop); m.Edge != id {
		t.Errorf("told to leave %s, want %s", m.Edge, id)
	}
	expect[*wire.EdgeMove](old)

	// It is back in time: what was open goes on.
	a = w.nodeWith("c1", a.wg)
	a.says(serving("a"))
	a.send(&wire.EdgeHold{Edge: id, Peer: laptop.wg.Public(), Cluster: "c1"})
	expect[*wire.EdgeKept](a)
	if m := expect[*wire.EdgeKept](laptop); m.Edge != id {
		t.Errorf("kept %s, want %s", m.Edge, id)
	}
	// One that it does not hold any more, and one whose node stays away, end.
	w.skew.Add(int64(waitForNodeBack))
	if m := expect[*wire.EdgeRefused](old); m.Edge != bobs || m.Reason != wire.ReasonNotHeld {
		t.Errorf("got %+v, want the end of %s", m, bobs)
	}
	laptop.nothing()
	a.close()
	w.events(EventSessionEnd, 2)
	laptop.nothing() // told once already
	w.skew.Add(int64(waitForNodeBack))
	if m := expect[*wire.EdgeRefused](laptop); m.Edge != id || m.Reason != wire.ReasonNotHeld {
		t.Errorf("got %+v, want the end of %s", m, id)
	}
}

func TestNodes(t *testing.T) {
	w := newWorld(t)
	w.put(wire.DocumentRecord, w.record("c2", 1).Raw())
	w.put(wire.DocumentRecord, w.record("gone", 1).Raw())
	laptop := w.login("alice")
	before := w.node("c2") // of a version that says nothing
	w.features = wire.FeatureNodeStatus
	a, b := w.node("c1"), w.node("c1")
	broken := &wire.NodeStatus{Flags: wire.NodeUpstreamUp, Policy: wire.PolicyBroken, Name: "a", Version: "v1", Why: "line 3: a secret of c1"}
	a.says(broken)
	b.says(serving("b"))
	w.put(wire.DocumentRecord, w.record("gone", 2, func(r *auth.Record) {
		*r = auth.Record{Network: r.Network, Name: r.Name, Version: r.Version, Removed: true}
	}).Raw())

	seen := map[string]*wire.ClusterNode{}
	for _, n := range laptop.nodes() {
		if n.Here != 1 || time.Since(time.UnixMilli(int64(n.Seen))) > time.Minute {
			t.Errorf("%+v, want it here and just heard", n)
		}
		seen[n.Cluster+"/"+n.Status.Name] = n
	}
	if len(seen) != 3 || seen["c1/a"] == nil || seen["c1/b"] == nil || seen["c2/"] == nil {
		t.Fatalf("got %v, want a and b of c1, and the one of c2", seen)
	}
	if got := seen["c1/a"]; got.Peer != a.wg.Public() || got.Status.Policy != wire.PolicyBroken || got.Status.Why != "" || got.Status.Version != "v1" {
		t.Errorf("got %+v, want a's word without its reasons", got)
	}
	if got := seen["c2/"]; got.Peer != before.wg.Public() || !reflect.DeepEqual(got.Status, wire.NodeStatus{}) {
		t.Errorf("got %+v, want an unknown status", got)
	}
	st := w.relay.Status()
	if got := st.Clusters["c1"]; len(got) != 2 || got[0].Policy != "broken" || got[0].Why != broken.Why || got[0].Upstream != "up" || got[1].Name != "b" {
		t.Errorf("the operator sees %+v", got)
	}

	// Who may not.
	a.send(&wire.NodesRequest{})
	a.expectRefused(wire.ReasonNotAllowed)
	laptop.send(serving("laptop"))
	laptop.expectRefused(wire.ReasonNotAllowed)

	// One that stops is forgotten, one that vanishes is remembered, until it or
	// another of its name is back.
	leaving := serving("b")
	leaving.Flags |= wire.NodeDraining
	b.says(leaving)
	b.close()
	a.close()
	w.events(EventSessionEnd, 2)
	find := func() (names []string) {
		for _, n := range laptop.nodes() {
			if n.Cluster == "c1" {
				names = append(names, n.Status.Name+map[uint8]string{0: " gone", 1: " here"}[n.Here])
			}
		}
		return names
	}
	if got := find(); !reflect.DeepEqual(got, []string{"a gone"}) {
		t.Errorf("got %v, want a, gone", got)
	}
	again := w.node("c1")
	again.says(serving("a"))
	if got := find(); !reflect.DeepEqual(got, []string{"a here"}) {
		t.Errorf("got %v, want a, here", got)
	}
	leaving = serving("a")
	leaving.Flags |= wire.NodeDraining
	again.says(leaving)
	again.close()
	w.events(EventSessionEnd, 3)
	if got := find(); !reflect.DeepEqual(got, []string{"a gone"}) {
		t.Errorf("got %v, want the last one that was here", got)
	}
}
