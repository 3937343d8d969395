//! The packet threads: run to completion, no channel, no allocation and no lock per packet.
//!
//! One thread per TUN reads super-packets, cuts and seals them straight into a flat buffer and sends runs of equal size
//! with one system call. One thread per socket receives runs, opens them, joins what belongs together across the whole
//! batch and writes it to the VDC's TUN. Whatever needs a decision goes to the overlay thread through its mailbox; for
//! an established tunnel nothing ever does.

use std::io::{self, IoSlice, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use vdc_overlay::demux::{Kind, classify};

use crate::mailbox::Mailbox;
use crate::metrics::Counters;
use crate::offload::{Joiner, VnetHeader, cut};
use crate::snapshot::{Admission, Route, Snapshot, VdcSlot};
use crate::socket::{MagicSocket, Outbox};
use crate::sys::{self, MESSAGES_MAX, ReceiveArrays};
use crate::tun::Tun;
use crate::tunnel::{Opener, Opening};

/// Packets collected before a batch must leave.
const BATCH_PACKETS_MAX: usize = 64;
/// Bytes collected before a batch must leave: one super-packet, so that the receiver can start while we go on.
const BATCH_BYTES_MAX: usize = 48 * 1024;
/// Time after which a batch must leave even if the TUN has more.
const BATCH_TIME_MAX: Duration = Duration::from_micros(100);

/// Opened packets held for joining, in bytes.
const ARENA_BYTES: usize = 256 * 1024;

/// Buffers asked for in one receive when datagrams come in runs: four runs fill a joined packet many times over, and
/// more would only push each other out of the cache.
const RUN_MESSAGES: usize = 8;

/// A VDC's end of the data path.
#[derive(Debug)]
pub(crate) struct VdcPort {
    pub(crate) slot: VdcSlot,
    pub(crate) tun: Tun,
    stop: std::fs::File,
    stopping: AtomicBool,
}

impl VdcPort {
    pub(crate) fn new(slot: VdcSlot, tun: Tun) -> io::Result<Self> {
        Ok(Self { slot, tun, stop: sys::eventfd()?, stopping: AtomicBool::new(false) })
    }

    /// Ends the transmit thread.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // An eventfd write fails only when its counter is full, and then the thread is awake already.
        let _ = (&self.stop).write(&1u64.to_ne_bytes());
    }
}

/// What the packet threads hand to the overlay thread.
#[derive(Debug)]
pub(crate) enum Punt {
    /// A packet from a TUN that no live tunnel takes.
    Packet { slot: VdcSlot, packet: Vec<u8> },
    /// A datagram that is not data of a live tunnel.
    Datagram { remote: SocketAddr, datagram: Vec<u8> },
    /// Data with an index that no tunnel has.
    UnknownIndex { remote: SocketAddr },
    /// Authentic data of a tunnel came from another address than its path's.
    Roamed { slot: VdcSlot, index: u32, remote: SocketAddr },
    /// A measuring packet that a tunnel brought.
    Probe { slot: VdcSlot, index: u32, remote: SocketAddr, packet: Vec<u8> },
}

impl Punt {
    fn bytes(&self) -> usize {
        match self {
            Self::Packet { packet, .. } | Self::Probe { packet, .. } => packet.len(),
            Self::Datagram { datagram, .. } => datagram.len(),
            Self::UnknownIndex { .. } | Self::Roamed { .. } => 0,
        }
    }
}

/// What all packet threads share.
#[derive(Debug)]
pub(crate) struct Shared<C> {
    pub(crate) socket: MagicSocket,
    pub(crate) counters: Counters,
    pub(crate) snapshot: ArcSwap<Snapshot>,
    pub(crate) mailbox: Mailbox<C, Punt>,
    pub(crate) stopping: AtomicBool,
}

impl<C> Shared<C> {
    fn punt(&self, punt: Punt) {
        self.try_punt(punt);
    }

