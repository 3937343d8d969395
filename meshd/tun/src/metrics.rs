//! Counters of the data path: written by its threads, read by anybody.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows. Reading one tells nothing about the order of others.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: usize) {
        if count > 0 {
            self.0.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Lists the counters once, for the struct and for the export.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Everything the data path counts. Names ending in `_dropped` count packets that went nowhere.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// Every counter with its name, for export.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.total())),*].into_iter()
            }

            /// The counters of packets that went nowhere, by reason.
            pub fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> {
                self.each().filter_map(|(name, total)| Some((name.strip_suffix("_dropped")?, total)))
            }
        }
    };
}

counters! {
    /// Sends to the network: single datagrams or GSO runs.
    sent,
    /// Datagrams or runs that the kernel refused.
    send_failed_dropped,
    /// Datagrams beyond the path's MTU that may not be fragmented.
    send_too_big_dropped,
    /// Reads from TUNs: packets or super-packets.
    tun_reads,
    /// Packets after cutting.
    tun_packets,
    /// Writes to TUNs: packets or super-packets.
    tun_writes,
    /// Packets a TUN did not take.
    tun_write_dropped,
    /// Super-packets whose headers make no sense.
    tun_malformed_dropped,
    /// Datagrams received.
    received,
    /// Packets opened and handed to a TUN.
    opened,
    /// Datagrams that were no frame of ours.
    garbage_dropped,
    /// Data whose index belongs to no tunnel.
    unknown_index_dropped,
    /// Data seen before, or too old for the window.
    replay_dropped,
    /// Data whose seal is broken, or that has no session.
    unauthentic_dropped,
    /// Opened packets whose source is not the peer's own prefix.
    source_dropped,
    /// Opened packets that are not for this node.
    destination_dropped,
    /// Opened packets that are no IP packet.
    malformed_dropped,
    /// Data beyond the VDC's allowance before decryption.
    rate_dropped,
    /// Packets for the overlay thread while its queue was full.
    queue_full_dropped,
    /// Events that the control plane did not take for so long that the room to keep them ran out.
    events_lost,
}

impl Counters {
    pub(crate) fn send_failed(&self, error: &io::Error) {
        if error.raw_os_error() == Some(libc::EMSGSIZE) {
            self.send_too_big_dropped.increment();
        } else {
            self.send_failed_dropped.increment();
        }
    }
}
