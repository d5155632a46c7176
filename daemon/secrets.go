package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/zalando/go-keyring"
)

const (
	// keyringTimeout bounds one call: a locked keyring may wait for a person who
	// is not there, a broken session bus for ever.
	keyringTimeout = 3 * time.Second

	// KeyringService is what the keyring's own tools show for our secrets.
	KeyringService = "zt-daemon"

	secretMaxBytes = 64 << 10
)

// A Secret is an ID token or a refresh token. It never prints and is never
// marshalled. The zero value is no secret.
type Secret struct{ text string }

// NewSecret wraps text.
func NewSecret(text string) Secret { return Secret{text} }

// Reveal returns the secret for the request or file that needs it. Do not print it.
func (s Secret) Reveal() string { return s.text }

// IsZero reports whether s is no secret.
func (s Secret) IsZero() bool { return s.text == "" }

// Format prints a fixed text for every verb.
func (Secret) Format(f fmt.State, _ rune) { io.WriteString(f, "[secret]") }

// LogValue logs a fixed text.
func (Secret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// MarshalText refuses, so that no encoder writes the secret by accident.
func (Secret) MarshalText() ([]byte, error) { return nil, errors.New("a secret is not marshalled") }

// Keyring is an operating system's store of secrets. Get of a name that is not
// there returns ErrNoSecret.
type Keyring struct {
	Get    func(service, name string) (string, error)
	Set    func(service, name, secret string) error
	Delete func(service, name string) error
}

// ErrNoSecret says that there is no secret of that name.
var ErrNoSecret = errors.New("no such secret")

// SystemKeyring is the keyring of this operating system: Keychain, Credential
// Manager, or the Secret Service of the session bus. Calls may hang.
func SystemKeyring() Keyring {
	notFound := func(err error) error {
		if errors.Is(err, keyring.ErrNotFound) {
			return ErrNoSecret
		}
		return err
	}
	return Keyring{
		Get: func(service, name string) (string, error) {
			s, err := keyring.Get(service, name)
			return s, notFound(err)
		},
		Set:    keyring.Set,
		Delete: func(service, name string) error { return notFound(keyring.Delete(service, name)) },
	}
}

// SecretsConfig says where refresh tokens are kept.
type SecretsConfig struct {
	Keyring func() (Keyring, error) // nil, or an error: files only
	Dir     string                  // for files of mode 0600; made when needed
	Timeout time.Duration           // of one call to the keyring; 0: 3 s
	Log     *slog.Logger            // nil: none
}

// Secrets keeps refresh tokens by name: in the keyring if there is one that
// answers, else in files of mode 0600. A keyring that failed or hung once is
// not asked again by this process.
//
// A file, where there is one, is newer than what the keyring holds: it is
// written only when the keyring would not take the secret, and removed when it
// does.
type Secrets struct {
	dir     string
	timeout time.Duration
	log     *slog.Logger
	open    func() (Keyring, error)

	mu     sync.Mutex // held over a whole call; guards ring, opened, dead
	ring   Keyring
	opened bool
	dead   bool
}

// NewSecrets starts nothing; the keyring is opened at the first call.
func NewSecrets(cfg SecretsConfig) (*Secrets, error) {
	if cfg.Dir == "" {
		return nil, errors.New("secrets need a directory")
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = keyringTimeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Secrets{dir: cfg.Dir, timeout: cfg.Timeout, log: cfg.Log, open: cfg.Keyring}, nil
}

// Get returns the secret of that name, or ErrNoSecret.
func (s *Secrets) Get(name string) (Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := readPrivate(s.path(name), secretMaxBytes)
	if err == nil && len(b) > 0 {
		return Secret{string(b)}, nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Secret{}, err
	}
	var text string
	err = s.askLocked("read", func(k Keyring) (err error) {
		text, err = k.Get(KeyringService, name)
		return err
	})
	if err != nil {
		return Secret{}, ErrNoSecret // without a keyring the file was the last place
	}
	return Secret{text}, nil
}

// Set keeps secret under that name.
func (s *Secrets) Set(name string, secret Secret) error {
	if len(secret.text) > secretMaxBytes || secret.IsZero() {
		return fmt.Errorf("keep %s: a secret of %d bytes, want 1 to %d", name, len(secret.text), secretMaxBytes)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.askLocked("write", func(k Keyring) error { return k.Set(KeyringService, name, secret.text) })
	if err == nil {
		return removeFile(s.path(name))
	}
	if err := makePrivateDir(s.dir); err != nil {
		return err
	}
	return writeAtomic(s.path(name), []byte(secret.text), 0o600)
}

// Delete forgets the secret of that name, wherever it is. That there is none
// is not an error.
func (s *Secrets) Delete(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.askLocked("delete", func(k Keyring) error { return k.Delete(KeyringService, name) })
	if errors.Is(err, ErrNoSecret) || errors.Is(err, errNoKeyring) {
		err = nil
	}
	return errors.Join(removeFile(s.path(name)), err)
}

var errNoKeyring = errors.New("there is no keyring")

// askLocked makes one call to the keyring, at most s.timeout long. A call that
// hangs cannot be stopped: its goroutine stays until the keyring answers. As
// the keyring is not asked again, that is one goroutine a process.
func (s *Secrets) askLocked(verb string, call func(Keyring) error) error {
	if s.open == nil || s.dead {
		return errNoKeyring
	}
	type opened struct {
		ring Keyring
		err  error // of opening
		call error
	}
	done := make(chan opened, 1)
	ring, have := s.ring, s.opened
	go func() {
		o := opened{ring: ring}
		if !have {
			o.ring, o.err = s.open()
		}
		if o.err == nil {
			o.call = call(o.ring)
		}
		done <- o
	}()
	timer := time.NewTimer(s.timeout)
	defer timer.Stop()
	select {
	case o := <-done:
		if o.err != nil {
			s.giveUpLocked(verb, o.err)
			return errNoKeyring
		}
		s.ring, s.opened = o.ring, true
		if o.call != nil && !errors.Is(o.call, ErrNoSecret) {
			s.giveUpLocked(verb, o.call)
			return errNoKeyring
		}
		return o.call
	case <-timer.C:
		s.giveUpLocked(verb, fmt.Errorf("no answer within %v", s.timeout))
		return errNoKeyring
	}
}

func (s *Secrets) giveUpLocked(verb string, err error) {
	s.dead = true
	s.log.Warn("keyring does not serve; refresh tokens are kept in files of mode 0600", "reason", verb, "err", err)
}

// path is a file name for any name, however long and with whatever inside.
func (s *Secrets) path(name string) string {
	h := sha256.Sum256([]byte(name))
	return filepath.Join(s.dir, hex.EncodeToString(h[:]))
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
