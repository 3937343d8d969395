//! The overlay thread: owns every VDC's state machine and is the only one that changes it.
//!
//! It takes commands of the control plane and whatever the packet threads punt, drives the timers, sends what the state
//! machines want sent, and publishes the picture the packet threads work from. It never waits for anybody: queues into
//! it refuse when full, events out of it stay in the state machine until the control plane has room.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{panic, process};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use vdc::{Ipv4Block, Key, NodePrefix};
use vdc_overlay::demux::{Kind, classify};
use vdc_overlay::{DropReason, Event, Member, Overlay, OverlayConfig, PathAddress, TunnelIndex, TunnelView};

use crate::datapath::{self, Punt, RateLimit, Shared, VdcPort};
use crate::mailbox::{Mail, Mailbox};
use crate::metrics::Counters;
use crate::noise::BoringFactory;
use crate::offload::VnetHeader;
use crate::snapshot::{Route, SESSION_BITS, Snapshot, Told, VdcRoutes, VdcSlot};
use crate::socket::{MagicSocket, Outbox, SocketError, SocketOffloads};
use crate::tun::{Tun, TunOffloads};

/// Mails handled before the picture is published and packets leave.
const ROUND_MAILS_MAX: usize = 64;

/// Events of one VDC that wait for room in the control plane's queue.
const EVENTS_WAITING_MAX: usize = 1024;

/// How long events wait for the control plane before its queue is tried again.
const EVENT_RETRY: Duration = Duration::from_millis(20);

/// How often the views for `status` are renewed.
const VIEW_INTERVAL: Duration = Duration::from_millis(500);

/// Bits of a tunnel index that count a VDC's tunnels; the 8 above are the VDC's slot. Together they are the 24 bits that
/// WireGuard's receiver index leaves beside the session.
const TUNNEL_BITS: u32 = 16;

/// VDCs on one node, over the life of a process.
const VDC_SLOTS: u32 = 1 << (32 - SESSION_BITS - TUNNEL_BITS);

/// What a node needs to run its data plane.
#[derive(Clone, Copy, Debug)]
pub struct DataPlaneConfig {
    /// UDP port of WireGuard and everything else on the underlay; 0 lets the kernel choose.
    pub port: u16,
}

/// What a VDC needs on this node.
pub struct VdcConfig {
    /// This node's X25519 secret in the VDC.
    pub wireguard_secret: [u8; 32],
    pub prefix: NodePrefix,
    pub ipv4: Option<Ipv4Block>,
    /// Randomness for the state machine.
    pub seed: [u8; 32],
    /// The peers that may talk to us. May be empty and follow by [`VdcHandle::set_members`].
    pub members: Vec<Member>,
    /// [`VdcView::last_paths`] of the last run: these tunnels are opened as soon as there are members.
    pub last_paths: Vec<(Key, SocketAddr)>,
    /// The TUN, from [`crate::VdcNetwork::ensure`].
    pub tun: Tun,
    /// Where events go. While it is full they wait.
    pub events: mpsc::Sender<Event>,
}

impl std::fmt::Debug for VdcConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VdcConfig").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Why the data plane refuses.
#[derive(Debug, thiserror::Error)]
pub enum DataPlaneError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot start a packet thread")]
    Thread(#[source] io::Error),
    #[error("the data plane is overloaded: its command queue is full")]
    Busy,
    #[error("the data plane has stopped")]
    Stopped,
    #[error("no more VDCs fit this process")]
    TooManyVdcs,
}

/// Commands carry their VDC; the overlay thread applies them in order.
#[derive(Debug)]
pub(crate) enum Command {
    Add(Box<VdcConfig>, VdcSlot, oneshot::Sender<Result<Arc<ArcSwap<VdcView>>, DataPlaneError>>),
    Remove(VdcSlot, oneshot::Sender<()>),
    Members(VdcSlot, Vec<Member>),
    Candidates(VdcSlot, Key, Vec<SocketAddr>),
    LookupFailed(VdcSlot, Key, String),
    BootNonce(VdcSlot, Key, [u8; 16]),
    LocalNetworks(Vec<(IpAddr, u8)>),
    Stop,
}

