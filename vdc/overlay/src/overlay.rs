//! The overlay's state machine: members, routes, tunnels that open when they are needed, and their timers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use vdc::address::INFRA;
use vdc::{Ipv4Block, Key, NodePrefix, WgKey};

use crate::demux::{Kind, classify};
use crate::noise::{Identified, Noise, NoiseFactory, NoiseStatus, Opened, Refusal, Sealed, Tick, TunnelIndex};
use crate::packet::{self, Probe};
use crate::path::{Candidate, PathAddress, PathAgent, Source, Tier};

/// Packets and bytes that wait for one tunnel; the oldest go first when there is no room.
pub(crate) const QUEUE_PACKETS_MAX: usize = 32;
pub(crate) const QUEUE_BYTES_MAX: usize = 64 << 10;
/// Tunnels that may be opening or open at once: bounds what queues can hold to 64 MiB in the very worst case.
pub(crate) const TUNNELS_MAX: usize = 1024;
const _: () = assert!(TUNNELS_MAX * QUEUE_BYTES_MAX <= 64 << 20);
/// Outputs that wait for the driver, which drains them after every input.
const OUTPUTS_MAX: usize = 4096;

/// A tunnel without data for so long is closed: no packet ever goes to an idle peer.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(300);
/// Packets that could not be sent within this time are given back as unreachable.
const QUEUE_TIME_MAX: Duration = Duration::from_secs(5);
/// Pause before endpoints are asked for again; doubles up to [`LOOKUP_PAUSE_MAX`].
const LOOKUP_PAUSE: Duration = Duration::from_secs(1);
const LOOKUP_PAUSE_MAX: Duration = Duration::from_secs(30);
/// A handshake without an answer is repeated over all candidates after this long.
const HANDSHAKE_PAUSE: Duration = Duration::from_millis(500);
const HANDSHAKE_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Unanswered handshakes after which the path in use is no longer trusted.
const DISTRESS: u32 = 2;
/// How often an established tunnel's timers run.
const TICK: Duration = Duration::from_secs(1);
/// Handshakes that data of unknown sessions may trigger: one per peer in this time.
const UNKNOWN_INDEX_PAUSE: Duration = Duration::from_millis(500);
/// Unreachable messages: one per this time.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(50);
/// Probes go on while data went through within this time.
const IN_USE: Duration = Duration::from_secs(30);

/// Static input of one overlay.
#[derive(Clone, Debug)]
pub struct OverlayConfig {
    /// This node's own prefix.
    pub prefix: NodePrefix,
    /// This node's own IPv4 block.
    pub ipv4: Option<Ipv4Block>,
    /// The first and last tunnel index that this overlay may use.
    pub indices: std::ops::RangeInclusive<u32>,
}

/// A node that may be talked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub node: Key,
    pub wg: WgKey,
    pub prefix: NodePrefix,
    pub ipv4: Option<Ipv4Block>,
}

/// A datagram to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    pub path: PathAddress,
    pub datagram: Vec<u8>,
}

/// What the driver must know or do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Ask `node` over a control link where its socket can be tried, and answer with [`Overlay::set_candidates`] or
    /// [`Overlay::handle_lookup_failed`].
    EndpointsWanted(Key),
    TunnelUp(Key),
    TunnelDown(Key),
    PathChanged(Key),
}

/// Why a packet or datagram went no further. Counted, never an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// Not an IP packet.
    Malformed,
    /// No member owns the destination.
    NoRoute,
    /// The peer sent from an address that is not its own.
    SpoofedSource,
    /// A peer sent something for somebody else.
    NotOurs,
    /// No tunnel came up in time, or its queue overflowed.
    QueueFull,
    /// Broken seal or wrong key.
    Forged,
    Replay,
    /// A datagram that is nothing of ours.
    Garbage,
    /// A handshake of a key that is no member's.
    NotMember,
    /// Handshakes beyond the flood limit.
    RateLimited,
    /// More tunnels than one node may have open.
    TooManyTunnels,
}

impl DropReason {
    pub const ALL: [Self; 11] = [
        Self::Malformed,
        Self::NoRoute,
        Self::SpoofedSource,
        Self::NotOurs,
        Self::QueueFull,
        Self::Forged,
        Self::Replay,
        Self::Garbage,
        Self::NotMember,
        Self::RateLimited,
        Self::TooManyTunnels,
    ];

    /// Stable name for metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NoRoute => "no-route",
            Self::SpoofedSource => "spoofed-source",
            Self::NotOurs => "not-ours",
            Self::QueueFull => "queue-full",
            Self::Forged => "forged",
            Self::Replay => "replay",
            Self::Garbage => "garbage",
            Self::NotMember => "not-member",
            Self::RateLimited => "rate-limited",
            Self::TooManyTunnels => "too-many-tunnels",
        }
    }
}

/// Dropped packets by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops(BTreeMap<DropReason, u64>);

impl Drops {
    fn add(&mut self, reason: DropReason, packets: u64) {
        *self.0.entry(reason).or_default() += packets;
    }

