package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zt-daemon/zt/test/lab"
)

// objects is how many there are in a long list.
const objects = 5000

// application is what alice works on.
const application = `apiVersion: v1
kind: Namespace
metadata: {name: ` + play + `}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: ` + play + `}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: ` + lab.PodImage + `
        command: [sh, -c, "mkdir -p /tmp/www && echo the web answers >/tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www"]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: ` + play + `}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: box, namespace: ` + play + `}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - name: box
    image: ` + lab.PodImage + `
    command: [echo-server]
    volumeMounts: [{name: data, mountPath: /data}]
---
apiVersion: v1
kind: Pod
metadata: {name: clock, namespace: ` + play + `}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: clock, image: "` + lab.PodImage + `", command: [sh, -c, "i=0; while sleep 0.2; do i=$((i+1)); echo line $i; done"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: listener, namespace: ` + play + `}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: listener, image: "` + lab.PodImage + `", stdin: true, command: [sh, -c, "while read word; do echo heard $word; done"]}]
`

// verb is something that alice does with kubectl. Its error is what went wrong.
type verb struct {
	name  string
	limit time.Duration
	run   func(ctx context.Context, b *bed, v via) (figure string, err error)
}

// verbs does what needs no stream but HTTP's own, with each kubectl.
func verbs(ctx context.Context, b *bed) error {
	if err := b.makeMany(ctx); err != nil {
		return err
	}
	for _, k := range b.kubectls {
		for _, x := range []verb{
			{"get", 30 * time.Second, get},
			{fmt.Sprintf("get, a list of %d objects", objects), time.Minute, list("500")},
			{fmt.Sprintf("get, a list of %d objects at once", objects), time.Minute, list("0")},
			{"get --watch", 30 * time.Second, watch},
			{"create", 30 * time.Second, create},
			{"apply --server-side", 30 * time.Second, serverSideApply},
			{"patch", 30 * time.Second, patch},
			{"describe", 30 * time.Second, describe},
			{"delete", 30 * time.Second, remove},
			{"logs -f", 30 * time.Second, logs},
			{"wait", 30 * time.Second, wait},
			{"rollout restart, status", 2 * time.Minute, rollout},
			{"proxy", 30 * time.Second, proxy},
			{"auth whoami", 30 * time.Second, whoami},
			{"auth can-i", 30 * time.Second, canI},
			{"top-level help of the API: explain, api-resources", 30 * time.Second, explain},
		} {
			v := via{kubectl: k}
			b.check(ctx, x.name, v, x.limit, func(ctx context.Context) (string, error) { return x.run(ctx, b, v) })
		}
	}
	return nil
}

