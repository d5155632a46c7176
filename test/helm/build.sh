#!/bin/sh
# Builds the Helm that the tests run, once for each go.sum, and prints the
# executable's path. About 2 minutes on two idle cores the first time.
set -eu
cd "$(dirname "$0")"
hash=$(cat go.mod go.sum build.sh | sha256sum | cut -c1-16)
dir=${XDG_CACHE_HOME:-$HOME/.cache}/zt-helm
out=$dir/helm-$hash
if [ ! -x "$out" ]; then
	mkdir -p "$dir"
	version=$(sed -n 's|^	helm.sh/helm/v3 v\([^ ]*\).*|\1|p' go.mod)
	echo "building Helm v$version from its Go modules; the first time this takes about 2 minutes on two cores" >&2
	# The Kubernetes version that `helm template` and `helm lint` assume, which a plain build leaves at 1.20.
	minor=$(sed -n 's|^	k8s.io/client-go v0\.\([0-9]*\).*|\1|p' go.mod)
	p=helm.sh/helm/v3
	CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly nice go build -trimpath \
		-ldflags "-s -w -X $p/internal/version.version=v$version -X $p/pkg/chartutil.k8sVersionMinor=$minor -X $p/pkg/lint/rules.k8sVersionMinor=$minor" \
		-o "$out.$$" helm.sh/helm/v3/cmd/helm >&2
	mv "$out.$$" "$out"
fi
echo "$out"
