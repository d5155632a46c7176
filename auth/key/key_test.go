package key

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"
)

func TestPrivateKeysNeverPrint(t *testing.T) {
	wg, id := NewWireGuard(), NewLogin()
	bind := NewBind()
	b := bind.Bytes()
	raw, err := id.ECDSA().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	idSecret := new(big.Int).SetBytes(raw).String()
	holder := struct{ A, B, C any }{wg, id, bind}
	var log strings.Builder
	l := slog.New(slog.NewTextHandler(&log, nil))
	l.Info("x", "wg", wg, "id", id, "bind", bind)
	out := log.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out += fmt.Sprintf(verb, wg) + fmt.Sprintf(verb, id) + fmt.Sprintf(verb, bind) + fmt.Sprintf(verb, holder)
	}
	for _, secret := range []string{string(wg.Text()), fmt.Sprintf("%x", wg.Bytes()), idSecret, fmt.Sprintf("%x", b)} {
		if strings.Contains(out, secret) {
			t.Errorf("a private key was printed: %s", out)
		}
	}
	if _, err := json.Marshal(holder); err == nil {
		t.Error("json.Marshal wrote private keys, want an error")
	}
}

func TestPublicText(t *testing.T) {
	wg, id := NewWireGuard().Public(), NewLogin().Public()
	in := struct {
		WG WireGuardPublic
		ID LoginPublic
	}{wg, id}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	out := in
	out.WG, out.ID = WireGuardPublic{}, LoginPublic{}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if out != in {
		t.Errorf("got %v, want %v", out, in)
	}
	for _, bad := range []string{"", "AAAA", strings.Repeat("A", 87), strings.Repeat("A", 43) + "=", "!"} {
		if err := new(LoginPublic).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("login key %q was accepted", bad)
		}
		if err := new(WireGuardPublic).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("WireGuard key %q was accepted", bad)
		}
	}
}

func TestSignVerify(t *testing.T) {
	k := NewCluster()
	sig := k.Sign([]byte("message"))
	if !k.Public().Verify([]byte("message"), sig[:]) {
		t.Error("own signature refused")
	}
	if k.Public().Verify([]byte("messagf"), sig[:]) || NewCluster().Public().Verify([]byte("message"), sig[:]) ||
		k.Public().Verify([]byte("message"), sig[:63]) || (ClusterPublic{}).Verify([]byte("message"), sig[:]) {
		t.Error("a wrong signature was accepted")
	}
}

func TestPEM(t *testing.T) {
	k := NewNetwork()
	got, err := ParseNetworkPEM(k.PEM())
	if err != nil {
		t.Fatal(err)
	}
	if got.Public() != k.Public() {
		t.Error("the key changed on its way through PEM")
	}
	for _, bad := range [][]byte{nil, []byte("x"), k.PEM()[:80], append(k.PEM(), 'x')} {
		if _, err := ParseNetworkPEM(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func FuzzParsePublic(f *testing.F) { // attacker: whoever sends a grant or a document
	f.Add(NewLogin().Public().Bytes())
	f.Add([]byte{4})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePublic[login](b)
		if err == nil && string(p.Bytes()) != string(b) {
			t.Errorf("got %x, want %x", p.Bytes(), b)
		}
	})
}
