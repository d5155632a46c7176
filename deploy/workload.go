package deploy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// ParseMachines reads a list of Node objects in JSON.
func ParseMachines(list []byte) ([]Machine, error) {
	var l struct {
		Items []struct {
			Metadata struct {
				Name   string            `json:"name"`
				Labels map[string]string `json:"labels"`
			} `json:"metadata"`
			Spec struct {
				Unschedulable bool    `json:"unschedulable"`
				Taints        []Taint `json:"taints"`
			} `json:"spec"`
		} `json:"items"`
	}
	if err := json.Unmarshal(list, &l); err != nil {
		return nil, fmt.Errorf("the list of nodes: %w", err)
	}
	machines := make([]Machine, len(l.Items))
	for n, i := range l.Items {
		machines[n] = Machine{Name: i.Metadata.Name, Labels: i.Metadata.Labels, Unschedulable: i.Spec.Unschedulable, Taints: i.Spec.Taints}
	}
	return machines, nil
}

// Workload is the DaemonSet or Deployment of an installation that is there.
type Workload struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name       string            `json:"name"`
		Labels     map[string]string `json:"labels"`
		Generation int64             `json:"generation"`
	} `json:"metadata"`
	Spec struct {
		Replicas *int `json:"replicas"`
		Template struct {
			Spec struct {
				NodeSelector map[string]string `json:"nodeSelector"`
				Tolerations  []Toleration      `json:"tolerations"`
				Containers   []struct {
					Image string `json:"image"`
				} `json:"containers"`
			} `json:"spec"`
		} `json:"template"`
	} `json:"spec"`
	Status struct {
		ObservedGeneration int64 `json:"observedGeneration"`

		Desired       int `json:"desiredNumberScheduled"` // a DaemonSet's
		UpdatedOnNode int `json:"updatedNumberScheduled"`
		NumberReady   int `json:"numberReady"`

		Replicas        int `json:"replicas"` // a Deployment's, old pods too
		UpdatedReplicas int `json:"updatedReplicas"`
		ReadyReplicas   int `json:"readyReplicas"`
	} `json:"status"`
}

// ParseWorkloads reads a list of DaemonSets and Deployments in JSON.
func ParseWorkloads(list []byte) ([]Workload, error) {
	var l struct {
		Items []Workload `json:"items"`
	}
	if err := json.Unmarshal(list, &l); err != nil {
		return nil, fmt.Errorf("the list of workloads: %w", err)
	}
	return l.Items, nil
}

// Mode is the installation's, and with a slash and the name what kubectl calls
// the workload.
func (w Workload) Mode() string { return strings.ToLower(w.Kind) }

// ByHelm says whether a Helm release made it.
func (w Workload) ByHelm() bool { return w.Metadata.Labels["app.kubernetes.io/managed-by"] == "Helm" }

// Image is that of its pods.
func (w Workload) Image() string {
	if containers := w.Spec.Template.Spec.Containers; len(containers) > 0 {
		return containers[0].Image
	}
	return ""
}

// Placement is where its pods are.
func (w Workload) Placement() Placement {
	pod := w.Spec.Template.Spec
	p := Placement{
		Mode: w.Mode(), NodeSelector: pod.NodeSelector, Tolerations: pod.Tolerations,
		Saw: fmt.Sprintf("%s/%s, which stays where it is", w.Mode(), w.Metadata.Name),
	}
	if p.Mode == Deployment {
		p.Replicas = 1
		if w.Spec.Replicas != nil {
			p.Replicas = *w.Spec.Replicas
		}
	}
	return p
}

// Rollout says how many of its pods are ready, how many there shall be, and
// whether all of them are ready and none is of an older kind.
func (w Workload) Rollout() (ready, want int, done bool) {
	s := w.Status
	seen := s.ObservedGeneration >= w.Metadata.Generation
	if w.Mode() == DaemonSet {
		return s.NumberReady, s.Desired, seen && s.Desired > 0 && s.UpdatedOnNode >= s.Desired && s.NumberReady >= s.Desired
	}
	want = 1
	if w.Spec.Replicas != nil {
		want = *w.Spec.Replicas
	}
	return s.ReadyReplicas, want, seen && want > 0 && s.UpdatedReplicas == want && s.Replicas == want && s.ReadyReplicas == want
}

