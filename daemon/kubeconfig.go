package daemon

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/zt-daemon/zt/auth"
)

const (
	// KubeconfigPrefix begins the names of our clusters, contexts and users.
	KubeconfigPrefix = "zt-"

	// kubeconfigMark is the name of the extension that says an entry is ours.
	kubeconfigMark = "zt-daemon"

	kubeconfigMaxBytes = 16 << 20

	execInstallHint = "zt-daemon is needed to reach this cluster and was not found.\n" +
		"Install it, then run `zt-daemon kubeconfig` to write its path here:\n" +
		"https://github.com/zt-daemon/zt\n"
)

// How an entry leads to the cluster's port.
const (
	ViaListener = "listener" // server is the port; tls-server-name says whom to expect there
	ViaProxy    = "proxy"    // server is the API server's own name, proxy-url the port
)

// KubeconfigEntry is one cluster, as kubectl shall see it: a cluster, a
// context and a user of one name.
type KubeconfigEntry struct {
	Name    string // of all three; empty: KubeconfigPrefix + Cluster
	Cluster string // its name in the network, a DNS label
	Network string // network id
	Port    uint16 // of 127.0.0.1
	CA      string // PEM, one or more certificates
	TLSName string // to expect in the API server's certificate
	Via     string // a Via… constant; empty: as in the entry there is, else ViaListener
	Command string // path of zt-daemon; "zt-daemon" is looked up in PATH by kubectl
	// StateDir is for a daemon whose state is not in the usual place; else empty.
	StateDir string
	// KeepUser leaves the person's own user entry in charge of credentials:
	// User, or if that is empty the one of the context there is, or the only one
	// used with a cluster of the same CA.
	KeepUser bool
	User     string
}

func (e KubeconfigEntry) name() string {
	if e.Name == "" {
		return KubeconfigPrefix + e.Cluster
	}
	return e.Name
}

// credentialArgs are the arguments of the exec credential command.
func (e KubeconfigEntry) credentialArgs() []*yaml.Node {
	args := []*yaml.Node{kubeText("credential"), kubeText("--network-id"), kubeText(e.Network)}
	if e.StateDir != "" {
		args = append(args, kubeText("--state-dir"), kubeText(e.StateDir))
	}
	return append(args, kubeText(e.Cluster))
}

func (e KubeconfigEntry) validate() error {
	if err := auth.ValidName(e.Cluster); err != nil {
		return err
	}
	if _, err := auth.ParseNetworkID(e.Network); err != nil {
		return fmt.Errorf("cluster %s: %w", e.Cluster, err)
	}
	if e.Port == 0 || e.TLSName == "" || e.Command == "" {
		return fmt.Errorf("cluster %s: port, TLS name or command is missing", e.Cluster)
	}
	if e.Via != "" && e.Via != ViaListener && e.Via != ViaProxy {
		return fmt.Errorf("cluster %s: by way of %q, want %s or %s", e.Cluster, e.Via, ViaListener, ViaProxy)
	}
	if len(pemCertificates(e.CA)) == 0 {
		return fmt.Errorf("cluster %s: no CA certificate", e.Cluster)
	}
	return nil
}

// pemCertificates are the DER forms of the certificates in a PEM text.
func pemCertificates(text string) (der []string) {
	for rest := []byte(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return der
		}
		if b.Type == "CERTIFICATE" {
			der = append(der, string(b.Bytes))
		}
	}
}

// Kubeconfig is the set of files that make up a person's kubeconfig.
type Kubeconfig struct {
	// Files in order of precedence. An entry is written to the file that has it,
	// else to the first file that exists, else to the last; kubectl does the same.
	Files []string
	// LockWait is how long to wait for another program's lock; 0: 10 s.
	LockWait time.Duration
}

// KubeconfigFiles are the files that kubectl would use: flag, if it is set,
// else the list in the variable KUBECONFIG, else ~/.kube/config.
func KubeconfigFiles(flag, variable, home string) ([]string, error) {
	if flag != "" {
		return []string{flag}, nil
	}
	var files []string
	for _, f := range filepath.SplitList(variable) {
		if f != "" && !slices.Contains(files, f) {
			files = append(files, f)
		}
	}
	if len(files) > 0 {
		return files, nil
	}
	if home == "" {
		return nil, errors.New("where the kubeconfig is, is unknown: neither KUBECONFIG nor the home directory is set")
	}
	return []string{filepath.Join(home, ".kube", "config")}, nil
}

// KubeconfigError says that a file is not a kubeconfig that can be edited safely.
type KubeconfigError struct {
	Path string
	Line int // 0: the whole file
	Err  error
}

func (e *KubeconfigError) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("kubeconfig %s, line %d: %v", e.Path, e.Line, e.Err)
	}
	return fmt.Sprintf("kubeconfig %s: %v", e.Path, e.Err)
}

func (e *KubeconfigError) Unwrap() error { return e.Err }

// Hint says that nothing was changed.
func (e *KubeconfigError) Hint() string {
	return "the file was left as it is; mend it, or use another with --kubeconfig FILE"
}

