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
	"github.com/zt-daemon/zt/daemon"
)

// nodeFiles are a node's files but the key.
func (c *clusterAdd) nodeFiles(head *auth.Head, server daemon.KubeAPIServer) (map[string][]byte, error) {
	settings, err := daemon.NodeSettings{Network: head.Network, Cluster: c.name, Relay: head.Relays[0].URL, Upstream: server.Address}.Marshal()
	if err != nil {
		return nil, err
	}
	issuer := head.Issuers[0]
	policy := map[string]any{"issuers": []auth.Issuer{issuer}, "rules": []any{}}
	if len(c.groups) > 0 {
		policy["rules"] = []any{map[string]any{"name": "first", "issuer": issuer.URL, "groups": c.groups}}
	}
	text, err := yaml.Marshal(policy)
	if err != nil {
		return nil, err
	}
	if _, err := auth.ParsePolicy(text); err != nil {
		return nil, err
	}
	return map[string][]byte{daemon.NodeConfigFile: settings, daemon.PolicyFile: text, daemon.NodeHeadFile: append(head.Raw(), '\n')}, nil
}

// keptPolicy is the policy that the cluster has; nil if it has none.
func (c *clusterAdd) keptPolicy(ctx context.Context) ([]byte, error) {
	if c.out == "" {
		return c.kube.File(ctx, "configmap", nodeNamespace, nodeConfigMap, daemon.PolicyFile)
	}
	b, err := os.ReadFile(filepath.Join(c.out, daemon.PolicyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
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
func (c *clusterAdd) write(ctx context.Context, env *environment, files map[string][]byte) error {
	if c.out != "" {
		return daemon.WriteNodeFiles(c.out, files)
	}
	manifests, err := nodeManifests(files)
	if err != nil {
		return err
	}
	said, err := c.kube.Apply(ctx, manifests)
	fmt.Fprint(env.stderr, said)
	return err
}

// nodeManifests are the namespace, the ConfigMap and, if files hold a key, the
// Secret, as YAML documents.
func nodeManifests(files map[string][]byte) ([]byte, error) {
	config := map[string]string{}
	for name, b := range files {
		if name != daemon.ClusterKeyFile {
			config[name] = string(b)
		}
	}
	object := func(version, kind, name string, more map[string]any) map[string]any {
		meta := map[string]any{"name": name}
		if kind != "Namespace" {
			meta["namespace"] = nodeNamespace
		}
		o := map[string]any{"apiVersion": version, "kind": kind, "metadata": meta}
		for k, v := range more {
			o[k] = v
		}
		return o
	}
	namespace := object("v1", "Namespace", nodeNamespace, nil)
	namespace["metadata"].(map[string]any)["labels"] = map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}
	objects := []map[string]any{namespace, object("v1", "ConfigMap", nodeConfigMap, map[string]any{"data": config})}
	if pem := files[daemon.ClusterKeyFile]; pem != nil {
		objects = append(objects, object("v1", "Secret", nodeSecret, map[string]any{"data": map[string][]byte{daemon.ClusterKeyFile: pem}}))
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
