//! One tunnel as the state machine keeps it: WireGuard, paths, what waits, and what is due when.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::agent::PathAgent;
use crate::noise::{NoiseStatus, TunnelIndex};

/// Packets and bytes that wait for one tunnel; the oldest go first when there is no room.
pub const QUEUE_PACKETS_MAX: usize = 32;
pub const QUEUE_BYTES_MAX: usize = 64 << 10;
/// Packets that could not be sent within this time are given back as unreachable.
pub(crate) const QUEUE_TIME_MAX: Duration = Duration::from_secs(5);
/// A path over which nothing authentic came for so long is no longer the only one to try: mappings of routers are gone
/// after 30 s (RFC 4787 §4.3 wants 120 s, and many do not).
const PATH_TRUST: Duration = Duration::from_secs(30);
/// The path of the data that follows a handshake is the peer's choice if it comes within this time.
const CONFIRM_TIME: Duration = Duration::from_secs(5);
/// Repeats of an initiation that are answered again within this time, at most as many as a fan-out has.
const ANSWER_TIME: Duration = Duration::from_secs(3);

/// Packets that wait for the tunnel.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    packets: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Keeps a packet; returns how many had to go for it, itself included.
    pub(crate) fn push(&mut self, packet: &[u8], now: Instant) -> usize {
        if packet.len() > QUEUE_BYTES_MAX {
            return 1;
        }
        let mut dropped = 0;
        while self.packets.len() >= QUEUE_PACKETS_MAX || self.bytes + packet.len() > QUEUE_BYTES_MAX {
            dropped += usize::from(self.pop().is_some());
        }
        self.bytes += packet.len();
        self.packets.push_back((now, packet.to_vec()));
        dropped
    }

    pub(crate) fn pop(&mut self) -> Option<Vec<u8>> {
        let (_, packet) = self.packets.pop_front()?;
        self.bytes -= packet.len();
        Some(packet)
    }

    /// When the oldest packet is too old.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        self.packets.front().map(|(since, _)| *since + QUEUE_TIME_MAX)
    }

    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.expires_at().filter(|at| *at <= now)?;
        self.pop()
    }

    pub(crate) fn len(&self) -> usize {
        self.packets.len()
    }
}

/// The question for a peer's endpoints: at most one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    Idle,
    /// An answer is awaited until then.
    Asked(Instant),
    /// It may be asked again then.
    Paused(Instant),
}

/// The handshake under way.
#[derive(Debug, Default)]
pub(crate) struct Handshake {
    /// Initiations since the last authentic answer.
    pub(crate) attempts: u32,
    /// When it is repeated; none while there is nothing to shake hands for.
    pub(crate) again_at: Option<Instant>,
    /// When it was sent, if it was sent once: only then its answer measures the round trip (Karn's rule).
    pub(crate) sent_once_at: Option<Instant>,
}

/// The newest initiation of the peer and our answer, for the copies that come over other paths.
#[derive(Debug)]
pub(crate) struct Answered {
    initiation: Vec<u8>,
    response: Vec<u8>,
    at: Instant,
    copies_left: usize,
}

/// What went through the tunnel, told apart from our own probes.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Payload bytes at the last look, probes left out.
    sent: u64,
    received: u64,
    /// Bytes of probes that WireGuard counted as payload.
    pub(crate) probes_sent: u64,
    pub(crate) probes_received: u64,
    /// Data has been sent since then, and nothing authentic came.
    pub(crate) silent_since: Option<Instant>,
}

/// What moved between two looks at the meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) sent: bool,
    pub(crate) received: bool,
}

impl Meter {
    pub(crate) fn look(&mut self, status: &NoiseStatus) -> Moved {
        let sent = status.sent_bytes.saturating_sub(self.probes_sent);
        let received = status.received_bytes.saturating_sub(self.probes_received);
        let moved = Moved { sent: sent > self.sent, received: received > self.received };
        (self.sent, self.received) = (sent, received);
        moved
    }
}

/// Timers and memory of one tunnel.
#[derive(Debug)]
pub(crate) struct Tunnel<N> {
    pub(crate) index: TunnelIndex,
    pub(crate) noise: N,
    pub(crate) agent: PathAgent,
    /// There is a session, and the peer was heard through it.
    pub(crate) up: bool,
    pub(crate) queue: Queue,
    pub(crate) lookup: Lookup,
    /// Questions since the last success.
    pub(crate) lookups: u32,
    pub(crate) handshake: Handshake,
    pub(crate) meter: Meter,
    pub(crate) tick_at: Instant,
    /// Data went either way.
    pub(crate) last_use: Instant,
    /// Something authentic came over the path in use.
    pub(crate) heard_at: Option<Instant>,
    /// Opened by the peer's handshake: closed then, unless the peer proves that it holds the session. A recorded
    /// handshake can be sent by anybody.
    pub(crate) half_open_until: Option<Instant>,
    /// The next data tells which path the peer chose.
    pub(crate) confirm_until: Option<Instant>,
    pub(crate) answered: Option<Answered>,
    /// When data of an unknown session last made us shake hands.
    pub(crate) unknown_at: Option<Instant>,
    /// Why it is not up, where that is known.
    pub(crate) reason: Option<String>,
}

