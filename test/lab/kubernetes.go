package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// KubernetesConfig says which API server to start.
type KubernetesConfig struct {
	// Name tells several apart: it is in the names of files and processes.
	Name string
	// Program is the executable that test/kubernetes/build.sh makes.
	Program string
	// Host is the IP address to serve on; empty is 127.0.0.1.
	Host string
	// Port to serve on; 0 is a free one (only without a namespace).
	Port int
	// Names are added to the serving certificate.
	Names []string
	// Namespace is the network it runs in.
	Namespace *Namespace
	// Issuer is whose ID tokens the API server takes.
	Issuer TrustedIssuer
	// Kubelets says that machines will join and pods run: service accounts are
	// wanted, kubelets are asked by their addresses, Host is the service's endpoint.
	Kubelets bool
}

// TrustedIssuer is an issuer as one relying party knows it.
type TrustedIssuer struct {
	URL      string
	ClientID string // the accepted audience
	CA       []byte // PEM; empty: the system's
}

// Kubernetes is a running API server with its etcd.
type Kubernetes struct {
	URL        string // https://HOST:PORT
	Host       string // HOST:PORT
	CA         []byte // PEM
	Kubeconfig string // file: the administrator's, context "admin"
	AuditLog   string // file: one JSON line an event
	Process    *Process

	lab    *Lab
	config KubernetesConfig
	dir    string
	ca     *Authority
	admin  *http.Client
}

// ServiceCIDR is where services have their addresses in every cluster of a lab.
const (
	ServiceCIDR = "10.96.0.0/16"
	serviceHost = "10.96.0.1" // of kubernetes.default
)

// DevelopersRole is what the group oidc:developers may do on a lab's API
// server.
const DevelopersRole = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: zt-lab-developers}
rules:
- {apiGroups: [""], resources: [namespaces, configmaps, pods], verbs: [get, list, watch, create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: zt-lab-developers}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: zt-lab-developers}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: "oidc:developers"}
`

// auditPolicy logs who did what, without bodies and without the API server's
// own housekeeping.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, users: ["system:apiserver", "system:anonymous"]}
- {level: Metadata}
`

