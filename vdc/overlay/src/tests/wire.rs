use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use vdc::address::HOST;
use vdc::{Ipv4Block, Key, NodePrefix, SiteNumber, VdcId, WgKey};

use crate::sim::SimNoiseFactory;
use crate::{DropReason, Event, Member, Overlay, OverlayConfig, PathAddress, Transmit, TunnelView};

pub(super) const MS: Duration = Duration::from_millis(1);
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// Where the nodes' wall clocks stand at the start.
pub(super) const CLOCK: Duration = Duration::from_secs(1_000_000);

pub(super) struct Node {
    pub(super) overlay: Overlay<SimNoiseFactory>,
    pub(super) member: Member,
    /// Where its socket is. It sends from the one nearest to the receiver, as a kernel's routes would have it.
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) received: Vec<Vec<u8>>,
    pub(super) events: Vec<Event>,
    /// Whether questions for its endpoints are answered.
    pub(super) answers: bool,
}

/// What the network does with a datagram: after how long it arrives, or never.
pub(super) type Route = dyn Fn(&Flight) -> Option<Duration>;

/// A datagram that is being sent.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) datagram: Vec<u8>,
    /// How many were sent before it.
    pub(super) number: u64,
}

pub(super) struct Wire {
    pub(super) now: Instant,
    start: Instant,
    pub(super) nodes: Vec<Node>,
    flying: BTreeMap<(Instant, u64), Flight>,
    pub(super) route: Box<Route>,
    /// Which datagrams arrive once more, a little later.
    pub(super) twice: Box<dyn Fn(&Flight) -> bool>,
    pub(super) sent: u64,
    pub(super) log: Vec<(Duration, SocketAddr, SocketAddr, usize)>,
    pub(super) questions: u64,
    /// How long a question for endpoints takes over the control plane.
    pub(super) answer_after: Duration,
    asked: BTreeMap<(Instant, u64), (usize, Key)>,
}

pub(super) fn member(seed: u8) -> Member {
    let node = Key([seed; 32]);
    Member {
        node,
        wg: WgKey([seed + 100; 32]),
        prefix: NodePrefix::derive(&VdcId([1; 32]), SiteNumber(1), &node, 0),
        ipv4: "10.64.0.0/20".parse::<Ipv4Block>().expect("valid").sub_block(28, u32::from(seed)),
    }
}

pub(super) fn overlay(seed: u8, clock: Duration, now: Instant) -> Overlay<SimNoiseFactory> {
    let own = member(seed);
    let config = OverlayConfig { prefix: own.prefix, ipv4: own.ipv4, indices: 1..=2000 };
    Overlay::new(config, SimNoiseFactory::new(own.wg, clock, now), [seed; 32], now)
}

pub(super) fn at(address: &str) -> SocketAddr {
    address.parse().expect("valid")
}

fn nearest(addresses: &[SocketAddr], to: SocketAddr) -> SocketAddr {
    let network =
        |address: &SocketAddr| address.ip().to_string().rsplit_once('.').map(|(network, _)| network.to_owned());
    *addresses.iter().find(|address| network(address) == network(&to)).unwrap_or(&addresses[0])
}

pub(super) fn packet(from: Ipv6Addr, to: Ipv6Addr, length: usize) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(length).expect("short").to_be_bytes());
    packet.extend([17, 64]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.resize(40 + length, 0);
    packet
}

impl Wire {
    /// `count` nodes who are all members, 20 ms apart.
    pub(super) fn new(count: u8) -> Self {
        let now = Instant::now();
        let nodes = (1..=count).map(|seed| Node {
            overlay: overlay(seed, CLOCK, now),
            member: member(seed),
            addresses: vec![at(&format!("192.0.2.{seed}:4710"))],
            received: vec![],
            events: vec![],
            answers: true,
        });
        let mut wire = Self {
            now,
            start: now,
            nodes: nodes.collect(),
            flying: BTreeMap::new(),
            route: Box::new(|_| Some(20 * MS)),
            twice: Box::new(|_| false),
            sent: 0,
            log: vec![],
            questions: 0,
            answer_after: Duration::ZERO,
            asked: BTreeMap::new(),
        };
        let everybody: Vec<Member> = (1..=count).map(member).collect();
        for node in &mut wire.nodes {
            node.overlay.set_members(&everybody, now);
        }
        wire
    }

    pub(super) fn host(&self, node: usize) -> Ipv6Addr {
        self.nodes[node].member.prefix.address(HOST)
    }

    pub(super) fn packet(&self, from: usize, to: usize, length: usize) -> Vec<u8> {
        packet(self.host(from), self.host(to), length)
    }

    /// Gives a packet to a node's TUN.
    pub(super) fn send(&mut self, from: usize, packet: &[u8]) {
        self.nodes[from].overlay.handle_tun_packet(packet, self.now);
        self.drain(from);
    }

    /// Applies something to a node's overlay, and carries out what it wants.
    pub(super) fn tell(&mut self, node: usize, input: impl FnOnce(&mut Overlay<SimNoiseFactory>, Instant)) {
        input(&mut self.nodes[node].overlay, self.now);
        self.drain(node);
    }

    pub(super) fn deliver(&mut self, to: usize, from: SocketAddr, datagram: &[u8]) {
        self.nodes[to].overlay.handle_datagram(PathAddress::main(from), datagram, self.now);
        self.drain(to);
    }

