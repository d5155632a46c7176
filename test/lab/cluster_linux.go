package lab

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// ClusterConfig says which cluster to start.
type ClusterConfig struct {
	// Name is a DNS label of at most six characters: it is in names of network
	// namespaces and devices.
	Name string
	// Program is the executable that test/kubernetes/build.sh makes.
	Program string
	// Site is the private network it stands in.
	Site *Site
	// Machines is how many there are, each with a kubelet of its own.
	Machines int
	// Images are archives that every machine has before its kubelet starts.
	Images []string
	Issuer TrustedIssuer
}

// Cluster is a whole Kubernetes: a control plane on the site's first machine,
// and machines on a network of their own behind it whose kubelets run pods.
//
// Every cluster of a lab has the same addresses; only their NATs differ.
type Cluster struct {
	*Kubernetes
	Name     string
	Site     *Site
	Machines []*Machine

	program string
}

// The addresses of every cluster. Machine i is 10.20.1.(10+i), its pods are
// 10.244.i.0/24.
const (
	PodCIDR        = "10.244.0.0/16"
	machineGateway = "10.20.1.1"
	machinePrefix  = "10.20.1.1" // and the machine's number
)

// StartCluster starts a cluster and waits until all of its machines are ready.
func (l *Lab) StartCluster(ctx context.Context, c ClusterConfig) (*Cluster, error) {
	begin := time.Now()
	if err := checkCgroups(); err != nil {
		return nil, err
	}
	k := &Cluster{Name: c.Name, Site: c.Site, program: c.Program}
	w := &wiring{lab: l, ctx: ctx}
	w.ip(c.Site.Inside, "link", "add", "machines", "type", "bridge")
	w.ip(c.Site.Inside, "addr", "add", machineGateway+"/24", "dev", "machines")
	w.ip(c.Site.Inside, "link", "set", "machines", "up")
	w.ip(c.Site.NAT, "route", "add", "10.20.1.0/24", "via", ClusterHost)
	w.forward(c.Site.Inside)
	if w.err != nil {
		return nil, w.err
	}
	var err error
	k.Kubernetes, err = l.StartKubernetes(ctx, KubernetesConfig{
		Name: c.Name, Program: c.Program, Host: ClusterHost, Port: 6443, Namespace: c.Site.Inside, Issuer: c.Issuer, Kubelets: true,
	})
	if err != nil {
		return nil, err
	}
	done := l.During(fmt.Sprintf("starting controller manager, scheduler and %d machines of cluster %s", c.Machines, c.Name))
	defer done()
	if err := k.startControllers(); err != nil {
		return nil, err
	}
	if err := k.startDNS(ctx); err != nil {
		return nil, err
	}
	if _, err := k.writeKubeconfig("kube-proxy", "system:kube-proxy"); err != nil {
		return nil, err
	}
	for i := range c.Machines {
		m, err := k.newMachine(ctx, i+1, c.Images)
		if err != nil {
			return nil, fmt.Errorf("start machine %d of cluster %s: %w", i+1, c.Name, err)
		}
		k.Machines = append(k.Machines, m)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range k.Machines {
		g.Go(func() error { return m.Process.WaitFor(ctx, "its kubelet's readiness", m.ready) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	done()
	l.Say("cluster %s has %d ready machines, after %s", c.Name, c.Machines, time.Since(begin).Round(100*time.Millisecond))
	return k, nil
}

// startControllers starts what makes a cluster of an API server.
func (c *Cluster) startControllers() error {
	for _, x := range []struct {
		program string
		args    []string
	}{
		{"kube-controller-manager", []string{"--service-account-private-key-file=service-account.key", "--root-ca-file=ca.crt", "--use-service-account-credentials"}},
		{"kube-scheduler", nil},
	} {
		if _, err := c.writeKubeconfig(x.program, "system:"+x.program); err != nil {
			return err
		}
		args := []string{c.program, x.program, "--kubeconfig=" + x.program + ".kubeconfig", "--leader-elect=false", "--bind-address=127.0.0.1"}
		if _, err := c.lab.Start(Command{Name: c.config.called(x.program), Dir: c.dir, Namespace: c.Site.Inside, Args: append(args, x.args...)}); err != nil {
			return err
		}
	}
	return nil
}

// Pod is what the lab looks at in a pod.
type Pod struct {
	Metadata struct {
		Name, Namespace, UID string
		DeletionTimestamp    *time.Time
	}
	Spec   struct{ NodeName string }
	Status struct {
		Phase      string
		Conditions []struct {
			Type, Status, Message string
			LastTransitionTime    time.Time
		}
		ContainerStatuses []struct {
			Ready        bool
			RestartCount int
			State        struct{ Running struct{ StartedAt time.Time } }
		}
	}
}

// Ready says whether all of the pod's containers are.
func (p Pod) Ready() bool {
	for _, c := range p.Status.ContainerStatuses {
		if !c.Ready {
			return false
		}
	}
	return len(p.Status.ContainerStatuses) > 0
}

// Pods lists the pods of a namespace that a label selector names.
func (c *Cluster) Pods(ctx context.Context, namespace, selector string) ([]Pod, error) {
	var list struct{ Items []Pod }
	path := "/api/v1/namespaces/" + namespace + "/pods?labelSelector=" + url.QueryEscape(selector)
	return list.Items, c.Object(ctx, path, &list)
}

// Machine is the one of that name.
func (c *Cluster) Machine(name string) (*Machine, error) {
	for _, m := range c.Machines {
		if m.Name == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("cluster %s has no machine %q", c.Name, name)
}

// Create makes objects, each JSON, in the collection at a path of the API server,
// as its administrator, one after the other on one connection.
func (c *Cluster) Create(ctx context.Context, path string, objects []string) error {
	t := c.admin.Transport.(*http.Transport).Clone()
	t.DisableKeepAlives = false
	defer t.CloseIdleConnections()
	client := &http.Client{Transport: t, Timeout: 10 * time.Second}
	for _, o := range objects {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL+path, strings.NewReader(o))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusCreated {
			return fmt.Errorf("POST %s: %s (%v)", path, resp.Status, err)
		}
	}
	return nil
}
