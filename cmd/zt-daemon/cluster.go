package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/auth/key"
	"github.com/zt-daemon/zt/daemon"
)

func clusterCommand(env *environment) *cobra.Command {
	return adminGroup("cluster", "Add clusters to the network", clusterAddCommand(env), clusterListCommand(env), clusterRemoveCommand(env))
}

const (
	// Where a node's files lie in its cluster.
	nodeNamespace = "zt"
	nodeSecret    = "zt-cluster-key"
	nodeConfigMap = "zt-node"
	// keyOverlap is how long a replaced CA or cluster key stays good beside the new.
	keyOverlap = 24 * time.Hour
)

// clusterAdd is the flags of cluster add.
type clusterAdd struct {
	admin                                                   adminFlags
	kube                                                    daemon.KubeContext
	name, apiIssuer, apiClientID, upstream, tlsName, caFile string
	out                                                     string
	groups                                                  []string
	keepUser, newKey                                        bool
	json                                                    outputFlag
}

const clusterAddLong = `Add a cluster to the network, or renew it. The API server's CA and name are read
through a kubeconfig context; a cluster key is made and its public half goes into
a record that is signed here and put on the relays.

The node's files (cluster key, node.yaml, policy.yaml, head.jws) are written into
namespace ` + nodeNamespace + ` of that cluster, or with --out into a directory for a node outside
Kubernetes. A policy that is there already is left alone.

Who may come is the cluster's own policy: --group starts it with one rule.`