    /// Takes every output, in the order that the type's documentation asks for.
    fn drain(&mut self, index: usize) {
        let now = self.now;
        while let Some(Transmit { path, datagram }) = self.nodes[index].overlay.poll_transmit() {
            let from = nearest(&self.nodes[index].addresses, path.remote);
            self.log.push((now.duration_since(self.start), from, path.remote, datagram.len()));
            let flight = Flight { from, to: path.remote, datagram, number: self.sent };
            self.sent += 1;
            if let Some(delay) = (self.route)(&flight) {
                if (self.twice)(&flight) {
                    self.flying.insert((now + delay + 7 * MS, self.sent), flight.clone());
                }
                self.flying.insert((now + delay, self.sent), flight);
            }
        }
        while let Some(packet) = self.nodes[index].overlay.poll_tun() {
            self.nodes[index].received.push(packet);
        }
        while let Some(event) = self.nodes[index].overlay.poll_event() {
            let wanted = if let Event::EndpointsWanted(node) = event { Some(node) } else { None };
            self.nodes[index].events.push(event);
            if let Some(node) = wanted {
                self.questions += 1;
                if self.answer_after.is_zero() {
                    self.answer(index, &node);
                } else {
                    self.asked.insert((now + self.answer_after, self.questions), (index, node));
                }
            }
        }
    }

    /// Answers a question for endpoints, as the control plane does.
    fn answer(&mut self, asker: usize, node: &Key) {
        let peer = self.nodes.iter().find(|n| n.member.node == *node && n.answers);
        let addresses = peer.map(|peer| peer.addresses.clone());
        self.tell(asker, |overlay, now| match addresses {
            Some(addresses) => overlay.set_candidates(node, &addresses, now),
            None => overlay.handle_lookup_failed(node, "out of reach".into(), now),
        });
    }

    /// Lets virtual time pass.
    pub(super) fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let arrival = self.flying.keys().next().map(|(at, _)| *at);
            let answer = self.asked.keys().next().map(|(at, _)| *at);
            let timer = self.nodes.iter().filter_map(|n| n.overlay.poll_timeout().map(|(at, _)| at)).min();
            let Some(next) = [arrival, answer, timer].into_iter().flatten().min().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let (_, flight) = self.flying.pop_first().expect("looked at above");
                let reader = self.nodes.iter().position(|n| n.addresses.contains(&flight.to));
                if let Some(reader) = reader {
                    self.deliver(reader, flight.from, &flight.datagram);
                }
            } else if answer == Some(next) {
                let (_, (asker, node)) = self.asked.pop_first().expect("looked at above");
                self.answer(asker, &node);
            } else {
                self.run_timers();
            }
        }
        self.now = end;
    }

    /// Everything that is due at this moment; afterwards nothing may be, or a driver would spin.
    fn run_timers(&mut self) {
        for index in 0..self.nodes.len() {
            let now = self.now;
            let due = |wire: &Self| wire.nodes[index].overlay.poll_timeout().filter(|(at, _)| *at <= now);
            if due(self).is_some() {
                self.tell(index, |overlay, now| overlay.handle_timeout(now));
                // Answers within the same moment may make something due, but not for ever.
                for _ in 0..3 {
                    if due(self).is_some() {
                        self.tell(index, |overlay, now| overlay.handle_timeout(now));
                    }
                }
                assert_eq!(due(self), None, "still due after it was handled");
            }
        }
    }

    /// A packet each way every 100 ms for as long; returns how many came through to each side.
    pub(super) fn talk(&mut self, a: usize, b: usize, span: Duration) -> (usize, usize) {
        let before = (self.nodes[a].received.len(), self.nodes[b].received.len());
        let (there, back) = (self.packet(a, b, 10), self.packet(b, a, 10));
        let end = self.now + span;
        while self.now < end {
            self.send(a, &there);
            self.send(b, &back);
            self.run(100 * MS);
        }
        (self.nodes[a].received.len() - before.0, self.nodes[b].received.len() - before.1)
    }

    pub(super) fn drops(&self, index: usize, reason: DropReason) -> u64 {
        self.nodes[index].overlay.drops().of(reason)
    }

    /// A node's only tunnel.
    pub(super) fn view(&self, index: usize) -> TunnelView {
        let mut views = self.nodes[index].overlay.views(self.now);
        assert_eq!(views.len(), 1);
        views.pop().expect("one")
    }

    pub(super) fn path(&self, index: usize) -> String {
        self.view(index).path.map_or_else(|| "none".into(), |(path, _)| path.remote.to_string())
    }

    /// Starts a node anew: empty, but for its members and what it wrote down.
    pub(super) fn restart(&mut self, index: usize, clock: Duration, paths: &[(Key, SocketAddr)]) {
        let (now, everybody) = (self.now, self.nodes.iter().map(|n| n.member.clone()).collect::<Vec<_>>());
        let seed = u8::try_from(index + 1).expect("few nodes");
        let elapsed = now.duration_since(self.start);
        self.nodes[index].overlay = overlay(seed, clock + elapsed, now);
        self.tell(index, |overlay, now| {
            overlay.set_members(&everybody, now);
            overlay.restore(paths, now);
        });
    }
}

/// Where a packet says that it comes from.
pub(super) fn source(packet: &[u8]) -> IpAddr {
    crate::packet::parse(packet).expect("what reaches the TUN is a packet").source
}
