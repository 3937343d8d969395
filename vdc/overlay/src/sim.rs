//! WireGuard as simulations see it: a session after one round trip, indices, counters, a replay window, keys that must
//! match. Nothing is encrypted; what a wrong key or a flipped bit would do is done by comparing a tag.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use vdc::WgKey;

use crate::noise::{Identified, Noise, NoiseFactory, NoiseStatus, Opened, Refusal, Sealed, Tick, TunnelIndex};

/// WireGuard's times (whitepaper §6.1): a session is renewed after 120 s of use and refused after 180 s.
const REKEY_AFTER: Duration = Duration::from_secs(120);
const REJECT_AFTER: Duration = Duration::from_secs(180);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const REKEY_ATTEMPT: Duration = Duration::from_secs(90);
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Message lengths as on the wire, so that byte counts in simulations are true.
const INITIATION_BYTES: usize = 148;
const RESPONSE_BYTES: usize = 92;
const HEADER_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
/// Sessions kept beside each other while handshakes cross.
const SESSIONS_MAX: usize = 4;
/// Counters that may arrive late.
const WINDOW: u64 = 1024;

/// Makes simulated tunnels for one node.
#[derive(Clone, Debug)]
pub struct SimNoiseFactory {
    own: WgKey,
    /// Where this node's wall clock stands at `origin`; handshakes carry it, as WireGuard's TAI64N does.
    origin: Instant,
    clock_at_origin: Duration,
}

impl SimNoiseFactory {
    /// `clock` is the node's wall clock at `now`, since any common epoch.
    #[must_use]
    pub fn new(own: WgKey, clock: Duration, now: Instant) -> Self {
        Self { own, origin: now, clock_at_origin: clock }
    }
}

/// One simulated tunnel.
#[derive(Debug)]
pub struct SimNoise {
    own: WgKey,
    peer: WgKey,
    index: u32,
    origin: Instant,
    clock_at_origin: Duration,
    /// The newest few, any of which opens what was sealed under it. The newest confirmed one seals.
    sessions: Vec<Session>,
    initiated: Option<Initiated>,
    newest_handshake: u64,
    sent_bytes: u64,
    received_bytes: u64,
    last_sent: Option<Instant>,
    last_received: Option<Instant>,
    sends_unanswered_since: Option<Instant>,
    owes_keepalive_since: Option<Instant>,
}

