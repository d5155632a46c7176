package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/deploy"
)

const (
	// keyOverlap is how long a replaced CA or cluster key stays good beside the new.
	keyOverlap = 24 * time.Hour
	// installTimeout is how long --install waits for the nodes.
	installTimeout = 3 * time.Minute
)

// clusterAdd is the flags of cluster add.
type clusterAdd struct {
	admin                                                   adminFlags
	kube                                                    daemon.KubeContext
	name, apiIssuer, apiClientID, upstream, tlsName, caFile string
	out, namespace, image                                   string
	groups                                                  []string
	nodeSelector                                            map[string]string
	keepUser, newKey, install                               bool
	timeout                                                 time.Duration
	json                                                    outputFlag
}

const clusterAddLong = `Add a cluster to the network, or renew it. The API server's CA and name are read
through a kubeconfig context; a cluster key is made and its public half goes into
a record that is signed here and put on the relays.

The cluster key and a first policy are written into a namespace of that cluster,
and the line is printed that installs its nodes with Helm, where they fit: on the
control plane if the context shows one, else as a Deployment. With --install they
are installed at once, without Helm, and waited for. With --out a directory is
written instead, for a node outside Kubernetes. A policy that is there already is
left alone.

Who may come is the cluster's own policy: --group starts it with one rule.

Run it again to renew the record or, with --new-key, to replace the cluster key;
the old key and an old CA stay good for a day. Of nodes that are installed, what
no flag names stays as it is.`

func clusterAddCommand(env *environment) *cobra.Command {
	var c clusterAdd
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Add a cluster, or renew its record", Long: clusterAddLong, Args: withArgs(cobra.ExactArgs(1)),
		Example: "  zt-daemon cluster add c1 --context admin@c1 --api-client-id kubernetes --group developers\n" +
			"  zt-daemon cluster add c1 --context admin@c1 --api-client-id kubernetes --group developers --install\n" +
			"  zt-daemon cluster add c1 --context admin@c1 --keep-user --group developers\n" +
			"  zt-daemon cluster add edge7 --context edge7 --api-client-id kubernetes --group ops --out /etc/zt",
		RunE: func(cmd *cobra.Command, args []string) error {
			c.name = args[0]
			if c.out != "" {
				for _, name := range []string{"install", "namespace", "image", "node-selector", "timeout"} {
					if cmd.Flags().Changed(name) {
						return usagef("leave one of the two out", "--out is for a node outside Kubernetes, --%s for nodes in it", name)
					}
				}
			}
			return c.run(cmd.Context(), env)
		},
	}
	c.admin.addTo(cmd, env)
	f := cmd.Flags()
	f.StringVar(&c.kube.Context, "context", "", "kubeconfig context of an admin of the cluster (default the current one)")
	f.StringVar(&c.kube.Kubeconfig, "kubeconfig", "", "kubeconfig file (default as kubectl finds it)")
	f.StringVar(&c.apiIssuer, "api-issuer", "", "issuer that the API server trusts (default the network's)")
	f.StringVar(&c.apiClientID, "api-client-id", "", "client id (audience) that the API server accepts")
	f.BoolVar(&c.keepUser, "keep-user", false, "people keep the kubeconfig user that they have (aws, gke, kubelogin)")
	f.StringSliceVar(&c.groups, "group", nil, "groups that the first policy admits")
	f.StringVar(&c.upstream, "upstream", "", "host:port at which nodes reach the API server (default kubernetes.default.svc:443, with --out that of the context)")
	f.StringVar(&c.tlsName, "tls-server-name", "", "name in the API server's certificate (default: looked up)")
	f.StringVar(&c.caFile, "ca-file", "", "PEM file of the API server's CA (default: from the context)")
	f.StringVar(&c.out, "out", "", "write the node's files into this directory")
	f.StringVar(&c.namespace, "namespace", deploy.Name, "namespace of the nodes")
	f.StringToStringVar(&c.nodeSelector, "node-selector", nil, "run nodes as a DaemonSet on the machines with these labels")
	f.StringVar(&c.image, "image", "", "image of the nodes, NAME:TAG or NAME@DIGEST (default the chart's)")
	f.BoolVar(&c.install, "install", false, "install the nodes without Helm, and wait until they are connected")
	f.DurationVar(&c.timeout, "timeout", installTimeout, "with --install: how long to wait")
	f.BoolVar(&c.newKey, "new-key", false, "make a new cluster key; the old one stays good for a day")
	c.json.addTo(cmd)
	return cmd
}

