package auth

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const policyMaxDepth = 16 // of nested YAML; a policy needs five

// PolicyError is a fault of a policy file.
type PolicyError struct {
	Line   int // counted from 1; 0 = of the whole file
	Detail string
	cause  error
	file   string // what it is a fault of; empty = the policy
}

func (e *PolicyError) Error() string {
	file := e.file
	if file == "" {
		file = "policy"
	}
	if e.Line == 0 {
		return file + ": " + e.Detail
	}
	return fmt.Sprintf("%s: line %d: %s", file, e.Line, e.Detail)
}

// Unwrap returns the error behind Detail, if there is one.
func (e *PolicyError) Unwrap() error { return e.cause }

// Hint says what to do about it.
func (e *PolicyError) Hint() string {
	var h interface{ Hint() string }
	if errors.As(e.cause, &h) && h.Hint() != "" {
		return h.Hint()
	}
	if e.file != "" {
		return "mend that line"
	}
	return "mend that line; until then the rules that were in force before stay in force"
}

// policyLines finds the line of an entry of one of the top-level lists.
type policyLines struct{ root *yaml.Node }

func (l policyLines) field(name string) *yaml.Node {
	for n := 0; n+1 < len(l.root.Content); n += 2 {
		if l.root.Content[n].Value == name {
			return l.root.Content[n+1]
		}
	}
	return nil
}

func (l policyLines) line(name string) int {
	if f := l.field(name); f != nil {
		return f.Line
	}
	return 1
}

// has reports whether the mapping name holds a field.
func (l policyLines) has(name, field string) bool {
	f := l.field(name)
	return f != nil && policyLines{f}.field(field) != nil
}

// fault places err at entry n of the list name.
func (l policyLines) fault(err error, name string, n int) error {
	e := &PolicyError{Line: l.line(name), Detail: fmt.Sprintf("%s %d: %v", policyEntry[name], n+1, err), cause: err}
	if f := l.field(name); f != nil && n < len(f.Content) {
		e.Line = f.Content[n].Line
	}
	return e
}

var policyEntry = map[string]string{"issuers": "issuer", "openers": "opener", "rules": "rule", "deny": "deny entry", "cases": "case"}

// parsePolicyYAML decodes one YAML document into a struct, strictly: names of fields
// must be exact and come once, at every depth. It reads the node tree itself, as
// a decoder to Go values has forgotten the lines. Anchors, aliases and tags are
// refused: a policy that a person must be able to judge has no use for them, and
// aliases can unfold without bound.
func parsePolicyYAML[T any](text []byte, into *T) (policyLines, error) {
	if len(text) > MaxPolicyBytes {
		return policyLines{}, &PolicyError{Detail: fmt.Sprintf("%d bytes, want at most %d", len(text), MaxPolicyBytes)}
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return policyLines{}, &PolicyError{Detail: "is empty"}
	} else if err != nil {
		return policyLines{}, policySyntax(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		if err != nil {
			return policyLines{}, policySyntax(err)
		}
		return policyLines{}, &PolicyError{Detail: "holds more than one YAML document"}
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return policyLines{}, &PolicyError{Line: 1, Detail: "is not a mapping of " + policyFields(reflect.TypeFor[T]())}
	}
	return policyLines{doc.Content[0]}, policyDecode(doc.Content[0], reflect.ValueOf(into).Elem(), "", 0)
}

// policySyntax takes the line out of the parser's text ("yaml: line 3: …").
func policySyntax(err error) error {
	detail := strings.TrimPrefix(err.Error(), "yaml: ")
	e := &PolicyError{Detail: detail}
	if rest, ok := strings.CutPrefix(detail, "line "); ok {
		if number, text, ok := strings.Cut(rest, ": "); ok {
			if line, err := strconv.Atoi(number); err == nil {
				e.Line, e.Detail = line, text
			}
		}
	}
	return e
}

// policyDecode sets v, which is addressable, from node n.
func policyDecode(n *yaml.Node, v reflect.Value, path string, depth int) error {
	fault := func(format string, args ...any) error {
		return &PolicyError{Line: n.Line, Detail: fmt.Sprintf(format, args...)}
	}
	name := path
	if name == "" {
		name = "the file"
	}
	switch {
	case depth > policyMaxDepth:
		return fault("nested deeper than %d", policyMaxDepth)
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return fault("%s: anchors and aliases are not read here: write it out", name)
	case n.Style&yaml.TaggedStyle != 0:
		return fault("%s: tags are not read here", name)
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		return fault("%s has no value: give one, or leave it out", name)
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if n.Kind != yaml.ScalarNode {
			return fault("%s is not a single value", name)
		}
		if err := u.UnmarshalText([]byte(n.Value)); err != nil {
			return fault("%s: %v", name, err)
		}
		return nil
	}
	switch v.Kind() {
	case reflect.Struct:
		return policyDecodeStruct(n, v, path, depth)
	case reflect.Map:
		return policyDecodeMap(n, v, path, depth)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			return fault("%s is not a list", name)
		}
		list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, entry := range n.Content {
			if err := policyDecode(entry, list.Index(i), fmt.Sprintf("%s[%d]", path, i), depth+1); err != nil {
				return err
			}
		}
		v.Set(list)
		return nil
	}
	if n.Kind != yaml.ScalarNode {
		return fault("%s is not a single value", name)
	}
	switch v.Kind() {
	case reflect.String: // a number or boolean counts as the text that is written
		v.SetString(n.Value)
	case reflect.Bool:
		switch {
		case n.ShortTag() == "!!bool" && n.Value == "true":
			v.SetBool(true)
		case n.ShortTag() == "!!bool" && n.Value == "false":
			v.SetBool(false)
		default:
			return fault("%s is %q, want true or false", name, n.Value)
		}
	case reflect.Uint16:
		u, err := strconv.ParseUint(n.Value, 10, 16)
		if err != nil || n.ShortTag() != "!!int" {
			return fault("%s is %q, want a number from 0 to 65535", name, n.Value)
		}
		v.SetUint(u)
	default:
		return fault("%s cannot be read", name)
	}
	return nil
}

