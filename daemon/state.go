package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
)

const (
	documentFileMaxBytes = 1 << 20
	keyFileMaxBytes      = 4 << 10
	settingsMaxBytes     = 1 << 20
	settingsVersion      = 1
)

// ErrNoState says that a network's state has no such thing yet.
var ErrNoState = errors.New("not in the state directory")

// State is a laptop's state directory:
//
//	daemon.lock                       held by the daemon; who it is, as JSON
//	daemon.log                        what it logged in the background
//	secrets/                          refresh tokens, where no keyring serves
//	networks/<id>/head.jws
//	networks/<id>/records/<name>.jws
//	networks/<id>/login.key           PEM
//	networks/<id>/grant
//	networks/<id>/settings.json
//
// Every file has mode 0600 and is written by temp, fsync, rename. One writer at
// a time: the holder of Lock. Readers need no lock.
type State struct{ dir string }

// OpenState makes dir if it is not there and checks that it is the person's alone.
func OpenState(dir string) (*State, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("state directory %q is not an absolute path", dir)
	}
	if err := makePrivateDir(dir); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	return &State{dir: dir}, nil
}

// Dir is the directory itself.
func (s *State) Dir() string { return s.dir }

// LogPath is the file for the log of a daemon in the background.
func (s *State) LogPath() string { return filepath.Join(s.dir, "daemon.log") }

// SecretsDir is for Secrets.
func (s *State) SecretsDir() string { return filepath.Join(s.dir, "secrets") }

func (s *State) lockPath() string { return filepath.Join(s.dir, "daemon.lock") }

// DaemonInfo is what the holder of the lock says about itself.
type DaemonInfo struct {
	PID     int       `json:"pid"`
	Socket  string    `json:"socket"` // absolute path
	Version string    `json:"version"`
	Started time.Time `json:"started"`
}

// LockedError says that another daemon holds the state directory.
type LockedError struct {
	Dir  string
	Info DaemonInfo // zero if it did not say
}

func (e *LockedError) Error() string {
	if e.Info.PID == 0 {
		return fmt.Sprintf("another zt-daemon holds %s", e.Dir)
	}
	return fmt.Sprintf("another zt-daemon (process %d) holds %s", e.Info.PID, e.Dir)
}

// Hint says how to end the other one.
func (e *LockedError) Hint() string {
	return "run `zt-daemon down` first, or use the one that is running"
}

// A StateLock is the right to write to a state directory.
type StateLock struct{ f *os.File }

