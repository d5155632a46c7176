package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// fakeKeyring is a keyring in memory that can be told to fail or hang.
type fakeKeyring struct {
	kept map[string]string
	fail error
	hang chan struct{} // not nil: calls wait for it
}

func (f *fakeKeyring) open() (Keyring, error) {
	call := func() error {
		if f.hang != nil {
			<-f.hang
		}
		return f.fail
	}
	return Keyring{
		Get: func(_, name string) (string, error) {
			if err := call(); err != nil {
				return "", err
			}
			s, ok := f.kept[name]
			if !ok {
				return "", ErrNoSecret
			}
			return s, nil
		},
		Set: func(_, name, secret string) error {
			if err := call(); err != nil {
				return err
			}
			f.kept[name] = secret
			return nil
		},
		Delete: func(_, name string) error {
			if err := call(); err != nil {
				return err
			}
			if _, ok := f.kept[name]; !ok {
				return ErrNoSecret
			}
			delete(f.kept, name)
			return nil
		},
	}, nil
}

func newSecrets(t *testing.T, open func() (Keyring, error)) (*Secrets, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "secrets")
	s, err := NewSecrets(SecretsConfig{Keyring: open, Dir: dir, Timeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

const secretName = "network/https://issuer.example.com/client"

// useSecrets keeps, reads and forgets one.
func useSecrets(t *testing.T, s *Secrets, files func() int, wantFiles int) {
	t.Helper()
	if _, err := s.Get(secretName); !errors.Is(err, ErrNoSecret) {
		t.Errorf("Get before Set: %v", err)
	}
	for _, text := range []string{"first", "second"} {
		if err := s.Set(secretName, NewSecret(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(secretName); err != nil || got.Reveal() != text {
			t.Errorf("got %q, %v; want %q", got.Reveal(), err, text)
		}
	}
	if n := files(); n != wantFiles {
		t.Errorf("%d files, want %d", n, wantFiles)
	}
	if err := errors.Join(s.Delete(secretName), s.Delete(secretName)); err != nil {
		t.Errorf("Delete: %v", err)
	}
	if _, err := s.Get(secretName); !errors.Is(err, ErrNoSecret) {
		t.Errorf("Get after Delete: %v", err)
	}
}

func countFiles(t *testing.T, dir string) func() int {
	return func() int {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
			}
		}
		return len(entries)
	}
}

func TestSecretsInKeyring(t *testing.T) {
	f := &fakeKeyring{kept: make(map[string]string)}
	s, dir := newSecrets(t, f.open)
	useSecrets(t, s, countFiles(t, dir), 0)
}

func TestSecretsInFiles(t *testing.T) {
	for name, open := range map[string]func() (Keyring, error){
		"no keyring":       nil,
		"it does not open": func() (Keyring, error) { return Keyring{}, errors.New("no bus") },
		"it fails":         (&fakeKeyring{fail: errors.New("locked")}).open,
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := newSecrets(t, open)
			useSecrets(t, s, countFiles(t, dir), 1)
		})
	}
}

func TestSecretsKeyringHangs(t *testing.T) {
	checkLeaks(t)
	f := &fakeKeyring{kept: make(map[string]string), hang: make(chan struct{}), fail: errors.New("too late")}
	s, dir := newSecrets(t, f.open)
	began := time.Now()
	useSecrets(t, s, countFiles(t, dir), 1)
	if took := time.Since(began); took > 3*time.Second { // one time-out of 100 ms, then files
		t.Errorf("took %v", took)
	}
	close(f.hang)
}

// A file is newer than what the keyring holds: the keyring did not take it.
func TestSecretsFileWins(t *testing.T) {
	f := &fakeKeyring{kept: map[string]string{secretName: "old"}}
	broken, dir := newSecrets(t, (&fakeKeyring{fail: errors.New("locked")}).open)
	if err := broken.Set(secretName, NewSecret("new")); err != nil {
		t.Fatal(err)
	}
	s, err := NewSecrets(SecretsConfig{Keyring: f.open, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(secretName); err != nil || got.Reveal() != "new" {
		t.Errorf("got %q, %v; want the file's", got.Reveal(), err)
	}
	if err := s.Set(secretName, NewSecret("newest")); err != nil {
		t.Fatal(err)
	}
	if n := countFiles(t, dir)(); n != 0 {
		t.Errorf("%d files are left though the keyring took it", n)
	}
	if got, err := s.Get(secretName); err != nil || got.Reveal() != "newest" {
		t.Errorf("got %q, %v", got.Reveal(), err)
	}
}

func TestSecretsChecks(t *testing.T) {
	s, _ := newSecrets(t, nil)
	for _, text := range []string{"", strings.Repeat("x", secretMaxBytes+1)} {
		if err := s.Set("a", NewSecret(text)); err == nil {
			t.Errorf("a secret of %d bytes was kept", len(text))
		}
	}
	if runtime.GOOS == "windows" {
		return
	}
	if err := s.Set("a", NewSecret("x")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.path("a"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := s.Get("a")
	if _, ok := errors.AsType[*ExposedError](err); !ok {
		t.Errorf("a secret that others may read: got %v", err)
	}
}

func TestSecretNeverPrints(t *testing.T) {
	const text = "eyJhbGciOi"
	s := NewSecret(text)
	holder := CredentialResult{IDToken: s}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "holder", holder)
	out := log.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out += fmt.Sprintf(verb, s) + fmt.Sprintf(verb, holder) + fmt.Sprintf(verb, &holder)
	}
	if strings.Contains(out, text) || strings.Contains(out, fmt.Sprintf("%x", text)) {
		t.Errorf("the secret was printed: %s", out)
	}
	if b, err := json.Marshal(holder); err == nil {
		t.Errorf("json.Marshal wrote %s", b)
	}
}
