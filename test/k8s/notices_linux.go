package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/zt-daemon/zt/deploy"
	"github.com/zt-daemon/zt/test/lab"
)

// messages are those of the Events of a reason, as `kubectl get events` shows them.
func messages(ctx context.Context, c *lab.Cluster, reason string) (string, error) {
	r := c.Kubectl(ctx, nil, "--namespace", deploy.Name, "get", "events", "--field-selector", "reason="+reason, "-o", `jsonpath={range .items[*]}{.message}{"\n"}{end}`)
	return r.Stdout, r.OK()
}

// told waits until an Event of a reason says all of that in one line.
func told(ctx context.Context, c *lab.Cluster, reason string, said ...string) (string, error) {
	var line string
	return line, lab.Eventually(ctx, func(ctx context.Context) error {
		text, err := messages(ctx, c, reason)
		if err != nil {
			return err
		}
		for l := range strings.Lines(text) {
			if want(l, said...) == nil {
				line = strings.TrimSpace(l)
				return nil
			}
		}
		return fmt.Errorf("no Event %s says all of %q:\n%s", reason, said, text)
	})
}

// says waits until a command succeeds whose standard output holds all of parts.
func says(ctx context.Context, run func(context.Context) lab.Result, parts ...string) (string, error) {
	var out string
	return out, lab.Eventually(ctx, func(ctx context.Context) error {
		r := run(ctx)
		var err error
		if out, err = lineOf(r.Stdout, parts[0]); err != nil {
			return errors.Join(r.OK(), err)
		}
		return errors.Join(r.OK(), want(r.Stdout, parts...))
	})
}

// policyNotices breaks the second cluster's policy, and looks wherever people look.
func policyNotices(ctx context.Context, b *bed) error {
	good, err := b.policy(ctx)
	if err != nil {
		return err
	}
	pod, err := b.onlyPod(ctx)
	if err != nil {
		return err
	}
	const wrong = "roolz" // a key that no other scene writes
	if err := b.setPolicy(ctx, good+"\n"+wrong+": []\n"); err != nil {
		return err
	}
	notice := func(where string, f func(ctx context.Context) (string, error)) {
		b.check(ctx, "a broken policy is in "+where, via{}, 30*time.Second, f)
	}
	notice("kubectl get events", func(ctx context.Context) (string, error) {
		return told(ctx, b.c2, "PolicyBroken", wrong, "the rules before it stay in force")
	})
	notice("kubectl logs", func(ctx context.Context) (string, error) {
		return says(ctx, func(ctx context.Context) lab.Result {
			return b.c2.Kubectl(ctx, nil, "--namespace", deploy.Name, "logs", pod.Metadata.Name)
		}, wrong, "msg=trouble", "hint=")
	})
	broken := func(n int) func(context.Context) (string, error) {
		return func(ctx context.Context) (string, error) {
			const name = "zt_daemon_policy_broken"
			return fmt.Sprintf("%s %d", name, n), lab.Eventually(ctx, func(ctx context.Context) error {
				if got, err := b.metric(ctx, name); err != nil || got != n {
					return fmt.Errorf("%s is %d, want %d (%v)", name, got, n, err)
				}
				return nil
			})
		}
	}
	notice("the metrics", broken(1))
	shows := func(ctx context.Context, run func(context.Context) lab.Result, state string) (string, error) {
		return says(ctx, func(ctx context.Context) lab.Result {
			r := run(ctx)
			r.Stdout, _ = lineOf(r.Stdout, pod.Metadata.Name)
			return r
		}, state)
	}
	clusters := func(ctx context.Context) lab.Result { return b.alice.ZT(ctx, "clusters", b.c2.Name) }
	status := func(ctx context.Context) lab.Result { return b.Relay.Command(ctx, "status") }
	notice("zt-daemon clusters", func(ctx context.Context) (string, error) { return shows(ctx, clusters, "broken") })
	notice("zt-relay status", func(ctx context.Context) (string, error) { return shows(ctx, status, "policy broken") })
	b.check(ctx, "the rules before it serve", via{kubectl: b.kubectls[0]}, 30*time.Second, func(ctx context.Context) (string, error) {
		return "", b.lab.Run(ctx, b.kubectl(via{}, b.c2.Name, "get", "namespaces")).OK()
	})
	if err := b.setPolicy(ctx, good); err != nil {
		return err
	}
	b.check(ctx, "mended: so say the metrics and zt-daemon clusters", via{}, 30*time.Second, func(ctx context.Context) (string, error) {
		if figure, err := broken(0)(ctx); err != nil {
			return figure, err
		}
		return shows(ctx, clusters, "in force")
	})
	b.check(ctx, "a right is removed: kubectl logs -f ends with an error", via{kubectl: b.kubectls[0]}, 90*time.Second, func(ctx context.Context) (string, error) {
		return b.followUntilCut(ctx, pod, strings.ReplaceAll(good, "developers", "nobody"))
	})
	if err := b.setPolicy(ctx, good); err != nil {
		return err
	}
	b.check(ctx, "the right is back, she is in", via{kubectl: b.kubectls[0]}, 30*time.Second, func(ctx context.Context) (string, error) {
		return "", b.joined(ctx, b.c2)
	})
	return nil
}

