package kube

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// ServiceAccountDir is where the kubelet mounts a pod's service account.
const ServiceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

const maxAccountFile = 1 << 20 // bytes

// account is a service account's directory. Its files are read whenever they are
// needed: the kubelet replaces token and CA while the pod runs.
type account struct{ dir string }

func (a account) read(name string) (string, error) {
	path := filepath.Join(a.dir, name)
	f, err := os.Open(path)
	if err != nil {
		return "", &AccountError{File: path, Err: errors.Unwrap(err)}
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAccountFile))
	if err != nil {
		return "", &AccountError{File: path, Err: err}
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return "", &AccountError{File: path, Err: errors.New("it is empty")}
	}
	return text, nil
}

func (a account) token() (string, error)     { return a.read("token") }
func (a account) namespace() (string, error) { return a.read("namespace") }

func (a account) roots() (*x509.CertPool, error) {
	text, err := a.read("ca.crt")
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(text)) {
		return nil, &AccountError{File: filepath.Join(a.dir, "ca.crt"), Err: errors.New("it holds no certificate")}
	}
	return pool, nil
}

// verify accepts a certificate that is valid for host under the CAs of now.
// (The connection's own ServerName is empty where host is an address.)
func (a account) verify(host string) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		roots, err := a.roots()
		if err != nil {
			return err
		}
		between := x509.NewCertPool()
		for _, cert := range cs.PeerCertificates[1:] {
			between.AddCert(cert)
		}
		_, err = cs.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: host, Roots: roots, Intermediates: between})
		return err
	}
}

// AccountError says which file of the service account cannot be used.
type AccountError struct {
	File string
	Err  error
}

func (e *AccountError) Error() string { return fmt.Sprintf("service account: %s: %v", e.File, e.Err) }

// Unwrap returns the cause.
func (e *AccountError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *AccountError) Hint() string {
	return "give the pod a service account (serviceAccountName) and leave automountServiceAccountToken on; outside a pod, leave the section `kubernetes` out of node.yaml"
}

// podReference names a pod in an Event.
type podReference struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	UID        string `json:"uid,omitempty"`
	node       string
}

// tokenPod is the pod to which the service account token is bound, as the token
// says. It is our own token: nothing is decided by it, so it is not verified.
func tokenPod(token string) (p podReference) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return p
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return p
	}
	var claims struct {
		Kubernetes struct {
			Pod  struct{ Name, UID string } `json:"pod"`
			Node struct{ Name string }      `json:"node"`
		} `json:"kubernetes.io"`
	}
	if json.Unmarshal(payload, &claims) == nil {
		p.Name, p.UID, p.node = claims.Kubernetes.Pod.Name, claims.Kubernetes.Pod.UID, claims.Kubernetes.Node.Name
	}
	return p
}
