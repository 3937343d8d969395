//! What comes from the network, and what packet threads report of it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use vdc::Key;
use vdc::address::INFRA;

use super::{DropReason, Event, Overlay, Verdict};
use crate::demux::{Kind, classify};
use crate::noise::{Identified, Noise, NoiseFactory, Opened, Refusal, Sealed, TunnelIndex};
use crate::packet::{self, Probe};
use crate::path::{PathAddress, Source};
use crate::tunnel::{Handshake, Lookup};

/// Handshakes that data of unknown sessions may trigger: one per peer in this time.
const UNKNOWN_PAUSE: Duration = Duration::from_millis(500);
/// A tunnel opened by a handshake is closed again if the peer does not use it within this time.
const HALF_OPEN_MAX: Duration = Duration::from_secs(10);

impl<F: NoiseFactory> Overlay<F> {
    /// A datagram from the network.
    pub fn handle_datagram(&mut self, path: PathAddress, datagram: &[u8], now: Instant) {
        self.advance(now);
        let verdict = match classify(datagram) {
            Kind::HandshakeInitiation => self.on_initiation(path, datagram),
            Kind::HandshakeResponse { receiver } | Kind::CookieReply { receiver } => match self.node_at(receiver) {
                Some(node) => self.on_tunnel_datagram(&node, path, datagram),
                None => Verdict::Drop(DropReason::Garbage),
            },
            Kind::Data { receiver } => match self.node_at(receiver) {
                Some(node) => self.on_tunnel_datagram(&node, path, datagram),
                None => {
                    self.handle_unknown_index(path, now);
                    Verdict::Drop(DropReason::NoSession)
                }
            },
            Kind::Quic | Kind::Stun | Kind::Frame | Kind::Garbage => Verdict::Drop(DropReason::Garbage),
        };
        if let Verdict::Drop(reason) = verdict {
            self.drops.add(reason, 1);
        }
    }

    fn node_at(&self, receiver: u32) -> Option<Key> {
        self.by_index.get(&(receiver >> 8)).copied()
    }

    /// Data came for a session that is not here (any more). The peer that lives there is offered a new one. Anybody can
    /// send such data from any address, so it makes us send little, and nothing to anybody else.
    pub fn handle_unknown_index(&mut self, path: PathAddress, now: Instant) {
        self.advance(now);
        if self.budgets.unknown.take(1, now) == 0 {
            return;
        }
        let lives_there = |node: &Key| {
            let peer = self.peers.get(node)?;
            let tunnel = self.tunnels.get(node);
            let current = tunnel.map_or(peer.last_path, |tunnel| tunnel.agent.current().or(peer.last_path));
            Some(current == Some(path) || peer.named.contains(&path))
        };
        let node = self.peers.keys().find(|node| lives_there(node) == Some(true)).copied();
        if let Some(node) = node {
            self.offer_session(&node, path);
        }
    }

    fn offer_session(&mut self, node: &Key, path: PathAddress) {
        let now = self.now;
        if !self.open(node) {
            return;
        }
        let candidate = self.networks.candidate(path, Source::LastSeen);
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        let recent = |at: Option<Instant>| at.is_some_and(|at| now < at + UNKNOWN_PAUSE);
        let newborn = tunnel.noise.status(now).handshake_age.is_some_and(|age| age < UNKNOWN_PAUSE);
        if recent(tunnel.unknown_at) || newborn || tunnel.handshake.again_at.is_some() {
            return; // there is a handshake or a new session already, and this was sent before it
        }
        tunnel.unknown_at = Some(now);
        if !tunnel.agent.knows(path) {
            tunnel.agent.add(candidate);
        }
        self.shake_hands(node);
    }

    /// A packet thread opened authentic data of a tunnel that came from another address than its path's.
    pub fn handle_roamed(&mut self, index: TunnelIndex, path: PathAddress, now: Instant) {
        self.advance(now);
        if let Some(node) = self.by_index.get(&index.0).copied() {
            self.on_authentic(&node, path);
        }
    }

    /// A packet thread opened a probe of a tunnel's peer.
    pub fn handle_probe(&mut self, index: TunnelIndex, path: PathAddress, packet: &[u8], now: Instant) {
        self.advance(now);
        if let Some((node, probe)) = self.by_index.get(&index.0).copied().zip(Probe::decode(packet)) {
            self.on_probe(&node, path, probe);
        }
    }

