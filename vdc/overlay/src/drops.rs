//! Why packets go no further, and how many did not.

use std::collections::BTreeMap;

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
    /// More packets than a tunnel's queue or the driver takes.
    QueueFull,
    /// The peer was not reached before the packet was too old, or its tunnel was closed.
    Unreached,
    /// Broken seal or wrong key.
    Forged,
    Replay,
    /// The same handshake message again, over another path: it goes out over several.
    Duplicate,
    /// A datagram that is nothing of ours.
    Garbage,
    /// Data of a session that is not here.
    NoSession,
    /// A handshake of a key that is no member's.
    NotMember,
    /// Handshakes beyond the flood limit.
    RateLimited,
    /// More tunnels than [`crate::TUNNELS_MAX`].
    TooManyTunnels,
}

impl DropReason {
    pub const ALL: [Self; 14] = [
        Self::Malformed,
        Self::NoRoute,
        Self::SpoofedSource,
        Self::NotOurs,
        Self::QueueFull,
        Self::Unreached,
        Self::Forged,
        Self::Replay,
        Self::Duplicate,
        Self::Garbage,
        Self::NoSession,
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
            Self::Unreached => "unreached",
            Self::Forged => "forged",
            Self::Replay => "replay",
            Self::Duplicate => "duplicate",
            Self::Garbage => "garbage",
            Self::NoSession => "no-session",
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
    pub(crate) fn add(&mut self, reason: DropReason, packets: usize) {
        if packets > 0 {
            *self.0.entry(reason).or_default() += u64::try_from(packets).unwrap_or(u64::MAX);
        }
    }

    #[must_use]
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0.get(&reason).copied().unwrap_or(0)
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// On its way, or to its reader.
    Pass,
    /// Waits for its tunnel.
    Queued,
    Drop(DropReason),
}