// followUntilCut has alice follow a pod's log until a policy cuts it. An end that
// came as a FIN would look to kubectl like the end of the log.
func (b *bed) followUntilCut(ctx context.Context, pod lab.Pod, policy string) (string, error) {
	c := b.kubectl(via{}, b.c2.Name, "--namespace", deploy.Name, "logs", "--follow", pod.Metadata.Name)
	c.Name = "logs-cut"
	l, err := b.lab.Start(c)
	if err != nil {
		return "", err
	}
	defer l.Kill()
	if _, err := l.WaitText(ctx, "msg="); err != nil {
		return "", err
	}
	begin := time.Now()
	if err := b.setPolicy(ctx, policy); err != nil {
		return "", err
	}
	figure, err := cut(ctx, l, begin)
	if err != nil {
		return figure, err
	}
	said := l.Tail(1)
	if code, _ := l.Exited(); code == 0 {
		return figure, fmt.Errorf("exit code 0, its last line: %s", said)
	}
	return figure + ": " + said, want(said, "reset by peer")
}

// accessGrant is one as JSON. Times are from now; what is empty is left out.
func accessGrant(name, who, reason string, from, until time.Duration) string {
	at := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
	if reason != "" {
		reason = fmt.Sprintf(`"reason": %q, `, reason)
	}
	return fmt.Sprintf(`{"apiVersion": "access.zt-daemon.io/v1alpha1", "kind": "AccessGrant", "metadata": {"name": %q}, "spec": {%s%s"notBefore": %q, "notAfter": %q}}`,
		name, who, reason, at(from), at(until))
}

