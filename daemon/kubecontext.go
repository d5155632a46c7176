package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"time"
)

const (
	// kubectlTimeout ends one kubectl, whose API server may not answer.
	kubectlTimeout = 15 * time.Second
	// kubectlDrain is how long a credential plugin may hold a killed kubectl's
	// output open.
	kubectlDrain = time.Second

	// clusterTLSName is in the certificate of every API server that pods reach.
	clusterTLSName = "kubernetes.default.svc"
)

// KubeContext is a kubeconfig context of an administrator, used through their own
// kubectl: its plugins and proxies then work as they always do.
type KubeContext struct {
	Kubeconfig string // file; empty: as kubectl finds it
	Context    string // empty: the current one
}

// KubeAPIServer is what a context tells of its API server.
type KubeAPIServer struct {
	Address string   // host:port
	CAs     []string // PEM
	TLSName string   // a name in its certificate
}

// KubectlError is what kubectl said.
type KubectlError struct {
	Command string
	Text    string
	Err     error // context.DeadlineExceeded if it was ended
}

func (e *KubectlError) Error() string { return e.Command + ": " + e.Text }
func (e *KubectlError) Unwrap() error { return e.Err }

// Hint says how to see it apart from zt.
func (e *KubectlError) Hint() string {
	return "this must work by itself first: " + e.Command
}

// kubectl runs kubectl in the context.
func (k KubeContext) kubectl(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, kubectlTimeout)
	defer cancel()
	var all []string
	if k.Kubeconfig != "" {
		all = append(all, "--kubeconfig", k.Kubeconfig)
	}
	if k.Context != "" {
		all = append(all, "--context", k.Context)
	}
	all = append(all, args...)
	cmd := exec.CommandContext(ctx, "kubectl", all...)
	cmd.WaitDelay = kubectlDrain
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errOut
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, &KubectlError{"kubectl", "not found: install kubectl, https://kubernetes.io/docs/tasks/tools", err}
	} else if err != nil {
		text := strings.TrimSpace(errOut.String())
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			text = strings.TrimSpace(fmt.Sprintf("no answer within %v. %s", kubectlTimeout, text))
		} else if text == "" {
			text = err.Error()
		}
		return nil, &KubectlError{"kubectl " + strings.Join(all, " "), printable(text), ctx.Err()}
	}
	return out.Bytes(), nil
}

// APIServer reads the context's API server: its address, its CAs and a name that
// its certificate carries. With inCluster, CA and name are those by which pods
// reach it, if the context may read the CA.
func (k KubeContext) APIServer(ctx context.Context, inCluster bool) (KubeAPIServer, error) {
	var s KubeAPIServer
	out, err := k.kubectl(ctx, nil, "config", "view", "--minify", "--flatten", "--raw", "-o", "json")
	if err != nil {
		return s, err
	}
	var view struct {
		Clusters []struct {
			Cluster struct {
				Server   string `json:"server"`
				CA       []byte `json:"certificate-authority-data"`
				TLSName  string `json:"tls-server-name"`
				Insecure bool   `json:"insecure-skip-tls-verify"`
				ProxyURL string `json:"proxy-url"`
			} `json:"cluster"`
		} `json:"clusters"`
	}
	if err := json.Unmarshal(out, &view); err != nil || len(view.Clusters) != 1 {
		return s, NewLocalError(KindUsage, "`kubectl config get-contexts` lists them", "kubeconfig context %q names no cluster", k.Context)
	}
	c := view.Clusters[0].Cluster
	switch {
	case c.Insecure:
		return s, NewLocalError(KindFailure, "give the context a certificate authority: TLS to the API server is always verified here",
			"kubeconfig context %q skips TLS verification", k.Context)
	}
	u, err := url.Parse(c.Server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return s, NewLocalError(KindFailure, "give the context the API server's https URL: TLS to it is always verified here",
			"kubeconfig context %q: server %q is not an https URL", k.Context, c.Server)
	}
	s.Address = hostPort(u)
	name := u.Hostname()
	if c.TLSName != "" {
		name = c.TLSName
	}
	if inCluster {
		// What pods trust and call it. The context may go through something else: a
		// provider's proxy, a load balancer with a certificate of its own.
		out, err := k.kubectl(ctx, nil, "get", "configmap", "kube-root-ca.crt", "--namespace", "default", "-o", `jsonpath={.data.ca\.crt}`)
		if ca := strings.TrimSpace(string(out)); err == nil && ca != "" {
			s.CAs, s.TLSName = []string{ca + "\n"}, clusterTLSName
			if c.ProxyURL == "" {
				if served, err := servedName(ctx, s.Address, name, s.CAs); err == nil {
					s.TLSName = served
				}
			}
			return s, context.Cause(ctx)
		}
		if ctx.Err() != nil {
			return s, context.Cause(ctx)
		}
	}
	if len(c.CA) == 0 {
		return s, NewLocalError(KindFailure, "give the PEM file of the API server's certificate authority with --ca-file, and --tls-server-name",
			"kubeconfig context %q names no certificate authority", k.Context)
	}
	s.CAs = []string{string(c.CA)}
	if c.ProxyURL != "" { // this machine cannot look by itself
		s.TLSName = name
		return s, nil
	}
	s.TLSName, err = servedName(ctx, s.Address, name, s.CAs)
	return s, err
}