    #[must_use]
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0.get(&reason).copied().unwrap_or(0)
    }
}

/// What a tunnel is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelState {
    /// Waiting for endpoints, or for a handshake to be answered.
    Connecting,
    Up,
}

/// A tunnel as `status` shows it.
#[derive(Clone, Debug)]
pub struct TunnelView {
    pub node: Key,
    pub state: TunnelState,
    pub path: Option<(PathAddress, Tier)>,
    pub rtt: Option<Duration>,
    pub noise: NoiseStatus,
    pub candidates: Vec<Candidate>,
    /// Why it is not up, where that is known.
    pub reason: Option<String>,
}

/// A tunnel as the packet threads need it.
#[derive(Debug)]
pub struct TunnelRef<'a, N> {
    pub node: Key,
    pub index: TunnelIndex,
    pub prefix: NodePrefix,
    pub ipv4: Option<Ipv4Block>,
    pub path: Option<PathAddress>,
    pub noise: &'a N,
}

struct Tunnel<N> {
    index: TunnelIndex,
    noise: N,
    agent: PathAgent,
    up: bool,
    queue: VecDeque<Vec<u8>>,
    queue_bytes: usize,
    queued_since: Option<Instant>,
    /// When endpoints may be asked for again; none while an answer is awaited.
    lookup_at: Option<Instant>,
    lookups: u32,
    /// When the handshake is repeated; none while there is nothing to shake hands for.
    handshake_at: Option<Instant>,
    handshakes: u32,
    tick_at: Instant,
    last_use: Instant,
    unknown_at: Option<Instant>,
    reason: Option<String>,
}

struct Peer<N> {
    member: Member,
    boot_nonce: Option<[u8; 16]>,
    /// Candidates learnt while there was no tunnel.
    known: Vec<Candidate>,
    tunnel: Option<Box<Tunnel<N>>>,
}

/// One VDC's overlay on one node.
///
/// Drive order: any `handle_*` or `set_*`, then [`Overlay::poll_transmit`], [`Overlay::poll_tun`] and
/// [`Overlay::poll_event`] until all are empty, then sleep until [`Overlay::poll_timeout`] and call
/// [`Overlay::handle_timeout`]. A real driver then also republishes [`Overlay::tunnels`] if
/// [`Overlay::snapshot_version`] moved.
pub struct Overlay<F: NoiseFactory> {
    config: OverlayConfig,
    factory: F,
    seed: u64,
    peers: BTreeMap<Key, Peer<F::Noise>>,
    by_prefix: HashMap<NodePrefix, Key>,
    /// Ascending by network; blocks of members do not overlap.
    by_ipv4: Vec<(Ipv4Block, Key)>,
    by_wg: HashMap<WgKey, Key>,
    by_index: HashMap<u32, Key>,
    next_index: u32,
    tunnels: usize,
    transmits: VecDeque<Transmit>,
    packets: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    drops: Drops,
    unreachable_at: Option<Instant>,
    snapshot_version: u64,
    /// Networks that this host is in, to tell LAN candidates.
    local_networks: Vec<(IpAddr, u8)>,
    now: Instant,
}

impl<F: NoiseFactory> std::fmt::Debug for Overlay<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay")
            .field("peers", &self.peers.len())
            .field("tunnels", &self.tunnels)
            .finish_non_exhaustive()
    }
}

impl<F: NoiseFactory> Overlay<F> {
    /// An overlay without members. `seed` makes probe tokens hard to guess for outsiders and jitter different per node.
    #[must_use]
    pub fn new(config: OverlayConfig, factory: F, seed: [u8; 32], now: Instant) -> Self {
        let next_index = *config.indices.start();
        let seed = u64::from_le_bytes(seed[..8].try_into().expect("8 of 32 bytes"));
        Self {
            config,
            factory,
            seed,
            peers: BTreeMap::new(),
            by_prefix: HashMap::new(),
            by_ipv4: vec![],
            by_wg: HashMap::new(),
            by_index: HashMap::new(),
            next_index,
            tunnels: 0,
            transmits: VecDeque::new(),
            packets: VecDeque::new(),
            events: VecDeque::new(),
            drops: Drops::default(),
            unreachable_at: None,
            snapshot_version: 0,
            local_networks: vec![],
            now,
        }
    }

    // ---- who may talk

    /// Replaces the set of members. Whoever is not in it any more is cut off at once.
    pub fn set_members(&mut self, members: &[Member], now: Instant) {
        self.advance(now);
        let wanted: BTreeMap<Key, &Member> = members.iter().map(|m| (m.node, m)).collect();
        let gone: Vec<Key> = self
            .peers
            .iter()
            .filter(|(key, peer)| wanted.get(*key).is_none_or(|member| **member != peer.member))
            .map(|(key, _)| *key)
            .collect();
        for key in gone {
            self.close(&key);
            self.peers.remove(&key);
            self.snapshot_version += 1;
        }
        for (key, member) in wanted {
            let new = || Peer { member: member.clone(), boot_nonce: None, known: vec![], tunnel: None };
            self.peers.entry(key).or_insert_with(new);
        }
        self.by_prefix = self.peers.values().map(|p| (p.member.prefix, p.member.node)).collect();
        self.by_wg = self.peers.values().map(|p| (p.member.wg, p.member.node)).collect();
        self.by_ipv4 = self.peers.values().filter_map(|p| Some((p.member.ipv4?, p.member.node))).collect();
        self.by_ipv4.sort_by_key(|(block, _)| block.network());
    }