    /// Whether there was room.
    fn try_punt(&self, punt: Punt) -> bool {
        let has_room = self.mailbox.punt(punt.bytes(), punt);
        if !has_room {
            self.counters.queue_full_dropped.increment();
        }
        has_room
    }
}

/// Moves packets from one TUN to the network until [`VdcPort::stop`].
pub(crate) fn transmit<C>(shared: &Shared<C>, port: &VdcPort) {
    let mut outbox = Outbox::new();
    let mut buffer = vec![0; VnetHeader::BYTES + 65_536].into_boxed_slice();
    while !port.stopping.load(Ordering::Acquire) {
        match transmit_batch(shared, port, &mut outbox, &mut buffer) {
            Drained::No => {}
            Drained::Yes => {
                if let Err(error) = sys::wait_readable(port.tun.as_fd(), port.stop.as_fd())
                    && error.kind() != io::ErrorKind::Interrupted
                {
                    tracing::error!(%error, "waiting for the TUN failed, this VDC's transmit thread ends");
                    return;
                }
            }
            Drained::Failed(error) => {
                // EBADFD: the interface was deleted under us. Nothing can be read from it again.
                tracing::error!(%error, "reading the TUN failed, this VDC's transmit thread ends");
                return;
            }
        }
    }
}

enum Drained {
    Yes,
    No,
    Failed(io::Error),
}

/// Reads until the TUN is empty or the batch is full, then sends.
fn transmit_batch<C>(shared: &Shared<C>, port: &VdcPort, outbox: &mut Outbox, buffer: &mut [u8]) -> Drained {
    let counters = &shared.counters;
    let started = Instant::now();
    let snapshot = shared.snapshot.load();
    let routes = snapshot.vdcs.get(&port.slot);
    let mut packets = 0;
    let drained = loop {
        let length = match port.tun.read(buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Drained::Yes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => break Drained::Failed(error),
        };
        counters.tun_reads.increment();
        let Some((header, packet)) = buffer[..length].split_first_chunk_mut::<{ VnetHeader::BYTES }>() else {
            counters.tun_malformed_dropped.increment();
            continue;
        };
        let header = VnetHeader::decode(header);
        let sent = match routes.and_then(|routes| routes.route(packet)) {
            Some(route) => seal(shared, route, header, packet, outbox, started),
            None => None,
        };
        match sent {
            Some(count) => packets += count,
            None => hand_over(shared, port.slot, header, packet),
        }
        if packets >= BATCH_PACKETS_MAX || outbox.used() >= BATCH_BYTES_MAX || started.elapsed() >= BATCH_TIME_MAX {
            break Drained::No;
        }
    };
    outbox.flush(&shared.socket, counters);
    counters.tun_packets.add(packets);
    drained
}

/// Cuts and seals one read into the outbox. `None`, with the packet untouched, if the tunnel cannot take it now.
fn seal<C>(
    shared: &Shared<C>,
    route: &Route,
    header: VnetHeader,
    packet: &mut [u8],
    outbox: &mut Outbox,
    now: Instant,
) -> Option<usize> {
    let remote = route.remote?;
    let mut sealer = route.tunnel.sealer()?;
    let mut bytes = 0;
    let cut = cut(header, packet, |segment| {
        let space = outbox.reserve(&shared.socket, &shared.counters);
        if let Some(length) = sealer.seal(segment, space) {
            bytes += segment.len();
            outbox.commit(&shared.socket, remote, length);
        }
    });
    drop(sealer);
    route.tunnel.activity.sent(bytes, now);
    Some(cut.unwrap_or_else(|error| {
        tracing::trace!(%error, "packet from the TUN dropped");
        shared.counters.tun_malformed_dropped.increment();
        0
    }))
}

/// Gives the overlay thread the wire packets of a read that no live tunnel takes.
fn hand_over<C>(shared: &Shared<C>, slot: VdcSlot, header: VnetHeader, packet: &mut [u8]) {
    let handed = cut(header, packet, |segment| shared.punt(Punt::Packet { slot, packet: segment.to_vec() }));
    if handed.is_err() {
        shared.counters.tun_malformed_dropped.increment();
    }
}

