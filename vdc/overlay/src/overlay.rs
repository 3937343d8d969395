//! The overlay's state machine: members, tunnels that open when they are needed, and their timers.

mod receive;
mod upkeep;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use vdc::address::INFRA;
use vdc::{Ipv4Block, Key, NodePrefix};

use crate::agent::CANDIDATES_MAX;
use crate::budget::Budget;
use crate::drops::{DropReason, Drops, Verdict};
use crate::members::{Directory, Member, uncontested};
use crate::noise::{Noise, NoiseFactory, NoiseStatus, Sealed, TunnelIndex};
use crate::packet;
use crate::path::{Candidate, LocalNetworks, PathAddress, Source, Tier};
use crate::random::Random;
use crate::tunnel::{Lookup, QUEUE_BYTES_MAX, Tunnel};

/// Tunnels that may be opening or open at once. When there is no room, the one unused for longest makes some.
pub const TUNNELS_MAX: usize = 1024;
/// What queues can hold in the very worst case: 64 MiB.
const _: () = assert!(TUNNELS_MAX * QUEUE_BYTES_MAX <= 64 << 20);
/// Outputs that wait for the driver, which drains them after every input; what is beyond is dropped and counted.
const OUTPUTS_MAX: usize = 4096;
/// The longest packet that is taken from the TUN: with the queues above, outputs hold at most 36 MiB of packets.
const PACKET_BYTES_MAX: usize = 9_000;
const _: () = assert!(OUTPUTS_MAX * PACKET_BYTES_MAX <= 36 << 20);

/// A tunnel without data for so long is closed: no packet ever goes to an idle peer.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(300);
/// A tunnel is in use if data went through within this time: paths are probed, and it keeps its place.
pub(crate) const IN_USE: Duration = Duration::from_secs(30);
/// Unreachable messages: one per this time.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(50);
/// Handshake datagrams of the whole node, copies of a fan-out included: after a restart all peers of the last run at
/// once, then what one core can seal without being noticed.
const HANDSHAKE_BUDGET: (u32, u32) = (200, 2_048);
/// Probes of the whole node: 50 tunnels in use with all their candidates at once.
const PROBE_BUDGET: (u32, u32) = (200, 800);
/// Notices of unknown sessions that are looked at: each costs a walk over the members.
const UNKNOWN_BUDGET: (u32, u32) = (100, 200);

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
    /// [`Overlay::handle_lookup_failed`]. It is asked again, with growing pauses, while somebody waits for the tunnel.
    EndpointsWanted(Key),
    TunnelUp(Key),
    TunnelDown(Key),
    PathChanged(Key),
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
    /// Packets that wait for it.
    pub queued: usize,
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
    /// None while the tunnel cannot carry data.
    pub path: Option<PathAddress>,
    pub noise: &'a N,
}

/// A member, and what is remembered of it while there is no tunnel.
#[derive(Debug)]
struct Peer {
    member: Member,
    boot_nonce: Option<[u8; 16]>,
    /// What it named as its addresses.
    named: Vec<PathAddress>,
    /// Where it was when its tunnel was closed.
    last_path: Option<PathAddress>,
}

/// One VDC's overlay on one node.
///
/// Drive order: any `handle_*` or `set_*`, then [`Overlay::poll_transmit`], [`Overlay::poll_tun`] and
/// [`Overlay::poll_event`] until all are empty, then sleep until [`Overlay::poll_timeout`] and call
/// [`Overlay::handle_timeout`]. A real driver then also republishes [`Overlay::tunnels`] if
/// [`Overlay::snapshot_version`] moved.
///
/// ```text
///          packet of ours, or a peer's handshake            session, and data through it
///   (none) ─────────────────────────────────────▶ Connecting ─────────────────────────▶ Up
///     ▲  ▲        endpoints asked, queue waits       │   ▲                               │
///     │  └── nobody waits, or never confirmed ───────┘   └── no path answers any more ───┤
///     └───────── five minutes without data, member gone, or the longest unused ──────────┘
/// ```
pub struct Overlay<F: NoiseFactory> {
    config: OverlayConfig,
    factory: F,
    random: Random,
    peers: BTreeMap<Key, Peer>,
    directory: Directory,
    tunnels: BTreeMap<Key, Tunnel<F::Noise>>,
    by_index: HashMap<u32, Key>,
    next_index: u32,
    outputs: Outputs,
    budgets: Budgets,
    drops: Drops,
    unreachable_at: Option<Instant>,
    snapshot_version: u64,
    networks: LocalNetworks,
    now: Instant,
}

