//go:build e2e && linux

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/zt-daemon/zt/deploy"
	"github.com/zt-daemon/zt/test/issuer"
	"github.com/zt-daemon/zt/test/lab"
)

// restrictedNamespace is a namespace that takes no pod with a privilege.
const restrictedNamespace = `apiVersion: v1
kind: Namespace
metadata: {name: zt, labels: {pod-security.kubernetes.io/enforce: restricted}}
`

// serviceMonitors stands for the definition that Prometheus' operator brings.
const serviceMonitors = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: servicemonitors.monitoring.coreos.com, annotations: {api-approved.kubernetes.io: unapproved}}
spec:
  group: monitoring.coreos.com
  names: {kind: ServiceMonitor, listKind: ServiceMonitorList, plural: servicemonitors, singular: servicemonitor}
  scope: Namespaced
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`

// chartSettings has the values that the chart cannot do without.
const chartSettings = "test/testdata/chart-settings.yaml"

// chartStage is a real API server, which judges what the chart makes.
type chartStage struct {
	ctx        context.Context
	lab        *lab.Lab
	kubernetes *lab.Kubernetes
	module     string
	helmPath   string
}

// TestChart holds the chart, and what is rendered from it, against a real API
// server whose namespace zt enforces Pod Security restricted.
func TestChart(t *testing.T) {
	s := raiseChart(t)
	t.Run("values", s.values)
	t.Run("values that are refused", s.badValues)
	t.Run("the line of cluster add", s.helmLine)
	t.Run("kustomize", s.kustomize)
	t.Run("restricted refuses", s.restricted)
	t.Run("a release", s.release)
	t.Run("rights", s.rights)
	t.Run("AccessGrants", s.accessGrants)
	t.Run("maxDuration", s.maxDuration)
}

func raiseChart(t *testing.T) *chartStage {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	l, err := lab.New(lab.Config{Dir: t.TempDir(), Say: func(d time.Duration, text string) { t.Logf("%5.1fs %s", d.Seconds(), text) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	s := &chartStage{ctx: ctx, lab: l}
	if s.module, err = lab.ModuleDir(ctx); err != nil {
		t.Fatal(err)
	}
	program, err := l.BuildKubernetes(ctx, s.module)
	if err != nil {
		t.Fatal(err)
	}
	if s.helmPath, err = l.BuildHelm(ctx, s.module); err != nil {
		t.Fatal(err)
	}
	ca, err := lab.NewAuthority("zt chart CA")
	if err != nil {
		t.Fatal(err)
	}
	i, err := l.StartIssuer(ca, nil, "127.0.0.1:0", issuer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if s.kubernetes, err = l.StartKubernetes(ctx, lab.KubernetesConfig{Program: program, Issuer: i.For(issuer.APIServerClient)}); err != nil {
		t.Fatal(err)
	}
	s.ok(t, s.kubectl(restrictedNamespace+"---\n"+serviceMonitors, "apply", "-f", "-"))
	s.ok(t, s.kubectl("", "wait", "--for=condition=Established", "crd/servicemonitors.monitoring.coreos.com", "--timeout=30s"))
	return s
}

func (s *chartStage) kubectl(stdin string, args ...string) lab.Result {
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	return s.kubernetes.Kubectl(ctx, strings.NewReader(stdin), args...)
}

func (s *chartStage) helm(args ...string) lab.Result {
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	return s.lab.Run(ctx, lab.Command{Name: "helm", Dir: s.module, Args: append([]string{s.helmPath}, args...)})
}

func (s *chartStage) ok(t *testing.T, r lab.Result) string {
	t.Helper()
	if err := r.OK(); err != nil {
		t.Fatal(err)
	}
	return r.Stdout
}

// refused checks that a command fails and says all of texts.
func (s *chartStage) refused(t *testing.T, r lab.Result, texts ...string) {
	t.Helper()
	if r.Err != nil || r.Code == 0 {
		t.Errorf("it was not refused: %v", r)
	}
	for _, text := range texts {
		if !strings.Contains(r.Stderr, text) {
			t.Errorf("no %q in %v", text, r)
		}
	}
}

func (s *chartStage) template(args ...string) lab.Result {
	return s.helm(append([]string{"template", "zt", "deploy/helm/zt", "--namespace", "zt", "--values", chartSettings}, args...)...)
}

// accepted has the API server judge manifests, and admit a pod of each kind that
// they describe: of a workload it only warns.
func (s *chartStage) accepted(t *testing.T, manifests string) {
	t.Helper()
	r := s.kubectl(manifests, "apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", "-")
	s.ok(t, r)
	pods := 0
	for _, o := range objects(t, manifests) {
		if pod := podOf(o); pod != nil {
			s.ok(t, s.kubectl(toJSON(t, pod), "create", "--dry-run=server", "--validate=strict", "-f", "-"))
			pods++
		}
	}
	if pods == 0 {
		t.Errorf("no pod is among them:\n%s", manifests)
	}
}

func objects(t *testing.T, manifests string) []map[string]any {
	t.Helper()
	var all []map[string]any
	for document := range strings.SplitSeq("\n"+manifests, "\n---\n") {
		o := map[string]any{}
		if err := yaml.Unmarshal([]byte(document), &o); err != nil {
			t.Fatalf("%v\n%s", err, document)
		}
		if len(o) > 0 {
			all = append(all, o)
		}
	}
	return all
}

// podOf is the pod that a workload would make, or a pod itself; nil of others.
func podOf(o map[string]any) map[string]any {
	pod := map[string]any{"apiVersion": "v1", "kind": "Pod"}
	switch o["kind"] {
	case "Pod":
		return o
	case "DaemonSet", "Deployment":
		template := o["spec"].(map[string]any)["template"].(map[string]any)
		meta := maps.Clone(template["metadata"].(map[string]any))
		meta["name"], meta["namespace"] = "judged", "zt"
		pod["metadata"], pod["spec"] = meta, template["spec"]
		return pod
	}
	return nil
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// values judges each file of testdata/chart, and what it is there to show.
func (s *chartStage) values(t *testing.T) {
	files, err := filepath.Glob("testdata/chart/*.yaml")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d sets of values, %v", len(files), err)
	}
	shows := map[string][]string{
		"daemonset": {"kind: DaemonSet", "GOMEMLIMIT\n              value: \"120795955\"", "helm.sh/resource-policy: keep", "image: zt-daemon:0.1.0",
			"enableServiceLinks: false", "terminationMessagePolicy: FallbackToLogsOnError"},
		"deployment": {"kind: Deployment", "replicas: 2", "kind: PodDisruptionBudget", "topologyKey: kubernetes.io/hostname"},
		"images":     {"image: images.test:5000/team/zt-daemon@sha256:e3b0c4", "imagePullPolicy: Always", "- name: pull"},
		"names":      {"name: front-door-node", "name: front-door-key", "serviceAccountName: doorman", `"$(FRONT_DOOR_METRICS_SERVICE_HOST)"`, "app.kubernetes.io/name: door"},
		"openshift":  {"runAsNonRoot: true\n        seccompProfile"},
		"scheduling": {"priorityClassName: system-cluster-critical", "topologyKey: topology.kubernetes.io/zone", "kubernetes.io/os: linux", `value: "483183820"`, "maxSurge: 50%", `--grace, "290s"`},
		"network":    {"port: 8443", "port: 3128", "port: 7443", "cidr: \"2001:db8::/32\"", "app.kubernetes.io/component: test", "HTTPS_PROXY"},
		"policy":     {"name: zt-policy-text", "resourceNames: [zt-policy-text]", "policyConfigMap: zt-policy-text", "duration('12h30m')", "clientID: zt"},
		"monitoring": {"kind: ServiceMonitor", "containerPort: 19090", `"19090"]`, "value: debug"},
		"least":      {"accessGrants: false", "type: Recreate"},
		"ondelete":   {"type: OnDelete", "accessGrants: true"},
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("test", file)
			s.ok(t, s.helm("lint", "--strict", "deploy/helm/zt", "--values", chartSettings, "--values", file))
			manifests := s.ok(t, s.template("--values", file))
			s.accepted(t, manifests)
			if len(shows[name]) == 0 {
				t.Error("nothing is looked for in it")
			}
			for _, part := range shows[name] {
				if !strings.Contains(manifests, part) {
					t.Errorf("no %q in\n%s", part, manifests)
				}
			}
			for _, never := range []string{"hostNetwork", "hostPath", "hostPort", "hostPID", "hostIPC", "add:", "privileged"} {
				if strings.Contains(manifests, never) {
					t.Errorf("%q is in\n%s", never, manifests)
				}
			}
		})
	}
	if absent := s.ok(t, s.template("--values", "test/testdata/chart/least.yaml")); strings.Contains(absent, "CustomResourceDefinition") ||
		strings.Contains(absent, "NetworkPolicy") || strings.Contains(absent, "PodDisruptionBudget") || strings.Contains(absent, "GOMEMLIMIT") || strings.Contains(absent, "ClusterRole") {
		t.Errorf("what least.yaml switches off is there:\n%s", absent)
	}
}

func (s *chartStage) badValues(t *testing.T) {
	for name, c := range map[string]struct {
		args  []string
		texts []string
	}{
		"no relay":          {[]string{"--set-string", "relay="}, []string{"relay is missing", "zt-daemon cluster add", "helm install"}},
		"no network":        {[]string{"--set-string", "network="}, []string{"network is missing", "zt-daemon cluster add"}},
		"no cluster":        {[]string{"--set-string", "cluster="}, []string{"cluster is missing", "zt-daemon cluster add"}},
		"a misspelt value":  {[]string{"--set", "tolerationz=1"}, []string{"tolerationz"}},
		"half a network id": {[]string{"--set-string", "network=abc"}, []string{"/network", "abc"}},
		"http":              {[]string{"--set-string", "relay=http://relay.example.com"}, []string{"/relay"}},
		"another mode":      {[]string{"--set", "mode=statefulset"}, []string{"/mode", "daemonset"}},
		"root":              {[]string{"--set", "podSecurityContext.runAsUser=0"}, []string{"/podSecurityContext/runAsUser"}},
		"a privilege":       {[]string{"--set", "podSecurityContext.runAsNonRoot=false"}, []string{"runAsNonRoot"}},
		"no duration":       {[]string{"--set", "accessGrant.maxDuration=8 hours"}, []string{"/accessGrant/maxDuration"}},
		"no amount":         {[]string{"--set", "resources.limits.memory=lots"}, []string{"/resources/limits/memory"}},
		"a memory of milli": {[]string{"--set", "resources.limits.memory=100m"}, []string{"128Mi"}},
		"no upstream port":  {[]string{"--set", "upstream=kubernetes"}, []string{"/upstream"}},
	} {
		t.Run(name, func(t *testing.T) { s.refused(t, s.template(c.args...), c.texts...) })
	}
}

// helmLine renders with the words that cluster add prints.
func (s *chartStage) helmLine(t *testing.T) {
	i := deploy.Install{
		Namespace: "zt", Network: "kq3v7m2xw5r6p4dzs5fog7h2j3k4l5m6", Cluster: "42", Relay: "https://relay.example.com:8443", Upstream: "kubernetes.default.svc:443",
		KeyHash: "0123456789012345", Image: "images.test:5000/zt-daemon:1.0",
		Placement: deploy.Placement{Mode: deploy.DaemonSet, NodeSelector: map[string]string{"node-role.kubernetes.io/control-plane": ""},
			Tolerations: []deploy.Toleration{{Key: "node-role.kubernetes.io/control-plane", Operator: "Exists", Effect: "NoSchedule"}}},
	}
	for _, mode := range []string{deploy.DaemonSet, deploy.Deployment} {
		t.Run(mode, func(t *testing.T) {
			i := i
			if mode == deploy.Deployment {
				i.Placement = deploy.Placement{Mode: mode, Replicas: 2}
			}
			words := i.Helm(false)
			if words[0] != "helm" || words[1] != "install" {
				t.Fatalf("%q", words)
			}
			manifests := s.ok(t, s.helm(append([]string{"template"}, words[2:]...)...))
			s.accepted(t, manifests)
			mine, err := i.Manifests()
			if err != nil {
				t.Fatal(err)
			}
			s.accepted(t, string(mine))
			// Both ways to install must come to the same pods.
			if chart, own := podsOf(t, manifests), podsOf(t, string(mine)); !slices.Equal(chart, own) {
				t.Errorf("Helm makes\n%s\n--install makes\n%s", strings.Join(chart, "\n"), strings.Join(own, "\n"))
			}
		})
	}
}

// podsOf are the pods of the workloads without what only Helm knows.
func podsOf(t *testing.T, manifests string) []string {
	var all []string
	for _, o := range objects(t, manifests) {
		if pod := podOf(o); pod != nil && o["kind"] != "Pod" {
			delete(pod["metadata"].(map[string]any)["annotations"].(map[string]any), "checksum/node")
			all = append(all, toJSON(t, pod))
		}
	}
	return all
}

func (s *chartStage) kustomize(t *testing.T) {
	ctx, cancel := context.WithTimeout(s.ctx, 2*time.Minute)
	defer cancel()
	s.ok(t, s.lab.Run(ctx, lab.Command{Name: "render.sh", Dir: s.module, Args: []string{"sh", "deploy/render.sh", "--check"}}))
	for _, variant := range []string{"daemonset", "deployment"} {
		t.Run(variant, func(t *testing.T) {
			manifests := s.ok(t, s.kubectl("", "kustomize", filepath.Join(s.module, "deploy", "kustomize", variant)))
			s.accepted(t, manifests)
		})
	}
}

// restricted shows that the namespace of this test refuses what it should.
func (s *chartStage) restricted(t *testing.T) {
	manifests := s.ok(t, s.template())
	for name, spoil := range map[string]func(spec, container map[string]any){
		"host network": func(spec, _ map[string]any) { spec["hostNetwork"] = true },
		"a capability": func(_, container map[string]any) {
			container["securityContext"].(map[string]any)["capabilities"] = map[string]any{"drop": []string{"ALL"}, "add": []string{"NET_ADMIN"}}
		},
		"root": func(spec, _ map[string]any) { spec["securityContext"].(map[string]any)["runAsNonRoot"] = false },
	} {
		t.Run(name, func(t *testing.T) {
			for _, o := range objects(t, manifests) {
				if o["kind"] != "DaemonSet" {
					continue
				}
				pod := podOf(o)
				spec := pod["spec"].(map[string]any)
				spoil(spec, spec["containers"].([]any)[0].(map[string]any))
				s.refused(t, s.kubectl(toJSON(t, pod), "create", "--dry-run=server", "-f", "-"), `violates PodSecurity "restricted`)
			}
		})
	}
}

