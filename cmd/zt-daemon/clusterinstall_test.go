package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Clusters as kubectl shows them.
const (
	controlPlaneNodes = `{"items":[
 {"metadata":{"name":"m1","labels":{"kubernetes.io/os":"linux","node-role.kubernetes.io/control-plane":""}},"spec":{"taints":[{"key":"node-role.kubernetes.io/control-plane","effect":"NoSchedule"}]}},
 {"metadata":{"name":"m2","labels":{"kubernetes.io/os":"linux","node-role.kubernetes.io/control-plane":""}},"spec":{"taints":[{"key":"node-role.kubernetes.io/control-plane","effect":"NoSchedule"}]}},
 {"metadata":{"name":"w1","labels":{"kubernetes.io/os":"linux"}},"spec":{}}]}`
	workerNodes = `{"items":[{"metadata":{"name":"w1","labels":{"pool":"a"}},"spec":{}},{"metadata":{"name":"w2","labels":{"pool":"b"}},"spec":{}}]}`

	daemonSetHalf  = `{"items":[{"kind":"DaemonSet","metadata":{"name":"zt","generation":1},"status":{"observedGeneration":1,"desiredNumberScheduled":2,"updatedNumberScheduled":2,"numberReady":1}}]}`
	daemonSetReady = `{"items":[{"kind":"DaemonSet","metadata":{"name":"zt","generation":1},"status":{"observedGeneration":1,"desiredNumberScheduled":2,"updatedNumberScheduled":2,"numberReady":2}}]}`
	helmDeployment = `{"items":[{"kind":"Deployment","metadata":{"name":"zt","labels":{"app.kubernetes.io/managed-by":"Helm"}},"spec":{"replicas":2},"status":{"replicas":2,"updatedReplicas":2,"readyReplicas":2}}]}`
	deploymentThen = `{"items":[{"kind":"Deployment","metadata":{"name":"zt"},"spec":{"replicas":2},"status":{"replicas":2,"updatedReplicas":2,"readyReplicas":2}}]}`
)

// installation is a machine, a network, and a cluster that a directory plays.
type installation struct {
	adminMachine
	kubectl string // adminKubectl's directory
}

func newInstallation(t *testing.T, files map[string]string) installation {
	t.Helper()
	s, _ := adminRelay(t)
	m := newMachine(t)
	m.ok(createArgs(s)...)
	addr, caFile := adminAPIServer(t, "kubernetes.default.svc")
	i := installation{m, adminKubectl(t, kubeCluster(t, addr, caFile, ""))}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(i.kubectl, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return i
}

func (i installation) add(more ...string) []string {
	return append([]string{"cluster", "add", "c1", "--context", "it's c1", "--api-client-id", "kubernetes", "--group", "developers"}, more...)
}

func (i installation) read(name string) string {
	i.t.Helper()
	b, err := os.ReadFile(filepath.Join(i.kubectl, name))
	if err != nil && !os.IsNotExist(err) {
		i.t.Fatal(err)
	}
	return string(b)
}

func holds(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("no %q in:\n%s", p, text)
		}
	}
}

func TestClusterAddPrintsTheLine(t *testing.T) {
	i := newInstallation(t, map[string]string{"nodes.json": controlPlaneNodes})
	holds(t, i.ok(i.add("--namespace", "door", "--image", "images.test/zt-daemon:7")...),
		"seen there: 2 machines of the control plane among 3: a DaemonSet there",
		`helm install zt ./deploy/helm/zt --namespace door --kube-context 'it'\''s c1' --set-string network=`, "--set-string cluster=c1",
		`--set-json 'nodeSelector={"node-role.kubernetes.io/control-plane":""}'`, `--set-json 'tolerations=[`, "--set mode=daemonset", "image.tag=7")
	applied := i.read("applied.yaml")
	holds(t, applied, "name: door", "namespace: door", "enforce: restricted", "name: zt-cluster-key", "name: zt-policy")
	if strings.Contains(applied, "DaemonSet") || strings.Contains(applied, "zt-node") {
		t.Errorf("more was applied than the chart needs:\n%s", applied)
	}

	var added clusterAdded
	if err := json.Unmarshal([]byte(i.ok(i.add("--node-selector", "kubernetes.io/os=linux", "-o", "json")...)), &added); err != nil ||
		!strings.Contains(added.Next, `--set-json 'nodeSelector={"kubernetes.io/os":"linux"}'`) || added.Placement != "3 machines with kubernetes.io/os=linux: a DaemonSet there" || added.Namespace != "zt" {
		t.Errorf("%+v, %v", added, err)
	}
}

