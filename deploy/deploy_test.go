package deploy

import (
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func machine(name string, taints []Taint, labels ...string) Machine {
	m := Machine{Name: name, Labels: map[string]string{osLabel: "linux"}, Taints: taints}
	for i := 0; i < len(labels); i += 2 {
		m.Labels[labels[i]] = labels[i+1]
	}
	return m
}

func TestPlace(t *testing.T) {
	controlPlane := Taint{Key: controlPlaneLabel, Effect: "NoSchedule"}
	tolerated := []Toleration{{Key: controlPlaneLabel, Operator: "Exists", Effect: "NoSchedule"}}
	gpu := []Taint{{Key: "gpu", Value: "yes", Effect: "NoSchedule"}}
	cordoned := machine("w9", nil)
	cordoned.Unschedulable = true
	for name, c := range map[string]struct {
		machines []Machine
		selector map[string]string
		want     Placement
	}{
		"a control plane that keeps others away": {
			machines: []Machine{machine("c1", []Taint{controlPlane}, controlPlaneLabel, ""), machine("c2", []Taint{controlPlane}, controlPlaneLabel, ""), machine("w1", nil)},
			want:     Placement{Mode: DaemonSet, NodeSelector: map[string]string{controlPlaneLabel: ""}, Tolerations: tolerated, Saw: "2 machines of the control plane among 3: a DaemonSet there"},
		},
		"one machine that is everything": {
			machines: []Machine{machine("c1", nil, controlPlaneLabel, "true")},
			want:     Placement{Mode: DaemonSet, NodeSelector: map[string]string{controlPlaneLabel: "true"}, Saw: "1 machine of the control plane among 1: a DaemonSet there"},
		},
		"a control plane that has just started": {
			machines: []Machine{machine("c1", []Taint{controlPlane, {Key: "node.kubernetes.io/not-ready", Effect: "NoExecute"}}, controlPlaneLabel, "")},
			want:     Placement{Mode: DaemonSet, NodeSelector: map[string]string{controlPlaneLabel: ""}, Tolerations: tolerated, Saw: "1 machine of the control plane among 1: a DaemonSet there"},
		},
		"a provider's": {
			machines: []Machine{machine("w1", nil), machine("w2", nil), machine("w3", nil), machine("w4", nil)},
			want:     Placement{Mode: Deployment, Replicas: 3, Saw: "4 machines, none of the control plane: a Deployment of 3"},
		},
		"a small one": {
			machines: []Machine{machine("w1", nil), machine("w2", nil), machine("g1", gpu), cordoned, {Name: "win", Labels: map[string]string{osLabel: "windows"}}},
			want:     Placement{Mode: Deployment, Replicas: 2, Saw: "3 machines, none of the control plane: a Deployment of 2"},
		},
		"nothing to see": {want: Placement{Mode: Deployment, Replicas: 3, Saw: "0 machines, none of the control plane: a Deployment of 3"}},
		"chosen ones": {
			machines: []Machine{machine("c1", []Taint{controlPlane}, controlPlaneLabel, ""), machine("g1", gpu, "pool", "edge")},
			selector: map[string]string{"pool": "edge"},
			want: Placement{Mode: DaemonSet, NodeSelector: map[string]string{"pool": "edge"}, Tolerations: []Toleration{{Key: "gpu", Operator: "Exists", Effect: "NoSchedule"}},
				Saw: "1 machine with pool=edge: a DaemonSet there"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Place(c.machines, c.selector); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

var install = Install{
	Namespace: "remote", Network: "kq3v7m2xw5r6p4dzs5fog7h2j3k4l5m6", Cluster: "42", Relay: "https://relay.example.com:8443", Upstream: "10.96.0.1:7443",
	KeyHash: "0123456789abcdef", Image: "images.test:5000/zt-daemon:2",
	Placement: Placement{Mode: DaemonSet, NodeSelector: map[string]string{controlPlaneLabel: ""}, Tolerations: []Toleration{{Key: controlPlaneLabel, Operator: "Exists", Effect: "NoSchedule"}}},
}

func TestHelm(t *testing.T) {
	const values = " --set-string network=kq3v7m2xw5r6p4dzs5fog7h2j3k4l5m6 --set-string cluster=42 --set-string relay=https://relay.example.com:8443" +
		" --set-string upstream=10.96.0.1:7443 --set-string clusterKeyHash=0123456789abcdef"
	got := Quote(install.Helm(false, "--kube-context", "it's c1"))
	want := `helm install zt ./deploy/helm/zt --namespace remote --kube-context 'it'\''s c1'` + values +
		` --set mode=daemonset --set-json 'nodeSelector={"node-role.kubernetes.io/control-plane":""}'` +
		` --set-json 'tolerations=[{"key":"node-role.kubernetes.io/control-plane","operator":"Exists","effect":"NoSchedule"}]'` +
		" --set-string image.repository=images.test:5000/zt-daemon --set-string image.tag=2"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	i := install
	i.Image, i.Placement = "zt-daemon@sha256:0a", Placement{Mode: Deployment, Replicas: 2}
	got = Quote(i.Helm(true))
	want = "helm upgrade zt ./deploy/helm/zt --namespace remote --reset-then-reuse-values" + values +
		" --set mode=deployment --set replicas=2 --set-string image.repository=zt-daemon --set-string image.digest=sha256:0a"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestManifests looks for each setting where Kubernetes reads it.
func TestManifests(t *testing.T) {
	daemonSet := install
	deployment := install
	deployment.Placement = Placement{Mode: Deployment, Replicas: 2}
	for name, c := range map[string]struct {
		install Install
		kinds   []string
		has     []string
	}{
		"daemonset": {daemonSet, []string{"CustomResourceDefinition", "NetworkPolicy", "ConfigMap", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "Service", "ServiceAccount", "DaemonSet"},
			[]string{controlPlaneLabel + `: ""`, "kubernetes.io/os: linux", "operator: Exists"}},
		"deployment": {deployment, []string{"CustomResourceDefinition", "NetworkPolicy", "ConfigMap", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "Service", "ServiceAccount", "Deployment", "PodDisruptionBudget"},
			[]string{"replicas: 2", "maxUnavailable: 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := c.install.Manifests()
			if err != nil {
				t.Fatal(err)
			}
			kinds := map[string]bool{}
			for document := range strings.SplitSeq(strings.TrimPrefix(string(text), "---\n"), "\n---\n") {
				var o struct {
					Kind     string `json:"kind"`
					Metadata struct {
						Namespace string `json:"namespace"`
					} `json:"metadata"`
					Subjects []struct {
						Namespace string `json:"namespace"`
					} `json:"subjects"`
				}
				if err := yaml.Unmarshal([]byte(document), &o); err != nil {
					t.Fatalf("%v\n%s", err, document)
				}
				kinds[o.Kind] = true
				if ns := o.Metadata.Namespace; ns != "" && ns != "remote" {
					t.Errorf("%s is in namespace %s", o.Kind, ns)
				}
				for _, s := range o.Subjects {
					if s.Namespace != "remote" {
						t.Errorf("a subject of %s is in namespace %q", o.Kind, s.Namespace)
					}
				}
			}
			if len(kinds) != len(c.kinds) {
				t.Errorf("kinds %v, want %v", kinds, c.kinds)
			}
			for _, k := range c.kinds {
				if !kinds[k] {
					t.Errorf("no %s", k)
				}
			}
			for _, part := range append(c.has, "network: "+c.install.Network, `cluster: "42"`, "relay: "+c.install.Relay, "upstream: 10.96.0.1:7443", "policyConfigMap: "+PolicyConfigMap,
				"name: "+KeySecret, "port: 8443\n      protocol: UDP", "port: 7443", "access.zt-daemon.io/cluster-key: 0123456789abcdef", "image: "+c.install.Image) {
				if !strings.Contains(string(text), part) {
					t.Errorf("no %q in\n%s", part, text)
				}
			}
		})
	}
}