// release installs, upgrades, uninstalls, and installs once more beside what was
// kept, and over what cluster add applied. No pod runs here: there is no kubelet.
func (s *chartStage) release(t *testing.T) {
	i := deploy.Install{
		Namespace: "zt", Network: "kq3v7m2xw5r6p4dzs5fog7h2j3k4l5m6", Cluster: "c1", Relay: "https://relay.example.com", Upstream: deploy.Upstream,
		KeyHash: "0123456789abcdef", Placement: deploy.Placement{Mode: deploy.Deployment, Replicas: 2},
	}
	helm := func(words []string) string {
		t.Helper()
		return s.ok(t, s.helm(append(words[1:], "--kubeconfig", s.kubernetes.Kubeconfig)...))
	}
	hash := func() string {
		return s.ok(t, s.kubectl("", "get", "deployment", "zt", "--namespace", "zt", "-o", `jsonpath={.spec.template.metadata.annotations.access\.zt-daemon\.io/cluster-key} {.spec.template.spec.priorityClassName}`))
	}
	notes := helm(append(i.Helm(false), "--set", "priorityClassName=system-cluster-critical"))
	for _, part := range []string{"rollout status deployment/zt", "edit configmap zt-policy", "zt-daemon login https://relay.example.com/kq3v7m2xw5r6p4dzs5fog7h2j3k4l5m6", "kubectl --context zt-c1 get pods"} {
		if !strings.Contains(notes, part) {
			t.Errorf("no %q in the notes:\n%s", part, notes)
		}
	}
	i.KeyHash = "fedcba9876543210"
	helm(i.Helm(true))
	if got := hash(); got != "fedcba9876543210 system-cluster-critical" {
		t.Errorf("after the upgrade: %q, want the new key's hash and the values that a person gave", got)
	}
	uninstall := []string{"helm", "uninstall", "zt", "--namespace", "zt"}
	helm(uninstall)
	left := s.ok(t, s.kubectl("", "get", "crd/accessgrants.access.zt-daemon.io", "-o", "name")) +
		s.ok(t, s.kubectl("", "get", "deployments,daemonsets,serviceaccounts,roles,configmaps,networkpolicies,services", "--namespace", "zt", "--selector", deploy.Selector, "-o", "name"))
	if strings.TrimSpace(left) != "customresourcedefinition.apiextensions.k8s.io/accessgrants.access.zt-daemon.io" {
		t.Errorf("left after the uninstall: %q, want the definition and nothing else", left)
	}
	helm(i.Helm(false))
	helm(uninstall)

	mine, err := i.Manifests()
	if err != nil {
		t.Fatal(err)
	}
	s.ok(t, s.kubectl(string(mine), "apply", "--server-side", "--field-manager=zt-daemon", "--force-conflicts", "-f", "-"))
	helm(append(i.Helm(false), "--take-ownership"))
	helm(uninstall)
}

