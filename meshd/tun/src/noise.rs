//! boringtun behind the overlay's `Noise` trait.
//!
//! What boringtun wants and the overlay need not know:
//! - its timers only know the time of the last `update_timers`, so a tunnel that slept is ticked before it shakes hands;
//! - it renews an old session by the clock, where WireGuard asks for it on sending: such a renewal of a tunnel that
//!   nobody uses is not sent, so that idle peers hear nothing; the session ends in silence and a later packet opens another;
//! - without a session `encapsulate` queues inside; it is only called with one;
//! - it reads the clock and draws randomness itself, so `now` is used for our own bookkeeping alone.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use vdc::WgKey;
use vdc_overlay::noise::Refusal;
use vdc_overlay::{Identified, Noise, NoiseFactory, NoiseStatus, Opened, Sealed, Tick, TunnelIndex};

use crate::tunnel::{Opening, Tunnel};

/// Handshake messages per second and VDC that are worked on without asking for a cookie. One costs about 0.1 ms.
const HANDSHAKES_PER_SECOND: u64 = 200;

/// Shortest time between two initiations of one tunnel.
const INITIATION_INTERVAL_MIN: Duration = Duration::from_millis(250);

/// A tunnel without data for this long renews no session: WireGuard's keepalive and re-key time-outs (10 s + 5 s) are over.
const QUIET_AFTER: Duration = Duration::from_secs(20);

/// How stale boringtun's idea of the time may be when a handshake message is worked on.
const TICK_AGE_MAX: Duration = Duration::from_secs(1);

/// Longest handshake message in bytes, which boringtun demands as room.
const HANDSHAKE_BYTES_MAX: usize = 148;

/// A tunnel to one peer, as the overlay thread holds it. The packet threads share what is inside.
#[derive(Debug)]
pub struct BoringNoise {
    tunnel: Arc<Tunnel>,
    ticked: Option<Instant>,
    initiated: Option<Instant>,
}

impl BoringNoise {
    fn new(tunn: Tunn) -> Self {
        Self { tunnel: Arc::new(Tunnel::new(tunn)), ticked: None, initiated: None }
    }

    pub(crate) fn tunnel(&self) -> &Arc<Tunnel> {
        &self.tunnel
    }

    /// Brings boringtun's idea of the time up to date. What it would like to send is dropped: it is a retry or a
    /// keepalive, and a handshake is just being worked on.
    fn refresh(&mut self, now: Instant) {
        if self.ticked.is_none_or(|ticked| now.saturating_duration_since(ticked) >= TICK_AGE_MAX) {
            let mut scratch = [0; HANDSHAKE_BYTES_MAX];
            let _ = self.tunnel.lock().update_timers(&mut scratch);
            self.ticked = Some(now);
        }
    }

    fn is_quiet(&self, now: Instant) -> bool {
        let last = self.tunnel.activity.last_sent().max(self.tunnel.activity.last_received());
        last.is_none_or(|last| now.saturating_duration_since(last) >= QUIET_AFTER)
    }

    fn seal(&mut self, packet: &[u8], out: &mut Vec<u8>) -> Sealed {
        out.clear();
        let Some(mut sealer) = self.tunnel.sealer() else { return Sealed::NoSession };
        out.resize(packet.len() + HANDSHAKE_BYTES_MAX, 0);
        let sealed = sealer.seal(packet, out);
        out.truncate(sealed.unwrap_or(0));
        if sealed.is_some() { Sealed::Data } else { Sealed::NoSession }
    }

    /// A data message: what the packet threads do in bulk. Returns the packet's length at the start of `out`.
    fn open(&mut self, from: IpAddr, datagram: &[u8], out: &mut [u8], now: Instant) -> (Opened, usize) {
        match self.tunnel.opener().open(from, datagram, out) {
            Opening::Packet(length) => {
                self.tunnel.activity.received(length, now);
                (Opened::Packet, length)
            }
            Opening::Keepalive => (Opened::Keepalive, 0),
            // Authentic, and nothing that could be used.
            Opening::Malformed => (Opened::Nothing, 0),
            Opening::Replay => (Opened::Refused(Refusal::Replay), 0),
            Opening::NoSession => (Opened::Refused(Refusal::NoSession), 0),
            Opening::Forged => (Opened::Refused(Refusal::Forged), 0),
        }
    }

    /// A handshake message. Returns the answer's length at the start of `out`.
    fn shake_hands(&mut self, from: IpAddr, datagram: &[u8], out: &mut [u8]) -> (Opened, usize) {
        let answered = datagram.first() == Some(&2);
        match self.tunnel.lock().decapsulate(Some(from), datagram, out) {
            // An initiation is answered by a response, a response by the keepalive that confirms the session.
            TunnResult::WriteToNetwork(message) => (Opened::Reply { session: answered }, message.len()),
            TunnResult::Err(error) => (Opened::Refused(refusal(&error)), 0),
            TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                (Opened::Nothing, 0)
            }
        }
    }
}

impl Noise for BoringNoise {
    fn encapsulate(&mut self, packet: &[u8], out: &mut Vec<u8>, now: Instant) -> Sealed {
        let sealed = self.seal(packet, out);
        if sealed == Sealed::Data {
            self.tunnel.activity.sent(packet.len(), now);
        }
        sealed
    }

    fn decapsulate(&mut self, from: SocketAddr, datagram: &[u8], out: &mut Vec<u8>, now: Instant) -> Opened {
        out.clear();
        out.resize(datagram.len().max(HANDSHAKE_BYTES_MAX), 0);
        let (opened, length) = if matches!(datagram.first(), Some(1..=3)) {
            self.refresh(now);
            self.shake_hands(from.ip(), datagram, out)
        } else {
            self.open(from.ip(), datagram, out, now)
        };
        out.truncate(length);
        opened
    }