/// What the overlay of one VDC looks like; at most half a second old while anything happens.
#[derive(Clone, Debug, Default)]
pub struct VdcView {
    /// Tunnels that are open or opening.
    pub tunnels: Vec<TunnelView>,
    /// Paths of tunnels that are up, the most recently used last: to be kept for the next start.
    pub last_paths: Vec<(Key, SocketAddr)>,
    /// Packets that the state machine dropped, by reason. The packet threads' own drops are in [`Counters`].
    pub drops: Vec<(DropReason, u64)>,
}

/// A handle on the node's data plane: cheap to clone, its threads end with [`DataPlane::stop`].
#[derive(Clone, Debug)]
pub struct DataPlane {
    shared: Arc<Shared<Command>>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
    slots: Arc<Mutex<VdcSlot>>,
}

impl DataPlane {
    /// Opens the socket in the calling thread's network namespace and starts the receive and overlay threads.
    ///
    /// # Errors
    /// [`DataPlaneError::Socket`] if the port cannot be had, [`DataPlaneError::Thread`] if threads cannot.
    pub fn start(config: DataPlaneConfig) -> Result<Self, DataPlaneError> {
        let shared = Arc::new(Shared {
            socket: MagicSocket::bind(config.port)?,
            counters: Counters::default(),
            snapshot: ArcSwap::default(),
            mailbox: Mailbox::new(),
            stopping: AtomicBool::new(false),
        });
        let plane = Self { shared, threads: Arc::default(), slots: Arc::default() };
        let shared = Arc::clone(&plane.shared);
        plane.spawn("mesh-rx", move || datapath::receive(&shared, RateLimit::default()))?;
        let shared = Arc::clone(&plane.shared);
        plane.spawn("mesh-overlay", move || OverlayThread::new(shared).run())?;
        Ok(plane)
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), DataPlaneError> {
        let thread = spawn_thread(name, work)?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// The UDP port on the underlay.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.shared.socket.port()
    }

    #[must_use]
    pub fn socket_offloads(&self) -> SocketOffloads {
        self.shared.socket.offloads()
    }

    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Adds a VDC and starts its transmit thread.
    ///
    /// # Errors
    /// [`DataPlaneError`].
    pub async fn add_vdc(&self, config: VdcConfig) -> Result<VdcHandle, DataPlaneError> {
        let slot = {
            let mut next = self.slots.lock();
            let slot = *next;
            if slot >= VDC_SLOTS {
                return Err(DataPlaneError::TooManyVdcs);
            }
            *next += 1;
            slot
        };
        let offloads = config.tun.offloads();
        let (reply, answer) = oneshot::channel();
        self.command(Command::Add(Box::new(config), slot, reply))?;
        let view = answer.await.map_err(|_| DataPlaneError::Stopped)??;
        Ok(VdcHandle { plane: self.clone(), slot, view, offloads })
    }

    /// Tells every VDC which networks this host is in (from [`crate::AddressWatch`]), and that they changed if they did.
    ///
    /// # Errors
    /// [`DataPlaneError::Busy`] or [`DataPlaneError::Stopped`].
    pub fn set_local_networks(&self, networks: Vec<(IpAddr, u8)>) -> Result<(), DataPlaneError> {
        self.command(Command::LocalNetworks(networks))
    }

    fn command(&self, command: Command) -> Result<(), DataPlaneError> {
        if self.shared.stopping.load(Ordering::Acquire) {
            return Err(DataPlaneError::Stopped);
        }
        if self.shared.mailbox.command(command) { Ok(()) } else { Err(DataPlaneError::Busy) }
    }

    /// Ends all threads and waits for them. TUNs and routes stay for the next start. Blocks for some milliseconds.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.socket.stop();
        // A full queue wakes the thread as well, and it looks at `stopping` before each round.
        self.shared.mailbox.command(Command::Stop);
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            join(thread);
        }
    }
}

