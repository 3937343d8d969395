#!/bin/bash
# Contender for a peer benchmark of VPN data planes: two `static-pair` nodes in two joined network namespaces.
#   pair-contender.sh up NSA NSB IPA IPB      prints the tunnel addresses "A B" on its last line
#   pair-contender.sh down
# Environment: MP_UA, MP_UB underlay addresses; MP_DIR scratch; MESH_FAMILY=4|6 (default 4) family inside the tunnel;
# PAIR_BIN the program (cargo build --release -p meshd-tun --example static-pair); PAIR_OPTIONS its further arguments.
set -eu
bin=${PAIR_BIN:-target/release/examples/static-pair}
case ${1:-} in
up)
    rm -f "$MP_DIR/pair-input" "$MP_DIR/a.out" "$MP_DIR/b.out"
    mkfifo "$MP_DIR/pair-input"
    # Keeps the input open until `down`: the nodes end with it and take their networks away.
    sleep infinity >"$MP_DIR/pair-input" </dev/null 2>&1 &
    echo $! >"$MP_DIR/pair-holder"
    ip netns exec "$2" "$bin" 1 2 "$MP_UB:51820" ${PAIR_OPTIONS:-} <"$MP_DIR/pair-input" >"$MP_DIR/a.out" 2>"$MP_DIR/a.log" &
    ip netns exec "$3" "$bin" 2 1 "$MP_UA:51820" ${PAIR_OPTIONS:-} <"$MP_DIR/pair-input" >"$MP_DIR/b.out" 2>"$MP_DIR/b.log" &
    for _ in $(seq 100); do [ -s "$MP_DIR/a.out" ] && [ -s "$MP_DIR/b.out" ] && break; sleep .1; done
    field=$([ "${MESH_FAMILY:-4}" = 6 ] && echo 1 || echo 2)
    echo "$(cut -d' ' -f"$field" "$MP_DIR/a.out") $(cut -d' ' -f"$field" "$MP_DIR/b.out")"
    ;;
down)
    kill "$(cat "$MP_DIR/pair-holder")" 2>/dev/null || true
    # The nodes remove their namespaces when their input ends.
    for _ in $(seq 50); do [ -e /run/netns/meshd-pair1 ] || [ -e /run/netns/meshd-pair2 ] || break; sleep .1; done
    ;;
esac
