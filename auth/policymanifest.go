package auth

import (
	"bytes"
	"errors"
	"io"

	"go.yaml.in/yaml/v3"
)

// policyKey is the key of a ConfigMap that holds a policy.
const policyKey = "policy.yaml"

// ParsePolicyManifest is ParsePolicy for what people keep in git: the policy
// itself, or manifests with one ConfigMap that holds it. Lines are the file's.
func ParsePolicyManifest(text []byte) (*Policy, error) {
	policy, before, err := policyInManifest(text)
	if err != nil {
		return nil, err
	}
	p, err := ParsePolicy(policy)
	if fault, ok := errors.AsType[*PolicyError](err); ok && fault.Line > 0 {
		fault.Line += before
	}
	return p, err
}

// policyInManifest finds the policy in text, and how many lines stand before it.
func policyInManifest(text []byte) (policy []byte, before int, err error) {
	if len(text) > MaxPolicyBytes {
		return text, 0, nil // ParsePolicy says so
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	manifests := false
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return text, 0, nil // ParsePolicy says what and where
		}
		if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
			continue
		}
		root := policyLines{doc.Content[0]}
		kind := root.field("kind")
		if kind == nil || root.field("apiVersion") == nil {
			continue
		}
		manifests = true
		data := root.field("data")
		if kind.Value != "ConfigMap" || data == nil {
			continue
		}
		value := policyLines{data}.field(policyKey)
		switch {
		case value == nil:
			continue
		case value.Kind != yaml.ScalarNode || value.Anchor != "":
			return nil, 0, &PolicyError{Line: value.Line, Detail: policyKey + " is not a text: write it as a block, `" + policyKey + ": |`"}
		case policy != nil:
			return nil, 0, &PolicyError{Line: value.Line, Detail: "a second ConfigMap holds " + policyKey}
		}
		policy, before = []byte(value.Value), value.Line-1
		if value.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
			before = value.Line // the text begins below its key
		}
	}
	if manifests && policy == nil {
		return nil, 0, &PolicyError{Detail: "none of the manifests is a ConfigMap with the key " + policyKey}
	}
	if policy == nil {
		return text, 0, nil
	}
	return policy, before, nil
}
