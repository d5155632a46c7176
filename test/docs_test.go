package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var documents = []string{"README.md", "SECURITY.md", "ARCHITECTURE.md", "deploy/README.md"}

// TestDocumentedCommands runs the help of every zt command that the documents
// show, and looks up each flag that they show with it.
func TestDocumentedCommands(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+string(filepath.Separator), "./cmd/...")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	command := regexp.MustCompile("`((?:zt-daemon|zt-relay) [^`]*)`")
	flag := regexp.MustCompile(`--[a-z][a-z-]*|\B-[a-z]\b`)
	seen := 0
	for _, name := range documents {
		text, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range command.FindAllStringSubmatch(string(text), -1) {
			words := strings.Fields(m[1])
			var path []string // the command, without its arguments and flags
			for _, w := range words[1:] {
				if !regexp.MustCompile(`^[a-z]+$`).MatchString(w) {
					break
				}
				path = append(path, w)
			}
			if len(path) == 0 || path[0] == "help" {
				continue
			}
			// A word after the command may be an argument, such as a cluster's name.
			var help []byte
			for n := len(path); n > 0; n-- {
				if help, err = exec.CommandContext(t.Context(), filepath.Join(bin, words[0]), append(path[:n:n], "--help")...).CombinedOutput(); err == nil {
					break
				}
			}
			if err != nil || !strings.Contains(string(help), "Usage:") {
				t.Errorf("%s shows `%s`, which has no help: %v\n%s", name, m[1], err, help)
				continue
			}
			seen++
			for _, f := range flag.FindAllString(m[1], -1) {
				if !regexp.MustCompile(regexp.QuoteMeta(f) + `\b`).Match(help) {
					t.Errorf("%s shows `%s`, whose help knows no %s", name, m[1], f)
				}
			}
		}
	}
	if seen < 10 {
		t.Errorf("%d commands were found in the documents; the pattern that looks for them is wrong", seen)
	}
}

// TestDocumentedTests looks up each test that SECURITY.md names.
func TestDocumentedTests(t *testing.T) {
	var source strings.Builder
	for _, pattern := range []string{"../*/*_test.go", "../*/*/*_test.go", "../test/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			source.Write(b)
		}
	}
	text, err := os.ReadFile("../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("`(Test[A-Za-z0-9]+)(?:/([^`…]+)…?)?`").FindAllStringSubmatch(string(text), -1) {
		if !strings.Contains(source.String(), "func "+m[1]+"(t *testing.T)") {
			t.Errorf("SECURITY.md names %s, which is not there", m[1])
		}
		if part := strings.ReplaceAll(m[2], "_", " "); part != "" && !strings.Contains(source.String(), `{"`+part) {
			t.Errorf("SECURITY.md names the part %q of %s, which is not there", part, m[1])
		}
	}
}
