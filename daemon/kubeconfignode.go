package daemon

import (
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// plainText matches what every YAML reader takes for a text without quotes.
// Readers of YAML 1.1, as kubectl's, also take words like "on" and "y" for
// truth values, and "1e3" or "1:30" for numbers: those are quoted.
var (
	plainText   = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./+=:-]*$`)
	truthOrNull = regexp.MustCompile(`^(?i:y|n|yes|no|on|off|true|false|null)$`)
)

// kubeText is a text, in quotes if anybody could take it for something else.
func kubeText(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	switch {
	case strings.HasSuffix(s, "\n"):
		n.Style = yaml.LiteralStyle
	case !plainText.MatchString(s) && !strings.HasPrefix(s, "--") || truthOrNull.MatchString(s) || strings.HasSuffix(s, ":"):
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

// kubeMap is a mapping of alternating keys (string) and values (*yaml.Node).
func kubeMap(fields ...any) *yaml.Node {
	m := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for i := 0; i < len(fields); i += 2 {
		m.Content = append(m.Content, kubeText(fields[i].(string)), fields[i+1].(*yaml.Node))
	}
	return m
}

func kubeList(items ...*yaml.Node) *yaml.Node {
	l := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: items}
	if len(items) == 0 {
		l.Style = yaml.FlowStyle
	}
	return l
}

// valueAt is the value of a key of a mapping; nil if m is none or has none.
func valueAt(m *yaml.Node, key string) *yaml.Node {
	m = resolveAlias(m)
	if m == nil || m.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if resolveAlias(m.Content[i]).Value == key {
			return m.Content[i+1]
		}
	}
	return nil
}

// scalarAt is the text at a path of keys; empty if there is none.
func scalarAt(m *yaml.Node, keys ...string) string {
	for _, key := range keys {
		m = valueAt(m, key)
	}
	if m = resolveAlias(m); m == nil || m.Kind != yaml.ScalarNode || m.Tag == "!!null" {
		return ""
	}
	return m.Value
}

func itemName(item *yaml.Node) string { return scalarAt(item, "name") }

func resolveAlias(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func nonEmpty(texts ...string) (some []string) {
	for _, t := range texts {
		if t != "" {
			some = append(some, t)
		}
	}
	return some
}
