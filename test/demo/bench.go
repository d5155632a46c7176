package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	benchPairs    = 50                     // of kubectl, one each way
	benchPause    = 500 * time.Millisecond // before each
	benchRequests = 400                    // on each of two kept connections
)

// bench measures what both ends hold when idle, and what zt adds on loopback: the same kubectl with the same exec
// credential, and the same request on a kept connection, through the overlay and
// straight to the API server, one after the other so that both meet the same
// machine.
func (s *story) bench(ctx context.Context) error {
	if s.Kubernetes == nil {
		return errors.New("the benchmark needs the demo's own API server")
	}
	var err error
	if s.alice, err = s.NewLaptop("alice", 0); err != nil {
		return err
	}
	if _, err := s.alice.Login(ctx, "alice"); err != nil {
		return err
	}
	memory := s.benchMemory(ctx) // first: it wants no edge
	ca, err := s.directContext(ctx)
	if err != nil {
		return err
	}
	if err := s.benchKubectl(ctx); err != nil {
		return err
	}
	return errors.Join(memory, s.benchRequests(ctx, ca))
}

// directContext gives alice a context that goes straight to the API server with
// the credential of the one through the overlay. It returns the CA.
func (s *story) directContext(ctx context.Context) ([]byte, error) {
	r := s.Admin.Kubectl(ctx, "config", "view", "--raw", "--flatten", "-o", "json")
	if err := r.OK(); err != nil {
		return nil, err
	}
	var view struct {
		Clusters []struct {
			Cluster struct {
				CA []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &view); err != nil || len(view.Clusters) != 1 {
		return nil, fmt.Errorf("the administrator's kubeconfig: %v", err)
	}
	ca := view.Clusters[0].Cluster.CA
	file := filepath.Join(s.Lab.Dir, "api-server-ca.crt")
	if err := os.WriteFile(file, ca, 0o600); err != nil {
		return nil, err
	}
	user := s.alice.Kubectl(ctx, "config", "view", "-o", `jsonpath={.contexts[?(@.name=="`+s.KubeContext()+`")].context.user}`)
	if err := user.OK(); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"config", "set-cluster", "direct", "--server=https://" + s.Kubernetes.Host, "--certificate-authority=" + file, "--embed-certs"},
		{"config", "set-context", "direct", "--cluster=direct", "--user=" + strings.TrimSpace(user.Stdout)},
	} {
		if err := s.alice.Kubectl(ctx, args...).OK(); err != nil {
			return nil, err
		}
	}
	return ca, nil
}

func (s *story) benchKubectl(ctx context.Context) error {
	// A person's pace: what the daemon does between two calls, such as opening the
	// next stream, is charged to neither.
	run := func(context string) (time.Duration, error) {
		time.Sleep(benchPause)
		r := s.alice.Kubectl(ctx, "--context", context, "get", "namespaces")
		return r.Elapsed, r.OK()
	}
	var direct, overlay []time.Duration
	for i := range benchPairs + 3 {
		d, err := run("direct")
		if err != nil {
			return err
		}
		o, err := run(s.KubeContext())
		if err != nil {
			return err
		}
		if i >= 3 { // the first warm discovery caches and the edge
			direct, overlay = append(direct, d), append(overlay, o)
		}
	}
	report(fmt.Sprintf("kubectl get namespaces, %d pairs", benchPairs), direct, overlay, 2*time.Millisecond)
	return nil
}

func (s *story) benchRequests(ctx context.Context, ca []byte) error {
	credential := s.alice.ZT(ctx, "credential", s.ClusterName())
	if err := credential.OK(); err != nil {
		return errors.New("credential: exit code not 0") // its output holds the token
	}
	var exec struct {
		Status struct{ Token string }
	}
	if err := json.Unmarshal([]byte(credential.Stdout), &exec); err != nil {
		return errors.New("credential: not an ExecCredential")
	}
	var clusters []struct{ Name, Server, TLSName string }
	r := s.alice.ZT(ctx, "clusters", "-o", "json")
	if err := r.OK(); err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(r.Stdout), &clusters); err != nil || len(clusters) != 1 {
		return fmt.Errorf("clusters -o json: %v", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	get := func(server, name string, kept bool) func() (time.Duration, error) {
		t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: name}, ForceAttemptHTTP2: kept, DisableKeepAlives: !kept}
		client := &http.Client{Transport: t, Timeout: 10 * time.Second}
		return func() (time.Duration, error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/version", nil)
			if err != nil {
				return 0, err
			}
			req.Header.Set("Authorization", "Bearer "+exec.Status.Token)
			began := time.Now()
			resp, err := client.Do(req)
			if err != nil {
				return 0, err
			}
			defer resp.Body.Close()
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				return 0, err
			}
			if resp.StatusCode != http.StatusOK {
				return 0, fmt.Errorf("GET /version at %s: %s", server, resp.Status)
			}
			return time.Since(began), nil
		}
	}
	for _, kind := range []struct {
		name string
		kept bool
		bar  time.Duration // 0: none is set
	}{{"a kept", true, 500 * time.Microsecond}, {"a new", false, 0}} {
		straight := get("https://"+s.Kubernetes.Host, clusters[0].TLSName, kind.kept)
		through := get(clusters[0].Server, clusters[0].TLSName, kind.kept)
		var direct, overlay []time.Duration
		for i := range benchRequests + 20 {
			d, err := straight()
			if err != nil {
				return err
			}
			o, err := through()
			if err != nil {
				return err
			}
			if i >= 20 {
				direct, overlay = append(direct, d), append(overlay, o)
			}
		}
		report(fmt.Sprintf("GET /version on %s connection, %d pairs", kind.name, benchRequests), direct, overlay, kind.bar)
	}
	return nil
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// report prints both distributions, and the difference of their medians beside
// what it is meant to be at most.
func report(what string, direct, overlay []time.Duration, bar time.Duration) {
	slices.Sort(direct)
	slices.Sort(overlay)
	fmt.Printf("\n%s\n  %-8s %10s %10s %10s\n", what, "", "p10", "median", "p90")
	for _, row := range []struct {
		name string
		all  []time.Duration
	}{{"direct", direct}, {"overlay", overlay}} {
		fmt.Printf("  %-8s", row.name)
		for _, q := range []float64{0.1, 0.5, 0.9} {
			fmt.Printf(" %10s", quantile(row.all, q).Round(10*time.Microsecond))
		}
		fmt.Println()
	}
	added := quantile(overlay, 0.5) - quantile(direct, 0.5)
	verdict := ""
	if bar > 0 && added <= bar {
		verdict = fmt.Sprintf(" (within the bar of %s)", bar)
	} else if bar > 0 {
		verdict = fmt.Sprintf(" (over the bar of %s)", bar)
	}
	fmt.Printf("  added by the overlay, difference of medians: %s%s\n", added.Round(10*time.Microsecond), verdict)
}
