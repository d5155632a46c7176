package daemon

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write what the tests get into testdata")

const testNetwork = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func testEntry(t testing.TB, cluster string) KubeconfigEntry {
	t.Helper()
	ca, err := os.ReadFile("testdata/kubeconfig/ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	return KubeconfigEntry{
		Cluster: cluster, Network: testNetwork, Port: 21000, CA: string(ca),
		TLSName: "kubernetes", Command: "/usr/local/bin/zt-daemon",
	}
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run with -update to write it)", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (run with -update and look at the diff); got:\n%s", path, got)
	}
}

// tempKubeconfig is a kubeconfig file in a directory of its own.
func tempKubeconfig(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	return path
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// noLeftovers checks that neither locks nor temporary files stayed.
func noLeftovers(t testing.TB, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".lock") || strings.HasPrefix(e.Name(), ".zt-tmp-") {
			t.Errorf("%s was left", e.Name())
		}
	}
}

func TestKubeconfigMerge(t *testing.T) {
	for _, name := range []string{"empty", "comment", "commented", "wide", "edited", "keep", "json", "crlf", "rewritten", "spaced"} {
		t.Run(name, func(t *testing.T) {
			in := readFile(t, "testdata/kubeconfig/"+name+".in.yaml")
			path := tempKubeconfig(t, in)
			e := testEntry(t, "c1")
			e.KeepUser = name == "keep"
			k := Kubeconfig{Files: []string{path}}
			changed, err := k.Merge(t.Context(), []KubeconfigEntry{e}, "")
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(changed, []string{path}) {
				t.Errorf("changed %q", changed)
			}
			merged := readFile(t, path)
			golden(t, "testdata/kubeconfig/"+name+".golden", []byte(merged))
			if runtime.GOOS != "windows" {
				if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
					t.Errorf("mode is %v, want 0640 as it was (%v)", info.Mode(), err)
				}
			}
			noLeftovers(t, path)

			// The same again changes nothing, and writes nothing.
			before, _ := os.Stat(path)
			if changed, err := k.Merge(t.Context(), []KubeconfigEntry{e}, ""); err != nil || len(changed) != 0 {
				t.Errorf("the second time: changed %q, %v", changed, err)
			}
			if after, _ := os.Stat(path); !os.SameFile(before, after) {
				t.Error("the file was written though nothing changed")
			}

			if _, err := k.Remove(t.Context(), []string{"zt-c1"}); err != nil {
				t.Fatal(err)
			}
			left, err := parseKubeFile(path, []byte(readFile(t, path)))
			if err != nil {
				t.Fatal(err)
			}
			for _, section := range kubeSections {
				if left.find(section, "zt-c1") != nil {
					t.Errorf("after Remove %s still has zt-c1", section.list)
				}
			}
			if got := readFile(t, path); name == "spaced" && got != in {
				t.Errorf("after Merge and Remove it is not what it was:\n%s", got)
			}
		})
	}
}

func TestKubeconfigNewFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "config")
	k := Kubeconfig{Files: []string{path}}
	if _, err := k.Merge(t.Context(), []KubeconfigEntry{testEntry(t, "c1"), testEntry(t, "c2")}, "zt-c2"); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/kubeconfig/new.golden", []byte(readFile(t, path)))
	if runtime.GOOS != "windows" {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode is %v, want 0600 (%v)", info.Mode(), err)
		}
	}
	rendered, err := RenderKubeconfig([]KubeconfigEntry{testEntry(t, "c1"), testEntry(t, "c2")}, "zt-c2")
	if err != nil || string(rendered) != readFile(t, path) {
		t.Errorf("RenderKubeconfig differs from a new file: %v\n%s", err, rendered)
	}
}

