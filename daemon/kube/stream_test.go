package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
)

func TestStreamObject(t *testing.T) {
	for _, tc := range []struct {
		name, in, raw, err string // err of the object
	}{
		{"what is used of metadata", `{"kind":"K","metadata":{"annotations":{"name":"x"},"name":"a","managedFields":[{"f:metadata":{"}":"\"]"}}],"uid":"u","resourceVersion":"7","generation":2,"labels":null},"spec":{"a":[1, 2.5e3,true,null,{}]}}`,
			`{"kind":"K","metadata":{"name":"a","uid":"u","resourceVersion":"7","generation":2 },"spec":{"a":[1 ,2.5e3 ,true ,null ,{}]}}`, ""},
		{"metadata last", `{"data":{"k":"a\\"},"metadata":{"name":"a","uid":"u","resourceVersion":"7"}}`, "", ""},
		{"spaces", " {\n\t\"metadata\" : { \"name\":\"a\", \"uid\" :\"u\",\"resourceVersion\":\"7\" } , \"x\" : [ ] }",
			`{"metadata":{"name":"a","uid":"u","resourceVersion":"7"},"x":[]}`, ""},
		{"escapes", `{"metadata":{"name":"\u0061","uid":"u","resourceVersion":"7"},"s":"\\\"}\u00e4","t":"\\"}`, "", ""},
		{"a large annotation", `{"metadata":{"annotations":{"a":"` + strings.Repeat("x", 1000) + `"},"name":"a","uid":"u","resourceVersion":"7"}}`,
			`{"metadata":{"name":"a","uid":"u","resourceVersion":"7"}}`, ""},
		{"too large", `{"metadata":{"name":"a","uid":"u","resourceVersion":"7"},"spec":"` + strings.Repeat("x", 1000) + `"}`, "", "larger than 500 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStream(strings.NewReader(tc.in+` {"metadata":{"name":"next"}}`), 500)
			o, version, err := s.object()
			if err != nil || o.Name != "a" || o.UID != "u" || version != "7" {
				t.Fatalf("%q %q version %q, %v; want a, u, 7", o.Name, o.UID, version, err)
			}
			switch {
			case tc.err != "":
				if o.Err == nil || !strings.Contains(o.Err.Error(), tc.err) || o.Raw != nil {
					t.Errorf("error %v with %d bytes, want %q and none", o.Err, len(o.Raw), tc.err)
				}
			case tc.raw != "" && string(o.Raw) != tc.raw:
				t.Errorf("kept\n%s\nwant\n%s", o.Raw, tc.raw)
			case tc.raw == "":
				var got, want any
				if json.Unmarshal(o.Raw, &got) != nil || json.Unmarshal([]byte(tc.in), &want) != nil || fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("kept %s", o.Raw)
				}
			}
			if o, _, err = s.object(); err != nil || o.Name != "next" {
				t.Errorf("then %q, %v; want next", o.Name, err)
			}
		})
	}
}

func TestStreamFaults(t *testing.T) {
	for _, in := range []string{
		``, `null`, `[]`, `{`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, `{"a":1,}`, `{"a" 1}`, `{a:1}`, `{"a":"x`, `{"a":[1}`, `{"a":1 2}`, `{"a":tru}`,
		`{"metadata":7}`, `{"metadata":null}`, `{"metadata":{"name":7}}`, `{"metadata":{"name"`, `{"` + strings.Repeat("k", maxWord) + `":1}`,
	} {
		if o, _, err := newStream(strings.NewReader(in), 500).object(); err == nil {
			t.Errorf("%.60q is taken: %s", in, o.Raw)
		}
	}
}

// TestStreamMemory reads what somebody with the right to create objects can have
// a node read: its memory is that of one object's kept part.
func TestStreamMemory(t *testing.T) {
	text := fmt.Sprintf(`{"metadata":{"annotations":{"a":%q},"name":"a","uid":"u","resourceVersion":"7"},"spec":{"reason":"r"}}`, strings.Repeat("x", 256<<10))
	var before, after runtime.MemStats
	const objects = 50
	s := newStream(io.MultiReader(func() (all []io.Reader) {
		for range objects {
			all = append(all, strings.NewReader(text))
		}
		return all
	}()...), maxObject)
	runtime.ReadMemStats(&before)
	for range objects {
		if o, _, err := s.object(); err != nil || o.Err != nil {
			t.Fatal(err, o.Err)
		}
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 256<<10 {
		t.Errorf("%d bytes were allocated for %d objects of %d bytes, want less than one object's", got, objects, len(text))
	}
}

// FuzzStream has somebody who may write objects, or what stands in the API
// server's place, send any bytes: what is kept is what encoding/json reads there.
func FuzzStream(f *testing.F) {
	for _, in := range []string{object("a", "1"), `{"metadata":{"annotations":{"a":"}"},"name":"a"},"x":[{"y":"\\"},1.5e3]}`, `{"a":null}`, `{"metadata":{},"metadata":{"name":"b"}}`, `{"a":[1 2]}`} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, _, err := newStream(bytes.NewReader(b), maxObject).object()
		if err != nil {
			return
		}
		if !json.Valid(o.Raw) {
			t.Fatalf("%q is no JSON", o.Raw)
		}
		var want struct {
			Metadata map[string]json.RawMessage `json:"metadata"`
			Spec     any                        `json:"spec"`
		}
		if json.NewDecoder(bytes.NewReader(b)).Decode(&want) != nil {
			return // a skipped value need not be valid
		}
		got := want
		got.Metadata, got.Spec = nil, nil
		if err := json.Unmarshal(o.Raw, &got); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got.Spec) != fmt.Sprint(want.Spec) {
			t.Errorf("spec %v, want %v", got.Spec, want.Spec)
		}
	})
}
