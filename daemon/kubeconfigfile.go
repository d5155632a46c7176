package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// kubeSection is one of a kubeconfig's lists of named entries.
type kubeSection struct{ list, body string }

var (
	clustersSection = kubeSection{"clusters", "cluster"}
	contextsSection = kubeSection{"contexts", "context"}
	usersSection    = kubeSection{"users", "user"}
	kubeSections    = []kubeSection{clustersSection, contextsSection, usersSection}
)

// kubeOwnKeys are the keys of our entries' bodies that a person may have added
// and that stay: they change neither whom we talk to nor who we are.
var kubeOwnKeys = map[string][]string{
	"clusters": {"disable-compression", "extensions"},
	"contexts": {"namespace", "extensions"},
	"users":    {"env"}, // of exec
}

// kubeFile is one kubeconfig file as a tree of YAML nodes.
type kubeFile struct {
	path    string
	text    []byte     // as read, with LF
	crlf    bool       // whether lines ended in CRLF
	preface string     // comments of a file that holds nothing else
	doc     *yaml.Node // a document of one mapping
	changed bool
}

// parseKubeFile reads a kubeconfig strictly: what kubectl would not
// understand, or would understand otherwise, is an error. Empty input is an
// empty kubeconfig.
func parseKubeFile(path string, text []byte) (*kubeFile, error) {
	f := &kubeFile{path: path, crlf: bytes.Contains(text, []byte("\r\n"))}
	f.text = bytes.TrimPrefix(bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n")), []byte("\xef\xbb\xbf"))
	fail := func(n *yaml.Node, format string, args ...any) (*kubeFile, error) {
		e := &KubeconfigError{Path: path, Err: fmt.Errorf(format, args...)}
		if n != nil {
			e.Line = n.Line
		}
		return nil, e
	}
	d := yaml.NewDecoder(bytes.NewReader(f.text))
	var doc yaml.Node
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		f.preface = string(f.text)
		f.doc = emptyKubeconfig()
		return f, nil
	} else if err != nil {
		return fail(nil, "%v", err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return fail(nil, "it holds more than one YAML document")
	}
	// The generic form finds what nodes let pass: keys that occur twice, aliases
	// that expand without end.
	if err := doc.Decode(new(any)); err != nil {
		return fail(nil, "%v", err)
	}
	f.doc = &doc
	root := f.root()
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		f.preface = strings.Join(nonEmpty(doc.HeadComment, root.HeadComment, root.FootComment, doc.FootComment), "\n\n")
		f.doc = emptyKubeconfig()
		return f, nil
	}
	if root.Kind != yaml.MappingNode {
		return fail(root, "it is not a mapping")
	}
	for key, want := range map[string]string{"apiVersion": "v1", "kind": "Config"} {
		if v := valueAt(root, key); v != nil && v.Value != want {
			return fail(v, "%s is %q, want %q", key, v.Value, want)
		}
	}
	if v := valueAt(root, "current-context"); v != nil && v.Kind != yaml.ScalarNode {
		return fail(v, "current-context is not a text")
	}
	for _, s := range kubeSections {
		list := valueAt(root, s.list)
		if list == nil || list.Tag == "!!null" {
			continue
		}
		if list.Kind != yaml.SequenceNode {
			return fail(list, "%s is not a list", s.list)
		}
		seen := make(map[string]bool)
		for _, item := range list.Content {
			if item.Kind != yaml.MappingNode {
				return fail(item, "an entry of %s is not a mapping", s.list)
			}
			name := valueAt(item, "name")
			if name == nil || resolveAlias(name).Kind != yaml.ScalarNode {
				return fail(item, "an entry of %s has no name", s.list)
			}
			if seen[itemName(item)] {
				return fail(item, "%s has two entries named %q", s.list, itemName(item))
			}
			seen[itemName(item)] = true
		}
	}
	return f, nil
}

func emptyKubeconfig() *yaml.Node {
	root := kubeMap("apiVersion", kubeText("v1"), "clusters", kubeList(), "contexts", kubeList(),
		"current-context", kubeText(""), "kind", kubeText("Config"), "users", kubeList())
	return &yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{root}}
}

