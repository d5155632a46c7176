package lab

import (
	"context"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/zt-daemon/zt/test/issuer"
)

// serveArgs is the command line of the relay.
func (r *Relay) serveArgs() []string {
	host, _, _ := strings.Cut(r.listen, ":")
	return []string{r.program, "serve", "--state-dir", r.Dir, "--listen", r.listen, "--url", r.URL, "--self-signed", host}
}

// operatorArgs is a command of the relay's operator.
func (r *Relay) operatorArgs(args []string) []string {
	return append([]string{r.program}, append(args, "--state-dir", r.Dir)...)
}

func (r *Relay) auditFile() string { return filepath.Join(r.Dir, "audit.jsonl") }

func (s *Scene) networkCreateArgs(claim Claim, issuerCA string) []string {
	return []string{"network", "create", "--relay", s.Relay.URL, "--claim", claim.Code, "--pin", claim.Pin,
		"--issuer", s.Issuer.URL(), "--client-id", issuer.OverlayClient, "--issuer-ca", issuerCA}
}

func (s *Scene) clusterAddArgs() []string {
	context := s.config.Context
	if context == "" {
		context = "admin"
	}
	args := []string{"cluster", "add", s.config.Cluster, "--context", context, "--out", s.Node.Dir, "--group", "developers"}
	if s.config.Context != "" { // its API server knows nothing of the lab's issuer
		return append(args, "--keep-user")
	}
	return append(args, "--api-client-id", issuer.APIServerClient)
}

func (s *Scene) nodeArgs() []string {
	return []string{s.program("zt-daemon"), "node", "--dir", s.Node.Dir}
}

var claimLine = regexp.MustCompile(`--claim (\S+) --pin (\S+)`)

// claim reads the claim code that the relay prints at its first start.
func (r *Relay) claim(ctx context.Context) (Claim, error) {
	out, err := r.Process.WaitOutput(ctx, "its claim code", claimLine.MatchString)
	if err != nil {
		return Claim{}, err
	}
	found := claimLine.FindStringSubmatch(out)
	return Claim{Code: found[1], Pin: found[2]}, nil
}
