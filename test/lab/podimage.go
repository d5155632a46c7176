package lab

import (
	"context"
	"debug/elf"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"strings"
)

// PodImage is the image of the lab's pods: a shell and its usual companions.
const PodImage = "registry.test/busybox:1"

// sandboxImage is what containerd holds a pod's namespaces with.
const sandboxImage = "registry.test/pause:1"

// WritePodImages makes archives of PodImage and of what every pod needs beside
// its containers, from this machine's statically linked busybox. more are
// programs of this machine that PodImage has too, by their paths there.
func (l *Lab) WritePodImages(ctx context.Context, more map[string]string) (files []string, err error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("write images of pods: %w (Debian: apt-get install busybox-static)", err)
	}
	if err := static(busybox); err != nil {
		return nil, fmt.Errorf("write images of pods: %w (Debian: apt-get install busybox-static)", err)
	}
	r := l.Run(ctx, Command{Name: "busybox", Args: []string{busybox, "--list"}})
	if err := r.OK(); err != nil {
		return nil, fmt.Errorf("write images of pods: %w", err)
	}
	pods := Image{
		Name: PodImage, Programs: map[string]string{"/bin/busybox": busybox}, Links: map[string]string{},
		Directories: []string{"/tmp"}, Entrypoint: []string{"/bin/sh"},
	}
	maps.Copy(pods.Programs, more)
	for _, applet := range strings.Fields(r.Stdout) {
		if applet != "busybox" {
			pods.Links["/bin/"+applet] = "busybox"
		}
	}
	sandbox := Image{
		Name: sandboxImage, Programs: map[string]string{"/bin/busybox": busybox}, Links: map[string]string{"/bin/sleep": "busybox"},
		Entrypoint: []string{"/bin/sleep", "2147483647"}, User: "65535:65535",
	}
	for _, i := range []Image{sandbox, pods} {
		file := filepath.Join(l.Dir, strings.NewReplacer("/", "-", ":", "-").Replace(i.Name)+".tar")
		if err := i.Write(file); err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// static is nil if an executable needs no other file to run.
func static(program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is linked dynamically", program)
		}
	}
	return nil
}
