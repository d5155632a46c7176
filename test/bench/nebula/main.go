// Command nebula plays the benchmark's roles of Nebula: two participants and the
// relay, which is their lighthouse too. Each has a TUN device.
package main

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/slackhq/nebula"
	"github.com/slackhq/nebula/cert"
	"github.com/slackhq/nebula/config"
	"go.yaml.in/yaml/v3"

	"github.com/zt-daemon/zt/test/bench/load"
)

const (
	udpPort  = 4242
	flowPort = "5001"
	mtu      = 1300

	relayAddr, clientAddr, nodeAddr = "10.98.0.2", "10.98.0.1", "10.98.0.3"
)

func main() {
	load.Play(map[string]load.Role{"nebula-relay": relay, "nebula-node": node, "nebula-client": client})
	fmt.Fprintln(os.Stderr, "nebula: started by the benchmark only")
	os.Exit(2)
}

type settings = map[string]any

// begin runs Nebula with a certificate of in and the settings of one role.
func begin(in load.Params, name string, own settings) (*nebula.Control, error) {
	anybody := []settings{{"port": "any", "proto": "any", "host": "any"}}
	all := settings{
		"pki":      settings{"ca": in["ca"], "cert": in[name+"-cert"], "key": in[name+"-key"]},
		"tun":      settings{"dev": "nebula1", "mtu": mtu},
		"firewall": settings{"outbound": anybody, "inbound": anybody},
		"listen":   settings{"host": "0.0.0.0", "port": udpPort},
		"logging":  settings{"level": "error"},
	}
	for k, v := range own {
		all[k] = v
	}
	text, err := yaml.Marshal(all)
	if err != nil {
		return nil, err
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	c := config.NewC(log)
	if err := c.LoadString(string(text)); err != nil {
		return nil, err
	}
	control, err := nebula.Main(c, false, "bench", log, nil)
	if err != nil {
		return nil, err
	}
	go control.Start() // ends with the process
	return control, nil
}

// participantSettings are a participant's: all it knows is the relay, at in["host"].
func participantSettings(in load.Params) settings {
	return settings{
		"static_host_map": settings{relayAddr: []string{fmt.Sprintf("%s:%d", in["host"], udpPort)}},
		"lighthouse":      settings{"hosts": []string{relayAddr}, "interval": 1},
		"relay":           settings{"relays": []string{relayAddr}, "use_relays": true},
	}
}

// relay makes everybody's certificates, and relays.
func relay(_ context.Context, in load.Params) (*load.Stack, load.Params, error) {
	out := load.Params{"host": in["host"]}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	begins, ends := time.Now().Add(-time.Minute), time.Now().Add(24*time.Hour)
	authority, err := (&cert.TBSCertificate{
		Version: cert.Version2, Curve: cert.Curve_CURVE25519, Name: "bench", IsCA: true, NotBefore: begins, NotAfter: ends, PublicKey: public,
	}).Sign(nil, cert.Curve_CURVE25519, private)
	if err != nil {
		return nil, nil, err
	}
	text, err := authority.MarshalPEM()
	if err != nil {
		return nil, nil, err
	}
	out["ca"] = string(text)
	for name, addr := range map[string]string{"relay": relayAddr, "client": clientAddr, "node": nodeAddr} {
		k, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		c, err := (&cert.TBSCertificate{
			Version: cert.Version2, Curve: cert.Curve_CURVE25519, Name: name, NotBefore: begins, NotAfter: ends.Add(-time.Minute),
			Networks: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(addr), 24)}, PublicKey: k.PublicKey().Bytes(),
		}).Sign(authority, cert.Curve_CURVE25519, private)
		if err != nil {
			return nil, nil, err
		}
		if text, err = c.MarshalPEM(); err != nil {
			return nil, nil, err
		}
		out[name+"-cert"], out[name+"-key"] = string(text), string(cert.MarshalPrivateKeyToPEM(cert.Curve_CURVE25519, k.Bytes()))
	}
	_, err = begin(out, "relay", settings{"lighthouse": settings{"am_lighthouse": true}, "relay": settings{"am_relay": true}})
	return &load.Stack{}, out, err
}

func node(ctx context.Context, in load.Params) (*load.Stack, load.Params, error) {
	if _, err := begin(in, "node", participantSettings(in)); err != nil {
		return nil, nil, err
	}
	for {
		ln, err := net.Listen("tcp", net.JoinHostPort(nodeAddr, flowPort))
		if err == nil {
			return &load.Stack{Listener: ln}, in, nil
		}
		select { // the device has its address in a moment
		case <-ctx.Done():
			return nil, nil, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func client(_ context.Context, in load.Params) (*load.Stack, load.Params, error) {
	control, err := begin(in, "client", participantSettings(in))
	if err != nil {
		return nil, nil, err
	}
	return &load.Stack{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(nodeAddr, flowPort))
		},
		Path: func(context.Context) (string, error) {
			h := control.GetHostInfoByVpnAddr(netip.MustParseAddr(nodeAddr), false)
			switch {
			case h == nil:
				return "", errors.New("no tunnel to the node yet")
			case h.CurrentRemote.IsValid():
				return "direct", nil
			case len(h.CurrentRelaysToMe) > 0:
				return "relay", nil
			}
			return "", errors.New("the tunnel has no path yet")
		},
	}, nil, nil
}
