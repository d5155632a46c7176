package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon"
)

const kubeconfigLong = `Write your clusters into your kubeconfig, as contexts named zt-NAME.

No credential is written: kubectl asks zt-daemon for one. Comments, order, layout and
everything that is not zt-daemon's stay as they are; entries of other tools are
never overwritten; the current context changes only with --set-current.

With --via proxy the entry names the API server itself, and the port as its
proxy-url: for clients that do not know tls-server-name. It costs a round trip on
loopback a connection, and clients that know no proxy-url cannot use it. Both
forms work with the same port, side by side under two --context-names.

The file is the one that kubectl would use: --kubeconfig, else the list in
KUBECONFIG, else ~/.kube/config.`

const kubeconfigExample = `  zt-daemon kubeconfig                      # all clusters
  zt-daemon kubeconfig c1 --set-current     # this one, and use it from now on
  zt-daemon kubeconfig c1 --context-name prod
  zt-daemon kubeconfig c1 --print > c1.yaml # a file of its own
  zt-daemon kubeconfig c1 --via proxy --context-name c1-proxy
  zt-daemon kubeconfig --remove c1`

type kubeconfigOptions struct {
	file        string
	contextName string
	user        string
	network     string
	via         string
	print       bool
	setCurrent  bool
	remove      bool
}

