//! The WAN as a state machine: frames and time in, frames out. No sockets, no clock, no randomness but the seed.
//!
//! Drive: [`Network::handle_frame`] for what a router sends, [`Network::handle_timeout`] at [`Network::poll_timeout`],
//! then [`Network::poll_transmit`] until it is empty.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use super::dns::Zone;
use super::frame::{self, Frame, Ip, WireSize};
use crate::link::{Direction, DirectionCounters, LinkCounters, LinkOptions, Prefixes};

/// Bytes under way in one direction of one link; what comes on top is dropped as a full queue. 5 Gbit/s × 50 ms.
const IN_FLIGHT_BYTES_MAX: u64 = 32 << 20;

/// The WAN's own addresses: the router that refuses, and the name server.
const ROUTER: u8 = 1;
pub(crate) const NAME_SERVER: u8 = 53;

/// Called with every packet at a router's WAN interface; see [`crate::Uplink::tap`].
pub(crate) type Tap = Box<dyn FnMut(Direction, &[u8]) + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortId(pub(crate) usize);

/// One uplink.
pub(crate) struct Port {
    pub(crate) prefixes: Prefixes,
    pub(crate) options: LinkOptions,
    pub(crate) is_cut: bool,
    pub(crate) counters: LinkCounters,
    pub(crate) taps: Vec<Tap>,
    up: Lane,
    down: Lane,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port").field("prefixes", &self.prefixes).field("options", &self.options).finish_non_exhaustive()
    }
}

impl Port {
    fn lane(&mut self, direction: Direction) -> (&mut Lane, &mut DirectionCounters, &LinkOptions) {
        match direction {
            Direction::Up => (&mut self.up, &mut self.counters.up, &self.options),
            Direction::Down => (&mut self.down, &mut self.counters.down, &self.options),
        }
    }

    fn observe(&mut self, direction: Direction, frame: &Frame) {
        let (_, counters, _) = self.lane(direction);
        let size = frame.wire_size();
        counters.packets += size.packets;
        counters.bytes += size.bytes;
        for tap in &mut self.taps {
            tap(direction, frame.packet());
        }
    }
}

/// One direction of an uplink.
#[derive(Debug)]
struct Lane {
    /// When the last bit of what was accepted so far has left, with a bandwidth.
    busy_until: Option<Instant>,
    in_flight_bytes: u64,
    chance: Chance,
}

/// A frame under way: leaves `direction` of `port` at `at`.
#[derive(Debug)]
struct Scheduled {
    at: Instant,
    sequence: u64,
    port: PortId,
    direction: Direction,
    frame: Frame,
}

