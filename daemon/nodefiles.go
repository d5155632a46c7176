package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"sigs.k8s.io/yaml"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
)

// The files of a node's directory. In Kubernetes they are a Secret and a
// ConfigMap in one projected volume.
const (
	NodeConfigFile = "node.yaml"   // NodeSettings
	ClusterKeyFile = "cluster.key" // PEM, PKCS #8
	PolicyFile     = "policy.yaml" // auth.ParsePolicy
	NodeHeadFile   = "head.jws"    // optional: the oldest head to accept
	maxNodeFile    = 1 << 20       // bytes of any of them
)

// NodeSettings is node.yaml.
type NodeSettings struct {
	Network  auth.NetworkID `json:"network"`
	Cluster  string         `json:"cluster"`  // a DNS label, the record's name
	Relay    string         `json:"relay"`    // URL to fetch the head from; the head names the relays to use
	Upstream string         `json:"upstream"` // host:port of the API server

	Kubernetes *NodeKubernetes `json:"kubernetes,omitempty"` // nil outside a pod
}

// NodeKubernetes is what a node in a pod reads and writes through its service
// account. Events about its pod are written whenever the section is there.
type NodeKubernetes struct {
	// PolicyConfigMap, of the pod's namespace, holds the policy under the key
	// policy.yaml and is watched. Empty: the policy is a file of the directory.
	PolicyConfigMap string `json:"policyConfigMap"`
	// AccessGrants says that AccessGrant objects are watched too.
	AccessGrants bool `json:"accessGrants"`
}

// Marshal gives the file's text.
func (s NodeSettings) Marshal() ([]byte, error) { return yaml.Marshal(s) }

// ParseNodeSettings reads node.yaml. An unknown field is an error.
func ParseNodeSettings(text []byte) (NodeSettings, error) {
	var s NodeSettings
	if err := yaml.UnmarshalStrict(text, &s); err != nil {
		return s, err
	}
	if s.Network.IsZero() {
		return s, errors.New("network is missing: the network id, 32 characters")
	}
	if err := auth.ValidName(s.Cluster); err != nil {
		return s, fmt.Errorf("cluster: %w", err)
	}
	u, err := url.Parse(s.Relay)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return s, fmt.Errorf("relay %q is not an https URL", s.Relay)
	}
	host, port, err := net.SplitHostPort(s.Upstream)
	if err != nil || host == "" {
		return s, fmt.Errorf("upstream %q is not host:port", s.Upstream)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return s, fmt.Errorf("upstream %q: the port is not a number from 1 to 65535", s.Upstream)
	}
	if k := s.Kubernetes; k != nil && k.PolicyConfigMap != "" && !configMapName.MatchString(k.PolicyConfigMap) {
		return s, fmt.Errorf("kubernetes: policyConfigMap %q is not a name", k.PolicyConfigMap)
	}
	return s, nil
}

// configMapName is what Kubernetes takes for one (RFC 1123 §2.1, with dots).
var configMapName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)

// nodeFiles is a node's directory as it was read.
type nodeFiles struct {
	settings NodeSettings
	key      key.ClusterPrivate
	head     *auth.Head // nil: none was given
}

// readNodeFiles reads all but the policy, which may be broken at any time.
func readNodeFiles(dir string) (nodeFiles, error) {
	var f nodeFiles
	text, err := readNodeFile(dir, NodeConfigFile)
	if err != nil {
		return f, err
	}
	if f.settings, err = ParseNodeSettings(text); err != nil {
		return f, &NodeFileError{File: filepath.Join(dir, NodeConfigFile), Err: err}
	}
	if text, err = readNodeFile(dir, ClusterKeyFile); err != nil {
		return f, err
	}
	if f.key, err = key.ParseClusterPEM(text); err != nil {
		return f, &NodeFileError{File: filepath.Join(dir, ClusterKeyFile), Err: err}
	}
	text, err = readNodeFile(dir, NodeHeadFile)
	if errors.Is(err, os.ErrNotExist) {
		return f, nil
	} else if err != nil {
		return f, err
	}
	if f.head, err = auth.ParseHead(bytes.TrimSpace(text)); err != nil {
		return f, &NodeFileError{File: filepath.Join(dir, NodeHeadFile), Err: err}
	}
	if f.head.Network != f.settings.Network {
		return f, &NodeFileError{File: filepath.Join(dir, NodeHeadFile),
			Err: fmt.Errorf("it is of network %s, and %s names %s", f.head.Network, NodeConfigFile, f.settings.Network)}
	}
	return f, nil
}

func readNodeFile(dir, name string) ([]byte, error) {
	path := filepath.Join(dir, name)
	info, err := os.Stat(path)
	if err != nil {
		return nil, &NodeFileError{File: path, Err: err}
	}
	if info.Size() > maxNodeFile {
		return nil, &NodeFileError{File: path, Err: fmt.Errorf("%d bytes, at most %d are read", info.Size(), maxNodeFile)}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, &NodeFileError{File: path, Err: err}
	}
	return b, nil
}

// WriteNodeFiles writes files into a node's directory, which it makes; each is
// replaced as a whole. The key's mode is 0600.
func WriteNodeFiles(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, b := range files {
		mode := os.FileMode(0o644)
		if name == ClusterKeyFile {
			mode = 0o600
		}
		if err := writeAtomic(filepath.Join(dir, name), b, mode); err != nil {
			return err
		}
	}
	return nil
}

// NodeFileError says which file of a node's directory cannot be used.
type NodeFileError struct {
	File string
	Err  error
}

func (e *NodeFileError) Error() string {
	var path *os.PathError
	if errors.As(e.Err, &path) {
		return fmt.Sprintf("%s: %v", e.File, path.Err)
	}
	return fmt.Sprintf("%s: %v", e.File, e.Err)
}

func (e *NodeFileError) Unwrap() error { return e.Err }

// Hint says how the file comes into being.
func (e *NodeFileError) Hint() string {
	return "`zt-daemon cluster add` writes this directory; run it again, or mount what it wrote"
}
