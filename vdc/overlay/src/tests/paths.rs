//! Which path carries the tunnel.

use std::time::Duration;

use super::wire::{Flight, MS, SECOND, Wire, at};
use crate::overlay::IN_USE;
use crate::{Event, Tier, TunnelState};

const FAR: &str = "198.51.100.2:4710";
const LAN: &str = "10.0.0.2:4710";

/// Two nodes in two networks.
fn with_two_addresses(of_second: &str) -> Wire {
    let mut wire = Wire::new(2);
    wire.nodes[0].addresses.push(at(&of_second.replace(".2:", ".1:")));
    wire.nodes[1].addresses.push(at(of_second));
    wire
}

#[test]
fn only_working_candidate_is_found_among_dead_ones() {
    let mut wire = Wire::new(2);
    let mut addresses: Vec<_> = (3..20).map(|n| at(&format!("203.0.113.{n}:1"))).collect();
    addresses.truncate(14);
    addresses.push(at("192.0.2.2:4710"));
    let peer = wire.nodes[1].member.node;
    wire.nodes[1].answers = false;
    wire.tell(0, |overlay, now| overlay.set_candidates(&peer, &addresses, now));
    let packet = wire.packet(0, 1, 10);
    wire.send(0, &packet);
    wire.run(4 * SECOND);
    assert_eq!(wire.nodes[1].received, [packet]);
    assert_eq!(wire.path(0), "192.0.2.2:4710");
}

#[test]
fn path_that_works_one_way_only_does_not_hold_the_tunnel_up() {
    // The LAN is quicker, so the handshake arrives over it first; but no answer comes back that way.
    let mut wire = with_two_addresses(LAN);
    wire.nodes[0].overlay.set_local_networks(vec![(at(LAN).ip(), 24)], wire.now);
    wire.route = Box::new(|flight: &Flight| match (flight.from.to_string().starts_with("10."), flight.to == at(LAN)) {
        (true, true) => Some(MS),
        (true, false) => None,
        (false, _) => Some(20 * MS),
    });
    let packet = wire.packet(0, 1, 10);
    wire.send(0, &packet);
    wire.run(SECOND);
    assert_eq!(wire.nodes[1].received.len(), 1);
    assert_eq!(wire.path(0), "192.0.2.2:4710");
}

#[test]
fn leader_promotes_the_lan_and_the_other_end_follows() {
    let mut wire = with_two_addresses(LAN);
    for node in &mut wire.nodes {
        node.overlay.set_local_networks(vec![(at(LAN).ip(), 24)], wire.now);
    }
    // Slower than the other path, and not yet there when the tunnel opens.
    wire.route = Box::new(|flight: &Flight| (flight.to != at(LAN)).then_some(20 * MS));
    wire.talk(0, 1, SECOND);
    assert_eq!(wire.path(0), "192.0.2.2:4710");
    wire.route = Box::new(|flight: &Flight| Some(if flight.to == at(LAN) { 30 * MS } else { 20 * MS }));
    assert_eq!(wire.talk(0, 1, 20 * SECOND), (200, 200));
    for node in 0..2 {
        let (path, tier) = wire.view(node).path.expect("up");
        assert!(path.remote.to_string().starts_with("10.0.0."), "{path:?}");
        assert_eq!(tier, Tier::Lan);
    }
}

#[test]
fn ends_that_know_several_paths_do_not_chase_each_other() {
    let mut wire = with_two_addresses(FAR);
    // Nearly equal, with jitter, and datagrams overtake each other.
    wire.route = Box::new(|flight: &Flight| Some(MS * u32::try_from(18 + flight.number * 7 % 5).expect("small")));
    let (a, b) = wire.talk(0, 1, 120 * SECOND);
    assert_eq!((a, b), (1200, 1200));
    for node in 0..2 {
        let changes = wire.nodes[node].events.iter().filter(|event| matches!(event, Event::PathChanged(_))).count();
        assert!(changes <= 4, "node {node} changed its path {changes} times");
    }
}

#[test]
fn roaming_peer_is_followed_by_its_first_packet() {
    for mover in 0..2 {
        let mut wire = Wire::new(2);
        wire.talk(0, 1, 5 * SECOND);
        let other = 1 - mover;
        wire.nodes[mover].addresses = vec![at("198.51.100.7:9")];
        let packet = wire.packet(mover, other, 10);
        wire.send(mover, &packet);
        wire.run(21 * MS);
        assert_eq!(wire.path(other), "198.51.100.7:9");
        let (a, b) = wire.talk(mover, other, 60 * SECOND);
        assert_eq!((a, b), (600, 600), "and stays there");
    }
}

/// A node that moves to a new address, and how long after the first one that is.
type Move = (usize, Duration);

/// How long a one-way flow of a packet every 200 ms is silent after some of its ends moved, where the datagram number
/// `lost` of those that are sent after that never arrives. The first move comes `phase` after a packet.
fn silence_after_moves(receiver: usize, moves: &[Move], lost: u64, phase: Duration) -> Duration {
    const EVERY: Duration = Duration::from_millis(200);
    let mut wire = Wire::new(2);
    wire.answer_after = 80 * MS;
    let packet = wire.packet(1 - receiver, receiver, 10);
    for _ in 0..25 {
        wire.send(1 - receiver, &packet);
        wire.run(EVERY);
    }
    wire.send(1 - receiver, &packet);
    wire.run(phase);
    let (first, began) = (wire.sent, wire.now);
    wire.route = Box::new(move |flight: &Flight| (flight.number - first != lost).then_some(20 * MS));
    for (mover, after) in moves {
        wire.run((began + *after).saturating_duration_since(wire.now));
        wire.nodes[*mover].addresses = vec![at(&format!("198.51.100.{}:9", mover + 1))];
        wire.tell(*mover, |overlay, now| overlay.handle_network_change(now));
    }
    let (moved_at, before) = (wire.now, wire.nodes[receiver].received.len());
    while wire.nodes[receiver].received.len() == before && wire.now < moved_at + 30 * SECOND {
        wire.send(1 - receiver, &packet);
        wire.run(EVERY);
    }
    wire.now - moved_at
}