/// A handshake that was not answered yet.
#[derive(Clone, Copy, Debug)]
struct Initiated {
    first: Instant,
    newest: Instant,
    before: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Session {
    id: u64,
    remote_index: u32,
    born: Instant,
    initiator: bool,
    /// A responder's session seals only after the initiator's first data, as in WireGuard.
    confirmed: bool,
    next: u64,
    highest: u64,
    seen: std::collections::BTreeSet<u64>,
}

/// FNV-1a over everything, twice: enough to notice another key or a flipped bit, and cheap for millions of packets.
fn tag(from: &WgKey, to: &WgKey, session: u64, message: &[&[u8]]) -> [u8; TAG_BYTES] {
    let mut state = [0xcbf2_9ce4_8422_2325_u64 ^ session, 0x9ae1_6a3b_2f90_404f ^ session.rotate_left(32)];
    for byte in from.0.iter().chain(&to.0).chain(message.iter().copied().flatten()) {
        state[0] = (state[0] ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        state[1] = (state[1].rotate_left(7) ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut tag = [0; TAG_BYTES];
    tag[..8].copy_from_slice(&state[0].to_le_bytes());
    tag[8..].copy_from_slice(&state[1].to_le_bytes());
    tag
}

/// Pads a handshake message to its length on the wire and ends it with its tag.
fn finish(from: &WgKey, to: &WgKey, time: u64, out: &mut Vec<u8>, length: usize) {
    out.resize(length - TAG_BYTES, 0);
    let tag = tag(from, to, time, &[out]);
    out.extend(tag);
}

/// Whether a handshake message is whole and from `from`.
fn is_genuine(from: &WgKey, to: &WgKey, time: u64, message: &[u8]) -> bool {
    message.split_last_chunk::<TAG_BYTES>().is_some_and(|(body, seal)| *seal == tag(from, to, time, &[body]))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

/// The initiation: type, sender's index, handshake time, sender's key, receiver's key's first bytes, padding, tag.
fn initiation(own: &WgKey, peer: &WgKey, index: u32, time: u64, out: &mut Vec<u8>) {
    out.clear();
    out.extend(1_u32.to_le_bytes());
    out.extend(index.to_le_bytes());
    out.extend(time.to_le_bytes());
    out.extend(own.0);
    out.extend(&peer.0[..16]);
    finish(own, peer, time, out, INITIATION_BYTES);
}

impl NoiseFactory for SimNoiseFactory {
    type Noise = SimNoise;

    fn tunnel(&mut self, peer: &WgKey, index: TunnelIndex, _: Instant) -> SimNoise {
        SimNoise {
            own: self.own,
            peer: *peer,
            index: index.0 << 8,
            origin: self.origin,
            clock_at_origin: self.clock_at_origin,
            sessions: Vec::new(),
            initiated: None,
            newest_handshake: 0,
            sent_bytes: 0,
            received_bytes: 0,
            last_sent: None,
            last_received: None,
            sends_unanswered_since: None,
            owes_keepalive_since: None,
        }
    }

    fn identify(&mut self, datagram: &[u8], _: SocketAddr, _: &mut Vec<u8>, _: Instant) -> Identified {
        if !self.is_for_us(datagram) {
            return Identified::NotOurs;
        }
        let key = datagram.get(16..48).and_then(|key| key.try_into().ok()).map(WgKey);
        let genuine = |key: &WgKey| long(datagram, 8).is_some_and(|time| is_genuine(key, &self.own, time, datagram));
        key.filter(genuine).map_or(Identified::Refused, Identified::Peer)
    }

    fn is_for_us(&self, datagram: &[u8]) -> bool {
        datagram.get(48..64) == Some(&self.own.0[..16])
    }
}

impl SimNoise {
    fn wall(&self, now: Instant) -> u64 {
        let clock = self.clock_at_origin + now.saturating_duration_since(self.origin);
        u64::try_from(clock.as_nanos()).unwrap_or(u64::MAX)
    }

    /// The session that seals.
    fn current(&self) -> Option<&Session> {
        self.sessions.iter().filter(|s| s.confirmed).max_by_key(|s| s.id)
    }

    fn keep(&mut self, session: Session) {
        if self.sessions.len() >= SESSIONS_MAX {
            self.sessions.remove(0);
        }
        self.sessions.push(session);
    }

    fn on_initiation(&mut self, datagram: &[u8], out: &mut Vec<u8>, now: Instant) -> Option<Opened> {
        let (remote_index, time) = (word(datagram, 4)?, long(datagram, 8)?);
        if datagram.get(16..48)? != self.peer.0 || !is_genuine(&self.peer, &self.own, time, datagram) {
            return Some(Opened::Refused(Refusal::Forged));
        }
        if time <= self.newest_handshake {
            return Some(Opened::Refused(Refusal::Replay));
        }
        self.newest_handshake = time;
        self.keep(Session::new(time, remote_index, false, now));
        out.clear();
        out.extend(2_u32.to_le_bytes());
        out.extend(self.index.to_le_bytes());
        out.extend(remote_index.to_le_bytes());
        out.extend(time.to_le_bytes());
        finish(&self.own, &self.peer, time, out, RESPONSE_BYTES);
        Some(Opened::Reply { session: false })
    }

    fn on_response(&mut self, datagram: &[u8], out: &mut Vec<u8>, now: Instant) -> Option<Opened> {
        let (remote_index, time) = (word(datagram, 4)?, long(datagram, 12)?);
        if !is_genuine(&self.peer, &self.own, time, datagram) {
            return Some(Opened::Refused(Refusal::Forged));
        }
        // The newest initiation and the one before it may be answered, as with boringtun.
        let sent = self.initiated.iter().flat_map(|initiated| [Some(initiated.newest), initiated.before]).flatten();
        if sent.map(|sent| self.wall(sent)).all(|sent| sent != time) {
            return Some(Opened::Refused(Refusal::Replay));
        }
        self.initiated = None;
        self.keep(Session::new(time, remote_index, true, now));
        self.sends_unanswered_since = None;
        self.seal(&[], out, now);
        Some(Opened::Reply { session: true })
    }

    fn on_data(&mut self, datagram: &[u8], out: &mut Vec<u8>, now: Instant) -> Option<Opened> {
        let counter = long(datagram, 8)?;
        let end = datagram.len().checked_sub(TAG_BYTES)?;
        let (header, body, seal) =
            (datagram.get(..HEADER_BYTES)?, datagram.get(HEADER_BYTES..end)?, datagram.get(end..)?);
        let (own, peer) = (self.own, self.peer);
        let opens = |s: &Session| seal == tag(&peer, &own, s.id, &[header, body]);
        let Some(session) = self.sessions.iter_mut().find(|s| opens(s)) else {
            let refusal = if self.sessions.is_empty() { Refusal::NoSession } else { Refusal::Forged };
            return Some(Opened::Refused(refusal));
        };
        if now.saturating_duration_since(session.born) > REJECT_AFTER {
            return Some(Opened::Refused(Refusal::NoSession));
        }
        if !session.accept(counter) {
            return Some(Opened::Refused(Refusal::Replay));
        }
        if !session.confirmed {
            session.confirmed = true;
            self.initiated = None;
        }
        self.sends_unanswered_since = None;
        out.clear();
        out.extend(body);
        if body.is_empty() {
            return Some(Opened::Keepalive);
        }
        self.received_bytes += body.len() as u64;
        self.last_received = Some(now);
        self.owes_keepalive_since.get_or_insert(now);
        Some(Opened::Packet)
    }

    fn seal(&mut self, body: &[u8], out: &mut Vec<u8>, now: Instant) -> Sealed {
        self.sessions.retain(|s| now.saturating_duration_since(s.born) <= REJECT_AFTER);
        let confirmed = self.sessions.iter_mut().filter(|s| s.confirmed);
        let Some(session) = confirmed.max_by_key(|s| s.id) else { return Sealed::NoSession };
        let counter = session.next;
        session.next += 1;
        out.clear();
        out.extend(4_u32.to_le_bytes());
        out.extend(session.remote_index.to_le_bytes());
        out.extend(counter.to_le_bytes());
        out.extend(body);
        let tag = tag(&self.own, &self.peer, session.id, &[out]);
        out.extend(tag);
        self.owes_keepalive_since = None;
        Sealed::Data
    }
}

impl Session {
    fn new(id: u64, remote_index: u32, initiator: bool, born: Instant) -> Self {
        let seen = std::collections::BTreeSet::new();
        Self { id, remote_index, born, initiator, confirmed: initiator, next: 0, highest: 0, seen }
    }

    fn accept(&mut self, counter: u64) -> bool {
        if counter + WINDOW < self.highest || !self.seen.insert(counter) {
            return false;
        }
        self.highest = self.highest.max(counter);
        let floor = self.highest.saturating_sub(WINDOW);
        while self.seen.first().is_some_and(|oldest| *oldest < floor) {
            self.seen.pop_first();
        }
        true
    }
}

impl Noise for SimNoise {
    fn encapsulate(&mut self, packet: &[u8], out: &mut Vec<u8>, now: Instant) -> Sealed {
        let sealed = self.seal(packet, out, now);
        if sealed == Sealed::Data {
            self.sent_bytes += packet.len() as u64;
            self.last_sent = Some(now);
            self.sends_unanswered_since.get_or_insert(now);
        }
        sealed
    }

    fn decapsulate(&mut self, _: SocketAddr, datagram: &[u8], out: &mut Vec<u8>, now: Instant) -> Opened {
        let opened = match word(datagram, 0) {
            Some(1) => self.on_initiation(datagram, out, now),
            Some(2) => self.on_response(datagram, out, now),
            Some(4) => self.on_data(datagram, out, now),
            _ => None,
        };
        opened.unwrap_or(Opened::Refused(Refusal::Forged))
    }

    fn initiate(&mut self, out: &mut Vec<u8>, now: Instant) -> bool {
        let before = self.initiated.map(|initiated| initiated.newest);
        if before == Some(now) {
            return false; // two handshakes cannot have the same time
        }
        let first = self.initiated.map_or(now, |initiated| initiated.first);
        self.initiated = Some(Initiated { first, newest: now, before });
        initiation(&self.own, &self.peer, self.index, self.wall(now), out);
        true
    }

    fn keepalive(&mut self, out: &mut Vec<u8>, now: Instant) -> Sealed {
        self.seal(&[], out, now)
    }

    fn tick(&mut self, out: &mut Vec<u8>, now: Instant) -> Tick {
        let since = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        if let Some(Initiated { first, newest, .. }) = self.initiated {
            if now.saturating_duration_since(first) > REKEY_ATTEMPT {
                self.initiated = None;
                return Tick::Expired;
            }
            if now.saturating_duration_since(newest) >= REKEY_TIMEOUT && self.initiate(out, now) {
                return Tick::Send { handshake: true };
            }
            return Tick::Idle;
        }
        self.sessions.retain(|s| now.saturating_duration_since(s.born) <= REJECT_AFTER);
        let Some(session) = self.current() else { return Tick::Idle };
        let age = now.saturating_duration_since(session.born);
        let recently_sent = self.last_sent.is_some_and(|at| at >= session.born && since(Some(at)) < REKEY_TIMEOUT);
        let renew = session.initiator && age > REKEY_AFTER && recently_sent;
        let unanswered = since(self.sends_unanswered_since) > KEEPALIVE + REKEY_TIMEOUT;
        if (renew || unanswered) && self.initiate(out, now) {
            return Tick::Send { handshake: true };
        }
        if since(self.owes_keepalive_since) >= KEEPALIVE && self.seal(&[], out, now) == Sealed::Data {
            return Tick::Send { handshake: false };
        }
        Tick::Idle
    }

    fn status(&self, now: Instant) -> NoiseStatus {
        NoiseStatus {
            has_session: self.current().is_some(),
            handshake_age: self.current().map(|s| now.saturating_duration_since(s.born)),
            sent_bytes: self.sent_bytes,
            received_bytes: self.received_bytes,
            last_sent: self.last_sent,
            last_received: self.last_received,
        }
    }
}
