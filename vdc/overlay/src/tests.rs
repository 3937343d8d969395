//! Two or three overlays on a simulated wire under a virtual clock.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vdc::address::HOST;
use vdc::{Ipv4Block, Key, NodePrefix, SiteNumber, VdcId, WgKey};

use crate::overlay::{IDLE_MAX, QUEUE_PACKETS_MAX};
use crate::sim::SimNoiseFactory;
use crate::{DropReason, Event, Member, Overlay, OverlayConfig, PathAddress, Transmit};

const MS: Duration = Duration::from_millis(1);

struct Node {
    overlay: Overlay<SimNoiseFactory>,
    member: Member,
    address: SocketAddr,
    received: Vec<Vec<u8>>,
    /// Whether lookups are answered.
    answers: bool,
}

struct Wire {
    now: Instant,
    start: Instant,
    delay: Duration,
    nodes: Vec<Node>,
    /// In flight: due, sequence, from, to, datagram.
    flying: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sequence: u64,
    /// Which of the datagrams are lost, by their number.
    lost: Box<dyn Fn(u64) -> bool>,
    sent: u64,
    log: Vec<(Duration, SocketAddr, SocketAddr, usize)>,
}

fn member(seed: u8) -> Member {
    let node = Key([seed; 32]);
    Member {
        node,
        wg: WgKey([seed + 100; 32]),
        prefix: NodePrefix::derive(&VdcId([1; 32]), SiteNumber(1), &node, 0),
        ipv4: "10.64.0.0/20".parse::<Ipv4Block>().expect("valid").sub_block(28, u32::from(seed)),
    }
}

fn factory(seed: u8, clock: Duration, now: Instant) -> SimNoiseFactory {
    SimNoiseFactory::new(WgKey([seed + 100; 32]), clock, now)
}

fn config(seed: u8) -> OverlayConfig {
    let member = member(seed);
    OverlayConfig { prefix: member.prefix, ipv4: member.ipv4, indices: 1..=1000 }
}

const CLOCK: Duration = Duration::from_secs(1_000_000);

impl Wire {
    fn new(count: u8) -> Self {
        let now = Instant::now();
        let nodes = (1..=count).map(|seed| {
            let overlay = Overlay::new(config(seed), factory(seed, CLOCK, now), [seed; 32], now);
            let address = format!("192.0.2.{seed}:4710").parse().expect("valid");
            Node { overlay, member: member(seed), address, received: vec![], answers: true }
        });
        let mut wire = Self {
            now,
            start: now,
            delay: 20 * MS,
            nodes: nodes.collect(),
            flying: BTreeMap::new(),
            sequence: 0,
            lost: Box::new(|_| false),
            sent: 0,
            log: vec![],
        };
        wire.set_members(&(1..=count).collect::<Vec<_>>());
        wire
    }

    fn set_members(&mut self, seeds: &[u8]) {
        let now = self.now;
        for node in &mut self.nodes {
            let others: Vec<Member> =
                seeds.iter().map(|seed| member(*seed)).filter(|m| m.node != node.member.node).collect();
            node.overlay.set_members(&others, now);
        }
    }

    fn packet(&self, from: usize, to: usize, length: usize) -> Vec<u8> {
        let (from, to) = (self.nodes[from].member.prefix.address(HOST), self.nodes[to].member.prefix.address(HOST));
        packet(from.into(), to.into(), length)
    }

    fn send(&mut self, from: usize, packet: &[u8]) {
        self.nodes[from].overlay.handle_tun_packet(packet, self.now);
        self.drain(from);
    }

    fn drain(&mut self, index: usize) {
        let (now, address) = (self.now, self.nodes[index].address);
        while let Some(Transmit { path, datagram }) = self.nodes[index].overlay.poll_transmit() {
            self.log.push((now.duration_since(self.start), address, path.remote, datagram.len()));
            self.sent += 1;
            if !(self.lost)(self.sent) {
                self.sequence += 1;
                self.flying.insert((now + self.delay, self.sequence), (address, path.remote, datagram));
            }
        }
        while let Some(packet) = self.nodes[index].overlay.poll_tun() {
            self.nodes[index].received.push(packet);
        }
        while let Some(event) = self.nodes[index].overlay.poll_event() {
            if let Event::EndpointsWanted(node) = event {
                let peer = self.nodes.iter().find(|n| n.member.node == node).map(|n| (n.address, n.answers));
                let overlay = &mut self.nodes[index].overlay;
                match peer {
                    Some((remote, true)) => overlay.set_candidates(&node, &[remote], now),
                    _ => overlay.handle_lookup_failed(&node, "out of reach".into(), now),
                }
                self.drain(index);
            }
        }
    }

