package daemon

import (
	"slices"
	"strings"
	"testing"
)

func TestNodeSettingsKubernetes(t *testing.T) {
	const base = "network: abcdefghabcdefghabcdefghabcdefgh\ncluster: c1\nrelay: https://r.test\nupstream: kubernetes.default.svc:443\n"
	for _, tc := range []struct {
		more, fault string
		want        *NodeKubernetes
	}{
		{"", "", nil},
		{"kubernetes: {policyConfigMap: zt-policy, accessGrants: true}\n", "", &NodeKubernetes{"zt-policy", true}},
		{"kubernetes: {accessGrants: true}\n", "", &NodeKubernetes{"", true}},
		{"kubernetes: {policyConfigMap: \"a b\"}\n", "policyConfigMap", nil},
		{"kubernetes: {policyConfigMap: ../x}\n", "policyConfigMap", nil},
		{"kubernetes: {configMap: x}\n", "configMap", nil},
	} {
		s, err := ParseNodeSettings([]byte(base + tc.more))
		if (err == nil) != (tc.fault == "") || err != nil && !strings.Contains(err.Error(), tc.fault) {
			t.Errorf("%q: %v, want %q", tc.more, err, tc.fault)
		}
		if err == nil && (s.Kubernetes == nil) != (tc.want == nil) || tc.want != nil && *s.Kubernetes != *tc.want {
			t.Errorf("%q: %+v, want %+v", tc.more, s.Kubernetes, tc.want)
		}
	}
	if b, err := (NodeSettings{}).Marshal(); err != nil || slices.Contains(strings.Fields(string(b)), "kubernetes:") {
		t.Errorf("outside a pod the section is written: %s, %v", b, err)
	}
}
