package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Relay is a zt-relay of the lab. It can be killed and started again; its state
// directory stays.
type Relay struct {
	URL     string // https://HOST or https://HOST:PORT
	Dir     string // state directory
	Process *Process

	lab       *Lab
	program   string
	namespace *Namespace
	listen    string // HOST:PORT of TCP and of UDP
}

// Claim is what a relay that no network has claimed prints.
type Claim struct {
	Code string // one-time
	Pin  string // of its self-signed certificate
}

// StartRelay starts a relay with a self-signed certificate. listen is HOST:PORT
// for TCP and for UDP; an empty port is a free one.
func (l *Lab) StartRelay(ctx context.Context, program string, namespace *Namespace, listen string) (*Relay, Claim, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, Claim{}, fmt.Errorf("start the relay: %w", err)
	}
	if port == "" {
		n, err := FreePort()
		if err != nil {
			return nil, Claim{}, fmt.Errorf("start the relay: %w", err)
		}
		port = fmt.Sprint(n)
	}
	r := &Relay{URL: "https://" + host, Dir: filepath.Join(l.Dir, "relay"), lab: l, program: program, namespace: namespace, listen: net.JoinHostPort(host, port)}
	if port != "443" {
		r.URL += ":" + port
	}
	if err := r.Start(ctx); err != nil {
		return nil, Claim{}, err
	}
	claim, err := r.claim(ctx)
	if err != nil {
		return nil, Claim{}, err
	}
	l.Say("the relay serves %s, TCP and UDP; no network has claimed it yet", r.URL)
	return r, claim, nil
}

// Start runs the relay and waits until it serves. It also brings a killed one
// back.
func (r *Relay) Start(ctx context.Context) error {
	p, err := r.lab.Start(Command{
		Name: "zt-relay", Namespace: r.namespace, Grace: 5 * time.Second,
		Args: r.serveArgs(),
	})
	if err != nil {
		return err
	}
	r.Process = p
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return p.WaitFor(ctx, "its listener", func(ctx context.Context) error {
		c, err := r.namespace.DialContext(ctx, "tcp", r.listen)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// Command runs an operator's command on the relay's machine, such as status or
// revoke.
func (r *Relay) Command(ctx context.Context, args ...string) Result {
	return r.lab.Run(ctx, Command{Name: "zt-relay", Namespace: r.namespace, Args: r.operatorArgs(args)})
}

// RelayEvent is one line of the relay's audit log, as far as the lab looks.
type RelayEvent struct {
	Time    time.Time `json:"time"`
	Event   string    `json:"event"`
	Kind    string    `json:"kind"`
	Name    string    `json:"name"`
	Issuer  string    `json:"issuer"`
	SID     string    `json:"sid"`
	Cluster string    `json:"cluster"`
	Edge    string    `json:"edge"`
	Reason  string    `json:"reason"`
	Detail  string    `json:"detail"`
}

// Audit reads the relay's audit log.
func (r *Relay) Audit() ([]RelayEvent, error) {
	return readLines[RelayEvent](r.auditFile())
}

// readLines reads a file of JSON lines; a last line that is not whole yet is
// left out.
func readLines[T any](file string) ([]T, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	var all []T
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		var v T
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			return nil, fmt.Errorf("read audit log %s: %w: %q", file, err, line)
		}
		all = append(all, v)
	}
	return all, nil
}