/// Allowance of one VDC before decryption.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RateLimit {
    /// Data frames per second.
    pub(crate) frames_per_second: u32,
    /// Data frames saved up at most.
    pub(crate) burst_frames: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        // Above what one core can open (about 1 million small frames a second): it keeps one VDC from starving the
        // others for long, not a peer from being fast.
        Self { frames_per_second: 2_000_000, burst_frames: 500_000 }
    }
}

/// Notices about data of unknown sessions: enough for every peer after a restart, too few to fill the mailbox.
const UNKNOWN_INDEX_LIMIT: RateLimit = RateLimit { frames_per_second: 200, burst_frames: 200 };

/// A token bucket that one thread owns.
#[derive(Debug)]
struct Bucket {
    limit: RateLimit,
    frames: u64,
    refilled: Instant,
}

impl Bucket {
    fn new(limit: RateLimit, now: Instant) -> Self {
        Self { limit, frames: u64::from(limit.burst_frames), refilled: now }
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled);
        let gained = elapsed.as_micros().saturating_mul(u128::from(self.limit.frames_per_second)) / 1_000_000;
        if gained > 0 {
            let gained = u64::try_from(gained).unwrap_or(u64::MAX);
            self.frames = self.frames.saturating_add(gained).min(u64::from(self.limit.burst_frames));
            self.refilled = now;
        }
    }

    fn take(&mut self) -> bool {
        let left = self.frames.checked_sub(1);
        self.frames = left.unwrap_or(0);
        left.is_some()
    }
}

/// The receive thread's side of one VDC.
struct Intake {
    port: Arc<VdcPort>,
    joiner: Joiner,
    bucket: Bucket,
}

/// Opened packets waiting to be written.
struct Arena {
    bytes: Box<[u8]>,
    used: usize,
}

/// Moves packets from the socket to the TUNs until the socket is stopped.
pub(crate) fn receive<C>(shared: &Shared<C>, limit: RateLimit) {
    let mut arrays = shared.socket.receive_arrays();
    let arena = Arena { bytes: vec![0; ARENA_BYTES].into(), used: 0 };
    let unknown = Bucket::new(UNKNOWN_INDEX_LIMIT, Instant::now());
    let mut receiver = Receiver { shared, limit, intakes: Vec::new(), arena, unknown };
    let mut wanted = MESSAGES_MAX;
    loop {
        let result = shared.socket.receive(&mut arrays, wanted);
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        match result {
            Ok(count) => {
                let runs = receiver.take_batch(&arrays, count);
                wanted = if runs { RUN_MESSAGES } else { MESSAGES_MAX };
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A receive on UDP reports an earlier send's fate (ICMP); the socket itself is fine.
            Err(error) => tracing::debug!(%error, "receiving"),
        }
    }
}

struct Receiver<'a, C> {
    shared: &'a Shared<C>,
    limit: RateLimit,
    /// Few: one per VDC that has sent us something.
    intakes: Vec<Intake>,
    arena: Arena,
    /// Allowance for notices about unknown indices.
    unknown: Bucket,
}

