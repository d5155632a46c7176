package lab

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// Machine is a machine of a Cluster: containerd, kubelet and kube-proxy in
// network, mount, process and host name spaces of their own.
type Machine struct {
	Name      string // of the Kubernetes node too
	Address   string
	Namespace *Namespace
	Process   *Process // its first

	cluster *Cluster
	number  int
	dir     string
	cgroup  string // below each controller
}

//go:embed machine.sh
var machineScript string

// newMachine wires a machine and starts its first process.
func (c *Cluster) newMachine(ctx context.Context, number int, images []string) (*Machine, error) {
	m := &Machine{Name: fmt.Sprintf("machine%d", number), Address: fmt.Sprint(machinePrefix, number), cluster: c, number: number}
	name := fmt.Sprintf("%s-m%d", c.Name, number)
	var err error
	if m.Namespace, err = c.lab.namespace(ctx, name); err != nil {
		return nil, err
	}
	pods := fmt.Sprintf("10.244.%d.0/24", number)
	w := &wiring{lab: c.lab, ctx: ctx}
	w.ip(c.Site.Inside, "link", "add", "m"+fmt.Sprint(number), "type", "veth", "peer", "name", "eth0", "netns", m.Namespace.Name)
	w.ip(c.Site.Inside, "link", "set", "m"+fmt.Sprint(number), "master", "machines", "up")
	w.ip(m.Namespace, "addr", "add", m.Address+"/24", "dev", "eth0")
	w.ip(m.Namespace, "link", "set", "eth0", "up")
	w.ip(m.Namespace, "route", "add", "default", "via", machineGateway)
	w.ip(c.Site.Inside, "route", "add", pods, "via", m.Address) // machines reach each other's pods through their gateway
	if w.err != nil {
		return nil, w.err
	}
	m.cgroup = m.Namespace.Name // unique on this machine
	if err := c.lab.makeCgroup(m.cgroup); err != nil {
		return nil, err
	}
	m.dir = filepath.Join(c.dir, m.Name)
	if err := m.writeFiles(pods); err != nil {
		return nil, err
	}
	return m, m.start(images)
}

// start runs the machine's first process. Its end is the machine's: the kernel
// kills what runs in its process namespace, and unmounts what is in its mounts.
func (m *Machine) start(images []string) (err error) {
	c := m.cluster
	m.Process, err = c.lab.Start(Command{
		Name: c.Name + "-" + m.Name, Dir: m.dir, Namespace: m.Namespace,
		Args: append([]string{"unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
			"bash", "-c", machineScript, "machine", m.Name, c.program, m.Address, PodCIDR, c.URL}, images...),
	})
	return err
}

// Kill takes the machine's power away.
func (m *Machine) Kill() { m.Process.Kill() }

func (m *Machine) socket() string { return filepath.Join(m.dir, "containerd.sock") }

// writeFiles makes the configuration of what runs on the machine.
func (m *Machine) writeFiles(pods string) error {
	for _, dir := range []string{"cni", "certificates"} {
		if err := os.MkdirAll(filepath.Join(m.dir, dir), 0o755); err != nil {
			return err
		}
	}
	c := m.cluster
	file := func(name string) string { return filepath.Join(m.dir, name) }
	if _, err := c.writeKubeconfig(m.Name, "system:node:"+m.Name, "system:nodes"); err != nil {
		return err
	}
	serving, err := c.ca.Server(m.Name, m.Address)
	if err != nil {
		return err
	}
	network, err := json.Marshal(map[string]any{
		"cniVersion": "0.4.0", "name": "pods",
		"plugins": []any{map[string]any{
			"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
			"ipam": map[string]any{"type": "host-local", "ranges": []any{[]any{map[string]any{"subnet": pods}}}, "routes": []any{map[string]any{"dst": "0.0.0.0/0"}}},
		}},
	})
	if err != nil {
		return err
	}
	kubelet, err := yaml.Marshal(map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": "/" + m.cgroup,
		"containerRuntimeEndpoint": "unix://" + m.socket(), "podLogsDir": file("pods"),
		"clusterDNS": []string{dnsHost}, "clusterDomain": clusterDomain, "resolvConf": file("resolv.conf"),
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false}, "webhook": map[string]any{"enabled": true},
			"x509": map[string]any{"clientCAFile": c.file("ca.crt")},
		},
		"authorization": map[string]any{"mode": "Webhook"},
		"tlsCertFile":   file("kubelet.crt"), "tlsPrivateKeyFile": file("kubelet.key"),
		"localStorageCapacityIsolation": false, // a virtual disk is not always found
	})
	if err != nil {
		return err
	}
	const cri = `plugins."io.containerd.grpc.v1.cri"`
	containerd := fmt.Sprintf(`version = 2
root = %q
state = %q
[grpc]
address = %q
[%s]
sandbox_image = %q
restrict_oom_score_adj = true
[%[4]s.cni]
bin_dir = "/usr/lib/cni"
conf_dir = %[6]q
`, file("root"), file("state"), m.socket(), cri, sandboxImage, file("cni"))
	return errors.Join(
		serving.Write(file("kubelet.crt"), file("kubelet.key")),
		os.WriteFile(file("cni/10-pods.conflist"), network, 0o644),
		os.WriteFile(file("kubelet.yaml"), kubelet, 0o644),
		os.WriteFile(file("containerd.toml"), []byte(containerd), 0o644),
		os.WriteFile(file("resolv.conf"), []byte("nameserver "+dnsHost+"\n"), 0o644),
	)
}

// ready is nil once the API server takes the machine for ready.
func (m *Machine) ready(ctx context.Context) error {
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := m.cluster.Object(ctx, "/api/v1/nodes/"+m.Name, &node); err != nil {
		return err
	}
	for _, c := range node.Status.Conditions {
		if c.Type == "Ready" {
			if c.Status == "True" {
				return nil
			}
			return errors.New(c.Message)
		}
	}
	return errors.New("the kubelet has not reported yet")
}

// PodProcess is the process of that program in a pod of this machine, by its
// number as this process sees it.
func (m *Machine) PodProcess(pod Pod, program string) (pid int, err error) {
	dir, err := m.podCgroup(pod)
	if err != nil {
		return 0, err
	}
	pids, err := cgroupProcesses(dir)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil && strings.TrimSpace(string(name)) == program {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("pod %s on %s has no process %s", pod.Metadata.Name, m.Name, program)
}

// Firewall drops what pods and the machine itself send to the addresses of
// prefix; an empty one lets everything pass again.
func (m *Machine) Firewall(ctx context.Context, prefix string) error {
	rules := "table ip firewall\ndelete table ip firewall\n"
	if prefix != "" {
		rules += fmt.Sprintf("table ip firewall {\n\tchain forward {\n\t\ttype filter hook forward priority filter;\n\t\tip daddr %[1]s drop\n\t}\n\tchain output {\n\t\ttype filter hook output priority filter;\n\t\tip daddr %[1]s drop\n\t}\n}\n", prefix)
	}
	return m.cluster.lab.Run(ctx, Command{Name: "nft", Args: []string{"nft", "-f", "-"}, Stdin: strings.NewReader(rules), Namespace: m.Namespace}).OK()
}
