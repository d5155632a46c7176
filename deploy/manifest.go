package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"

	"sigs.k8s.io/yaml"
)

// object is a Kubernetes object as JSON has it.
type object = map[string]any

// Manifests are the objects of i as YAML documents, ready for kubectl apply: the
// rendered base with this cluster's settings. The Secret and the policy's
// ConfigMap are not among them.
func (i Install) Manifests() ([]byte, error) {
	var all []object
	for _, dir := range []string{"base", i.Placement.Mode} {
		entries, err := base.ReadDir(path.Join("kustomize", dir))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Name() == "kustomization.yaml" {
				continue
			}
			text, err := base.ReadFile(path.Join("kustomize", dir, e.Name()))
			if err != nil {
				return nil, err
			}
			if e.Name() == "node.yaml" {
				config, err := i.nodeConfig(text)
				if err != nil {
					return nil, err
				}
				all = append(all, config)
				continue
			}
			for _, document := range bytes.Split(text, []byte("\n---\n")) {
				o := object{}
				if err := yaml.Unmarshal(document, &o); err != nil {
					return nil, fmt.Errorf("%s: %w", e.Name(), err)
				}
				if err := i.set(o); err != nil {
					return nil, fmt.Errorf("%s: %w", e.Name(), err)
				}
				all = append(all, o)
			}
		}
	}
	var out bytes.Buffer
	for _, o := range all {
		b, err := yaml.Marshal(o)
		if err != nil {
			return nil, err
		}
		out.WriteString("---\n")
		out.Write(b)
	}
	return out.Bytes(), nil
}

// nodeConfig is the ConfigMap with node.yaml, which text is a template of.
func (i Install) nodeConfig(text []byte) (object, error) {
	settings := object{}
	if err := yaml.Unmarshal(text, &settings); err != nil {
		return nil, fmt.Errorf("node.yaml: %w", err)
	}
	maps.Copy(settings, object{"network": i.Network, "cluster": i.Cluster, "relay": i.Relay, "upstream": i.Upstream})
	node, err := yaml.Marshal(settings)
	if err != nil {
		return nil, err
	}
	return object{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": object{"name": NodeConfigMap, "namespace": i.Namespace, "labels": object{"app.kubernetes.io/name": Name}},
		"data":     object{"node.yaml": string(node)},
	}, nil
}

var errShape = errors.New("is not of the shape that this program expects")

// set writes this cluster's settings into o.
func (i Install) set(o object) error {
	meta, ok := o["metadata"].(object)
	if !ok {
		return errShape
	}
	if _, namespaced := meta["namespace"]; namespaced {
		meta["namespace"] = i.Namespace
	}
	switch o["kind"] {
	case "RoleBinding", "ClusterRoleBinding":
		subjects, _ := o["subjects"].([]any)
		for _, s := range subjects {
			subject, ok := s.(object)
			if !ok {
				return errShape
			}
			subject["namespace"] = i.Namespace
		}
	case "NetworkPolicy":
		return i.openRelayPort(o)
	case "DaemonSet", "Deployment":
		return i.setWorkload(o)
	}
	return nil
}

// openRelayPort lets the pods reach a relay on another port than 443, and an API
// server on one that the base does not name.
func (i Install) openRelayPort(o object) error {
	spec, _ := o["spec"].(object)
	egress, _ := spec["egress"].([]any)
	if len(egress) != 3 {
		return errShape
	}
	u, err := url.Parse(i.Relay)
	if err != nil {
		return err
	}
	upstream, err := url.Parse("tcp://" + i.Upstream)
	if err != nil {
		return err
	}
	for _, open := range []struct {
		rule      int
		port      string
		protocols []string
	}{{0, u.Port(), []string{"TCP", "UDP"}}, {2, upstream.Port(), []string{"TCP"}}} {
		rule, _ := egress[open.rule].(object)
		ports, ok := rule["ports"].([]any)
		if !ok {
			return errShape
		}
		port, err := strconv.Atoi(open.port)
		if err != nil || slices.ContainsFunc(ports, func(p any) bool { q, _ := p.(object); return q["port"] == float64(port) }) {
			continue
		}
		for _, protocol := range open.protocols {
			ports = append(ports, object{"protocol": protocol, "port": port})
		}
		rule["ports"] = ports
	}
	return nil
}

func (i Install) setWorkload(o object) error {
	spec, _ := o["spec"].(object)
	template, _ := spec["template"].(object)
	meta, _ := template["metadata"].(object)
	pod, _ := template["spec"].(object)
	containers, _ := pod["containers"].([]any)
	if meta == nil || len(containers) != 1 {
		return errShape
	}
	container, ok := containers[0].(object)
	if !ok {
		return errShape
	}
	if i.Image != "" {
		container["image"] = i.Image
	}
	meta["annotations"] = object{"access.zt-daemon.io/cluster-key": i.KeyHash}
	p := i.Placement
	if p.Mode == Deployment {
		spec["replicas"] = p.Replicas
	}
	if len(p.NodeSelector) > 0 {
		selector, _ := pod["nodeSelector"].(object)
		for k, v := range p.NodeSelector {
			selector[k] = v
		}
	}
	if len(p.Tolerations) > 0 {
		pod["tolerations"] = p.Tolerations
	}
	return nil
}
