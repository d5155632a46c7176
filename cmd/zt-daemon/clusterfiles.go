package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/deploy"
)

// nodeFiles are a node's files; without a policy if the cluster keeps its own.
func (c *clusterAdd) nodeFiles(head *auth.Head, server daemon.KubeAPIServer, k key.ClusterPrivate, kept []byte) (map[string][]byte, error) {
	settings, err := daemon.NodeSettings{Network: head.Network, Cluster: c.name, Relay: head.Relays[0].URL, Upstream: server.Address}.Marshal()
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{daemon.NodeConfigFile: settings, daemon.NodeHeadFile: append(head.Raw(), '\n'), daemon.ClusterKeyFile: k.PEM()}
	if kept == nil {
		files[daemon.PolicyFile], err = c.firstPolicy(head.Issuers[0])
	}
	return files, err
}

// firstPolicy takes the network's first issuer, and admits the groups that were
// named.
func (c *clusterAdd) firstPolicy(issuer auth.Issuer) ([]byte, error) {
	policy := map[string]any{"issuers": []auth.Issuer{issuer}, "rules": []any{}}
	if len(c.groups) > 0 {
		policy["rules"] = []any{map[string]any{"name": "first", "issuer": issuer.URL, "groups": c.groups}}
	}
	text, err := yaml.Marshal(policy)
	if err != nil {
		return nil, err
	}
	_, err = auth.ParsePolicy(text)
	return text, err
}

// keptPolicy is the policy that the cluster has; nil if it has none.
func (c *clusterAdd) keptPolicy(ctx context.Context) ([]byte, error) {
	if c.out == "" {
		return c.kube.File(ctx, "configmap", c.namespace, deploy.PolicyConfigMap, daemon.PolicyFile)
	}
	b, err := os.ReadFile(filepath.Join(c.out, daemon.PolicyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// policyPlace says where a person finds the policy.
func (c *clusterAdd) policyPlace() string {
	if c.out == "" {
		return fmt.Sprintf("ConfigMap %s in namespace %s", deploy.PolicyConfigMap, c.namespace)
	}
	return filepath.Join(c.out, daemon.PolicyFile)
}

// checkKeptPolicy refuses a policy whose overlay client the API server would
// accept too. One that does not parse is its author's, who is told.
func checkKeptPolicy(env *environment, policy []byte, apiServer *auth.Issuer) error {
	p, err := auth.ParsePolicy(policy)
	if err != nil {
		fmt.Fprintf(env.stderr, "zt-daemon: warning: the policy that is there cannot be read, and was left alone: %s\n", printable(err.Error()))
		return nil
	}
	return auth.CheckAudiences(p.Issuers, apiServer)
}

// write puts the node's files where they belong.
func (c *clusterAdd) write(ctx context.Context, env *environment, site site, files map[string][]byte) error {
	if c.out != "" {
		return daemon.WriteNodeFiles(c.out, files)
	}
	manifests, err := c.fileManifests(site, files)
	if err != nil {
		return err
	}
	said, err := c.kube.Apply(ctx, manifests, false)
	fmt.Fprint(env.stderr, said)
	return err
}

// fileManifests are the Secret, the policy's ConfigMap if files hold a policy, and
// the namespace if it is not there, as YAML documents. What node.yaml says the
// installation renders.
func (c *clusterAdd) fileManifests(site site, files map[string][]byte) ([]byte, error) {
	object := func(kind, name string, data map[string][]byte) map[string]any {
		o := map[string]any{"apiVersion": "v1", "kind": kind, "metadata": map[string]any{"name": name, "namespace": c.namespace}}
		if kind == "Secret" {
			o["data"] = data
			return o
		}
		text := map[string]string{}
		for name, b := range data {
			text[name] = string(b)
		}
		o["data"] = text
		return o
	}
	var objects []map[string]any
	if !site.namespace {
		objects = append(objects, map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{
			"name": c.namespace, "labels": map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
		}})
	}
	objects = append(objects, object("Secret", deploy.KeySecret, map[string][]byte{
		daemon.ClusterKeyFile: files[daemon.ClusterKeyFile], daemon.NodeHeadFile: files[daemon.NodeHeadFile],
	}))
	if policy := files[daemon.PolicyFile]; policy != nil {
		objects = append(objects, object("ConfigMap", deploy.PolicyConfigMap, map[string][]byte{daemon.PolicyFile: policy}))
	}
	var manifests bytes.Buffer
	for _, o := range objects {
		b, err := yaml.Marshal(o)
		if err != nil {
			return nil, err
		}
		manifests.WriteString("---\n")
		manifests.Write(b)
	}
	return manifests.Bytes(), nil
}