impl Ord for Scheduled {
    /// Earliest first out of a max-heap; frames of one instant keep their order.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Scheduled {}

#[derive(Debug)]
pub(crate) struct Network {
    seed: u64,
    ports: Vec<Port>,
    pub(crate) zone: Zone,
    scheduled: BinaryHeap<Scheduled>,
    sequence: u64,
    transmits: VecDeque<(PortId, Frame)>,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            ports: Vec::new(),
            zone: Zone::default(),
            scheduled: BinaryHeap::new(),
            sequence: 0,
            transmits: VecDeque::new(),
        }
    }

    pub(crate) fn add_port(&mut self, prefixes: Prefixes, options: LinkOptions) -> PortId {
        let id = PortId(self.ports.len());
        // Each lane has its own dice, so that traffic on one link leaves the fate of another's packets alone.
        let lane = |salt: u64| Lane {
            busy_until: None,
            in_flight_bytes: 0,
            chance: Chance(self.seed ^ (id.0 as u64 * 2 + salt + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        };
        let (up, down) = (lane(0), lane(1));
        let counters = LinkCounters::default();
        self.ports.push(Port { prefixes, options, is_cut: false, counters, taps: Vec::new(), up, down });
        id
    }

    pub(crate) fn port(&mut self, id: PortId) -> &mut Port {
        &mut self.ports[id.0]
    }

    /// A router sent `frame` into its uplink.
    pub(crate) fn handle_frame(&mut self, now: Instant, from: PortId, frame: Frame) {
        let Some(ip) = frame::parse(frame.packet()) else { return };
        if !is_routable(ip.destination) {
            return;
        }
        self.port(from).observe(Direction::Up, &frame);
        self.enter(now, from, Direction::Up, frame, &ip);
    }

    /// When [`Network::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.scheduled.peek().map(|s| s.at)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while self.scheduled.peek().is_some_and(|s| s.at <= now) {
            let Some(event) = self.scheduled.pop() else { return };
            self.leave(event);
        }
    }

    /// A frame to write to the router of a port.
    pub(crate) fn poll_transmit(&mut self) -> Option<(PortId, Frame)> {
        self.transmits.pop_front()
    }

    /// A frame enters one direction of a link: what happens to it is decided here, and when it leaves.
    fn enter(&mut self, now: Instant, id: PortId, direction: Direction, frame: Frame, ip: &Ip) {
        let size = frame.wire_size();
        let port = self.port(id);
        let is_cut = port.is_cut;
        let (_, counters, options) = port.lane(direction);
        if is_cut {
            counters.cut += size.packets;
        } else if !options.family.has(ip.source) {
            counters.wrong_family += size.packets;
        } else if size.largest > options.mtu {
            let (mtu, is_silent) = (options.mtu, options.icmp_filtered);
            if !ip.dont_fragment {
                let pieces: Vec<Frame> = frame.segments().into_iter().flat_map(|segment| fit(segment, mtu)).collect();
                for piece in pieces {
                    self.schedule(now, id, direction, piece);
                }
                return;
            }
            counters.too_big += size.packets;
            let router = wan_address(ip.source, ROUTER);
            if !is_silent
                && ip.source != router
                && let Some(answer) = frame::too_big_packet(router, frame.packet(), mtu)
            {
                self.send(now, &answer);
            }
        } else if options.loss > 0.0 || options.reorder > 0.0 || options.bandwidth.is_some() {
            for segment in frame.segments() {
                self.schedule(now, id, direction, segment);
            }
        } else {
            self.schedule(now, id, direction, frame);
        }
    }

    fn schedule(&mut self, now: Instant, id: PortId, direction: Direction, frame: Frame) {
        let WireSize { packets, bytes, .. } = frame.wire_size();
        let (lane, counters, options) = self.ports[id.0].lane(direction);
        if lane.chance.happens(options.loss) {
            counters.lost += packets;
            return;
        }
        let start = lane.busy_until.map_or(now, |busy| busy.max(now));
        let is_late = options.bandwidth.is_some() && start - now > options.queue;
        if is_late || lane.in_flight_bytes + bytes > IN_FLIGHT_BYTES_MAX {
            counters.queue_full += packets;
            return;
        }
        let sent = match options.bandwidth {
            Some(rate) => start + rate.transmit_time(bytes),
            None => now,
        };
        lane.busy_until = options.bandwidth.is_some().then_some(sent);
        lane.in_flight_bytes += bytes;
        let held_back = if lane.chance.happens(options.reorder) { options.reorder_by } else { Default::default() };
        let at = sent + options.delay + held_back;
        self.sequence += 1;
        self.scheduled.push(Scheduled { at, sequence: self.sequence, port: id, direction, frame });
    }

    /// A frame comes out of one direction of a link.
    fn leave(&mut self, event: Scheduled) {
        let Scheduled { at, port: id, direction, frame, .. } = event;
        let WireSize { packets, bytes, .. } = frame.wire_size();
        let port = self.port(id);
        let is_cut = port.is_cut;
        let (lane, counters, _) = port.lane(direction);
        lane.in_flight_bytes -= bytes;
        if is_cut {
            counters.cut += packets;
            return;
        }
        match direction {
            Direction::Down => {
                port.observe(Direction::Down, &frame);
                self.transmits.push_back((id, frame));
            }
            Direction::Up => {
                let Some(ip) = frame::parse(frame.packet()) else { return };
                if Prefixes::WAN.contains(ip.destination) {
                    self.handle_local(at, &frame, &ip);
                } else if let Some(to) = self.route(ip.destination) {
                    self.enter(at, to, Direction::Down, frame, &ip);
                } else {
                    self.port(id).counters.up.no_route += packets;
                }
            }
        }
    }

    /// A packet for the WAN itself: a ping or a question for the name server.
    fn handle_local(&mut self, now: Instant, frame: &Frame, ip: &Ip) {
        let packet = frame.packet();
        let answer = match ip.protocol {
            frame::ICMP4 | frame::ICMP6 => frame::echo_reply(packet),
            frame::UDP if ip.destination == wan_address(ip.destination, NAME_SERVER) && !ip.is_fragment => {
                self.answer_query(packet, ip)
            }
            _ => None,
        };
        if let Some(answer) = answer {
            self.send(now, &answer);
        }
    }

    fn answer_query(&mut self, packet: &[u8], ip: &Ip) -> Option<Vec<u8>> {
        let datagram = packet.get(ip.payload_at..)?;
        let (header, query) = datagram.split_at_checked(8)?;
        let source_port = u16::from_be_bytes([header[0], header[1]]);
        let port = u16::from_be_bytes([header[2], header[3]]);
        if port != 53 {
            return None;
        }
        let answer = self.zone.answer(query)?;
        frame::udp_packet((ip.destination, port), (ip.source, source_port), &answer)
    }

    /// Sends a packet of the WAN itself.
    fn send(&mut self, now: Instant, packet: &[u8]) {
        let Some(ip) = frame::parse(packet) else { return };
        if let Some(to) = self.route(ip.destination) {
            self.enter(now, to, Direction::Down, Frame::from_packet(packet), &ip);
        }
    }

    fn route(&self, destination: IpAddr) -> Option<PortId> {
        self.ports.iter().position(|p| p.prefixes.contains(destination)).map(PortId)
    }
}

fn fit(packet: Frame, mtu: usize) -> Vec<Frame> {
    if packet.packet().len() > mtu { packet.fragments(mtu) } else { vec![packet] }
}

/// The WAN's address `last` of the family of `like`.
fn wan_address(like: IpAddr, last: u8) -> IpAddr {
    match like {
        IpAddr::V4(_) => Prefixes::WAN.v4_host(last).into(),
        IpAddr::V6(_) => Prefixes::WAN.v6_host(last).into(),
    }
}

/// Routers talk multicast and link-local on any interface; no WAN carries it.
fn is_routable(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_link_local() && v4 != Ipv4Addr::BROADCAST,
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unicast_link_local() && v6 != Ipv6Addr::UNSPECIFIED,
    }
}

/// Dice from a seed (SplitMix64).
#[derive(Clone, Debug)]
struct Chance(u64);

impl Chance {
    fn happens(&mut self, probability: f64) -> bool {
        if probability <= 0.0 {
            return false;
        }
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // 53 bits, as many as the mantissa of an f64 holds.
        let unit = (mixed >> 11) as f64 / (1_u64 << 53) as f64;
        unit < probability
    }
}

#[cfg(test)]
mod tests;