impl<C> Receiver<'_, C> {
    /// Handles what one receive brought. Tells whether datagrams came in runs.
    fn take_batch(&mut self, arrays: &ReceiveArrays, count: usize) -> bool {
        let shared = self.shared;
        let now = Instant::now();
        let snapshot = shared.snapshot.load();
        let mut runs = false;
        for entry in (0..count).map(|index| arrays.entry(index)) {
            runs |= entry.bytes.len() > entry.frame;
            let mut rest = entry.bytes;
            while !rest.is_empty() {
                let frame = &rest[..entry.frame.min(rest.len())];
                let Kind::Data { receiver } = classify(frame) else {
                    rest = &rest[frame.len()..];
                    self.hand_over(entry.remote, frame);
                    continue;
                };
                let same = leading_frames(rest, entry.frame, &frame[..8]);
                let (run, others) = rest.split_at(same);
                rest = others;
                match snapshot.tunnel(receiver) {
                    Some(route) if route.remote.is_some() => {
                        self.open_run(&snapshot, route, entry.remote, run, entry.frame, now);
                    }
                    // The first data of a tunnel is what tells the overlay that it is up.
                    Some(_) => run.chunks(entry.frame).for_each(|frame| self.hand_over(entry.remote, frame)),
                    None => self.unknown_index(entry.remote),
                }
            }
        }
        self.flush();
        runs
    }

    /// Opens consecutive frames of one tunnel under one lock.
    fn open_run(
        &mut self,
        snapshot: &Snapshot,
        route: &Arc<Route>,
        remote: SocketAddr,
        run: &[u8],
        frame_bytes: usize,
        now: Instant,
    ) {
        let counters = &self.shared.counters;
        let index = self.intake(&route.port, now);
        let (mut opened, mut bytes, mut authentic) = (0, 0, false);
        let mut opener = route.tunnel.opener();
        for frame in run.chunks(frame_bytes) {
            counters.received.increment();
            if !self.intakes[index].bucket.take() {
                counters.rate_dropped.increment();
                continue;
            }
            if self.arena.used + frame.len() > self.arena.bytes.len() {
                self.flush();
            }
            match self.open_frame(&mut opener, snapshot, route, remote, frame, index) {
                Fate::Delivered(length) => {
                    authentic = true;
                    opened += 1;
                    bytes += length;
                }
                Fate::Authentic => authentic = true,
                Fate::Dropped => {}
            }
        }
        drop(opener);
        counters.opened.add(opened);
        if opened > 0 {
            route.tunnel.activity.received(bytes, now);
        }
        if authentic && route.remote != Some(remote) {
            let notice = Punt::Roamed { slot: route.slot, index: route.index, remote };
            route.told.tell_once(remote, || self.shared.try_punt(notice));
        }
    }

    fn open_frame(
        &mut self,
        opener: &mut Opener<'_>,
        snapshot: &Snapshot,
        route: &Route,
        remote: SocketAddr,
        frame: &[u8],
        intake: usize,
    ) -> Fate {
        let shared = self.shared;
        let counters = &shared.counters;
        let start = self.arena.used;
        let out = &mut self.arena.bytes[start..start + frame.len()];
        let length = match opener.open(remote.ip(), frame, out) {
            Opening::Packet(length) => length,
            Opening::Keepalive => return Fate::Authentic,
            Opening::Replay => {
                counters.replay_dropped.increment();
                return Fate::Dropped;
            }
            Opening::NoSession => {
                self.unknown_index(remote);
                return Fate::Dropped;
            }
            Opening::Forged => {
                counters.unauthentic_dropped.increment();
                return Fate::Dropped;
            }
            Opening::Malformed => {
                counters.malformed_dropped.increment();
                return Fate::Dropped;
            }
        };
        let packet = &out[..length];
        match snapshot.admit(route, packet) {
            Admission::Deliver => {
                self.arena.used += length;
                let Intake { port, joiner, .. } = &mut self.intakes[intake];
                joiner.push(&mut self.arena.bytes, start..start + length, &mut |_, slices| {
                    write(&port.tun, counters, slices);
                });
                Fate::Delivered(length)
            }
            Admission::Probe => {
                let (slot, index, packet) = (route.slot, route.index, packet.to_vec());
                shared.punt(Punt::Probe { slot, index, remote, packet });
                // Probes try every path on purpose; whether the peer is there, the overlay reads in the probe itself.
                Fate::Dropped
            }
            Admission::SourceNotPeer => {
                counters.source_dropped.increment();
                Fate::Authentic
            }
            Admission::DestinationNotOurs => {
                counters.destination_dropped.increment();
                Fate::Authentic
            }
        }
    }

    /// The position of a VDC's intake, made on first sight and again when the VDC was re-added.
    fn intake(&mut self, port: &Arc<VdcPort>, now: Instant) -> usize {
        let found = self.intakes.iter().position(|intake| Arc::ptr_eq(&intake.port, port));
        let index = found.unwrap_or_else(|| {
            self.flush();
            self.intakes.retain(|intake| !intake.port.stopping.load(Ordering::Relaxed));
            self.intakes.push(Intake {
                port: Arc::clone(port),
                joiner: Joiner::new(port.tun.offloads().udp, usize::try_from(port.tun.mtu_bytes()).unwrap_or(0)),
                bucket: Bucket::new(self.limit, now),
            });
            self.intakes.len() - 1
        });
        self.intakes[index].bucket.refill(now);
        index
    }

    /// Writes what the joiners hold; the arena is free then.
    fn flush(&mut self) {
        for Intake { port, joiner, .. } in &mut self.intakes {
            joiner.flush(&mut self.arena.bytes, &mut |_, slices| write(&port.tun, &self.shared.counters, slices));
        }
        self.arena.used = 0;
    }

    /// What the overlay thread must see: handshakes, and the first data of a tunnel. Rubbish for nobody.
    fn hand_over(&self, remote: SocketAddr, datagram: &[u8]) {
        self.shared.counters.received.increment();
        match classify(datagram) {
            Kind::HandshakeInitiation
            | Kind::HandshakeResponse { .. }
            | Kind::CookieReply { .. }
            | Kind::Data { .. } => self.shared.punt(Punt::Datagram { remote, datagram: datagram.to_vec() }),
            Kind::Quic | Kind::Stun | Kind::Frame | Kind::Garbage => self.shared.counters.garbage_dropped.increment(),
        }
    }

    /// Data of a session that is not here (any more). The overlay is told, but not for every packet of a flood.
    fn unknown_index(&mut self, remote: SocketAddr) {
        self.shared.counters.unknown_index_dropped.increment();
        self.unknown.refill(Instant::now());
        if self.unknown.take() {
            self.shared.punt(Punt::UnknownIndex { remote });
        }
    }
}