func TestKubeconfigSymlink(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "dotfiles", "kube")
	if err := os.Mkdir(filepath.Dir(target), 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "config")
	if err := os.Symlink(filepath.Join("dotfiles", "kube"), link); err != nil {
		t.Skipf("cannot make a symbolic link: %v", err)
	}
	k := Kubeconfig{Files: []string{link}}
	for _, what := range []string{"a target that is not there", "a target that is"} {
		e := testEntry(t, "c1")
		e.Port += uint16(len(what))
		if _, err := k.Merge(t.Context(), []KubeconfigEntry{e}, ""); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if to, err := os.Readlink(link); err != nil || to != filepath.Join("dotfiles", "kube") {
			t.Errorf("%s: the link is %q now, %v", what, to, err)
		}
		if !strings.Contains(readFile(t, target), "zt-c1") {
			t.Errorf("%s was not written", what)
		}
		noLeftovers(t, link)
		noLeftovers(t, target)
	}
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink("loop", loop); err != nil {
		t.Fatal(err)
	}
	if _, err := (Kubeconfig{Files: []string{loop}}).Merge(t.Context(), []KubeconfigEntry{testEntry(t, "c1")}, ""); err == nil {
		t.Error("a link to itself was written")
	}
}

func TestKubeconfigLock(t *testing.T) {
	path := tempKubeconfig(t, "")
	lock := path + ".lock"
	if err := os.WriteFile(lock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k := Kubeconfig{Files: []string{path}, LockWait: 150 * time.Millisecond}
	entries := []KubeconfigEntry{testEntry(t, "c1")}
	_, err := k.Merge(t.Context(), entries, "")
	locked, ok := errors.AsType[*KubeconfigLockedError](err)
	if !ok || locked.Lock != lock || !strings.Contains(err.Error(), lock) || !strings.Contains(locked.Hint(), lock) {
		t.Fatalf("got %v, want the lock file named", err)
	}
	if readFile(t, path) != "" {
		t.Error("the file was written under another's lock")
	}
	if _, err := os.Stat(lock); err != nil {
		t.Error("another's lock was removed")
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Kubeconfig{Files: k.Files}).Merge(ctx, entries, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while it waits: got %v", err)
	}

	// It goes away while we wait.
	released := make(chan struct{})
	go func() {
		defer close(released)
		time.Sleep(100 * time.Millisecond)
		os.Remove(lock)
	}()
	if _, err := (Kubeconfig{Files: k.Files}).Merge(t.Context(), entries, ""); err != nil {
		t.Error(err)
	}
	<-released
	noLeftovers(t, path)
}

func TestKubeconfigMalformed(t *testing.T) {
	for name, text := range map[string]string{
		"not YAML":          "a: [",
		"not a mapping":     "- a\n",
		"two documents":     "kind: Config\n---\nkind: Config\n",
		"other kind":        "kind: Pod\n",
		"other version":     "apiVersion: v2\n",
		"key twice":         "kind: Config\nkind: Config\n",
		"section no list":   "clusters: {a: b}\n",
		"entry no mapping":  "users: [a]\n",
		"entry no name":     "users: [{user: {}}]\n",
		"two of one name":   "contexts: [{name: a}, {name: a}]\n",
		"alias bomb":        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
		"context no text":   "current-context: [a]\n",
		"control character": "kind: \x01\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := tempKubeconfig(t, text)
			_, err := Kubeconfig{Files: []string{path}}.Merge(t.Context(), []KubeconfigEntry{testEntry(t, "c1")}, "")
			bad, ok := errors.AsType[*KubeconfigError](err)
			if !ok || bad.Path != path {
				t.Errorf("got %v, want an error that names the file", err)
			}
			if readFile(t, path) != text {
				t.Error("the file was changed")
			}
			noLeftovers(t, path)
		})
	}
}

// An anchor inside an entry that is replaced would leave its aliases hanging.
func TestKubeconfigRefusesToBreakAliases(t *testing.T) {
	in := strings.Replace(readFile(t, "testdata/kubeconfig/edited.in.yaml"), "server: https://127.0.0.1:1", "server: &s https://127.0.0.1:1", 1) +
		"- name: other\n  user: {token: *s}\n"
	path := tempKubeconfig(t, in)
	_, err := Kubeconfig{Files: []string{path}}.Merge(t.Context(), []KubeconfigEntry{testEntry(t, "c1")}, "")
	if _, ok := errors.AsType[*KubeconfigError](err); !ok {
		t.Errorf("got %v", err)
	}
	if readFile(t, path) != in {
		t.Error("the file was changed")
	}
}

