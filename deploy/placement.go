package deploy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Modes of an installation, as the chart names them.
const (
	DaemonSet  = "daemonset"
	Deployment = "deployment"
)

// deploymentReplicas is how many nodes a cluster gets whose machines are all
// alike: one may go and one be away, and people still connect.
const deploymentReplicas = 3

const (
	osLabel           = "kubernetes.io/os"
	controlPlaneLabel = "node-role.kubernetes.io/control-plane"
	// Taints that Kubernetes itself sets and takes away are no reason for a
	// toleration.
	lifecycleTaints = "node.kubernetes.io/"
)

// Machine is one of a cluster's Node objects. (In this project a node is zt's.)
type Machine struct {
	Name          string
	Labels        map[string]string
	Unschedulable bool
	Taints        []Taint
}

// Taint of a Machine.
type Taint struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Effect string `json:"effect"`
}

// Toleration of a pod.
type Toleration struct {
	Key      string `json:"key,omitempty"`
	Operator string `json:"operator,omitempty"`
	Value    string `json:"value,omitempty"`
	Effect   string `json:"effect,omitempty"`
	Seconds  *int64 `json:"tolerationSeconds,omitempty"`
}

// Placement says which machines run a node.
type Placement struct {
	Mode         string            // empty: as the installation has it that is there
	Replicas     int               // of a Deployment
	NodeSelector map[string]string // of a DaemonSet
	Tolerations  []Toleration
	Saw          string // why, for a person
}

// Place looks for what fits a cluster. With a selector, a DaemonSet on the
// machines it selects. Otherwise a DaemonSet on the control plane where that can
// be seen, and where it cannot, as in most clusters of a provider, a Deployment.
func Place(machines []Machine, selector map[string]string) Placement {
	machines = slices.DeleteFunc(slices.Clone(machines), func(m Machine) bool {
		os, ok := m.Labels[osLabel]
		return m.Unschedulable || ok && os != "linux"
	})
	if len(selector) > 0 {
		chosen := selected(machines, selector)
		return Placement{
			Mode: DaemonSet, NodeSelector: selector, Tolerations: tolerations(chosen),
			Saw: fmt.Sprintf("%s with %s: a DaemonSet there", count(len(chosen), "machine"), labels(selector)),
		}
	}
	for _, m := range machines {
		if value, ok := m.Labels[controlPlaneLabel]; ok {
			selector := map[string]string{controlPlaneLabel: value}
			chosen := selected(machines, selector)
			return Placement{
				Mode: DaemonSet, NodeSelector: selector, Tolerations: tolerations(chosen),
				Saw: fmt.Sprintf("%s of the control plane among %d: a DaemonSet there", count(len(chosen), "machine"), len(machines)),
			}
		}
	}
	free := slices.DeleteFunc(slices.Clone(machines), func(m Machine) bool { return len(tolerations([]Machine{m})) > 0 })
	p := Placement{Mode: Deployment, Replicas: deploymentReplicas}
	if n := len(free); n > 0 && n < p.Replicas {
		p.Replicas = n
	}
	p.Saw = fmt.Sprintf("%s, none of the control plane: a Deployment of %d", count(len(machines), "machine"), p.Replicas)
	return p
}

func selected(machines []Machine, selector map[string]string) []Machine {
	return slices.DeleteFunc(slices.Clone(machines), func(m Machine) bool {
		for k, want := range selector {
			if got, ok := m.Labels[k]; !ok || got != want {
				return true
			}
		}
		return false
	})
}

// tolerations are those without which a pod stays away from one of machines.
func tolerations(machines []Machine) []Toleration {
	var all []Toleration
	for _, m := range machines {
		for _, t := range m.Taints {
			need := Toleration{Key: t.Key, Operator: "Exists", Effect: t.Effect}
			if strings.HasPrefix(t.Key, lifecycleTaints) || t.Effect == "PreferNoSchedule" || slices.Contains(all, need) {
				continue
			}
			all = append(all, need)
		}
	}
	slices.SortFunc(all, func(a, b Toleration) int { return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Effect, b.Effect)) })
	return all
}

func labels(m map[string]string) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		all = append(all, k+"="+m[k])
	}
	return strings.Join(all, ",")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
