package auth

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Every Reason constant has its row, and every row a text that reads on after
// a colon.
func TestReasons(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "refusal.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared []Reason
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Reason" {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			declared = append(declared, Reason(text))
		}
		return true
	})
	slices.Sort(declared)
	if all := Reasons(); !slices.Equal(declared, all) {
		t.Errorf("declared %v, in the table %v", declared, all)
	}
	label := regexp.MustCompile(`^[a-z]+(_[a-z]+)*$`)
	classes := []Class{ClassInvalid, ClassLogin, ClassDenied, ClassUnavailable}
	for _, r := range Reasons() {
		if !label.MatchString(string(r)) {
			t.Errorf("%q is no metric label", r)
		}
		if r.Text() == "" || strings.HasSuffix(r.Text(), ".") || !slices.Contains(classes, r.Class()) {
			t.Errorf("%s: text %q, class %q", r, r.Text(), r.Class())
		}
		if ParseReason(string(r)) != r {
			t.Errorf("%s does not read back", r)
		}
	}
	if got := ParseReason("evil\nlabel"); got != ReasonOther {
		t.Errorf("a stranger's reason became the label %q", got)
	}
	if got := Reason("unknown").Text(); got != ReasonOther.Text() {
		t.Errorf("got %q", got)
	}
}

func TestRefusedError(t *testing.T) {
	err := fmt.Errorf("join: %w", refuse(ReasonExpired, "ID token issued %s ago", "13h"))
	if got, want := err.Error(), "join: the login has expired: ID token issued 13h ago"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, &RefusedError{Reason: ReasonExpired}) || errors.Is(err, &RefusedError{Reason: ReasonEnded}) {
		t.Error("errors.Is does not go by reason")
	}
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Hint() != hintLogin {
		t.Errorf("got hint %q", refused.Hint())
	}
	refused = &RefusedError{Reason: ReasonPolicy, Detail: "a\x00b\xffc\u202ed\n", HintText: "say \x07 please"}
	if got, want := refused.Error(), ReasonPolicy.Text()+`: a\x00b\xffc\u202ed\n`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := refused.Hint(), `say \a please`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	refused.Detail = strings.Repeat("x", 1<<20)
	if n := len(refused.Error()); n > 1000 {
		t.Errorf("a message of %d bytes", n)
	}
	if got, want := (&RefusedError{Reason: ReasonGroupOverage}).Hint(), "Groups assigned to the application"; !strings.Contains(got, want) {
		t.Errorf("group overage: got hint %q, want the fix", got)
	}
}
