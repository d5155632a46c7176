package auth

import (
	"bytes"
	"crypto/mlkem"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

// testEdge is an edge with keys of its own, and the laptop's and the cluster's
// private halves.
func testEdge(t testing.TB) (Edge, *mlkem.DecapsulationKey768, key.ClusterPrivate) {
	dk, cluster := mustKey(mlkem.GenerateKey768()), key.NewCluster()
	e := Edge{
		Network: IDOf(key.NewNetwork().Public()), Issuer: "https://login.example.com", Subject: "alice",
		LoginKey: key.NewLogin().Public(), LaptopKey: key.NewWireGuard().Public(),
		Cluster: "c1", ClusterKey: cluster.Public(), NodeKey: key.NewWireGuard().Public(),
	}
	copy(e.Encapsulation[:], dk.EncapsulationKey().Bytes())
	return e, dk, cluster
}

func TestAnswer(t *testing.T) {
	e, dk, cluster := testEdge(t)
	now := time.Now()
	nonce := [16]byte{1, 2, 3}
	ct, shared, err := e.Encapsulate()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := ParseAnswer(e.Answer(cluster, nonce, ct, now, now.Add(time.Hour)).Append(nil))
	if err != nil {
		t.Fatal(err)
	}

	// The laptop's side: it knows neither the node's key nor which cluster key
	// of the record answers.
	laptop := e
	laptop.ClusterKey, laptop.NodeKey = key.ClusterPublic{}, key.WireGuardPublic{}
	keys := []key.ClusterPublic{key.NewCluster().Public(), cluster.Public()}
	if laptop.ClusterKey, err = answer.Verify(laptop, keys, nonce, now); err != nil {
		t.Fatal(err)
	}
	laptop.NodeKey = answer.Key
	secret, err := dk.Decapsulate(answer.Ciphertext[:])
	if err != nil {
		t.Fatal(err)
	}
	if !laptop.Preshared(secret, answer.Ciphertext).Equal(e.Preshared(shared, ct)) {
		t.Error("laptop and node derive different preshared keys")
	}

	for _, c := range []struct {
		name   string
		change func(a *Answer, e *Edge)
		want   Reason
	}{
		{"nothing", func(*Answer, *Edge) {}, ""},
		{"another request", func(*Answer, *Edge) { nonce[0] ^= 1 }, ReasonEdgeNonce},
		{"nonce put into an old answer", func(a *Answer, _ *Edge) { a.Nonce[5] ^= 1; nonce = a.Nonce }, ReasonClusterKey},
		{"another cluster", func(_ *Answer, e *Edge) { e.Cluster = "c2" }, ReasonClusterKey},
		{"another network", func(_ *Answer, e *Edge) { e.Network[0] ^= 1 }, ReasonClusterKey},
		{"for another laptop", func(_ *Answer, e *Edge) { e.LaptopKey = key.NewWireGuard().Public() }, ReasonClusterKey},
		{"for another encapsulation key", func(_ *Answer, e *Edge) { e.Encapsulation[0] ^= 1 }, ReasonClusterKey},
		{"another node's key", func(a *Answer, _ *Edge) { a.Key = key.NewWireGuard().Public() }, ReasonClusterKey},
		{"another ciphertext", func(a *Answer, _ *Edge) { a.Ciphertext[7] ^= 1 }, ReasonClusterKey},
		{"other flags", func(a *Answer, _ *Edge) { a.Flags = 1 }, ReasonClusterKey},
		{"a later end", func(a *Answer, _ *Edge) { a.Until = a.Until.Add(time.Hour) }, ReasonClusterKey},
		{"signature of zeros", func(a *Answer, _ *Edge) { clear(a.Signature[:]) }, ReasonClusterKey},
		{"no live key", func(*Answer, *Edge) { keys = nil }, ReasonClusterKey},
		{"over", func(*Answer, *Edge) { now = now.Add(time.Hour) }, ReasonExpired},
		{"of the future", func(*Answer, *Edge) { now = now.Add(-2 * time.Minute) }, ReasonClock},
		{"ends before it begins", func(a *Answer, e *Edge) {
			full := *e
			full.NodeKey = a.Key
			*a = full.Answer(cluster, nonce, ct, now, now.Add(-time.Second))
		}, ReasonMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			oldNonce, oldKeys, oldNow := nonce, keys, now
			defer func() { nonce, keys, now = oldNonce, oldKeys, oldNow }()
			a, e := answer, laptop
			c.change(&a, &e)
			got, err := a.Verify(e, keys, nonce, now)
			if c.want == "" {
				if err != nil || got != cluster.Public() {
					t.Errorf("got %s, %v", got, err)
				}
				return
			}
			wantReason(t, err, c.want)
			if !got.IsZero() {
				t.Error("a refused answer gave a cluster key")
			}
		})
	}
}