    /// Lets virtual time pass.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let arrival = self.flying.keys().next().map(|(at, _)| *at);
            let timer = self.nodes.iter().filter_map(|n| n.overlay.poll_timeout().map(|(at, _)| at)).min();
            let Some(next) = [arrival, timer].into_iter().flatten().min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let ((_, _), (from, to, datagram)) = self.flying.pop_first().expect("looked at above");
                if let Some(index) = self.nodes.iter().position(|n| n.address == to) {
                    self.nodes[index].overlay.handle_datagram(PathAddress::main(from), &datagram, self.now);
                    self.drain(index);
                }
                continue;
            }
            for index in 0..self.nodes.len() {
                if self.nodes[index].overlay.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                    self.nodes[index].overlay.handle_timeout(self.now);
                    self.drain(index);
                }
            }
        }
        self.now = end;
    }

    fn drops(&self, index: usize, reason: DropReason) -> u64 {
        self.nodes[index].overlay.drops().of(reason)
    }
}

fn packet(from: IpAddr, to: IpAddr, length: usize) -> Vec<u8> {
    let (IpAddr::V6(from), IpAddr::V6(to)) = (from, to) else { panic!("IPv6 in these tests") };
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(length).expect("short").to_be_bytes());
    packet.extend([17, 64]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.resize(40 + length, 0);
    packet
}

#[test]
fn first_packet_arrives_after_one_and_a_half_round_trips() {
    let mut wire = Wire::new(2);
    let packet = wire.packet(0, 1, 100);
    wire.send(0, &packet);
    wire.run(59 * MS);
    assert!(wire.nodes[1].received.is_empty());
    wire.run(2 * MS);
    assert_eq!(wire.nodes[1].received, [packet]);
    let reply = wire.packet(1, 0, 10);
    wire.send(1, &reply);
    wire.run(21 * MS);
    assert_eq!(wire.nodes[0].received, [reply], "the responder answers over the same session");
}

#[test]
fn spoofed_sources_and_strangers_destinations_are_dropped_and_counted() {
    let mut wire = Wire::new(3);
    let good = wire.packet(0, 1, 10);
    wire.send(0, &good);
    wire.run(200 * MS);
    assert_eq!(wire.nodes[1].received.len(), 1, "positive control");
    let third = wire.nodes[2].member.prefix.address(HOST).into();
    let second = wire.nodes[1].member.prefix.address(HOST).into();
    wire.send(0, &packet(third, second, 10));
    wire.run(200 * MS);
    assert_eq!((wire.nodes[1].received.len(), wire.drops(1, DropReason::SpoofedSource)), (1, 1));
}

#[test]
fn replays_and_forgeries_are_refused() {
    let mut wire = Wire::new(2);
    let good = wire.packet(0, 1, 10);
    wire.send(0, &good);
    wire.run(200 * MS);
    wire.nodes[0].overlay.handle_tun_packet(&good, wire.now);
    let transmit = wire.nodes[0].overlay.poll_transmit().expect("sealed");
    let path = PathAddress::main(wire.nodes[0].address);
    for _ in 0..3 {
        wire.nodes[1].overlay.handle_datagram(path, &transmit.datagram, wire.now);
    }
    let mut flipped = transmit.datagram;
    *flipped.last_mut().expect("not empty") ^= 1;
    flipped[8] ^= 7;
    wire.nodes[1].overlay.handle_datagram(path, &flipped, wire.now);
    wire.drain(1);
    assert_eq!(wire.nodes[1].received.len(), 2, "the first copy counts");
    assert_eq!((wire.drops(1, DropReason::Replay), wire.drops(1, DropReason::Forged)), (2, 1));
}

