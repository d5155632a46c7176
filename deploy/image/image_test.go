package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestReproducible makes the image twice, of clones of this tree in two places and
// under other settings of the go command.
func TestReproducible(t *testing.T) {
	if testing.Short() {
		t.Skip("builds zt-daemon four times")
	}
	var archives, sboms [2][]byte
	for i := range archives {
		dir := filepath.Join(t.TempDir(), strings.Repeat("deeper/", i), "tree")
		if out, err := exec.CommandContext(t.Context(), "git", "clone", "--quiet", "--no-hardlinks", "../..", dir).CombinedOutput(); err != nil {
			t.Skipf("this tree cannot be cloned: %v\n%s", err, out)
		}
		if i == 1 {
			t.Setenv("GOAMD64", "v3")
			t.Setenv("GOFLAGS", "-ldflags=-X=main.linkedVersion=other")
			t.Setenv("TZ", "Asia/Kathmandu")
		}
		out := filepath.Join(t.TempDir(), "image.tar")
		if err := run(t.Context(), settings{dir: dir, name: "registry.test/zt-daemon", archive: out}); err != nil {
			t.Fatal(err)
		}
		archives[i] = read(t, out)
		sboms[i] = read(t, strings.TrimSuffix(out, ".tar")+".spdx.json")
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the same commit gave two images")
	}
	if !bytes.Equal(sboms[0], sboms[1]) {
		t.Error("the same commit gave two SBOMs")
	}

	i := openImage(t, archives[0])
	if runtime.GOOS != "linux" {
		return
	}
	path := filepath.Join(t.TempDir(), "zt-daemon")
	if err := os.WriteFile(path, i.program(t, runtime.GOARCH), 0o700); err != nil {
		t.Fatal(err)
	}
	var v struct{ Version string }
	if out, err := exec.CommandContext(t.Context(), path, "version", "-o", "json").Output(); err != nil {
		t.Fatal(err)
	} else if err := json.Unmarshal(out, &v); err != nil {
		t.Fatal(err)
	}
	if want := i.top.Manifests[0].Annotations["org.opencontainers.image.ref.name"]; v.Version != want {
		t.Errorf("the program in image %s says that it is %s", want, v.Version)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// image is an archive taken apart.
type image struct {
	files map[string][]byte
	top   index
	seen  map[string]bool // digests that something names
}

func openImage(t *testing.T, archive []byte) *image {
	t.Helper()
	i := &image{files: untar(t, archive), seen: map[string]bool{}}
	if err := json.Unmarshal(i.files["index.json"], &i.top); err != nil {
		t.Fatal(err)
	}
	return i
}

// untar checks also that nothing in the archive is anybody's or of now.
func untar(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		} else if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || time.Since(h.ModTime) < 0 || h.Typeflag != tar.TypeReg {
			t.Errorf("%s is odd: %+v", h.Name, h)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// blob returns what d names, and holds it to d.
func (i *image) blob(t *testing.T, d descriptor) []byte {
	t.Helper()
	b, ok := i.files["blobs/"+strings.Replace(d.Digest, ":", "/", 1)]
	if !ok || digest(b) != d.Digest || len(b) != d.Size {
		t.Fatalf("%s: %d bytes of %s, want %d", d.Digest, len(b), digest(b), d.Size)
	}
	i.seen[d.Digest] = true
	return b
}

func (i *image) decode(t *testing.T, d descriptor, v any) {
	t.Helper()
	if err := json.Unmarshal(i.blob(t, d), v); err != nil {
		t.Fatalf("%s: %v", d.Digest, err)
	}
}

// program is the one file of an architecture's image.
func (i *image) program(t *testing.T, arch string) []byte {
	t.Helper()
	var all index
	i.decode(t, i.top.Manifests[0], &all)
	at := slices.IndexFunc(all.Manifests, func(d descriptor) bool { return d.Platform != nil && *d.Platform == platform{arch, "linux"} })
	if at < 0 {
		t.Fatalf("no image for %s in %+v", arch, all.Manifests)
	}
	var m manifest
	i.decode(t, all.Manifests[at], &m)
	var c imageConfig
	i.decode(t, m.Config, &c)
	if c.Architecture != arch || c.OS != "linux" || c.Config.User != imageUser || !slices.Equal(c.Config.Entrypoint, []string{"/zt-daemon"}) {
		t.Errorf("%s is configured by %+v", arch, c)
	}
	if !maps.Equal(c.Config.Labels, all.Annotations) || !maps.Equal(m.Annotations, all.Annotations) || len(all.Annotations) != 7 {
		t.Errorf("%s: labels %v, annotations %v and %v", arch, c.Config.Labels, m.Annotations, all.Annotations)
	}
	if len(m.Layers) != 1 || len(c.RootFS.DiffIDs) != 1 || len(c.History) != 1 {
		t.Fatalf("%s: layers %v, %v, history %v", arch, m.Layers, c.RootFS, c.History)
	}
	z, err := gzip.NewReader(bytes.NewReader(i.blob(t, m.Layers[0])))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if digest(layer) != c.RootFS.DiffIDs[0] {
		t.Errorf("%s: the layer is %s, the configuration names %s", arch, digest(layer), c.RootFS.DiffIDs[0])
	}
	files := untar(t, layer)
	if len(files) != 1 {
		t.Errorf("%s: %d files in the layer", arch, len(files))
	}
	return files["zt-daemon"]
}

var testSource = source{
	dir: "../..", version: "1.2.3", revision: "0123456789abcdef0123456789abcdef01234567",
	created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
}

// testPrograms are this test itself, as if built for two architectures.
func testPrograms(t *testing.T) []*program {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	deps := []*debug.Module{
		{Path: "golang.org/x/sys", Version: "v0.1.0", Sum: "h1:abc="},
		{Path: "example.test/replaced", Version: "v1.0.0", Replace: &debug.Module{Path: "github.com/spf13/cobra", Version: "v1.2.0+incompatible", Sum: "h1:def="}},
	}
	return []*program{
		{"amd64", []byte("code of amd64"), &debug.BuildInfo{GoVersion: "go1.26.6", Deps: deps}},
		{"arm64", read(t, exe), info},
	}
}

func TestLayout(t *testing.T) {
	programs := testPrograms(t)
	sbom := []byte("{}\n")
	archive, at, err := writeLayout(testSource, reference{"registry.test/zt-daemon", "t"}, programs, sbom)
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := writeLayout(testSource, reference{"registry.test/zt-daemon", "t"}, programs, sbom)
	if err != nil || !bytes.Equal(archive, again) {
		t.Errorf("written twice, it differs (%v)", err)
	}
	i := openImage(t, archive)
	if got := string(i.files["oci-layout"]); got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout: %s", got)
	}
	if len(i.top.Manifests) != 2 || i.top.Manifests[0].Digest != at.Digest {
		t.Fatalf("index.json: %s", i.files["index.json"])
	}
	names := map[string]string{"io.containerd.image.name": "registry.test/zt-daemon:t", "org.opencontainers.image.ref.name": "t"}
	if !maps.Equal(i.top.Manifests[0].Annotations, names) {
		t.Errorf("named by %v, want %v", i.top.Manifests[0].Annotations, names)
	}
	for _, p := range programs {
		if !bytes.Equal(i.program(t, p.arch), p.code) {
			t.Errorf("%s: not the program that was put in", p.arch)
		}
	}

	referrer := i.top.Manifests[1]
	var m manifest
	i.decode(t, referrer, &m)
	if m.Subject == nil || m.Subject.Digest != at.Digest || m.ArtifactType != typeSPDX || referrer.ArtifactType != typeSPDX {
		t.Errorf("SBOM %+v refers to %+v, want %s", referrer, m.Subject, at.Digest)
	}
	if string(i.blob(t, m.Config)) != "{}" || len(m.Layers) != 1 || !bytes.Equal(i.blob(t, m.Layers[0]), sbom) {
		t.Errorf("SBOM's manifest: %+v", m)
	}
	if len(i.files) != len(i.seen)+2 {
		t.Errorf("%d files, of which %d blobs are named", len(i.files), len(i.seen))
	}
}

func TestSBOM(t *testing.T) {
	b, err := writeSBOM(t.Context(), testSource, testPrograms(t))
	if err != nil {
		t.Fatal(err)
	}
	var doc spdxDocument
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Version != "SPDX-2.3" || doc.CreationInfo.Created != "2026-01-02T03:04:05Z" || !regexp.MustCompile(`^https://\S+/zt-daemon-1\.2\.3-[0-9a-f]{64}$`).MatchString(doc.DocumentNamespace) {
		t.Errorf("document %s %s of %s", doc.Version, doc.DocumentNamespace, doc.CreationInfo.Created)
	}
	packages := map[string]spdxPackage{}
	for _, p := range doc.Packages {
		if _, twice := packages[p.ID]; twice || !regexp.MustCompile(`^SPDXRef-[a-zA-Z0-9.-]+$`).MatchString(p.ID) {
			t.Errorf("identifier %q is there twice, or none", p.ID)
		}
		packages[p.ID] = p
	}
	for _, r := range doc.Relationships {
		_, from := packages[r.Element]
		_, to := packages[r.Related]
		if !to || !from && r.Element != doc.ID {
			t.Errorf("relationship %v of what is not there", r)
		}
	}
	amd64 := packages["SPDXRef-linux-amd64"]
	if len(amd64.Checksums) != 1 || "sha256:"+amd64.Checksums[0].Value != digest([]byte("code of amd64")) {
		t.Errorf("checksums of the program: %v", amd64.Checksums)
	}
	for _, want := range []struct{ id, licence, info, purl string }{
		{"SPDXRef-golang.org-x-sys-v0.1.0", "BSD-3-Clause", "go.sum: h1:abc=", "pkg:golang/golang.org/x/sys@v0.1.0"},
		{"SPDXRef-github.com-spf13-cobra-v1.2.0-incompatible", "Apache-2.0", "go.sum: h1:def=", "pkg:golang/github.com/spf13/cobra@v1.2.0%2Bincompatible"},
		{"SPDXRef-stdlib-1.26.6", "BSD-3-Clause", "", "pkg:golang/stdlib@1.26.6"},
	} {
		p := packages[want.id]
		if p.LicenseDeclared != want.licence || p.SourceInfo != want.info || len(p.ExternalRefs) != 1 || p.ExternalRefs[0].Locator != want.purl {
			t.Errorf("%s: %+v, want %+v", want.id, p, want)
		}
		if r := (spdxRelationship{"SPDXRef-linux-amd64", "DEPENDS_ON", want.id}); !slices.Contains(doc.Relationships, r) {
			t.Errorf("no relationship %v", r)
		}
	}
}

func TestLicences(t *testing.T) {
	for _, test := range []struct {
		name  string
		texts map[string]string
		want  string
	}{
		{"none", nil, "NOASSERTION"},
		{"unknown", map[string]string{"LICENSE": "all rights reserved"}, "NOASSERTION"},
		{"not a licence's file", map[string]string{"licenses.go": "Mozilla Public License Version 2.0"}, "NOASSERTION"},
		{"ours", map[string]string{"LICENSE": string(read(t, "../../LICENSE"))}, "Apache-2.0"},
		{"over lines", map[string]string{"COPYING": "// Mozilla Public License\n// Version 2.0"}, "MPL-2.0"},
		{"two clauses", map[string]string{"LICENCE.txt": bsd}, "BSD-2-Clause"},
		{"three clauses", map[string]string{"LICENSE.md": bsd + "Neither the name of its author may be used."}, "BSD-3-Clause"},
		{"two files", map[string]string{"LICENSE-BSD": bsd, "LICENSE-MPL": "Mozilla Public License Version 2.0"}, "BSD-2-Clause AND MPL-2.0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range test.texts {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := licenceOf(dir); err != nil || got != test.want {
				t.Errorf("%q, %v, want %q", got, err, test.want)
			}
		})
	}
}