// makeApplication makes, as the administrator, what alice finds.
func (b *bed) makeApplication(ctx context.Context) error {
	defer b.lab.During("making a few pods")()
	if err := b.apply(ctx, b.c1, application); err != nil {
		return err
	}
	return b.c1.Kubectl(ctx, nil, "--namespace", play, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s").OK()
}

// makeMany makes a long list.
func (b *bed) makeMany(ctx context.Context) error {
	defer b.lab.During(fmt.Sprintf("making %d objects", objects))()
	if err := b.c1.Kubectl(ctx, nil, "create", "namespace", "many").OK(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	const parts = 4
	for part := range parts {
		g.Go(func() error {
			var all []string
			for i := part; i < objects; i += parts {
				all = append(all, fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"object-%04d"},"data":{"number":"%d"}}`, i, i))
			}
			return b.c1.Create(ctx, "/api/v1/namespaces/many/configmaps", all)
		})
	}
	return g.Wait()
}

func get(ctx context.Context, b *bed, v via) (string, error) {
	out, err := b.run(ctx, v, "get", "nodes", "-o", "name")
	if err == nil && strings.Count(out, "node/machine") != 3 {
		err = fmt.Errorf("not three machines: %q", out)
	}
	return "", err
}

func list(chunk string) func(context.Context, *bed, via) (string, error) {
	return func(ctx context.Context, b *bed, v via) (string, error) {
		out, err := b.run(ctx, v, "get", "configmaps", "--namespace", "many", "--chunk-size", chunk, "-o", "json")
		if err != nil {
			return "", err
		}
		var found struct{ Items []json.RawMessage }
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			return "", err
		}
		if n := len(found.Items); n != objects+1 { // and the CA's
			return "", fmt.Errorf("%d objects, want %d", n, objects+1)
		}
		return fmt.Sprintf("%.1f MB", float64(len(out))/1e6), nil
	}
}

// named makes a name of one kubectl's own.
func named(what string, v via) string {
	if v.direct {
		what += "-direct"
	}
	return what + "-" + strings.ToLower(strings.ReplaceAll(v.version+v.transport, ".", "-"))
}

func watch(ctx context.Context, b *bed, v via) (string, error) {
	w, err := b.start(v, named("watch", v), nil, "get", "configmaps", "--watch")
	if err != nil {
		return "", err
	}
	defer w.Kill()
	if _, err := w.WaitText(ctx, "kube-root-ca.crt"); err != nil {
		return "", err
	}
	name := named("seen", v)
	if err := b.c1.Kubectl(ctx, nil, "--namespace", play, "create", "configmap", name).OK(); err != nil {
		return "", err
	}
	begin := time.Now()
	_, err = w.WaitText(ctx, name)
	return fmt.Sprintf("the event came within %s", time.Since(begin).Round(time.Millisecond)), err
}

func create(ctx context.Context, b *bed, v via) (string, error) {
	out, err := b.run(ctx, v, "create", "configmap", named("made", v), "--from-literal=a=b")
	return "", errors.Join(err, want(out, "created"))
}

func serverSideApply(ctx context.Context, b *bed, v via) (string, error) {
	name := named("applied", v)
	manifest := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"` + name + `"},"data":{"a":"%s"}}`
	for _, value := range []string{"one", "two"} {
		if _, err := b.feed(ctx, v, fmt.Sprintf(manifest, value), "apply", "--server-side", "--field-manager=alice", "-f", "-"); err != nil {
			return "", err
		}
	}
	out, err := b.run(ctx, v, "get", "configmap", name, "--show-managed-fields", "-o", "jsonpath={.data.a} {.metadata.managedFields[0].manager}")
	return "", errors.Join(err, want(out, "two alice"))
}

func patch(ctx context.Context, b *bed, v via) (string, error) {
	name := named("made", v)
	if _, err := b.run(ctx, v, "patch", "configmap", name, "--type=merge", "-p", `{"data":{"a":"patched"}}`); err != nil {
		return "", err
	}
	out, err := b.run(ctx, v, "get", "configmap", name, "-o", "jsonpath={.data.a}")
	return "", errors.Join(err, want(out, "patched"))
}

func describe(ctx context.Context, b *bed, v via) (string, error) {
	out, err := b.run(ctx, v, "describe", "pod", "box")
	return "", errors.Join(err, want(out, "Node:", lab.PodImage))
}

func remove(ctx context.Context, b *bed, v via) (string, error) {
	name := named("made", v)
	if _, err := b.run(ctx, v, "delete", "configmap", name); err != nil {
		return "", err
	}
	if _, err := b.run(ctx, v, "get", "configmap", name); err == nil || !strings.Contains(err.Error(), "NotFound") {
		return "", fmt.Errorf("it is there still: %v", err)
	}
	return "", nil
}

func logs(ctx context.Context, b *bed, v via) (string, error) {
	l, err := b.start(v, named("logs", v), nil, "logs", "--follow", "--tail=1", "clock")
	if err != nil {
		return "", err
	}
	defer l.Kill()
	_, err = l.WaitOutput(ctx, "ten lines, one each 200 ms", func(out string) bool { return strings.Count(out, "line ") >= 10 })
	return "", err
}

func wait(ctx context.Context, b *bed, v via) (string, error) {
	name := named("waited-for", v)
	if _, err := b.run(ctx, v, "run", name, "--image="+lab.PodImage, "--restart=Never", "--command", "--", "sh", "-c", "sleep 1"); err != nil {
		return "", err
	}
	_, err := b.run(ctx, v, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+name, "--timeout=25s")
	return "", err
}

func rollout(ctx context.Context, b *bed, v via) (string, error) {
	if _, err := b.run(ctx, v, "rollout", "restart", "deployment/web"); err != nil {
		return "", err
	}
	out, err := b.run(ctx, v, "rollout", "status", "deployment/web", "--timeout=100s")
	return "", errors.Join(err, want(out, "successfully rolled out"))
}

var proxyLine = regexp.MustCompile(`Starting to serve on (\S+)`)

func proxy(ctx context.Context, b *bed, v via) (string, error) {
	p, err := b.start(v, named("proxy", v), nil, "proxy", "--port=0")
	if err != nil {
		return "", err
	}
	defer p.Kill()
	out, err := p.WaitOutput(ctx, "its port", proxyLine.MatchString)
	if err != nil {
		return "", err
	}
	address := proxyLine.FindStringSubmatch(out)[1]
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return b.Network.Laptop.DialContext(ctx, network, address)
	}}}
	for path, text := range map[string]string{
		"/api/v1/namespaces/" + play + "/pods/box":                    `"name":"box"`,
		"/api/v1/namespaces/" + play + "/services/http:web:80/proxy/": "the web answers",
	} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			return "", err
		}
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Contains(body, []byte(text)) {
			return "", fmt.Errorf("GET %s: %s: %.300s (%v)", path, resp.Status, body, err)
		}
	}
	return "", nil
}

func whoami(ctx context.Context, b *bed, v via) (string, error) {
	out, err := b.run(ctx, v, "auth", "whoami")
	return "", errors.Join(err, want(out, "oidc:alice@example.test", "oidc:developers"))
}

func canI(ctx context.Context, b *bed, v via) (string, error) {
	out, err := b.run(ctx, v, "auth", "can-i", "create", "pods")
	return "", errors.Join(err, want(out, "yes"))
}

func explain(ctx context.Context, b *bed, v via) (string, error) {
	out, err := b.run(ctx, v, "explain", "accessgrants.spec")
	if err := errors.Join(err, want(out, "notAfter")); err != nil {
		return "", err
	}
	out, err = b.run(ctx, v, "api-resources")
	return "", errors.Join(err, want(out, "accessgrants", "deployments"))
}
