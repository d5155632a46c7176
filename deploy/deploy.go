// Package deploy knows how a node comes into a Kubernetes cluster: on which
// machines it fits, what objects it is made of, and the line that installs it.
//
// The manifests under kustomize are rendered from the Helm chart and are part of
// this package. It talks to no cluster and must not know networks or policies.
package deploy

import "embed"

//go:generate sh render.sh

//go:embed kustomize/*/*.yaml
var base embed.FS

const (
	// Name is the name of the workload and of the Helm release.
	Name = "zt"
	// KeySecret holds a node's cluster.key and head.jws.
	KeySecret = "zt-cluster-key"
	// PolicyConfigMap holds policy.yaml.
	PolicyConfigMap = "zt-policy"
	// NodeConfigMap holds node.yaml; an installation renders it.
	NodeConfigMap = "zt-node"
	// Upstream is the API server as pods reach it.
	Upstream = "kubernetes.default.svc:443"
	// Selector selects the workloads; PodSelector their pods.
	Selector    = "app.kubernetes.io/name=zt"
	PodSelector = Selector + ",app.kubernetes.io/component=node"
)

// Install is what one cluster's installation sets. Upstream, Image and Placement
// may be left out where it only changes one that is there.
type Install struct {
	Namespace string
	Network   string
	Cluster   string
	Relay     string // https URL
	Upstream  string // host:port
	KeyHash   string // of the cluster's public key: pods start anew when it changes
	Image     string // NAME[:TAG][@DIGEST]
	Placement Placement
}
