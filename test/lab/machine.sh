# The first process of a machine: its name, the Kubernetes executable, its
# address, the pods' addresses, the API server's URL; then archives of images.
# It stands in the machine's directory.
set -eu
name=$1 kubernetes=$2 address=$3 pods=$4 server=$5
shift 5
hostname "$name"
mkdir -p /var/lib/cni
mount -t tmpfs run /run
mount -t tmpfs cni /var/lib/cni

containerd --config containerd.toml >containerd.log 2>&1 &
until ctr --address containerd.sock version >/dev/null 2>&1; do sleep 0.1; done
for archive; do ctr --address containerd.sock --namespace k8s.io images import "$archive"; done

"$kubernetes" kubelet --config=kubelet.yaml --kubeconfig="../$name.kubeconfig" --hostname-override="$name" --node-ip="$address" \
	--root-dir="$PWD/kubelet" --cert-dir="$PWD/certificates" >kubelet.log 2>&1 &
# Limits of connection tracking are the machine's own to set, and not all may.
"$kubernetes" kube-proxy --proxy-mode=nftables --kubeconfig=../kube-proxy.kubeconfig --hostname-override="$name" --cluster-cidr="$pods" \
	--conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 >kube-proxy.log 2>&1 &
set +e
wait -n # one of them ended, and so does the machine
echo "one of containerd, kubelet and kube-proxy ended with code $?:"
tail -n 5 containerd.log kubelet.log kube-proxy.log
