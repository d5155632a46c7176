package relay

import (
	"bytes"
	"crypto/rand"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/relay/wire"
)

func newEdge() (id wire.EdgeID) { rand.Read(id[:]); return id }

func TestEdge(t *testing.T) {
	w := newWorld(t)
	laptop, node, other := w.login("alice"), w.node("c1"), w.login("bob")
	id, c, n := join(laptop, node, "c1")
	u, v, x := laptop.bind(), node.bind(), other.bind()
	u.passes(c, v, n)
	v.passes(n, u, c)

	// Nothing but this edge.
	x.write(message(wire.PacketTransport, 64, c))
	x.write(message(wire.PacketTransport, 64, n))
	u.write(message(wire.PacketTransport, 64, n))
	v.silent()

	// The laptop moves: its packets pass from the new address only once it answered.
	u2 := laptop.bind()
	u.write(message(wire.PacketTransport, 64, c))
	v.silent()
	u2.passes(c, v, n)
	v.passes(n, u2, c)

	// The node gives the edge up.
	node.send(&wire.EdgeClose{Edge: id, Reason: wire.ReasonIdle})
	if m := expect[*wire.EdgeClosed](laptop); m.Edge != id || m.Reason != wire.ReasonIdle {
		t.Errorf("laptop got %+v", m)
	}
	u2.write(message(wire.PacketTransport, 64, c))
	v.silent()
	if got := w.events(EventEdgeClose, 1); got[0].Sent != 400 || got[0].UID != "alice" {
		t.Errorf("audit says %+v, want 400 bytes of alice", got[0])
	}
	laptop.send(&wire.EdgeHold{Edge: id, Peer: node.wg.Public(), Cluster: "c1"})
	expect[*wire.EdgePending](laptop)
}

func TestEdgeRefusals(t *testing.T) {
	w := newWorld(t)
	laptop, node := w.login("alice"), w.node("c1")

	// The node's reason reaches the laptop, and the laptop's access request the node.
	n := laptop.send(&wire.EdgeRequest{Edge: newEdge(), Cluster: "c1", AccessRequest: []byte("what a node reads")})
	offer := expect[*wire.EdgeOffer](node)
	g, err := auth.ParseGrant(offer.Grant)
	if err != nil || g.IDToken != laptop.token || string(offer.AccessRequest) != "what a node reads" {
		t.Fatalf("the offer's grant: %v, access request %q", err, offer.AccessRequest)
	}
	node.send(&wire.Refused{Re: node.re, Reason: string(auth.ReasonPolicy), Detail: "no rule admits alice", Hint: "ask ops"})
	if m := laptop.expectRefused(string(auth.ReasonPolicy)); m.Re != n || m.Detail != "no rule admits alice" || m.Hint != "ask ops" {
		t.Errorf("laptop got %+v", m)
	}

	laptop.send(&wire.EdgeRequest{Edge: newEdge(), Cluster: "c9"})
	laptop.expectRefused(wire.ReasonUnknownCluster)
	node.send(&wire.EdgeRequest{Edge: newEdge(), Cluster: "c1"})
	node.expectRefused(wire.ReasonNotAllowed)
	id, _, _ := join(laptop, node, "c1")
	laptop.send(&wire.EdgeRequest{Edge: id, Cluster: "c1"})
	laptop.expectRefused(wire.ReasonMalformed)

	// Answers to nothing.
	node.send(&wire.EdgeAnswer{Re: 1, Edge: newEdge(), Answer: []byte("x")})
	if m := expect[*wire.EdgeRefused](node); m.Reason != wire.ReasonNotHeld {
		t.Errorf("node got %+v", m)
	}
	laptop.send(&wire.EdgeAnswer{Re: 1, Edge: id, Answer: []byte("x")})
	expect[*wire.EdgeRefused](laptop)
	node.send(&wire.Refused{Re: 1, Reason: "x"})
	node.send(&wire.EdgeClose{Edge: newEdge()})
	node.nothing()

	// Too many.
	over := 0
	for range 30 {
		laptop.send(&wire.EdgeRequest{Edge: newEdge(), Cluster: "c1"})
	}
	laptop.send(&wire.Ping{})
	for in := range laptop.in {
		if m, ok := in.m.(*wire.Refused); ok && m.Reason == wire.ReasonTooMany {
			over++
		}
		if _, ok := in.m.(*wire.Pong); ok {
			break
		}
	}
	if over < 18 {
		t.Errorf("%d of 30 requests in a moment were refused, want at least 18", over)
	}
}

