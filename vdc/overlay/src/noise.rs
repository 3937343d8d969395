//! What the overlay needs of WireGuard: one tunnel to one peer, behind a trait.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use vdc::WgKey;

/// The upper 24 bits of a tunnel's receiver indices; unique in the process, since several VDCs share one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelIndex(pub u32);

/// What became of a plaintext packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// `out` holds the datagram to send.
    Data,
    /// There is no session; nothing was kept.
    NoSession,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// `out` holds a plaintext packet that the peer sealed.
    Packet,
    /// Authentic and empty.
    Keepalive,
    /// `out` holds a datagram to send back. `session` if the tunnel can carry data from now on.
    Reply { session: bool },
    /// Authentic, and nothing follows (a cookie).
    Nothing,
    /// Not authentic, a replay, or without a session.
    Refused(Refusal),
}

/// Why a datagram was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    Forged,
    Replay,
    NoSession,
    /// The handshake flood limit.
    RateLimited,
}

/// What a tunnel's timers ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tick {
    Idle,
    /// `out` holds a keepalive or a handshake initiation. `handshake` for the latter.
    Send {
        handshake: bool,
    },
    /// The handshake was given up, or the session grew too old: there is nothing left of the tunnel.
    Expired,
}

/// A tunnel's state at a glance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoiseStatus {
    pub has_session: bool,
    /// Since the handshake that made the session in use.
    pub handshake_age: Option<Duration>,
    /// Payload in bytes.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub last_sent: Option<Instant>,
    pub last_received: Option<Instant>,
}

/// One WireGuard tunnel to one peer.
pub trait Noise: Send {
    /// Seals one IP packet into `out`, which is cleared first.
    fn encapsulate(&mut self, packet: &[u8], out: &mut Vec<u8>, now: Instant) -> Sealed;

    /// Opens one datagram into `out`, which is cleared first.
    fn decapsulate(&mut self, from: SocketAddr, datagram: &[u8], out: &mut Vec<u8>, now: Instant) -> Opened;

    /// Writes a handshake initiation into `out`, which is cleared first. False if one is under way already.
    fn initiate(&mut self, out: &mut Vec<u8>, now: Instant) -> bool;

    /// Writes an authentic empty datagram into `out`, if there is a session: tells the peer that the session works.
    fn keepalive(&mut self, out: &mut Vec<u8>, now: Instant) -> Sealed;

    /// Runs the timers; to be called about every 250 ms while a handshake is under way, every second otherwise.
    fn tick(&mut self, out: &mut Vec<u8>, now: Instant) -> Tick;

    fn status(&self, now: Instant) -> NoiseStatus;
}

/// Whose handshake initiation a datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identified {
    /// Sealed to us by the holder of this key.
    Peer(WgKey),
    /// `out` holds a cookie reply to send back: we are under load.
    Reply,
    /// Its mac1 is not for our key: another VDC's, or noise.
    NotOurs,
    /// For us, and not to be answered.
    Refused,
}

/// Makes tunnels with one node's WireGuard key.
pub trait NoiseFactory {
    type Noise: Noise;

    fn tunnel(&mut self, peer: &WgKey, index: TunnelIndex, now: Instant) -> Self::Noise;

    /// Finds out who sent a handshake initiation, and answers floods. `out` is cleared first.
    fn identify(&mut self, datagram: &[u8], from: SocketAddr, out: &mut Vec<u8>, now: Instant) -> Identified;

    /// Whether a datagram without an index of ours (an initiation, a cookie) is meant for this key, by its mac1 alone.
    fn is_for_us(&self, datagram: &[u8]) -> bool;
}
