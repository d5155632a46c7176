#!/bin/sh
# Checks that the tools named as arguments are there, and names each that is
# missing with the line that installs it on Debian or Ubuntu.
#
#	sh test/tools.sh go git make gcc kubectl
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
missing=0

lack() { # WHAT, then the lines that install it
	[ $missing = 1 ] || echo "missing on this machine:" >&2
	missing=1
	echo "  $1" >&2
	shift
	for line; do echo "      $line" >&2; done
}

arch=$(uname -m)
case $arch in x86_64) arch=amd64 ;; aarch64) arch=arm64 ;; esac

# older A B: version A is less than B
older() { [ "$1" != "$2" ] && [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

for tool; do
	case $tool in
	go)
		want=$(sed -n 's/^go //p' "$root/go.mod")
		line="curl -fL https://go.dev/dl/go$want.linux-$arch.tar.gz | sudo tar -C /usr/local -xz && export PATH=\$PATH:/usr/local/go/bin"
		if ! command -v go >/dev/null; then
			lack "go: Go $want or newer" "$line"
		elif have=$(cd / && GOTOOLCHAIN=local go env GOVERSION | sed 's/^go//; s/[^0-9.].*//') && older "$have" 1.21; then
			lack "go: Go $have is here, Go $want or newer is needed" "$line" # 1.21 and newer fetch what go.mod asks for
		fi
		;;
	kubectl)
		line="curl -fLO https://dl.k8s.io/release/v1.37.2/bin/linux/$arch/kubectl && sudo install -m 755 kubectl /usr/local/bin/ && rm kubectl"
		if ! command -v kubectl >/dev/null; then
			lack "kubectl: 1.24 or newer" "$line" "or: sudo snap install kubectl --classic"
		elif have=$(kubectl version --client -o yaml 2>/dev/null | sed -n 's/^ *gitVersion: v\([0-9.]*\).*/\1/p' | head -n 1) && [ -n "$have" ] && older "$have" 1.24; then
			lack "kubectl: $have is here, 1.24 or newer is needed (exec credential v1)" "$line"
		fi
		;;
	ip) command -v ip >/dev/null || lack "ip" "sudo apt-get install -y iproute2" ;;
	nft) command -v nft >/dev/null || [ -x /usr/sbin/nft ] || lack "nft" "sudo apt-get install -y nftables" ;;
	/usr/lib/cni/*) [ -x "$tool" ] || lack "$tool" "sudo apt-get install -y containernetworking-plugins" ;;
	busybox) command -v busybox >/dev/null || lack "busybox, statically linked" "sudo apt-get install -y busybox-static" ;;
	runc) command -v runc >/dev/null || [ -x /usr/sbin/runc ] || lack "runc" "sudo apt-get install -y runc" ;;
	conntrack) command -v conntrack >/dev/null || [ -x /usr/sbin/conntrack ] || lack "conntrack" "sudo apt-get install -y conntrack" ;;
	script) command -v script >/dev/null || lack "script" "sudo apt-get install -y bsdutils" ;;
	*) command -v "$tool" >/dev/null || lack "$tool" "sudo apt-get install -y $tool" ;;
	esac
done
exit $missing