// StartKubernetes starts etcd and kube-apiserver in the lab and waits until the
// API server is ready and the rights of DevelopersRole are granted. The issuer
// must be serving already: the API server asks for its keys once at its start
// and then again only every ten seconds.
func (l *Lab) StartKubernetes(ctx context.Context, c KubernetesConfig) (*Kubernetes, error) {
	done := l.During("starting etcd and kube-apiserver")
	defer done()
	dir := filepath.Join(l.Dir, c.called("kubernetes"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("start Kubernetes: %w", err)
	}
	if c.Host == "" {
		c.Host = "127.0.0.1"
	}
	if c.Port == 0 {
		port, err := FreePort()
		if err != nil {
			return nil, fmt.Errorf("start Kubernetes: %w", err)
		}
		c.Port = port
	}
	k := &Kubernetes{
		Host:       net.JoinHostPort(c.Host, fmt.Sprint(c.Port)),
		Kubeconfig: filepath.Join(dir, "admin.kubeconfig"),
		AuditLog:   filepath.Join(dir, "audit.log"),
		lab:        l,
		config:     c,
		dir:        dir,
	}
	k.URL = "https://" + k.Host
	if err := k.writeFiles(); err != nil {
		return nil, fmt.Errorf("start Kubernetes: %w", err)
	}

	// Unix sockets by relative names, the only kind that etcd's URLs can hold:
	// no port to be taken, and no one but this user can write to etcd.
	etcd, err := l.Start(Command{
		Name: c.called("etcd"), Dir: dir, Namespace: c.Namespace,
		Args: []string{c.Program, "etcd", "--name=lab", "--data-dir=etcd", "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls=unix://etcd.sock:0", "--advertise-client-urls=unix://etcd.sock:0",
			"--listen-peer-urls=unix://etcd-peer.sock:0", "--initial-advertise-peer-urls=unix://etcd-peer.sock:0",
			"--initial-cluster=lab=unix://etcd-peer.sock:0"},
	})
	if err != nil {
		return nil, err
	}
	if err := etcd.WaitFor(ctx, "the socket", func(context.Context) error {
		_, err := os.Stat(filepath.Join(dir, "etcd.sock:0"))
		return err
	}); err != nil {
		return nil, err
	}
	if err := k.Start(ctx); err != nil {
		return nil, err
	}
	if r := k.Kubectl(ctx, strings.NewReader(DevelopersRole), "apply", "-f", "-"); r.OK() != nil {
		return nil, fmt.Errorf("grant rights on the API server: %w", r.OK())
	}
	done()
	l.Say("kube-apiserver is ready on %s", k.Host)
	return k, nil
}

// Start runs kube-apiserver and waits until it is ready. It also brings a killed
// one back.
func (k *Kubernetes) Start(ctx context.Context) error {
	c := k.config
	args := []string{c.Program, "kube-apiserver", "--etcd-servers=unix://etcd.sock:0",
		"--bind-address=" + c.Host, fmt.Sprintf("--secure-port=%d", c.Port),
		"--tls-cert-file=server.crt", "--tls-private-key-file=server.key", "--client-ca-file=ca.crt",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-signing-key-file=service-account.key", "--service-account-key-file=service-account.crt",
		"--authentication-config=authentication.yaml", "--authorization-mode=Node,RBAC", "--service-cluster-ip-range=" + ServiceCIDR,
		"--audit-policy-file=audit-policy.yaml", "--audit-log-path=audit.log", "--profiling=false"}
	if c.Kubelets {
		args = append(args, "--advertise-address="+c.Host, "--enable-admission-plugins=NodeRestriction", "--kubelet-preferred-address-types=InternalIP",
			"--kubelet-certificate-authority=ca.crt", "--kubelet-client-certificate=kubelet-client.crt", "--kubelet-client-key=kubelet-client.key")
	} else {
		// No controller manager makes the default service accounts that this plugin wants for pods.
		args = append(args, "--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount")
	}
	var err error
	// No grace: with etcd gone an API server takes a minute to end.
	if k.Process, err = k.lab.Start(Command{Name: c.called("kube-apiserver"), Dir: k.dir, Namespace: c.Namespace, Args: args}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return k.Process.WaitFor(ctx, "/readyz", func(ctx context.Context) error { _, err := k.get(ctx, "/readyz"); return err })
}

// called is the name of one of the cluster's files or processes.
func (c KubernetesConfig) called(name string) string {
	if c.Name == "" {
		return name
	}
	return name + "-" + c.Name
}

// Kubectl runs kubectl as the cluster's administrator beside the API server.
func (k *Kubernetes) Kubectl(ctx context.Context, stdin io.Reader, args ...string) Result {
	return k.lab.Run(ctx, Command{
		Name: "kubectl", Namespace: k.config.Namespace, Stdin: stdin,
		Args: append([]string{k.config.Program, "kubectl", "--kubeconfig", k.Kubeconfig}, args...),
	})
}

// KubernetesEvent is one line of the API server's audit log, as far as the lab
// looks.
type KubernetesEvent struct {
	Verb string `json:"verb"`
	User struct {
		Username string              `json:"username"`
		UID      string              `json:"uid"`
		Groups   []string            `json:"groups"`
		Extra    map[string][]string `json:"extra"`
	} `json:"user"`
	ObjectRef struct {
		Resource    string `json:"resource"`
		Subresource string `json:"subresource"`
		Name        string `json:"name"`
	} `json:"objectRef"`
	ResponseStatus struct {
		Code int `json:"code"`
	} `json:"responseStatus"`
}

// Audit reads the API server's audit log.
func (k *Kubernetes) Audit() ([]KubernetesEvent, error) {
	return readLines[KubernetesEvent](k.AuditLog)
}

// Object reads the JSON at a path of the API server, as its administrator.
func (k *Kubernetes) Object(ctx context.Context, path string, into any) error {
	body, err := k.get(ctx, path)
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}

// get asks the API server, as its administrator, for path.
func (k *Kubernetes) get(ctx context.Context, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.URL+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := k.admin.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %.4096s", resp.Status, bytes.TrimSpace(body))
	}
	return body, err
}

// writeFiles makes keys, certificates and configuration.
func (k *Kubernetes) writeFiles() error {
	var err error
	if k.ca, err = NewAuthority("zt lab Kubernetes CA"); err != nil {
		return err
	}
	k.CA = k.ca.PEM
	server, err := k.ca.Server(append([]string{"kubernetes.default.svc", "kubernetes", "localhost", "127.0.0.1", serviceHost, k.config.Host}, k.config.Names...)...)
	if err != nil {
		return err
	}
	accounts, err := k.ca.Client("service accounts")
	if err != nil {
		return err
	}
	kubelets, err := k.ca.Client("kube-apiserver-kubelet-client", "system:masters")
	if err != nil {
		return err
	}
	authentication, err := authenticationConfiguration(k.config.Issuer)
	if err != nil {
		return err
	}
	admin, err := k.writeKubeconfig("admin", "admin", "system:masters")
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(admin.Certificate, admin.Key)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(k.CA)
	k.admin = &http.Client{Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
		DialContext:       k.config.Namespace.DialContext,
		DisableKeepAlives: true,
	}}
	return errors.Join(
		os.WriteFile(k.file("ca.crt"), k.CA, 0o644),
		server.Write(k.file("server.crt"), k.file("server.key")),
		accounts.Write(k.file("service-account.crt"), k.file("service-account.key")),
		kubelets.Write(k.file("kubelet-client.crt"), k.file("kubelet-client.key")),
		os.WriteFile(k.file("authentication.yaml"), authentication, 0o600),
		os.WriteFile(k.file("audit-policy.yaml"), []byte(auditPolicy), 0o600),
	)
}