impl<N> Tunnel<N> {
    pub(crate) fn new(index: TunnelIndex, noise: N, agent: PathAgent, tick_at: Instant, now: Instant) -> Self {
        Self {
            index,
            noise,
            agent,
            up: false,
            queue: Queue::default(),
            lookup: Lookup::Idle,
            lookups: 0,
            handshake: Handshake::default(),
            meter: Meter::default(),
            tick_at,
            last_use: now,
            heard_at: None,
            half_open_until: None,
            confirm_until: None,
            answered: None,
            unknown_at: None,
            reason: None,
        }
    }

    /// The next thing that is due, and why. Whatever is due at a time must be settled by
    /// [`crate::Overlay::handle_timeout`] at that time, or the driver would spin.
    pub(crate) fn deadline(&self) -> (Instant, &'static str) {
        let lookup = match self.lookup {
            Lookup::Idle => None,
            Lookup::Asked(until) => Some((until, "endpoints not answered")),
            Lookup::Paused(until) => Some((until, "endpoints unknown")),
        };
        let timers = [
            self.handshake.again_at.map(|at| (at, "handshake unanswered")),
            lookup,
            self.queue.expires_at().map(|at| (at, "queue too old")),
            self.half_open_until.map(|at| (at, "handshake unconfirmed")),
            self.agent.probe_at().map(|at| (at, "probe paths")),
        ];
        timers.into_iter().flatten().chain([(self.tick_at, "tunnel timers")]).min_by_key(|(at, _)| *at).expect("a tick")
    }

    /// Whether the path in use may be the only one that is tried.
    pub(crate) fn trusts_path(&self, now: Instant) -> bool {
        let heard = self.heard_at.is_some_and(|at| now.saturating_duration_since(at) < PATH_TRUST);
        heard && self.agent.is_trusted()
    }

    pub(crate) fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_use)
    }

    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard_at = Some(now);
        self.meter.silent_since = None;
        self.half_open_until = None;
    }

    /// We answered the peer's initiation, and its next data shows which path it chose.
    pub(crate) fn on_answered(&mut self, initiation: &[u8], response: &[u8], now: Instant) {
        self.confirm_until = Some(now + CONFIRM_TIME);
        let (initiation, response) = (initiation.to_vec(), response.to_vec());
        self.answered = Some(Answered { initiation, response, at: now, copies_left: crate::agent::FAN_OUT_MAX - 1 });
    }

    /// The answer to a copy of the newest initiation. The peer sent it over several paths, and any may be the only one
    /// that works both ways; answering just the first to arrive would fix the tunnel on paths that do not.
    pub(crate) fn answer_again(&mut self, initiation: &[u8], now: Instant) -> Option<Vec<u8>> {
        let answered = self.answered.as_mut().filter(|answered| {
            answered.initiation == initiation && now.saturating_duration_since(answered.at) < ANSWER_TIME
        })?;
        answered.copies_left = answered.copies_left.checked_sub(1)?;
        Some(answered.response.clone())
    }

    /// Whether data that comes now is the first after the peer's handshake.
    pub(crate) fn take_confirmation(&mut self, now: Instant) -> bool {
        self.confirm_until.take().is_some_and(|until| now <= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_keeps_the_newest_within_its_bounds() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let dropped: usize = (0..40u8).map(|n| queue.push(&[n; 1000], now)).sum();
        assert_eq!((dropped, queue.len(), queue.bytes), (8, QUEUE_PACKETS_MAX, 32_000));
        assert_eq!(queue.push(&[40; 60_000], now), 27, "as many as it takes: five of 1,000 bytes fit beside it");
        assert_eq!((queue.len(), queue.bytes), (6, 65_000));
        assert_eq!(queue.push(&[41; QUEUE_BYTES_MAX + 1], now), 1);
        assert_eq!(queue.pop(), Some(vec![35; 1000]));
    }

    #[test]
    fn queued_packets_expire_each_at_its_own_time() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.push(&[1], now);
        queue.push(&[2], now + Duration::from_secs(3));
        assert_eq!(queue.pop_expired(now + Duration::from_secs(4)), None);
        assert_eq!(queue.pop_expired(now + QUEUE_TIME_MAX), Some(vec![1]));
        assert_eq!(queue.pop_expired(now + QUEUE_TIME_MAX), None);
        assert_eq!(queue.expires_at(), Some(now + Duration::from_secs(8)));
    }

    #[test]
    fn meter_leaves_probes_out() {
        let mut meter = Meter::default();
        let status = |sent_bytes, received_bytes| NoiseStatus { sent_bytes, received_bytes, ..NoiseStatus::default() };
        assert_eq!(meter.look(&status(100, 0)), Moved { sent: true, received: false });
        meter.probes_sent += 64;
        assert_eq!(meter.look(&status(164, 0)), Moved { sent: false, received: false });
        meter.probes_received += 64;
        assert_eq!(meter.look(&status(165, 65)), Moved { sent: true, received: true });
    }
}