/// Starts a thread that the node cannot do without.
///
/// If it panics the process aborts: a daemon that looks alive and moves no packets is worse than a restart, which
/// adopts the network and costs a second.
fn spawn_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, DataPlaneError> {
    let name = name.to_owned();
    thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            if panic::catch_unwind(panic::AssertUnwindSafe(work)).is_err() {
                tracing::error!(thread = name, "a data plane thread panicked; ending the process");
                process::abort();
            }
        })
        .map_err(DataPlaneError::Thread)
}

fn join(thread: JoinHandle<()>) {
    thread.join().expect("a panic in a thread of ours ends the process first");
}

/// A handle on one VDC's data path: cheap to clone.
#[derive(Clone, Debug)]
pub struct VdcHandle {
    plane: DataPlane,
    slot: VdcSlot,
    view: Arc<ArcSwap<VdcView>>,
    offloads: TunOffloads,
}

impl VdcHandle {
    /// Replaces the list of peers that may talk to us. Who is not in it any more is cut off at once.
    ///
    /// # Errors
    /// [`DataPlaneError::Busy`] or [`DataPlaneError::Stopped`].
    pub fn set_members(&self, members: Vec<Member>) -> Result<(), DataPlaneError> {
        self.plane.command(Command::Members(self.slot, members))
    }

    /// Where a peer may be tried: the answer to [`Event::EndpointsWanted`], or what it told by itself.
    ///
    /// # Errors
    /// [`DataPlaneError::Busy`] or [`DataPlaneError::Stopped`].
    pub fn set_candidates(&self, node: Key, candidates: Vec<SocketAddr>) -> Result<(), DataPlaneError> {
        self.plane.command(Command::Candidates(self.slot, node, candidates))
    }

    /// `node` could not be asked for endpoints; `why` is shown in its view.
    ///
    /// # Errors
    /// [`DataPlaneError::Busy`] or [`DataPlaneError::Stopped`].
    pub fn handle_lookup_failed(&self, node: Key, why: String) -> Result<(), DataPlaneError> {
        self.plane.command(Command::LookupFailed(self.slot, node, why))
    }

    /// A peer's signed boot nonce: a new one rebuilds its tunnel.
    ///
    /// # Errors
    /// [`DataPlaneError::Busy`] or [`DataPlaneError::Stopped`].
    pub fn handle_boot_nonce(&self, node: Key, nonce: [u8; 16]) -> Result<(), DataPlaneError> {
        self.plane.command(Command::BootNonce(self.slot, node, nonce))
    }

    /// Tunnels, paths and drops. Never waits.
    #[must_use]
    pub fn view(&self) -> Arc<VdcView> {
        self.view.load_full()
    }

    #[must_use]
    pub fn tun_offloads(&self) -> TunOffloads {
        self.offloads
    }

    /// Takes the VDC out and waits until its thread has ended. The TUN and its routes stay.
    ///
    /// # Errors
    /// [`DataPlaneError::Busy`]; a stopped data plane is success.
    pub async fn remove(&self) -> Result<(), DataPlaneError> {
        let (reply, answer) = oneshot::channel();
        match self.plane.command(Command::Remove(self.slot, reply)) {
            Err(DataPlaneError::Stopped) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                // The answer is lost only when the data plane stops, and then the VDC is out as well.
                let _ = answer.await;
                Ok(())
            }
        }
    }
}

/// One VDC as the overlay thread holds it.
struct Vdc {
    overlay: Overlay<BoringFactory>,
    port: Arc<VdcPort>,
    transmit: JoinHandle<()>,
    prefix: NodePrefix,
    ipv4: Option<Ipv4Block>,
    /// Paths of the last run, until there are members that they can belong to.
    to_restore: Vec<(Key, SocketAddr)>,
    events: mpsc::Sender<Event>,
    /// Events that wait for room in the control plane's queue.
    waiting: VecDeque<Event>,
    view: Arc<ArcSwap<VdcView>>,
    /// Version of the state machine that the published routes show.
    published: Option<u64>,
    routes: Arc<VdcRoutes>,
}