// ForeignEntryError says that a name is taken by an entry that is not ours to change.
type ForeignEntryError struct {
	Path, Section, Name string
	Network             string // ours, but of this other network; empty: not ours
}

func (e *ForeignEntryError) Error() string {
	if e.Network != "" {
		return fmt.Sprintf("kubeconfig %s: %q in %s belongs to the network %s", e.Path, e.Name, e.Section, e.Network)
	}
	return fmt.Sprintf("kubeconfig %s: %q in %s was not written by zt-daemon", e.Path, e.Name, e.Section)
}

// Hint says how to keep both.
func (e *ForeignEntryError) Hint() string {
	return "choose another name with `zt-daemon kubeconfig CLUSTER --context-name NAME`, or remove that entry first"
}

// NoUserError says that no user entry to keep was found, or more than one.
type NoUserError struct {
	Cluster string
	Found   []string
}

func (e *NoUserError) Error() string {
	if len(e.Found) > 0 {
		return fmt.Sprintf("cluster %s keeps your own kubeconfig user, and several may be meant: %s", e.Cluster, strings.Join(e.Found, ", "))
	}
	return fmt.Sprintf("cluster %s keeps your own kubeconfig user, and none is known for it", e.Cluster)
}

// Hint says how to name it.
func (e *NoUserError) Hint() string {
	return fmt.Sprintf("run `zt-daemon kubeconfig %s --user NAME` with a user of your kubeconfig", e.Cluster)
}

// Merge writes the entries, and makes current the context of that name unless
// it is empty. All other content, comments and order stay; so does the mode of
// the files. It returns the files that changed. After an error none has changed,
// unless it came from the disk while the second of several files was written.
func (k Kubeconfig) Merge(ctx context.Context, entries []KubeconfigEntry, current string) ([]string, error) {
	for _, e := range entries {
		if err := e.validate(); err != nil {
			return nil, err
		}
	}
	return k.edit(ctx, func(set *kubeFiles) error {
		for _, e := range entries {
			if err := set.put(e); err != nil {
				return err
			}
		}
		if current != "" {
			set.main.setCurrent(current)
		}
		return nil
	})
}

// Remove removes our clusters, contexts and users of these names. Names that
// are not there are no error; entries that are not ours are. The user that a
// context of ours kept stays. It returns the files that changed.
func (k Kubeconfig) Remove(ctx context.Context, names []string) ([]string, error) {
	return k.edit(ctx, func(set *kubeFiles) error {
		for _, name := range names {
			for _, s := range kubeSections {
				f, item := set.find(s, name)
				if item == nil {
					continue
				}
				if ours, _ := s.ours(item); !ours {
					return &ForeignEntryError{Path: f.path, Section: s.list, Name: name}
				}
				f.remove(s, name)
			}
		}
		return nil
	})
}

// RenderKubeconfig is a kubeconfig of its own with these entries.
func RenderKubeconfig(entries []KubeconfigEntry, current string) ([]byte, error) {
	f, err := parseKubeFile("", nil)
	if err != nil {
		return nil, err
	}
	set := &kubeFiles{all: []*kubeFile{f}, main: f, touched: make(map[kubeName]bool)}
	for _, e := range entries {
		if err := e.validate(); err != nil {
			return nil, err
		}
		if e.KeepUser && e.User == "" {
			return nil, &NoUserError{Cluster: e.Cluster}
		}
		if err := set.put(e); err != nil {
			return nil, err
		}
	}
	f.setCurrent(current)
	return f.encode()
}

// edit reads all files under lock, lets change work on them, checks what it
// did, and writes those that changed.
func (k Kubeconfig) edit(ctx context.Context, change func(*kubeFiles) error) ([]string, error) {
	if len(k.Files) == 0 {
		return nil, errors.New("no kubeconfig file is named")
	}
	main := k.Files[len(k.Files)-1]
	for _, path := range k.Files {
		if _, err := os.Stat(path); err == nil {
			main = path
			break
		}
	}
	unlock, err := lockKubeconfigs(ctx, k.Files, main, k.LockWait)
	if err != nil {
		return nil, err
	}
	defer unlock()

	set := &kubeFiles{touched: make(map[kubeName]bool)}
	for _, path := range k.Files {
		b, err := readBounded(path, kubeconfigMaxBytes)
		if errors.Is(err, fs.ErrNotExist) {
			if path != main {
				continue
			}
		} else if err != nil {
			return nil, fmt.Errorf("kubeconfig: %w", err)
		}
		f, err := parseKubeFile(path, b)
		if err != nil {
			return nil, err
		}
		set.all = append(set.all, f)
		if path == main {
			set.main = f
		}
	}
	if err := change(set); err != nil {
		return nil, err
	}
	out := make(map[*kubeFile][]byte)
	for _, f := range set.all {
		if !f.changed {
			continue
		}
		b, err := f.encode()
		if err == nil {
			err = f.verify(b, set.touched)
		}
		if err != nil {
			return nil, &KubeconfigError{Path: f.path, Err: err}
		}
		out[f] = b
	}
	var changed []string
	for _, f := range set.all {
		if b, ok := out[f]; ok {
			if err := f.write(b); err != nil {
				return changed, fmt.Errorf("kubeconfig: %w", err)
			}
			changed = append(changed, f.path)
		}
	}
	return changed, nil
}