// rights asks the API server what the pods may, once the chart's roles are there.
func (s *chartStage) rights(t *testing.T) {
	s.ok(t, s.kubectl(s.ok(t, s.template("--show-only", "templates/rbac.yaml", "--show-only", "templates/serviceaccount.yaml", "--show-only", "templates/accessgrants-crd.yaml")),
		"apply", "-f", "-"))
	s.ok(t, s.kubectl("", "wait", "--for=condition=Established", "crd/accessgrants.access.zt-daemon.io", "--timeout=30s"))
	for _, c := range []struct {
		may  bool
		args string
	}{
		{true, "get configmap/zt-policy -n zt"},
		{true, "list configmap/zt-policy -n zt"},
		{true, "watch configmap/zt-policy -n zt"},
		{true, "list accessgrants.access.zt-daemon.io"},
		{true, "watch accessgrants.access.zt-daemon.io"},
		{true, "get accessgrants.access.zt-daemon.io/one"},
		{true, "patch accessgrants.access.zt-daemon.io --subresource=status"},
		{true, "create events -n zt"},
		{true, "patch events -n zt"},
		{false, "get configmaps -n zt"},
		{false, "list configmaps -n zt"},
		{false, "get configmap/zt-node -n zt"},
		{false, "update configmap/zt-policy -n zt"},
		{false, "get configmap/zt-policy -n default"},
		{false, "get secrets -n zt"},
		{false, "list events -n zt"},
		{false, "create events -n default"},
		{false, "create accessgrants.access.zt-daemon.io"},
		{false, "patch accessgrants.access.zt-daemon.io"},
		{false, "delete accessgrants.access.zt-daemon.io"},
		{false, "update accessgrants.access.zt-daemon.io --subresource=status"},
		{false, "get pods -n zt"},
		{false, "list nodes"},
		{false, "create serviceaccounts/zt --subresource=token -n zt"},
	} {
		r := s.kubectl("", append([]string{"auth", "can-i", "--as=system:serviceaccount:zt:zt", "--as-group=system:serviceaccounts", "--as-group=system:authenticated"}, strings.Fields(c.args)...)...)
		if got := strings.TrimSpace(r.Stdout); r.Err != nil || got != map[bool]string{true: "yes", false: "no"}[c.may] {
			t.Errorf("%s: %q, want %v: %v", c.args, got, c.may, r)
		}
	}
}

