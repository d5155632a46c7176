package kube

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxWord bounds a key or text of which the stream needs to know what it is.
const maxWord = 4096 // bytes; a continue token of etcd's keys is shorter

// usedMetadata is what is kept of an object's metadata. Who may create objects
// may write as much as the API server takes into the rest.
var usedMetadata = map[string]bool{
	"name": true, "namespace": true, "uid": true, "resourceVersion": true, "generation": true, "deletionTimestamp": true,
}

// stream reads JSON piece by piece, so that of a list no more than one object is
// in memory, and of that no more than is used and allowed. It sees to strings and
// brackets alone; what is kept is parsed by encoding/json.
type stream struct {
	in   *bufio.Reader
	most int // bytes of an object that are kept

	kept []byte // of the object being read
	over bool   // some of it was not kept
}

func newStream(r io.Reader, most int) *stream {
	return &stream{in: bufio.NewReader(r), most: most}
}

// next is the next byte that is no space.
func (s *stream) next() (byte, error) {
	for {
		c, err := s.in.ReadByte()
		if err != nil || c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			return c, err
		}
	}
}

// expect reads one byte, which must be want.
func (s *stream) expect(want byte) error {
	c, err := s.next()
	if err == nil && c != want {
		err = fmt.Errorf("invalid character %q, want %q", c, want)
	}
	return err
}

// members calls each with the key of every member of an object; each reads the value.
func (s *stream) members(each func(key string) error) error {
	if err := s.expect('{'); err != nil {
		return err
	}
	c, err := s.next()
	for first := true; err == nil; first = false {
		if c == '}' && first {
			return nil
		}
		if c != '"' {
			return fmt.Errorf("invalid character %q, want a key", c)
		}
		var key string
		if key, err = s.restOfWord(); err != nil {
			break
		}
		if err = s.expect(':'); err != nil {
			break
		}
		if err = each(key); err != nil {
			break
		}
		if c, err = s.next(); err != nil || c == '}' {
			break
		}
		if c != ',' {
			return fmt.Errorf("invalid character %q, want ',' or '}'", c)
		}
		c, err = s.next()
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// elements calls each for every element of an array; each reads it. null is an
// array without any.
func (s *stream) elements(each func() error) error {
	c, err := s.next()
	if err == nil && c == 'n' {
		return s.scalar(func(byte) bool { return true })
	}
	if err == nil && c != '[' {
		return fmt.Errorf("invalid character %q, want '['", c)
	}
	if err == nil {
		c, err = s.next()
	}
	for first := true; err == nil; first = false {
		if c == ']' && first {
			return nil
		}
		if first {
			err = s.in.UnreadByte()
		}
		if err == nil {
			err = each()
		}
		if err == nil {
			c, err = s.next()
		}
		if err != nil || c == ']' {
			break
		}
		if c != ',' {
			return fmt.Errorf("invalid character %q, want ',' or ']'", c)
		}
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// word reads a short text.
func (s *stream) word() (string, error) {
	if err := s.expect('"'); err != nil {
		return "", err
	}
	return s.restOfWord()
}

func (s *stream) restOfWord() (string, error) {
	raw := []byte{'"'}
	err := s.quoted(func(c byte) bool {
		raw = append(raw, c)
		return len(raw) <= maxWord
	})
	if err != nil {
		return "", err
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return "", err
	}
	return text, nil
}

// quoted reads a text to its closing quote, and ends early when take says so.
func (s *stream) quoted(take func(byte) bool) error {
	for escaped := false; ; {
		c, err := s.in.ReadByte()
		if err != nil {
			return err
		}
		if !take(c) {
			return fmt.Errorf("a text of more than %d bytes", maxWord)
		}
		switch {
		case escaped:
			escaped = false
		case c == '\\':
			escaped = true
		case c == '"':
			return nil
		}
	}
}

// keep adds to what is kept of the object.
func (s *stream) keep(text ...byte) {
	if s.over = s.over || len(s.kept)+len(text) > s.most; !s.over {
		s.kept = append(s.kept, text...)
	}
}

// value reads a value of any kind, and keeps it or not.
func (s *stream) value(keep bool) error {
	take := func(c byte) bool {
		if keep {
			s.keep(c)
		}
		return true
	}
	for depth := 0; ; {
		c, err := s.next()
		if err != nil {
			return err
		}
		take(c)
		switch c {
		case '"':
			err = s.quoted(take)
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case ',', ':':
			// between values
		default:
			err = s.scalar(take)
		}
		if err != nil {
			return err
		}
		if depth <= 0 {
			return nil // that it is one value, encoding/json sees
		}
	}
}

// scalar reads the rest of a number or word, to what ends it.
func (s *stream) scalar(take func(byte) bool) error {
	for {
		c, err := s.in.ReadByte()
		if err != nil {
			return err
		}
		if bytes.IndexByte([]byte(" \t\r\n,:]}[{\""), c) >= 0 {
			take(' ') // two that only a space parts stay two
			return s.in.UnreadByte()
		}
		take(c)
	}
}

// member begins a member of an object that is kept.
func (s *stream) member(key string) {
	if s.kept[len(s.kept)-1] != '{' {
		s.keep(',')
	}
	quoted, _ := json.Marshal(key) // a string always marshals
	s.keep(quoted...)
	s.keep(':')
}

// object reads an object, and returns it with its resource version. One that is
// larger than is kept has an Err instead of its Raw.
func (s *stream) object() (o Object, version string, err error) {
	if cap(s.kept) > maxKept {
		s.kept = nil // the large ones are rare
	}
	s.kept, s.over = append(s.kept[:0], '{'), false
	var metadata struct {
		Name            string `json:"name"`
		UID             string `json:"uid"`
		ResourceVersion string `json:"resourceVersion"`
	}
	err = s.members(func(key string) error {
		s.member(key)
		if key != "metadata" {
			return s.value(true)
		}
		begin := len(s.kept)
		s.keep('{')
		if err := s.members(func(key string) error {
			used := usedMetadata[key]
			if used {
				s.member(key)
			}
			return s.value(used)
		}); err != nil {
			return err
		}
		s.keep('}')
		if s.over {
			return nil
		}
		return json.Unmarshal(s.kept[begin:], &metadata)
	})
	if err != nil {
		return Object{}, "", err
	}
	s.keep('}')
	o = Object{Name: metadata.Name, UID: metadata.UID, Raw: s.kept}
	if !s.over && !json.Valid(s.kept) {
		return Object{}, "", errors.New("an object is no JSON")
	}
	if s.over {
		o.Raw, o.Err = nil, fmt.Errorf("is larger than %d bytes", s.most)
	}
	return o, metadata.ResourceVersion, nil
}
