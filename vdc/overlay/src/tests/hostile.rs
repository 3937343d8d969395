//! What strangers and dishonest members can do.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use vdc::address::{HOST, INFRA};
use vdc::{Key, NodePrefix, SiteNumber, VdcId, WgKey};

use super::wire::{CLOCK, Flight, MS, SECOND, Wire, at, member, overlay, packet};
use crate::demux::{Kind, classify};
use crate::noise::{Noise, NoiseFactory};
use crate::overlay::IN_USE;
use crate::sim::SimNoiseFactory;
use crate::{DropReason, Member, PathAddress, TUNNELS_MAX, TunnelIndex, TunnelState};

const MALLORY: &str = "198.51.100.66:666";

#[test]
fn spoofed_sources_are_dropped_and_counted() {
    let mut wire = Wire::new(3);
    let good = wire.packet(0, 1, 10);
    wire.send(0, &good);
    wire.run(SECOND);
    assert_eq!(wire.nodes[1].received.len(), 1, "positive control");
    let (victim, target) = (wire.host(2), wire.host(1));
    wire.send(0, &packet(victim, target, 10));
    wire.run(SECOND);
    assert_eq!((wire.nodes[1].received.len(), wire.drops(1, DropReason::SpoofedSource)), (1, 1));
}

#[test]
fn packets_for_others_are_not_carried_on() {
    let mut wire = Wire::new(3);
    // A dishonest member routes a third node's addresses to its victim.
    let mut lie = wire.nodes[1].member.clone();
    lie.prefix = wire.nodes[2].member.prefix;
    let everybody = [wire.nodes[0].member.clone(), lie];
    wire.tell(0, |overlay, now| overlay.set_members(&everybody, now));
    let packet = wire.packet(0, 2, 10);
    wire.send(0, &packet);
    wire.run(SECOND);
    assert!(wire.drops(1, DropReason::NotOurs) > 0);
    assert!(wire.nodes[1].received.is_empty() && wire.nodes[2].received.is_empty());
}

#[test]
fn replays_and_forgeries_are_refused() {
    let mut wire = Wire::new(2);
    wire.talk(0, 1, SECOND);
    let count = wire.nodes[1].received.len();
    let good = wire.packet(0, 1, 10);
    wire.nodes[0].overlay.handle_tun_packet(&good, wire.now);
    let transmit = wire.nodes[0].overlay.poll_transmit().expect("sealed");
    let from = wire.nodes[0].addresses[0];
    for _ in 0..3 {
        wire.deliver(1, from, &transmit.datagram);
    }
    assert_eq!(wire.nodes[1].received.len(), count + 1, "the first copy counts");
    assert_eq!(wire.drops(1, DropReason::Replay), 2);
    for at in 8..transmit.datagram.len() {
        let mut flipped = transmit.datagram.clone();
        flipped[at] ^= 1;
        wire.deliver(1, from, &flipped);
    }
    assert_eq!(wire.nodes[1].received.len(), count + 1);
    assert_eq!(wire.drops(1, DropReason::Forged), u64::try_from(transmit.datagram.len() - 8).expect("short"));
}

#[test]
fn replayed_data_from_elsewhere_does_not_move_the_tunnel() {
    let mut wire = Wire::new(2);
    wire.talk(0, 1, SECOND);
    let packet = wire.packet(0, 1, 10);
    wire.nodes[0].overlay.handle_tun_packet(&packet, wire.now);
    let copy = wire.nodes[0].overlay.poll_transmit().expect("sealed").datagram;
    let from = wire.nodes[0].addresses[0];
    wire.deliver(1, from, &copy);
    wire.deliver(1, at(MALLORY), &copy);
    assert_eq!(wire.path(1), from.to_string());
}

/// Mallory is on the path: she keeps one authentic datagram of a node that only receives, and hands it on from her own
/// address. Returns for how long the sender's packets go to her. `data` if it is data, otherwise it is a probe.
fn stolen_by_one_copy(victim: usize, data: bool) -> Duration {
    let mut wire = Wire::new(2);
    let receiver = 1 - victim;
    wire.talk(0, 1, 5 * SECOND);
    let (from, packet) = (wire.nodes[receiver].addresses[0], wire.packet(victim, receiver, 10));
    let kept = Rc::new(RefCell::new(None));
    let keep = Rc::clone(&kept);
    wire.route = Box::new(move |flight: &Flight| {
        let is_data = matches!(classify(&flight.datagram), Kind::Data { .. });
        if flight.from == from && is_data && keep.borrow().is_none() {
            *keep.borrow_mut() = Some(flight.datagram.clone());
            return None;
        }
        Some(20 * MS)
    });
    if data {
        let answer = wire.packet(receiver, victim, 10);
        wire.send(receiver, &answer);
    }
    let give_up = wire.now + 60 * SECOND;
    while kept.borrow().is_none() {
        wire.send(victim, &packet);
        wire.run(10 * MS);
        assert!(wire.now < give_up, "the receiver says nothing");
    }
    let copy = kept.borrow_mut().take().expect("kept");
    *kept.borrow_mut() = Some(vec![]); // one is enough
    wire.deliver(victim, at(MALLORY), &copy);
    let stolen_at = wire.now;
    while wire.path(victim) != from.to_string() {
        wire.send(victim, &packet);
        wire.run(10 * MS);
        assert!(wire.now < give_up, "{:?}", wire.view(victim));
    }
    wire.now - stolen_at
}

