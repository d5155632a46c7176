package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/relay"
)

const adminIssuer = "https://login.example.com"

// adminRelay runs a real relay with a self-signed certificate until the test ends,
// or stop is called.
func adminRelay(t *testing.T) (s *relay.Server, stop func()) {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s, err = relay.New(relay.Config{
		StateDir: t.TempDir(), Listener: tcp, UDP: []*net.UDPConn{udp}, TLS: relay.TLS{SelfSigned: []string{"127.0.0.1"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("relay: %v", err)
		}
	}
	t.Cleanup(stop)
	return s, stop
}

// adminMachine is one person's machine.
type adminMachine struct {
	t   *testing.T
	dir string
}

// run types a command and returns the exit code and both outputs.
func (m adminMachine) run(args ...string) (code int, stdout, stderr string) {
	m.t.Helper()
	var out, errOut bytes.Buffer
	env := &environment{
		stdin: strings.NewReader(""), stdout: &out, stderr: &errOut, getenv: func(string) string { return "" },
		goos: "linux", home: m.dir, uid: os.Geteuid(), isTerminal: func() bool { return false },
	}
	code = run(m.t.Context(), env, append(args, "--state-dir", m.dir))
	return code, out.String(), errOut.String()
}

func (m adminMachine) ok(args ...string) string {
	m.t.Helper()
	code, out, errOut := m.run(args...)
	if code != 0 {
		m.t.Fatalf("%q: exit code %d\n%s%s", args, code, out, errOut)
	}
	return out
}

// refused checks that a command fails with that code, saying all of texts.
func (m adminMachine) refused(code int, texts []string, args ...string) {
	m.t.Helper()
	got, out, errOut := m.run(args...)
	if got != code || out != "" {
		m.t.Errorf("%q: exit code %d, want %d; it printed %q\n%s", args, got, code, out, errOut)
	}
	for _, text := range append(texts, "hint:") {
		if !strings.Contains(errOut, text) {
			m.t.Errorf("%q says %q, want it to hold %q", args, errOut, text)
		}
	}
}

func (m adminMachine) head() *auth.Head {
	m.t.Helper()
	h := &auth.Head{}
	if err := json.Unmarshal([]byte(m.ok("network", "show", "-o", "json")), h); err != nil {
		m.t.Fatal(err)
	}
	return h
}

// networks are the directories that the machine keeps of networks.
func (m adminMachine) networks() []string {
	m.t.Helper()
	found, err := filepath.Glob(filepath.Join(m.dir, "admin", "networks", "*"))
	if err != nil {
		m.t.Fatal(err)
	}
	return found
}

func newMachine(t *testing.T) adminMachine { return adminMachine{t, t.TempDir()} }

func createArgs(s *relay.Server, more ...string) []string {
	return append([]string{"network", "create", "--relay", s.URL(), "--claim", s.ClaimCode(), "--pin", s.Pin(),
		"--issuer", adminIssuer, "--client-id", "zt"}, more...)
}

func TestNetworkCreate(t *testing.T) {
	s, _ := adminRelay(t)
	m := newMachine(t)
	code := s.ClaimCode()
	other := "A" + code[1:]
	if other == code {
		other = "B" + code[1:]
	}
	foreign, _ := adminRelay(t)

	for name, c := range map[string]struct {
		exit  int
		texts []string
		args  []string
	}{
		"no claim":         {2, []string{"--claim is missing"}, []string{"network", "create", "--relay", s.URL()}},
		"no code":          {2, []string{"52", "first lines"}, createArgs(s, "--claim", "ABC")},
		"wrong code":       {1, []string{"not the relay's claim code"}, createArgs(s, "--claim", other)},
		"another relay's":  {1, []string{"which the claim code does not name"}, createArgs(s, "--claim", foreign.ClaimCode())},
		"wrong pin":        {1, []string{"TLS certificate", s.Pin()}, createArgs(s, "--pin", foreign.Pin())},
		"not a pin":        {2, []string{"not base64"}, createArgs(s, "--pin", "abc")},
		"relay on http":    {2, []string{"https"}, createArgs(s, "--relay", strings.Replace(s.URL(), "https", "http", 1))},
		"unreachable":      {4, []string{"unreachable"}, createArgs(s, "--relay", "https://127.0.0.1:1")},
		"multi-tenant":     {1, []string{"signs for every tenant", "hd="}, createArgs(s, "--issuer", "https://accounts.google.com")},
		"symmetric":        {1, []string{"HS256"}, createArgs(s, "--algorithm", "HS256")},
		"grant age":        {1, []string{"grantAge"}, createArgs(s, "--grant-age", "25h")},
		"redirect port":    {2, []string{"65536"}, createArgs(s, "--redirect-port", "65536")},
		"redirect host":    {1, []string{"loopback"}, createArgs(s, "--redirect-host", "example.com")},
		"no such argument": {2, nil, createArgs(s, "x")},
	} {
		t.Run(name, func(t *testing.T) {
			m := m
			m.t = t
			m.refused(c.exit, c.texts, c.args...)
			if left := m.networks(); len(left) != 0 {
				t.Errorf("it left %q behind", left)
			}
		})
	}

	out := m.ok(createArgs(s, "--require", "hd=example.com", "--redirect-port", "8000,18000", "--redirect-host", "localhost",
		"--scope", "openid,groups", "--audience", "zt-cli", "--login-age", "8h", "--grant-age", "10h", "--groups-claim", "roles")...)
	h := m.head()
	if !strings.Contains(out, "zt-daemon login "+s.URL()+"/"+h.Network.String()) {
		t.Errorf("no login line in %q", out)
	}
	if h.Version != 1 || len(h.Relays) != 1 || h.Relays[0].Key != s.Key() || h.Relays[0].NextKey != s.NextKey() || len(h.Relays[0].Pins) != 1 || h.Relays[0].Pins[0] != s.Pin() {
		t.Errorf("head %+v", h)
	}
	want := `{"url":"https://login.example.com","clientID":"zt","audiences":["zt-cli"],"require":{"hd":"example.com"},"redirectHost":"localhost","redirectPorts":[8000,18000],"scopes":["openid","groups"],"groupsClaim":"roles","loginAge":"8h","grantAge":"10h"}`
	if got, err := json.Marshal(h.Issuers[0]); err != nil || string(got) != want {
		t.Errorf("issuer %s, %v; want %s", got, err, want)
	}
	key := filepath.Join(m.networks()[0], "network.key")
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("network key: %v, %v; want mode 0600", info, err)
	}
	// A code is good once, and a second network leaves the first one's key alone.
	m.refused(1, []string{"claimed before"}, createArgs(s)...)
	if left := m.networks(); len(left) != 1 {
		t.Errorf("networks %q, want one", left)
	}
	text := m.ok("network", "show")
	for _, part := range []string{h.Network.String(), s.URL(), s.Pin(), adminIssuer, key} {
		if !strings.Contains(text, part) {
			t.Errorf("network show has no %q: %s", part, text)
		}
	}
}

// TestNetworkCreateUnvouched: without --pin, a certificate that nobody vouches for
// is pinned with a warning, and of what the relay says only the proved key counts.
func TestNetworkCreateUnvouched(t *testing.T) {
	s, _ := adminRelay(t)
	m := newMachine(t)
	code, _, errOut := m.run("network", "create", "--relay", s.URL(), "--claim", s.ClaimCode(), "--issuer", adminIssuer, "--client-id", "zt")
	if code != 0 || !strings.Contains(errOut, "warning: nothing vouches") || !strings.Contains(errOut, s.Pin()) {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	if r := m.head().Relays[0]; !r.NextKey.IsZero() || r.UDP != "" || r.Pins[0] != s.Pin() {
		t.Errorf("relay %+v", r)
	}
}

func TestNetworkSign(t *testing.T) {
	s, _ := adminRelay(t)
	m := newMachine(t)
	m.ok(createArgs(s, "--groups-claim", "roles", "--grant-age", "10h")...)
	mona := newMachine(t)
	_, public, _ := strings.Cut(strings.TrimSpace(mona.ok("signer", "create", "--name", "mona")), "mona=")
	if again := mona.ok("signer", "create", "--name", "mona"); !strings.Contains(again, public) {
		t.Errorf("a second signer create made another key: %s, want %s", again, public)
	}

	m.ok("network", "sign")
	m.ok("network", "sign", "--signer", "mona="+public, "--min-record", "c1=4", "--issuer", adminIssuer, "--grant-age", "6h")
	h := m.head()
	if h.Version != 3 || len(h.Signers) != 1 || h.Signers[0].Name != "mona" || h.Signers[0].Key.String() != public || h.MinRecord["c1"] != 4 {
		t.Errorf("head %+v", h)
	}
	if i := h.Issuers[0]; i.GroupsClaim != "roles" || i.ClientID != "zt" || i.GrantAge != auth.Duration(6*time.Hour) {
		t.Errorf("issuer %+v: what no flag named was lost", i)
	}
	if text := m.ok("network", "show"); !strings.Contains(text, public) || !strings.Contains(text, "c1 version 4") {
		t.Errorf("network show: %s", text)
	}
	// Another machine sees the same, and may not sign it.
	as := []string{"--network", h.Network.String(), "--relay", s.URL()}
	if out := mona.ok(append([]string{"network", "show"}, as...)...); !strings.Contains(out, "version 3") || !strings.Contains(out, "not on this machine") {
		t.Errorf("network show: %s", out)
	}
	mona.refused(1, []string{"needs the key of network"}, append([]string{"network", "sign"}, as...)...)

	for name, c := range map[string]struct {
		exit  int
		texts []string
		args  []string
	}{
		"unknown relay":      {2, []string{"no relay"}, []string{"--remove-relay", "https://x.example"}},
		"last relay":         {1, []string{"names no relay"}, []string{"--remove-relay", s.URL()}},
		"unknown signer":     {2, []string{"no signer"}, []string{"--remove-signer", "bob"}},
		"signer's key":       {2, []string{"--signer bob"}, []string{"--signer", "bob=AAAA"}},
		"signer's name":      {1, []string{"DNS label"}, []string{"--signer", "Bob=" + public}},
		"key admitted twice": {1, []string{"twice"}, []string{"--signer", "bob=" + public}},
		"unknown issuer":     {2, []string{"no issuer"}, []string{"--remove-issuer", "https://x.example"}},
		"last issuer":        {1, []string{"names no issuer"}, []string{"--remove-issuer", adminIssuer}},
		"new issuer":         {1, []string{"no clientID"}, []string{"--issuer", "https://new.example"}},
		"issuer flag alone":  {2, []string{"--issuer"}, []string{"--client-id", "x"}},
		"claim alone":        {2, []string{"--add-relay"}, []string{"--claim", "x"}},
		"relay without code": {2, []string{"--claim"}, []string{"--add-relay", s.URL()}},
		"older min-record":   {2, []string{"stays withdrawn"}, []string{"--min-record", "c1=3"}},
		"min-record":         {2, []string{"not a version"}, []string{"--min-record", "c1=x"}},
		"life":               {2, []string{"--life"}, []string{"--life", "-1h"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := m
			m.t = t
			m.refused(c.exit, c.texts, append([]string{"network", "sign"}, c.args...)...)
			if v := m.head().Version; v != 3 {
				t.Errorf("head version is %d, want 3", v)
			}
		})
	}
	m.ok("network", "sign", "--remove-signer", "mona")
	if h := m.head(); len(h.Signers) != 0 || h.Version != 4 {
		t.Errorf("head %+v", h)
	}
}

// adminAPIServer is a TLS server with that name in its certificate, and files of
// its CA.
func adminAPIServer(t *testing.T, name string) (addr, caFile string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: k}}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(5 * time.Second))
			_ = c.(*tls.Conn).Handshake() // the client says what it thinks of it
			c.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	caFile = filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	return ln.Addr().String(), caFile
}

