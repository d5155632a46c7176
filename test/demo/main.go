// Command demo plays the whole of zt on this machine's loopback, as an ordinary
// user, and tells what happens line by line: an issuer, a relay, a node, two
// laptops and a real Kubernetes API server, each a process of its own.
//
//	go run ./test/demo            # stays up until Ctrl-C
//	go run ./test/demo -check     # unattended: exits 0 or 1
//	go run ./test/demo -context c # fronts the cluster of your own context
//	go run ./test/demo -bench     # what zt adds to a call, on loopback
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/zt-daemon/zt/test/lab"
)

// cluster is the demo's one cluster.
const cluster = "demo"

func main() {
	check := flag.Bool("check", false, "run unattended, then end: exit code 0 or 1")
	own := flag.String("context", "", "front the cluster of this kubeconfig context instead of starting one")
	bench := flag.Bool("bench", false, "measure what zt adds to a call")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, *check, *bench, *own)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, check, bench bool, own string) (err error) {
	dir, err := os.MkdirTemp("", "zt-demo-")
	if err != nil {
		return err
	}
	l, err := lab.New(lab.Config{Dir: dir, Say: func(d time.Duration, text string) { fmt.Printf("%7.1fs  %s\n", d.Seconds(), text) }})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, l.Close())
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			fmt.Fprintf(os.Stderr, "demo: the logs are kept in %s\n", filepath.Join(dir, "log"))
		}
	}()
	module, err := lab.ModuleDir(ctx)
	if err != nil {
		return err
	}
	c := lab.SceneConfig{Module: module, Cluster: cluster, Context: own, Kubeconfig: os.Getenv("KUBECONFIG")}
	if own == "" {
		if c.Kubernetes, err = l.BuildKubernetes(ctx, module); err != nil {
			return err
		}
	}
	scene, err := l.NewScene(ctx, c)
	if err != nil {
		return err
	}
	s := &story{Scene: scene, own: own}
	if bench {
		return s.bench(ctx)
	}
	if err := s.tell(ctx); err != nil {
		return err
	}
	if check {
		fmt.Println("\ndemo: everything above happened as it should")
		return nil
	}
	s.invite()
	<-ctx.Done()
	fmt.Println("\ndemo: taking everything down")
	return nil
}
