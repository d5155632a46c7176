package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What the image says of itself; the Dockerfile says the same.
const (
	imageUser   = "65532:65532" // nobody's numbers: not root, and in no /etc/passwd
	entrypoint  = "/zt-daemon"
	title       = "zt-daemon"
	description = "Private reach to Kubernetes API servers; an OIDC login is the only key"
	licence     = "Apache-2.0"
	sourceURL   = "https://" + modulePath
)

// labels are the image's, by the names of the OCI image specification
// (annotations.md, "Pre-Defined Annotation Keys").
func labels(src source) map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":       title,
		"org.opencontainers.image.description": description,
		"org.opencontainers.image.licenses":    licence,
		"org.opencontainers.image.source":      sourceURL,
		"org.opencontainers.image.version":     src.version,
		"org.opencontainers.image.revision":    src.revision,
		"org.opencontainers.image.created":     src.created.Format(time.RFC3339),
	}
}

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
	typeEmpty    = "application/vnd.oci.empty.v1+json"
	typeSPDX     = "application/spdx+json"
)

// The documents of the OCI image specification 1.1, as far as they are used.
type (
	descriptor struct {
		MediaType    string            `json:"mediaType"`
		Digest       string            `json:"digest"`
		Size         int               `json:"size"`
		Platform     *platform         `json:"platform,omitempty"`
		ArtifactType string            `json:"artifactType,omitempty"`
		Annotations  map[string]string `json:"annotations,omitempty"`
	}
	platform struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	}
	index struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []descriptor      `json:"manifests"`
		Annotations   map[string]string `json:"annotations,omitempty"`
	}
	manifest struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		ArtifactType  string            `json:"artifactType,omitempty"`
		Config        descriptor        `json:"config"`
		Layers        []descriptor      `json:"layers"`
		Subject       *descriptor       `json:"subject,omitempty"`
		Annotations   map[string]string `json:"annotations,omitempty"`
	}
	imageConfig struct {
		Created      string        `json:"created"`
		Architecture string        `json:"architecture"`
		OS           string        `json:"os"`
		Config       processConfig `json:"config"`
		RootFS       rootFS        `json:"rootfs"`
		History      []history     `json:"history"`
	}
	processConfig struct {
		User       string            `json:"User"`
		Entrypoint []string          `json:"Entrypoint"`
		WorkingDir string            `json:"WorkingDir"`
		Labels     map[string]string `json:"Labels"`
	}
	rootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	history struct {
		Created   string `json:"created"`
		CreatedBy string `json:"created_by"`
	}
)

// layout is an OCI image layout in the making.
type layout struct {
	created time.Time
	blobs   map[string][]byte // by digest
}

// writeLayout makes the archive, and the descriptor of the image in it. The SBOM
// is an artifact whose subject is the image, which registries list as its
// referrer.
func writeLayout(src source, name reference, programs []*program, sbom []byte) ([]byte, descriptor, error) {
	l := &layout{src.created, map[string][]byte{}}
	image := index{SchemaVersion: 2, MediaType: typeIndex, Annotations: labels(src)}
	for _, p := range programs {
		d, err := l.addProgram(src, p)
		if err != nil {
			return nil, descriptor{}, err
		}
		image.Manifests = append(image.Manifests, d)
	}
	imageAt, err := l.addJSON(typeIndex, image)
	if err != nil {
		return nil, descriptor{}, err
	}
	sbomAt, err := l.addJSON(typeManifest, manifest{
		SchemaVersion: 2, MediaType: typeManifest, ArtifactType: typeSPDX,
		Config:      l.add(typeEmpty, []byte("{}")),
		Layers:      []descriptor{l.add(typeSPDX, sbom)},
		Subject:     &descriptor{MediaType: imageAt.MediaType, Digest: imageAt.Digest, Size: imageAt.Size},
		Annotations: map[string]string{"org.opencontainers.image.created": src.created.Format(time.RFC3339)},
	})
	if err != nil {
		return nil, descriptor{}, err
	}
	imageAt.Annotations = map[string]string{
		"org.opencontainers.image.ref.name": name.tag,      // the specification's: skopeo, oras, podman
		"io.containerd.image.name":          name.String(), // containerd's, which wants the whole of it
	}
	sbomAt.ArtifactType = typeSPDX
	archive, err := l.archive(index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{imageAt, sbomAt}})
	return archive, imageAt, err
}

// addProgram adds the image of one architecture.
func (l *layout) addProgram(src source, p *program) (descriptor, error) {
	layer, err := l.tar([]file{{entrypoint[1:], 0o755, p.code}})
	if err != nil {
		return descriptor{}, err
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed) // no name, no time
	if _, err := z.Write(layer); err != nil {
		return descriptor{}, err
	}
	if err := z.Close(); err != nil {
		return descriptor{}, err
	}
	created := src.created.Format(time.RFC3339)
	config, err := l.addJSON(typeConfig, imageConfig{
		Created: created, Architecture: p.arch, OS: "linux",
		Config:  processConfig{User: imageUser, Entrypoint: []string{entrypoint}, WorkingDir: "/", Labels: labels(src)},
		RootFS:  rootFS{"layers", []string{digest(layer)}},
		History: []history{{created, "go run ./deploy/image"}},
	})
	if err != nil {
		return descriptor{}, err
	}
	d, err := l.addJSON(typeManifest, manifest{
		SchemaVersion: 2, MediaType: typeManifest, Config: config,
		Layers: []descriptor{l.add(typeLayer, packed.Bytes())}, Annotations: labels(src),
	})
	d.Platform = &platform{p.arch, "linux"}
	return d, err
}

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func (l *layout) add(mediaType string, b []byte) descriptor {
	d := descriptor{MediaType: mediaType, Digest: digest(b), Size: len(b)}
	l.blobs[d.Digest] = b
	return d
}

func (l *layout) addJSON(mediaType string, v any) (descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	return l.add(mediaType, b), nil
}

// archive is the whole layout as one file.
func (l *layout) archive(top index) ([]byte, error) {
	b, err := json.Marshal(top)
	if err != nil {
		return nil, err
	}
	files := []file{{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"index.json", 0o644, b}}
	for at, blob := range l.blobs {
		files = append(files, file{"blobs/sha256/" + at[len("sha256:"):], 0o644, blob})
	}
	slices.SortFunc(files[2:], func(a, b file) int { return strings.Compare(a.name, b.name) })
	return l.tar(files)
}

type file struct {
	name string
	mode int64
	data []byte
}

// tar is an archive of files that belong to root and are of the commit's time.
func (l *layout) tar(files []file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: l.created}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
