//! The data plane of some of the nodes: the shipped overlay over simulated WireGuard, and flows of packets through it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use vdc::Key;
use vdc::address::HOST;
use vdc_overlay::packet::{Transport, parse};
use vdc_overlay::sim::SimNoiseFactory;
use vdc_overlay::{Event as OverlayEvent, Member, Overlay, OverlayConfig, PathAddress, Transmit};

use crate::world::{Event, Known, World, micros_up};

/// Bytes before a packet's payload: IPv6 and UDP headers.
const HEADER_BYTES: usize = 48;

/// A node's data plane.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) overlay: Overlay<SimNoiseFactory>,
    pub(crate) member: Member,
    /// Everybody it may talk to, as last told to the overlay.
    pub(crate) peers: Vec<Member>,
    /// Where its socket is now; roaming raises the last part.
    pub(crate) address: SocketAddr,
    pub(crate) timer_us: Option<u64>,
    pub(crate) datagrams_sent: u64,
    pub(crate) last_sent_us: u64,
    /// Packets that came out of the overlay and were not of a flow to this host, or not from its source.
    pub(crate) strays: u64,
}

impl Host {
    pub(crate) fn new(node: usize, member: Member, clock: Duration, seed: [u8; 32], now: Instant) -> Self {
        let config = OverlayConfig { prefix: member.prefix, ipv4: member.ipv4, indices: 1..=100_000 };
        let factory = SimNoiseFactory::new(member.wg, clock, now);
        Self {
            overlay: Overlay::new(config, factory, seed, now),
            address: address(node, 0),
            member,
            peers: Vec::new(),
            timer_us: None,
            datagrams_sent: 0,
            last_sent_us: 0,
            strays: 0,
        }
    }

    pub(crate) fn set_peers(&mut self, peers: Vec<Member>, now: Instant) {
        self.peers = peers;
        self.overlay.set_members(&self.peers, now);
    }
}

/// Where a node's data-plane socket is after it has roamed `moves` times.
pub(crate) fn address(node: usize, moves: u8) -> SocketAddr {
    let low = u32::try_from(node).expect("fewer than 2^24 nodes");
    let ip = Ipv4Addr::from_bits(u32::from(100 + moves) << 24 | low);
    SocketAddr::new(IpAddr::V4(ip), 4710)
}

/// Packets from one host to another at a steady pace.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) until_us: u64,
    pub(crate) first_sent_us: Option<u64>,
    pub(crate) first_received_us: Option<u64>,
    pub(crate) last_received_us: Option<u64>,
    /// Longest time between two packets that arrived.
    pub(crate) gap_us_max: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// Pace of every flow.
pub(crate) const FLOW_INTERVAL_US: u64 = 200_000;

impl Flow {
    pub(crate) fn new(from: usize, to: usize, until_us: u64) -> Self {
        Self {
            from,
            to,
            until_us,
            first_sent_us: None,
            first_received_us: None,
            last_received_us: None,
            gap_us_max: 0,
            sent: 0,
            received: 0,
        }
    }

    /// The longest silence so far, one that still lasts included.
    pub(crate) fn gap_us(&self, now_us: u64) -> u64 {
        self.gap_us_max.max(self.last_received_us.map_or(0, |last_us| now_us - last_us))
    }

    pub(crate) fn on_received(&mut self, now_us: u64) {
        self.received += 1;
        self.first_received_us.get_or_insert(now_us);
        if let Some(last_us) = self.last_received_us.replace(now_us) {
            self.gap_us_max = self.gap_us_max.max(now_us - last_us);
        }
    }
}

