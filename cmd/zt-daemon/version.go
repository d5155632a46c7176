package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// linkedVersion is what the linker was told (-X main.linkedVersion=1.2.3), as the
// Makefile and deploy/image do; empty otherwise.
var linkedVersion string

// buildVersion is what this program knows about itself.
type buildVersion struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"` // the tree had changes
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// programVersion reads what the linker noted.
func programVersion() buildVersion {
	v := buildVersion{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if m := info.Main.Version; linkedVersion != "" {
		v.Version = linkedVersion
	} else if m != "" && m != "(devel)" {
		v.Version = strings.TrimPrefix(m, "v")
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Commit = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func versionCommand(env *environment) *cobra.Command {
	var out outputFlag
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  zt-daemon version\n  zt-daemon version -o json",
		Args:    withArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			v := programVersion()
			if out.json {
				return printJSON(env.stdout, v)
			}
			fmt.Fprintf(env.stdout, "zt-daemon %s (%s, %s)\n", v.Version, v.Go, v.Platform)
			return nil
		},
	}
	out.addTo(cmd)
	return cmd
}