func (f *kubeFile) root() *yaml.Node { return f.doc.Content[0] }

// items are the entries of a section.
func (f *kubeFile) items(s kubeSection) []*yaml.Node {
	if list := valueAt(f.root(), s.list); list != nil && list.Kind == yaml.SequenceNode {
		return list.Content
	}
	return nil
}

func (f *kubeFile) find(s kubeSection, name string) *yaml.Node {
	for _, item := range f.items(s) {
		if itemName(item) == name {
			return item
		}
	}
	return nil
}

// put gives the entry item of that name this body; a nil item is made.
func (f *kubeFile) put(s kubeSection, name string, item, body *yaml.Node) {
	if item != nil {
		old := valueAt(item, s.body)
		if s == usersSection {
			body = kubeMap("exec", withKept(valueAt(body, "exec"), valueAt(old, "exec"), kubeOwnKeys[s.list]))
		} else {
			body = withKept(body, old, kubeOwnKeys[s.list])
		}
		if become(old, body) {
			f.changed = true
		}
		return
	}
	f.changed = true
	fields := []any{s.body, body, "name", kubeText(name)}
	if s.body > "name" { // in alphabetical order, as kubectl writes them
		fields = []any{"name", kubeText(name), s.body, body}
	}
	root := f.root()
	list := valueAt(root, s.list)
	switch {
	case list == nil:
		list = kubeList()
		root.Content = append(root.Content, kubeText(s.list), list)
	case list.Kind != yaml.SequenceNode: // null
		list.Kind, list.Tag, list.Value, list.Style = yaml.SequenceNode, "!!seq", "", 0
	}
	if len(list.Content) == 0 {
		list.Style &^= yaml.FlowStyle // "[]" becomes a block
	}
	list.Content = append(list.Content, kubeMap(fields...))
}

func (f *kubeFile) remove(s kubeSection, name string) {
	list := valueAt(f.root(), s.list)
	list.Content = slices.DeleteFunc(list.Content, func(item *yaml.Node) bool { return itemName(item) == name })
	if len(list.Content) == 0 {
		list.Style |= yaml.FlowStyle
	}
	f.changed = true
}

func (f *kubeFile) setCurrent(name string) {
	root := f.root()
	if v := valueAt(root, "current-context"); v != nil {
		f.changed = become(v, kubeText(name)) || f.changed
		return
	}
	root.Content = append(root.Content, kubeText("current-context"), kubeText(name))
	f.changed = true
}