/// A UDP packet of a flow: the payload is the flow's number.
pub(crate) fn packet(flow: usize, from: &Member, to: &Member) -> Vec<u8> {
    let payload = (flow as u64).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((8 + 8_u16).to_be_bytes());
    packet.extend([17, 64]);
    packet.extend(from.prefix.address(HOST).octets());
    packet.extend(to.prefix.address(HOST).octets());
    packet.extend(4711_u16.to_be_bytes());
    packet.extend(4711_u16.to_be_bytes());
    packet.extend((8 + 8_u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// The flow that a packet belongs to, if it is one that came from `from`, unharmed.
pub(crate) fn flow_of(bytes: &[u8], flows: &[Flow], member: impl Fn(usize) -> Option<Member>) -> Option<usize> {
    let payload = bytes.get(HEADER_BYTES..)?.try_into().ok()?;
    let flow = usize::try_from(u64::from_be_bytes(payload)).ok()?;
    let Flow { from, to, .. } = flows.get(flow)?;
    (packet(flow, &member(*from)?, &member(*to)?) == bytes).then_some(flow)
}

impl World {
    /// Gives a node a data plane.
    pub(crate) fn add_host(&mut self, node: usize) {
        let known = self.known(node);
        let key = self.nodes[node].identity.key;
        let Some(member) = known.peers.iter().find(|m| m.node == key).cloned() else { return };
        let clock = Duration::from_secs(self.nodes[node].unix_time(self.now_us).0);
        let host = Host::new(node, member, clock, self.random.bytes32(), self.instant());
        self.addresses.insert(host.address, node);
        self.hosts.insert(node, host);
        self.tell_host(node, &known);
    }

    /// Begins a flow between two hosts.
    pub(crate) fn add_flow(&mut self, flow: Flow, after_us: u64) {
        self.flows.push(flow);
        self.schedule(after_us, Event::FlowTick { flow: self.flows.len() - 1 });
    }

    /// The host's socket is somewhere else from now on.
    pub(crate) fn roam(&mut self, node: usize, moves: u8) {
        let now = self.instant();
        let Some(host) = self.hosts.get_mut(&node) else { return };
        self.addresses.remove(&host.address);
        host.address = address(node, moves);
        self.addresses.insert(host.address, node);
        host.overlay.handle_network_change(now);
        self.pump_host(node);
    }

    pub(crate) fn tell_host(&mut self, node: usize, known: &Known) {
        let now = self.instant();
        let Some(host) = self.hosts.get_mut(&node) else { return };
        let others = known.peers.iter().filter(|m| m.node != host.member.node).cloned().collect();
        host.set_peers(others, now);
        self.pump_host(node);
    }

    /// A revoked node must not be talked to a moment longer: this does not wait for the next refresh.
    pub(crate) fn cut_off(&mut self, node: usize, subject: &Key) {
        let now = self.instant();
        let Some(host) = self.hosts.get_mut(&node) else { return };
        let others = host.peers.iter().filter(|m| m.node != *subject).cloned().collect();
        host.set_peers(others, now);
        self.pump_host(node);
    }

    pub(crate) fn on_flow_tick(&mut self, index: usize) {
        let (now, now_us) = (self.instant(), self.now_us);
        let flow = &mut self.flows[index];
        if now_us >= flow.until_us {
            return;
        }
        flow.sent += 1;
        flow.first_sent_us.get_or_insert(now_us);
        let (from, to) = (flow.from, flow.to);
        let packet = packet(index, &self.hosts[&from].member, &self.hosts[&to].member);
        if let Some(host) = self.hosts.get_mut(&from) {
            host.overlay.handle_tun_packet(&packet, now);
        }
        self.pump_host(from);
        self.schedule(FLOW_INTERVAL_US, Event::FlowTick { flow: index });
    }

    pub(crate) fn on_datagram(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        // Nobody is there any more, or a cut came while it was on its way.
        let Some(node) = self.addresses.get(&to).copied() else { return };
        self.trace.event(self.now_us, 10, node, 0, bytes.len());
        let now = self.instant();
        if let Some(host) = self.hosts.get_mut(&node) {
            host.overlay.handle_datagram(PathAddress::main(from), bytes, now);
        }
        self.pump_host(node);
    }

    pub(crate) fn on_host_timer(&mut self, node: usize) {
        let (now, now_us) = (self.instant(), self.now_us);
        let Some(host) = self.hosts.get_mut(&node) else { return };
        if host.timer_us != Some(now_us) {
            return;
        }
        host.timer_us = None;
        host.overlay.handle_timeout(now);
        self.pump_host(node);
    }

    pub(crate) fn on_endpoints(&mut self, node: usize, peer: usize) {
        let now = self.instant();
        let (key, is_up) = (self.nodes[peer].identity.key, self.nodes[peer].is_up);
        let address = self.hosts.get(&peer).map(|host| host.address).filter(|_| is_up && self.reaches(node, peer));
        if let Some(host) = self.hosts.get_mut(&node) {
            match address {
                Some(address) => host.overlay.set_candidates(&key, &[address], now),
                None => host.overlay.handle_lookup_failed(&key, "out of reach".to_owned(), now),
            }
        }
        self.pump_host(node);
    }

    /// Carries out what the overlay wants, as its documentation says.
    fn pump_host(&mut self, node: usize) {
        while let Some(Transmit { path, datagram }) = self.hosts.get_mut(&node).and_then(|h| h.overlay.poll_transmit())
        {
            self.transmit(node, path.remote, datagram);
        }
        while let Some(packet) = self.hosts.get_mut(&node).and_then(|h| h.overlay.poll_tun()) {
            let flow = flow_of(&packet, &self.flows, |at| self.hosts.get(&at).map(|h| h.member.clone()));
            match flow.filter(|flow| self.flows[*flow].to == node) {
                Some(flow) => self.flows[flow].on_received(self.now_us),
                None => self.on_stray(node, &packet),
            }
        }
        while let Some(event) = self.hosts.get_mut(&node).and_then(|h| h.overlay.poll_event()) {
            match event {
                OverlayEvent::EndpointsWanted(key) => {
                    let Some(peer) = self.index.get(&key).copied() else { continue };
                    // There and back over a control link that is up; another round trip to make one.
                    let (a, b) = (self.nodes[node].identity.site, self.nodes[peer].identity.site);
                    let trips = if self.nodes[node].links.contains_key(&peer) { 2 } else { 5 };
                    let after_us = trips * self.network.base_us(a, b);
                    self.schedule(after_us, Event::Endpoints { node, peer });
                }
                OverlayEvent::TunnelUp(_) | OverlayEvent::TunnelDown(_) | OverlayEvent::PathChanged(_) => {
                    self.trace.event(self.now_us, 11, node, 0, 0);
                }
            }
        }
        self.set_host_timer(node);
    }

    /// A packet that no flow sent here: the overlay's own answers to this host are expected, nothing else is.
    fn on_stray(&mut self, node: usize, packet: &[u8]) {
        let Some(host) = self.hosts.get_mut(&node) else { return };
        let own = parse(packet).is_ok_and(|parsed| parsed.transport == Transport::Icmp { kind: 1, code: 3 });
        host.strays += u64::from(!own);
    }

    fn transmit(&mut self, node: usize, to: SocketAddr, bytes: Vec<u8>) {
        let now_us = self.now_us;
        let Some(host) = self.hosts.get_mut(&node) else { return };
        host.datagrams_sent += 1;
        host.last_sent_us = now_us;
        let from = host.address;
        let Some(peer) = self.addresses.get(&to).copied() else { return };
        let (a, b) = (self.nodes[node].identity.site, self.nodes[peer].identity.site);
        if let Some(transit_us) = self.network.datagram_us(a, b, bytes.len()) {
            self.schedule(transit_us, Event::Datagram { from, to, bytes });
        }
    }

    fn set_host_timer(&mut self, node: usize) {
        let (base, now_us) = (self.base, self.now_us);
        let Some(host) = self.hosts.get_mut(&node) else { return };
        let Some((due, _)) = host.overlay.poll_timeout() else { return };
        let due_us = micros_up(due.saturating_duration_since(base)).max(now_us);
        if host.timer_us.is_none_or(|set_us| due_us < set_us) {
            host.timer_us = Some(due_us);
            self.schedule(due_us - now_us, Event::HostTimer { node });
        }
    }
}