    /// Which networks this host is in (address and prefix length): candidates in them are on the LAN.
    pub fn set_local_networks(&mut self, networks: Vec<(IpAddr, u8)>, now: Instant) {
        self.advance(now);
        self.local_networks = networks;
    }

    /// Where `node` says its socket can be tried. Also an answer to [`Event::EndpointsWanted`].
    pub fn set_candidates(&mut self, node: &Key, addresses: &[SocketAddr], now: Instant) {
        self.advance(now);
        let candidates: Vec<Candidate> =
            addresses.iter().map(|remote| self.candidate(PathAddress::main(*remote), Source::Asked)).collect();
        let Some(peer) = self.peers.get_mut(node) else { return };
        peer.known.clone_from(&candidates);
        peer.known.truncate(crate::path::CANDIDATES_MAX);
        let Some(tunnel) = &mut peer.tunnel else { return };
        tunnel.reason = None;
        if tunnel.lookup_at.is_none() && !tunnel.up {
            // Answered: the next question only if the handshakes over these come to nothing.
            tunnel.lookup_at = Some(now + lookup_pause(tunnel.lookups));
        }
        let mut new = false;
        for candidate in candidates {
            new |= tunnel.agent.add(candidate);
        }
        let wanted = tunnel.queued_since.is_some() || tunnel.handshake_at.is_some();
        if !tunnel.up && wanted && (new || tunnel.handshakes == 0) {
            self.shake_hands(node);
        }
    }

    /// `node` could not be asked.
    pub fn handle_lookup_failed(&mut self, node: &Key, why: String, now: Instant) {
        self.advance(now);
        let Some(tunnel) = self.tunnel_mut(node) else { return };
        if tunnel.lookup_at.is_none() {
            tunnel.lookup_at = Some(now + lookup_pause(tunnel.lookups));
        }
        tunnel.reason = Some(why);
    }

    /// `node` started anew: its old sessions are gone, and so is its memory of handshake times. Rebuilds the tunnel.
    pub fn handle_boot_nonce(&mut self, node: &Key, nonce: [u8; 16], now: Instant) {
        self.advance(now);
        let Some(peer) = self.peers.get_mut(node) else { return };
        let before = peer.boot_nonce.replace(nonce);
        if before.is_none_or(|before| before == nonce) {
            return;
        }
        let Some(tunnel) = &peer.tunnel else { return };
        let (path, used) = (tunnel.agent.current(), now.saturating_duration_since(tunnel.last_use) < IN_USE);
        self.close(node);
        if used {
            self.open(node, path, true);
            self.shake_hands(node);
        }
    }

    /// Tunnels that were in use before a restart: handshakes go to all of them first.
    pub fn restore(&mut self, paths: &[(Key, SocketAddr)], now: Instant) {
        self.advance(now);
        for (node, remote) in paths.iter().rev() {
            let path = PathAddress::main(*remote);
            let fresh = self.peers.get(node).is_some_and(|peer| peer.tunnel.is_none());
            if fresh && self.open(node, Some(path), true) {
                let candidate = self.candidate(path, Source::LastSeen);
                if let Some(tunnel) = self.tunnel_mut(node) {
                    tunnel.agent.add(candidate);
                }
                self.shake_hands(node);
            }
        }
    }

    /// This host's addresses or routes changed.
    pub fn handle_network_change(&mut self, now: Instant) {
        self.advance(now);
        let open: Vec<Key> = self.open_tunnels();
        for node in open {
            if let Some(tunnel) = self.tunnel_mut(&node) {
                tunnel.agent.on_network_change(now);
                tunnel.lookups = 0;
                let used = now.saturating_duration_since(tunnel.last_use) < IN_USE;
                if used {
                    tunnel.lookup_at = None;
                    self.events.push_back(Event::EndpointsWanted(node));
                    self.shake_hands(&node);
                }
            }
        }
    }

    // ---- packets