const bsd = `Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following is met. `

func TestImageName(t *testing.T) {
	for name, want := range map[string]string{
		"zt-daemon":                        "zt-daemon:1.2.3",
		"registry.test/zt-daemon":          "registry.test/zt-daemon:1.2.3",
		"registry.test:5000/a/zt-daemon":   "registry.test:5000/a/zt-daemon:1.2.3",
		"registry.test:5000/zt-daemon:dev": "registry.test:5000/zt-daemon:dev",
		"":                                 "",
		"zt-daemon:":                       "",
		"Zt":                               "",
		"zt-daemon@sha256:00":              "",
		"zt daemon":                        "",
		"zt-daemon:a/b":                    "",
	} {
		got, err := imageName(name, "1.2.3")
		if err != nil != (want == "") || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v, want %q", name, got, err, want)
		}
	}
	if r, err := imageName("zt-daemon", "1.2.3+dirty"); err == nil {
		t.Errorf("%v has a version that no tag can be", r)
	}
}

// TestDockerfile holds the Dockerfile to what this program does.
func TestDockerfile(t *testing.T) {
	text := strings.ReplaceAll(string(read(t, "Dockerfile")), "\\\n", " ")
	_, final, ok := strings.Cut(text, "\nFROM scratch\n")
	if !ok {
		t.Fatal("the image is not made from scratch")
	}
	instruction := func(name string) string {
		m := regexp.MustCompile(`(?m)^`+name+` +(.*)$`).FindAllStringSubmatch(final, -1)
		if len(m) != 1 {
			t.Fatalf("%d instructions %s", len(m), name)
		}
		return m[0][1]
	}
	for name, want := range map[string]string{
		"USER": imageUser, "ENTRYPOINT": `["` + entrypoint + `"]`, "WORKDIR": "/", "COPY": "--from=build " + entrypoint + " " + entrypoint,
	} {
		if got := instruction(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	want := labels(testSource)
	for name, arg := range map[string]string{"version": "$VERSION", "revision": "$REVISION", "created": "$CREATED"} {
		want["org.opencontainers.image."+name] = arg
	}
	got := map[string]string{}
	for _, m := range regexp.MustCompile(`(\S+)="([^"]*)"`).FindAllStringSubmatch(instruction("LABEL"), -1) {
		got[m[1]] = m[2]
	}
	if !maps.Equal(got, want) {
		t.Errorf("labels %v, want %v", got, want)
	}
}
