package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "write what the programs print into testdata/script")

func TestMain(m *testing.M) {
	testscript.Main(withDaemon{m}, map[string]func(){"zt-relay": main})
}

// withDaemon puts zt-daemon, which claims relays, on the PATH of the scripts.
type withDaemon struct{ m *testing.M }

func (w withDaemon) Run() int {
	flag.Parse()
	dir, err := os.MkdirTemp("", "zt-relay-script-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if out, err := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "github.com/zt-daemon/zt/cmd/zt-daemon").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build zt-daemon: %v\n%s", err, out)
		return 1
	}
	os.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return w.m.Run()
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", filepath.Join(env.WorkDir, "home"))
			for name, dir := range map[string]string{"CONFIG_HOME": ".config", "STATE_HOME": ".local/state", "CACHE_HOME": ".cache", "DATA_HOME": ".local/share", "RUNTIME_DIR": "run"} {
				env.Setenv("XDG_"+name, filepath.Join(env.WorkDir, "home", dir))
			}
			if env.Getenv("GORACE") == "" {
				env.Setenv("GORACE", "atexit_sleep_ms=10") // not the default second for every command
			}
			s := &script{relays: map[string]*process{}}
			env.Values[scriptKey{}] = s
			env.Defer(s.end)
			return os.MkdirAll(filepath.Join(env.WorkDir, "home", "run"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":    cmdExits,
			"start":    cmdStart,
			"end":      cmdEnd,
			"capture":  cmdCapture,
			"mode":     cmdMode,
			"freeport": cmdFreePort,
			"hold":     cmdHold,
			"ca":       cmdCA,
			"miscopy":  cmdMiscopy,
			"unsaid":   cmdUnsaid,
		},
	})
}

type scriptKey struct{}

// script is what one script started and heard.
type script struct {
	relays map[string]*process
	said   strings.Builder // all that `exits` and ended relays printed
	held   []func() error  // sockets
}

// process is a relay that runs beside the script.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr string // files
	ended          chan error
}

const (
	startTimeout = 20 * time.Second // on a loaded machine, with the race detector
	stopTimeout  = 10 * time.Second
)

func scriptOf(ts *testscript.TestScript) *script { return ts.Value(scriptKey{}).(*script) }

func (s *script) end() {
	for _, p := range s.relays {
		p.cmd.Process.Kill()
		<-p.ended
	}
	for _, free := range s.held {
		free()
	}
}

func usage(ts *testscript.TestScript, neg, ok bool, text string) {
	if neg || !ok {
		ts.Fatalf("usage: %s", text)
	}
}

// cmdExits runs a program and asserts its exit code.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) >= 2, "exits CODE PROGRAM [ARG…]")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("run %s: %v", args[1], err)
		}
		got = exit.ExitCode()
	}
	scriptOf(ts).said.WriteString(ts.ReadFile("stdout") + ts.ReadFile("stderr"))
	if got != want {
		ts.Fatalf("%s exits with code %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// cmdStart runs `zt-relay serve ARG…` beside the script, with its output in
// NAME.out and NAME.err, and waits until `zt-relay status` is answered.
func cmdStart(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) >= 2, "start NAME --state-dir DIR [ARG…]")
	name := args[0]
	dir := ""
	for i, a := range args[:len(args)-1] {
		if a == "--state-dir" {
			dir = args[i+1]
		}
	}
	usage(ts, neg, dir != "", "start NAME --state-dir DIR [ARG…]")
	p := &process{stdout: ts.MkAbs(name + ".out"), stderr: ts.MkAbs(name + ".err"), ended: make(chan error, 1)}
	stdout, err := os.Create(p.stdout)
	ts.Check(err)
	defer stdout.Close()
	stderr, err := os.Create(p.stderr)
	ts.Check(err)
	defer stderr.Close()
	program, err := exec.LookPath("zt-relay") // testscript put it on this process's PATH
	ts.Check(err)
	p.cmd = exec.Command(program, append([]string{"serve"}, args[1:]...)...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = ts.MkAbs("."), stdout, stderr
	for _, name := range []string{"HOME", "PATH", "GORACE", "GOCOVERDIR", "TMPDIR"} {
		if v := ts.Getenv(name); v != "" {
			p.cmd.Env = append(p.cmd.Env, name+"="+v)
		}
	}
	ts.Check(p.cmd.Start())
	s := scriptOf(ts)
	s.relays[name] = p
	go func() { p.ended <- p.cmd.Wait() }()
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(20 * time.Millisecond) {
		// The socket listens before the greeting is out, and answers after it.
		if ts.Exec("zt-relay", "status", "--state-dir", dir) == nil {
			return
		}
		select {
		case err := <-p.ended:
			p.ended <- err
			ts.Fatalf("relay %s ended: %v\n%s", name, err, ts.ReadFile(p.stderr))
		default:
		}
		if time.Now().After(deadline) {
			ts.Fatalf("relay %s does not answer after %s\n%s", name, startTimeout, ts.ReadFile(p.stderr))
		}
	}
}

// cmdEnd ends a relay with SIGTERM and asserts its exit code.
func cmdEnd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "end CODE NAME")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	s := scriptOf(ts)
	p := s.relays[args[1]]
	if p == nil {
		ts.Fatalf("no relay %s was started", args[1])
	}
	ts.Check(p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-p.ended:
		p.ended <- err
	case <-time.After(stopTimeout):
		ts.Fatalf("relay %s runs on %s after SIGTERM\n%s", args[1], stopTimeout, ts.ReadFile(p.stderr))
	}
	delete(s.relays, args[1])
	if got := p.cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("relay %s ended with code %d, want %d\n%s", args[1], got, want, ts.ReadFile(p.stderr))
	}
}