    /// A packet thread found that a tunnel's session is gone.
    pub fn handle_session_lost(&mut self, index: TunnelIndex, now: Instant) {
        self.advance(now);
        if let Some(node) = self.by_index.get(&index.0).copied()
            && let Some(tunnel) = self.tunnels.get(&node)
            && tunnel.handshake.again_at.is_none()
        {
            self.shake_hands(&node);
        }
    }

    fn on_initiation(&mut self, path: PathAddress, datagram: &[u8]) -> Verdict {
        let now = self.now;
        let mut out = vec![];
        let wg = match self.factory.identify(datagram, path.remote, &mut out, now) {
            Identified::Peer(wg) => wg,
            Identified::Reply => {
                self.transmit(path, out);
                return Verdict::Drop(DropReason::RateLimited);
            }
            Identified::NotOurs => return Verdict::Drop(DropReason::Garbage),
            Identified::Refused => return Verdict::Drop(DropReason::RateLimited),
        };
        let Some(node) = self.directory.holder(&wg) else { return Verdict::Drop(DropReason::NotMember) };
        let fresh = !self.tunnels.contains_key(&node);
        if !self.open(&node) {
            return Verdict::Drop(DropReason::TooManyTunnels);
        }
        let verdict = self.on_tunnel_datagram(&node, path, datagram);
        match self.tunnels.get_mut(&node).filter(|_| fresh) {
            Some(tunnel) if verdict == Verdict::Pass => tunnel.half_open_until = Some(now + HALF_OPEN_MAX),
            Some(_) => self.close(&node),
            None => {}
        }
        verdict
    }

    fn on_tunnel_datagram(&mut self, node: &Key, path: PathAddress, datagram: &[u8]) -> Verdict {
        let now = self.now;
        let mut out = vec![];
        let Some(tunnel) = self.tunnels.get_mut(node) else { return Verdict::Drop(DropReason::NoSession) };
        match tunnel.noise.decapsulate(path.remote, datagram, &mut out, now) {
            Opened::Reply { session: true } => {
                self.transmit(path, out);
                self.on_session(node, path);
            }
            Opened::Reply { session: false } => {
                tunnel.on_answered(datagram, &out, now);
                // Packet threads report the peer's next data from elsewhere once more.
                self.snapshot_version += 1;
                self.transmit(path, out);
            }
            Opened::Nothing => {}
            Opened::Keepalive => self.on_authentic(node, path),
            Opened::Packet => return self.on_packet(node, path, out),
            Opened::Refused(refusal) => return self.on_refused(node, path, datagram, refusal),
        }
        Verdict::Pass
    }

    fn on_refused(&mut self, node: &Key, path: PathAddress, datagram: &[u8], refusal: Refusal) -> Verdict {
        let now = self.now;
        let kind = classify(datagram);
        let reason = match (refusal, kind) {
            (Refusal::Replay, Kind::HandshakeInitiation) => {
                let again = self.tunnels.get_mut(node).and_then(|tunnel| tunnel.answer_again(datagram, now));
                match again {
                    Some(response) => {
                        self.transmit(path, response);
                        DropReason::Duplicate
                    }
                    None => DropReason::Replay,
                }
            }
            // A fan-out is answered over every path that works; the first answer counted.
            (Refusal::Replay, Kind::HandshakeResponse { .. }) => DropReason::Duplicate,
            (Refusal::Replay, _) => DropReason::Replay,
            (Refusal::Forged, _) => DropReason::Forged,
            (Refusal::RateLimited, _) => DropReason::RateLimited,
            (Refusal::NoSession, _) => {
                self.offer_session(node, path);
                DropReason::NoSession
            }
        };
        Verdict::Drop(reason)
    }

    /// Our handshake was answered.
    fn on_session(&mut self, node: &Key, path: PathAddress) {
        let now = self.now;
        let candidate = self.networks.candidate(path, Source::Observed);
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        let rtt = tunnel.handshake.sent_once_at.take().map(|sent| now.saturating_duration_since(sent));
        let changed = tunnel.agent.on_session(candidate, rtt, now);
        self.on_up(node, changed);
    }

    /// Something authentic came over `path`, and not to measure it: the session works, and the peer is there.
    fn on_authentic(&mut self, node: &Key, path: PathAddress) {
        let now = self.now;
        let candidate = self.networks.candidate(path, Source::Observed);
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        let moved = tunnel.take_confirmation(now);
        let changed = if tunnel.agent.current().is_none() {
            tunnel.agent.on_session(candidate, None, now)
        } else {
            tunnel.agent.on_data(candidate, moved, now)
        };
        tunnel.agent.trust(path);
        self.on_up(node, changed);
    }