    /// A packet that the host or a workload sends into the VDC.
    pub fn handle_tun_packet(&mut self, packet: &[u8], now: Instant) {
        self.advance(now);
        let Ok(parsed) = packet::parse(packet) else { return self.drops.add(DropReason::Malformed, 1) };
        let Some(node) = self.route(parsed.destination) else {
            self.drops.add(DropReason::NoRoute, 1);
            return self.tell_unreachable(packet);
        };
        if !self.open(&node, None, true) {
            self.drops.add(DropReason::TooManyTunnels, 1);
            return self.tell_unreachable(packet);
        }
        let Some(tunnel) = self.tunnel_mut(&node) else { return };
        tunnel.last_use = now;
        tunnel.agent.wake(now);
        let mut datagram = vec![];
        if tunnel.up
            && let Some(path) = tunnel.agent.current()
            && tunnel.noise.encapsulate(packet, &mut datagram, now) == Sealed::Data
        {
            return self.transmit(path, datagram);
        }
        let overflow = enqueue(tunnel, packet, now);
        // Somebody waits again: the next question must not wait out a long back-off.
        tunnel.lookup_at = tunnel.lookup_at.map(|at| at.min(now + LOOKUP_PAUSE));
        let idle = tunnel.handshake_at.is_none();
        self.drops.add(DropReason::QueueFull, overflow);
        if idle {
            self.shake_hands(&node);
        }
    }

    /// A datagram from the network.
    pub fn handle_datagram(&mut self, path: PathAddress, datagram: &[u8], now: Instant) {
        self.advance(now);
        match classify(datagram) {
            Kind::HandshakeInitiation => self.on_initiation(path, datagram),
            Kind::HandshakeResponse { receiver } | Kind::CookieReply { receiver } | Kind::Data { receiver } => {
                match self.by_index.get(&(receiver >> 8)).copied() {
                    Some(node) => self.on_tunnel_datagram(&node, path, datagram),
                    None => self.handle_unknown_index(path, now),
                }
            }
            Kind::Quic | Kind::Stun | Kind::Frame | Kind::Garbage => self.drops.add(DropReason::Garbage, 1),
        }
    }

    /// Data came for a session that is not here (any more). If a peer was last seen there, it is offered a new one.
    pub fn handle_unknown_index(&mut self, path: PathAddress, now: Instant) {
        self.advance(now);
        let lives_there = |peer: &Peer<F::Noise>| {
            peer.tunnel.as_ref().is_some_and(|t| t.agent.current() == Some(path))
                || peer.known.iter().any(|c| c.address == path)
        };
        let Some(node) = self.peers.iter().find(|(_, peer)| lives_there(peer)).map(|(key, _)| *key) else {
            return self.drops.add(DropReason::Garbage, 1);
        };
        if !self.open(&node, Some(path), true) {
            return;
        }
        let Some(tunnel) = self.tunnel_mut(&node) else { return };
        if tunnel.unknown_at.is_some_and(|at| now < at + UNKNOWN_INDEX_PAUSE) {
            return;
        }
        tunnel.unknown_at = Some(now);
        tunnel.last_use = now;
        self.shake_hands(&node);
    }

    /// A packet thread opened authentic data of a tunnel that came from another address than its path's.
    pub fn handle_roamed(&mut self, index: TunnelIndex, path: PathAddress, now: Instant) {
        self.advance(now);
        let Some(node) = self.by_index.get(&index.0).copied() else { return };
        let tier = self.tier(path.remote);
        let Some(tunnel) = self.tunnel_mut(&node) else { return };
        if tunnel.agent.on_roamed(path, tier, now) {
            self.on_path_changed(node);
        }
    }

    /// A packet thread opened a probe of a tunnel's peer.
    pub fn handle_probe(&mut self, index: TunnelIndex, path: PathAddress, packet: &[u8], now: Instant) {
        self.advance(now);
        let Some(node) = self.by_index.get(&index.0).copied() else { return };
        self.on_probe(&node, path, packet);
    }

    /// A packet thread sealed or opened the first data after a pause, or found that a tunnel's session is gone.
    pub fn handle_session_lost(&mut self, index: TunnelIndex, now: Instant) {
        self.advance(now);
        if let Some(node) = self.by_index.get(&index.0).copied()
            && let Some(tunnel) = self.tunnel_mut(&node)
            && tunnel.handshake_at.is_none()
        {
            self.shake_hands(&node);
        }
    }

