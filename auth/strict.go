package auth

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"
)

// strictMaxDepth bounds nesting outside `extra`; signed documents need six.
const strictMaxDepth = 32

var (
	strictText            = reflect.TypeFor[encoding.TextUnmarshaler]()
	strictJSONUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	strictRaw             = reflect.TypeFor[json.RawMessage]()
)

// strictJSON decodes one JSON value into v, a pointer to a struct. At every
// depth an unknown field, a field written twice, a field in another case and a
// null are errors that name the field: two readers of one signed document must
// not see two contents. A json.RawMessage field takes any JSON.
//
// encoding/json alone matches names in any case, keeps the last of two, and
// replaces bad UTF-8.
func strictJSON(b []byte, v any) error {
	if !utf8.Valid(b) {
		return errors.New("not UTF-8")
	}
	if !json.Valid(b) { // Decoder.Token alone is laxer than this
		return errors.New("not JSON")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := strictWalk(dec, reflect.TypeOf(v).Elem(), "", 0); err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// strictWalk reads the next value of dec, which is meant for type t.
func strictWalk(dec *json.Decoder, t reflect.Type, path string, depth int) error {
	if depth > strictMaxDepth {
		return fmt.Errorf("%s: nested deeper than %d", path, strictMaxDepth)
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == strictRaw {
		var skipped json.RawMessage
		return dec.Decode(&skipped)
	}
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	if tok == nil {
		return fmt.Errorf("%s is null: leave it out instead", strictName(path))
	}
	delim, composite := tok.(json.Delim)
	if !composite {
		return nil // json.Unmarshal checks that a scalar fits
	}
	opaque := reflect.PointerTo(t).Implements(strictText) || reflect.PointerTo(t).Implements(strictJSONUnmarshaler)
	switch {
	case delim == '[' && t.Kind() == reflect.Slice && !opaque:
		for n := 0; dec.More(); n++ {
			if err := strictWalk(dec, t.Elem(), fmt.Sprintf("%s[%d]", path, n), depth+1); err != nil {
				return err
			}
		}
	case delim == '{' && (t.Kind() == reflect.Struct || t.Kind() == reflect.Map) && !opaque:
		if err := strictMembers(dec, t, path, depth); err != nil {
			return err
		}
	default:
		kind := "a list"
		if delim == '{' {
			kind = "an object"
		}
		return fmt.Errorf("%s is %s, which it must not be", strictName(path), kind)
	}
	_, err = dec.Token() // the closing delimiter
	return err
}

func strictMembers(dec *json.Decoder, t reflect.Type, path string, depth int) error {
	seen := make(map[string]bool)
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		name, ok := tok.(string)
		if !ok {
			return fmt.Errorf("%s: a field has no name", strictName(path))
		}
		at := strings.TrimPrefix(path+"."+name, ".")
		if seen[name] {
			return fmt.Errorf("duplicate field %q", at)
		}
		seen[name] = true
		next := t
		if t.Kind() == reflect.Map {
			next = t.Elem()
		} else if next, err = strictField(t, name, at); err != nil {
			return err
		}
		if err := strictWalk(dec, next, at, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// strictField finds the type of the field whose JSON name is exactly name.
func strictField(t reflect.Type, name, at string) (reflect.Type, error) {
	for f := range strictFields(t) {
		if f.name == name {
			return f.typ, nil
		}
		if strings.EqualFold(f.name, name) {
			return nil, fmt.Errorf("field %q is written in the wrong case, want %q", at, f.name)
		}
	}
	return nil, fmt.Errorf("unknown field %q", at)
}

type strictFieldType struct {
	name  string
	index int
	typ   reflect.Type
}

// strictFields yields the fields of struct t that have a name in JSON.
func strictFields(t reflect.Type) func(func(strictFieldType) bool) {
	return func(yield func(strictFieldType) bool) {
		for n := range t.NumField() {
			f := t.Field(n)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !f.IsExported() || name == "" || name == "-" {
				continue
			}
			if !yield(strictFieldType{name: name, index: n, typ: f.Type}) {
				return
			}
		}
	}
}

func strictName(path string) string {
	if path == "" {
		return "the document"
	}
	return path
}
