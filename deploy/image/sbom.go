package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// What is used of SPDX 2.3's JSON form.
type (
	spdxDocument struct {
		Version           string             `json:"spdxVersion"`
		DataLicense       string             `json:"dataLicense"`
		ID                string             `json:"SPDXID"`
		Name              string             `json:"name"`
		DocumentNamespace string             `json:"documentNamespace"`
		CreationInfo      spdxCreation       `json:"creationInfo"`
		Packages          []spdxPackage      `json:"packages"`
		Relationships     []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID               string          `json:"SPDXID"`
		Name             string          `json:"name"`
		Version          string          `json:"versionInfo"`
		FileName         string          `json:"packageFileName,omitempty"`
		Purpose          string          `json:"primaryPackagePurpose"`
		Supplier         string          `json:"supplier"`
		DownloadLocation string          `json:"downloadLocation"`
		FilesAnalyzed    bool            `json:"filesAnalyzed"`
		Checksums        []spdxChecksum  `json:"checksums,omitempty"`
		SourceInfo       string          `json:"sourceInfo,omitempty"`
		LicenseConcluded string          `json:"licenseConcluded"`
		LicenseDeclared  string          `json:"licenseDeclared"`
		CopyrightText    string          `json:"copyrightText"`
		ExternalRefs     []spdxReference `json:"externalRefs,omitempty"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxReference struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

const noAssertion = "NOASSERTION"

// writeSBOM describes the programs and what is linked into them, by what the
// linker wrote into them.
func writeSBOM(ctx context.Context, src source, programs []*program) ([]byte, error) {
	dirs, err := moduleDirs(ctx, src)
	if err != nil {
		return nil, err
	}
	whole := sha256.New()
	doc := spdxDocument{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: title + "-" + src.version,
		CreationInfo: spdxCreation{src.created.Format(time.RFC3339), []string{"Tool: " + modulePath + "/deploy/image"}},
	}
	linked := map[string]debug.Module{} // by identifier
	for _, p := range programs {
		sum := sha256.Sum256(p.code)
		whole.Write(sum[:])
		id := "SPDXRef-linux-" + p.arch
		doc.Packages = append(doc.Packages, spdxPackage{
			ID: id, Name: title, Version: src.version, FileName: entrypoint, Purpose: "APPLICATION",
			Supplier:         noAssertion,
			DownloadLocation: "git+" + sourceURL + "@" + src.revision,
			Checksums:        []spdxChecksum{{"SHA256", hex.EncodeToString(sum[:])}},
			SourceInfo:       "built for linux/" + p.arch + " by " + p.info.GoVersion,
			LicenseConcluded: licence, LicenseDeclared: licence, CopyrightText: noAssertion,
			ExternalRefs: []spdxReference{purl(modulePath, src.version)},
		})
		doc.Relationships = append(doc.Relationships, spdxRelationship{doc.ID, "DESCRIBES", id})
		for _, m := range append(p.modules(), standardLibrary(p)) {
			linked[moduleID(m)] = m
			doc.Relationships = append(doc.Relationships, spdxRelationship{id, "DEPENDS_ON", moduleID(m)})
		}
	}
	doc.DocumentNamespace = fmt.Sprintf("%s/spdx/%s-%x", sourceURL, doc.Name, whole.Sum(nil))
	for _, m := range linked {
		p, err := modulePackage(m, dirs[m.Path])
		if err != nil {
			return nil, err
		}
		doc.Packages = append(doc.Packages, p)
	}
	slices.SortFunc(doc.Packages[len(programs):], func(a, b spdxPackage) int { return strings.Compare(a.ID, b.ID) })
	b, err := json.MarshalIndent(doc, "", "  ")
	return append(b, '\n'), err
}

// modules are those that are linked into p.
func (p *program) modules() []debug.Module {
	var all []debug.Module
	for _, m := range p.info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		all = append(all, *m)
	}
	return all
}

// standardLibrary is Go's, which is in every program and in no list of modules.
func standardLibrary(p *program) debug.Module {
	return debug.Module{Path: "stdlib", Version: strings.TrimPrefix(p.info.GoVersion, "go")}
}

// moduleDirs are where the sources of all modules lie.
func moduleDirs(ctx context.Context, src source) (map[string]string, error) {
	list, err := output(ctx, src.dir, "go", "list", "-m", "-f", "{{with .Replace}}{{.Path}} {{.Dir}}{{else}}{{.Path}} {{.Dir}}{{end}}", "all")
	if err != nil {
		return nil, err
	}
	goroot, err := output(ctx, src.dir, "go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	dirs := map[string]string{"stdlib": goroot}
	for line := range strings.Lines(list) {
		if path, dir, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			dirs[path] = dir
		}
	}
	return dirs, nil
}

func modulePackage(m debug.Module, dir string) (spdxPackage, error) {
	if dir == "" {
		return spdxPackage{}, fmt.Errorf("sources of module %s, which is linked into the program, are not here", m.Path)
	}
	declared, err := licenceOf(dir)
	if err != nil {
		return spdxPackage{}, fmt.Errorf("licence of %s: %w", m.Path, err)
	}
	p := spdxPackage{
		ID: moduleID(m), Name: m.Path, Version: m.Version, Purpose: "LIBRARY", Supplier: noAssertion,
		DownloadLocation: noAssertion, LicenseConcluded: noAssertion, LicenseDeclared: declared, CopyrightText: noAssertion,
		ExternalRefs: []spdxReference{purl(m.Path, m.Version)},
	}
	if m.Sum != "" { // a hash over the module's files, which is no checksum of a file
		p.SourceInfo = "go.sum: " + m.Sum
	}
	return p, nil
}

var notInID = strings.NewReplacer("/", "-", "_", "-", "~", "-", "+", "-", "@", "-")

func moduleID(m debug.Module) string {
	return "SPDXRef-" + notInID.Replace(m.Path+"-"+m.Version)
}

// purl is a module's package URL (package-url/purl-spec, type golang).
func purl(path, version string) spdxReference {
	return spdxReference{"PACKAGE-MANAGER", "purl", "pkg:golang/" + strings.ToLower(path) + "@" + strings.ReplaceAll(version, "+", "%2B")}
}
