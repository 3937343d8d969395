//! Opening and closing tunnels, handshakes, questions for endpoints, and everything that time brings.

use std::time::{Duration, Instant};

use vdc::Key;
use vdc::address::INFRA;

use super::{DropReason, Event, IDLE_MAX, IN_USE, Overlay, TUNNELS_MAX};
use crate::agent::PathAgent;
use crate::noise::{Noise, NoiseFactory, Sealed, Tick, TunnelIndex};
use crate::packet::Probe;
use crate::path::{PathAddress, Source};
use crate::tunnel::{Handshake, Lookup, Tunnel};

/// Pause before endpoints are asked for again; doubles up to the maximum.
const LOOKUP_PAUSE: Duration = Duration::from_secs(1);
const LOOKUP_PAUSE_MAX: Duration = Duration::from_secs(30);
/// A question that is not answered within this time has failed.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before a handshake is repeated, at least three round trips; doubles up to what WireGuard has (REKEY_TIMEOUT).
const HANDSHAKE_PAUSE: Duration = Duration::from_millis(500);
const HANDSHAKE_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Unanswered handshakes after which the path in use is given up.
const DISTRESS: u32 = 2;
/// Unanswered handshakes after which the tunnel counts as down, and after which they end unless a packet waits.
const ATTEMPTS_MAX: u32 = 5;
/// How often a tunnel's timers run: WireGuard rounds its own to a second.
const TICK: Duration = Duration::from_secs(1);
/// The same for a tunnel that is not in use.
const TICK_IDLE: Duration = Duration::from_secs(5);
/// A tunnel that did not come up, and that nobody waits for, is shown for this long.
const FAILED_SHOWN: Duration = Duration::from_secs(60);
/// Data was sent and nothing came back for this long: the path in use is probed with every tick.
const SILENCE: Duration = Duration::from_secs(3);
/// The same for this long: the session is renewed, which WireGuard itself would do after 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(6);

impl<F: NoiseFactory> Overlay<F> {
    /// Makes sure that there is a tunnel object. False if there may not be one more.
    pub(super) fn open(&mut self, node: &Key) -> bool {
        if self.tunnels.contains_key(node) {
            return true;
        }
        if !self.make_room() {
            return false;
        }
        let Some(index) = self.free_index() else { return false };
        let Some(peer) = self.peers.get(node) else { return false };
        let now = self.now;
        let noise = self.factory.tunnel(&peer.member.wg, index, now);
        // One end must be the one that chooses among paths that work; any rule does on which both agree.
        let leads = self.config.prefix < peer.member.prefix;
        let mut agent = PathAgent::new(leads, self.random.fork());
        for path in &peer.named {
            agent.add(self.networks.candidate(*path, Source::Asked));
        }
        if let Some(path) = peer.last_path {
            agent.add(self.networks.candidate(path, Source::LastSeen));
        }
        self.tunnels.insert(*node, Tunnel::new(index, noise, agent, now + TICK, now));
        self.by_index.insert(index.0, *node);
        self.snapshot_version += 1;
        true
    }