// cmdCapture sets a variable to what the group of a regular expression matches.
func cmdCapture(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 3, "capture VARIABLE FILE 'REGEXP WITH ONE GROUP'")
	re, err := regexp.Compile("(?m)" + args[2])
	ts.Check(err)
	m := re.FindStringSubmatch(ts.ReadFile(args[1]))
	if len(m) != 2 {
		ts.Fatalf("no match for %#q in %s", args[2], args[1])
	}
	ts.Setenv(args[0], m[1])
}

// cmdMode asserts the permission bits of files.
func cmdMode(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) >= 2, "mode OCTAL FILE…")
	want, err := strconv.ParseUint(args[0], 8, 32)
	ts.Check(err)
	for _, name := range args[1:] {
		info, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if got := info.Mode().Perm(); got != fs.FileMode(want) {
			ts.Fatalf("%s has mode %04o, want %04o", name, got, want)
		}
	}
}

// listenBoth listens on one loopback port, TCP and UDP.
func listenBoth(ts *testscript.TestScript) (net.Listener, net.PacketConn) {
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		if u, err := net.ListenPacket("udp", l.Addr().String()); err == nil {
			return l, u
		}
		l.Close()
	}
	ts.Fatalf("no loopback port is free for both TCP and UDP")
	return nil, nil
}

// cmdFreePort sets a variable to a port that nothing uses, TCP nor UDP.
func cmdFreePort(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 1, "freeport VARIABLE")
	l, u := listenBoth(ts)
	defer l.Close()
	defer u.Close()
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}

// cmdHold keeps a port taken until the script ends.
func cmdHold(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2 && (args[0] == "tcp" || args[0] == "udp"), "hold tcp|udp VARIABLE")
	l, u := listenBoth(ts)
	ts.Setenv(args[1], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	keep, free := l.Close, u.Close
	if args[0] == "udp" {
		keep, free = free, keep
	}
	ts.Check(free())
	s := scriptOf(ts)
	s.held = append(s.held, keep)
}

// cmdCA writes a CA certificate of its own making.
func cmdCA(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 1, "ca FILE")
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "kubernetes"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
}

// cmdMiscopy sets a variable to a claim code with one letter changed: in the
// half that is random, or in the half that names the relay's key.
func cmdMiscopy(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 3 && (args[1] == "random" || args[1] == "key") && len(args[2]) == 52, "miscopy VARIABLE random|key CODE")
	code, at := []byte(args[2]), 5 // 26 letters and a bit are random
	if args[1] == "key" {
		at = 40
	}
	if code[at] == 'A' {
		code[at] = 'B'
	} else {
		code[at] = 'A'
	}
	ts.Setenv(args[0], string(code))
}

// cmdUnsaid asserts that a secret, in either case, is in nothing that `exits`
// ran has printed, and in none of the files, or those below the directories,
// that are named.
func cmdUnsaid(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) >= 2 && len(args[0]) >= 16, "unsaid SECRET PATH…")
	secret := []byte(strings.ToUpper(args[0]))
	if bytes.Contains(bytes.ToUpper([]byte(scriptOf(ts).said.String())), secret) {
		ts.Fatalf("a command printed the secret")
	}
	files := 0
	for _, root := range args[1:] {
		ts.Check(filepath.WalkDir(ts.MkAbs(root), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			files++
			b, err := os.ReadFile(path)
			if err == nil && bytes.Contains(bytes.ToUpper(b), secret) {
				err = fmt.Errorf("%s holds the secret", path)
			}
			return err
		}))
	}
	if files == 0 {
		ts.Fatalf("there is no file below %s", strings.Join(args[1:], ", "))
	}
}