func TestNextNode(t *testing.T) {
	w := newWorld(t)
	laptop, a, b := w.login("alice"), w.node("c1"), w.node("c1")
	first := func() (asked, other *participant) {
		t.Helper()
		select {
		case in := <-a.in:
			a.re = in.number
			return a, b
		case in := <-b.in:
			b.re = in.number
			return b, a
		case <-time.After(10 * time.Second):
			t.Fatal("no node was asked")
		}
		return nil, nil
	}
	open := func(id wire.EdgeID, n *participant) {
		t.Helper()
		n.consent(id)
		if m := expect[*wire.EdgeReady](laptop); m.Peer != n.wg.Public() {
			t.Error("ready with another node than the one that consented")
		}
		expect[*wire.EdgeOpen](n)
	}

	// One that cannot now leaves it to the other.
	id := newEdge()
	laptop.send(&wire.EdgeRequest{Edge: id, Cluster: "c1"})
	asked, other := first()
	asked.send(&wire.Refused{Re: asked.re, Reason: string(auth.ReasonNoPolicy)})
	open(id, other)
	// The next edge goes to the node that has none of this laptop's.
	id = newEdge()
	laptop.send(&wire.EdgeRequest{Edge: id, Cluster: "c1"})
	open(id, asked)
	// One that goes away while it is asked, too.
	id = newEdge()
	laptop.send(&wire.EdgeRequest{Edge: id, Cluster: "c1"})
	asked, other = first()
	asked.close()
	open(id, other)
	// If the last one cannot either, the laptop hears why.
	laptop.send(&wire.EdgeRequest{Edge: newEdge(), Cluster: "c1"})
	expect[*wire.EdgeOffer](other)
	other.send(&wire.Refused{Re: other.re, Reason: string(auth.ReasonNoPolicy)})
	laptop.expectRefused(string(auth.ReasonNoPolicy))
	// One that does not answer is given up.
	laptop.send(&wire.EdgeRequest{Edge: newEdge(), Cluster: "c1"})
	expect[*wire.EdgeOffer](other)
	w.skew.Add(int64(waitForAnswer))
	laptop.expectRefused(wire.ReasonTimeout)
	if m := expect[*wire.EdgeRefused](other); m.Reason != wire.ReasonTimeout {
		t.Errorf("node got %+v", m)
	}
}

func TestWaitForNode(t *testing.T) {
	w := newWorld(t)
	laptop := w.login("alice")
	id := newEdge()
	laptop.send(&wire.EdgeRequest{Edge: id, Cluster: "c1"})
	laptop.nothing()
	node := w.node("c1")
	node.consent(id)
	expect[*wire.EdgeReady](laptop)
	expect[*wire.EdgeOpen](node)
	node.close()
	w.events(EventSessionEnd, 1)
	laptop.send(&wire.EdgeClose{Edge: id, Reason: wire.ReasonEnded})

	laptop.send(&wire.EdgeRequest{Edge: newEdge(), Cluster: "c1"})
	laptop.nothing()
	w.skew.Add(int64(waitForNode))
	if m := laptop.expectRefused(wire.ReasonClusterOffline); m.Hint == "" {
		t.Error("no hint")
	}
}

func TestStatementDuringOffer(t *testing.T) {
	w := newWorld(t)
	laptop, node := w.login("alice"), w.node("c1")
	id := newEdge()
	laptop.send(&wire.EdgeRequest{Edge: id, Cluster: "c1"})
	expect[*wire.EdgeOffer](node)
	next := laptop.statement(time.Now().Add(time.Second), time.Hour)
	laptop.send(&wire.Statement{Body: next.Append(nil)})
	expect[*wire.Admitted](laptop)
	node.send(&wire.EdgeAnswer{Re: node.re, Edge: id})
	expect[*wire.EdgeOpen](node)
	if m := expect[*wire.PeerStatement](node); !bytes.Equal(m.Body, next.Append(nil)) {
		t.Error("the node was not told of a statement that came while it made up its mind")
	}
}

func TestRestartKeepsEdges(t *testing.T) {
	w := newWorld(t)
	login := key.NewLogin()
	laptop, node := w.loginWith("alice", login, key.NewWireGuard()), w.node("c1")
	id, _, _ := join(laptop, node, "c1")
	w.restart()
	laptop.ended()
	node.ended()

	hold := func(p, peer *participant, cluster string) {
		p.send(&wire.EdgeHold{Edge: id, Peer: peer.wg.Public(), Cluster: cluster})
	}
	laptop2 := w.loginWith("alice", login, laptop.wg)
	hold(laptop2, node, "c1")
	expect[*wire.EdgePending](laptop2)
	node2 := w.nodeWith("c1", node.wg)
	hold(node2, laptop, "c9") // not its cluster
	expect[*wire.EdgeRefused](node2)
	stranger := w.node("c1")
	hold(stranger, laptop, "c1") // not its edge
	expect[*wire.EdgeRefused](stranger)
	hold(node2, stranger, "c1") // not its peer
	expect[*wire.EdgeRefused](node2)
	hold(node2, laptop, "c1")
	atNode, atLaptop := expect[*wire.EdgeKept](node2), expect[*wire.EdgeKept](laptop2)
	if m := expect[*wire.PeerStatement](node2); m.Peer != laptop.wg.Public() {
		t.Error("the node was not told of the laptop's statement")
	}
	u, v := laptop2.bind(), node2.bind()
	u.passes(atLaptop.Channel, v, atNode.Channel)
	v.passes(atNode.Channel, u, atLaptop.Channel)
	w.events(EventEdgeKept, 1)

	// Only one side's reconnecting changes nothing for the other.
	laptop2.close()
	w.events(EventSessionEnd, 3)
	laptop3 := w.loginWith("alice", login, laptop.wg)
	hold(laptop3, node, "c1")
	atLaptop = expect[*wire.EdgeKept](laptop3)
	u = laptop3.bind()
	v.passes(atNode.Channel, u, atLaptop.Channel)
	node2.nothing()

	// Nobody else holds it: refused when the time is up.
	lost := newEdge()
	laptop3.send(&wire.EdgeHold{Edge: lost, Peer: node.wg.Public(), Cluster: "c1"})
	expect[*wire.EdgePending](laptop3)
	w.skew.Add(int64(waitForHolder))
	if m := expect[*wire.EdgeRefused](laptop3); m.Edge != lost || m.Reason != wire.ReasonNotHeld {
		t.Errorf("laptop got %+v", m)
	}
}
