#!/bin/sh
# Renders deploy/kustomize from the Helm chart; with --check it only compares, and
# fails when what is there is not what the chart says.
set -eu
cd "$(dirname "$0")"
helm=$(sh ../test/helm/build.sh)
out=kustomize
if [ "${1-}" = --check ]; then
	out=$(mktemp -d)
	trap 'rm -rf "$out"' EXIT
fi

# What Helm writes about itself has no meaning without it.
plain() {
	sed -e '/^# Source:/d' -e '/^ *helm.sh\/chart:/d' -e '/^ *app.kubernetes.io\/managed-by:/d' \
		-e '/^ *annotations:$/{N;/\n *\(checksum\/node\|helm.sh\/resource-policy\):/d;}'
}

# render MODE TEMPLATE: a placeholder network, which node.yaml says to replace.
render() {
	"$helm" template zt helm/zt --namespace zt --show-only "templates/$2.yaml" --set "mode=$1" \
		--set network=kq3v7m2xw5r6p4dzs5fog7h2j3k4l5m6,cluster=c1,relay=https://relay.example.com | plain
}

list() { # DIRECTORY RESOURCE… : its kustomization
	dir=$1
	shift
	printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: zt\nresources:\n' >"$out/$dir/kustomization.yaml"
	printf -- '- %s\n' "$@" >>"$out/$dir/kustomization.yaml"
}

mkdir -p "$out/base" "$out/daemonset" "$out/deployment"
for t in accessgrants-crd serviceaccount rbac networkpolicy service; do render daemonset $t >"$out/base/$t.yaml"; done
render daemonset daemonset >"$out/daemonset/daemonset.yaml"
render deployment deployment >"$out/deployment/deployment.yaml"
render deployment poddisruptionbudget >"$out/deployment/poddisruptionbudget.yaml"

# node.yaml by itself, so that an overlay can put its own in its place.
{
	echo "# Put your own here: \`zt-daemon cluster add\` knows network, cluster and relay."
	render daemonset configmap | sed -n '/^  node.yaml: |$/,$ { /^  node.yaml/d; s/^    //p; }'
} >"$out/base/node.yaml"
list base accessgrants-crd.yaml serviceaccount.yaml rbac.yaml networkpolicy.yaml service.yaml
cat >>"$out/base/kustomization.yaml" <<'EOF'
configMapGenerator:
- name: zt-node
  files: [node.yaml]
EOF
list daemonset ../base daemonset.yaml
list deployment ../base deployment.yaml poddisruptionbudget.yaml

if [ "$out" != kustomize ] && ! diff -ru kustomize "$out" >&2; then
	echo "deploy/kustomize is not what the chart renders: run \`sh deploy/render.sh\`" >&2
	exit 1
fi