    /// Closes the tunnel that nobody has used for longest if there is no room, an unconfirmed one before all others.
    fn make_room(&mut self) -> bool {
        if self.tunnels.len() < TUNNELS_MAX {
            return true;
        }
        let spare = |tunnel: &Tunnel<F::Noise>| tunnel.half_open_until.is_some() || tunnel.idle(self.now) >= IN_USE;
        let longest = self.tunnels.iter().filter(|(_, tunnel)| spare(tunnel));
        let longest = longest.min_by_key(|(_, tunnel)| (tunnel.half_open_until.is_none(), tunnel.last_use));
        let Some(node) = longest.map(|(node, _)| *node) else { return false };
        self.close(&node);
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

    pub(super) fn close(&mut self, node: &Key) {
        let Some(tunnel) = self.tunnels.remove(node) else { return };
        self.by_index.remove(&tunnel.index.0);
        self.snapshot_version += 1;
        self.drops.add(DropReason::Unreached, tunnel.queue.len());
        if let Some(peer) = self.peers.get_mut(node) {
            peer.last_path = tunnel.agent.current().or(peer.last_path);
        }
        if tunnel.up {
            self.tell(Event::TunnelDown(*node));
        }
    }

    /// Begins again with a new WireGuard state: what is known of paths and what waits is kept.
    pub(super) fn rebuild(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        let last_use = tunnel.last_use;
        let queue = std::mem::take(&mut tunnel.queue);
        let wanted = !queue.is_empty() || tunnel.up && tunnel.idle(now) < IN_USE;
        let candidates: Vec<_> = tunnel.agent.candidates().copied().collect();
        self.close(node);
        if !wanted || !self.open(node) {
            return self.drops.add(DropReason::Unreached, queue.len());
        }
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        for candidate in candidates {
            tunnel.agent.add(candidate);
        }
        (tunnel.queue, tunnel.last_use) = (queue, last_use);
        self.ask_endpoints(node);
        self.shake_hands(node);
    }

    fn go_down(&mut self, node: &Key) {
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        tunnel.agent.rest();
        if std::mem::replace(&mut tunnel.up, false) {
            self.snapshot_version += 1;
            self.tell(Event::TunnelDown(*node));
        }
    }

    // ---- endpoints

    /// Asks where the peer can be tried, unless an answer is awaited already.
    pub(super) fn ask_endpoints(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        if let Lookup::Asked(_) = tunnel.lookup {
            return;
        }
        tunnel.lookups = tunnel.lookups.saturating_add(1);
        tunnel.lookup = Lookup::Asked(now + LOOKUP_TIMEOUT);
        if !self.tell(Event::EndpointsWanted(*node)) {
            self.pause_lookup(node);
        }
    }

    /// The question was answered or has failed: the next one only after a pause, and only if it is needed then.
    pub(super) fn pause_lookup(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        let Lookup::Asked(_) = tunnel.lookup else { return };
        let doubled = LOOKUP_PAUSE.saturating_mul(1 << tunnel.lookups.saturating_sub(1).min(5));
        tunnel.lookup = Lookup::Paused(now + self.random.jitter(doubled.min(LOOKUP_PAUSE_MAX)));
    }

    fn run_lookup(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        match tunnel.lookup {
            Lookup::Asked(until) if until <= now => {
                tunnel.reason.get_or_insert_with(|| "the peer did not say where it can be reached".into());
                self.pause_lookup(node);
            }
            Lookup::Paused(until) if until <= now => {
                tunnel.lookup = Lookup::Idle;
                if !tunnel.up && !tunnel.queue.is_empty() {
                    self.ask_endpoints(node);
                }
            }
            Lookup::Idle | Lookup::Asked(_) | Lookup::Paused(_) => {}
        }
    }

    // ---- handshakes

    /// Starts or repeats a handshake: over the path in use alone while that is trusted, otherwise over all candidates.
    pub(super) fn shake_hands(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        if tunnel.agent.candidates().next().is_none() {
            return; // what brings some begins anew
        }
        let mut datagram = vec![];
        if !tunnel.noise.initiate(&mut datagram, now) {
            tunnel.handshake.again_at = Some(now + HANDSHAKE_PAUSE / 2); // one has only just been sent
            return;
        }
        self.send_handshake(node, &datagram);
    }

    fn send_handshake(&mut self, node: &Key, datagram: &[u8]) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        let attempts = tunnel.handshake.attempts;
        if attempts >= DISTRESS && tunnel.agent.current().is_some() {
            tunnel.agent.on_distress();
            self.snapshot_version += 1;
        }
        let lost = attempts >= DISTRESS && tunnel.lookup == Lookup::Idle;
        let paths = tunnel.agent.handshake_paths(tunnel.trusts_path(now) && attempts < DISTRESS);
        let allowed = self.budgets.handshakes.take(paths.len(), now);
        let least = tunnel.agent.rtt().map_or(HANDSHAKE_PAUSE, |rtt| HANDSHAKE_PAUSE.max(rtt * 3));
        let pause = least.saturating_mul(1 << attempts.min(5)).min(HANDSHAKE_PAUSE_MAX);
        let again_at = Some(now + self.random.jitter(pause));
        tunnel.handshake.again_at = again_at.filter(|_| !paths.is_empty());
        if allowed > 0 {
            tunnel.handshake.attempts = attempts.saturating_add(1);
            tunnel.handshake.sent_once_at = (attempts == 0).then_some(now);
        }
        for path in paths.into_iter().take(allowed) {
            self.transmit(path, datagram.to_vec());
        }
        if lost {
            self.ask_endpoints(node);
        }
    }

    fn run_handshake(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        if tunnel.handshake.again_at.is_none_or(|at| at > now) {
            return;
        }
        tunnel.handshake.again_at = None;
        let (given_up, waits) = (tunnel.handshake.attempts >= ATTEMPTS_MAX, !tunnel.queue.is_empty());
        if given_up {
            tunnel.reason.get_or_insert_with(|| "no candidate answered the handshake".into());
            self.go_down(node);
        }
        if !given_up || waits {
            self.shake_hands(node);
        }
    }

    // ---- time