#[test]
fn moves_are_followed_whichever_packet_is_lost() {
    // The receiver of a one-way flow tells where it is by the agents' own packets alone, which are few.
    let mut all: Vec<Vec<Move>> = vec![vec![(0, Duration::ZERO)], vec![(1, Duration::ZERO)]];
    for apart in [0, 30, 100, 200] {
        all.extend([(0, 1), (1, 0)].map(|(a, b)| vec![(a, Duration::ZERO), (b, apart * MS)]));
    }
    for (receiver, moves) in [0, 1].into_iter().flat_map(|receiver| all.iter().map(move |moves| (receiver, moves))) {
        for (lost, phase) in (0..30).flat_map(|lost| [1, 50, 150].map(|phase| (lost, phase * MS))) {
            let silent = silence_after_moves(receiver, moves, lost, phase);
            assert!(silent < 2 * SECOND, "to {receiver}, {moves:?}, packet {lost} lost, {phase:?}: {silent:?}");
        }
    }
}

#[test]
fn network_change_recovers_within_a_round_trip() {
    let mut wire = with_two_addresses(FAR);
    wire.talk(0, 1, 5 * SECOND);
    // Everything to the first address is lost from now on, and the host was told of a change.
    let used = wire.path(0);
    wire.route = Box::new(move |flight: &Flight| (flight.to != at(&used)).then_some(20 * MS));
    wire.tell(0, |overlay, now| overlay.handle_network_change(now));
    wire.run(41 * MS);
    assert_eq!(wire.path(0), FAR);
    let packet = wire.packet(0, 1, 10);
    let before = wire.nodes[1].received.len();
    wire.send(0, &packet);
    wire.run(21 * MS);
    assert_eq!(wire.nodes[1].received.len(), before + 1);
}

#[test]
fn network_change_leaves_idle_tunnels_alone() {
    let mut wire = Wire::new(2);
    wire.talk(0, 1, SECOND);
    wire.run(IN_USE * 2);
    let sent = wire.sent;
    wire.tell(0, |overlay, now| overlay.handle_network_change(now));
    assert_eq!(wire.sent, sent);
}

#[test]
fn path_that_dies_in_silence_is_left_within_seconds() {
    let mut wire = with_two_addresses(FAR);
    wire.talk(0, 1, 5 * SECOND);
    let used = wire.path(0);
    wire.route = Box::new(move |flight: &Flight| (flight.to != at(&used)).then_some(20 * MS));
    let dead_since = wire.now;
    let packet = wire.packet(0, 1, 10);
    let before = wire.nodes[1].received.len();
    while wire.nodes[1].received.len() == before {
        wire.send(0, &packet);
        wire.run(100 * MS);
        assert!(wire.now < dead_since + 20 * SECOND, "{:?}", wire.view(0));
    }
    assert!(wire.now - dead_since < 12 * SECOND, "{:?}", wire.now - dead_since);
    assert_eq!(wire.path(0), FAR);
}

#[test]
fn peer_that_vanishes_is_shown_down_and_comes_back() {
    let mut wire = Wire::new(2);
    wire.talk(0, 1, 5 * SECOND);
    wire.route = Box::new(|_| None);
    wire.nodes[1].answers = false;
    wire.talk(0, 1, 60 * SECOND);
    let view = wire.view(0);
    assert_eq!((view.state, view.path), (TunnelState::Connecting, None));
    assert!(view.reason.is_some());
    assert!(wire.nodes[0].events.contains(&Event::TunnelDown(wire.nodes[1].member.node)));
    wire.route = Box::new(|_| Some(20 * MS));
    wire.nodes[1].answers = true;
    let (a, b) = wire.talk(0, 1, 60 * SECOND);
    assert!(a > 400 && b > 400, "{a} and {b} of 600");
    assert_eq!(wire.view(0).state, TunnelState::Up);
}

#[test]
fn slow_round_trips_still_shake_hands() {
    let mut wire = Wire::new(2);
    wire.route = Box::new(|_| Some(600 * MS)); // by satellite, twice
    let (a, b) = wire.talk(0, 1, 60 * SECOND);
    assert!(a > 550 && b > 550, "{a} and {b} of 600");
}

#[test]
fn session_that_rested_is_renewed_over_all_paths_at_once() {
    let mut wire = with_two_addresses(FAR);
    wire.talk(0, 1, SECOND);
    wire.run(200 * SECOND); // the session is too old now, the tunnel not yet
    let used = "192.0.2.2:4710";
    wire.route = Box::new(move |flight: &Flight| (flight.to != at(used)).then_some(20 * MS));
    let packet = wire.packet(0, 1, 10);
    let before = wire.nodes[1].received.len();
    wire.send(0, &packet);
    wire.run(61 * MS);
    assert_eq!(wire.nodes[1].received.len(), before + 1);
}
