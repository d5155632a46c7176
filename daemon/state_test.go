package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
)

func testState(t testing.TB) (*State, *NetworkState) {
	t.Helper()
	s, err := OpenState(filepath.Join(t.TempDir(), "zt"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := auth.ParseNetworkID(testNetwork)
	if err != nil {
		t.Fatal(err)
	}
	return s, s.Network(id)
}

func testHead(t testing.TB) (*auth.Head, key.NetworkPrivate) {
	t.Helper()
	k := key.NewNetwork()
	h, err := auth.SignHead(auth.Head{
		Version: 1,
		Relays:  []auth.Relay{{URL: "https://relay.example.com", Key: key.NewRelay().Public()}},
		Issuers: []auth.Issuer{auth.Issuer{URL: "https://issuer.example.com", ClientID: "zt"}.WithDefaults()},
	}, k)
	if err != nil {
		t.Fatal(err)
	}
	return h, k
}

func TestStateKeeps(t *testing.T) {
	s, _ := testState(t)
	head, k := testHead(t)
	n := s.Network(head.Network)
	for what, read := range map[string]func() error{
		"head":      func() error { _, err := n.Head(); return err },
		"login key": func() error { _, err := n.LoginKey(); return err },
		"grant":     func() error { _, err := n.Grant(); return err },
	} {
		if err := read(); !errors.Is(err, ErrNoState) {
			t.Errorf("%s of an empty directory: got %v, want ErrNoState", what, err)
		}
	}
	if err := n.KeepHead(head); err != nil {
		t.Fatal(err)
	}
	if got, err := n.Head(); err != nil || got.Hash() != head.Hash() {
		t.Errorf("head: %v", err)
	}
	record, err := auth.SignRecord(auth.Record{Name: "c1", Version: 1, Removed: true}, auth.NetworkSigner(k))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.KeepRecord(record); err != nil {
		t.Fatal(err)
	}
	if got, err := n.Records(); err != nil || len(got) != 1 || string(got["c1"]) != string(record.Raw()) {
		t.Errorf("records: %v, %v", got, err)
	}
	login := key.NewLogin()
	if err := n.KeepLoginKey(login); err != nil {
		t.Fatal(err)
	}
	if got, err := n.LoginKey(); err != nil || got.Public() != login.Public() {
		t.Errorf("login key: %v", err)
	}
	if got, err := n.Settings(); err != nil || got.Ports == nil || len(got.Ports) != 0 {
		t.Errorf("settings of an empty directory: %v, %v", got, err)
	}
	if err := n.KeepSettings(Settings{Ports: map[string]uint16{"c1": 21000}}); err != nil {
		t.Fatal(err)
	}
	if got, err := n.Settings(); err != nil || got.Ports["c1"] != 21000 {
		t.Errorf("settings: %v, %v", got, err)
	}
	if ids, err := s.Networks(); err != nil || len(ids) != 1 || ids[0] != head.Network {
		t.Errorf("networks: %v, %v", ids, err)
	}
	if err := errors.Join(n.RemoveGrant(), n.RemoveGrant()); err != nil {
		t.Errorf("removing a grant that is not there: %v", err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	err = filepath.WalkDir(s.Dir(), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := os.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", path, info.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestStateRefusesForeignDocuments(t *testing.T) {
	_, n := testState(t)
	head, k := testHead(t)
	if err := n.KeepHead(head); err == nil {
		t.Error("another network's head was kept")
	}
	record, err := auth.SignRecord(auth.Record{Name: "c1", Version: 1, Removed: true}, auth.NetworkSigner(k))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.KeepRecord(record); err == nil {
		t.Error("another network's record was kept")
	}
	for name, ports := range map[string]map[string]uint16{"port 0": {"c1": 0}, "one port twice": {"a": 1, "b": 1}, "bad name": {"../x": 1}} {
		if err := n.KeepSettings(Settings{Ports: ports}); err == nil {
			t.Errorf("%s was kept", name)
		}
	}
}

// A corrupt file is refused by name, kept aside, and never replaced in silence.
func TestStateCorrupt(t *testing.T) {
	other, _ := testHead(t)
	reads := map[string]func(n *NetworkState) error{
		"head.jws":        func(n *NetworkState) error { _, err := n.Head(); return err },
		"login.key":       func(n *NetworkState) error { _, err := n.LoginKey(); return err },
		"grant":           func(n *NetworkState) error { _, err := n.Grant(); return err },
		"settings.json":   func(n *NetworkState) error { _, err := n.Settings(); return err },
		"records/c1.jws":  func(n *NetworkState) error { return n.CorruptRecord("c1", errors.New("no signature")) },
		"records/big.jws": func(n *NetworkState) error { _, err := n.Records(); return err },
	}
	for _, c := range []struct {
		file, name, text string
	}{
		{"head.jws", "empty", ""},
		{"head.jws", "noise", "\x00\xff"},
		{"head.jws", "another network's", string(other.Raw())},
		{"login.key", "truncated", "-----BEGIN PRIVATE KEY-----\nMIGH"},
		{"grant", "noise", "x"},
		{"settings.json", "truncated", `{"version":1,"ports":{"c1":21`},
		{"settings.json", "unknown field", `{"version":1,"prots":{}}`},
		{"settings.json", "same port", `{"version":1,"ports":{"a":1,"b":1}}`},
		{"settings.json", "two values", `{"version":1}{}`},
		{"records/c1.jws", "does not verify", "x"},
		{"records/big.jws", "too large", strings.Repeat("x", documentFileMaxBytes+1)},
	} {
		t.Run(c.file+" "+c.name, func(t *testing.T) {
			_, n := testState(t)
			path := filepath.Join(n.Dir(), filepath.FromSlash(c.file))
			if err := n.write(path, []byte(c.text)); err != nil {
				t.Fatal(err)
			}
			err := reads[c.file](n)
			corrupt, ok := errors.AsType[*CorruptStateError](err)
			if !ok || corrupt.Path != path || corrupt.Hint() == "" || !strings.Contains(err.Error(), corrupt.Aside) {
				t.Fatalf("got %v, want the file named", err)
			}
			if e := AsLocalError(err); e.Kind != KindCorruptState || e.ExitCode() != ExitFailure {
				t.Errorf("as a local error: %+v", e)
			}
			if got := readFile(t, corrupt.Aside); got != c.text {
				t.Errorf("kept aside: %d bytes, want %d", len(got), len(c.text))
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the corrupt file is still in place: %v", err)
			}
			// A second one in the same second does not replace the first.
			if err := n.write(path, []byte(c.text)); err != nil {
				t.Fatal(err)
			}
			again, ok := errors.AsType[*CorruptStateError](reads[c.file](n))
			if !ok || again.Aside == corrupt.Aside {
				t.Errorf("the second went to %v", again)
			}
			if _, err := os.Lstat(corrupt.Aside); err != nil {
				t.Error(err)
			}
		})
	}
}

// A newer version's settings are sound, and are left where they are.
func TestStateNewerSettings(t *testing.T) {
	_, n := testState(t)
	path := filepath.Join(n.Dir(), "settings.json")
	if err := n.write(path, []byte(`{"version":2}`)); err != nil {
		t.Fatal(err)
	}
	_, err := n.Settings()
	if _, corrupt := errors.AsType[*CorruptStateError](err); err == nil || corrupt {
		t.Errorf("got %v, want the version named", err)
	}
	if readFile(t, path) != `{"version":2}` {
		t.Error("the file was changed")
	}
}

func TestStateExposed(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("mode bits mean nothing on Windows")
	}
	s, n := testState(t)
	if err := n.KeepLoginKey(key.NewLogin()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.Dir(), "login.key")
	for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o620} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := n.LoginKey()
		if e, ok := errors.AsType[*ExposedError](err); !ok || e.Path != path || !strings.Contains(e.Hint(), "chmod 600") {
			t.Errorf("mode %04o: got %v", mode, err)
		}
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("an exposed key was moved: it is not corrupt")
	}
	if err := os.Chmod(s.Dir(), 0o770); err != nil {
		t.Fatal(err)
	}
	_, err := OpenState(s.Dir())
	if _, ok := errors.AsType[*ExposedError](err); !ok {
		t.Errorf("a directory that others write to: got %v", err)
	}
	if err := os.Chmod(s.Dir(), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenState(s.Dir()); err != nil {
		t.Errorf("a directory that others read: %v", err)
	}
	if info, err := os.Stat(s.Dir()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("it was not closed: %v", info.Mode())
	}
	if os.Geteuid() == 0 {
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		_, err := n.LoginKey()
		if _, ok := errors.AsType[*ExposedError](err); !ok {
			t.Errorf("another user's key: got %v", err)
		}
	}
}

func TestStateLock(t *testing.T) {
	s, n := testState(t)
	if _, err := s.Daemon(); !errors.Is(err, ErrNoState) {
		t.Errorf("got %v, want ErrNoState", err)
	}
	if err := makePrivateDir(n.Dir()); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(n.Dir(), ".zt-tmp-1")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	info := DaemonInfo{PID: 42, Socket: "/run/x/daemon.sock", Version: "v1", Started: time.Now().UTC().Truncate(0)}
	lock, err := s.Lock(info)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Error("what a killed write left was not swept")
	}
	_, err = s.Lock(DaemonInfo{PID: 43})
	held, ok := errors.AsType[*LockedError](err)
	if !ok || held.Info != info || held.Hint() == "" {
		t.Errorf("got %v, want the holder named", err)
	}
	if got, err := s.Daemon(); err != nil || got != info {
		t.Errorf("daemon is %+v, %v; want %+v", got, err, info)
	}
	if err := errors.Join(lock.Close(), lock.Close()); err != nil {
		t.Error(err)
	}
	lock, err = s.Lock(DaemonInfo{PID: 7})
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if got, err := s.Daemon(); err != nil || got.PID != 7 || got.Socket != "" {
		t.Errorf("daemon is %+v, %v", got, err)
	}
}

func TestOpenStateChecks(t *testing.T) {
	if _, err := OpenState("relative"); err == nil {
		t.Error("a relative directory was taken")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenState(file); err == nil {
		t.Error("a file was taken for a directory")
	}
}

// A write that cannot be finished leaves the old file and nothing else.
func TestWriteAtomicFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "full") // a directory cannot be replaced by a file
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeAtomic(path, []byte("x"), 0o600); err == nil {
		t.Fatal("no error")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left: %v", entries)
	}
}

func TestFindDirs(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the paths in the table have slashes")
	}
	for _, c := range []struct {
		name, goos, home string
		env              map[string]string
		want             Dirs // zero: an error
	}{
		{"linux", "linux", "/home/me", nil, Dirs{"/home/me/.local/state/zt", "/home/me/.local/state/zt/run", "/home/me/.config/zt"}},
		{"linux xdg", "linux", "/home/me", map[string]string{"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/run/user/1", "XDG_CONFIG_HOME": "/c"}, Dirs{"/s/zt", "/run/user/1/zt", "/c/zt"}},
		{"linux relative xdg", "linux", "/home/me", map[string]string{"XDG_STATE_HOME": "s", "XDG_RUNTIME_DIR": "r"}, Dirs{"/home/me/.local/state/zt", "/home/me/.local/state/zt/run", "/home/me/.config/zt"}},
		{"linux no home", "linux", "", nil, Dirs{}},
		{"linux xdg only", "linux", "", map[string]string{"XDG_STATE_HOME": "/s", "XDG_CONFIG_HOME": "/c"}, Dirs{"/s/zt", "/s/zt/run", "/c/zt"}},
		{"macOS", "darwin", "/Users/me", map[string]string{"XDG_STATE_HOME": "/s"}, Dirs{"/Users/me/Library/Application Support/zt", "/Users/me/Library/Application Support/zt/run", "/Users/me/Library/Application Support/zt/admin"}},
		{"macOS no home", "darwin", "", nil, Dirs{}},
		{"windows", "windows", "", map[string]string{"LocalAppData": "/l", "AppData": "/r"}, Dirs{"/l/zt", "/l/zt/run", "/r/zt"}},
		{"windows none", "windows", "/home", nil, Dirs{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := FindDirs(c.goos, c.home, func(name string) string { return c.env[name] })
			if c.want == (Dirs{}) {
				if err == nil {
					t.Errorf("got %+v, want an error", got)
				}
			} else if err != nil || got != c.want {
				t.Errorf("got %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}