#[test]
fn unknown_destination_is_told_unreachable() {
    let mut wire = Wire::new(2);
    let stranger = NodePrefix::derive(&VdcId([1; 32]), SiteNumber(1), &Key([9; 32]), 0).address(HOST);
    let own = wire.nodes[0].member.prefix.address(HOST);
    wire.send(0, &packet(own.into(), stranger.into(), 10));
    assert_eq!(wire.drops(0, DropReason::NoRoute), 1);
    assert_eq!(wire.nodes[0].received[0][40], 1, "ICMPv6 destination unreachable");
    assert_eq!(wire.sent, 0);
}

#[test]
fn flood_to_an_unreachable_peer_is_bounded_and_given_back() {
    let mut wire = Wire::new(2);
    wire.nodes[1].answers = false;
    let packet = wire.packet(0, 1, 1000);
    for _ in 0..1000 {
        wire.send(0, &packet);
    }
    assert_eq!(wire.drops(0, DropReason::QueueFull), 1000 - QUEUE_PACKETS_MAX as u64);
    wire.run(Duration::from_secs(6));
    assert_eq!(wire.drops(0, DropReason::QueueFull), 1000);
    assert_eq!(wire.nodes[0].received.len(), 1, "one unreachable message");
    let reason = wire.nodes[0].overlay.views(wire.now)[0].reason.clone();
    assert_eq!(reason.as_deref(), Some("out of reach"));
    wire.nodes[1].answers = true;
    wire.send(0, &packet);
    wire.run(Duration::from_secs(31));
    wire.send(0, &packet);
    wire.run(Duration::from_secs(1));
    assert!(!wire.nodes[1].received.is_empty(), "it recovers by itself");
}

#[test]
fn idle_tunnel_closes_and_nothing_is_sent_to_idle_peers() {
    let mut wire = Wire::new(2);
    let packet = wire.packet(0, 1, 10);
    wire.send(0, &packet);
    wire.run(Duration::from_secs(40));
    let quiet_from = wire.sent;
    wire.run(IDLE_MAX);
    assert!(wire.sent - quiet_from <= 2, "{} packets while idle", wire.sent - quiet_from);
    assert!(wire.nodes.iter().all(|n| n.overlay.views(wire.now).is_empty()), "both ends have closed");
    let closed = wire.sent;
    wire.run(Duration::from_secs(3600));
    assert_eq!(wire.sent, closed, "an idle peer costs nothing");
    assert_eq!(wire.nodes[0].overlay.poll_timeout(), None);
    wire.send(0, &packet);
    wire.run(Duration::from_secs(1));
    assert_eq!(wire.nodes[1].received.len(), 2, "and opens again on demand");
}

#[test]
fn long_session_is_renewed_without_loss() {
    let mut wire = Wire::new(2);
    let packet = wire.packet(0, 1, 10);
    let reply = wire.packet(1, 0, 10);
    for _ in 0..900 {
        wire.send(0, &packet);
        wire.send(1, &reply);
        wire.run(Duration::from_secs(1));
    }
    assert_eq!(wire.nodes[1].received.len(), 900);
    assert_eq!(wire.nodes[0].received.len(), 900);
}

#[test]
fn revoked_member_is_cut_off_at_once() {
    let mut wire = Wire::new(3);
    let packet = wire.packet(0, 1, 10);
    wire.send(0, &packet);
    wire.run(Duration::from_secs(1));
    assert_eq!(wire.nodes[1].received.len(), 1);
    let now = wire.now;
    let without: Vec<Member> = vec![member(3)];
    wire.nodes[1].overlay.set_members(&without, now);
    wire.drain(1);
    for _ in 0..20 {
        wire.send(0, &packet);
        wire.run(Duration::from_secs(1));
    }
    assert_eq!(wire.nodes[1].received.len(), 1, "nothing more is accepted");
    assert!(wire.drops(1, DropReason::NotMember) > 0, "its handshakes are refused");
}