    fn initiate(&mut self, out: &mut Vec<u8>, now: Instant) -> bool {
        out.clear();
        if self.initiated.is_some_and(|last| now.saturating_duration_since(last) < INITIATION_INTERVAL_MIN) {
            return false;
        }
        self.refresh(now);
        let mut buffer = [0; HANDSHAKE_BYTES_MAX];
        let mut tunn = self.tunnel.lock();
        // Forced: the overlay repeats faster than WireGuard's 5 s, and only while somebody waits.
        let TunnResult::WriteToNetwork(message) = tunn.format_handshake_initiation(&mut buffer, true) else {
            return false;
        };
        out.extend_from_slice(message);
        self.initiated = Some(now);
        true
    }

    fn keepalive(&mut self, out: &mut Vec<u8>, _now: Instant) -> Sealed {
        self.seal(&[], out)
    }

    fn tick(&mut self, out: &mut Vec<u8>, now: Instant) -> Tick {
        out.clear();
        self.ticked = Some(now);
        let mut buffer = [0; HANDSHAKE_BYTES_MAX];
        match self.tunnel.lock().update_timers(&mut buffer) {
            TunnResult::WriteToNetwork(message) => {
                let handshake = message.first() == Some(&1);
                if handshake && self.is_quiet(now) {
                    return Tick::Idle;
                }
                out.extend_from_slice(message);
                Tick::Send { handshake }
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) => Tick::Expired,
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => Tick::Idle,
        }
    }

    fn status(&self, _now: Instant) -> NoiseStatus {
        let handshake_age = self.tunnel.lock().time_since_last_handshake();
        let activity = &self.tunnel.activity;
        NoiseStatus {
            has_session: handshake_age.is_some(),
            handshake_age,
            sent_bytes: activity.sent_bytes(),
            received_bytes: activity.received_bytes(),
            last_sent: activity.last_sent(),
            last_received: activity.last_received(),
        }
    }
}

fn refusal(error: &WireGuardError) -> Refusal {
    match error {
        // An initiation no newer than the last one seen, or a response to nothing: both may be repeats.
        WireGuardError::WrongTai64nTimestamp
        | WireGuardError::InvalidTai64nTimestamp
        | WireGuardError::UnexpectedPacket
        | WireGuardError::InvalidCounter
        | WireGuardError::DuplicateCounter => Refusal::Replay,
        WireGuardError::NoCurrentSession | WireGuardError::ConnectionExpired => Refusal::NoSession,
        WireGuardError::UnderLoad => Refusal::RateLimited,
        WireGuardError::WrongIndex
        | WireGuardError::InvalidPacket
        | WireGuardError::IncorrectPacketLength
        | WireGuardError::WrongPacketType
        | WireGuardError::WrongKey
        | WireGuardError::InvalidMac
        | WireGuardError::InvalidAeadTag
        | WireGuardError::DestinationBufferTooSmall
        | WireGuardError::LockFailed => Refusal::Forged,
    }
}

/// Makes the tunnels of one VDC, and tells whose a handshake is.
pub struct BoringFactory {
    secret: StaticSecret,
    public: PublicKey,
    /// Judges strangers: mac1, and cookies under load.
    limiter: Arc<RateLimiter>,
    /// Given to the tunnels, which see only what the factory let through.
    unlimited: Arc<RateLimiter>,
}

impl std::fmt::Debug for BoringFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BoringFactory").field("public", &WgKey(self.public.to_bytes())).finish_non_exhaustive()
    }
}

impl BoringFactory {
    /// `secret` is the VDC's X25519 key of this node.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Self {
        let secret = StaticSecret::from(secret);
        let public = PublicKey::from(&secret);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND));
        let unlimited = Arc::new(RateLimiter::new(&public, u64::MAX));
        Self { secret, public, limiter, unlimited }
    }

    /// The public half of the key.
    #[must_use]
    pub fn public(&self) -> WgKey {
        WgKey(self.public.to_bytes())
    }
}

impl NoiseFactory for BoringFactory {
    type Noise = BoringNoise;

    fn tunnel(&mut self, peer: &WgKey, index: TunnelIndex, _now: Instant) -> BoringNoise {
        let peer = PublicKey::from(peer.0);
        let limiter = Some(Arc::clone(&self.unlimited));
        BoringNoise::new(Tunn::new(self.secret.clone(), peer, None, None, index.0, limiter))
    }

    fn identify(&mut self, datagram: &[u8], from: SocketAddr, out: &mut Vec<u8>, _now: Instant) -> Identified {
        out.clear();
        self.limiter.reset_count();
        let mut cookie = [0; HANDSHAKE_BYTES_MAX];
        match self.limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(Packet::HandshakeInit(message)) => match parse_handshake_anon(&self.secret, &self.public, &message) {
                Ok(half) => Identified::Peer(WgKey(half.peer_static_public)),
                Err(_) => Identified::Refused,
            },
            Err(TunnResult::WriteToNetwork(reply)) => {
                out.extend_from_slice(reply);
                Identified::Reply
            }
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => Identified::NotOurs,
            Ok(_) | Err(_) => Identified::Refused,
        }
    }

    fn is_for_us(&self, datagram: &[u8]) -> bool {
        let mut scratch = [0; HANDSHAKE_BYTES_MAX];
        matches!(self.unlimited.verify_packet(None, datagram, &mut scratch), Ok(Packet::HandshakeInit(_)))
    }
}

#[cfg(test)]
mod tests;