// clusterAdded is what cluster add tells scripts.
type clusterAdded struct {
	Cluster    string `json:"cluster"`
	Network    string `json:"network"`
	Version    uint64 `json:"version"`
	TLSName    string `json:"tlsName"`
	Dir        string `json:"dir,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
	Placement  string `json:"placement,omitempty"`
	Next       string `json:"next,omitempty"`       // what to type
	NodesReady int    `json:"nodesReady,omitempty"` // with --install
}

func (c *clusterAdd) run(ctx context.Context, env *environment) error {
	if err := auth.ValidName(c.name); err != nil {
		return usagef("a cluster's name is a DNS label, for example c1", "cluster %q: %v", c.name, err)
	}
	if err := auth.ValidName(c.namespace); err != nil {
		return usagef("a namespace's name is a DNS label, for example zt", "namespace %q: %v", c.namespace, err)
	}
	if c.keepUser == (c.apiClientID != "") {
		return usagef("how people authenticate to the API server: --api-client-id CLIENT, or --keep-user", "give either --api-client-id or --keep-user")
	}
	admin, head, done, err := c.admin.open(ctx, env, true)
	if err != nil {
		return err
	}
	defer done()
	signer, err := admin.DocumentSigner(head, "signing a record")
	if err != nil {
		return err
	}
	server, err := c.apiServer(ctx)
	if err != nil {
		return err
	}
	site, err := c.look(ctx, env)
	if err != nil {
		return err
	}
	old, version, err := admin.NextRecord(ctx, head, c.name)
	if err != nil {
		return err
	}
	k, err := c.clusterKey(ctx)
	if err != nil {
		return err
	}
	next, err := c.record(head, old, version, server, k.Public())
	if err != nil {
		return err
	}
	record, err := auth.SignRecord(next, signer)
	if err != nil {
		return err
	}
	kept, err := c.keptPolicy(ctx)
	if err != nil {
		return err
	}
	if kept != nil {
		if err := checkKeptPolicy(env, kept, next.Issuer); err != nil {
			return err
		}
	}
	files, err := c.nodeFiles(head, server, k, kept)
	if err != nil {
		return err
	}
	// The files first: a record whose key nobody holds would cut the cluster off.
	if err := c.write(ctx, env, site, files); err != nil {
		return err
	}
	faults, err := admin.PublishRecord(ctx, head, record)
	if err != nil {
		return err
	}
	warnRelays(env, faults)
	result := clusterAdded{Cluster: c.name, Network: head.Network.String(), Version: record.Version, TLSName: record.TLSName, Dir: c.out}
	if !c.json.json {
		fmt.Fprintf(env.stdout, "cluster %s: record version %d signed and on the relays; the API server is verified as %s\n", c.name, record.Version, record.TLSName)
	}
	switch {
	case kept != nil && len(c.groups) > 0:
		fmt.Fprintln(env.stderr, "zt-daemon: the policy that is there was left alone: --group is for a first one")
	case kept == nil && len(c.groups) == 0:
		fmt.Fprintln(env.stderr, "zt-daemon: warning: the policy has no rule yet, so nobody is admitted; add one to "+c.policyPlace())
	}
	lead := "Start a node with"
	if c.out != "" {
		result.Next = "zt-daemon node --dir " + deploy.Quote([]string{c.out})
	} else {
		i := deploy.Install{
			Namespace: c.namespace, Network: head.Network.String(), Cluster: c.name, Relay: head.Relays[0].URL, Upstream: server.Address,
			KeyHash: keyHash(k.Public()), Image: c.image, Placement: site.placement,
		}
		result.Namespace, result.Placement = c.namespace, site.placement.Saw
		if c.install {
			if result.NodesReady, err = c.installNodes(ctx, env, site, i); err != nil {
				return err
			}
		} else {
			lead, result.Next = c.installLine(site, i)
		}
	}
	if c.json.json {
		return printJSON(env.stdout, result)
	}
	if result.Next == "" {
		fmt.Fprintf(env.stdout, "cluster %s connected, %s ready\n", c.name, counted(result.NodesReady, "node"))
		return nil
	}
	if result.Placement != "" {
		fmt.Fprintln(env.stdout, "seen there: "+printable(result.Placement))
	}
	fmt.Fprintf(env.stdout, "\n%s:\n\n  %s\n", lead, result.Next)
	return nil
}

// keyHash names a cluster key, so that pods start anew when it is another.
func keyHash(k key.ClusterPublic) string {
	sum := sha256.Sum256([]byte(k.String()))
	return hex.EncodeToString(sum[:8])
}

func (c *clusterAdd) apiServer(ctx context.Context) (daemon.KubeAPIServer, error) {
	var s daemon.KubeAPIServer
	var err error
	if c.caFile == "" || c.tlsName == "" || c.upstream == "" && c.out != "" {
		if s, err = c.kube.APIServer(ctx, c.out == ""); err != nil {
			return s, err
		}
	}
	if c.caFile != "" {
		b, err := os.ReadFile(c.caFile)
		if err != nil {
			return s, fmt.Errorf("API server's CA: %w", err)
		}
		s.CAs = []string{string(b)}
	}
	if c.tlsName != "" {
		s.TLSName = c.tlsName
	}
	switch {
	case c.upstream != "":
		s.Address = c.upstream
	case c.out == "":
		s.Address = deploy.Upstream
	}
	return s, nil
}

// clusterKey is the key that the cluster has, or a new one.
func (c *clusterAdd) clusterKey(ctx context.Context) (k key.ClusterPrivate, err error) {
	var pem []byte
	if c.out != "" {
		pem, err = os.ReadFile(filepath.Join(c.out, daemon.ClusterKeyFile))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	} else {
		pem, err = c.kube.File(ctx, "secret", c.namespace, deploy.KeySecret, daemon.ClusterKeyFile)
	}
	if err != nil {
		return k, err
	}
	if pem == nil || c.newKey {
		return key.NewCluster(), nil
	}
	if k, err = key.ParseClusterPEM(pem); err != nil {
		return k, daemon.NewLocalError(daemon.KindFailure, "give --new-key to make another", "the cluster key that is there cannot be read: %v", err)
	}
	return k, nil
}

// record is the next record. What the old one had and the new one replaces stays
// good for a day.
func (c *clusterAdd) record(head *auth.Head, old *auth.Record, version uint64, server daemon.KubeAPIServer, k key.ClusterPublic) (auth.Record, error) {
	now := time.Now()
	end := now.Add(auth.DocumentLife)
	r := auth.Record{
		Network: head.Network, Name: c.name, Version: version, NotAfter: end, TLSName: server.TLSName, KeepUser: c.keepUser,
		Keys: []auth.Dated[key.ClusterPublic]{{Value: k, NotAfter: end}},
	}
	for _, ca := range server.CAs {
		r.CAs = append(r.CAs, auth.Dated[string]{Value: ca, NotAfter: end})
	}
	if old != nil && !old.Removed {
		r.Keys = append(r.Keys, overlap(old.Keys, now, func(v key.ClusterPublic) bool { return v == k })...)
		r.CAs = append(r.CAs, overlap(old.CAs, now, func(v string) bool { return slices.Contains(server.CAs, v) })...)
	}
	if c.keepUser {
		return r, nil
	}
	issuer := head.Issuers[0]
	if c.apiIssuer != "" {
		if known, ok := head.Issuer(c.apiIssuer); ok {
			issuer = known
		} else {
			issuer = auth.Issuer{URL: c.apiIssuer}
		}
	}
	issuer.ClientID, issuer.ClientSecret, issuer.Audiences = c.apiClientID, "", nil
	r.Issuer = &issuer
	return r, auth.CheckAudiences(head.Issuers, r.Issuer)
}

func overlap[T any](old []auth.Dated[T], now time.Time, replaced func(T) bool) []auth.Dated[T] {
	var kept []auth.Dated[T]
	for _, d := range old {
		if replaced(d.Value) || !d.Live(now) {
			continue
		}
		if end := now.Add(keyOverlap); d.NotAfter.IsZero() || d.NotAfter.After(end) {
			d.NotAfter = end
		}
		kept = append(kept, d)
	}
	return kept
}