struct OverlayThread {
    shared: Arc<Shared<Command>>,
    vdcs: BTreeMap<VdcSlot, Vdc>,
    outbox: Outbox,
    /// `None` until the control plane has told.
    local_networks: Option<Vec<(IpAddr, u8)>>,
    views_renewed: Instant,
}

impl OverlayThread {
    fn new(shared: Arc<Shared<Command>>) -> Self {
        Self {
            shared,
            vdcs: BTreeMap::new(),
            outbox: Outbox::new(),
            local_networks: None,
            views_renewed: Instant::now(),
        }
    }

    fn run(mut self) {
        while !self.shared.stopping.load(Ordering::Acquire) {
            let mut mail = self.shared.mailbox.take(self.deadline(Instant::now()));
            for _ in 0..ROUND_MAILS_MAX {
                let now = Instant::now();
                match mail {
                    Some(Mail::Command(command)) => self.handle_command(command, now),
                    Some(Mail::Punt(punt)) => self.handle_punt(punt, now),
                    None => break,
                }
                mail = self.shared.mailbox.take(Some(now));
            }
            self.settle(Instant::now());
        }
        for (_, vdc) in std::mem::take(&mut self.vdcs) {
            vdc.end();
        }
    }

    /// When there is something to do without being asked. `None`: nothing, an idle node sleeps.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        let timers = self.vdcs.values().filter_map(|vdc| vdc.overlay.poll_timeout()).map(|(at, _)| at);
        let events = self.vdcs.values().any(|vdc| !vdc.waiting.is_empty()).then(|| now + EVENT_RETRY);
        // Also once the last tunnel has closed: it must not be shown for ever.
        let shown = |vdc: &Vdc| !vdc.view.load().tunnels.is_empty() || vdc.overlay.tunnels().next().is_some();
        let views = self.vdcs.values().any(shown).then(|| self.views_renewed + VIEW_INTERVAL);
        timers.chain(events).chain(views).min()
    }

    fn handle_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Add(config, slot, reply) => {
                let added = self.add(*config, slot, now);
                if let Err(Ok(_)) = reply.send(added)
                    && let Some(vdc) = self.vdcs.remove(&slot)
                {
                    // Nobody waits for it any more.
                    vdc.end();
                }
            }
            Command::Remove(slot, reply) => {
                if let Some(vdc) = self.vdcs.remove(&slot) {
                    self.publish();
                    vdc.end();
                }
                let _ = reply.send(());
            }
            Command::Members(slot, members) => self.with(slot, |vdc| vdc.set_members(&members, now)),
            Command::Candidates(slot, node, candidates) => {
                self.with(slot, |vdc| vdc.overlay.set_candidates(&node, &candidates, now));
            }
            Command::LookupFailed(slot, node, why) => {
                self.with(slot, |vdc| vdc.overlay.handle_lookup_failed(&node, why, now));
            }
            Command::BootNonce(slot, node, nonce) => {
                self.with(slot, |vdc| vdc.overlay.handle_boot_nonce(&node, nonce, now));
            }
            Command::LocalNetworks(networks) => self.set_local_networks(networks, now),
            Command::Stop => {}
        }
    }

    fn set_local_networks(&mut self, networks: Vec<(IpAddr, u8)>, now: Instant) {
        if self.local_networks.as_ref() == Some(&networks) {
            return;
        }
        for vdc in self.vdcs.values_mut() {
            vdc.overlay.set_local_networks(networks.clone(), now);
            if self.local_networks.is_some() {
                vdc.overlay.handle_network_change(now);
            }
        }
        self.local_networks = Some(networks);
    }

    fn with(&mut self, slot: VdcSlot, apply: impl FnOnce(&mut Vdc)) {
        if let Some(vdc) = self.vdcs.get_mut(&slot) {
            apply(vdc);
        }
    }

    fn add(&mut self, config: VdcConfig, slot: VdcSlot, now: Instant) -> Result<Arc<ArcSwap<VdcView>>, DataPlaneError> {
        let VdcConfig { wireguard_secret, prefix, ipv4, seed, members, last_paths, tun, events } = config;
        let port = Arc::new(VdcPort::new(slot, tun).map_err(DataPlaneError::Thread)?);
        let first = slot << TUNNEL_BITS;
        let overlay_config = OverlayConfig { prefix, ipv4, indices: first..=first + (1 << TUNNEL_BITS) - 1 };
        let mut overlay = Overlay::new(overlay_config, BoringFactory::new(wireguard_secret), seed, now);
        overlay.set_local_networks(self.local_networks.clone().unwrap_or_default(), now);
        let view: Arc<ArcSwap<VdcView>> = Arc::default();
        let (shared, thread_port) = (Arc::clone(&self.shared), Arc::clone(&port));
        let transmit = spawn_thread("mesh-tx", move || datapath::transmit(&shared, &thread_port))?;
        let routes = Arc::new(VdcRoutes::new(prefix, ipv4, &[]));
        let shown = Arc::clone(&view);
        let waiting = VecDeque::new();
        let mut vdc = Vdc {
            overlay,
            port,
            transmit,
            prefix,
            ipv4,
            to_restore: last_paths,
            events,
            waiting,
            view,
            published: None,
            routes,
        };
        vdc.set_members(&members, now);
        self.vdcs.insert(slot, vdc);
        Ok(shown)
    }

    fn handle_punt(&mut self, punt: Punt, now: Instant) {
        match punt {
            Punt::Packet { slot, packet } => self.with(slot, |vdc| vdc.overlay.handle_tun_packet(&packet, now)),
            Punt::Datagram { remote, datagram } => self.handle_datagram(remote, &datagram, now),
            Punt::UnknownIndex { remote } => {
                for vdc in self.vdcs.values_mut() {
                    vdc.overlay.handle_unknown_index(path(remote), now);
                }
            }
            Punt::Roamed { slot, index, remote } => {
                self.with(slot, |vdc| vdc.overlay.handle_roamed(TunnelIndex(index), path(remote), now));
            }
            Punt::Probe { slot, index, remote, packet } => {
                self.with(slot, |vdc| vdc.overlay.handle_probe(TunnelIndex(index), path(remote), &packet, now));
            }
        }
    }

    /// Finds the VDC of a datagram: by the receiver index where there is one, otherwise by asking each.
    fn handle_datagram(&mut self, remote: SocketAddr, datagram: &[u8], now: Instant) {
        if let Some(receiver) = receiver_index(datagram) {
            let slot = receiver >> (SESSION_BITS + TUNNEL_BITS);
            self.with(slot, |vdc| vdc.overlay.handle_datagram(path(remote), datagram, now));
            return;
        }
        // mac1 says which VDC's key an initiation is for.
        match self.vdcs.values_mut().find(|vdc| vdc.overlay.is_for_us(datagram)) {
            Some(vdc) => vdc.overlay.handle_datagram(path(remote), datagram, now),
            None => self.shared.counters.garbage_dropped.increment(),
        }
    }

    /// Lets timers run, sends, publishes, tells.
    fn settle(&mut self, now: Instant) {
        let shared = Arc::clone(&self.shared);
        let renew_views = now.saturating_duration_since(self.views_renewed) >= VIEW_INTERVAL;
        for vdc in self.vdcs.values_mut() {
            vdc.overlay.handle_timeout(now);
        }
        // Routes first: an answer to what is sent now may come before the next round.
        self.publish();
        for vdc in self.vdcs.values_mut() {
            while let Some(transmit) = vdc.overlay.poll_transmit() {
                let space = self.outbox.reserve(&shared.socket, &shared.counters);
                let length = transmit.datagram.len().min(space.len());
                space[..length].copy_from_slice(&transmit.datagram[..length]);
                self.outbox.commit(&shared.socket, transmit.path.remote, length);
            }
            while let Some(packet) = vdc.overlay.poll_tun() {
                let header = VnetHeader::default().encode();
                shared.counters.tun_writes.increment();
                if vdc.port.tun.write(&[IoSlice::new(&header), IoSlice::new(&packet)]).is_err() {
                    shared.counters.tun_write_dropped.increment();
                }
            }
            vdc.tell(&shared.counters, now);
            if renew_views {
                vdc.renew_view(now);
            }
        }
        self.outbox.flush(&shared.socket, &shared.counters);
        if renew_views {
            self.views_renewed = now;
        }
    }

    /// Shows the packet threads the tunnels as they are now, if they changed.
    fn publish(&mut self) {
        let mut changed = self.shared.snapshot.load().vdcs.len() != self.vdcs.len();
        for vdc in self.vdcs.values_mut() {
            changed |= vdc.refresh_routes();
        }
        if changed {
            let vdcs: HashMap<_, _> = self.vdcs.iter().map(|(slot, vdc)| (*slot, Arc::clone(&vdc.routes))).collect();
            self.shared.snapshot.store(Arc::new(Snapshot::new(vdcs)));
        }
    }
}