/// What waits for the driver.
#[derive(Debug, Default)]
struct Outputs {
    transmits: VecDeque<Transmit>,
    packets: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
}

/// What the node may send on its own account.
#[derive(Debug)]
struct Budgets {
    handshakes: Budget,
    probes: Budget,
    unknown: Budget,
}

impl<F: NoiseFactory> std::fmt::Debug for Overlay<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay")
            .field("peers", &self.peers.len())
            .field("tunnels", &self.tunnels.len())
            .finish_non_exhaustive()
    }
}

impl<F: NoiseFactory> Overlay<F> {
    /// An overlay without members. `seed` makes its pauses and probe tokens its own.
    #[must_use]
    pub fn new(config: OverlayConfig, factory: F, seed: [u8; 32], now: Instant) -> Self {
        let next_index = *config.indices.start();
        let budget = |(per_second, burst)| Budget::new(per_second, burst, now);
        Self {
            config,
            factory,
            random: Random::new(seed),
            peers: BTreeMap::new(),
            directory: Directory::default(),
            tunnels: BTreeMap::new(),
            by_index: HashMap::new(),
            next_index,
            outputs: Outputs::default(),
            budgets: Budgets {
                handshakes: budget(HANDSHAKE_BUDGET),
                probes: budget(PROBE_BUDGET),
                unknown: budget(UNKNOWN_BUDGET),
            },
            drops: Drops::default(),
            unreachable_at: None,
            snapshot_version: 0,
            networks: LocalNetworks::default(),
            now,
        }
    }

    // ---- who may talk

    /// Replaces the set of members. Whoever is not in it any more, or not with these keys and addresses, is cut off at
    /// once: its tunnel, what waits for it, and what is remembered of it. The node itself may be among them.
    pub fn set_members(&mut self, members: &[Member], now: Instant) {
        self.advance(now);
        let mut wanted = uncontested(members, self.config.prefix);
        let changed = |node: &Key, peer: &Peer| wanted.get(node).is_none_or(|member| *member != peer.member);
        let gone: Vec<Key> =
            self.peers.iter().filter(|(node, peer)| changed(node, peer)).map(|(node, _)| *node).collect();
        for node in gone {
            self.close(&node);
            self.peers.remove(&node);
        }
        self.directory = Directory::new(wanted.values());
        wanted.retain(|node, _| !self.peers.contains_key(node));
        self.peers.extend(
            wanted
                .into_iter()
                .map(|(node, member)| (node, Peer { member, boot_nonce: None, named: vec![], last_path: None })),
        );
    }

    /// Which networks this host is in (address and prefix length): candidates in them are on the LAN.
    pub fn set_local_networks(&mut self, networks: Vec<(IpAddr, u8)>, now: Instant) {
        self.advance(now);
        self.networks = LocalNetworks(networks);
        for tunnel in self.tunnels.values_mut() {
            tunnel.agent.retier(|candidate| self.networks.tier(candidate.address.remote, candidate.source));
        }
    }

    /// Where `node` says its socket can be tried: the answer to [`Event::EndpointsWanted`], or what it told by itself.
    pub fn set_candidates(&mut self, node: &Key, addresses: &[SocketAddr], now: Instant) {
        self.advance(now);
        let Some(peer) = self.peers.get_mut(node) else { return };
        peer.named = addresses.iter().take(CANDIDATES_MAX).map(|remote| PathAddress::main(*remote)).collect();
        let named: Vec<Candidate> =
            peer.named.iter().map(|path| self.networks.candidate(*path, Source::Asked)).collect();
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        let new = tunnel.agent.set_asked(&named, now);
        tunnel.reason = named.is_empty().then(|| "the peer names no address".to_owned());
        if tunnel.up {
            tunnel.lookup = Lookup::Idle;
            // After a network change the handshake that is under way goes where the peer is by now, too.
            if new && !tunnel.agent.is_trusted() && tunnel.handshake.again_at.is_some() {
                self.shake_hands(node);
            }
            return;
        }
        self.pause_lookup(node);
        let Some(tunnel) = self.tunnels.get(node) else { return };
        if new || tunnel.handshake.attempts == 0 {
            self.shake_hands(node);
        }
    }

