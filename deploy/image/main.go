// Command image writes the container image of zt-daemon: an OCI image layout in
// a tar archive, for linux/amd64 and linux/arm64, and its SBOM in SPDX 2.3.
//
// It owns what is in the image and how that is written. It needs the go command
// and git, no container engine. The same commit and Go version give the same
// bytes, wherever the tree lies.
//
//	go run ./deploy/image
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var s settings
	flag.StringVar(&s.name, "name", "zt-daemon", "the image's name; without a tag, the version is its tag")
	flag.StringVar(&s.version, "version", "", "the version (default what deploy/version.sh prints)")
	flag.StringVar(&s.archive, "out", "bin/zt-image.tar", "where the image goes; its SBOM goes beside it, as .spdx.json")
	flag.Parse()
	if err := run(ctx, s); err != nil {
		fmt.Fprintf(os.Stderr, "image: %v\n", err)
		os.Exit(1)
	}
}

// settings are what the command line says.
type settings struct {
	dir                    string // where to look for the tree; empty: the working directory
	name, version, archive string
}

// source is the tree that the image is made from.
type source struct {
	dir      string // of the main module
	version  string
	revision string    // the commit
	created  time.Time // when that was committed
}

func run(ctx context.Context, s settings) error {
	src, err := findSource(ctx, s.dir, s.version)
	if err != nil {
		return err
	}
	name, err := imageName(s.name, src.version)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "zt-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	var programs []*program
	for _, arch := range []string{"amd64", "arm64"} {
		p, err := buildProgram(ctx, src, arch, filepath.Join(work, arch))
		if err != nil {
			return err
		}
		programs = append(programs, p)
	}
	sbom, err := writeSBOM(ctx, src, programs)
	if err != nil {
		return fmt.Errorf("SBOM: %w", err)
	}
	archive, index, err := writeLayout(src, name, programs, sbom)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(s.archive), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(s.archive, archive, 0o644); err != nil {
		return err
	}
	beside := strings.TrimSuffix(s.archive, ".tar") + ".spdx.json"
	if err := os.WriteFile(beside, sbom, 0o644); err != nil {
		return err
	}
	fmt.Printf("%s  %s@%s\n%s\n", s.archive, name, index.Digest, beside)
	return nil
}

// findSource asks go and git about the tree around dir. An empty version is asked
// for too.
func findSource(ctx context.Context, dir, version string) (source, error) {
	dir, err := output(ctx, dir, "go", "list", "-m", "-f", "{{.Dir}}", modulePath)
	if err != nil {
		return source{}, err
	}
	src := source{dir: dir, version: version}
	if src.version == "" {
		if src.version, err = output(ctx, dir, "sh", "deploy/version.sh"); err != nil {
			return source{}, err
		}
	}
	commit, err := output(ctx, dir, "git", "log", "-1", "--format=%H %ct")
	if err != nil {
		return source{}, fmt.Errorf("the image says which commit it is of: %w", err)
	}
	revision, seconds, _ := strings.Cut(commit, " ")
	at, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return source{}, fmt.Errorf("git log says %q, not a commit and its time", commit)
	}
	src.revision, src.created = revision, time.Unix(at, 0).UTC()
	return src, nil
}

var (
	validTag  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	validName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*$`)
)

// reference is an image's full name.
type reference struct{ name, tag string }

func (r reference) String() string { return r.name + ":" + r.tag }

// imageName completes a name by the version, if it has no tag.
func imageName(name, version string) (reference, error) {
	r := reference{name, version}
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		r = reference{name[:colon], name[colon+1:]}
	}
	if !validName.MatchString(r.name) || !validTag.MatchString(r.tag) {
		return reference{}, fmt.Errorf("%q is no image name of the form NAME[:TAG], or its tag %q no tag", name, r.tag)
	}
	return r, nil
}

// output runs a command in dir and returns what it prints.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	return outputOf(cmd)
}

func outputOf(cmd *exec.Cmd) (string, error) {
	out, err := cmd.Output()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(failed.Stderr))
	} else if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(out)), nil
}
