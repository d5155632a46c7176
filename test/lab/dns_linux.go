package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	dnsHost       = "10.96.0.10"
	clusterDomain = "cluster.local"
	dnsLife       = 5 // seconds that an answer may be kept
)

// dnsService makes dnsHost a service whose one endpoint is the control plane.
const dnsService = `apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: ` + dnsHost + `
  ports: [{name: dns, port: 53, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns-1, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}]
endpoints: [{addresses: ["` + ClusterHost + `"]}]
`

// startDNS serves the names of the cluster's services to its pods, over UDP. It
// knows no others.
func (c *Cluster) startDNS(ctx context.Context) error {
	if err := c.Kubectl(ctx, strings.NewReader(dnsService), "apply", "-f", "-").OK(); err != nil {
		return fmt.Errorf("make the DNS service: %w", err)
	}
	var conn net.PacketConn
	if err := c.Site.Inside.Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", ClusterHost+":53")
		return err
	}); err != nil {
		return fmt.Errorf("serve DNS: %w", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // ends with the lab
	var wg sync.WaitGroup
	c.lab.Cleanup(func() error {
		cancel()
		err := conn.Close()
		wg.Wait()
		return err
	})
	wg.Go(func() {
		question := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(question)
			if err != nil {
				return // closed
			}
			message := append([]byte(nil), question[:n]...)
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
				defer cancel()
				if answer, err := c.resolve(ctx, message); err == nil {
					_, _ = conn.WriteTo(answer, from) // who asked asks again
				}
			})
		}
	})
	return nil
}

// resolve answers a DNS question by what the API server says of services.
func (c *Cluster) resolve(ctx context.Context, message []byte) ([]byte, error) {
	var p dnsmessage.Parser
	header, err := p.Start(message)
	if err != nil {
		return nil, err
	}
	question, err := p.Question()
	if err != nil {
		return nil, err
	}
	address, ok := c.service(ctx, strings.ToLower(question.Name.String()))
	reply := dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true, RecursionDesired: header.RecursionDesired}
	if !ok {
		reply.RCode = dnsmessage.RCodeNameError
	}
	b := dnsmessage.NewBuilder(nil, reply)
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if err := b.Question(question); err != nil {
		return nil, err
	}
	if ok && question.Type == dnsmessage.TypeA {
		if err := b.StartAnswers(); err != nil {
			return nil, err
		}
		head := dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: dnsLife}
		if err := b.AResource(head, dnsmessage.AResource{A: address.As4()}); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// service is the address of NAME.NAMESPACE.svc.cluster.local.
func (c *Cluster) service(ctx context.Context, name string) (netip.Addr, bool) {
	name, ok := strings.CutSuffix(name, ".svc."+clusterDomain+".")
	labels := strings.Split(name, ".")
	if !ok || len(labels) != 2 {
		return netip.Addr{}, false
	}
	var service struct{ Spec struct{ ClusterIP string } }
	if err := c.Object(ctx, "/api/v1/namespaces/"+labels[1]+"/services/"+labels[0], &service); err != nil {
		return netip.Addr{}, false
	}
	address, err := netip.ParseAddr(service.Spec.ClusterIP)
	return address, err == nil && address.Is4()
}
