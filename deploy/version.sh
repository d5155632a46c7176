#!/bin/sh
# Prints the version of this tree: the chart's appVersion at the tag that says the
# same, before it APPVERSION-dev.gCOMMIT; with .dirty at the end if what is
# committed is not what is here. It fits in an image's tag and in a label.
set -eu
cd "$(dirname "$0")"
version=$(sed -n 's/^appVersion: *"\(.*\)"$/\1/p' helm/zt/Chart.yaml)
if ! commit=$(git rev-parse --verify --short=12 HEAD 2>/dev/null); then
	echo "$version-dev"
	exit
fi
dirty=
[ -z "$(git status --porcelain 2>/dev/null)" ] || dirty=.dirty
tag=$(git tag --points-at HEAD | grep -m 1 -E '^v[0-9]' || :)
if [ -n "$tag" ] && [ "$tag" != "v$version" ]; then
	echo "this commit is tagged $tag, and appVersion of deploy/helm/zt/Chart.yaml is $version: they must be the same" >&2
	exit 1
fi
if [ -n "$tag" ] && [ -z "$dirty" ]; then
	echo "$version"
else
	echo "$version-dev.g$commit$dirty"
fi