#[test]
fn restarted_peer_is_back_after_a_round_trip_even_with_an_older_clock() {
    for clock in [CLOCK + Duration::from_secs(60), CLOCK - Duration::from_secs(86_400)] {
        let mut wire = Wire::new(2);
        let packet = wire.packet(0, 1, 10);
        wire.send(0, &packet);
        wire.run(Duration::from_secs(1));
        let paths = wire.nodes[1].overlay.last_paths();
        assert_eq!(paths.len(), 1);
        // Node 1 restarts: empty, but for its members and last paths.
        let now = wire.now;
        wire.nodes[1].overlay = Overlay::new(config(2), factory(2, clock, now), [9; 32], now);
        wire.nodes[1].overlay.set_members(&[member(1)], now);
        wire.nodes[1].overlay.restore(&paths, now);
        // The control link comes up again and tells the new boot nonce.
        let restarted = wire.nodes[1].member.node;
        wire.nodes[0].overlay.handle_boot_nonce(&restarted, [1; 16], now);
        wire.nodes[0].overlay.handle_boot_nonce(&restarted, [2; 16], now);
        wire.drain(0);
        wire.drain(1);
        wire.run(100 * MS);
        wire.send(0, &packet);
        wire.run(100 * MS);
        assert_eq!(wire.nodes[1].received.len(), 2, "clock at {clock:?}");
    }
}

#[test]
fn data_for_a_lost_session_brings_a_new_one() {
    let mut wire = Wire::new(2);
    let packet = wire.packet(0, 1, 10);
    wire.send(0, &packet);
    wire.run(Duration::from_secs(1));
    let now = wire.now;
    let sender = wire.nodes[0].member.node;
    let known = wire.nodes[0].address;
    wire.nodes[1].overlay = Overlay::new(config(2), factory(2, CLOCK + Duration::from_secs(60), now), [9; 32], now);
    wire.nodes[1].overlay.set_members(&[member(1)], now);
    wire.nodes[1].overlay.set_candidates(&sender, &[known], now);
    wire.nodes[1].received.clear();
    wire.send(0, &packet); // inbound only: the restarted node must notice
    wire.run(100 * MS);
    wire.send(0, &packet);
    wire.run(100 * MS);
    assert_eq!(wire.nodes[1].received.len(), 1, "lost: the one that nobody could open");
}

#[test]
fn roaming_peer_is_followed() {
    let mut wire = Wire::new(2);
    let packet = wire.packet(0, 1, 10);
    wire.send(0, &packet);
    wire.run(Duration::from_secs(1));
    wire.nodes[0].address = "198.51.100.7:9".parse().expect("valid");
    wire.send(0, &packet);
    wire.run(100 * MS);
    let reply = wire.packet(1, 0, 10);
    wire.send(1, &reply);
    wire.run(100 * MS);
    assert_eq!(wire.nodes[0].received, [reply]);
}

#[test]
fn traces_are_equal_for_equal_runs() {
    let trace = || {
        let mut wire = Wire::new(3);
        wire.lost = Box::new(|n| n % 3 == 0);
        for _ in 0..50 {
            for (from, to) in [(0, 1), (1, 2), (2, 0)] {
                let packet = wire.packet(from, to, 64);
                wire.send(from, &packet);
            }
            wire.run(Duration::from_secs(3));
        }
        wire.log
    };
    assert_eq!(trace(), trace());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is lost at first: as long as some get through, the tunnel comes up.
    #[test]
    fn loss_only_delays(pattern in proptest::collection::vec(any::<bool>(), 1..24)) {
        let mut wire = Wire::new(2);
        wire.lost = Box::new(move |n| {
            let index = usize::try_from(n).expect("small") - 1;
            pattern.get(index).copied().unwrap_or(false)
        });
        let packet = wire.packet(0, 1, 10);
        // Handshakes are repeated every 5 s at the slowest: 24 lost ones take two minutes.
        for _ in 0..200 {
            wire.send(0, &packet);
            wire.run(Duration::from_secs(1));
        }
        prop_assert!(wire.nodes[1].received.len() >= 10, "{} arrived", wire.nodes[1].received.len());
    }

    /// No bytes from the network or the TUN make it panic.
    #[test]
    fn garbage_is_counted(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..6) {
        let mut wire = Wire::new(2);
        let mut datagram = bytes.clone();
        if datagram.len() > 4 {
            datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
        }
        let now = wire.now;
        wire.nodes[0].overlay.handle_datagram(PathAddress::main("192.0.2.9:1".parse().expect("valid")), &datagram, now);
        wire.nodes[0].overlay.handle_tun_packet(&bytes, now);
        wire.drain(0);
    }
}