// policyPairs yields the keys and values of a mapping and refuses a key that
// comes twice.
func policyPairs(n *yaml.Node, path string, do func(name string, at *yaml.Node, value *yaml.Node) error) error {
	if n.Kind != yaml.MappingNode {
		return &PolicyError{Line: n.Line, Detail: fmt.Sprintf("%s is not a mapping of names to values", strings.TrimPrefix(path, "."))}
	}
	lines := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if k.Kind != yaml.ScalarNode || k.Anchor != "" || k.Style&yaml.TaggedStyle != 0 || k.ShortTag() == "!!merge" {
			return &PolicyError{Line: k.Line, Detail: "a field's name is not plain text"}
		}
		if first, twice := lines[k.Value]; twice {
			return &PolicyError{Line: k.Line, Detail: fmt.Sprintf("duplicate field %q, first on line %d", strings.TrimPrefix(path+"."+k.Value, "."), first)}
		}
		lines[k.Value] = k.Line
		if err := do(k.Value, k, n.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

func policyDecodeStruct(n *yaml.Node, v reflect.Value, path string, depth int) error {
	return policyPairs(n, path, func(name string, at, value *yaml.Node) error {
		full := strings.TrimPrefix(path+"."+name, ".")
		for f := range strictFields(v.Type()) {
			if f.name == name {
				return policyDecode(value, v.Field(f.index), full, depth+1)
			}
		}
		return &PolicyError{Line: at.Line, Detail: fmt.Sprintf("unknown field %q, want one of %s", full, policyFields(v.Type()))}
	})
}

// policyFields are the fields that a struct has, for people.
func policyFields(t reflect.Type) string {
	var known []string
	for f := range strictFields(t) {
		known = append(known, f.name)
	}
	return strings.Join(known, ", ")
}

func policyDecodeMap(n *yaml.Node, v reflect.Value, path string, depth int) error {
	m := reflect.MakeMap(v.Type())
	err := policyPairs(n, path, func(name string, _, value *yaml.Node) error {
		element := reflect.New(v.Type().Elem()).Elem()
		if err := policyDecode(value, element, path+"."+name, depth+1); err != nil {
			return err
		}
		m.SetMapIndex(reflect.ValueOf(name), element)
		return nil
	})
	v.Set(m)
	return err
}
