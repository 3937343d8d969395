#!/bin/sh
# One daemon with a VDC of its own, for measuring how long a container takes to start beside other runtimes.
#
#   start-contender.sh up          starts it in namespaces of its own, imports busybox, prints the command that `start` runs
#   start-contender.sh start ID    runs /bin/true in a new container with limits and a network, and waits for its end
#   start-contender.sh down        ends it; prints the processor time of daemon and shims per `start`
#
# The programs are the built ones (MESHD_BIN_DIR, or target/release of this checkout). The image is a root with busybox: the
# one beside BUNDLE, where that names an OCI bundle, or one made here. MP_DIR is a scratch folder, on a file system that
# overlays can be made of.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
bin=${MESHD_BIN_DIR:-$here/target/release}
dir=${MP_DIR:-/tmp}/meshd-start-contender
run=/dev/shm/meshd-start-contender # in memory, as /run/meshd is
socket=$run/meshd.sock
cgroup=/meshd-start-contender

# First, because it is what is measured.
if [ "${1:-}" = start ]; then
    echo "${2:-}" >>"$dir/starts"
    exec "$bin/meshctl" --socket "$socket" run --rm --memory 64M --cpus 0.5 --pids 32 localhost/bb:1 /bin/true
fi

ticks() { # ticks of processor time of the daemon and of all its children that ended
    # The program's name may hold blanks; behind it stand utime, stime, cutime, cstime as fields 12 to 15.
    sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 + $14 + $15 }'
}

stop() {
    pid=$(cat "$dir/pid" 2>/dev/null || true)
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null || true
        tries=100 # it still writes down what must survive
        while kill -0 "$pid" 2>/dev/null && [ $tries -gt 0 ]; do
            sleep 0.1
            tries=$((tries - 1))
        done
    fi
    find /sys/fs/cgroup -depth -path "*$cgroup*" -type d -exec rmdir {} + 2>/dev/null || true
    rm -rf "$dir" "$run"
}

layout() { # ROOT: packs it as an OCI layout with one image, called 1
    blobs=$dir/layout/blobs/sha256
    mkdir -p "$blobs"
    tar --owner=0 --group=0 --numeric-owner -C "$1" -cf "$dir/layer.tar" .
    layer=$(blob "$dir/layer.tar")
    case $(uname -m) in aarch64) architecture=arm64 ;; *) architecture=amd64 ;; esac
    printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
        $architecture "${layer% *}" >"$dir/config.json"
    config=$(blob "$dir/config.json")
    kind=application/vnd.oci.image
    printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":%s,"layers":[%s]}' $kind \
        "$(descriptor config.v1+json $config)" "$(descriptor layer.v1.tar $layer)" >"$dir/manifest.json"
    manifest=$(descriptor manifest.v1+json $(blob "$dir/manifest.json"))
    printf '{"schemaVersion":2,"manifests":[%s]}' \
        "${manifest%\}},\"annotations\":{\"org.opencontainers.image.ref.name\":\"1\"}}" >"$dir/layout/index.json"
    printf '{"imageLayoutVersion":"1.0.0"}' >"$dir/layout/oci-layout"
}

blob() { # FILE: moves it into the layout, prints its digest and size
    digest=$(sha256sum <"$1" | cut -d' ' -f1)
    echo "sha256:$digest $(stat -c %s "$1")"
    mv "$1" "$blobs/$digest"
}

descriptor() { # KIND DIGEST SIZE
    printf '{"mediaType":"%s.%s","digest":"%s","size":%s}' $kind "$1" "$2" "$3"
}

case ${1:-} in
up)
    stop
    mkdir -p "$dir" "$run"
    printf 'state_dir = "%s"\nsocket = "%s"\nlog = "warn"\n[dns]\nmode = "off"\n[network]\nmdns = false\n[workloads]\ncgroup = "%s"\n' \
        "$dir/state" "$socket" $cgroup >"$dir/meshd.toml"
    # A private /run, in memory as on any box: what is pinned there is nobody else's business.
    unshare -n -m sh -c "ip link set lo up && mount --make-rprivate / && mount -t tmpfs -o mode=755 meshd-start /run &&
        exec '$bin/meshd' --config '$dir/meshd.toml'" >"$dir/log" 2>&1 </dev/null &
    echo $! >"$dir/pid"
    tries=100
    until "$bin/meshctl" --socket "$socket" vdc list >/dev/null 2>&1; do
        tries=$((tries - 1))
        if [ $tries = 0 ]; then
            cat "$dir/log" >&2
            exit 1
        fi
        sleep 0.1
    done
    root=${BUNDLE:+$BUNDLE/../rootfs}
    if [ ! -x "${root:-/nothing}/bin/true" ]; then
        root=$dir/rootfs
        mkdir -p "$root/bin" "$root/proc" "$root/sys" "$root/dev" "$root/etc" "$root/tmp"
        cp /bin/busybox "$root/bin/"
        ln -s busybox "$root/bin/true"
        ln -s busybox "$root/bin/sleep"
    fi
    layout "$root"
    {
        "$bin/meshctl" --socket "$socket" vdc create bench --site a --node-name a1
        "$bin/meshctl" --socket "$socket" image import "oci:$dir/layout:1" --tag localhost/bb:1
        # The first one makes what all containers share.
        "$0" start first
    } >>"$dir/log" 2>&1 || {
        cat "$dir/log" >&2
        exit 1
    }
    : >"$dir/starts"
    ticks "$(cat "$dir/pid")" >"$dir/ticks"
    echo "$bin/meshctl --socket $socket run --rm --memory 64M --cpus 0.5 --pids 32 localhost/bb:1 /bin/true"
    ;;
down)
    if [ -s "$dir/starts" ]; then
        before=$(cat "$dir/ticks")
        awk -v ticks=$(($(ticks "$(cat "$dir/pid")") - before)) -v hz="$(getconf CLK_TCK)" -v starts="$(wc -l <"$dir/starts")" \
            'BEGIN { printf "%d starts, %.1f CPU-ms of meshd and its shims each\n", starts, ticks * 1000 / hz / starts }'
    fi
    stop
    ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