impl Vdc {
    fn set_members(&mut self, members: &[Member], now: Instant) {
        self.overlay.set_members(members, now);
        if !members.is_empty() {
            self.overlay.restore(&std::mem::take(&mut self.to_restore), now);
        }
    }

    /// Rebuilds the routes if the state machine moved on; tells whether.
    fn refresh_routes(&mut self) -> bool {
        let version = self.overlay.snapshot_version();
        if self.published == Some(version) {
            return false;
        }
        let routes: Vec<_> = self
            .overlay
            .tunnels()
            .map(|live| {
                Arc::new(Route {
                    slot: self.port.slot,
                    port: Arc::clone(&self.port),
                    tunnel: Arc::clone(live.noise.tunnel()),
                    prefix: live.prefix,
                    ipv4: live.ipv4,
                    index: live.index.0,
                    remote: live.path.map(|path| path.remote),
                    told: Told::default(),
                })
            })
            .collect();
        self.routes = Arc::new(VdcRoutes::new(self.prefix, self.ipv4, &routes));
        self.published = Some(version);
        true
    }

    /// Hands events to the control plane as far as it has room.
    fn tell(&mut self, counters: &Counters, now: Instant) {
        while let Some(event) = self.overlay.poll_event() {
            if self.waiting.len() < EVENTS_WAITING_MAX {
                self.waiting.push_back(event);
                continue;
            }
            counters.events_lost.increment();
            if let Event::EndpointsWanted(node) = event {
                // An unasked question must not count as one that is being answered.
                self.overlay.handle_lookup_failed(&node, "the control plane is overloaded".to_owned(), now);
            }
        }
        while let Some(event) = self.waiting.pop_front() {
            match self.events.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(event)) => {
                    self.waiting.push_front(event);
                    return;
                }
                // Nobody listens any more; the VDC is about to be removed.
                Err(mpsc::error::TrySendError::Closed(_)) => self.waiting.clear(),
            }
        }
    }

    fn renew_view(&self, now: Instant) {
        let drops = DropReason::ALL.map(|reason| (reason, self.overlay.drops().of(reason))).to_vec();
        let (tunnels, last_paths) = (self.overlay.views(now), self.overlay.last_paths());
        self.view.store(Arc::new(VdcView { tunnels, last_paths, drops }));
    }

    fn end(self) {
        self.port.stop();
        join(self.transmit);
    }
}

fn path(remote: SocketAddr) -> PathAddress {
    PathAddress::main(remote)
}

/// The receiver index of a handshake response, cookie reply or data message.
fn receiver_index(datagram: &[u8]) -> Option<u32> {
    match classify(datagram) {
        Kind::HandshakeResponse { receiver } | Kind::CookieReply { receiver } | Kind::Data { receiver } => {
            Some(receiver)
        }
        Kind::HandshakeInitiation | Kind::Quic | Kind::Stun | Kind::Frame | Kind::Garbage => None,
    }
}