func TestKubeconfigForeign(t *testing.T) {
	for section, text := range map[string]string{
		"clusters": "clusters: [{name: zt-c1, cluster: {server: 'https://127.0.0.1:1'}}]\n",
		"contexts": "contexts: [{name: zt-c1, context: {cluster: a, user: b}}]\n",
		"users":    "users: [{name: zt-c1, user: {exec: {command: aws, args: [credential]}}}]\n",
	} {
		t.Run(section, func(t *testing.T) {
			path := tempKubeconfig(t, text)
			k := Kubeconfig{Files: []string{path}}
			_, err := k.Merge(t.Context(), []KubeconfigEntry{testEntry(t, "c1")}, "")
			foreign, ok := errors.AsType[*ForeignEntryError](err)
			if !ok || foreign.Section != section || foreign.Network != "" {
				t.Fatalf("Merge: got %v", err)
			}
			if _, err := k.Remove(t.Context(), []string{"zt-c1"}); !errors.As(err, &foreign) {
				t.Errorf("Remove: got %v", err)
			}
			if readFile(t, path) != text {
				t.Error("the file was changed")
			}
			e := testEntry(t, "c1")
			e.Name = "zt-mine"
			if _, err := k.Merge(t.Context(), []KubeconfigEntry{e}, ""); err != nil {
				t.Errorf("under another name: %v", err)
			}
		})
	}
	t.Run("of another network", func(t *testing.T) {
		path := tempKubeconfig(t, "")
		k := Kubeconfig{Files: []string{path}}
		if _, err := k.Merge(t.Context(), []KubeconfigEntry{testEntry(t, "c1")}, ""); err != nil {
			t.Fatal(err)
		}
		e := testEntry(t, "c1")
		e.Network = strings.Repeat("b", 32)
		_, err := k.Merge(t.Context(), []KubeconfigEntry{e}, "")
		if foreign, ok := errors.AsType[*ForeignEntryError](err); !ok || foreign.Network != testNetwork {
			t.Errorf("got %v, want the other network named", err)
		}
	})
}