func kubeconfigCommand(env *environment) *cobra.Command {
	var o kubeconfigOptions
	cmd := &cobra.Command{
		Use:     "kubeconfig [NAME…]",
		Short:   "Write your clusters into your kubeconfig",
		Long:    kubeconfigLong,
		Example: kubeconfigExample,
		RunE: func(cmd *cobra.Command, names []string) error {
			if err := o.check(names); err != nil {
				return err
			}
			if o.remove {
				return removeKubeconfig(cmd.Context(), env, o, names)
			}
			client, _, err := reachOrStart(cmd.Context(), env)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
			defer cancel()
			all, err := client.Clusters(ctx)
			if err != nil {
				return err
			}
			clusters, err := chooseClusters(all, names, o.network)
			if err != nil {
				return err
			}
			if o.print {
				return printKubeconfig(env, o, clusters)
			}
			w, err := writeKubeconfig(cmd.Context(), env, o, clusters)
			if err != nil {
				return err
			}
			w.tell(env)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.file, "kubeconfig", "", "write this file")
	f.StringVar(&o.via, "via", "", "listener (default), or proxy for clients that do not know tls-server-name")
	f.BoolVar(&o.print, "print", false, "print a kubeconfig of its own instead of writing one")
	f.BoolVar(&o.setCurrent, "set-current", false, "make the context the current one (with one NAME)")
	f.StringVar(&o.contextName, "context-name", "", "name the context, cluster and user so (with one NAME)")
	f.StringVar(&o.user, "user", "", "keep this user of your kubeconfig, where the cluster wants that (with one NAME)")
	f.BoolVar(&o.remove, "remove", false, "remove the entries instead")
	addNetworkID(cmd, env, &o.network, "only clusters of this network")
	return cmd
}

func (o kubeconfigOptions) check(names []string) error {
	if err := checkNetworkID(o.network); err != nil {
		return err
	}
	for _, name := range names {
		if err := auth.ValidName(name); err != nil {
			return usagef("`zt-daemon clusters` lists the names", "%v", err)
		}
	}
	for flag, set := range map[string]bool{"--set-current": o.setCurrent, "--context-name": o.contextName != "", "--user": o.user != ""} {
		if set && len(names) != 1 {
			return usagef("", "%s goes with exactly one NAME", flag)
		}
	}
	if o.via != "" && o.via != daemon.ViaListener && o.via != daemon.ViaProxy {
		return usagef("give --via listener or --via proxy", "--via is %q, want listener or proxy", o.via)
	}
	if o.remove && (o.print || o.setCurrent || o.user != "") {
		return usagef("", "--remove goes only with --kubeconfig and --context-name")
	}
	if o.remove && len(names) == 0 {
		return usagef("", "--remove needs the names of the clusters")
	}
	return nil
}

// chooseClusters are those named, or all.
func chooseClusters(all []daemon.ClusterStatus, names []string, network string) ([]daemon.ClusterStatus, error) {
	if network != "" {
		all = slices.DeleteFunc(slices.Clone(all), func(c daemon.ClusterStatus) bool { return c.Network != network })
	}
	if len(names) == 0 {
		if len(all) == 0 {
			return nil, daemon.NewLocalError(daemon.KindNotLoggedIn, "run `zt-daemon login`", "no clusters are known here")
		}
		return all, nil
	}
	var chosen []daemon.ClusterStatus
	for _, name := range names {
		i := slices.IndexFunc(all, func(c daemon.ClusterStatus) bool { return c.Name == name })
		if i < 0 {
			return nil, daemon.NewLocalError(daemon.KindUnknownCluster, "run `zt-daemon clusters` for the list", "there is no cluster %s", name)
		}
		if j := slices.IndexFunc(all[i+1:], func(c daemon.ClusterStatus) bool { return c.Name == name }); j >= 0 {
			return nil, usagef("name one with --network-id", "cluster %s is in two networks: %s and %s", name, all[i].Network, all[i+1+j].Network)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// written says what became of a kubeconfig.
type written struct {
	contexts []string
	files    []string // that changed
	problems []error  // of clusters that were left out
}

// writeKubeconfig merges clusters into the kubeconfig. One cluster whose entry
// cannot be written does not keep the others out; if none can, that is the error.
func writeKubeconfig(ctx context.Context, env *environment, o kubeconfigOptions, clusters []daemon.ClusterStatus) (written, error) {
	files, err := daemon.KubeconfigFiles(o.file, env.getenv("KUBECONFIG"), env.home)
	if err != nil {
		return written{}, err
	}
	k := daemon.Kubeconfig{Files: files}
	entries, current := o.entries(env, clusters)
	changed, err := k.Merge(ctx, entries, current)
	w := written{files: changed}
	for _, e := range entries {
		w.contexts = append(w.contexts, e.Name)
	}
	_, foreign := errors.AsType[*daemon.ForeignEntryError](err)
	_, noUser := errors.AsType[*daemon.NoUserError](err)
	if !foreign && !noUser || len(entries) == 1 {
		return w, err
	}
	w = written{}
	for _, e := range entries {
		changed, err := k.Merge(ctx, []daemon.KubeconfigEntry{e}, "")
		if err != nil {
			w.problems = append(w.problems, err)
			continue
		}
		w.contexts = append(w.contexts, e.Name)
		for _, f := range changed {
			if !slices.Contains(w.files, f) {
				w.files = append(w.files, f)
			}
		}
	}
	if len(w.contexts) == 0 {
		return w, w.problems[0]
	}
	return w, nil
}

func (w written) tell(env *environment) {
	where := "unchanged"
	if len(w.files) > 0 {
		where = "written to " + strings.Join(w.files, " and ")
	}
	fmt.Fprintf(env.stdout, "%s %s: %s\n", strings.TrimPrefix(plural(len(w.contexts), "context"), ""), printable(where), strings.Join(w.contexts, " "))
	for _, err := range w.problems {
		fmt.Fprintf(env.stderr, "zt-daemon: left out: %s\n", printable(err.Error()))
		if h := daemon.AsLocalError(err).Hint(); h != "" {
			fmt.Fprintf(env.stderr, "zt-daemon: hint: %s\n", printable(h))
		}
	}
}

func (o kubeconfigOptions) entries(env *environment, clusters []daemon.ClusterStatus) (entries []daemon.KubeconfigEntry, current string) {
	for _, c := range clusters {
		e := daemon.KubeconfigEntry{
			Name: daemon.KubeconfigPrefix + c.Name, Cluster: c.Name, Network: c.Network, Port: c.Port, CA: c.CA, TLSName: c.TLSName, Via: o.via,
			Command: commandPath(env), KeepUser: c.KeepUser || o.user != "", User: o.user,
		}
		if o.contextName != "" {
			e.Name = o.contextName
		}
		if env.stateDir != "" {
			if dirs, err := env.dirs(); err == nil {
				e.StateDir = dirs.State
			}
		}
		entries = append(entries, e)
	}
	if o.setCurrent {
		current = entries[0].Name
	}
	return entries, current
}

func printKubeconfig(env *environment, o kubeconfigOptions, clusters []daemon.ClusterStatus) error {
	entries, _ := o.entries(env, clusters)
	current := ""
	if len(entries) == 1 || o.setCurrent {
		current = entries[0].Name
	}
	b, err := daemon.RenderKubeconfig(entries, current)
	if err != nil {
		return err
	}
	_, err = env.stdout.Write(b)
	return err
}

func removeKubeconfig(ctx context.Context, env *environment, o kubeconfigOptions, names []string) error {
	files, err := daemon.KubeconfigFiles(o.file, env.getenv("KUBECONFIG"), env.home)
	if err != nil {
		return err
	}
	var contexts []string
	for _, name := range names {
		contexts = append(contexts, daemon.KubeconfigPrefix+name)
	}
	if o.contextName != "" {
		contexts = []string{o.contextName}
	}
	changed, err := daemon.Kubeconfig{Files: files}.Remove(ctx, contexts)
	if err != nil {
		return err
	}
	if len(changed) == 0 {
		fmt.Fprintln(env.stdout, "nothing to remove")
		return nil
	}
	fmt.Fprintf(env.stdout, "removed from %s: %s\n", printable(strings.Join(changed, " and ")), printable(strings.Join(contexts, " ")))
	return nil
}

// commandPath is how kubectl shall call this program: the path in PATH if that
// leads here, because it outlives an upgrade which the path of the file itself
// may not; else that. kubectl of a desktop program has another PATH, so a bare
// name would not do.
func commandPath(env *environment) string {
	if env.executable == "" {
		return "zt-daemon"
	}
	self, err := os.Stat(env.executable)
	if err != nil {
		return env.executable
	}
	for _, dir := range filepath.SplitList(env.getenv("PATH")) {
		path := filepath.Join(dir, "zt-daemon")
		if env.goos == "windows" {
			path += ".exe"
		}
		if info, err := os.Stat(path); err == nil && filepath.IsAbs(dir) && os.SameFile(info, self) {
			return path
		}
	}
	return env.executable
}
