// Package kube is a Kubernetes API server as one pod uses it: through the
// service account that the kubelet mounted, it follows objects, writes a status
// and records events.
//
// It owns requests, retries, bounds and what people are told when a right is
// missing. It must not know policies or AccessGrants: objects are bytes here.
package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	requestTimeout = 10 * time.Second // of one that is not a watch
	dialTimeout    = 5 * time.Second
	maxAnswer      = 64 << 10 // bytes read of an answer that is not a list
)

// Config says which API server, and as whom. Zero fields have defaults.
type Config struct {
	Address   string // host:port of the API server
	Account   string // directory of the service account; default ServiceAccountDir
	Pod       string // this pod's name; default: what the service account token says
	Node      string // the Kubernetes node it runs on; the same default
	Component string // who records events; default "zt-daemon"
	Log       *slog.Logger
}

// Client talks to one API server. Its methods may be called by any goroutine.
type Client struct {
	account account
	base    string // URL
	pod     podReference
	node    string
	name    string // Config.Component
	http    *http.Client
	log     *slog.Logger
}

// New reads the service account and connects to nothing. An error says which
// file of the service account cannot be used.
func New(cfg Config) (*Client, error) {
	if cfg.Account == "" {
		cfg.Account = ServiceAccountDir
	}
	if cfg.Component == "" {
		cfg.Component = "zt-daemon"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	host, _, err := net.SplitHostPort(cfg.Address)
	if err != nil || host == "" {
		return nil, fmt.Errorf("API server %q is not host:port", cfg.Address)
	}
	c := &Client{account: account{dir: cfg.Account}, base: "https://" + cfg.Address, node: cfg.Node, name: cfg.Component, log: cfg.Log}
	if c.pod.Namespace, err = c.account.namespace(); err != nil {
		return nil, err
	}
	if _, err := c.account.roots(); err != nil {
		return nil, err
	}
	token, err := c.account.token()
	if err != nil {
		return nil, err
	}
	c.pod.Name = cfg.Pod
	if told := tokenPod(token); c.pod.Name == "" || c.pod.Name == told.Name {
		c.pod.Name, c.pod.UID = told.Name, told.UID
		if c.node == "" {
			c.node = told.node
		}
	}
	if c.pod.Name == "" {
		return nil, errors.New("the pod's name is not known: set POD_NAME by the downward API (metadata.name)")
	}
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3, // a dead API server is noticed in half a minute
	}}
	c.http = &http.Client{
		Transport: &http.Transport{
			DialContext: dialer.DialContext, TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: requestTimeout,
			MaxIdleConnsPerHost: 1, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: maxAnswer,
			DisableCompression: true, // a decompressor costs more memory than a node's lists
			TLSClientConfig: &tls.Config{
				MinVersion:         tls.VersionTLS12,
				InsecureSkipVerify: true, // VerifyConnection does it, with the roots of now
				VerifyConnection:   c.account.verify(host),
				NextProtos:         []string{"http/1.1"}, // so that each watch has its connection, and its end
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Namespace is the pod's own.
func (c *Client) Namespace() string { return c.pod.Namespace }

// Pod is the pod's name.
func (c *Client) Pod() string { return c.pod.Name }

// Roots are the CAs that the service account names for the API server.
func (c *Client) Roots() (*x509.CertPool, error) { return c.account.roots() }

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Resource is a kind of object.
type Resource struct {
	Group, Version string // an empty group is the core one
	Kind, Plural   string
	Cluster        bool // of the cluster; otherwise of the pod's namespace
}

func (r Resource) apiVersion() string {
	if r.Group == "" {
		return r.Version
	}
	return r.Group + "/" + r.Version
}

// The resources of Kubernetes' own that a pod of ours uses.
var (
	ConfigMaps = Resource{Version: "v1", Kind: "ConfigMap", Plural: "configmaps"}
	events     = Resource{Version: "v1", Kind: "Event", Plural: "events"}
)

// request is one request, in the words of RBAC too, for the message when the
// right to it is missing.
type request struct {
	verb        string // RBAC's
	method      string
	resource    Resource
	name        string // in the path; empty: the collection
	subresource string
	only        string // the name that a field selector asks for; empty: any
	query       url.Values
	contentType string
	body        []byte
}

func (c *Client) url(r request) string {
	b := new(strings.Builder)
	b.WriteString(c.base)
	if r.resource.Group == "" {
		b.WriteString("/api/")
	} else {
		b.WriteString("/apis/")
	}
	b.WriteString(r.resource.apiVersion())
	if !r.resource.Cluster {
		b.WriteString("/namespaces/" + url.PathEscape(c.pod.Namespace))
	}
	b.WriteString("/" + r.resource.Plural)
	if r.name != "" {
		b.WriteString("/" + url.PathEscape(r.name))
	}
	if r.subresource != "" {
		b.WriteString("/" + r.subresource)
	}
	if len(r.query) > 0 {
		b.WriteString("?" + r.query.Encode())
	}
	return b.String()
}

// send returns the answer of a request that succeeded, whose body the caller
// closes; every other outcome is an *Error. The token is read each time: the
// kubelet replaces it, and requests are rare.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	token, err := c.account.token()
	if err != nil {
		return nil, c.fault(r, err)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, c.url(r), bytes.NewReader(r.body))
	if err != nil {
		return nil, c.fault(r, err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", c.name)
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var wrapped *url.Error // its text repeats method and URL
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, c.fault(r, err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	e := c.fault(r, nil)
	e.Code = resp.StatusCode
	e.retryAfter = retryAfter(resp.Header.Get("Retry-After"))
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(text, &status) == nil {
		e.Message = status.Message
	}
	return nil, e
}

// do sends a request whose answer's body is not needed.
func (c *Client) do(ctx context.Context, r request) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // so that the connection serves again
	return nil
}

// ApplyStatus writes the fields of object, which has no metadata of its own,
// into the status of the named object, as server-side apply does: what another
// manager wrote into other fields stays. uid, if not empty, is the object that is
// meant; a successor of the same name is left alone.
func (c *Client) ApplyStatus(ctx context.Context, r Resource, name, uid, manager string, status any) error {
	metadata := map[string]string{"name": name}
	if uid != "" {
		metadata["uid"] = uid
	}
	body, err := json.Marshal(map[string]any{"apiVersion": r.apiVersion(), "kind": r.Kind, "metadata": metadata, "status": status})
	if err != nil {
		return fmt.Errorf("status of %s %s: %v", r.Plural, name, err)
	}
	return c.do(ctx, request{
		verb: "patch", method: http.MethodPatch, resource: r, name: name, subresource: "status",
		query:       url.Values{"fieldManager": {manager}, "force": {"true"}},
		contentType: "application/apply-patch+yaml", body: body, // JSON is YAML
	})
}
