package auth

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/zt-daemon/zt/auth/key"
)

// networkVector is one row of testdata/network.json, which was computed by
// another program (Python's hashlib and base64) from the formulas in the
// comments of network.go.
type networkVector struct {
	NetworkKey string `json:"networkKey"` // SEC1, hexadecimal
	ID         string `json:"id"`
	IDRaw      string `json:"idRaw"` // 20 bytes, hexadecimal
	Prefix     string `json:"prefix"`
	LoginKey   string `json:"loginKey"` // SEC1, hexadecimal
	PersonAddr string `json:"personAddr"`
	NodeKey    string `json:"nodeKey"` // X25519, hexadecimal
	NodeAddr   string `json:"nodeAddr"`
}

func TestNetworkVectors(t *testing.T) {
	b, err := os.ReadFile("testdata/network.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []networkVector
	if err := json.Unmarshal(b, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) < 2 {
		t.Fatalf("%d vectors, want at least 2", len(vectors))
	}
	for _, v := range vectors {
		t.Run(v.ID, func(t *testing.T) {
			var network key.NetworkPublic
			var login key.LoginPublic
			networkFromHex(t, v.NetworkKey, func(b []byte) (err error) { network, err = parseNetworkPublic(b); return })
			networkFromHex(t, v.LoginKey, func(b []byte) (err error) { login, err = parseLoginPublic(b); return })
			var node key.WireGuardPublic
			networkFromHex(t, v.NodeKey, func(b []byte) (err error) { node, err = key.ParseWireGuard(b); return })

			id := IDOf(network)
			if got := id.String(); got != v.ID {
				t.Errorf("id is %s, want %s", got, v.ID)
			}
			if got := hex.EncodeToString(id[:]); got != v.IDRaw {
				t.Errorf("raw id is %s, want %s", got, v.IDRaw)
			}
			if got := id.Prefix().String(); got != v.Prefix {
				t.Errorf("prefix is %s, want %s", got, v.Prefix)
			}
			if got := id.PersonAddr(login).String(); got != v.PersonAddr {
				t.Errorf("person's address is %s, want %s", got, v.PersonAddr)
			}
			if got := id.NodeAddr(node).String(); got != v.NodeAddr {
				t.Errorf("node's address is %s, want %s", got, v.NodeAddr)
			}
			if !id.Prefix().Contains(id.PersonAddr(login)) || !id.Prefix().Contains(id.NodeAddr(node)) {
				t.Error("an address lies outside the prefix")
			}
			back, err := ParseNetworkID(v.ID)
			if err != nil || back != id {
				t.Errorf("ParseNetworkID = %v, %v, want %v", back, err, id)
			}
		})
	}
}

// The roles of key.ParsePublic are unexported, so its instances are made through
// the text form.
func parseNetworkPublic(sec1 []byte) (k key.NetworkPublic, err error) {
	return k, k.UnmarshalText([]byte(base64.RawURLEncoding.EncodeToString(sec1)))
}

func parseLoginPublic(sec1 []byte) (k key.LoginPublic, err error) {
	return k, k.UnmarshalText([]byte(base64.RawURLEncoding.EncodeToString(sec1)))
}

func networkFromHex(t *testing.T, text string, parse func([]byte) error) {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err == nil {
		err = parse(b)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestParseNetworkIDRefuses(t *testing.T) {
	good := IDOf(key.NewNetwork().Public()).String()
	for name, text := range map[string]string{
		"empty":         "",
		"short":         good[:31],
		"long":          good + "a",
		"upper case":    strings.ToUpper(good),
		"padded":        good[:31] + "=",
		"other digit":   good[:31] + "1",
		"line end":      good[:31] + "\n",
		"inner newline": good[:16] + "\n" + good[17:],
		"space":         " " + good[1:],
	} {
		t.Run(name, func(t *testing.T) {
			if id, err := ParseNetworkID(text); err == nil {
				t.Errorf("%q was accepted as %s", text, id)
			}
		})
	}
}

// FuzzParseNetworkID: the attacker writes the login line that somebody pastes.
func FuzzParseNetworkID(f *testing.F) {
	f.Add(IDOf(key.NewNetwork().Public()).String())
	f.Add(strings.Repeat("a", 32))
	f.Add(strings.Repeat("\n", 32))
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseNetworkID(s); err == nil && id.String() != s {
			t.Errorf("%q reads as %s", s, id)
		}
	})
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]string{
		"12h": "12h", "12h0m0s": "12h", "90m": "1h30m", "30s": "30s", "0s": "0s", "1h0m5s": "1h0m5s", "20m": "20m", "10s": "10s", "100ms": "100ms", "10h30m": "10h30m",
	} {
		var d, back Duration
		if err := d.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if d.String() != want {
			t.Errorf("%s prints as %s, want %s", text, d, want)
		}
		if err := back.UnmarshalText([]byte(d.String())); err != nil || back != d {
			t.Errorf("%s reads back as %s, %v", d, back, err)
		}
	}
	for _, bad := range []string{"", "12", "-1h", "1d", "h", "9999999999h"} {
		if err := new(Duration).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("duration %q was accepted", bad)
		}
	}
}
