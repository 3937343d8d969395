//! Restarts, clocks, and sessions that only one end remembers.

use std::time::Duration;

use super::wire::{CLOCK, MS, SECOND, Wire, member, overlay};
use crate::{DropReason, TUNNELS_MAX, TunnelState};

const DAY: Duration = Duration::from_secs(86_400);

#[test]
fn restarted_peer_is_back_after_a_round_trip() {
    let mut wire = Wire::new(2);
    wire.talk(0, 1, SECOND);
    let paths = wire.nodes[1].overlay.last_paths();
    assert_eq!(paths.len(), 1);
    wire.restart(1, CLOCK, &paths);
    wire.run(41 * MS);
    assert_eq!(wire.view(1).state, TunnelState::Up);
    wire.run(20 * MS); // and the other end knows it too
    let (a, b) = wire.talk(0, 1, SECOND);
    assert_eq!((a, b), (10, 10));
}

#[test]
fn boot_nonce_forgives_a_clock_that_went_back() {
    for clock in [CLOCK + DAY, CLOCK - DAY] {
        let mut wire = Wire::new(2);
        let restarted = wire.nodes[1].member.node;
        wire.tell(0, |overlay, now| overlay.handle_boot_nonce(&restarted, [1; 16], now));
        wire.talk(0, 1, SECOND);
        let paths = wire.nodes[1].overlay.last_paths();
        wire.restart(1, clock, &paths);
        // The control link comes up again and tells the new boot nonce.
        wire.tell(0, |overlay, now| overlay.handle_boot_nonce(&restarted, [2; 16], now));
        wire.run(61 * MS);
        let (a, b) = wire.talk(0, 1, SECOND);
        assert_eq!((a, b), (10, 10), "clock at {clock:?}");
    }
}

#[test]
fn boot_nonce_keeps_what_waits_and_leaves_idle_tunnels_closed() {
    let mut wire = Wire::new(2);
    let peer = wire.nodes[1].member.node;
    wire.nodes[1].answers = false;
    wire.tell(0, |overlay, now| overlay.handle_boot_nonce(&peer, [1; 16], now));
    let packet = wire.packet(0, 1, 10);
    wire.send(0, &packet);
    wire.nodes[1].answers = true;
    wire.tell(0, |overlay, now| overlay.handle_boot_nonce(&peer, [2; 16], now));
    wire.run(61 * MS);
    assert_eq!(wire.nodes[1].received, [packet]);
    wire.run(60 * SECOND);
    let sent = wire.sent;
    wire.tell(0, |overlay, now| overlay.handle_boot_nonce(&peer, [3; 16], now));
    wire.run(60 * SECOND);
    assert_eq!(wire.sent, sent);
    assert!(wire.nodes[0].overlay.views(wire.now).is_empty());
}

#[test]
fn same_boot_nonce_again_changes_nothing() {
    let mut wire = Wire::new(2);
    let peer = wire.nodes[1].member.node;
    wire.talk(0, 1, SECOND);
    let version = wire.nodes[0].overlay.snapshot_version();
    for _ in 0..3 {
        wire.tell(0, |overlay, now| overlay.handle_boot_nonce(&peer, [1; 16], now));
    }
    assert_eq!(wire.nodes[0].overlay.snapshot_version(), version);
}

#[test]
fn data_for_a_lost_session_brings_a_new_one() {
    let mut wire = Wire::new(2);
    wire.talk(0, 1, SECOND);
    let sender = wire.nodes[0].member.node;
    let address = wire.nodes[0].addresses[0];
    wire.restart(1, CLOCK, &[]);
    wire.tell(1, |overlay, now| overlay.set_candidates(&sender, &[address], now));
    wire.nodes[1].received.clear();
    let packet = wire.packet(0, 1, 10);
    wire.send(0, &packet); // inbound only: the restarted node must notice
    wire.run(81 * MS); // there it is noticed, and a handshake is confirmed
    assert_eq!(wire.drops(1, DropReason::NoSession), 1);
    wire.send(0, &packet);
    wire.run(21 * MS);
    assert_eq!(wire.nodes[1].received.len(), 1, "lost: the one that nobody could open");
}

#[test]
fn full_node_restores_all_its_tunnels() {
    let now = std::time::Instant::now();
    let mut hub = overlay(1, CLOCK, now);
    let paths: Vec<_> = (2..=101).map(|seed| (member(seed).node, format!("192.0.2.{seed}:1"))).collect();
    let paths: Vec<_> = paths.into_iter().map(|(node, remote)| (node, remote.parse().expect("valid"))).collect();
    hub.set_members(&(2..=101).map(member).collect::<Vec<_>>(), now);
    hub.restore(&paths, now);
    let mut first = vec![];
    while let Some(transmit) = hub.poll_transmit() {
        first.push(transmit.path.remote);
    }
    assert_eq!(first.len(), paths.len());
    assert_eq!(first.first(), paths.last().map(|(_, remote)| remote), "the most recently used first");
    assert!(hub.views(now).len() <= TUNNELS_MAX);
}