    /// `node` could not be asked; `why` is shown in its view.
    pub fn handle_lookup_failed(&mut self, node: &Key, why: String, now: Instant) {
        self.advance(now);
        self.pause_lookup(node);
        if let Some(tunnel) = self.tunnels.get_mut(node).filter(|tunnel| !tunnel.up) {
            tunnel.reason = Some(why);
        }
    }

    /// `node` runs under this boot nonce. A new one: it started anew, its sessions are gone, and so may be its memory of
    /// the time. Its tunnel is rebuilt at once if it is in use, which also forgives a clock that went back.
    pub fn handle_boot_nonce(&mut self, node: &Key, nonce: [u8; 16], now: Instant) {
        self.advance(now);
        let Some(peer) = self.peers.get_mut(node) else { return };
        let before = peer.boot_nonce.replace(nonce);
        if before.is_some_and(|before| before != nonce) {
            self.rebuild(node);
        }
    }

    /// Tunnels that were in use before a restart, the most recently used last: handshakes go to all of them at once.
    pub fn restore(&mut self, paths: &[(Key, SocketAddr)], now: Instant) {
        self.advance(now);
        for (node, remote) in paths.iter().rev().take(TUNNELS_MAX) {
            if let Some(peer) = self.peers.get_mut(node) {
                peer.last_path = Some(PathAddress::main(*remote));
                if !self.tunnels.contains_key(node) && self.open(node) {
                    self.ask_endpoints(node);
                    self.shake_hands(node);
                }
            }
        }
    }

    /// This host's addresses or routes changed. Tunnels in use shake hands over all their candidates at once, the path in
    /// use among them, and go on with the first that answers; the others do so when they are used again.
    pub fn handle_network_change(&mut self, now: Instant) {
        self.advance(now);
        for node in self.open_tunnels() {
            let Some(tunnel) = self.tunnels.get_mut(&node) else { continue };
            // What was received before this says nothing about the paths from here on, and ends no handshake.
            tunnel.meter.look(&tunnel.noise.status(now));
            tunnel.agent.on_network_change(now);
            (tunnel.lookups, tunnel.handshake.attempts) = (0, 0);
            if tunnel.idle(now) < IN_USE || !tunnel.queue.is_empty() {
                self.ask_endpoints(&node);
                self.shake_hands(&node);
            }
        }
    }

    // ---- packets

    /// A packet that the host or a workload sends into the VDC.
    pub fn handle_tun_packet(&mut self, packet: &[u8], now: Instant) {
        self.advance(now);
        let verdict = self.route_packet(packet);
        if let Verdict::Drop(reason) = verdict {
            self.drops.add(reason, 1);
            if matches!(reason, DropReason::NoRoute | DropReason::TooManyTunnels) {
                self.tell_unreachable(packet);
            }
        }
    }

    fn route_packet(&mut self, packet: &[u8]) -> Verdict {
        let Ok(parsed) = packet::parse(packet) else { return Verdict::Drop(DropReason::Malformed) };
        if packet.len() > PACKET_BYTES_MAX {
            return Verdict::Drop(DropReason::Malformed);
        }
        let Some(node) = self.directory.route(parsed.destination) else { return Verdict::Drop(DropReason::NoRoute) };
        if !self.open(&node) {
            return Verdict::Drop(DropReason::TooManyTunnels);
        }
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(&node) else { return Verdict::Drop(DropReason::NoRoute) };
        (tunnel.last_use, tunnel.half_open_until) = (now, None);
        if let Some(path) = tunnel.agent.current().filter(|_| tunnel.up) {
            tunnel.agent.wake(now);
            let mut datagram = vec![];
            if tunnel.noise.encapsulate(packet, &mut datagram, now) == Sealed::Data {
                self.transmit(path, datagram);
                return Verdict::Pass;
            }
        }
        let overflow = tunnel.queue.push(packet, now);
        let (quiet, lost) = (tunnel.handshake.again_at.is_none(), !tunnel.up && tunnel.lookup == Lookup::Idle);
        self.drops.add(DropReason::QueueFull, overflow);
        if lost {
            self.ask_endpoints(&node);
        }
        if quiet {
            self.shake_hands(&node);
        }
        Verdict::Queued
    }

