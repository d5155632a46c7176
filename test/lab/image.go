package lab

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
)

// Image is a container image of few files.
type Image struct {
	Name string // with its tag
	// Programs maps absolute paths in the image to executables of this machine.
	Programs map[string]string
	// Links maps absolute paths in the image to what they are symlinks to.
	Links map[string]string
	// Directories may be written by everybody.
	Directories []string
	Entrypoint  []string
	User        string
}

// Write makes an archive that `ctr images import` and `docker load` take.
func (i Image) Write(file string) error {
	var layer bytes.Buffer
	if err := i.writeLayer(&layer); err != nil {
		return fmt.Errorf("write image %s: %w", i.Name, err)
	}
	sum := sha256.Sum256(layer.Bytes())
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": i.Entrypoint, "User": i.User, "Env": []string{"PATH=/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{i.Name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("write image %s: %w", i.Name, err)
	}
	defer f.Close()
	archive := tar.NewWriter(f)
	for _, x := range []struct {
		name string
		data []byte
	}{{"manifest.json", manifest}, {"config.json", config}, {"layer.tar", layer.Bytes()}} {
		if err := writeEntry(archive, tar.Header{Name: x.name, Mode: 0o644, Size: int64(len(x.data))}, bytes.NewReader(x.data)); err != nil {
			return fmt.Errorf("write image %s: %w", i.Name, err)
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("write image %s: %w", i.Name, err)
	}
	return f.Close()
}

func (i Image) writeLayer(w io.Writer) error {
	layer := tar.NewWriter(w)
	dirs := map[string]int64{}
	for _, files := range []map[string]string{i.Programs, i.Links} {
		for name := range files {
			for d := path.Dir(name); d != "/"; d = path.Dir(d) {
				dirs[d] = 0o755
			}
		}
	}
	for _, d := range i.Directories {
		dirs[d] = 0o1777
	}
	for _, d := range slices.Sorted(maps.Keys(dirs)) {
		if err := writeEntry(layer, tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(d, "/") + "/", Mode: dirs[d]}, nil); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(i.Programs)) {
		b, err := os.ReadFile(i.Programs[name])
		if err != nil {
			return err
		}
		if err := writeEntry(layer, tar.Header{Name: strings.TrimPrefix(name, "/"), Mode: 0o755, Size: int64(len(b))}, bytes.NewReader(b)); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(i.Links)) {
		if err := writeEntry(layer, tar.Header{Typeflag: tar.TypeSymlink, Name: strings.TrimPrefix(name, "/"), Linkname: i.Links[name], Mode: 0o777}, nil); err != nil {
			return err
		}
	}
	return layer.Close()
}

func writeEntry(w *tar.Writer, h tar.Header, data io.Reader) error {
	if err := w.WriteHeader(&h); err != nil || data == nil {
		return err
	}
	_, err := io.Copy(w, data)
	return err
}