    /// The tunnel carries data: what waited for it goes.
    fn on_up(&mut self, node: &Key, path_changed: bool) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        let came_up = !std::mem::replace(&mut tunnel.up, true);
        tunnel.heard(now);
        tunnel.handshake = Handshake::default();
        (tunnel.lookups, tunnel.reason) = (0, None);
        if let Lookup::Paused(_) = tunnel.lookup {
            tunnel.lookup = Lookup::Idle;
        }
        if came_up || path_changed {
            self.snapshot_version += 1;
        }
        if came_up {
            self.tell(Event::TunnelUp(*node));
        } else if path_changed {
            self.tell(Event::PathChanged(*node));
        }
        self.send_queue(node);
    }

    fn send_queue(&mut self, node: &Key) {
        let now = self.now;
        loop {
            let Some(tunnel) = self.tunnels.get_mut(node) else { return };
            let Some(path) = tunnel.agent.current() else { return };
            let Some(packet) = tunnel.queue.pop() else { return };
            let mut datagram = vec![];
            if tunnel.noise.encapsulate(&packet, &mut datagram, now) == Sealed::Data {
                tunnel.agent.wake(now);
                self.transmit(path, datagram);
            } else {
                self.drops.add(DropReason::Unreached, 1);
            }
        }
    }

    fn on_packet(&mut self, node: &Key, path: PathAddress, packet: Vec<u8>) -> Verdict {
        let infra = self.infra(self.config.prefix);
        let parsed = packet::parse(&packet);
        let to_infra = parsed.is_ok_and(|parsed| parsed.destination == IpAddr::V6(infra));
        let probe = Probe::decode(&packet).filter(|_| to_infra);
        if probe.is_none() {
            self.on_authentic(node, path);
        }
        let Ok(parsed) = parsed else { return Verdict::Drop(DropReason::Malformed) };
        let Some(peer) = self.peers.get(node) else { return Verdict::Drop(DropReason::NoSession) };
        if !peer.member.owns(parsed.source) {
            return Verdict::Drop(DropReason::SpoofedSource);
        }
        let own = match parsed.destination {
            IpAddr::V6(v6) => self.config.prefix.contains(v6),
            IpAddr::V4(v4) => self.config.ipv4.is_some_and(|block| block.contains(v4)),
        };
        if !own {
            return Verdict::Drop(DropReason::NotOurs);
        }
        let Some(tunnel) = self.tunnels.get_mut(node) else { return Verdict::Drop(DropReason::NoSession) };
        if let Some(probe) = probe {
            tunnel.meter.probes_received += u64::try_from(packet.len()).unwrap_or(0);
            self.on_probe(node, path, probe);
            return Verdict::Pass;
        }
        tunnel.last_use = self.now;
        tunnel.agent.wake(self.now);
        self.deliver(packet);
        Verdict::Pass
    }

    /// Probes try every path on purpose: they say that the peer can be found there. That it is there now, only those say
    /// whose path is the one in use at the other end.
    fn on_probe(&mut self, node: &Key, path: PathAddress, probe: Probe) {
        let now = self.now;
        let candidate = self.networks.candidate(path, Source::Observed);
        let own = self.infra(self.config.prefix);
        let Some(peer) = self.peers.get(node) else { return };
        let theirs = peer.member.prefix.address(INFRA);
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        let current = tunnel.agent.current();
        // The session works, and nothing better is known; or the peer's data comes from there. The latter is said again
        // with every round of probes: the one packet after a handshake that shows where the peer is now may be lost.
        if current.is_none() || !tunnel.up || probe.in_use && current != Some(path) {
            self.on_authentic(node, path);
        }
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        if probe.reply {
            let Some(measured) = tunnel.agent.on_probe_reply(probe.token, path, now) else { return };
            if measured.is_current || measured.changed {
                tunnel.heard(now);
            }
            if measured.changed {
                self.snapshot_version += 1;
                self.tell(Event::PathChanged(*node));
            }
            return;
        }
        tunnel.agent.add(candidate);
        let in_use = tunnel.agent.current() == Some(path);
        let answer = Probe { reply: true, in_use, token: probe.token }.encode(own, theirs);
        let mut datagram = vec![];
        if tunnel.noise.encapsulate(&answer, &mut datagram, now) == Sealed::Data {
            tunnel.meter.probes_sent += u64::try_from(answer.len()).unwrap_or(0);
            self.transmit(path, datagram);
        }
    }
}