// Pod is one of an installation's pods, as far as its troubles go.
type Pod struct {
	Name    string
	Ready   bool
	Started bool   // its program has run
	Why     string // it is not ready
}

// ParsePods reads a list of Pod objects in JSON.
func ParsePods(list []byte) ([]Pod, error) {
	type state struct {
		Running *struct{} `json:"running"`
		Waiting *struct {
			Reason  string `json:"reason"`
			Message string `json:"message"`
		} `json:"waiting"`
		Terminated *struct {
			Reason   string `json:"reason"`
			ExitCode int    `json:"exitCode"`
		} `json:"terminated"`
	}
	var l struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
			Status struct {
				Conditions []struct {
					Type    string `json:"type"`
					Status  string `json:"status"`
					Message string `json:"message"`
				} `json:"conditions"`
				Containers []struct {
					Ready        bool  `json:"ready"`
					RestartCount int   `json:"restartCount"`
					State        state `json:"state"`
				} `json:"containerStatuses"`
			} `json:"status"`
		} `json:"items"`
	}
	if err := json.Unmarshal(list, &l); err != nil {
		return nil, fmt.Errorf("the list of pods: %w", err)
	}
	var pods []Pod
	for _, i := range l.Items {
		p := Pod{Name: i.Metadata.Name, Why: "not started yet"}
		for _, c := range i.Status.Conditions {
			if c.Type == "PodScheduled" && c.Status == "False" {
				p.Why = "no machine takes it: " + c.Message
			}
		}
		for _, c := range i.Status.Containers {
			p.Ready = c.Ready
			p.Started = c.State.Running != nil || c.State.Terminated != nil || c.RestartCount > 0
			switch {
			case c.State.Running != nil:
				p.Why = "runs and is not ready"
			case c.State.Waiting != nil:
				p.Why = strings.TrimSuffix(c.State.Waiting.Reason+": "+c.State.Waiting.Message, ": ")
			case c.State.Terminated != nil:
				p.Why = fmt.Sprintf("ended: %s, exit code %d", c.State.Terminated.Reason, c.State.Terminated.ExitCode)
			}
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// Warnings are what the Events of a list in JSON warn of, the newest last, each
// once.
func Warnings(list []byte) ([]string, error) {
	var l struct {
		Items []struct {
			Type    string `json:"type"`
			Reason  string `json:"reason"`
			Message string `json:"message"`
			Object  struct {
				Kind string `json:"kind"`
				Name string `json:"name"`
			} `json:"involvedObject"`
		} `json:"items"`
	}
	if err := json.Unmarshal(list, &l); err != nil {
		return nil, fmt.Errorf("the list of events: %w", err)
	}
	var warnings []string
	for _, e := range l.Items {
		if e.Type == "Warning" {
			w := fmt.Sprintf("%s/%s: %s: %s", strings.ToLower(e.Object.Kind), e.Object.Name, e.Reason, strings.TrimSpace(e.Message))
			warnings = append(slices.DeleteFunc(warnings, func(old string) bool { return old == w }), w)
		}
	}
	return warnings, nil
}

// LastSentence is the line of a node's log that most likely says what is wrong:
// the last warning or error, else the last line that is no audit line.
func LastSentence(log string) string {
	last := ""
	for line := range strings.Lines(log) {
		line = strings.TrimSpace(line)
		trouble := func(l string) bool {
			return strings.Contains(l, "level=WARN") || strings.Contains(l, "level=ERROR") || strings.HasPrefix(l, "zt-daemon: ")
		}
		if line == "" || strings.HasPrefix(line, "{") || trouble(last) && !trouble(line) {
			continue
		}
		last = line
	}
	return last
}
