//! One WireGuard tunnel, shared between the packet threads and the overlay thread.
//!
//! The mutex is the one exception to "a single task mutates each state machine": boringtun needs `&mut`. It is locked
//! once per batch; the numbers beside it are atomics so that reading them costs the packet threads nothing.

use std::net::IpAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::{Tunn, TunnResult};
use parking_lot::{Mutex, MutexGuard};

/// Bytes that a data message adds to its packet.
pub(crate) const DATA_OVERHEAD_BYTES: usize = 32;

/// Counters at or above this are never used (WireGuard's REJECT_AFTER_MESSAGES). Refused before boringtun sees them,
/// whose window arithmetic would overflow near 2^64.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// What the times in [`Activity`] count from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since the process's epoch, plus one: 0 stands for never.
fn stamp(now: Instant) -> u64 {
    let elapsed = now.saturating_duration_since(*EPOCH).as_millis();
    u64::try_from(elapsed).unwrap_or(u64::MAX - 1) + 1
}

fn unstamp(stamp: u64) -> Option<Instant> {
    (stamp > 0).then(|| *EPOCH + Duration::from_millis(stamp - 1))
}

/// What went through a tunnel: data packets only.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    last_sent: AtomicU64,
    last_received: AtomicU64,
}

impl Activity {
    pub(crate) fn sent(&self, bytes: usize, at: Instant) {
        self.sent_bytes.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        self.last_sent.store(stamp(at), Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize, at: Instant) {
        self.received_bytes.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
        self.last_received.store(stamp(at), Ordering::Relaxed);
    }

    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn last_sent(&self) -> Option<Instant> {
        unstamp(self.last_sent.load(Ordering::Relaxed))
    }

    pub(crate) fn last_received(&self) -> Option<Instant> {
        unstamp(self.last_received.load(Ordering::Relaxed))
    }
}

pub(crate) struct Tunnel {
    tunn: Mutex<Tunn>,
    pub(crate) activity: Activity,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("activity", &self.activity).finish_non_exhaustive()
    }
}

impl Tunnel {
    pub(crate) fn new(tunn: Tunn) -> Self {
        Self { tunn: Mutex::new(tunn), activity: Activity::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Tunn> {
        self.tunn.lock()
    }

    /// Locks the tunnel for sealing; `None` while it has no session to seal with.
    pub(crate) fn sealer(&self) -> Option<Sealer<'_>> {
        let tunn = self.tunn.lock();
        // Without a session boringtun would queue the packet inside itself; the overlay has the queue.
        tunn.time_since_last_handshake().is_some().then_some(Sealer { tunn })
    }

    pub(crate) fn opener(&self) -> Opener<'_> {
        Opener { tunn: self.tunn.lock() }
    }
}

/// A locked tunnel with a session.
pub(crate) struct Sealer<'a> {
    tunn: MutexGuard<'a, Tunn>,
}

impl Sealer<'_> {
    /// Seals `packet` into `out` (at least [`DATA_OVERHEAD_BYTES`] longer) and returns the frame's length.
    pub(crate) fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> Option<usize> {
        match self.tunn.encapsulate(packet, out) {
            TunnResult::WriteToNetwork(frame) => Some(frame.len()),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }
}

/// What became of a data frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// An IP packet of this many bytes stands at the start of the buffer.
    Packet(usize),
    /// Authentic, and empty.
    Keepalive,
    /// Seen before, or older than the window.
    Replay,
    /// The index is ours but its session is gone.
    NoSession,
    /// The seal is broken.
    Forged,
    /// Authentic, but not an IP packet.
    Malformed,
}

/// A locked tunnel.
pub(crate) struct Opener<'a> {
    tunn: MutexGuard<'a, Tunn>,
}

impl Opener<'_> {
    /// Opens a data frame into `out`, which must be as long as the frame.
    pub(crate) fn open(&mut self, from: IpAddr, frame: &[u8], out: &mut [u8]) -> Opening {
        let Some(counter) = frame.get(8..16).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes) else {
            return Opening::Malformed;
        };
        if counter >= REJECT_AFTER_MESSAGES || frame.len() < DATA_OVERHEAD_BYTES {
            return Opening::Forged;
        }
        match self.tunn.decapsulate(Some(from), frame, out) {
            TunnResult::WriteToTunnelV4(packet, _) => Opening::Packet(packet.len()),
            TunnResult::WriteToTunnelV6(packet, _) => Opening::Packet(packet.len()),
            TunnResult::Done => Opening::Keepalive,
            TunnResult::Err(WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter) => Opening::Replay,
            TunnResult::Err(WireGuardError::NoCurrentSession | WireGuardError::WrongIndex) => Opening::NoSession,
            TunnResult::Err(WireGuardError::InvalidPacket) => Opening::Malformed,
            TunnResult::Err(_) | TunnResult::WriteToNetwork(_) => Opening::Forged,
        }
    }
}
