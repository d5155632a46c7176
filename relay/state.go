package relay

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/zt-daemon/zt/auth/key"
)

// The files of a state directory.
const (
	fileLock        = "lock"
	fileKeys        = "relay.key"        // JSON: current and next relay key
	fileClaim       = "claim"            // SHA-256 of the claim code in hexadecimal; gone once used
	fileHead        = "head.jws"         // the newest head
	dirRecords      = "records"          // NAME.jws, the newest of each
	fileRevocations = "revocations.json" // those that still matter
	fileTickets     = "tickets.json"     // TLS session ticket keys
	fileTLSKey      = "tls.key"          // of the self-signed certificate
	fileTLSCert     = "tls.crt"
	dirACME         = "acme" // autocert's cache

	maxStateFile = 1 << 20 // bytes; every file above is far smaller
)

// StateError is a state file that cannot be used or written.
type StateError struct {
	Path   string
	Err    error
	Advice string
}

func (e *StateError) Error() string { return fmt.Sprintf("state file %s: %v", e.Path, e.Err) }
func (e *StateError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *StateError) Hint() string { return e.Advice }

const adviceCorrupt = "restore the file from a backup; nothing was changed. Moving it away makes the relay forget what it held"

// A store is a relay's state directory: plain files, each replaced as a whole,
// all for their owner only. It is locked while open.
type store struct {
	dir  string
	lock *os.File
}

// openStore opens dir, which it makes if need be, and locks it.
func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(filepath.Join(dir, dirRecords), 0o700); err != nil {
		return nil, &StateError{dir, err, "choose a directory that this user may write with --state-dir"}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, &StateError{dir, err, "the state directory must belong to the relay's user"}
	}
	lock, err := lockFile(filepath.Join(dir, fileLock))
	if err != nil {
		return nil, &StateError{filepath.Join(dir, fileLock), err, "two relays cannot share a state directory: stop the other, or use --state-dir"}
	}
	return &store{dir: dir, lock: lock}, nil
}

// close gives the lock up. It may be called twice.
func (st *store) close() error {
	if err := st.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

func (st *store) path(name string) string { return filepath.Join(st.dir, name) }

// read returns a file's bytes; the error of an absent one is fs.ErrNotExist.
func (st *store) read(name string) ([]byte, error) {
	info, err := os.Stat(st.path(name))
	if err != nil {
		return nil, err
	}
	if info.Size() > maxStateFile {
		return nil, &StateError{st.path(name), fmt.Errorf("%d bytes, at most %d are expected", info.Size(), maxStateFile), adviceCorrupt}
	}
	return os.ReadFile(st.path(name))
}

// write replaces a file: a crash leaves the old one or the new one.
func (st *store) write(name string, b []byte) (err error) {
	path := st.path(name)
	defer func() {
		if err != nil {
			err = &StateError{path, err, "make room on the disk, or see who owns the directory; the relay serves on with what it had"}
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it was renamed
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return nil
}

func (st *store) remove(name string) error {
	if err := os.Remove(st.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &StateError{st.path(name), err, "remove it by hand"}
	}
	return syncDir(filepath.Dir(st.path(name)))
}

// setAside renames a file that cannot be used, for a person to look at.
func (st *store) setAside(name string, now time.Time) (string, error) {
	aside := st.path(name) + ".corrupt-" + now.UTC().Format("20060102T150405Z")
	return aside, os.Rename(st.path(name), aside)
}

// readJSON reads a file strictly into v; false if there is none.
func (st *store) readJSON(name string, v any) (bool, error) {
	b, err := st.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil || d.More() {
		return false, &StateError{st.path(name), errors.New("is corrupt: not the JSON that was written"), adviceCorrupt}
	}
	return true, nil
}

func (st *store) writeJSON(name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return st.write(name, append(b, '\n'))
}

// keys are the relay keys: participants know the current one, and learn the next
// from a head before it takes over.
type keys struct{ current, next key.RelayPrivate }

// loadKeys reads the relay keys, or makes them when nothing was ever stored.
func (st *store) loadKeys() (keys, error) {
	var file struct {
		Current string `json:"current"`
		Next    string `json:"next"`
	}
	found, err := st.readJSON(fileKeys, &file)
	if err != nil {
		return keys{}, err
	}
	if !found {
		for _, other := range []string{fileHead, fileClaim} {
			if _, err := os.Stat(st.path(other)); err == nil {
				return keys{}, &StateError{st.path(fileKeys), fs.ErrNotExist, "restore it from a backup: " + other + " is there, so this relay had keys. Participants would not know new ones"}
			}
		}
		k := keys{key.NewRelay(), key.NewRelay()}
		file.Current, file.Next = string(k.current.Text()), string(k.next.Text())
		return k, st.writeJSON(fileKeys, file)
	}
	var k keys
	if k.current, err = key.ParseRelayText([]byte(file.Current)); err == nil {
		k.next, err = key.ParseRelayText([]byte(file.Next))
	}
	if err != nil {
		return keys{}, &StateError{st.path(fileKeys), fmt.Errorf("is corrupt: %v", err), adviceCorrupt}
	}
	return k, nil
}

const (
	claimRandom = 16 // bytes of a claim code nobody can guess
	claimKey    = 16 // bytes of SHA-256 of the relay key, so that the code names the relay
)

var claimEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

func newClaimCode(k key.RelayPublic) string {
	code := make([]byte, claimRandom, claimRandom+claimKey)
	rand.Read(code)
	h := sha256.Sum256(k.Append(nil))
	return claimEncoding.EncodeToString(append(code, h[:claimKey]...))
}

func claimHash(code string) [sha256.Size]byte {
	return sha256.Sum256([]byte(strings.ToUpper(strings.TrimSpace(code))))
}

// loadClaim returns the hash of the claim code; made reports a code when this
// call made it: only its hash is kept.
func (st *store) loadClaim(k key.RelayPublic) (hash [sha256.Size]byte, made string, err error) {
	b, err := st.read(fileClaim)
	if errors.Is(err, fs.ErrNotExist) {
		made = newClaimCode(k)
		hash = claimHash(made)
		return hash, made, st.write(fileClaim, []byte(hex.EncodeToString(hash[:])+"\n"))
	}
	if err != nil {
		return hash, "", err
	}
	text := bytes.TrimSpace(b)
	if n, err := hex.Decode(hash[:], text[:min(len(text), 2*len(hash))]); err != nil || n != len(hash) || len(text) != 2*n {
		return hash, "", &StateError{st.path(fileClaim), errors.New("is corrupt: not a SHA-256 in hexadecimal"), "remove it: the relay then prints a new claim code"}
	}
	return hash, "", nil
}

func claimMatches(code string, hash [sha256.Size]byte) bool {
	got := claimHash(code)
	return subtle.ConstantTimeCompare(got[:], hash[:]) == 1
}