    pub(super) fn run_timers(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        if tunnel.half_open_until.is_some_and(|until| until <= now) {
            tunnel.half_open_until = None;
            if !tunnel.up && tunnel.queue.is_empty() {
                return self.close(node);
            }
        }
        if tunnel.tick_at <= now {
            self.tick(node);
        }
        self.give_up_queue(node);
        self.run_lookup(node);
        self.run_handshake(node);
        self.run_probes(node);
    }

    fn tick(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        let status = tunnel.noise.status(now);
        let moved = tunnel.meter.look(&status);
        if moved.sent || moved.received {
            tunnel.last_use = now;
        }
        if moved.received {
            tunnel.heard(now);
            tunnel.handshake = Handshake::default(); // what was to be renewed for its age, WireGuard begins again
        } else if moved.sent {
            tunnel.meter.silent_since.get_or_insert(now);
        }
        let nobody_waits = tunnel.handshake.again_at.is_none() && tunnel.queue.is_empty();
        let idle = tunnel.idle(now);
        // Too old, and not renewed since nothing was sent: nothing is left of it but what is known of paths.
        let expired = tunnel.up && !status.has_session;
        let failed = !tunnel.up && idle >= FAILED_SHOWN;
        if idle >= IDLE_MAX || nobody_waits && (expired || failed) {
            return self.close(node);
        }
        tunnel.tick_at = now + if idle < IN_USE { TICK } else { TICK_IDLE };
        if tunnel.up && idle < IN_USE {
            tunnel.agent.wake(now);
        } else {
            tunnel.agent.rest();
        }
        if tunnel.agent.wants_data_path(now) {
            self.snapshot_version += 1;
        }
        self.tick_noise(node);
        self.watch_silence(node);
    }

    fn tick_noise(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        let mut out = vec![];
        match tunnel.noise.tick(&mut out, now) {
            Tick::Idle => {}
            // A session in use is renewed; before there is one, handshakes follow our own, faster clock.
            Tick::Send { handshake: true } => {
                if tunnel.up && tunnel.handshake.again_at.is_none() {
                    self.send_handshake(node, &out);
                }
            }
            Tick::Send { handshake: false } => {
                if let Some(path) = tunnel.agent.current() {
                    self.transmit(path, out);
                }
            }
            Tick::Expired => self.rebuild(node),
        }
    }

    /// Data goes out and nothing comes back: asks the peer, and renews the session if it does not answer.
    fn watch_silence(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(node).filter(|tunnel| tunnel.up) else { return };
        let silent = |since: Instant| now.saturating_duration_since(since);
        let Some(silent) = tunnel.meter.silent_since.map(silent).filter(|silent| *silent >= SILENCE) else { return };
        if silent >= SILENCE_MAX && tunnel.handshake.again_at.is_none() {
            return self.shake_hands(node);
        }
        if self.budgets.probes.take(1, now) == 1 {
            let probes = tunnel.agent.probe_current(now).into_iter().collect();
            self.send_probes(node, probes);
        }
    }

    fn run_probes(&mut self, node: &Key) {
        let now = self.now;
        let Some(tunnel) = self.tunnels.get_mut(node) else { return };
        if tunnel.agent.probe_at().is_none_or(|at| at > now) {
            return;
        }
        if !tunnel.up || tunnel.idle(now) >= IN_USE {
            return tunnel.agent.rest();
        }
        let allowance = self.budgets.probes.take(tunnel.agent.candidates().count(), now);
        let probes = tunnel.agent.probe(allowance, now);
        self.send_probes(node, probes);
    }

    fn send_probes(&mut self, node: &Key, probes: Vec<(PathAddress, Probe)>) {
        let now = self.now;
        let own = self.infra(self.config.prefix);
        let Some(peer) = self.peers.get(node) else { return };
        let theirs = peer.member.prefix.address(INFRA);
        for (path, probe) in probes {
            let Some(tunnel) = self.tunnels.get_mut(node) else { return };
            let packet = probe.encode(own, theirs);
            let mut datagram = vec![];
            if tunnel.noise.encapsulate(&packet, &mut datagram, now) == Sealed::Data {
                tunnel.meter.probes_sent += u64::try_from(packet.len()).unwrap_or(0);
                self.transmit(path, datagram);
            }
        }
    }

    fn give_up_queue(&mut self, node: &Key) {
        let now = self.now;
        while let Some(tunnel) = self.tunnels.get_mut(node) {
            let Some(packet) = tunnel.queue.pop_expired(now) else { return };
            let unknown = tunnel.agent.candidates().next().is_none();
            let why = if unknown { "no endpoint of the peer is known" } else { "no candidate answered the handshake" };
            tunnel.reason.get_or_insert_with(|| why.into());
            self.drops.add(DropReason::Unreached, 1);
            self.tell_unreachable(&packet);
        }
    }
}
