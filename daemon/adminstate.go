package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
)

// AdminState is an administrator's directory:
//
//	signer.key                        this machine's signer, PEM
//	networks/<id>/network.key         the network key, PEM, where the network was made
//	networks/<id>/head.jws            the newest head seen or signed
//	networks/<id>/records/<name>.jws  the newest records seen or signed
//	admin.lock                        held by the command that changes something
//
// Every file has mode 0600 and is written by temp, fsync, rename. Keys are never
// replaced.
type AdminState struct{ dir string }

// OpenAdminState makes dir if it is not there and checks that it is the person's
// alone.
func OpenAdminState(dir string) (*AdminState, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("administrator's directory %q is not an absolute path", dir)
	}
	if err := makePrivateDir(dir); err != nil {
		return nil, fmt.Errorf("administrator's directory: %w", err)
	}
	return &AdminState{dir: dir}, nil
}

// Dir is the directory itself.
func (s *AdminState) Dir() string { return s.dir }

// AdminBusyError says that another command is changing something.
type AdminBusyError struct{ Dir string }

func (e *AdminBusyError) Error() string {
	return fmt.Sprintf("another zt-daemon command holds %s", e.Dir)
}

// Hint says to wait.
func (*AdminBusyError) Hint() string { return "wait until it has ended, then try again" }

// Lock keeps other commands from signing at the same time: two documents of one
// version would contradict each other. It does not wait: *AdminBusyError.
func (s *AdminState) Lock() (*StateLock, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "admin.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the administrator's directory: %w", err)
	}
	if held, err := lockFile(f); err != nil {
		f.Close()
		if held {
			return nil, &AdminBusyError{Dir: s.dir}
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	sweepTemp(s.dir)
	return &StateLock{f: f}, nil
}

// Networks are the ids of the networks that are known here, sorted.
func (s *AdminState) Networks() ([]auth.NetworkID, error) {
	return (&State{dir: s.dir}).Networks()
}

// Network is what is kept of one network. It makes nothing.
func (s *AdminState) Network(id auth.NetworkID) *AdminNetwork {
	return &AdminNetwork{documents: (&State{dir: s.dir}).Network(id)}
}

// AdminKeyError is a key file that cannot be read or must not be replaced.
type AdminKeyError struct {
	Path string
	Err  error
}

func (e *AdminKeyError) Error() string { return fmt.Sprintf("%s: %v", e.Path, e.Err) }
func (e *AdminKeyError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *AdminKeyError) Hint() string {
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](e.Err); ok {
		return h.Hint()
	}
	return "nothing was changed: restore the file from a backup, or move it away if the key is not needed any more"
}

// readAdminKey gives ErrNoState if there is no file.
func readAdminKey[K any](path string, parse func([]byte) (K, error)) (K, error) {
	var none K
	b, err := readPrivate(path, keyFileMaxBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return none, ErrNoState
	}
	if err == nil {
		var k K
		if k, err = parse(b); err == nil {
			return k, nil
		}
	}
	return none, &AdminKeyError{Path: path, Err: err}
}

// keepAdminKey writes a key file, durably, and never over another.
func keepAdminKey(path string, pem []byte) error {
	dir := filepath.Dir(path)
	if err := makePrivateDir(dir); err != nil {
		return err
	}
	temp := path + ".new"
	if err := writeAtomic(temp, pem, 0o600); err != nil {
		return err
	}
	defer os.Remove(temp)
	if err := os.Link(temp, path); errors.Is(err, fs.ErrExist) {
		return &AdminKeyError{Path: path, Err: errors.New("there is a key already")}
	} else if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(dir)
}

// SignerPath is where the signer's key is kept.
func (s *AdminState) SignerPath() string { return filepath.Join(s.dir, "signer.key") }

// Signer is this machine's signer. ErrNoState: none yet.
func (s *AdminState) Signer() (key.SignerPrivate, error) {
	return readAdminKey(s.SignerPath(), key.ParseSignerPEM)
}

// KeepSigner keeps a new signer's key. It never replaces one.
func (s *AdminState) KeepSigner(k key.SignerPrivate) error {
	return keepAdminKey(s.SignerPath(), k.PEM())
}

// AdminNetwork is what an administrator's machine keeps of one network.
type AdminNetwork struct{ documents *NetworkState }

// ID is the network's.
func (n *AdminNetwork) ID() auth.NetworkID { return n.documents.id }

// Dir is where it is kept.
func (n *AdminNetwork) Dir() string { return n.documents.dir }

// KeyPath is where the network key is kept.
func (n *AdminNetwork) KeyPath() string { return filepath.Join(n.documents.dir, "network.key") }

// Key is the network key. ErrNoState: it is on another machine.
func (n *AdminNetwork) Key() (key.NetworkPrivate, error) {
	k, err := readAdminKey(n.KeyPath(), key.ParseNetworkPEM)
	if err == nil && auth.IDOf(k.Public()) != n.ID() {
		return key.NetworkPrivate{}, &AdminKeyError{Path: n.KeyPath(), Err: fmt.Errorf("it is the key of network %s", auth.IDOf(k.Public()))}
	}
	return k, err
}

// KeepKey keeps a new network key. It never replaces one.
func (n *AdminNetwork) KeepKey(k key.NetworkPrivate) error {
	if auth.IDOf(k.Public()) != n.ID() {
		return fmt.Errorf("keep the key of network %s as that of %s", auth.IDOf(k.Public()), n.ID())
	}
	return keepAdminKey(n.KeyPath(), k.PEM())
}

// Head is the newest head that this machine saw or signed. ErrNoState: none.
func (n *AdminNetwork) Head() (*auth.Head, error) { return n.documents.Head() }

// TakeHead keeps h if it is newer than what is kept, and returns the newer of
// both. A head that contradicts the kept one is refused, as Head.Supersedes says.
func (n *AdminNetwork) TakeHead(h *auth.Head) (*auth.Head, error) {
	old, err := n.Head()
	if err != nil && !errors.Is(err, ErrNoState) {
		return nil, err
	}
	switch err := h.Supersedes(old); {
	case err == nil:
		return h, n.documents.KeepHead(h)
	case errors.Is(err, auth.ErrSame):
		return old, nil
	default:
		return old, err
	}
}

// KeepRecord keeps a record that was signed here.
func (n *AdminNetwork) KeepRecord(r *auth.Record) error { return n.documents.KeepRecord(r) }

// Forget removes a network which nobody else has seen: one whose relay refused
// its first head. The key is gone then.
func (n *AdminNetwork) Forget() error { return os.RemoveAll(n.documents.dir) }