// kubeName is one entry.
type kubeName struct{ section, name string }

// kubeFiles are all files of a kubeconfig while it is edited.
type kubeFiles struct {
	all     []*kubeFile
	main    *kubeFile         // where new entries go
	touched map[kubeName]bool // what the edit may have changed
}

// find looks for an entry in order of precedence; item is nil if there is none.
func (set *kubeFiles) find(s kubeSection, name string) (f *kubeFile, item *yaml.Node) {
	set.touched[kubeName{s.list, name}] = true
	for _, f := range set.all {
		if item := f.find(s, name); item != nil {
			return f, item
		}
	}
	return set.main, nil
}

func (set *kubeFiles) put(e KubeconfigEntry) error {
	user := e.name()
	sections := kubeSections
	if e.KeepUser {
		var err error
		if user, err = set.keptUser(e); err != nil {
			return err
		}
		sections = []kubeSection{clustersSection, contextsSection}
	}
	mark := kubeMap("extension", kubeMap("cluster", kubeText(e.Cluster), "network", kubeText(e.Network)), "name", kubeText(kubeconfigMark))
	for _, s := range sections {
		f, item := set.find(s, e.name())
		if item != nil {
			if ours, network := s.ours(item); !ours || network != e.Network {
				return &ForeignEntryError{Path: f.path, Section: s.list, Name: e.name(), Network: network}
			}
		}
		var body *yaml.Node
		switch s {
		case clustersSection:
			port := "127.0.0.1:" + strconv.Itoa(int(e.Port))
			fields := []any{
				"certificate-authority-data", kubeText(base64.StdEncoding.EncodeToString([]byte(e.CA))),
				"extensions", kubeList(mark),
			}
			if e.Via == ViaProxy || e.Via == "" && scalarAt(item, "cluster", "proxy-url") != "" {
				server := url.URL{Scheme: "https", Host: strings.TrimSuffix(net.JoinHostPort(e.TLSName, "443"), ":443")} // brackets of IPv6
				fields = append(fields, "proxy-url", kubeText("http://"+port), "server", kubeText(server.String()))
			} else {
				fields = append(fields, "server", kubeText("https://"+port), "tls-server-name", kubeText(e.TLSName))
			}
			body = kubeMap(fields...)
		case contextsSection:
			body = kubeMap("cluster", kubeText(e.name()), "extensions", kubeList(mark), "user", kubeText(user))
		case usersSection:
			body = kubeMap("exec", kubeMap(
				"apiVersion", kubeText(ExecAPIVersion),
				"args", kubeList(e.credentialArgs()...),
				"command", kubeText(e.Command),
				"installHint", kubeText(execInstallHint),
				"interactiveMode", kubeText("IfAvailable"),
				"provideClusterInfo", &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: "false"}))
		}
		f.put(s, e.name(), item, body)
	}
	return nil
}

// keptUser finds the user entry that a context keeps.
func (set *kubeFiles) keptUser(e KubeconfigEntry) (string, error) {
	users := make(map[string]bool) // by name: whether it is the person's own
	for _, f := range set.all {
		for _, item := range f.items(usersSection) {
			ours, _ := usersSection.ours(item)
			users[itemName(item)] = !ours
		}
	}
	if e.User != "" {
		if !users[e.User] && len(set.main.path) > 0 {
			return "", NewLocalError(KindFailure, "run `kubectl config get-users` for the list", "kubeconfig has no user %q of your own", e.User)
		}
		return e.User, nil
	}
	if _, item := set.find(contextsSection, e.name()); item != nil {
		if name := scalarAt(item, "context", "user"); users[name] {
			return name, nil
		}
	}
	want := pemCertificates(e.CA)
	same := make(map[string]bool) // names of clusters with one of these CAs
	for _, f := range set.all {
		for _, item := range f.items(clustersSection) {
			ca, err := base64.StdEncoding.DecodeString(scalarAt(item, "cluster", "certificate-authority-data"))
			if err != nil {
				continue
			}
			for _, der := range pemCertificates(string(ca)) {
				same[itemName(item)] = same[itemName(item)] || slices.Contains(want, der)
			}
		}
	}
	found := make(map[string]bool)
	for _, f := range set.all {
		for _, item := range f.items(contextsSection) {
			if name := scalarAt(item, "context", "user"); same[scalarAt(item, "context", "cluster")] && users[name] {
				found[name] = true
			}
		}
	}
	if len(found) != 1 {
		return "", &NoUserError{Cluster: e.Cluster, Found: slices.Sorted(maps.Keys(found))}
	}
	for name := range found {
		return name, nil
	}
	panic("unreachable: found has one element")
}