// accessNotices opens the second cluster, closed, and looks wherever it is written
// down; and asks for what nobody may.
func accessNotices(ctx context.Context, b *bed) error {
	open, err := b.policy(ctx)
	if err != nil {
		return err
	}
	if err := b.apply(ctx, b.c2, openersRights); err != nil {
		return err
	}
	olga, err := b.NewLaptop("olga", olgaUID)
	if err != nil {
		return err
	}
	if _, err := olga.Login(ctx, "olga"); err != nil {
		return err
	}
	defer olga.ZT(context.WithoutCancel(ctx), "down")
	kubectl := func(ctx context.Context, stdin string, args ...string) lab.Result {
		c := olga.Command("kubectl", append([]string{b.kubectls[0].program, "--context", "zt-" + b.c2.Name}, args...))
		c.Stdin = strings.NewReader(stdin)
		return b.lab.Run(ctx, c)
	}
	closed := fmt.Sprintf("closed: true\nopeners: [{name: sre, issuer: %q, groups: [sre]}]\naccessGrants: {maxDuration: 1h}\n", b.Issuer.URL())
	if err := b.setPolicy(ctx, closed+open); err != nil {
		return err
	}
	const alice, developers, reason = `"subject": "user-alice", `, `"group": "developers", `, "a look at web-0"
	for _, x := range []struct{ what, grant, says string }{
		{"no reason", accessGrant("bad", alice, "", 0, time.Minute), "reason"},
		{"a blank reason", accessGrant("bad", alice, " ", 0, time.Minute), "reason"},
		{"two lines as a reason", accessGrant("bad", alice, "one\ntwo", 0, time.Minute), "must be one line"},
		{"an end before its beginning", accessGrant("bad", alice, reason, 0, -time.Minute), "notAfter must be later than notBefore"},
		{"longer than the chart allows", accessGrant("bad", alice, reason, 0, 9*time.Hour), "notAfter may be at most 8h later than notBefore"},
		{"nobody", accessGrant("bad", "", reason, 0, time.Minute), "name either a subject"},
		{"a person and a group", accessGrant("bad", alice+developers, reason, 0, time.Minute), "name either a subject"},
	} {
		b.check(ctx, "the API server refuses an AccessGrant: "+x.what, via{}, 15*time.Second, func(ctx context.Context) (string, error) {
			r := b.c2.Kubectl(ctx, strings.NewReader(x.grant), "create", "-f", "-")
			if err := want(r.Stderr, x.says); err != nil || r.Code == 0 {
				return "", fmt.Errorf("%w: %v", err, r)
			}
			return "", nil
		})
	}
	b.check(ctx, "the API server lets nobody change one", via{}, 15*time.Second, func(ctx context.Context) (string, error) {
		if err := kubectl(ctx, accessGrant("kept", alice, reason, time.Minute, time.Hour), "create", "-f", "-").OK(); err != nil {
			return "", err
		}
		r := kubectl(ctx, "", "patch", "accessgrant", "kept", "--type=merge", "-p", `{"spec": {"reason": "another"}}`)
		if err := want(r.Stderr, "an AccessGrant stays as it was made"); err != nil || r.Code == 0 {
			return "", fmt.Errorf("%w: %v", err, r)
		}
		return "", nil
	})
	b.check(ctx, "longer than the policy allows: it admits nobody, and says so", via{}, 30*time.Second, func(ctx context.Context) (string, error) {
		if err := kubectl(ctx, accessGrant("long", developers, reason, 0, 2*time.Hour), "create", "-f", "-").OK(); err != nil {
			return "", err
		}
		figure, err := told(ctx, b.c2, "AccessGrantInvalid", "AccessGrant long admits nobody", "1h")
		if err != nil {
			return figure, err
		}
		if r := b.lab.Run(ctx, b.kubectl(via{}, b.c2.Name, "get", "namespaces")); r.Code == 0 {
			return figure, errors.New("alice is in by it")
		}
		return figure, kubectl(ctx, "", "delete", "accessgrant", "long").OK()
	})
	const short = 20 * time.Second
	var end time.Time
	b.check(ctx, "an AccessGrant of 20 s: alice is in, until it ends", via{kubectl: b.kubectls[0]}, time.Minute, func(ctx context.Context) (string, error) {
		end = time.Now().Add(short).Truncate(time.Second)
		if err := kubectl(ctx, accessGrant("twenty-seconds", developers, reason, 0, short), "create", "-f", "-").OK(); err != nil {
			return "", err
		}
		w, err := b.open(ctx, "watch-short")
		if err != nil {
			return "", err
		}
		defer w.Kill()
		if err := sleep(ctx, time.Until(end)-time.Second); err != nil {
			return "", err
		}
		if _, exited := w.Exited(); exited {
			return "", errors.New("it was cut before its end")
		}
		return cut(ctx, w, end)
	})
	b.check(ctx, "Events say when it began and ended", via{}, 30*time.Second, func(ctx context.Context) (string, error) {
		if _, err := told(ctx, b.c2, "AccessGranted", "AccessGrant twenty-seconds admits group developers", reason); err != nil {
			return "", err
		}
		return told(ctx, b.c2, "AccessExpired", "AccessGrant twenty-seconds of group developers ended")
	})
	b.check(ctx, "kubectl get accessgrants shows that it is over, and who used it", via{}, time.Minute, func(ctx context.Context) (string, error) {
		return says(ctx, func(ctx context.Context) lab.Result {
			return kubectl(ctx, "", "get", "accessgrants", "-o", "wide", "--no-headers")
		}, "twenty-seconds", "Expired", "developers", "alice@example.test", reason)
	})
	b.check(ctx, "deleted while it lasts: an Event says so", via{}, time.Minute, func(ctx context.Context) (string, error) {
		if err := kubectl(ctx, accessGrant("brief", alice, reason, 0, 10*time.Minute), "create", "-f", "-").OK(); err != nil {
			return "", err
		}
		if _, err := told(ctx, b.c2, "AccessGranted", "AccessGrant brief admits subject user-alice"); err != nil {
			return "", err
		}
		if err := kubectl(ctx, "", "delete", "accessgrant", "brief").OK(); err != nil {
			return "", err
		}
		return told(ctx, b.c2, "AccessRevoked", "AccessGrant brief of subject user-alice was deleted")
	})
	b.check(ctx, "the API server's audit log says who opened and who closed", via{}, 30*time.Second, func(ctx context.Context) (string, error) {
		const who = "oidc:olga@example.test"
		return who, lab.Eventually(ctx, func(context.Context) error { return b.opened(who, "brief") })
	})
	return errors.Join(kubectl(ctx, "", "delete", "accessgrants", "--all").OK(), b.setPolicy(ctx, open))
}

// opened is nil if the API server's audit log says that this person has created and
// deleted that AccessGrant.
func (b *bed) opened(who, grant string) error {
	events, err := b.c2.Audit()
	if err != nil {
		return err
	}
	for _, verb := range []string{"create", "delete"} {
		if !slices.ContainsFunc(events, func(e lab.KubernetesEvent) bool {
			return e.Verb == verb && e.User.Username == who && e.ObjectRef.Resource == "accessgrants" && e.ObjectRef.Name == grant && e.ResponseStatus.Code < 300
		}) {
			return fmt.Errorf("no line of %s: %s accessgrant %s", who, verb, grant)
		}
	}
	return nil
}