func clusterAddCommand(env *environment) *cobra.Command {
	var c clusterAdd
	cmd := &cobra.Command{
		Use: "add NAME", Short: "Add a cluster, or renew its record", Long: clusterAddLong, Args: withArgs(cobra.ExactArgs(1)),
		Example: "  zt-daemon cluster add c1 --context admin@c1 --api-client-id kubernetes --group developers\n" +
			"  zt-daemon cluster add c1 --context admin@c1 --keep-user --group developers\n" +
			"  zt-daemon cluster add edge7 --context edge7 --api-client-id kubernetes --group ops --out /etc/zt",
		RunE: func(cmd *cobra.Command, args []string) error {
			c.name = args[0]
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
	f.BoolVar(&c.newKey, "new-key", false, "make a new cluster key; the old one stays good for a day")
	c.json.addTo(cmd)
	return cmd
}

// clusterAdded is what cluster add tells scripts.
type clusterAdded struct {
	Cluster string `json:"cluster"`
	Network string `json:"network"`
	Version uint64 `json:"version"`
	TLSName string `json:"tlsName"`
	Dir     string `json:"dir,omitempty"`
	Next    string `json:"next"`
}

func (c *clusterAdd) run(ctx context.Context, env *environment) error {
	if err := auth.ValidName(c.name); err != nil {
		return usagef("a cluster's name is a DNS label, for example c1", "cluster %q: %v", c.name, err)
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
	old, version, err := admin.NextRecord(ctx, head, c.name)
	if err != nil {
		return err
	}
	k, made, err := c.clusterKey(ctx)
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
	files, err := c.nodeFiles(head, server)
	if err != nil {
		return err
	}
	policy, err := c.keptPolicy(ctx)
	if err != nil {
		return err
	}
	if policy != nil {
		if err := checkKeptPolicy(env, policy, next.Issuer); err != nil {
			return err
		}
		files[daemon.PolicyFile] = policy
	}
	if made {
		files[daemon.ClusterKeyFile] = k.PEM()
	}
	// The files first: a record whose key nobody holds would cut the cluster off.
	if err := c.write(ctx, env, files); err != nil {
		return err
	}
	faults, err := admin.PublishRecord(ctx, head, record)
	if err != nil {
		return err
	}
	warnRelays(env, faults)
	result := clusterAdded{Cluster: c.name, Network: head.Network.String(), Version: record.Version, TLSName: record.TLSName, Dir: c.out}
	result.Next = "zt-daemon node --dir " + c.out
	if c.out == "" {
		result.Next = "kubectl " + strings.Join(append(c.kubectlFlags(), "--namespace", nodeNamespace, "apply", "-f", "deploy/kubernetes/node.yaml"), " ")
	}
	if c.json.json {
		return printJSON(env.stdout, result)
	}
	fmt.Fprintf(env.stdout, "cluster %s: record version %d signed and on the relays; the API server is verified as %s\n", c.name, record.Version, record.TLSName)
	switch {
	case policy != nil && len(c.groups) > 0:
		fmt.Fprintln(env.stderr, "zt-daemon: the policy that is there was left alone: --group is for a first one")
	case policy == nil && len(c.groups) == 0:
		fmt.Fprintln(env.stderr, "zt-daemon: warning: the policy has no rule yet, so nobody is admitted; add one to policy.yaml")
	}
	fmt.Fprintf(env.stdout, "\nStart a node with:\n\n  %s\n", result.Next)
	return nil
}

func (c *clusterAdd) kubectlFlags() []string {
	var flags []string
	if c.kube.Kubeconfig != "" {
		flags = append(flags, "--kubeconfig", c.kube.Kubeconfig)
	}
	if c.kube.Context != "" {
		flags = append(flags, "--context", c.kube.Context)
	}
	return flags
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
		s.Address = "kubernetes.default.svc:443"
	}
	return s, nil
}

// clusterKey is the key that the cluster has, or a new one.
func (c *clusterAdd) clusterKey(ctx context.Context) (k key.ClusterPrivate, made bool, err error) {
	var pem []byte
	if c.out != "" {
		pem, err = os.ReadFile(filepath.Join(c.out, daemon.ClusterKeyFile))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	} else {
		pem, err = c.kube.File(ctx, "secret", nodeNamespace, nodeSecret, daemon.ClusterKeyFile)
	}
	if err != nil {
		return k, false, err
	}
	if pem == nil || c.newKey {
		return key.NewCluster(), true, nil
	}
	if k, err = key.ParseClusterPEM(pem); err != nil {
		return k, false, daemon.NewLocalError(daemon.KindFailure, "give --new-key to make another", "the cluster key that is there cannot be read: %v", err)
	}
	return k, false, nil
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

func clusterListCommand(env *environment) *cobra.Command {
	var flags adminFlags
	var out outputFlag
	cmd := &cobra.Command{
		Use: "list", Short: "List the network's clusters, as signed", Args: withArgs(cobra.NoArgs),
		Example: "  zt-daemon cluster list\n  zt-daemon cluster list -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			admin, head, done, err := flags.open(cmd.Context(), env, true)
			if err != nil {
				return err
			}
			defer done()
			fetched, err := admin.Records(cmd.Context(), head)
			if err != nil {
				return err
			}
			for _, f := range fetched {
				if f.Err != nil {
					fmt.Fprintf(env.stderr, "zt-daemon: warning: a record that claims to be of cluster %q does not verify: %s\n", f.Name, printable(f.Err.Error()))
				}
			}
			if out.json {
				records := []*auth.Record{}
				for _, f := range fetched {
					if f.Err == nil {
						records = append(records, f.Record)
					}
				}
				return printJSON(env.stdout, records)
			}
			rows := [][]string{{"NAME", "VERSION", "ENDS", "API SERVER", "USER"}}
			for _, f := range fetched {
				if f.Err == nil && !f.Record.Removed {
					user := "kept"
					if f.Record.Issuer != nil {
						user = "client " + f.Record.Issuer.ClientID
					}
					rows = append(rows, []string{f.Record.Name, fmt.Sprint(f.Record.Version), relative(f.Record.NotAfter, time.Now()), f.Record.TLSName, user})
				}
			}
			return table(env.stdout, rows)
		},
	}
	flags.addTo(cmd, env)
	out.addTo(cmd)
	return cmd
}

func clusterRemoveCommand(env *environment) *cobra.Command {
	var flags adminFlags
	cmd := &cobra.Command{
		Use: "remove NAME", Short: "Remove a cluster from the network", Args: withArgs(cobra.ExactArgs(1)),
		Example: "  zt-daemon cluster remove c1",
		RunE: func(cmd *cobra.Command, args []string) error {
			admin, head, done, err := flags.open(cmd.Context(), env, true)
			if err != nil {
				return err
			}
			defer done()
			signer, err := admin.DocumentSigner(head, "signing a record")
			if err != nil {
				return err
			}
			old, version, err := admin.NextRecord(cmd.Context(), head, args[0])
			if err != nil {
				return err
			}
			if old == nil || old.Removed {
				return daemon.NewLocalError(daemon.KindUnknownCluster, "`zt-daemon cluster list` shows those there are", "the network has no cluster %q", args[0])
			}
			record, err := auth.SignRecord(auth.Record{
				Network: head.Network, Name: args[0], Version: version, NotAfter: time.Now().Add(auth.DocumentLife), Removed: true,
			}, signer)
			if err != nil {
				return err
			}
			faults, err := admin.PublishRecord(cmd.Context(), head, record)
			if err != nil {
				return err
			}
			warnRelays(env, faults)
			fmt.Fprintf(env.stdout, "cluster %s removed; its nodes are refused from now on\n", args[0])
			return nil
		},
	}
	flags.addTo(cmd, env)
	return cmd
}