// grant is an AccessGrant; fields with an empty value are left out.
func grant(name string, spec map[string]any) string {
	spec = maps.Clone(spec)
	maps.DeleteFunc(spec, func(_ string, v any) bool { return v == "" })
	b, err := json.Marshal(map[string]any{"apiVersion": "access.zt-daemon.io/v1alpha1", "kind": "AccessGrant", "metadata": map[string]any{"name": name}, "spec": spec})
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(b)
}

// accessGrants has the API server judge AccessGrants by the definition's rules.
func (s *chartStage) accessGrants(t *testing.T) {
	good := map[string]any{"subject": "248289761001", "reason": "ticket 17", "notBefore": "2026-01-01T10:00:00Z", "notAfter": "2026-01-01T18:00:00Z"}
	for name, c := range map[string]struct {
		change  map[string]any
		refused string // "" = accepted
	}{
		"eight hours":                    {nil, ""},
		"a group, an issuer and ports":   {map[string]any{"subject": "", "group": "oncall", "issuer": "https://login.example.com", "ports": []int{443, 6443}}, ""},
		"other zones":                    {map[string]any{"notBefore": "2026-01-01T12:00:00+02:00", "notAfter": "2026-01-01T12:30:00.5Z"}, ""},
		"no reason":                      {map[string]any{"reason": ""}, "spec.reason: Required value"},
		"a blank reason":                 {map[string]any{"reason": "  "}, "spec.reason"},
		"no notBefore":                   {map[string]any{"notBefore": ""}, "spec.notBefore: Required value"},
		"no notAfter":                    {map[string]any{"notAfter": ""}, "spec.notAfter: Required value"},
		"notAfter is no time":            {map[string]any{"notAfter": "tomorrow"}, "spec.notAfter"},
		"notAfter before notBefore":      {map[string]any{"notAfter": "2026-01-01T09:00:00Z"}, "notAfter must be later than notBefore"},
		"notAfter at notBefore":          {map[string]any{"notAfter": "2026-01-01T10:00:00Z"}, "notAfter must be later than notBefore"},
		"a second too long":              {map[string]any{"notAfter": "2026-01-01T18:00:01Z"}, "at most 8h later"},
		"a subject and a group":          {map[string]any{"group": "oncall"}, "either a subject"},
		"neither a subject nor a group":  {map[string]any{"subject": ""}, "either a subject"},
		"an unknown field":               {map[string]any{"subjects": "x"}, `unknown field "spec.subjects"`},
		"a port that is none":            {map[string]any{"ports": []int{0}}, "spec.ports[0]"},
		"a port twice":                   {map[string]any{"ports": []int{443, 443}}, "Duplicate value"},
		"no ports in the list":           {map[string]any{"ports": []int{}}, "spec.ports"},
		"a reason of two lines":          {map[string]any{"reason": "ticket 17\nfor mallory"}, "must be one line, without control characters"},
		"a reason with an escape":        {map[string]any{"reason": "ticket 17\x1b[2K"}, "must be one line, without control characters"},
		"a reason in other letters":      {map[string]any{"reason": "заявка 17 – früh"}, ""},
		"a reason of a thousand letters": {map[string]any{"reason": strings.Repeat("x", 1025)}, "Too long"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := maps.Clone(good)
			maps.Copy(spec, c.change)
			r := s.kubectl(grant("judged", spec), "create", "--dry-run=server", "--validate=strict", "-f", "-")
			if c.refused == "" {
				s.ok(t, r)
			} else {
				s.refused(t, r, c.refused)
			}
		})
	}

	// Two pods write their entries; neither takes the other's away.
	s.ok(t, s.kubectl(grant("shown", good), "create", "-f", "-"))
	for _, pod := range []string{"zt-1", "zt-2"} {
		status := fmt.Sprintf(`{"apiVersion":"access.zt-daemon.io/v1alpha1","kind":"AccessGrant","metadata":{"name":"shown"},"status":{"phase":"Active","nodes":[{"pod":%q,"phase":"Active"%s}]}}`,
			pod, map[bool]string{true: `,"lastUsed":"2026-01-01T11:00:00Z","lastUsedBy":"alice@example.com"`}[pod == "zt-2"])
		s.ok(t, s.kubectl(status, "apply", "--server-side", "--subresource=status", "--field-manager="+pod, "-f", "-"))
	}
	if pods := s.ok(t, s.kubectl("", "get", "accessgrant", "shown", "-o", "jsonpath={.status.nodes[*].pod}")); pods != "zt-1 zt-2" {
		t.Errorf("status is of pods %q", pods)
	}
	later := maps.Clone(good)
	later["notAfter"] = "2026-01-01T17:00:00Z"
	s.refused(t, s.kubectl(grant("shown", later), "apply", "--server-side", "--force-conflicts", "-f", "-"), "an AccessGrant stays as it was made")
	s.ok(t, s.kubectl(grant("shown", good), "apply", "--server-side", "--force-conflicts", "-f", "-"))
	s.ok(t, s.kubectl("", "label", "accessgrant", "shown", "team=a"))
	table := s.ok(t, s.kubectl("", "get", "accessgrants"))
	for _, part := range []string{"NAME", "PHASE", "SUBJECT", "GROUP", "NOT BEFORE", "NOT AFTER", "USED BY", "shown", "Active", "248289761001", "2026-01-01T18:00:00Z", "alice@example.com"} {
		if !strings.Contains(table, part) {
			t.Errorf("no %q in\n%s", part, table)
		}
	}
	s.refused(t, s.kubectl(`{"apiVersion":"access.zt-daemon.io/v1alpha1","kind":"AccessGrant","metadata":{"name":"shown"},"status":{"phase":"Open"}}`,
		"apply", "--server-side", "--subresource=status", "--field-manager=x", "--force-conflicts", "-f", "-"), `Unsupported value: "Open"`)
}

// maxDuration shows that the chart's value is what the API server holds people to.
func (s *chartStage) maxDuration(t *testing.T) {
	s.ok(t, s.kubectl(s.ok(t, s.template("--set", "accessGrant.maxDuration=1h30m", "--show-only", "templates/accessgrants-crd.yaml")), "apply", "-f", "-"))
	spec := map[string]any{"group": "oncall", "reason": "ticket 17", "notBefore": "2026-01-01T10:00:00Z", "notAfter": "2026-01-01T11:31:00Z"}
	// The API server takes a moment to hold to the new definition.
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	if err := lab.Eventually(ctx, func(context.Context) error {
		if r := s.kubectl(grant("judged", spec), "create", "--dry-run=server", "-f", "-"); !strings.Contains(r.Stderr, "at most 1h30m later") {
			return fmt.Errorf("91 minutes: %v", r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	spec["notAfter"] = "2026-01-01T11:30:00Z"
	s.ok(t, s.kubectl(grant("judged", spec), "create", "--dry-run=server", "-f", "-"))
}