func TestKubeconfigSeveralFiles(t *testing.T) {
	dir := t.TempDir()
	absent, a, b := filepath.Join(dir, "absent", "x"), filepath.Join(dir, "a"), filepath.Join(dir, "b")
	k := Kubeconfig{Files: []string{absent, a, b}}
	// None exists: the last is made, as kubectl does.
	if _, err := k.Merge(t.Context(), []KubeconfigEntry{testEntry(t, "c1")}, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(a); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a file that was not needed was made")
	}
	if _, err := os.Stat(filepath.Dir(absent)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a directory that was not needed was made")
	}
	// Entries are changed where they are; new ones go to the first file there is.
	if err := os.WriteFile(a, []byte("kind: Config\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	moved := testEntry(t, "c1")
	moved.Port = 29000
	changed, err := k.Merge(t.Context(), []KubeconfigEntry{moved, testEntry(t, "c2")}, "zt-c2")
	if err != nil || !slices.Equal(changed, []string{a, b}) {
		t.Fatalf("changed %q, %v; want both", changed, err)
	}
	inA, inB := readFile(t, a), readFile(t, b)
	if !strings.Contains(inB, "29000") || strings.Contains(inB, "zt-c2") || !strings.Contains(inA, "zt-c2") ||
		strings.Contains(inA, "zt-c1") || !strings.Contains(inA, "current-context: zt-c2") {
		t.Errorf("a:\n%s\nb:\n%s", inA, inB)
	}
	// A file that kubectl could not read is an error, whichever it is.
	if err := os.WriteFile(b, []byte("kind: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Merge(t.Context(), []KubeconfigEntry{testEntry(t, "c3")}, ""); err == nil {
		t.Error("a malformed file was passed over")
	}
	if readFile(t, a) != inA {
		t.Error("the sound file was changed")
	}
	noLeftovers(t, a)
}

func TestKubeconfigReadOnly(t *testing.T) {
	path := tempKubeconfig(t, "kind: Config\n")
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := (Kubeconfig{Files: []string{path}}).Merge(t.Context(), []KubeconfigEntry{testEntry(t, "c1")}, ""); err == nil {
		t.Error("a read-only file was replaced")
	}
}

func TestKubeconfigKeepUser(t *testing.T) {
	in := readFile(t, "testdata/kubeconfig/keep.in.yaml")
	const aws = "arn:aws:eks:eu-west-1:1:cluster/c1"
	keep := testEntry(t, "c1")
	keep.KeepUser = true
	two := in + "- name: other\n  user: {token: x}\n"
	two = strings.Replace(two, "  name: c1\n", "  name: c1\n- context: {cluster: '"+aws+"', user: other}\n  name: also\n", 1)
	named := keep
	named.User = "other"
	unknown := keep
	unknown.User = "nobody"
	for _, c := range []struct {
		name, in string
		entry    KubeconfigEntry
		user     string // empty: an error
	}{
		{"the only user of that CA", in, keep, aws},
		{"two users of that CA", two, keep, ""},
		{"named", two, named, "other"},
		{"named, and not there", two, unknown, ""},
		{"none", "", keep, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := tempKubeconfig(t, c.in)
			k := Kubeconfig{Files: []string{path}}
			_, err := k.Merge(t.Context(), []KubeconfigEntry{c.entry}, "")
			if c.user == "" {
				if err == nil || AsLocalError(err).Hint() == "" {
					t.Errorf("got %v, want an error with a hint", err)
				}
				return
			} else if err != nil {
				t.Fatal(err)
			}
			f, err := parseKubeFile(path, []byte(readFile(t, path)))
			if err != nil {
				t.Fatal(err)
			}
			if got := scalarAt(f.find(contextsSection, "zt-c1"), "context", "user"); got != c.user {
				t.Errorf("user is %q, want %q", got, c.user)
			}
			if f.find(usersSection, "zt-c1") != nil {
				t.Error("a user of ours was written")
			}
			// What the context keeps is kept, also when the name is not said again.
			if _, err := k.Merge(t.Context(), []KubeconfigEntry{keep}, ""); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestKubeconfigEntryChecks(t *testing.T) {
	for name, change := range map[string]func(*KubeconfigEntry){
		"name":    func(e *KubeconfigEntry) { e.Cluster = "a\nb" },
		"network": func(e *KubeconfigEntry) { e.Network = "x" },
		"port":    func(e *KubeconfigEntry) { e.Port = 0 },
		"CA":      func(e *KubeconfigEntry) { e.CA = "x" },
		"TLS":     func(e *KubeconfigEntry) { e.TLSName = "" },
		"command": func(e *KubeconfigEntry) { e.Command = "" },
	} {
		e := testEntry(t, "c1")
		change(&e)
		if _, err := RenderKubeconfig([]KubeconfigEntry{e}, ""); err == nil {
			t.Errorf("an entry with a bad %s was taken", name)
		}
	}
}

func TestKubeconfigFiles(t *testing.T) {
	sep := string(filepath.ListSeparator)
	for _, c := range []struct {
		flag, variable, home string
		want                 []string
	}{
		{"f", "a", "/home/me", []string{"f"}},
		{"", "a" + sep + sep + "b" + sep + "a", "/home/me", []string{"a", "b"}},
		{"", "", "/home/me", []string{filepath.Join("/home/me", ".kube", "config")}},
		{"", "", "", nil},
	} {
		got, err := KubeconfigFiles(c.flag, c.variable, c.home)
		if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
			t.Errorf("KubeconfigFiles(%q, %q, %q) is %q, %v; want %q", c.flag, c.variable, c.home, got, err, c.want)
		}
	}
}

// Attacker: whoever wrote the kubeconfig, or a cluster's record.
func FuzzKubeconfigMerge(f *testing.F) {
	seeds, err := filepath.Glob("testdata/kubeconfig/*.in.yaml")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, path := range seeds {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, "kubernetes", "zt-c1")
	}
	f.Add([]byte("clusters: &a\n- name: &n x\n  cluster: {}\ncontexts: *a\n"), "on", "1e3")
	f.Add([]byte("users:\n  - name: zt-c1\n    user:\n      exec: {command: zt-daemon, args: [credential]}\n"), "0x10", "n: [")
	f.Fuzz(func(t *testing.T, text []byte, tlsName, name string) {
		file, err := parseKubeFile("fuzz", text)
		if err != nil {
			return
		}
		e := testEntry(t, "c1")
		e.TLSName, e.Name = tlsName, name
		if e.validate() != nil {
			return
		}
		set := &kubeFiles{all: []*kubeFile{file}, main: file, touched: make(map[kubeName]bool)}
		if set.put(e) != nil {
			return
		}
		out, err := file.encode()
		if err != nil || file.verify(out, set.touched) != nil {
			return // refused: nothing is written
		}
		// What is written says what was meant, and the rest is as it was.
		again, err := parseKubeFile("fuzz", out)
		if err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		cluster := again.find(clustersSection, e.name())
		if got := scalarAt(cluster, "cluster", "tls-server-name"); got != tlsName {
			t.Errorf("TLS name is %q, want %q", got, tlsName)
		}
		if got := scalarAt(cluster, "cluster", "server"); got != "https://127.0.0.1:21000" {
			t.Errorf("server is %q", got)
		}
		if got := scalarAt(again.find(usersSection, e.name()), "user", "exec", "command"); got != e.Command {
			t.Errorf("command is %q, want %q", got, e.Command)
		}
		var any1 any
		if err := yaml.Unmarshal(out, &any1); err != nil {
			t.Errorf("%v in\n%s", err, out)
		}
	})
}

// TestKubeconfigVia writes the two forms, and keeps the one that was chosen when
// another login writes the entry anew.
func TestKubeconfigVia(t *testing.T) {
	path := tempKubeconfig(t, "")
	k := Kubeconfig{Files: []string{path}}
	for _, step := range []struct{ via, tlsName, server, proxy, name string }{
		{"", "kubernetes", "https://127.0.0.1:21000", "", "kubernetes"},
		{ViaProxy, "kubernetes", "https://kubernetes", "http://127.0.0.1:21000", ""},
		{"", "10.0.0.1", "https://10.0.0.1", "http://127.0.0.1:21000", ""},
		{"", "fd00::1", "https://[fd00::1]", "http://127.0.0.1:21000", ""},
		{ViaListener, "kubernetes", "https://127.0.0.1:21000", "", "kubernetes"},
		{"", "kubernetes", "https://127.0.0.1:21000", "", "kubernetes"},
	} {
		e := testEntry(t, "c1")
		e.Via, e.TLSName = step.via, step.tlsName
		if _, err := k.Merge(t.Context(), []KubeconfigEntry{e}, ""); err != nil {
			t.Fatal(err)
		}
		f, err := parseKubeFile(path, []byte(readFile(t, path)))
		if err != nil {
			t.Fatal(err)
		}
		c := valueAt(f.find(clustersSection, "zt-c1"), "cluster")
		if server, proxy, name := scalarAt(c, "server"), scalarAt(c, "proxy-url"), scalarAt(c, "tls-server-name"); server != step.server || proxy != step.proxy || name != step.name {
			t.Errorf("via %q: server %q, proxy-url %q, tls-server-name %q; want %+v", step.via, server, proxy, name, step)
		}
	}
	e := testEntry(t, "c1")
	e.Via = "tunnel"
	if _, err := k.Merge(t.Context(), []KubeconfigEntry{e}, ""); err == nil {
		t.Error("an unknown way was accepted")
	}
}