// ours reports whether an entry was written by zt-daemon, and for which network.
func (s kubeSection) ours(item *yaml.Node) (ours bool, network string) {
	body := valueAt(item, s.body)
	if s != usersSection {
		if mark := findMark(valueAt(body, "extensions")); mark != nil {
			return true, scalarAt(mark, "extension", "network")
		}
		return false, ""
	}
	exec := valueAt(body, "exec")
	command := scalarAt(exec, "command")
	if i := strings.LastIndexAny(command, `/\`); i >= 0 {
		command = command[i+1:]
	}
	args := resolveAlias(valueAt(exec, "args"))
	if strings.TrimSuffix(command, ".exe") != "zt-daemon" || args == nil || args.Kind != yaml.SequenceNode ||
		len(args.Content) == 0 || resolveAlias(args.Content[0]).Value != "credential" {
		return false, ""
	}
	for i, a := range args.Content[:len(args.Content)-1] {
		if resolveAlias(a).Value == "--network-id" {
			network = resolveAlias(args.Content[i+1]).Value
		}
	}
	return true, network
}

func findMark(extensions *yaml.Node) *yaml.Node {
	extensions = resolveAlias(extensions)
	if extensions == nil || extensions.Kind != yaml.SequenceNode {
		return nil
	}
	for _, e := range extensions.Content {
		if e = resolveAlias(e); e.Kind == yaml.MappingNode && scalarAt(e, "name") == kubeconfigMark {
			return e
		}
	}
	return nil
}

// withKept is body with those keys of old that a person may add; of a list of
// extensions, those that are not ours.
func withKept(body, old *yaml.Node, keep []string) *yaml.Node {
	old = resolveAlias(old)
	if old == nil || old.Kind != yaml.MappingNode {
		return body
	}
	for i := 0; i+1 < len(old.Content); i += 2 {
		key, value := old.Content[i], old.Content[i+1]
		if !slices.Contains(keep, key.Value) {
			continue
		}
		if mine := valueAt(body, key.Value); mine == nil {
			body.Content = append(body.Content, key, value)
		} else if value = resolveAlias(value); mine.Kind == yaml.SequenceNode && value.Kind == yaml.SequenceNode {
			for _, e := range value.Content {
				if r := resolveAlias(e); r.Kind != yaml.MappingNode || scalarAt(r, "name") != kubeconfigMark {
					mine.Content = append(mine.Content, e)
				}
			}
		}
	}
	return body
}

// become makes old mean what want means, and leaves alone what does already:
// its place, comments and style stay. It reports whether anything changed.
func become(old, want *yaml.Node) bool {
	if old == want {
		return false
	}
	if old.Kind == yaml.MappingNode && want.Kind == yaml.MappingNode {
		changed := false
		kept := old.Content[:0:0]
		for i := 0; i+1 < len(old.Content); i += 2 {
			v := valueAt(want, old.Content[i].Value)
			if v == nil {
				changed = true
				continue
			}
			changed = become(old.Content[i+1], v) || changed
			kept = append(kept, old.Content[i], old.Content[i+1])
		}
		old.Content = kept
		for i := 0; i+1 < len(want.Content); i += 2 {
			if valueAt(old, want.Content[i].Value) == nil {
				old.Content = append(old.Content, want.Content[i], want.Content[i+1])
				changed = true
			}
		}
		return changed
	}
	if sameMeaning(old, want) {
		return false
	}
	head, line, foot := old.HeadComment, old.LineComment, old.FootComment
	*old = *want
	old.HeadComment, old.LineComment, old.FootComment = head, line, foot
	return true
}

func sameMeaning(a, b *yaml.Node) bool {
	var x, y any
	return a.Decode(&x) == nil && b.Decode(&y) == nil && reflect.DeepEqual(x, y)
}

// encode gives the file's text: the one that was read, with the edit made in it,
// or, where that does not say what is meant, another in the same layout.
func (f *kubeFile) encode() ([]byte, error) {
	if json.Valid(f.text) {
		return f.encodeJSON()
	}
	layout := f.layout()
	b, err := encodeYAML(f.doc, layout)
	if err != nil {
		return nil, err
	}
	if text, ok := f.edit(b, layout); ok {
		b = text
	} else if p := strings.TrimRight(f.preface, "\n"); p != "" {
		b = append([]byte(p+"\n"), b...)
	}
	if f.crlf {
		b = bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))
	}
	return b, nil
}

// edit makes in the text that was read the edit that after is the outcome of.
func (f *kubeFile) edit(after []byte, layout kubeLayout) ([]byte, bool) {
	var doc yaml.Node
	if yaml.Unmarshal(f.text, &doc) != nil || doc.Kind != yaml.DocumentNode {
		return nil, false
	}
	before, err := encodeYAML(&doc, layout)
	if err != nil {
		return nil, false
	}
	merged, ok := mergeLines(string(f.text), string(before), string(after))
	if !ok {
		return nil, false
	}
	var again yaml.Node
	if yaml.Unmarshal([]byte(merged), &again) != nil || again.Kind != yaml.DocumentNode || !sameMeaning(f.doc, &again) {
		return nil, false
	}
	return []byte(merged), true
}

// encodeJSON keeps a kubeconfig that is JSON as JSON. A text that YAML escapes
// in a way that JSON does not know makes the file YAML, which kubectl reads too.
func (f *kubeFile) encodeJSON() ([]byte, error) {
	flow(f.doc)
	line, err := encodeYAML(f.doc, kubeLayout{indent: 2})
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if json.Indent(&b, line, "", "  ") != nil {
		return line, nil
	}
	return b.Bytes(), nil
}

// flow gives a tree the style of JSON.
func flow(n *yaml.Node) {
	switch {
	case n.Kind == yaml.MappingNode || n.Kind == yaml.SequenceNode:
		n.Style = yaml.FlowStyle
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str":
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, c := range n.Content {
		flow(c)
	}
}

// kubeLayout is how a file is indented.
type kubeLayout struct {
	indent  int
	compact bool // lists are not indented below their key
}

func encodeYAML(doc *yaml.Node, l kubeLayout) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(l.indent)
	if l.compact {
		e.CompactSeqIndent()
	}
	if err := e.Encode(doc); err != nil {
		return nil, err
	}
	if err := e.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// kubeLayouts are those in use; kubectl's own is the first.
var kubeLayouts = []kubeLayout{{2, true}, {2, false}, {4, false}, {4, true}, {3, false}, {8, false}}

// layout is the one in which most lines of the file stay as they are.
func (f *kubeFile) layout() kubeLayout {
	best, most := kubeLayouts[0], -1
	var doc yaml.Node
	if yaml.Unmarshal(f.text, &doc) != nil || doc.Kind != yaml.DocumentNode {
		return best
	}
	had := make(map[string]int)
	for line := range strings.Lines(string(f.text)) {
		had[line]++
	}
	for _, l := range kubeLayouts {
		b, err := encodeYAML(&doc, l)
		if err != nil {
			continue
		}
		same, seen := 0, make(map[string]int)
		for line := range strings.Lines(string(b)) {
			if seen[line]++; seen[line] <= had[line] {
				same++
			}
		}
		if same > most {
			best, most = l, same
		}
	}
	return best
}

// verify checks that text differs from what was read in nothing but touched
// entries and current-context, and holds the tree that was meant.
func (f *kubeFile) verify(text []byte, touched map[kubeName]bool) error {
	again, err := parseKubeFile(f.path, text)
	if err != nil {
		return fmt.Errorf("the edited file would not be sound: %w", err)
	}
	before, err := parseKubeFile(f.path, f.text)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(before.rest(touched), again.rest(touched)) {
		return errors.New("the edit would change entries that are not ours")
	}
	if !sameMeaning(f.doc, again.doc) {
		return errors.New("the edited file would not say what was meant")
	}
	return nil
}

// rest is what the file means beside the touched entries.
func (f *kubeFile) rest(touched map[kubeName]bool) any {
	var all map[string]any
	if f.root().Decode(&all) != nil {
		return errors.New("not a mapping of texts") // equal to nothing
	}
	delete(all, "current-context")
	for _, s := range kubeSections {
		list, ok := all[s.list].([]any)
		if all[s.list] != nil && !ok {
			return errors.New(s.list)
		}
		list = slices.DeleteFunc(list, func(item any) bool {
			m, ok := item.(map[string]any)
			return ok && touched[kubeName{s.list, fmt.Sprint(m["name"])}]
		})
		if delete(all, s.list); len(list) > 0 { // absent, null and empty are the same
			all[s.list] = list
		}
	}
	// What an empty file is given.
	for key, value := range map[string]any{"apiVersion": "v1", "kind": "Config"} {
		if all[key] == value {
			delete(all, key)
		}
	}
	return all
}

// write replaces the file, or the target of the symbolic link it is.
func (f *kubeFile) write(text []byte) error {
	target, err := linkTarget(f.path)
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o600)
	var like fs.FileInfo
	if info, err := os.Stat(target); err == nil {
		if mode = info.Mode().Perm(); mode&0o200 == 0 {
			return fmt.Errorf("write %s: it is read-only (mode %04o)", target, mode)
		}
		like = info
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	} else if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return err
	}
	return writeAtomicLike(target, text, mode, like)
}

// linkTarget follows symbolic links to a file that need not exist.
func linkTarget(path string) (string, error) {
	for range 40 { // as many as Linux follows
		to, err := os.Readlink(path)
		if errors.Is(err, fs.ErrNotExist) || err != nil && !isLink(path) {
			return path, nil
		} else if err != nil {
			return "", err
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return "", fmt.Errorf("%s: too many levels of symbolic links", path)
}

func isLink(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}
