#!/bin/bash
# Shows kube-ferry at work between network namespaces: a node with three pods and a client, and a host outside.
# Needs root, ip, nft and socat; `make demo` sees to that and builds the binary. Leaves nothing behind.
set -euo pipefail

[[ $EUID == 0 ]] || { echo "demo: network namespaces need root" >&2; exit 1; }
binary=$(realpath "${1:?usage: demo.sh PATH-OF-KUBE-FERRY}")
examples=$(realpath "$(dirname "$0")")/examples
id=kfdemo-$$
work=$(mktemp -d)
children=()

clean_up() {
    trap '' INT TERM
    # The servers and the proxy are children of this shell, and ours to end.
    for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
    wait 2>/dev/null || true
    for namespace in node outside client pod-a pod-b pod-c; do
        ip netns del "$id-$namespace" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }
inside() { local namespace=$id-$1; shift; ip netns exec "$namespace" "$@"; }

# until_true SECONDS COMMAND...: asks again and again, within a bound.
until_true() {
    local deadline=$((SECONDS + $1)); shift
    until "$@"; do
        if ((SECONDS > deadline)); then
            echo "demo: gave up waiting for: $*" >&2
            [[ ! -f $work/log ]] || cat "$work/log" >&2
            exit 1
        fi
        sleep 0.05
    done
}

# link NAMESPACE GATEWAY4 GATEWAY6 ADDRESS4 ADDRESS6: a routed link to the node, as a CNI's point-to-point plugin makes it.
link() {
    ip netns add "$id-$1"
    ip -n "$id-node" link add "$1" type veth peer name eth0 netns "$id-$1"
    ip -n "$id-node" -batch - <<END
link set $1 up
address add $2/32 dev $1
address add $3/128 dev $1 nodad
route add $4 dev $1
route add $5 dev $1
END
    ip -n "$id-$1" -batch - <<END
link set lo up
link set eth0 up
address add $4/32 dev eth0
address add $5/128 dev eth0 nodad
route add $2 dev eth0
route add default via $2 dev eth0
route add $3 dev eth0
route add default via $3 dev eth0
END
}

lay_out() {
    ip netns add "$id-node"
    ip -n "$id-node" link set lo up
    inside node bash -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
    link outside 192.0.2.1 2001:db8::1 203.0.113.2 2001:db8:113::2
    link client 10.244.1.1 fd00:10:244:1::1 10.244.1.20 fd00:10:244:1::20
    link pod-a 10.244.1.1 fd00:10:244:1::1 10.244.1.10 fd00:10:244:1::10
    link pod-b 10.244.1.1 fd00:10:244:1::1 10.244.1.11 fd00:10:244:1::11
    link pod-c 10.244.1.1 fd00:10:244:1::1 10.244.1.12 fd00:10:244:1::12
}

# A server that says its name and whom it sees, and hangs up.
serve() {
    local protocol only
    for protocol in TCP4 TCP6; do
        only=$([[ $protocol == TCP4 ]] || echo ,ipv6only=1)
        ip netns exec "$id-$1" socat "$protocol-LISTEN:8080$only,fork,reuseaddr,backlog=256" \
            SYSTEM:"echo $1 sees \$SOCAT_PEERADDR" 2>/dev/null &
        children+=($!)
    done
}

listens() { inside "$1" ss -Hltn 'sport = :8080' | wc -l | grep -x 2 >/dev/null; }

# ask FROM ADDRESS PORT [COUNT]: what the servers say to so many connections.
ask() {
    inside "$1" bash -c '
        for ((i = 0; i < $3; i++)); do
            if exec 3<>"/dev/tcp/$1/$2"; then cat <&3; exec 3>&-; else echo refused; fi
        done 2>/dev/null' - "$2" "$3" "${4:-1}"
}

counts() { cut -d' ' -f1 | sort | uniq -c; }

metrics() {
    inside node bash -c 'exec 3<>/dev/tcp/127.0.0.1/10249 &&
        printf "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n" >&3 && cat <&3' 2>/dev/null
}

synced() { metrics | grep '^kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} [1-9]' >/dev/null; }

