package lab

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestImageWrite reads an archive back: what is in the layer, and with which mode.
func TestImageWrite(t *testing.T) {
	dir := t.TempDir()
	program, archive := filepath.Join(dir, "program"), filepath.Join(dir, "image.tar")
	if err := os.WriteFile(program, []byte("a program"), 0o600); err != nil {
		t.Fatal(err)
	}
	i := Image{
		Name: "registry.test/a:1", Programs: map[string]string{"/bin/a": program}, Links: map[string]string{"/bin/b": "a"},
		Directories: []string{"/tmp"}, Entrypoint: []string{"/bin/a"}, User: "1:1",
	}
	if err := i.Write(archive); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	files := entries(t, b)
	for name, text := range map[string]string{"manifest.json": `"RepoTags":["registry.test/a:1"]`, "config.json": `"User":"1:1"`} {
		if !strings.Contains(files[name].body, text) {
			t.Errorf("%s has no %s: %s", name, text, files[name].body)
		}
	}
	layer := entries(t, []byte(files["layer.tar"].body))
	for name, want := range map[string]entry{
		"bin/": {mode: 0o755}, "tmp/": {mode: 0o1777}, "bin/a": {mode: 0o755, body: "a program"}, "bin/b": {mode: 0o777, link: "a"},
	} {
		if got, ok := layer[name]; !ok || got != want {
			t.Errorf("%s is %+v, want %+v", name, got, want)
		}
	}
	if len(layer) != 4 {
		t.Errorf("the layer holds %v", layer)
	}
}

type entry struct {
	mode       int64
	link, body string
}

func entries(t *testing.T, archive []byte) map[string]entry {
	t.Helper()
	all := map[string]entry{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = entry{h.Mode, h.Linkname, string(body)}
	}
}
