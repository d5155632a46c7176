package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
)

const modulePath = "github.com/zt-daemon/zt"

// program is zt-daemon built for one architecture.
type program struct {
	arch string // GOARCH
	code []byte
	info *debug.BuildInfo
}

// buildProgram builds zt-daemon of src into the file path. Only what the tree
// says decides what comes out: the environment's own build settings do not count.
func buildProgram(ctx context.Context, src source, arch, path string) (*program, error) {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -X main.linkedVersion="+src.version, "-o", path, "./cmd/zt-daemon")
	cmd.Dir = src.dir
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0",
		"GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=", "GOEXPERIMENT=", "GOFIPS140=off", "GOWORK=off")
	if _, err := outputOf(cmd); err != nil {
		return nil, err
	}
	code, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("build information of zt-daemon for %s: %w", arch, err)
	}
	return &program{arch, code, info}, nil
}
