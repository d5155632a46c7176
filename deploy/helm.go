package deploy

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// chart is where the chart lies, seen from the top of the project.
const chart = "./deploy/helm/zt"

// Helm is the words of the command that installs i, or, where an installation is
// there already, changes it and keeps the values that a person gave. flags say
// which cluster is meant.
func (i Install) Helm(upgrade bool, flags ...string) []string {
	words := []string{"helm", "install", Name, chart}
	if upgrade {
		words[1] = "upgrade"
		flags = append(flags, "--reset-then-reuse-values")
	}
	words = append(words, "--namespace", i.Namespace)
	words = append(words, flags...)
	// Strings, so that a cluster by the name of 42 is none by the number.
	set := func(name, value string) {
		if value == "" {
			return
		}
		words = append(words, "--set-string", name+"="+strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(value))
	}
	set("network", i.Network)
	set("cluster", i.Cluster)
	set("relay", i.Relay)
	set("upstream", i.Upstream)
	set("clusterKeyHash", i.KeyHash)
	if i.Placement.Mode != "" {
		words = append(words, "--set", "mode="+i.Placement.Mode)
	}
	if i.Placement.Mode == Deployment {
		words = append(words, "--set", fmt.Sprintf("replicas=%d", i.Placement.Replicas))
	}
	setJSON := func(name string, value any) {
		b, err := json.Marshal(value)
		if err != nil {
			panic(err) // maps and structs of strings
		}
		words = append(words, "--set-json", name+"="+string(b))
	}
	if len(i.Placement.NodeSelector) > 0 {
		setJSON("nodeSelector", i.Placement.NodeSelector)
	}
	if len(i.Placement.Tolerations) > 0 {
		setJSON("tolerations", i.Placement.Tolerations)
	}
	repository, tag, digest := splitImage(i.Image)
	set("image.repository", repository)
	set("image.tag", tag)
	set("image.digest", digest)
	return words
}

// splitImage takes REPOSITORY[:TAG][@DIGEST] apart. A colon before the last slash
// is a port's.
func splitImage(image string) (repository, tag, digest string) {
	repository, digest, _ = strings.Cut(image, "@")
	if colon := strings.LastIndexByte(repository, ':'); colon > strings.LastIndexByte(repository, '/') {
		repository, tag = repository[:colon], repository[colon+1:]
	}
	return repository, tag, digest
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-]+$`)

// Quote writes words as a shell takes them, quoted where they must be.
func Quote(words []string) string {
	quoted := make([]string, len(words))
	for n, w := range words {
		quoted[n] = w
		if !plainWord.MatchString(w) {
			quoted[n] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
