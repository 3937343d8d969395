#!/usr/bin/env bash
# A two-node VDC between two network namespaces, for measuring it beside other VPNs.
#
#   mesh-contender.sh up NAMESPACE_A NAMESPACE_B IP_A IP_B    founds a VDC in A, joins B by token, prints "TA TB"
#   mesh-contender.sh down                                    ends both daemons
#
# The daemons are the built release binaries (MESHD_BIN_DIR, or target/release of this checkout). TA and TB are the hosts'
# own overlay addresses; MESH_FAMILY=4 (the default) or 6 chooses the family. The given IPs are not used: a VDC's
# addresses follow from its keys. MP_DIR is a scratch folder.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
bin=${MESHD_BIN_DIR:-$here/target/release}
dir=${MP_DIR:-/tmp}/meshd-contender

stop() {
    for pid in $(cat "$dir/pids" 2>/dev/null); do
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 100); do # it still writes down what must survive
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    done
    rm -rf "$dir"
}

ctl() { # NODE WORDS…
    local node=$1
    shift
    "$bin/meshctl" --socket "$dir/$node/meshd.sock" "$@"
}

field() { # NAME: its first string value in the JSON on standard input
    grep -o "\"$1\": *\"[^\"]*\"" | head -1 | cut -d'"' -f4
}

start() { # NODE NAMESPACE
    mkdir -p "$dir/$1/run"
    printf 'state_dir = "%s"\nsocket = "%s"\nlog = "warn"\n[dns]\nmode = "off"\n[network]\nmdns = false\n' \
        "$dir/$1/state" "$dir/$1/meshd.sock" >"$dir/$1/meshd.toml"
    # A private /run: two daemons on one machine would otherwise pin their namespaces at the same place.
    ip netns exec "$2" unshare -m sh -c \
        "mount --make-rprivate / && mount --bind '$dir/$1/run' /run && exec '$bin/meshd' --config '$dir/$1/meshd.toml'" \
        >"$dir/$1/log" 2>&1 </dev/null &
    echo $! >>"$dir/pids"
    for _ in $(seq 100); do
        if ctl "$1" vdc list >/dev/null 2>&1; then
            return
        fi
        sleep 0.1
    done
    cat "$dir/$1/log" >&2
    return 1
}

case ${1:-} in
up)
    stop
    mkdir -p "$dir"
    start a "$2"
    start b "$3"
    ctl a vdc create bench --site a --node-name a1 >/dev/null
    token=$(ctl a invite create --site b -o json | field token)
    ctl b join "$token" --node-name b1 >/dev/null
    for node in a b; do
        ctl $node expose 5201/tcp 5201/udp >/dev/null
    done
    key=ipv4
    [ "${MESH_FAMILY:-4}" = 6 ] && key=ipv6
    echo "$(ctl a node show a1 -o json | field $key) $(ctl b node show b1 -o json | field $key)"
    ;;
down) stop ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
