#!/bin/sh
# Prints the version of this tree, as git knows it: 1.2.3 at the tag v1.2.3, before
# and after it 0.0.0-dev.gCOMMIT; with .dirty at the end if what is committed is
# not what is here. It fits in an image's tag, a label and a chart's appVersion.
set -eu
cd "$(dirname "$0")"
if ! commit=$(git rev-parse --verify --short=12 HEAD 2>/dev/null); then
	echo 0.0.0-dev
	exit
fi
dirty=
[ -z "$(git status --porcelain 2>/dev/null)" ] || dirty=.dirty
tag=$(git tag --points-at HEAD --sort=-v:refname | grep -m 1 -E '^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$' || :)
if [ -n "$tag" ] && [ -z "$dirty" ]; then
	echo "${tag#v}"
else
	echo "0.0.0-dev.g$commit$dirty"
fi
