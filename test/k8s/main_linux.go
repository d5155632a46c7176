// Command k8s puts zt into real clusters, as their admins would, and has kubectl
// do through the overlay everything that it can do: an API server, three machines
// with kubelets and containerd, a second cluster with the same addresses, a third
// that is closed, a relay, a laptop behind another NAT. It needs root.
//
//	go run ./test/k8s               # about 15 minutes
//	go run ./test/k8s -quick        # less data, shorter waits
//	go run ./test/k8s -only verbs   # only the scenes whose names hold that text
//	go run ./test/k8s -stay         # and stay up until Ctrl-C
//	go run ./test/k8s -o k8s.json   # what the table says, for scripts
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/zt-daemon/zt/test/lab"
)

// scenes are played in this order: what breaks something comes last.
var scenes = []scene{
	{"from helm install to the first answer", firstAnswer},
	{"idle", idle},
	{"verbs", verbs},
	{"streams", streams},
	{"helm", helmReleases},
	{"several clusters", severalClusters},
	{"kubeconfig", kubeconfigs},
	{"fifty people", fiftyPeople},
	{"eight streams each way", eightStreams},
	{"policy", policyChanges},
	{"policy, as people see it", policyNotices},
	{"access", access},
	{"access, as people see it", accessNotices},
	{"new key", newKey},
	{"joining", joining},
	{"the page's commands", pageCommands},
	{"informer", informerSaw},
	{"drain", drain},
	{"bad input", badInput},
}

// scene is a part of the play. Its error is of something that kept the scene from
// being played; what it checks goes into the table.
type scene struct {
	name string
	run  func(context.Context, *bed) error
}

func main() {
	quick := flag.Bool("quick", false, "less data, shorter waits")
	only := flag.String("only", "", "play only the scenes whose names hold one of these texts, by commas; the first is always played")
	stay := flag.Bool("stay", false, "stay up after the scenes, until Ctrl-C")
	out := flag.String("o", "", "write the table to this file, as JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, *quick, *stay, *only, *out)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "k8s: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, quick, stay bool, only, out string) (err error) {
	dir, err := os.MkdirTemp("", "zt-k8s-")
	if err != nil {
		return err
	}
	l, err := lab.New(lab.Config{Dir: dir, Say: func(d time.Duration, text string) { fmt.Printf("%7.1fs  %s\n", d.Seconds(), text) }})
	if err != nil {
		return err
	}
	defer func() {
		begin := time.Now()
		err = errors.Join(err, l.Close())
		fmt.Printf("everything was taken down in %s\n", time.Since(begin).Round(100*time.Millisecond))
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			fmt.Fprintf(os.Stderr, "k8s: the logs are kept in %s\n", filepath.Join(dir, "log"))
		}
	}()
	b, err := raise(ctx, l, quick)
	if err != nil {
		return err
	}
	for i, s := range scenes {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if i == 0 || chosen(s.name, only) {
			b.play(ctx, s)
		}
	}
	b.table.print(os.Stdout)
	if stay {
		fmt.Printf("everything stays up until Ctrl-C; the files are in %s\n", dir)
		<-ctx.Done()
	}
	if out != "" {
		if err := b.table.write(out); err != nil {
			return err
		}
	}
	if n := b.table.faults(); n > 0 {
		return fmt.Errorf("%d of %d checks failed", n, len(b.table.rows))
	}
	return nil
}

func chosen(name, only string) bool {
	for text := range strings.SplitSeq(only, ",") {
		if strings.Contains(name, strings.TrimSpace(text)) {
			return true
		}
	}
	return false
}

// play plays a scene. What keeps it from being played is a fault in the table.
func (b *bed) play(ctx context.Context, s scene) {
	b.scene = s.name
	b.lab.Say("scene: %s", s.name)
	begin := time.Now()
	if err := s.run(ctx, b); err != nil {
		b.add(row{What: "the scene", Took: time.Since(begin), Fault: err.Error()})
	}
}
