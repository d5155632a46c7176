package auth

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

func TestAccessRequest(t *testing.T) {
	network, k := IDOf(key.NewNetwork().Public()), key.NewLogin()
	alice, bob := &Identity{LoginKey: k.Public()}, &Identity{LoginKey: key.NewLogin().Public()}
	now := time.Now()
	sign := func(issued time.Duration) AccessRequest {
		r, err := SignAccessRequest(network, "c1", AccessRequest{Issued: now.Add(issued), For: time.Hour, Reason: "disk is full — “c1”"}, k)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	good := sign(0)
	got, err := ParseAccessRequest(good.Append(nil))
	if err != nil || got != good {
		t.Fatalf("got %+v, %v, want %+v", got, err, good)
	}
	change := func(edit func(*AccessRequest)) AccessRequest { r := good; edit(&r); return r }
	for _, c := range []struct {
		name    string
		r       AccessRequest
		network NetworkID
		cluster string
		id      *Identity
		want    Reason
	}{
		{"as it is", good, network, "c1", alice, ""},
		{"another network", good, NetworkID{1}, "c1", alice, ReasonSignature},
		{"another cluster", good, network, "c2", alice, ReasonSignature},
		{"another person", good, network, "c1", bob, ReasonSignature},
		{"no key", good, network, "c1", &Identity{}, ReasonSignature},
		{"reason changed", change(func(r *AccessRequest) { r.Reason += "!" }), network, "c1", alice, ReasonSignature},
		{"time changed", change(func(r *AccessRequest) { r.For *= 2 }), network, "c1", alice, ReasonSignature},
		{"renewed by another", change(func(r *AccessRequest) { r.Issued = r.Issued.Add(time.Second) }), network, "c1", alice, ReasonSignature},
		{"ten minutes old", sign(-10 * time.Minute), network, "c1", alice, ""},
		{"older", sign(-10*time.Minute - time.Second), network, "c1", alice, ReasonExpired},
		{"a minute ahead", sign(59 * time.Second), network, "c1", alice, ""},
		{"further ahead", sign(61 * time.Second), network, "c1", alice, ReasonClock},
	} {
		t.Run(c.name, func(t *testing.T) {
			at := time.UnixMilli(now.UnixMilli())
			err := c.r.Verify(c.network, c.cluster, c.id, at)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantReason(t, err, c.want)
		})
	}
}

func TestAccessRequestRefuses(t *testing.T) {
	k := key.NewLogin()
	fits := strings.Repeat("ü", AccessRequestMaxReason)
	for name, c := range map[string]struct {
		length time.Duration
		reason string
		text   string // empty: it is fine
	}{
		"as long as it may": {AccessRequestMax, fits, ""},
		"as short":          {AccessRequestMin, "x", ""},
		"no time":           {0, "r", "access for 0s, want 1m to 24h"},
		"too short":         {59 * time.Second, "r", "want 1m to 24h"},
		"too long":          {24*time.Hour + time.Second, "r", "want 1m to 24h"},
		"parts of a second": {time.Minute + time.Millisecond, "r", "whole seconds"},
		"no reason":         {time.Hour, "", "empty"},
		"blank":             {time.Hour, "  ", "empty"},
		"too many letters":  {time.Hour, fits + "x", "201 characters"},
		"a line end":        {time.Hour, "a\nb", "U+000A"},
		"an escape":         {time.Hour, "\x1b[2J", "U+001B"},
		"right to left":     {time.Hour, "a\u202eb", "U+202E"},
		"not UTF-8":         {time.Hour, "a\xff", "not UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			r := AccessRequest{Issued: time.Now(), For: c.length, Reason: c.reason}
			signed, err := SignAccessRequest(NetworkID{1}, "c1", r, k)
			parsed, perr := ParseAccessRequest(r.Append(nil))
			if c.text == "" {
				if err != nil || perr != nil || parsed.Reason != c.reason {
					t.Errorf("got %v and %v", err, perr)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.text) || signed != (AccessRequest{}) {
				t.Errorf("sign: got %v, want an error with %q", err, c.text)
			}
			if c.length%time.Second == 0 && perr == nil {
				t.Errorf("read %+v", parsed)
			}
		})
	}
}

func TestParseAccessRequestRefuses(t *testing.T) {
	good, err := SignAccessRequest(NetworkID{1}, "c1", AccessRequest{Issued: time.Now(), For: time.Hour, Reason: "r"}, key.NewLogin())
	if err != nil {
		t.Fatal(err)
	}
	b := good.Append(nil)
	for name, bad := range map[string][]byte{
		"empty": nil, "one byte less": b[:len(b)-1], "one byte more": append(bytes.Clone(b), 0),
		"version 2":     append([]byte{2}, b[1:]...),
		"huge":          make([]byte, 60000),
		"a year 300000": binary.BigEndian.AppendUint64([]byte{1}, 1<<63),
	} {
		r, err := ParseAccessRequest(bad)
		if _, ok := errors.AsType[*RefusedError](err); !ok || r != (AccessRequest{}) {
			t.Errorf("%s: got %+v, %v", name, r, err)
		}
	}
}

// FuzzParseAccessRequest: the attacker has a login, or is the relay.
func FuzzParseAccessRequest(f *testing.F) {
	r, err := SignAccessRequest(NetworkID{1}, "c1", AccessRequest{Issued: time.Now(), For: time.Hour, Reason: "disk full"}, key.NewLogin())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(r.Append(nil))
	f.Add([]byte{accessRequestVersion, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseAccessRequest(b)
		if err != nil {
			return
		}
		if !bytes.Equal(r.Append(nil), b) {
			t.Errorf("got %x, want %x", r.Append(nil), b)
		}
		if err := r.Check(); err != nil {
			t.Error(err)
		}
	})
}