// servedName picks the name by which the certificate at addr is to be verified:
// the cluster's own name if it is there, else the one that the context uses.
func servedName(ctx context.Context, addr, name string, cas []string) (string, error) {
	pool := x509.NewCertPool()
	for _, ca := range cas {
		pool.AppendCertsFromPEM([]byte(ca))
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	dialer := &tls.Dialer{NetDialer: &net.Dialer{}, Config: &tls.Config{RootCAs: pool, ServerName: name, MinVersion: tls.VersionTLS12}}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", NewLocalError(KindUnreachable, "give the name in its certificate with --tls-server-name if this machine cannot reach it",
			"API server %s: %v", addr, err)
	}
	defer conn.Close()
	names := conn.(*tls.Conn).ConnectionState().PeerCertificates[0].DNSNames
	for _, want := range []string{clusterTLSName, "kubernetes.default", "kubernetes"} {
		if slices.Contains(names, want) {
			return want, nil
		}
	}
	return name, nil
}

// Apply applies manifests. Fields that another manager set are an error, or with
// force taken over.
func (k KubeContext) Apply(ctx context.Context, manifests []byte, force bool) (string, error) {
	out, err := k.kubectl(ctx, manifests, "apply", "--server-side", "--field-manager=zt-daemon", fmt.Sprintf("--force-conflicts=%v", force), "-f", "-")
	return string(out), err
}

// List reads objects as a list in JSON; args name and select them, as kubectl get
// takes it.
func (k KubeContext) List(ctx context.Context, args ...string) ([]byte, error) {
	return k.kubectl(ctx, nil, append(append([]string{"get"}, args...), "-o", "json")...)
}

// Exists says whether an object is there; args name it, as kubectl get takes it.
func (k KubeContext) Exists(ctx context.Context, args ...string) (bool, error) {
	out, err := k.kubectl(ctx, nil, append(append([]string{"get"}, args...), "--ignore-not-found", "-o", "name")...)
	return len(bytes.TrimSpace(out)) > 0, err
}

// Delete deletes objects, if they are there; args name them.
func (k KubeContext) Delete(ctx context.Context, args ...string) error {
	_, err := k.kubectl(ctx, nil, append([]string{"delete", "--ignore-not-found", "--wait=false"}, args...)...)
	return err
}

// Log is the end of what a container of a pod wrote.
func (k KubeContext) Log(ctx context.Context, namespace, pod, container string) (string, error) {
	out, err := k.kubectl(ctx, nil, "logs", pod, "--namespace", namespace, "--container", container, "--tail=50")
	return string(out), err
}

// File reads a key of a Secret or ConfigMap (kind) in a namespace; nil if it is
// not there.
func (k KubeContext) File(ctx context.Context, kind, namespace, name, file string) ([]byte, error) {
	out, err := k.kubectl(ctx, nil, "get", kind, name, "--namespace", namespace, "--ignore-not-found", "-o", "json")
	if err != nil || len(bytes.TrimSpace(out)) == 0 {
		return nil, err
	}
	if kind == "secret" {
		var o struct {
			Data map[string][]byte `json:"data"`
		}
		err = json.Unmarshal(out, &o)
		return o.Data[file], err
	}
	var o struct {
		Data map[string]string `json:"data"`
	}
	if err := json.Unmarshal(out, &o); err != nil || o.Data[file] == "" {
		return nil, err
	}
	return []byte(o.Data[file]), nil
}