common=(--proxy-mode=nftables --manifests "$work/manifests" --hostname-override node-1 --cluster-cidr 10.244.0.0/16,fd00:10:244::/48)

title "A node with three pods and a client, and a host outside; each a network namespace"
lay_out
for pod in pod-a pod-b pod-c; do serve "$pod"; done
for pod in pod-a pod-b pod-c; do until_true 10 listens "$pod"; done
ip netns list | grep -o "$id-[a-z-]*" | sort | xargs

title "The objects: deploy/examples"
cp -r "$examples" "$work/manifests"
grep -H '^kind:\|^  name:' "$work"/manifests/*.yaml | sed "s|$work/manifests/||" | paste - - |
    sed -E 's/^([^:]+):kind: (\S+).*name: (.*)$/  \1\t\2 \3/'

title "kube-ferry starts on the node"
ip netns exec "$id-node" "$binary" "${common[@]}" >"$work/log" 2>&1 &
proxy=$!
children+=("$proxy")
until_true 15 synced
tail -n 3 "$work/log"

title "300 connections from the client pod to the cluster IP 10.96.0.10:80"
ask client 10.96.0.10 80 300 | counts
echo "The pods see the client itself: $(ask client 10.96.0.10 80)"
title "The same over IPv6, [fd00:10:96::10]:80"
ask client fd00:10:96::10 80 300 | counts
title "From outside: NodePort 192.0.2.1:30080, and the load balancer's address 198.51.100.7:80"
ask outside 192.0.2.1 30080 150 | counts
ask outside 198.51.100.7 80 150 | counts
title "Session affinity: 100 connections to 10.96.0.11:80 reach one pod"
ask client 10.96.0.11 80 100 | counts
title "A Service without pods, 10.96.0.12:80, refuses"
ask client 10.96.0.12 80

title "A manifest changes: pod-b leaves the Service web"
sed '/10\.244\.1\.11\|fd00:10:244:1::11/d' "$examples/web.yaml" >"$work/web.new"
before=$EPOCHREALTIME
mv "$work/web.new" "$work/manifests/web.yaml"
gone() { ! ask client 10.96.0.10 80 30 | grep pod-b >/dev/null; }
until_true 10 gone
printf 'arrived in less than %d ms (30 connections without it included)\n' $(((${EPOCHREALTIME/./} - ${before/./}) / 1000))
ask client 10.96.0.10 80 300 | counts

title "A restart writes nothing"
kill -TERM "$proxy"
wait "$proxy" || true
echo "while it is away: $(ask client 10.96.0.10 80 | cut -d' ' -f1) answers"
# Without who owns the tables, which nobody does meanwhile.
ruleset() { inside node nft -s list ruleset | sed 's/ # progname .*//; /^\tflags /d; /^$/d' | md5sum; }
before=$(ruleset)
ip netns exec "$id-node" "$binary" "${common[@]}" >"$work/log" 2>&1 &
proxy=$!
children+=("$proxy")
until_true 15 synced
after=$(ruleset)
[[ $before == "$after" ]] && echo "the ruleset is the same" || echo "the ruleset has changed"
echo "operations written since the start: $(metrics | sed -n 's/^kubeferry_operations_total //p')"

title "What it would program, without touching anything (--dry-run): the Service web in it"
"$binary" "${common[@]}" --dry-run >"$work/dump"
grep '^ *10\.96\.0\.10[ ,]' "$work/dump"
echo "... of $(wc -l <"$work/dump") lines of nft input; accepted by nft -f: $(inside outside nft -c -f "$work/dump" && echo yes)"

title "Some metrics"
metrics | grep -E '^kubeproxy_(sync_proxy_rules_last_timestamp|sync_proxy_rules_duration_seconds_(sum|count)|sync_proxy_rules_(service|endpoint)_changes_total)|^kubeferry_set_elements.*[1-9]$' | head -30

title "--cleanup removes everything"
kill -TERM "$proxy"
wait "$proxy" || true
inside node "$binary" --cleanup
echo "tables left: $(inside node nft list tables | wc -l)"