    /// Runs what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
        for node in self.open_tunnels() {
            self.run_timers(&node);
        }
    }

    // ---- outputs

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// A packet for the TUN.
    pub fn poll_tun(&mut self) -> Option<Vec<u8>> {
        self.packets.pop_front()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Overlay::handle_timeout`] is due next, and why. None while no tunnel is open: an idle node sleeps.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let tunnels = self.peers.values().filter_map(|peer| peer.tunnel.as_deref());
        tunnels
            .flat_map(|t| {
                [
                    Some((t.tick_at, "tunnel timers")),
                    t.handshake_at.map(|at| (at, "handshake unanswered")),
                    t.lookup_at.filter(|_| !t.up).map(|at| (at, "endpoints unknown")),
                    t.agent.probe_at().filter(|_| t.up).map(|at| (at, "probe paths")),
                    t.queued_since.map(|at| (at + QUEUE_TIME_MAX, "queue too old")),
                ]
            })
            .flatten()
            .min_by_key(|(at, _)| *at)
    }

    // ---- looking

    /// Moves whenever [`Overlay::tunnels`] would show another set of tunnels, sessions or paths.
    #[must_use]
    pub fn snapshot_version(&self) -> u64 {
        self.snapshot_version
    }

    /// The tunnels as packet threads need them. Without a path or a session a tunnel is not shown.
    pub fn tunnels(&self) -> impl Iterator<Item = TunnelRef<'_, F::Noise>> {
        self.peers.values().filter_map(|peer| {
            let tunnel = peer.tunnel.as_deref()?;
            let member = &peer.member;
            Some(TunnelRef {
                node: member.node,
                index: tunnel.index,
                prefix: member.prefix,
                ipv4: member.ipv4,
                path: tunnel.agent.current().filter(|_| tunnel.up),
                noise: &tunnel.noise,
            })
        })
    }

    /// Everything about the open tunnels, for `status`.
    #[must_use]
    pub fn views(&self, now: Instant) -> Vec<TunnelView> {
        let open = self.peers.values().filter_map(|peer| Some((peer, peer.tunnel.as_deref()?)));
        open.map(|(peer, tunnel)| TunnelView {
            node: peer.member.node,
            state: if tunnel.up { TunnelState::Up } else { TunnelState::Connecting },
            path: tunnel.agent.current().map(|path| (path, tunnel.agent.tier().unwrap_or(Tier::Host))),
            rtt: tunnel.agent.rtt(),
            noise: tunnel.noise.status(now),
            candidates: tunnel.agent.candidates().to_vec(),
            reason: tunnel.reason.clone(),
        })
        .collect()
    }

    /// The paths of tunnels that are up, to be restored after a restart; the most recently used last.
    #[must_use]
    pub fn last_paths(&self) -> Vec<(Key, SocketAddr)> {
        let mut up: Vec<(Instant, Key, SocketAddr)> = self
            .peers
            .values()
            .filter_map(|peer| {
                let tunnel = peer.tunnel.as_deref().filter(|t| t.up)?;
                Some((tunnel.last_use, peer.member.node, tunnel.agent.current()?.remote))
            })
            .collect();
        up.sort_unstable();
        up.into_iter().map(|(_, node, remote)| (node, remote)).collect()
    }

    /// What was dropped so far.
    #[must_use]
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Whether a handshake initiation is meant for this VDC's key.
    #[must_use]
    pub fn is_for_us(&self, datagram: &[u8]) -> bool {
        self.factory.is_for_us(datagram)
    }

    // ---- inside

    fn advance(&mut self, now: Instant) {
        assert!(now >= self.now, "the driver's clock is monotonic");
        self.now = now;
    }

    fn tunnel_mut(&mut self, node: &Key) -> Option<&mut Tunnel<F::Noise>> {
        self.peers.get_mut(node)?.tunnel.as_deref_mut()
    }

    fn open_tunnels(&self) -> Vec<Key> {
        self.peers.iter().filter(|(_, peer)| peer.tunnel.is_some()).map(|(key, _)| *key).collect()
    }

    fn route(&self, destination: IpAddr) -> Option<Key> {
        match destination {
            IpAddr::V6(v6) => self.by_prefix.get(&NodePrefix::of(v6)).copied(),
            IpAddr::V4(v4) => {
                let after = self.by_ipv4.partition_point(|(block, _)| block.network() <= v4);
                let (block, node) = self.by_ipv4.get(after.checked_sub(1)?)?;
                block.contains(v4).then_some(*node)
            }
        }
    }

    fn tier(&self, remote: SocketAddr) -> Tier {
        let in_network = |(network, length): &(IpAddr, u8)| same_network(remote.ip(), *network, *length);
        if self.local_networks.iter().any(in_network) { Tier::Lan } else { Tier::Host }
    }

    fn candidate(&self, address: PathAddress, source: Source) -> Candidate {
        Candidate { address, tier: self.tier(address.remote), source, rtt: None }
    }

    fn transmit(&mut self, path: PathAddress, datagram: Vec<u8>) {
        if self.transmits.len() < OUTPUTS_MAX {
            self.transmits.push_back(Transmit { path, datagram });
        } else {
            self.drops.add(DropReason::QueueFull, 1);
        }
    }

    fn deliver(&mut self, packet: Vec<u8>) {
        if self.packets.len() < OUTPUTS_MAX {
            self.packets.push_back(packet);
        } else {
            self.drops.add(DropReason::QueueFull, 1);
        }
    }

    fn tell_unreachable(&mut self, packet: &[u8]) {
        if self.unreachable_at.is_some_and(|at| self.now < at + UNREACHABLE_PAUSE) {
            return;
        }
        if let Some(reply) = packet::unreachable(packet, self.infra(self.config.prefix)) {
            self.unreachable_at = Some(self.now);
            self.deliver(reply);
        }
    }

    fn infra(&self, prefix: NodePrefix) -> Ipv6Addr {
        prefix.address(INFRA)
    }

    /// Makes sure that there is a tunnel to open. False if there may not be one more. `asking` when it is we who want
    /// something of the peer: then its endpoints are asked for.
    fn open(&mut self, node: &Key, path: Option<PathAddress>, asking: bool) -> bool {
        let Some(peer) = self.peers.get(node) else { return false };
        if peer.tunnel.is_some() {
            return true;
        }
        if self.tunnels >= TUNNELS_MAX {
            return false;
        }
        let Some(index) = self.free_index() else { return false };
        let Some(peer) = self.peers.get(node) else { return false };
        let now = self.now;
        let noise = self.factory.tunnel(&peer.member.wg, index, now);
        let mut agent = PathAgent::new(self.seed ^ u64::from(index.0) << 32);
        for candidate in &peer.known {
            agent.add(*candidate);
        }
        if let Some(path) = path {
            agent.add(self.candidate(path, Source::LastSeen));
        }
        let tunnel = Tunnel {
            index,
            noise,
            agent,
            up: false,
            queue: VecDeque::new(),
            queue_bytes: 0,
            queued_since: None,
            lookup_at: if asking { None } else { Some(now) },
            lookups: 1,
            handshake_at: None,
            handshakes: 0,
            tick_at: now + TICK,
            last_use: now,
            unknown_at: None,
            reason: None,
        };
        let peer = self.peers.get_mut(node).expect("looked up above");
        peer.tunnel = Some(Box::new(tunnel));
        self.by_index.insert(index.0, *node);
        self.tunnels += 1;
        self.snapshot_version += 1;
        if asking {
            self.events.push_back(Event::EndpointsWanted(*node));
        }
        true
    }

    fn free_index(&mut self) -> Option<TunnelIndex> {
        let (first, last) = (*self.config.indices.start(), *self.config.indices.end());
        for _ in 0..=TUNNELS_MAX {
            let index = self.next_index;
            self.next_index = if index >= last { first } else { index + 1 };
            if !self.by_index.contains_key(&index) {
                return Some(TunnelIndex(index));
            }
        }
        None
    }

    fn close(&mut self, node: &Key) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        let Some(tunnel) = peer.tunnel.take() else { return };
        self.by_index.remove(&tunnel.index.0);
        self.tunnels -= 1;
        self.snapshot_version += 1;
        self.drops.add(DropReason::QueueFull, tunnel.queue.len() as u64);
        if tunnel.up {
            self.events.push_back(Event::TunnelDown(*node));
        }
    }

    /// Starts a handshake over the path in use, or over all candidates while there is none.
    fn shake_hands(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnel_mut(node) else { return };
        tunnel.handshakes = tunnel.handshakes.saturating_add(1);
        if tunnel.handshakes > DISTRESS && tunnel.agent.current().is_some() {
            tunnel.agent.on_distress();
            self.snapshot_version += 1;
        }
        let Some(tunnel) = self.tunnel_mut(node) else { return };
        let pause = HANDSHAKE_PAUSE.saturating_mul(1 << tunnel.handshakes.min(4)).min(HANDSHAKE_PAUSE_MAX);
        tunnel.handshake_at = Some(now + pause);
        let paths = tunnel.agent.handshake_paths(now);
        let mut datagram = vec![];
        if paths.is_empty() || !tunnel.noise.initiate(&mut datagram, now) {
            return;
        }
        for path in paths {
            self.transmit(path, datagram.clone());
        }
    }

    fn on_initiation(&mut self, path: PathAddress, datagram: &[u8]) {
        let mut out = vec![];
        match self.factory.identify(datagram, path.remote, &mut out, self.now) {
            Identified::Peer(wg) => match self.by_wg.get(&wg).copied() {
                Some(node) if self.open(&node, Some(path), false) => self.on_tunnel_datagram(&node, path, datagram),
                Some(_) => self.drops.add(DropReason::TooManyTunnels, 1),
                None => self.drops.add(DropReason::NotMember, 1),
            },
            Identified::Reply => {
                self.drops.add(DropReason::RateLimited, 1);
                self.transmit(path, out);
            }
            Identified::NotOurs => self.drops.add(DropReason::Garbage, 1),
            Identified::Refused => self.drops.add(DropReason::RateLimited, 1),
        }
    }

    fn on_tunnel_datagram(&mut self, node: &Key, path: PathAddress, datagram: &[u8]) {
        let now = self.now;
        let tier = self.tier(path.remote);
        let mut out = vec![];
        let Some(tunnel) = self.tunnel_mut(node) else { return };
        match tunnel.noise.decapsulate(path.remote, datagram, &mut out, now) {
            Opened::Reply { session } => {
                self.transmit(path, out);
                if session {
                    self.on_session(node, path, tier);
                }
            }
            Opened::Nothing => {}
            Opened::Keepalive => self.on_authentic(node, path, tier),
            Opened::Packet => {
                self.on_authentic(node, path, tier);
                self.on_packet(node, path, out);
            }
            Opened::Refused(refusal) => self.on_refused(refusal, path),
        }
    }

    fn on_refused(&mut self, refusal: Refusal, path: PathAddress) {
        let now = self.now;
        match refusal {
            Refusal::Forged => self.drops.add(DropReason::Forged, 1),
            Refusal::Replay => self.drops.add(DropReason::Replay, 1),
            Refusal::RateLimited => self.drops.add(DropReason::RateLimited, 1),
            Refusal::NoSession => self.handle_unknown_index(path, now),
        }
    }

    /// Our handshake was answered.
    fn on_session(&mut self, node: &Key, path: PathAddress, tier: Tier) {
        let now = self.now;
        let Some(tunnel) = self.tunnel_mut(node) else { return };
        let changed = tunnel.agent.on_session(path, tier, now);
        self.on_up(node, changed);
    }

    /// Something authentic came over `path`: the session works in both directions.
    fn on_authentic(&mut self, node: &Key, path: PathAddress, tier: Tier) {
        let now = self.now;
        let Some(tunnel) = self.tunnel_mut(node) else { return };
        let changed = if tunnel.agent.current().is_none() {
            tunnel.agent.on_session(path, tier, now)
        } else {
            tunnel.agent.current() != Some(path) && tunnel.agent.on_roamed(path, tier, now)
        };
        self.on_up(node, changed);
    }

    fn on_up(&mut self, node: &Key, path_changed: bool) {
        let now = self.now;
        let Some(tunnel) = self.tunnel_mut(node) else { return };
        let came_up = !tunnel.up;
        (tunnel.up, tunnel.handshakes, tunnel.handshake_at, tunnel.lookups) = (true, 0, None, 0);
        (tunnel.lookup_at, tunnel.reason, tunnel.queued_since) = (None, None, None);
        let queue = std::mem::take(&mut tunnel.queue);
        tunnel.queue_bytes = 0;
        let Some(path) = tunnel.agent.current() else { return };
        for packet in queue {
            let mut datagram = vec![];
            let Some(tunnel) = self.tunnel_mut(node) else { return };
            if tunnel.noise.encapsulate(&packet, &mut datagram, now) == Sealed::Data {
                self.transmit(path, datagram);
            } else {
                self.drops.add(DropReason::QueueFull, 1);
            }
        }
        if came_up {
            self.snapshot_version += 1;
            self.events.push_back(Event::TunnelUp(*node));
        }
        if path_changed {
            self.on_path_changed(*node);
        }
    }

    fn on_path_changed(&mut self, node: Key) {
        self.snapshot_version += 1;
        self.events.push_back(Event::PathChanged(node));
    }

    fn on_packet(&mut self, node: &Key, path: PathAddress, packet: Vec<u8>) {
        let Ok(parsed) = packet::parse(&packet) else { return self.drops.add(DropReason::Malformed, 1) };
        let Some(peer) = self.peers.get(node) else { return };
        if !owns(&peer.member, parsed.source) {
            return self.drops.add(DropReason::SpoofedSource, 1);
        }
        let own = match parsed.destination {
            IpAddr::V6(v6) => self.config.prefix.contains(v6),
            IpAddr::V4(v4) => self.config.ipv4.is_some_and(|block| block.contains(v4)),
        };
        if !own {
            return self.drops.add(DropReason::NotOurs, 1);
        }
        let to_infra = parsed.destination == IpAddr::V6(self.infra(self.config.prefix));
        if to_infra && Probe::decode(&packet).is_some() {
            return self.on_probe(node, path, &packet);
        }
        let now = self.now;
        if let Some(tunnel) = self.tunnel_mut(node) {
            tunnel.last_use = now;
            tunnel.agent.wake(now);
        }
        self.deliver(packet);
    }

    fn on_probe(&mut self, node: &Key, path: PathAddress, packet: &[u8]) {
        let now = self.now;
        let Some(probe) = Probe::decode(packet) else { return };
        let own = self.infra(self.config.prefix);
        let Some(peer) = self.peers.get_mut(node) else { return };
        let theirs = peer.member.prefix.address(INFRA);
        let Some(tunnel) = peer.tunnel.as_deref_mut() else { return };
        if probe.reply {
            if tunnel.agent.on_probe_reply(probe.token, now) {
                self.on_path_changed(*node);
            }
            return;
        }
        let answer = Probe { reply: true, token: probe.token }.encode(own, theirs);
        let mut datagram = vec![];
        if tunnel.noise.encapsulate(&answer, &mut datagram, now) == Sealed::Data {
            self.transmit(path, datagram);
        }
    }

    fn run_timers(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnel_mut(node) else { return };
        let status = tunnel.noise.status(now);
        let used = [Some(tunnel.last_use), status.last_sent, status.last_received].into_iter().flatten().max();
        let idle = used.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        tunnel.last_use = used.unwrap_or(now);
        if idle > IDLE_MAX {
            return self.close(node);
        }
        if idle > IN_USE {
            tunnel.agent.rest();
        } else {
            tunnel.agent.wake(now);
        }
        if tunnel.tick_at <= now {
            tunnel.tick_at = now + TICK;
            self.tick(node);
        }
        self.give_up_queue(node);
        self.repeat_lookup(node);
        let Some(tunnel) = self.tunnel_mut(node) else { return };
        if tunnel.handshake_at.is_some_and(|at| at <= now) {
            if tunnel.up || tunnel.queued_since.is_some() || tunnel.handshakes < 4 {
                self.shake_hands(node);
            } else {
                tunnel.handshake_at = None; // nobody waits for it any more
            }
        }
        let Some(tunnel) = self.tunnel_mut(node) else { return };
        if tunnel.up {
            self.send_probes(node);
        }
    }

    fn tick(&mut self, node: &Key) {
        let now = self.now;
        let mut out = vec![];
        let Some(tunnel) = self.tunnel_mut(node) else { return };
        match tunnel.noise.tick(&mut out, now) {
            Tick::Idle => {}
            Tick::Send { handshake } => {
                if handshake {
                    // The session's own renewal: counts towards distress until it is answered.
                    tunnel.handshakes = tunnel.handshakes.saturating_add(1);
                    tunnel.handshake_at.get_or_insert(now + HANDSHAKE_PAUSE_MAX);
                }
                let paths = if handshake {
                    tunnel.agent.handshake_paths(now)
                } else {
                    tunnel.agent.current().into_iter().collect()
                };
                for path in paths {
                    self.transmit(path, out.clone());
                }
            }
            Tick::Expired if tunnel.queued_since.is_some() => {
                (tunnel.up, tunnel.handshakes) = (false, 0);
                tunnel.agent.on_distress();
                self.snapshot_version += 1;
                self.shake_hands(node);
            }
            Tick::Expired => self.close(node),
        }
    }

    fn give_up_queue(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnel_mut(node) else { return };
        if tunnel.queued_since.is_none_or(|since| now < since + QUEUE_TIME_MAX) {
            return;
        }
        tunnel.queued_since = None;
        tunnel.queue_bytes = 0;
        let queue = std::mem::take(&mut tunnel.queue);
        if tunnel.reason.is_none() {
            tunnel.reason = Some("no candidate answered the handshake".into());
        }
        self.drops.add(DropReason::QueueFull, queue.len() as u64);
        if let Some(packet) = queue.back() {
            self.tell_unreachable(packet);
        }
    }

    fn repeat_lookup(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnel_mut(node) else { return };
        let wanted = !tunnel.up && (tunnel.queued_since.is_some() || tunnel.handshake_at.is_some());
        if tunnel.up || tunnel.lookup_at.is_none_or(|at| at > now) {
            return;
        }
        if wanted {
            tunnel.lookup_at = None;
            tunnel.lookups = tunnel.lookups.saturating_add(1);
            self.events.push_back(Event::EndpointsWanted(*node));
        } else {
            tunnel.lookup_at = Some(now + LOOKUP_PAUSE_MAX); // nobody waits; look again later
        }
    }

    fn send_probes(&mut self, node: &Key) {
        let now = self.now;
        let own = self.infra(self.config.prefix);
        let Some(peer) = self.peers.get_mut(node) else { return };
        let theirs = peer.member.prefix.address(INFRA);
        let Some(tunnel) = peer.tunnel.as_deref_mut() else { return };
        let mut sent = vec![];
        for (path, probe) in tunnel.agent.probe(now) {
            let mut datagram = vec![];
            if tunnel.noise.encapsulate(&probe.encode(own, theirs), &mut datagram, now) == Sealed::Data {
                sent.push((path, datagram));
            }
        }
        for (path, datagram) in sent {
            self.transmit(path, datagram);
        }
    }
}

/// Keeps a packet for when the tunnel is up; returns how many had to go for it.
fn enqueue<N>(tunnel: &mut Tunnel<N>, packet: &[u8], now: Instant) -> u64 {
    let mut dropped = 0;
    while tunnel.queue.len() >= QUEUE_PACKETS_MAX || tunnel.queue_bytes + packet.len() > QUEUE_BYTES_MAX {
        match tunnel.queue.pop_front() {
            Some(oldest) => tunnel.queue_bytes -= oldest.len(),
            None => return 1, // larger than the whole queue
        }
        dropped += 1;
    }
    tunnel.queue_bytes += packet.len();
    tunnel.queue.push_back(packet.to_vec());
    tunnel.queued_since.get_or_insert(now);
    dropped
}

fn lookup_pause(lookups: u32) -> Duration {
    LOOKUP_PAUSE.saturating_mul(1 << lookups.min(5)).min(LOOKUP_PAUSE_MAX)
}

/// Whether the peer may send from this address: its own prefix or block, nothing else.
fn owns(member: &Member, source: IpAddr) -> bool {
    match source {
        IpAddr::V6(v6) => member.prefix.contains(v6),
        IpAddr::V4(v4) => member.ipv4.is_some_and(|block| block.contains(v4)),
    }
}

fn same_network(a: IpAddr, b: IpAddr, length: u8) -> bool {
    let (a, b, width) = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    let host_bits = width - u32::from(length).min(width);
    host_bits >= 128 || a >> host_bits == b >> host_bits
}
