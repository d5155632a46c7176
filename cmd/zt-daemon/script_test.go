package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/daemon"
)

var update = flag.Bool("update", false, "write what the program prints into testdata/script")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"zt-daemon": scriptedMain})
}

// scriptedMain is main with a laptop that answers from a file of the script,
// a browser that is a file, and a terminal where the script says so.
func scriptedMain() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	env := processEnvironment()
	env.executable = os.Getenv("ZT_TEST_EXECUTABLE")
	env.isTerminal = func() bool { return os.Getenv("ZT_TEST_TERMINAL") != "" }
	env.openBrowser = func(url string) error {
		return os.WriteFile(os.Getenv("ZT_TEST_BROWSER"), []byte(url+"\n"), 0o600)
	}
	env.runLaptop = func(ctx context.Context, cfg daemon.LaptopConfig) error {
		l := &scriptedLaptop{file: os.Getenv("ZT_TEST_LAPTOP"), down: make(chan struct{})}
		return l.run(ctx, cfg)
	}
	code := run(ctx, env, os.Args[1:])
	stop()
	os.Exit(code)
}

// scriptedLaptop answers what its file says at the time of the question. In
// the file, @+3h30s stands for the time in so long, @-3h30s for the time before.
type scriptedLaptop struct {
	file string
	down chan struct{}
}

type scene struct {
	Status   daemon.Status
	Clusters []daemon.ClusterStatus
	Whoami   []daemon.Whoami
	Token    string
	Expiry   time.Time
	Events   []daemon.LoginEvent
	Result   daemon.LoginResult
	Access   daemon.AccessRequestResult
	Hang     bool                          // the login waits for the browser
	Fail     map[string]*daemon.LocalError // by endpoint
	Start    string                        // why the daemon does not start
}

var sceneTime = regexp.MustCompile(`@([+-][0-9hms]+)`)

func (l *scriptedLaptop) scene() (s scene, err error) {
	b, err := os.ReadFile(l.file)
	if err != nil {
		return s, err
	}
	text := sceneTime.ReplaceAllStringFunc(string(b), func(at string) string {
		d, perr := time.ParseDuration(at[1:])
		err = errors.Join(err, perr)
		return time.Now().Add(d).Format(time.RFC3339)
	})
	return s, errors.Join(err, json.Unmarshal([]byte(text), &s))
}

func (l *scriptedLaptop) run(ctx context.Context, cfg daemon.LaptopConfig) error {
	if s, err := l.scene(); err != nil {
		return err
	} else if s.Start != "" {
		return errors.New(s.Start)
	}
	lock, err := cfg.State.Lock(daemon.DaemonInfo{PID: os.Getpid(), Socket: cfg.Socket, Version: cfg.Version, Started: time.Now()})
	if err != nil {
		return err
	}
	defer lock.Close()
	ln, err := daemon.ListenLocal(cfg.Socket)
	if err != nil {
		return err
	}
	server, err := daemon.NewLocalServer(daemon.LocalServerConfig{Handler: l, UID: cfg.UID, Log: cfg.Log})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		<-l.down
		cancel()
	}()
	cfg.Log.Info("scripted laptop started")
	return server.Run(ctx, ln)
}

// at reads the scene for one endpoint, which may fail.
func (l *scriptedLaptop) at(endpoint string) (scene, error) {
	s, err := l.scene()
	if err != nil {
		return s, err
	}
	if e := s.Fail[endpoint]; e != nil {
		return s, e
	}
	return s, nil
}

func (l *scriptedLaptop) Status(context.Context) (daemon.Status, error) {
	s, err := l.at("status")
	s.Status.PID = os.Getpid()
	return s.Status, err
}

func (l *scriptedLaptop) Clusters(context.Context) ([]daemon.ClusterStatus, error) {
	s, err := l.at("clusters")
	return s.Clusters, err
}

func (l *scriptedLaptop) Whoami(context.Context) ([]daemon.Whoami, error) {
	s, err := l.at("whoami")
	return s.Whoami, err
}

func (l *scriptedLaptop) Login(ctx context.Context, req daemon.LoginRequest, send func(daemon.LoginEvent)) (daemon.LoginResult, error) {
	s, err := l.at("login")
	if err != nil {
		return s.Result, err
	}
	send(daemon.LoginEvent{Type: daemon.LoginStep, Message: "logging in to " + req.Network + " at " + req.Relay})
	for _, e := range s.Events {
		send(e)
	}
	if s.Hang {
		<-ctx.Done()
		return s.Result, ctx.Err()
	}
	return s.Result, nil
}

func (l *scriptedLaptop) Logout(_ context.Context, req daemon.LogoutRequest) error {
	_, err := l.at("logout")
	return err
}

