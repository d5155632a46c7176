package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// tally is what an informer has seen so far; each line that it prints is one.
type tally struct {
	Objects int   `json:"objects"` // in its store
	Added   int64 `json:"added"`
	Updated int64 `json:"updated"` // to another resource version
	Deleted int64 `json:"deleted"`
	Resyncs int64 `json:"resyncs"` // objects handed over again, unchanged
	Faults  int64 `json:"faults"`  // watches that ended with an error
}

// newInformerCommand follows the ConfigMaps of a namespace as a controller does,
// with client-go's shared informer, and prints a tally each second until it is
// told to stop.
func newInformerCommand() *cobra.Command {
	var kubeContext, namespace string
	var resync time.Duration
	cmd := &cobra.Command{Use: "informer", Args: cobra.NoArgs, SilenceUsage: true, RunE: func(*cobra.Command, []string) error {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return inform(ctx, kubeContext, namespace, resync)
	}}
	cmd.Flags().StringVar(&kubeContext, "context", "", "context of the kubeconfig")
	cmd.Flags().StringVar(&namespace, "namespace", "default", "whose ConfigMaps to follow")
	cmd.Flags().DurationVar(&resync, "resync", 10*time.Second, "how often the store is handed over again")
	return cmd
}

func inform(ctx context.Context, kubeContext, namespace string, resync time.Duration) error {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(),
		&clientcmd.ConfigOverrides{CurrentContext: kubeContext}).ClientConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, resync, informers.WithNamespace(namespace))
	informer := factory.Core().V1().ConfigMaps().Informer()
	var added, updated, deleted, resyncs, faults atomic.Int64
	if err := informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		faults.Add(1)
		fmt.Fprintln(os.Stderr, "watch:", err)
	}); err != nil {
		return err
	}
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { added.Add(1) },
		DeleteFunc: func(any) { deleted.Add(1) },
		UpdateFunc: func(was, is any) {
			if was.(*corev1.ConfigMap).ResourceVersion == is.(*corev1.ConfigMap).ResourceVersion {
				resyncs.Add(1)
			} else {
				updated.Add(1)
			}
		},
	}); err != nil {
		return err
	}
	factory.StartWithContext(ctx)
	defer factory.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return fmt.Errorf("the informer's store is not complete: %w", context.Cause(ctx))
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	out := json.NewEncoder(os.Stdout)
	for {
		t := tally{len(informer.GetStore().ListKeys()), added.Load(), updated.Load(), deleted.Load(), resyncs.Load(), faults.Load()}
		if err := out.Encode(t); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
