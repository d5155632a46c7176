package lab

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zt-daemon/zt/test/issuer"
)

// builtKubernetes finds the program without building it, and skips without it.
func builtKubernetes(t *testing.T) string {
	t.Helper()
	module, err := ModuleDir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	path, exists, err := BuiltKubernetes(module)
	if err != nil {
		t.Fatal(err)
	}
	if !exists {
		t.Skipf("no real Kubernetes is built (%s): sh test/kubernetes/build.sh builds it once, in about 8 minutes", path)
	}
	return path
}

// newLab is a lab whose log goes to the test's, and which must end cleanly.
func newLab(t *testing.T) *Lab {
	t.Helper()
	l, err := New(Config{Dir: t.TempDir(), Say: func(d time.Duration, text string) { t.Logf("%5.1fs %s", d.Seconds(), text) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

func TestKubernetes(t *testing.T) {
	program := builtKubernetes(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	l := newLab(t)
	ca, err := NewAuthority("zt lab CA")
	if err != nil {
		t.Fatal(err)
	}
	i, err := l.StartIssuer(ca, nil, "127.0.0.1:0", issuer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := l.StartKubernetes(ctx, KubernetesConfig{Program: program, Issuer: i.For(issuer.APIServerClient)})
	if err != nil {
		t.Fatal(err)
	}
	token := func(claims map[string]any) string {
		t.Helper()
		now := time.Now().Unix()
		all := map[string]any{"iss": i.URL(), "aud": issuer.APIServerClient, "iat": now, "exp": now + 300, "sid": "sid-canary", "jti": "jti-canary"}
		for name, v := range claims {
			all[name] = v
		}
		b, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := i.Sign(b)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	alice := map[string]any{"sub": "user-alice", "email": "alice@example.test", "email_verified": true, "groups": []string{"developers"}}
	bob := map[string]any{"sub": "user-bob", "email": "bob@example.test", "email_verified": true}
	overlay := map[string]any{"sub": "user-alice", "email": "alice@example.test", "email_verified": true, "groups": []string{"developers"}, "aud": issuer.OverlayClient}
	caFile := filepath.Join(l.Dir, "kubernetes", "ca.crt")
	as := func(claims map[string]any, stdin string, args ...string) Result {
		return l.Run(ctx, Command{Name: "kubectl", Stdin: strings.NewReader(stdin),
			Args: append([]string{program, "kubectl", "--kubeconfig=/dev/null", "--server=" + k.URL, "--certificate-authority=" + caFile, "--token=" + token(claims)}, args...)})
	}
	// The API server fetches the issuer's keys in the background.
	if err := Eventually(ctx, func(context.Context) error { return as(alice, "", "auth", "whoami").OK() }); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		who  map[string]any
		args []string
		code int
		want string
	}{
		{"alice is who her token says", alice, []string{"auth", "whoami", "-o", "json"}, 0, `"username": "oidc:alice@example.test"`},
		{"her group has its prefix", alice, []string{"auth", "whoami", "-o", "json"}, 0, `"oidc:developers"`},
		{"sid reaches the API server", alice, []string{"auth", "whoami", "-o", "json"}, 0, "sid-canary"},
		{"developers read", alice, []string{"get", "namespaces"}, 0, "kube-system"},
		{"developers create", alice, []string{"create", "configmap", "c1", "--from-literal=a=b"}, 0, "configmap/c1 created"},
		{"developers create pods", alice, []string{"run", "p1", "--image=registry.test/p:1"}, 0, "pod/p1 created"},
		{"developers read no secrets", alice, []string{"get", "secrets"}, 1, "Forbidden"},
		{"bob is in no group", bob, []string{"get", "namespaces"}, 1, `User "oidc:bob@example.test" cannot list`},
		{"a token for the overlay is nobody's", overlay, []string{"get", "namespaces"}, 1, "Unauthorized"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := as(tc.who, "", tc.args...)
			if r.Err != nil || r.Code != tc.code || !strings.Contains(r.Stdout+r.Stderr, tc.want) {
				t.Errorf("want exit code %d and %q, got %v", tc.code, tc.want, r)
			}
		})
	}
	if b, err := os.ReadFile(k.AuditLog); err != nil || !strings.Contains(string(b), "jti-canary") {
		t.Errorf("the audit log does not hold the token's jti (%v)", err)
	}
	pid := k.Process.PID()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is left (%v)", pid, err)
	}
}