func (l *scriptedLaptop) Credential(_ context.Context, req daemon.CredentialRequest) (daemon.CredentialResult, error) {
	s, err := l.at("credential")
	return daemon.CredentialResult{IDToken: daemon.NewSecret(s.Token), Expiry: s.Expiry}, err
}

func (l *scriptedLaptop) RequestAccess(_ context.Context, req daemon.AccessRequest) (daemon.AccessRequestResult, error) {
	s, err := l.at("access")
	if s.Access.Detail == "what was asked" {
		s.Access.Detail = fmt.Sprintf("%s for %s: %s", req.Cluster, req.For, req.Reason)
	}
	return s.Access, err
}

func (l *scriptedLaptop) Down(context.Context) error {
	close(l.down)
	return nil
}

func TestScripts(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			home := filepath.Join(env.WorkDir, "home")
			env.Setenv("HOME", home)
			env.Setenv("XDG_STATE_HOME", filepath.Join(home, ".local", "state"))
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(home, ".config"))
			env.Setenv("ZT_TEST_EXECUTABLE", self)
			env.Setenv("ZT_TEST_LAPTOP", filepath.Join(env.WorkDir, "laptop.json"))
			env.Setenv("ZT_TEST_BROWSER", filepath.Join(env.WorkDir, "browser"))
			env.Setenv("DISPLAY", ":0")
			if env.Getenv("GORACE") == "" {
				env.Setenv("GORACE", "atexit_sleep_ms=10") // not the default second for every command
			}
			// A socket's path may have 103 bytes, and the script's directory is long.
			run, err := os.MkdirTemp("", "zt-run-")
			if err != nil {
				return err
			}
			env.Setenv("XDG_RUNTIME_DIR", run)
			env.Defer(func() { os.RemoveAll(run) })
			env.Defer(func() { endDaemon(t, filepath.Join(home, ".local", "state", "zt")) })
			return os.MkdirAll(filepath.Join(home, ".kube"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": cmdExits,
			"know":  cmdKnow,
			"relay": cmdRelay,
			"mode":  cmdMode,
		},
	})
}

// endDaemon ends a daemon that a script that failed has left.
func endDaemon(t *testing.T, dir string) {
	state, err := daemon.OpenState(dir)
	if err != nil {
		return
	}
	info, err := state.Daemon()
	if err != nil {
		return
	}
	client := daemon.NewLocalClient(info.Socket, os.Geteuid())
	if client.Down(context.Background()) == nil {
		t.Logf("the script left daemon %d", info.PID)
	}
}

// exits CODE COMMAND…: the command ends with this code.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code is %d, want %d", got, want)
	}
}

// mode OCTAL FILE: the file has this mode.
func cmdMode(ts *testscript.TestScript, neg bool, args []string) {
	info, err := os.Stat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("mode is %s, want %s", got, args[0])
	}
}

func scriptHead(ts *testscript.TestScript, url string) *auth.Head {
	head, err := auth.SignHead(auth.Head{
		Version: 1,
		Relays:  []auth.Relay{{URL: url, Key: key.NewRelay().Public()}},
		Issuers: []auth.Issuer{auth.Issuer{URL: "https://login.example.com", ClientID: "zt-overlay"}.WithDefaults()},
	}, key.NewNetwork())
	ts.Check(err)
	return head
}

// know URL: the state directory has a network with this relay; its id is in $KNOWN.
func cmdKnow(ts *testscript.TestScript, neg bool, args []string) {
	state, err := daemon.OpenState(filepath.Join(ts.Getenv("XDG_STATE_HOME"), "zt"))
	ts.Check(err)
	head := scriptHead(ts, args[0])
	ts.Check(state.Network(head.Network).KeepHead(head))
	ts.Setenv("KNOWN", head.Network.String())
}

// relay: one serves a head; its URL is in $RELAY, the network's id in $NETWORK,
// and commands trust its certificate.
func cmdRelay(ts *testscript.TestScript, neg bool, args []string) {
	var raw []byte
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/v1/head" {
			http.NotFound(w, r)
			return
		}
		w.Write(raw)
	}))
	ts.Defer(server.Close)
	head := scriptHead(ts, server.URL)
	raw = head.Raw()
	ca := ts.MkAbs("relay-ca.pem")
	ts.Check(os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	ts.Setenv("SSL_CERT_FILE", ca)
	ts.Setenv("RELAY", server.URL)
	ts.Setenv("NETWORK", head.Network.String())
}

func TestReadLineEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, w := io.Pipe()
	defer w.Close()
	if _, err := readLine(ctx, r); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if line, err := readLine(t.Context(), strings.NewReader("y\nmore")); err != nil || line != "y\n" {
		t.Errorf("got %q, %v", line, err)
	}
	if line, err := readLine(t.Context(), strings.NewReader("")); err != nil || line != "" {
		t.Errorf("no answer: got %q, %v", line, err)
	}
}