// writeKubeconfig makes NAME.kubeconfig with a client certificate of its own.
// Its context has that name too.
func (k *Kubernetes) writeKubeconfig(name, user string, groups ...string) (*Certificate, error) {
	pair, err := k.ca.Client(user, groups...)
	if err != nil {
		return nil, err
	}
	kubeconfig, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": name,
		"clusters": []any{map[string]any{"name": "lab", "cluster": map[string]any{"server": k.URL, "certificate-authority-data": k.CA}}},
		"users":    []any{map[string]any{"name": name, "user": map[string]any{"client-certificate-data": pair.Certificate, "client-key-data": pair.Key}}},
		"contexts": []any{map[string]any{"name": name, "context": map[string]any{"cluster": "lab", "user": name}}},
	})
	if err != nil {
		return nil, err
	}
	return pair, os.WriteFile(k.file(name+".kubeconfig"), kubeconfig, 0o600)
}

// file is one in the cluster's directory.
func (k *Kubernetes) file(name string) string { return filepath.Join(k.dir, name) }

// authenticationConfiguration trusts one issuer for persons. sid and jti go into
// the audit log beside who it was, so that its lines join those of relay and
// node.
func authenticationConfiguration(i TrustedIssuer) ([]byte, error) {
	issuer := map[string]any{"url": i.URL, "audiences": []string{i.ClientID}}
	if len(i.CA) > 0 {
		issuer["certificateAuthority"] = string(i.CA)
	}
	extra := func(claim string) map[string]any {
		return map[string]any{"key": "zt-daemon.github.io/" + claim, "valueExpression": fmt.Sprintf("has(claims.%[1]s) ? claims.%[1]s : ''", claim)}
	}
	return yaml.Marshal(map[string]any{
		"apiVersion": "apiserver.config.k8s.io/v1",
		"kind":       "AuthenticationConfiguration",
		"anonymous":  map[string]any{"enabled": true, "conditions": []any{map[string]any{"path": "/livez"}, map[string]any{"path": "/readyz"}, map[string]any{"path": "/healthz"}}},
		"jwt": []any{map[string]any{
			"issuer": issuer,
			"claimMappings": map[string]any{
				"username": map[string]any{"claim": "email", "prefix": "oidc:"},
				"groups":   map[string]any{"claim": "groups", "prefix": "oidc:"},
				"uid":      map[string]any{"claim": "sub"},
				"extra":    []any{extra("sid"), extra("jti")},
			},
		}},
	})
}

// FreePort is a TCP port of 127.0.0.1 that nobody listens on just now.
func FreePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}
