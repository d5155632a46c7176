package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/zt-daemon/zt/auth"
	"github.com/zt-daemon/zt/daemon"
	"github.com/zt-daemon/zt/deploy"
)

const requestsLong = `List who asks for access to the cluster NAME, and print for each the command
that grants it: an AccessGrant from now on, for as long as they ask.

The list is read by kubectl, with your own rights, from the Events of the
namespace that zt runs in. Kubernetes forgets an Event after an hour.

Decide by the subject: the node verified it with its issuer. The name can be what
the person calls themselves, and whoever may write Events in that namespace can
write one that no node wrote.`

func requestsCommand(env *environment) *cobra.Command {
	var kube daemon.KubeContext
	var namespace string
	var out outputFlag
	cmd := &cobra.Command{
		Use:   "requests NAME",
		Short: "List who asks to be let into a cluster, and how to let them",
		Long:  requestsLong,
		Example: `  zt-daemon requests c1
  zt-daemon requests c1 --context admin@c1   # by another way than zt
  zt-daemon requests c1 -o json | jq '.[] | select(.subject == "248289761001").accessGrant' | kubectl --context zt-c1 apply -f -`,
		Args: withArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := auth.ValidName(args[0]); err != nil {
				return usagef("`zt-daemon clusters` lists the names", "%v", err)
			}
			if kube.Context == "" {
				kube.Context = "zt-" + args[0]
			}
			requests, faulty, err := kube.AccessEvents(cmd.Context(), namespace)
			if err != nil {
				return err
			}
			if faulty > 0 {
				fmt.Fprintf(env.stderr, "zt-daemon: warning: %s left out: not as a node writes them\n", plural(faulty, "Event"))
			}
			if out.json {
				return printRequestsJSON(env, requests, time.Now())
			}
			if len(requests) == 0 {
				fmt.Fprintf(env.stderr, "nobody has asked for access to cluster %s in the last hour\n", args[0])
				return nil
			}
			return printRequests(env, kube, requests, time.Now())
		},
	}
	cmd.Flags().StringVar(&kube.Context, "context", "", "kubeconfig context to read by (default zt-NAME)")
	cmd.Flags().StringVar(&kube.Kubeconfig, "kubeconfig", "", "kubeconfig file to read by")
	cmd.Flags().StringVar(&namespace, "namespace", deploy.Name, "the namespace that zt runs in")
	out.addTo(cmd)
	return cmd
}

// printRequestsJSON gives each request the AccessGrant that answers it.
func printRequestsJSON(env *environment, requests []daemon.AccessEvent, now time.Time) error {
	type request struct {
		daemon.AccessEvent
		AccessGrant json.RawMessage `json:"accessGrant"`
	}
	all := []request{}
	for _, r := range requests {
		grant, err := yaml.YAMLToJSON([]byte(r.AccessGrant(now)))
		if err != nil {
			return err
		}
		all = append(all, request{r, grant})
	}
	return printJSON(env.stdout, all)
}

func printRequests(env *environment, kube daemon.KubeContext, requests []daemon.AccessEvent, now time.Time) error {
	rows := [][]string{{"ASKED", "SUBJECT", "NAME", "FOR", "REASON"}}
	for _, r := range requests {
		rows = append(rows, []string{relative(r.Time, now), r.Subject, r.Name, r.For.String(), r.Reason})
	}
	if err := table(env.stdout, rows); err != nil {
		return err
	}
	apply := "kubectl"
	if kube.Kubeconfig != "" {
		apply += " --kubeconfig " + shellWord(kube.Kubeconfig)
	}
	apply += " --context " + shellWord(kube.Context) + " apply -f -"
	for _, r := range requests {
		// The delimiter is quoted, so the shell leaves the lines alone; none of them
		// is the delimiter.
		fmt.Fprintf(env.stdout, "\n# subject %s of %s for %s:\n%s <<'EOF'\n%sEOF\n", printable(r.Subject), printable(r.Issuer), r.For, apply, r.AccessGrant(now))
	}
	return nil
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+=-]+$`)

// shellWord is s as one word of a POSIX shell.
func shellWord(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