// TestClusterAddAgain keeps key, policy and namespace, and upgrades what is there.
func TestClusterAddAgain(t *testing.T) {
	i := newInstallation(t, map[string]string{"nodes.json": workerNodes})
	first := i.ok(i.add()...)
	holds(t, first, "2 machines, none of the control plane: a Deployment of 2", "--set mode=deployment --set replicas=2")
	hash := func(line string) string {
		_, after, _ := strings.Cut(line, "clusterKeyHash=")
		return strings.Fields(after)[0]
	}
	var secret string // as kubectl would show it
	for document := range strings.SplitSeq(i.read("applied.yaml"), "---\n") {
		if strings.Contains(document, "kind: Secret") {
			_, after, _ := strings.Cut(document, "cluster.key: ")
			secret = strings.Fields(after)[0]
		}
	}
	for name, text := range map[string]string{
		"secret.json": `{"data":{"cluster.key":"` + secret + `"}}`, "configmap.json": `{"data":{"policy.yaml":"issuers: [{url: \"https://login.example.com\", clientID: zt}]\n"}}`,
		"namespace.json": "", "daemonsets,deployments.json": helmDeployment, "applied.yaml": "",
	} {
		if err := os.WriteFile(filepath.Join(i.kubectl, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	again := i.ok(i.add()...)
	holds(t, again, "Its nodes are there", "helm upgrade zt", "--reset-then-reuse-values", "seen there: deployment/zt")
	if strings.Contains(again, "mode=") || strings.Contains(again, "upstream=") {
		t.Errorf("the line takes away what the release has: %s", again)
	}
	holds(t, i.ok(i.add("--node-selector", "pool=a", "--upstream", "10.0.0.7:6443")...), "mode=daemonset", "upstream=10.0.0.7:6443", `nodeSelector={"pool":"a"}`)
	if hash(again) != hash(first) {
		t.Errorf("the key's hash was %s and is %s", hash(first), hash(again))
	}
	applied := i.read("applied.yaml")
	holds(t, applied, secret, "head.jws")
	if strings.Contains(applied, "zt-policy") || strings.Contains(applied, "kind: Namespace") {
		t.Errorf("what is there was written again:\n%s", applied)
	}
	if renewed := i.ok(i.add("--new-key")...); hash(renewed) == hash(first) {
		t.Error("--new-key left the hash as it was, so that pods keep the old key")
	}
	i.refused(1, []string{"deployment/zt", "Helm release", "leave --install out"}, i.add("--install")...)

	if err := os.WriteFile(filepath.Join(i.kubectl, "daemonsets,deployments.json"), []byte(deploymentThen), 0o644); err != nil {
		t.Fatal(err)
	}
	holds(t, i.ok(i.add("--new-key")...), `kubectl --context 'it'\''s c1' --namespace zt rollout restart deployment/zt`)
}

func TestClusterInstall(t *testing.T) {
	i := newInstallation(t, map[string]string{"nodes.json": controlPlaneNodes, "next-daemonsets,deployments.json": daemonSetReady})
	code, out, errOut := i.run(i.add("--install", "--image", "images.test/zt-daemon:7", "--upstream", "10.96.0.1:443")...)
	if code != 0 || !strings.HasSuffix(out, "cluster c1 connected, 2 nodes ready\n") {
		t.Fatalf("exit code %d: %s%s", code, out, errOut)
	}
	applied := i.read("applied.yaml")
	holds(t, applied, "kind: DaemonSet", "kind: CustomResourceDefinition", "image: images.test/zt-daemon:7", "network: "+i.head().Network.String(),
		"upstream: 10.96.0.1:443", `node-role.kubernetes.io/control-plane: ""`, "access.zt-daemon.io/cluster-key: ")

	// Again: what no flag names stays as it is there.
	for name, text := range map[string]string{
		"applied.yaml": "",
		"daemonsets,deployments.json": `{"items":[{"kind":"Deployment","metadata":{"name":"zt"},
 "spec":{"replicas":5,"template":{"spec":{"nodeSelector":{"pool":"a"},"tolerations":[{"key":"a","operator":"Equal","value":"b","tolerationSeconds":7}],"containers":[{"image":"images.test/zt-daemon:8"}]}}},
 "status":{"replicas":5,"updatedReplicas":5,"readyReplicas":5}}]}`,
		"configmap.json": `{"data":{"policy.yaml":"issuers: [{url: \"https://login.example.com\", clientID: zt}]\n","node.yaml":"upstream: 10.0.0.7:6443\n"}}`,
	} {
		if err := os.WriteFile(filepath.Join(i.kubectl, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var added clusterAdded
	if err := json.Unmarshal([]byte(i.ok(i.add("--install", "-o", "json")...)), &added); err != nil || added.NodesReady != 5 || added.Next != "" || added.Placement != "deployment/zt, which stays where it is" {
		t.Errorf("%+v, %v", added, err)
	}
	holds(t, i.read("applied.yaml"), "kind: Deployment", "replicas: 5", "pool: a", "tolerationSeconds: 7", "value: b", "image: images.test/zt-daemon:8", "upstream: 10.0.0.7:6443")
	if got := i.read("deleted"); got != "" {
		t.Errorf("deleted: %q", got)
	}

	// Moved by a flag: the old workload goes when the new one serves.
	if err := os.WriteFile(filepath.Join(i.kubectl, "next-daemonsets,deployments.json"), []byte(daemonSetReady), 0o644); err != nil {
		t.Fatal(err)
	}
	i.ok(i.add("--install", "--node-selector", "pool=b")...)
	if got := i.read("deleted"); got != "--ignore-not-found --wait=false deployment/zt poddisruptionbudget/zt --namespace zt\n" {
		t.Errorf("deleted: %q", got)
	}
}

// TestClusterInstallTimeout shows what keeps the nodes from being ready.
func TestClusterInstallTimeout(t *testing.T) {
	i := newInstallation(t, map[string]string{
		"nodes.json": controlPlaneNodes, "daemonsets,deployments.json": daemonSetHalf,
		"pods.json": `{"items":[
 {"metadata":{"name":"zt-a"},"status":{"containerStatuses":[{"ready":true,"state":{"running":{}}}]}},
 {"metadata":{"name":"zt-b"},"status":{"containerStatuses":[{"ready":false,"state":{"running":{}}}]}},
 {"metadata":{"name":"zt-c"},"status":{"containerStatuses":[{"ready":false,"state":{"waiting":{"reason":"ImagePullBackOff","message":"no such image"}}}]}},
 {"metadata":{"name":"zt-d"},"status":{"conditions":[{"type":"PodScheduled","status":"False","message":"0/3 nodes are available"}]}}]}`,
		"events.json": `{"items":[
 {"type":"Warning","reason":"Failed","message":"no such image","involvedObject":{"kind":"Pod","name":"zt-c"}},
 {"type":"Normal","reason":"Pulling","message":"pulling","involvedObject":{"kind":"Pod","name":"zt-c"}},
 {"type":"Warning","reason":"FailedCreate","message":"quota\u001b[31m","involvedObject":{"kind":"DaemonSet","name":"zt"}}]}`,
		"log": "time=1 level=INFO msg=started\ntime=2 level=WARN msg=\"relay unreachable\"\n{\"event\":\"x\"}\ntime=3 level=INFO msg=waiting\n",
	})
	code, _, errOut := i.run(i.add("--install", "--timeout", "100ms")...)
	if code != exitUnreachable {
		t.Errorf("exit code %d", code)
	}
	holds(t, errOut, "1 of 2 nodes ready", "pod zt-b: runs and is not ready", `its log ends: time=2 level=WARN msg="relay unreachable"`, "pod zt-c: ImagePullBackOff: no such image",
		"pod zt-d: no machine takes it: 0/3 nodes are available", "event: pod/zt-c: Failed: no such image", "event: daemonset/zt: FailedCreate: quota", "cluster c1: 1 of 2 nodes ready after 100ms", "describe pods")
	if strings.Contains(errOut, "zt-a") || strings.Contains(errOut, "\x1b") {
		t.Errorf("it shows what is well, or what is not printable: %q", errOut)
	}
}