// Lock takes the directory for this process and says so to others; it does not
// wait. Held by another: *LockedError.
func (s *State) Lock(info DaemonInfo) (*StateLock, error) {
	f, err := os.OpenFile(s.lockPath(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	if held, err := lockFile(f); err != nil {
		f.Close()
		if held {
			other, _ := s.Daemon() // it may be writing that right now
			return nil, &LockedError{Dir: s.dir, Info: other}
		}
		return nil, fmt.Errorf("lock %s: %w", s.lockPath(), err)
	}
	b, err := json.Marshal(info)
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(append(b, '\n'), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", s.lockPath(), err)
	}
	s.sweep()
	return &StateLock{f: f}, nil
}

// Close gives the directory free. The file stays: removing it would let two
// daemons lock two files of one name. Close twice is safe.
func (l *StateLock) Close() error {
	err := l.f.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Daemon is what the last holder of the lock said about itself; whether it
// still runs, only its socket tells. ErrNoState: there was none.
func (s *State) Daemon() (DaemonInfo, error) {
	b, err := readBounded(s.lockPath(), keyFileMaxBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return DaemonInfo{}, ErrNoState
	} else if err != nil {
		return DaemonInfo{}, err
	}
	var info DaemonInfo
	if err := json.Unmarshal(b, &info); err != nil {
		return DaemonInfo{}, ErrNoState // it is being written
	}
	return info, nil
}

func (s *State) sweep() {
	sweepTemp(s.dir)
	sweepTemp(s.SecretsDir())
	ids, err := s.Networks()
	if err != nil {
		return
	}
	for _, id := range ids {
		sweepTemp(s.Network(id).dir)
		sweepTemp(s.Network(id).recordsDir())
	}
}

// Networks are the ids of the networks that have state here, sorted.
func (s *State) Networks() ([]auth.NetworkID, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "networks"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var ids []auth.NetworkID
	for _, e := range entries {
		// What else lies there is not ours.
		if id, err := auth.ParseNetworkID(e.Name()); err == nil && e.IsDir() {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Network is the state of one network. It makes nothing.
func (s *State) Network(id auth.NetworkID) *NetworkState {
	return &NetworkState{id: id, dir: filepath.Join(s.dir, "networks", id.String())}
}

// NetworkState is what a laptop keeps about one network.
type NetworkState struct {
	id  auth.NetworkID
	dir string
}

// ID is the network's.
func (n *NetworkState) ID() auth.NetworkID { return n.id }

// Dir is where it is kept.
func (n *NetworkState) Dir() string { return n.dir }

func (n *NetworkState) recordsDir() string { return filepath.Join(n.dir, "records") }

func (n *NetworkState) recordPath(name string) string {
	return filepath.Join(n.recordsDir(), name+".jws")
}

// CorruptStateError says that a state file cannot be what was written. The
// file has been moved aside, so that nothing overwrites it.
type CorruptStateError struct {
	Path  string
	Aside string // where it is now; empty: it could not be moved
	Err   error
}

func (e *CorruptStateError) Error() string {
	if e.Aside == "" {
		return fmt.Sprintf("%s is corrupt: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("%s is corrupt: %v; it was moved to %s", e.Path, e.Err, e.Aside)
}

func (e *CorruptStateError) Unwrap() error { return e.Err }

// Hint says how to go on.
func (e *CorruptStateError) Hint() string {
	return "run `zt-daemon login` to begin anew; if the disk is sound, keep the file and report it"
}

// setAside moves a corrupt file out of the way and returns the error to give.
func setAside(path string, cause error) error {
	e := &CorruptStateError{Path: path, Err: cause}
	base := path + ".corrupt-" + time.Now().UTC().Format("20060102T150405Z")
	for n := range 100 {
		aside := base
		if n > 0 {
			aside = fmt.Sprintf("%s.%d", base, n)
		}
		if err := os.Link(path, aside); errors.Is(err, fs.ErrExist) { // rename would replace it
			continue
		} else if err != nil {
			if os.Rename(path, aside) != nil {
				return e
			}
			e.Aside = aside
			return e
		}
		if os.Remove(path) == nil {
			e.Aside = aside
		}
		return e
	}
	return e
}

// read reads a private file of the network and checks it. What check refuses
// is set aside: a *CorruptStateError.
func (n *NetworkState) read(path string, limit int64, check func([]byte) error) error {
	b, err := readPrivate(path, limit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ErrNoState
	case errors.Is(err, errTooLarge):
		return setAside(path, err)
	case err != nil:
		return err
	}
	if err := check(b); err != nil {
		return setAside(path, err)
	}
	return nil
}

func (n *NetworkState) write(path string, b []byte) error {
	if err := makePrivateDir(filepath.Dir(path)); err != nil {
		return err
	}
	return writeAtomic(path, b, 0o600)
}

// Head is the newest head that was taken. Keep it as the floor against
// rollback. ErrNoState: none yet.
func (n *NetworkState) Head() (h *auth.Head, err error) {
	err = n.read(filepath.Join(n.dir, "head.jws"), documentFileMaxBytes, func(b []byte) error {
		parsed, err := auth.ParseHead(b)
		if err != nil {
			return err
		}
		if parsed.Network != n.id {
			return fmt.Errorf("it is the head of network %s", parsed.Network)
		}
		h = parsed
		return nil
	})
	return h, err
}

// KeepHead keeps h, which the caller found to supersede the last one.
func (n *NetworkState) KeepHead(h *auth.Head) error {
	if h.Network != n.id {
		return fmt.Errorf("keep a head of network %s as one of %s", h.Network, n.id)
	}
	return n.write(filepath.Join(n.dir, "head.jws"), h.Raw())
}

// Records are the raw records by cluster name. They are not verified: parse
// each under the head, and give one that does not parse to CorruptRecord.
func (n *NetworkState) Records() (map[string][]byte, error) {
	entries, err := os.ReadDir(n.recordsDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	records := make(map[string][]byte)
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".jws")
		if !ok || auth.ValidName(name) != nil {
			continue
		}
		err := n.read(n.recordPath(name), documentFileMaxBytes, func(b []byte) error {
			records[name] = b
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return records, nil
}

// KeepRecord keeps a record; one that says removed too, as a floor.
func (n *NetworkState) KeepRecord(r *auth.Record) error {
	if r.Network != n.id {
		return fmt.Errorf("keep a record of network %s as one of %s", r.Network, n.id)
	}
	if err := auth.ValidName(r.Name); err != nil {
		return err
	}
	return n.write(n.recordPath(r.Name), r.Raw())
}

// CorruptRecord sets the record of that name aside, because of cause, and
// returns a *CorruptStateError.
func (n *NetworkState) CorruptRecord(name string, cause error) error {
	if err := auth.ValidName(name); err != nil {
		return err
	}
	return setAside(n.recordPath(name), cause)
}

// LoginKey is the key that this laptop's nonce commits to. ErrNoState: none yet.
func (n *NetworkState) LoginKey() (k key.LoginPrivate, err error) {
	err = n.read(filepath.Join(n.dir, "login.key"), keyFileMaxBytes, func(b []byte) (err error) {
		k, err = key.ParseLoginPEM(b)
		return err
	})
	return k, err
}

// KeepLoginKey keeps k and replaces another.
func (n *NetworkState) KeepLoginKey(k key.LoginPrivate) error {
	return n.write(filepath.Join(n.dir, "login.key"), k.PEM())
}

// Grant is the encoded grant of the last login. ErrNoState: not logged in.
func (n *NetworkState) Grant() (grant []byte, err error) {
	err = n.read(filepath.Join(n.dir, "grant"), auth.GrantMaxBytes, func(b []byte) error {
		_, err := auth.ParseGrant(b)
		grant = b
		return err
	})
	if err != nil {
		return nil, err
	}
	return grant, nil
}

// KeepGrant keeps an encoded grant.
func (n *NetworkState) KeepGrant(grant []byte) error {
	return n.write(filepath.Join(n.dir, "grant"), grant)
}

// RemoveGrant forgets the grant, as logout does. That there is none is not an error.
func (n *NetworkState) RemoveGrant() error { return removeFile(filepath.Join(n.dir, "grant")) }

// Settings are what a person or the daemon chose once, and keeps.
type Settings struct {
	// Ports are the loopback ports by cluster name. They are in kubeconfigs.
	Ports map[string]uint16
}

type settingsFile struct {
	Version int               `json:"version"`
	Ports   map[string]uint16 `json:"ports"`
}

// Settings are those kept; empty ones, with a map, if there are none.
func (n *NetworkState) Settings() (Settings, error) {
	var f settingsFile
	path := filepath.Join(n.dir, "settings.json")
	err := n.read(path, settingsMaxBytes, func(b []byte) error {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&f); err != nil {
			return err
		}
		if d.More() {
			return errors.New("more than one JSON value")
		}
		if f.Version > settingsVersion {
			return nil // sound, and not for this version: see below
		}
		return Settings{Ports: f.Ports}.validate()
	})
	switch {
	case errors.Is(err, ErrNoState):
		return Settings{Ports: make(map[string]uint16)}, nil
	case err != nil:
		return Settings{}, err
	case f.Version != settingsVersion:
		return Settings{}, fmt.Errorf("%s was written by another version of zt-daemon: version %d, want %d", path, f.Version, settingsVersion)
	}
	if f.Ports == nil {
		f.Ports = make(map[string]uint16)
	}
	return Settings{Ports: f.Ports}, nil
}

// KeepSettings keeps s.
func (n *NetworkState) KeepSettings(s Settings) error {
	if err := s.validate(); err != nil {
		return err
	}
	b, err := json.MarshalIndent(settingsFile{Version: settingsVersion, Ports: s.Ports}, "", "  ")
	if err != nil {
		return err
	}
	return n.write(filepath.Join(n.dir, "settings.json"), append(b, '\n'))
}

func (s Settings) validate() error {
	taken := make(map[uint16]string, len(s.Ports))
	for _, name := range slices.Sorted(maps.Keys(s.Ports)) {
		port := s.Ports[name]
		if err := auth.ValidName(name); err != nil {
			return err
		}
		if port == 0 {
			return fmt.Errorf("cluster %s has port 0", name)
		}
		if other, ok := taken[port]; ok {
			return fmt.Errorf("clusters %s and %s have the same port %d", other, name, port)
		}
		taken[port] = name
	}
	return nil
}