#[test]
fn copied_probe_steals_the_flow_no_longer_than_copied_data() {
    for victim in 0..2 {
        let (data, probe) = (stolen_by_one_copy(victim, true), stolen_by_one_copy(victim, false));
        assert!(probe <= data, "node {victim}: {probe:?} by a probe, {data:?} by data");
        assert!(data <= SECOND, "node {victim}: {data:?}");
    }
}

#[test]
fn replayed_probe_from_elsewhere_moves_nothing() {
    let mut wire = Wire::new(2);
    wire.talk(0, 1, 5 * SECOND);
    let seen = Rc::new(RefCell::new(vec![]));
    let log = Rc::clone(&seen);
    wire.route = Box::new(move |flight: &Flight| {
        log.borrow_mut().push((flight.to, flight.datagram.clone()));
        Some(20 * MS)
    });
    wire.talk(0, 1, 15 * SECOND); // data, and at least one round of probes with its answers
    let recorded = std::mem::take(&mut *seen.borrow_mut());
    for node in 0..2 {
        let (own, path) = (wire.nodes[node].addresses[0], wire.path(node));
        for (_, datagram) in recorded.iter().filter(|(to, _)| *to == own) {
            wire.deliver(node, at(MALLORY), datagram);
        }
        assert_eq!(wire.path(node), path);
    }
    assert!(seen.borrow().iter().all(|(to, _)| *to != at(MALLORY)), "and nothing is sent there");
}

#[test]
fn strangers_handshake_is_not_answered() {
    let mut wire = Wire::new(1);
    let mut factory = SimNoiseFactory::new(WgKey([66; 32]), CLOCK, wire.now);
    let (now, mut out) = (wire.now, vec![]);
    factory.tunnel(&wire.nodes[0].member.wg, TunnelIndex(1), now).initiate(&mut out, now);
    wire.deliver(0, at(MALLORY), &out);
    assert_eq!((wire.drops(0, DropReason::NotMember), wire.sent), (1, 0));
    out[20] ^= 1;
    wire.deliver(0, at(MALLORY), &out);
    assert_eq!(wire.sent, 0);
    assert!(wire.nodes[0].overlay.views(wire.now).is_empty());
}

/// A member's handshake initiation, as an eavesdropper records it.
fn initiation(of: u8, to: &Member, now: Instant) -> Vec<u8> {
    let mut factory = SimNoiseFactory::new(member(of).wg, CLOCK, now);
    let mut out = vec![];
    assert!(factory.tunnel(&to.wg, TunnelIndex(7), now).initiate(&mut out, now));
    out
}

#[test]
fn recorded_handshakes_hold_no_tunnel_open_and_move_none() {
    let mut wire = Wire::new(2);
    let (now, target) = (wire.now, wire.nodes[1].member.clone());
    let recorded = initiation(1, &target, now);
    wire.deliver(1, at(MALLORY), &recorded);
    let view = wire.view(1);
    assert_eq!((view.state, view.path), (TunnelState::Connecting, None));
    assert_eq!(wire.questions, 0, "and nobody is asked because of it");
    wire.run(11 * SECOND);
    assert!(wire.nodes[1].overlay.views(wire.now).is_empty(), "nobody proved to hold the session");
    wire.talk(0, 1, SECOND);
    let path = wire.path(1);
    wire.deliver(1, at(MALLORY), &recorded);
    assert_eq!((wire.path(1), wire.drops(1, DropReason::Replay)), (path, 1));
}

#[test]
fn copies_of_a_handshake_are_answered_only_as_often_as_a_fan_out_has_paths() {
    let mut wire = Wire::new(2);
    let (now, target) = (wire.now, wire.nodes[1].member.clone());
    let recorded = initiation(1, &target, now);
    for _ in 0..100 {
        wire.deliver(1, at(MALLORY), &recorded);
    }
    assert_eq!(wire.sent, u64::try_from(crate::FAN_OUT_MAX).expect("small"));
    assert!(wire.log.iter().all(|(.., bytes)| *bytes < recorded.len()), "no amplification");
    wire.run(5 * SECOND);
    let sent = wire.sent;
    wire.deliver(1, at(MALLORY), &recorded);
    assert_eq!(wire.sent, sent, "and only for a while");
}