// adminKubectl puts a kubectl on the PATH which shows a context of that API
// server, and keeps a cluster in files of a directory: what it is given to apply
// it appends to applied.yaml, the words of delete to deleted; what it answers to
// get it reads from WHAT.json. After each apply next-*.json are renamed into place.
func adminKubectl(t *testing.T, cluster string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	script := `#!/bin/sh
cd "` + dir + `"
while [ $# -gt 0 ]; do
  case "$1" in
  --context|--kubeconfig) shift 2 ;;
  *) break ;;
  esac
done
case "$1 $2" in
"config view") echo '{"clusters":[{"cluster":` + cluster + `}]}' ;;
"get configmap"*|"get secret"*)
  case "$3" in
  kube-root-ca.crt) [ -f root-ca ] && cat root-ca || { echo forbidden >&2; exit 1; } ;;
  *) [ ! -f "$2.json" ] || cat "$2.json" ;;
  esac ;;
"get namespace") [ ! -f namespace.json ] || echo "namespace/$3" ;;
"get nodes"|"get daemonsets,deployments"|"get pods"|"get events")
  [ -f "$2.json" ] && cat "$2.json" || echo '{"items":[]}' ;;
"logs "*) cat log ;;
"delete "*) shift; echo "$@" >>deleted ;;
"apply --server-side")
  cat >>applied.yaml; echo applied
  for f in next-*.json; do [ ! -f "$f" ] || mv "$f" "${f#next-}"; done ;;
*) echo "kubectl $*: the server hung up" >&2; exit 1 ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "kubectl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return dir
}

// kubeCluster is a kubeconfig's cluster in JSON.
func kubeCluster(t *testing.T, addr, caFile string, more string) string {
	t.Helper()
	ca, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(ca) // base64
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`{"server":"https://%s","certificate-authority-data":%s%s}`, addr, data, more)
}

func TestClusterAdd(t *testing.T) {
	s, _ := adminRelay(t)
	m := newMachine(t)
	m.ok(createArgs(s)...)
	addr, caFile := adminAPIServer(t, "kubernetes.default.svc")
	adminKubectl(t, kubeCluster(t, addr, caFile, ""))
	dir := filepath.Join(t.TempDir(), "node")
	add := func(more ...string) []string {
		return append([]string{"cluster", "add", "c1", "--context", "admin", "--out", dir, "--api-client-id", "kubernetes", "--group", "developers"}, more...)
	}
	m.ok(add()...)

	settings, err := os.ReadFile(filepath.Join(dir, daemon.NodeConfigFile))
	if err != nil {
		t.Fatal(err)
	}
	node, err := daemon.ParseNodeSettings(settings)
	if err != nil || node.Cluster != "c1" || node.Upstream != addr || node.Relay != s.URL() {
		t.Errorf("node.yaml is %+v, %v", node, err)
	}
	if info, err := os.Stat(filepath.Join(dir, daemon.ClusterKeyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("cluster key: %v, %v; want mode 0600", info, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, daemon.PolicyFile))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := auth.ParsePolicy(text); err != nil || len(p.Rules) != 1 || p.Rules[0].Groups[0] != "developers" || p.Rules[0].Ports[0] != 443 {
		t.Errorf("policy %s: %v", text, err)
	}
	records := func() (all []auth.Record) {
		t.Helper()
		if err := json.Unmarshal([]byte(m.ok("cluster", "list", "-o", "json")), &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	r := records()
	if len(r) != 1 || r[0].Version != 1 || r[0].TLSName != "kubernetes.default.svc" || len(r[0].CAs) != 1 || len(r[0].Keys) != 1 || r[0].Issuer == nil || r[0].Issuer.ClientID != "kubernetes" || r[0].Issuer.URL != adminIssuer {
		t.Fatalf("records %+v", r)
	}

	// Again: same key, same policy, next version. A new key stands beside the old.
	if err := os.WriteFile(filepath.Join(dir, daemon.PolicyFile), append(text, "# mine\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	var added struct {
		Version uint64 `json:"version"`
		TLSName string `json:"tlsName"`
	}
	if err := json.Unmarshal([]byte(m.ok(add("-o", "json")...)), &added); err != nil || added.Version != 2 || added.TLSName != "kubernetes.default.svc" {
		t.Errorf("cluster add -o json: %+v, %v", added, err)
	}
	if again := records()[0]; again.Keys[0].Value != r[0].Keys[0].Value || len(again.Keys) != 1 || len(again.CAs) != 1 {
		t.Errorf("keys %v, want %v", again.Keys, r[0].Keys)
	}
	if kept, err := os.ReadFile(filepath.Join(dir, daemon.PolicyFile)); err != nil || !strings.HasSuffix(string(kept), "# mine\n") {
		t.Errorf("the policy was replaced: %s, %v", kept, err)
	}
	m.ok(add("--new-key")...)
	if keys := records()[0].Keys; len(keys) != 2 || keys[0].Value == r[0].Keys[0].Value || keys[1].Value != r[0].Keys[0].Value || time.Until(keys[1].NotAfter) > 25*time.Hour {
		t.Errorf("keys after --new-key: %+v", keys)
	}

	// What the API server accepts, the overlay must not; whichever is signed last.
	m.refused(1, []string{`audience "zt"`, "second client"}, add("--api-client-id", "zt")...)
	m.refused(1, []string{"cluster c1", `audience "kubernetes"`}, "network", "sign", "--issuer", adminIssuer, "--audience", "kubernetes")
	if err := os.WriteFile(filepath.Join(dir, daemon.PolicyFile), []byte("issuers: [{url: "+adminIssuer+", clientID: zt, audiences: [other]}]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.refused(1, []string{`audience "other"`}, add("--api-client-id", "other")...)

	for name, c := range map[string]struct {
		exit  int
		texts []string
		args  []string
	}{
		"name":        {2, []string{"DNS label"}, []string{"cluster", "add", "C_1", "--keep-user"}},
		"no user":     {2, []string{"--keep-user"}, []string{"cluster", "add", "c1"}},
		"two users":   {2, []string{"--keep-user"}, add("--keep-user")},
		"wrong CA":    {1, []string{"CA"}, add("--ca-file", filepath.Join(dir, daemon.NodeConfigFile))},
		"TLS name":    {1, []string{"tlsName"}, add("--tls-server-name", "a b")},
		"unknown":     {1, []string{`no cluster "c2"`}, []string{"cluster", "remove", "c2"}},
		"two names":   {2, nil, []string{"cluster", "remove", "c1", "c2"}},
		"two places":  {2, []string{"--out", "--install"}, add("--install")},
		"namespace":   {2, []string{"DNS label"}, []string{"cluster", "add", "c1", "--keep-user", "--namespace", "Zt"}},
		"no argument": {2, nil, []string{"cluster", "add"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := m
			m.t = t
			m.refused(c.exit, c.texts, c.args...)
		})
	}

	// Somebody without a key is told whom to ask, and for what.
	other := newMachine(t)
	as := []string{"--network", m.head().Network.String(), "--relay", s.URL()}
	other.refused(1, []string{"neither", "signer create"}, add(as...)...)
	_, public, _ := strings.Cut(strings.TrimSpace(other.ok("signer", "create", "--name", "mona")), "mona=")
	other.refused(1, []string{"network sign", "--signer NAME=" + public}, add(as...)...)
	m.ok("network", "sign", "--signer", "mona="+public)
	dir = filepath.Join(t.TempDir(), "other")
	other.ok(add(as...)...)
	if r := records(); len(r) != 1 || r[0].Signer != "mona" || r[0].Version != 4 {
		t.Errorf("records %+v", r)
	}
	// When the signer has gone, the next version still is the next.
	m.ok("network", "sign", "--remove-signer", "mona")
	if r := records(); len(r) != 0 {
		t.Errorf("records of a removed signer: %+v", r)
	}

	m.ok(add()...)
	m.ok("cluster", "remove", "c1")
	if r := records(); len(r) != 1 || !r[0].Removed {
		t.Errorf("records %+v", r)
	}
	if text := m.ok("cluster", "list"); strings.Contains(text, "c1") {
		t.Errorf("cluster list shows a removed one: %s", text)
	}
	m.refused(1, []string{"no cluster"}, "cluster", "remove", "c1")
}

func TestClusterAddIntoCluster(t *testing.T) {
	s, _ := adminRelay(t)
	m := newMachine(t)
	m.ok(createArgs(s)...)
	addr, caFile := adminAPIServer(t, "api.example.com")
	_, rootFile := adminAPIServer(t, "kubernetes.default.svc")
	for name, c := range map[string]struct {
		cluster string
		rootCA  bool // readable
		args    []string
		tlsName string // "" = refused
		ca      string // file
		texts   []string
		exit    int
	}{
		"as the context says": {cluster: kubeCluster(t, addr, caFile, ""), tlsName: "127.0.0.1", ca: caFile},
		"as pods see it":      {cluster: kubeCluster(t, addr, caFile, ""), rootCA: true, tlsName: "kubernetes.default.svc", ca: rootFile},
		"by its TLS name":     {cluster: kubeCluster(t, addr, caFile, `,"tls-server-name":"api.example.com"`), tlsName: "api.example.com", ca: caFile},
		"behind a proxy":      {cluster: kubeCluster(t, "127.0.0.1:1", caFile, `,"proxy-url":"http://127.0.0.1:2"`), tlsName: "127.0.0.1", ca: caFile},
		"by flags":            {cluster: kubeCluster(t, "127.0.0.1:1", caFile, ""), args: []string{"--tls-server-name", "api", "--ca-file", rootFile}, tlsName: "api", ca: rootFile},
		"insecure":            {cluster: `{"server":"https://` + addr + `","insecure-skip-tls-verify":true}`, rootCA: true, texts: []string{"skips TLS verification", "always verified"}, exit: 1},
		"no CA":               {cluster: `{"server":"https://` + addr + `"}`, texts: []string{"--ca-file"}, exit: 1},
		"another CA":          {cluster: kubeCluster(t, addr, rootFile, ""), texts: []string{addr, "--tls-server-name"}, exit: 4},
		"another name":        {cluster: kubeCluster(t, addr, caFile, `,"tls-server-name":"x.example"`), texts: []string{"x.example"}, exit: 4},
		"http":                {cluster: `{"server":"http://` + addr + `"}`, texts: []string{"https"}, exit: 1},
	} {
		t.Run(name, func(t *testing.T) {
			m := m
			m.t = t
			dir := adminKubectl(t, c.cluster)
			root, err := os.ReadFile(rootFile)
			if err != nil {
				t.Fatal(err)
			}
			if c.rootCA {
				if err := os.WriteFile(filepath.Join(dir, "root-ca"), root, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			args := append([]string{"cluster", "add", "c2", "--context", "admin", "--keep-user", "--group", "ops"}, c.args...)
			applied := filepath.Join(dir, "applied.yaml")
			if c.tlsName == "" {
				m.refused(c.exit, c.texts, args...)
				if _, err := os.Stat(applied); err == nil {
					t.Error("something was applied")
				}
				return
			}
			if out := m.ok(args...); !strings.Contains(out, "helm install zt ./deploy/helm/zt --namespace zt --kube-context admin --set-string network="+m.head().Network.String()) ||
				!strings.Contains(out, "upstream=kubernetes.default.svc:443") {
				t.Errorf("no line that installs nodes in %s", out)
			}
			manifest, err := os.ReadFile(applied)
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range []string{"kind: Namespace", "kind: ConfigMap", "kind: Secret", "zt-cluster-key", "head.jws", "zt-policy", "ops", "enforce: restricted"} {
				if !strings.Contains(string(manifest), part) {
					t.Errorf("no %q in what was applied:\n%s", part, manifest)
				}
			}
			var all []auth.Record
			if err := json.Unmarshal([]byte(m.ok("cluster", "list", "-o", "json")), &all); err != nil || len(all) != 1 {
				t.Fatalf("%v, %v", all, err)
			}
			want, err := os.ReadFile(c.ca)
			if err != nil {
				t.Fatal(err)
			}
			if r := all[0]; r.TLSName != c.tlsName || !r.KeepUser || strings.TrimSpace(r.CAs[0].Value) != strings.TrimSpace(string(want)) {
				t.Errorf("record %+v, want TLS name %s", r, c.tlsName)
			}
		})
	}
}

// TestAddRelay: a second relay gets head and records; when the first has gone for
// good, a third takes its place.
func TestAddRelay(t *testing.T) {
	first, stop := adminRelay(t)
	m := newMachine(t)
	m.ok(createArgs(first)...)
	addr, caFile := adminAPIServer(t, "kubernetes")
	adminKubectl(t, kubeCluster(t, addr, caFile, ""))
	m.ok("cluster", "add", "c1", "--context", "admin", "--out", t.TempDir(), "--keep-user")

	second, stopSecond := adminRelay(t)
	m.ok("network", "sign", "--add-relay", second.URL(), "--claim", second.ClaimCode(), "--pin", second.Pin())
	h := m.head()
	if len(h.Relays) != 2 || h.Relays[1].Key != second.Key() {
		t.Fatalf("relays %+v", h.Relays)
	}
	stop()
	code, out, errOut := m.run("cluster", "list")
	if code != 0 || !strings.Contains(out, "c1") || !strings.Contains(errOut, "warning: "+first.URL()) {
		t.Errorf("cluster list from the second relay: exit code %d\n%s%s", code, out, errOut)
	}
	code, out, errOut = m.run("cluster", "remove", "c1")
	if code != 0 || !strings.Contains(errOut, "warning: "+first.URL()) {
		t.Errorf("cluster remove with one relay: exit code %d\n%s%s", code, out, errOut)
	}
	stopSecond()
	m.refused(4, []string{"unreachable"}, "network", "sign")
	if out := m.ok("network", "show"); !strings.Contains(out, "version 2") {
		t.Errorf("network show without a relay: %s", out)
	}
	third, _ := adminRelay(t)
	m.ok("network", "sign", "--add-relay", third.URL(), "--claim", third.ClaimCode(), "--pin", third.Pin(), "--remove-relay", first.URL(), "--remove-relay", second.URL())
	if h := m.head(); len(h.Relays) != 1 || h.Relays[0].Key != third.Key() || h.Version != 3 {
		t.Errorf("head %+v", h)
	}
	m.ok("cluster", "list")
}

func TestAdminKeys(t *testing.T) {
	s, _ := adminRelay(t)
	m := newMachine(t)
	m.ok(createArgs(s)...)
	file := filepath.Join(m.networks()[0], "network.key")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	m.refused(1, []string{"open to other users", "chmod 600"}, "network", "sign")
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("-----BEGIN SECRET"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.refused(1, []string{"network.key", "backup"}, "network", "sign")
	if b, err := os.ReadFile(file); err != nil || string(b) != "-----BEGIN SECRET" {
		t.Errorf("the broken key was touched: %q, %v", b, err)
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(m.dir, "admin", "admin.lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	state, err := daemon.OpenAdminState(filepath.Join(m.dir, "admin"))
	if err != nil {
		t.Fatal(err)
	}
	held, err := state.Lock()
	if err != nil {
		t.Fatal(err)
	}
	m.refused(1, []string{"another zt-daemon command"}, "network", "sign")
	if err := held.Close(); err != nil {
		t.Error(err)
	}
	m.ok("network", "sign")
	m.refused(2, []string{"--network"}, "network", "sign", "--network", "abc")
	newMachine(t).refused(2, []string{"knows no network"}, "network", "show")
}