    /// Runs what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
        let due = self.tunnels.iter().filter(|(_, tunnel)| tunnel.deadline().0 <= now);
        let due: Vec<Key> = due.map(|(node, _)| *node).collect();
        for node in due {
            self.run_timers(&node);
        }
    }

    // ---- outputs

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.outputs.transmits.pop_front()
    }

    /// A packet for the TUN.
    pub fn poll_tun(&mut self) -> Option<Vec<u8>> {
        self.outputs.packets.pop_front()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.outputs.events.pop_front()
    }

    /// When [`Overlay::handle_timeout`] is due next, and why. None while no tunnel is open: an idle node sleeps.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.tunnels.values().map(Tunnel::deadline).min_by_key(|(at, _)| *at)
    }

    // ---- looking

    /// Moves whenever [`Overlay::tunnels`] would show another set of tunnels, sessions or paths.
    #[must_use]
    pub fn snapshot_version(&self) -> u64 {
        self.snapshot_version
    }

    /// The tunnels as packet threads need them. One that cannot carry data has no path.
    pub fn tunnels(&self) -> impl Iterator<Item = TunnelRef<'_, F::Noise>> {
        self.tunnels.iter().filter_map(|(node, tunnel)| {
            let member = &self.peers.get(node)?.member;
            Some(TunnelRef {
                node: *node,
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
        let view = |(node, tunnel): (&Key, &Tunnel<F::Noise>)| TunnelView {
            node: *node,
            state: if tunnel.up { TunnelState::Up } else { TunnelState::Connecting },
            path: tunnel.agent.current().map(|path| (path, tunnel.agent.tier().unwrap_or(Tier::Reflexive))),
            rtt: tunnel.agent.rtt(),
            noise: tunnel.noise.status(now),
            candidates: tunnel.agent.candidates().copied().collect(),
            queued: tunnel.queue.len(),
            reason: tunnel.reason.clone(),
        };
        self.tunnels.iter().map(view).collect()
    }

    /// The paths of tunnels that are up, to be restored after a restart; the most recently used last.
    #[must_use]
    pub fn last_paths(&self) -> Vec<(Key, SocketAddr)> {
        let up = self.tunnels.iter().filter(|(_, tunnel)| tunnel.up);
        let mut up: Vec<(Instant, Key, SocketAddr)> =
            up.filter_map(|(node, tunnel)| Some((tunnel.last_use, *node, tunnel.agent.current()?.remote))).collect();
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

    fn open_tunnels(&self) -> Vec<Key> {
        self.tunnels.keys().copied().collect()
    }

    fn transmit(&mut self, path: PathAddress, datagram: Vec<u8>) {
        if self.outputs.transmits.len() < OUTPUTS_MAX {
            self.outputs.transmits.push_back(Transmit { path, datagram });
        } else {
            self.drops.add(DropReason::QueueFull, 1);
        }
    }

    fn deliver(&mut self, packet: Vec<u8>) {
        if self.outputs.packets.len() < OUTPUTS_MAX {
            self.outputs.packets.push_back(packet);
        } else {
            self.drops.add(DropReason::QueueFull, 1);
        }
    }

    /// Tells the driver. Returns false if it does not listen; what an event says can also be looked at.
    fn tell(&mut self, event: Event) -> bool {
        let room = self.outputs.events.len() < OUTPUTS_MAX;
        if room {
            self.outputs.events.push_back(event);
        }
        room
    }

    fn tell_unreachable(&mut self, packet: &[u8]) {
        if self.unreachable_at.is_some_and(|at| self.now < at + UNREACHABLE_PAUSE) {
            return;
        }
        // In the name of the destination: the infra plane's address never leaves the VDC's namespace.
        let router = match packet::parse(packet).map(|parsed| parsed.destination) {
            Ok(IpAddr::V6(destination)) => destination,
            Ok(IpAddr::V4(_)) | Err(_) => self.infra(self.config.prefix),
        };
        if let Some(reply) = packet::unreachable(packet, router) {
            self.unreachable_at = Some(self.now);
            self.deliver(reply);
        }
    }

    fn infra(&self, prefix: NodePrefix) -> Ipv6Addr {
        prefix.address(INFRA)
    }
}