#[test]
fn spoofed_data_of_unknown_sessions_makes_us_send_little_and_only_to_the_member() {
    let mut wire = Wire::new(2);
    wire.nodes[0].answers = false;
    let sender = wire.nodes[0].member.node;
    let address = wire.nodes[0].addresses[0];
    wire.tell(1, |overlay, now| overlay.set_candidates(&sender, &[address], now));
    wire.route = Box::new(|_| None);
    let mut data = vec![4, 0, 0, 0, 1, 2, 3, 4];
    data.resize(64, 0);
    for _ in 0..600 {
        wire.deliver(1, address, &data);
        wire.deliver(1, at(MALLORY), &data);
        wire.run(100 * MS);
    }
    assert!(wire.log.iter().all(|(_, _, to, _)| *to == address), "nothing goes to Mallory");
    assert!(wire.sent <= 40, "{} datagrams for 1,200", wire.sent);
}

#[test]
fn spoofed_data_does_not_take_a_working_path_away() {
    let mut wire = Wire::new(2);
    wire.talk(0, 1, SECOND);
    let (from, path) = (wire.nodes[0].addresses[0], wire.path(1));
    let mut data = vec![4, 0, 0, 0, 0, 0xff, 0xff, 0xff];
    data.resize(64, 0);
    for _ in 0..100 {
        for _ in 0..50 {
            wire.deliver(1, from, &data);
        }
        let (a, b) = wire.talk(0, 1, 100 * MS);
        assert_eq!((a, b, wire.path(1)), (1, 1, path.clone()));
    }
}

#[test]
fn tunnels_are_bounded_and_the_longest_unused_makes_room() {
    let now = Instant::now();
    let mut hub = overlay(1, CLOCK, now);
    let mass = |n: u32| {
        let node = Key([n.to_le_bytes(); 8].concat().try_into().expect("32 bytes"));
        let prefix = NodePrefix::derive(&VdcId([2; 32]), SiteNumber(1), &node, 0);
        Member { node, wg: WgKey(node.0), prefix, ipv4: None }
    };
    let count = u32::try_from(TUNNELS_MAX).expect("small") + 10;
    let members: Vec<Member> = (1000..1000 + count).map(mass).collect();
    hub.set_members(&members, now);
    let own = member(1).prefix.address(HOST);
    for member in &members {
        hub.handle_tun_packet(&packet(own, member.prefix.address(HOST), 10), now);
        while hub.poll_event().is_some() {}
    }
    assert_eq!(hub.views(now).len(), TUNNELS_MAX);
    assert_eq!(hub.drops().of(DropReason::TooManyTunnels), 10, "all of them are in use");
    let later = now + IN_USE + SECOND;
    hub.handle_tun_packet(&packet(own, members[0].prefix.address(HOST), 10), later);
    hub.handle_tun_packet(&packet(own, members[TUNNELS_MAX].prefix.address(HOST), 10), later);
    let open: Vec<Key> = hub.views(later).iter().map(|view| view.node).collect();
    assert_eq!(open.len(), TUNNELS_MAX);
    assert!(open.contains(&members[0].node) && open.contains(&members[TUNNELS_MAX].node));
}

#[test]
fn probes_of_others_infra_planes_are_data_like_any_other() {
    let mut wire = Wire::new(2);
    wire.talk(0, 1, SECOND);
    let before = wire.nodes[1].received.len();
    let (from, to) = (wire.host(0), wire.host(1));
    let probe = crate::packet::Probe { reply: false, in_use: false, token: 1 };
    let not_infra = probe.encode(from, to);
    wire.send(0, &not_infra);
    wire.run(SECOND);
    assert_eq!(wire.nodes[1].received.len(), before + 1);
    let infra = wire.nodes[1].member.prefix.address(INFRA);
    let ping = packet(wire.nodes[0].member.prefix.address(INFRA), infra, 10);
    wire.send(0, &ping);
    wire.run(SECOND);
    assert_eq!(wire.nodes[1].received.last(), Some(&ping), "the infra plane's own packets pass");
}

#[test]
fn garbage_is_counted() {
    let mut wire = Wire::new(1);
    for bytes in [&[][..], &[0], &[0xff; 1400], &[1; 147], &[4, 0, 0, 0]] {
        assert!(matches!(classify(bytes), Kind::Garbage | Kind::Quic));
        wire.nodes[0].overlay.handle_datagram(PathAddress::main(at(MALLORY)), bytes, wire.now);
    }
    assert_eq!(wire.drops(0, DropReason::Garbage), 5);
}
