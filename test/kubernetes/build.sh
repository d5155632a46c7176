#!/bin/sh
# Builds the Kubernetes programs the tests run, once for each go.sum, and prints
# the executable's path. About 8 minutes on two idle cores the first time.
#
# Always built in exactly this way: another CGO_ENABLED, or go vet, would compile
# all of Kubernetes again.
set -eu
cd "$(dirname "$0")"
hash=$(cat go.mod go.sum informer.go main.go | sha256sum | cut -c1-16)
dir=${XDG_CACHE_HOME:-$HOME/.cache}/zt-kubernetes
out=$dir/kubernetes-$hash
if [ ! -x "$out" ]; then
	mkdir -p "$dir"
	gitVersion=$(sed -n 's|^require k8s.io/kubernetes v||p; s|^	k8s.io/kubernetes v\([^ ]*\).*|\1|p' go.mod | head -n 1)
	v=k8s.io/component-base/version
	echo "building Kubernetes v$gitVersion from its Go modules; the first time this takes about 8 minutes on two cores" >&2
	CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly nice go build -trimpath \
		-ldflags "-s -w -X $v.gitVersion=v$gitVersion -X $v.gitMajor=1 -X $v.gitMinor=$(echo "$gitVersion" | cut -d. -f2)" \
		-o "$out.$$" . >&2
	mv "$out.$$" "$out"
fi
echo "$out"