/// What became of one frame.
enum Fate {
    Delivered(usize),
    /// Sealed by the peer, but nothing for the TUN.
    Authentic,
    Dropped,
}

fn write(tun: &Tun, counters: &Counters, slices: &[IoSlice<'_>]) {
    counters.tun_writes.increment();
    if tun.write(slices).is_err() {
        counters.tun_write_dropped.increment();
    }
}

/// Bytes of the leading frames of `bytes` that begin with `header`.
fn leading_frames(bytes: &[u8], frame_bytes: usize, header: &[u8]) -> usize {
    bytes.chunks(frame_bytes).take_while(|frame| frame.starts_with(header)).map(<[u8]>::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_limits_and_refills() {
        let start = Instant::now();
        let mut bucket = Bucket::new(RateLimit { frames_per_second: 1000, burst_frames: 10 }, start);
        assert_eq!((0..20).filter(|_| bucket.take()).count(), 10);
        bucket.refill(start + Duration::from_millis(5));
        assert_eq!((0..20).filter(|_| bucket.take()).count(), 5);
        bucket.refill(start + Duration::from_secs(60));
        assert_eq!((0..20).filter(|_| bucket.take()).count(), 10);
    }

    #[test]
    fn runs_end_where_the_header_changes() {
        let mut bytes = vec![4, 0, 0, 0, 1, 2, 3, 4, 9, 9];
        bytes.extend_from_slice(&[4, 0, 0, 0, 1, 2, 3, 4, 8, 8]);
        bytes.extend_from_slice(&[4, 0, 0, 0, 1, 2, 3, 5, 7]);
        assert_eq!(leading_frames(&bytes, 10, &bytes[..8]), 20);
    }
}