// One field of the context differs, and the two ends have no common key.
func TestPresharedNeedsEveryField(t *testing.T) {
	e, _, _ := testEdge(t)
	ct, shared, err := e.Encapsulate()
	if err != nil {
		t.Fatal(err)
	}
	want := e.Preshared(shared, ct)
	if !e.Preshared(shared, ct).Equal(want) {
		t.Fatal("the same input gives another key")
	}
	seen := map[[key.SecretSize]byte]string{want.Bytes(): "as it is"}
	for name, change := range map[string]func(*Edge){
		"network":            func(e *Edge) { e.Network[19] ^= 1 },
		"issuer":             func(e *Edge) { e.Issuer += "/" },
		"subject":            func(e *Edge) { e.Subject = "bob" },
		"issuer and subject": func(e *Edge) { e.Issuer, e.Subject = e.Issuer+"a", e.Subject[1:] },
		"login key":          func(e *Edge) { e.LoginKey = key.NewLogin().Public() },
		"laptop key":         func(e *Edge) { e.LaptopKey = key.NewWireGuard().Public() },
		"encapsulation key":  func(e *Edge) { e.Encapsulation[1183] ^= 1 },
		"cluster":            func(e *Edge) { e.Cluster = "c2" },
		"cluster key":        func(e *Edge) { e.ClusterKey = key.NewCluster().Public() },
		"node key":           func(e *Edge) { e.NodeKey = key.NewWireGuard().Public() },
		"laptop for node":    func(e *Edge) { e.LaptopKey, e.NodeKey = e.NodeKey, e.LaptopKey },
	} {
		changed := e
		change(&changed)
		got := changed.Preshared(shared, ct).Bytes()
		if other, ok := seen[got]; ok {
			t.Errorf("%s: the same preshared key as %s", name, other)
		}
		seen[got] = name
	}
	otherCT := ct
	otherCT[0] ^= 1
	if e.Preshared(shared, otherCT).Equal(want) {
		t.Error("another ciphertext gives the same key")
	}
	otherShared := bytes.Clone(shared)
	otherShared[0] ^= 1
	if e.Preshared(otherShared, ct).Equal(want) {
		t.Error("another secret gives the same key")
	}
	defer func() {
		if recover() == nil {
			t.Error("a preshared key was derived from no secret")
		}
	}()
	e.Preshared(nil, ct)
}

func TestEncapsulateRefusesBadKey(t *testing.T) {
	e, _, _ := testEdge(t)
	for i := range e.Encapsulation {
		e.Encapsulation[i] = 0xff
	}
	if _, _, err := e.Encapsulate(); err == nil {
		t.Error("a key out of range was used")
	}
}

// EdgeOf and the laptop's own view agree.
func TestEdgeOf(t *testing.T) {
	s := newScene(t)
	id, err := s.draft().verify(t)
	if err != nil {
		t.Fatal(err)
	}
	node, cluster := key.NewWireGuard().Public(), key.NewCluster().Public()
	want := Edge{
		Network: s.net, Issuer: s.issuer.URL, Subject: "alice", LoginKey: s.login.Public(), LaptopKey: s.wg.Public(),
		Encapsulation: s.ek, Cluster: "c1", ClusterKey: cluster, NodeKey: node,
	}
	if got := EdgeOf(s.net, id, "c1", cluster, node); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestParseAnswerRefuses(t *testing.T) {
	e, _, cluster := testEdge(t)
	good := e.Answer(cluster, [16]byte{1}, [CiphertextSize]byte{2}, time.Now(), time.Now().Add(time.Hour)).Append(nil)
	put := func(at int, v byte) []byte { b := bytes.Clone(good); b[at] = v; return b }
	noKey := bytes.Clone(good)
	clear(noKey[1+4+16+CiphertextSize:][:key.DHSize])
	for name, bad := range map[string][]byte{
		"empty": nil, "one byte less": good[:AnswerSize-1], "one byte more": append(bytes.Clone(good), 0),
		"version 2": put(0, 2), "zero key": noKey, "end past year 9999": put(AnswerSize-key.SignatureSize-8, 0x80),
	} {
		a, err := ParseAnswer(bad)
		wantReason(t, err, ReasonMalformed)
		if a != (Answer{}) {
			t.Errorf("%s: a refused answer was returned", name)
		}
	}
}

func FuzzParseAnswer(f *testing.F) { // attacker: a relay that answers in a node's place
	e, _, cluster := testEdge(f)
	f.Add(e.Answer(cluster, [16]byte{1}, [CiphertextSize]byte{2}, time.Now(), time.Now().Add(time.Hour)).Append(nil))
	f.Add(make([]byte, AnswerSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseAnswer(b)
		if err == nil && !bytes.Equal(a.Append(nil), b) {
			t.Errorf("got %x, want %x", a.Append(nil), b)
		}
	})
}
