//! The packet threads as the rest of the daemon sees them: one fabric per box, one data plane per VDC on it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use meshd_tun::{AddressWatch, DataPlaneConfig, NetworkConfig, TUN_INTERFACE, VdcConfig, VdcHandle, VdcNetwork};
use tokio::sync::mpsc;
use vdc::roster::MemberView;
use vdc::{Ipv4Block, Key, Name, NodePrefix, VdcId};
use vdc_api::{self as api, ApiError, ErrorCode};
use vdc_overlay::{Event, Member, PathAddress, Source, Tier, TunnelState, TunnelView};

use crate::config::Config;
use crate::entropy::random;
use crate::error::{system, with_causes};
use crate::views::{CandidateInfo, TunnelInfo};

/// Events of one VDC that wait for its task; the overlay thread keeps more itself, bounded.
const EVENTS_MAX: usize = 256;

/// The box's one data plane.
#[derive(Debug)]
pub(crate) struct Fabric {
    plane: meshd_tun::DataPlane,
}

impl Fabric {
    /// Binds the socket and starts the threads.
    ///
    /// # Errors
    /// If the port is in use or cannot be had.
    pub(crate) fn start(config: &Config) -> anyhow::Result<Self> {
        let plane = meshd_tun::DataPlane::start(DataPlaneConfig { port: config.network.port });
        plane.map(|plane| Self { plane }).map_err(|error| match &error {
            meshd_tun::DataPlaneError::Socket(socket) => {
                let hint = socket.hint();
                anyhow::Error::new(error).context(hint)
            }
            _ => error.into(),
        })
    }

    /// Packets that the packet threads dropped, by reason.
    pub(crate) fn counters(&self) -> Vec<(&'static str, u64)> {
        self.plane.counters().drops().collect()
    }

    pub(crate) fn shutdown(&self) {
        self.plane.stop();
    }
}

/// What one VDC needs of this box.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) vdc: VdcId,
    pub(crate) alias: Name,
    pub(crate) prefix: NodePrefix,
    pub(crate) ipv4: Option<Ipv4Block>,
    pub(crate) ipv4_ranges: Vec<Ipv4Block>,
    pub(crate) host_ipv4: bool,
    pub(crate) wg_secret: [u8; 32],
    pub(crate) last_paths: Vec<(Key, SocketAddr)>,
    pub(crate) door_port: u16,
}

/// What the data plane tells a VDC's task.
#[derive(Debug)]
pub(crate) enum DataEvent {
    EndpointsWanted(Key),
    PathChanged,
    AddressesChanged(Vec<IpAddr>),
}

/// One VDC's namespace, TUN and tunnels.
#[derive(Debug)]
pub(crate) struct DataPlane {
    plane: meshd_tun::DataPlane,
    handle: VdcHandle,
    network: Arc<VdcNetwork>,
    config: Mutex<NetworkConfig>,
    door_port: u16,
    members: Mutex<Vec<Member>>,
}

/// A VDC's data plane that was just attached.
pub(crate) struct Attached {
    pub(crate) data: DataPlane,
    pub(crate) events: mpsc::Receiver<DataEvent>,
    /// The host's own underlay addresses at this moment.
    pub(crate) addresses: Vec<IpAddr>,
    /// Must run for as long as the VDC is served: tells what the kernel and the tunnels report.
    pub(crate) bridge: Bridge,
}

impl DataPlane {
    /// Makes or adopts the namespace, the TUN and the host port, and starts carrying packets.
    pub(crate) async fn attach(fabric: &Fabric, network: Network) -> Result<Attached, ApiError> {
        let config = NetworkConfig {
            vdc: network.vdc,
            name: network.alias.clone(),
            prefix: network.prefix,
            ipv4: network.ipv4,
            ipv4_ranges: network.ipv4_ranges,
            host_ipv4: network.host_ipv4,
            mtu_bytes: meshd_tun::MTU_BYTES,
        };
        let ensured = config.clone();
        let made = tokio::task::spawn_blocking(move || VdcNetwork::ensure(&ensured)).await;
        let (vdc_network, tun) = made
            .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?
            .map_err(|error| network_error(&error))?;
        let mut watch = AddressWatch::new().map_err(|error| system("cannot watch this host's addresses", &error))?;
        let networks = watch.changed().await.map_err(|error| system("cannot list this host's addresses", &error))?;
        let told = fabric.plane.set_local_networks(networks.clone());
        told.map_err(|error| system("the data plane does not answer", &error))?;
        let (overlay_in, overlay_events) = mpsc::channel(EVENTS_MAX);
        let vdc = VdcConfig {
            wireguard_secret: network.wg_secret,
            prefix: network.prefix,
            ipv4: network.ipv4,
            seed: random(),
            members: vec![],
            last_paths: network.last_paths,
            tun,
            events: overlay_in,
        };
        let handle =
            fabric.plane.add_vdc(vdc).await.map_err(|error| system("the VDC's tunnels do not start", &error))?;
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let addresses = networks.iter().map(|(ip, _)| *ip).collect();
        let bridge = Bridge { plane: fabric.plane.clone(), watch, overlay_events, events: events_in };
        let data = Self {
            plane: fabric.plane.clone(),
            handle,
            network: Arc::new(vdc_network),
            config: Mutex::new(config),
            door_port: network.door_port,
            members: Mutex::default(),
        };
        Ok(Attached { data, events, addresses, bridge })
    }

    /// What stops the VDC's packets.
    pub(crate) fn handle(&self) -> VdcHandle {
        self.handle.clone()
    }

    /// Takes the VDC's interfaces and namespace away. Its packets must have been stopped.
    pub(crate) async fn remove(alias: &Name, vdc: VdcId) -> Result<(), ApiError> {
        let alias = alias.clone();
        let removed = tokio::task::spawn_blocking(move || VdcNetwork::remove(&alias, &vdc)).await;
        removed
            .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?
            .map_err(|error| network_error(&error))
    }

    /// What workloads of this VDC are connected to.
    pub(crate) fn network(&self) -> (Arc<VdcNetwork>, NetworkConfig) {
        let config = self.config.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        (Arc::clone(&self.network), config)
    }

    pub(crate) fn namespace(&self) -> PathBuf {
        self.network.netns().path().to_owned()
    }

    pub(crate) fn bind_tcp(&self, address: SocketAddr) -> io::Result<std::net::TcpListener> {
        self.network.netns().bind_tcp(address)
    }

    /// A socket inside the VDC's namespace for a connection to another node's infra plane.
    pub(crate) fn tcp_socket(&self, source: SocketAddr) -> io::Result<socket2::Socket> {
        self.network.netns().tcp_socket(source)
    }

    /// Who may talk. Whoever is not in it any more is cut off at once.
    pub(crate) fn set_members(&self, peers: &[&MemberView]) {
        let members: Vec<Member> =
            peers.iter().map(|m| Member { node: m.node, wg: m.wg, prefix: m.prefix, ipv4: m.ipv4 }).collect();
        let mut last = self.members.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *last == members {
            return;
        }
        // Remembered only when it was taken: the next refresh tries again otherwise.
        if told(self.handle.set_members(members.clone())) {
            *last = members;
        }
    }

    pub(crate) fn set_candidates(&self, node: Key, candidates: &[SocketAddr]) {
        told(self.handle.set_candidates(node, candidates.to_vec()));
    }

    pub(crate) fn endpoints_failed(&self, node: Key, why: String) {
        told(self.handle.handle_lookup_failed(node, why));
    }

    pub(crate) fn boot_nonce(&self, node: Key, nonce: [u8; 16]) {
        told(self.handle.handle_boot_nonce(node, nonce));
    }

    pub(crate) fn tunnels(&self) -> BTreeMap<Key, TunnelInfo> {
        let now = Instant::now();
        self.handle.view().tunnels.iter().map(|tunnel| (tunnel.node, tunnel_info(tunnel, now))).collect()
    }

    pub(crate) fn last_paths(&self) -> Vec<(Key, SocketAddr)> {
        self.handle.view().last_paths.clone()
    }

    /// UDP port of the data plane.
    pub(crate) fn port(&self) -> u16 {
        self.plane.port()
    }

    pub(crate) fn door_port(&self) -> u16 {
        self.door_port
    }

    pub(crate) fn view(&self) -> api::DataPathView {
        let (socket, tun) = (self.plane.socket_offloads(), self.handle.tun_offloads());
        let by_threads: u64 = self.plane.counters().drops().map(|(_, packets)| packets).sum();
        let by_overlay: u64 = self.handle.view().drops.iter().map(|(_, packets)| packets).sum();
        api::DataPathView {
            namespace: self.namespace().display().to_string(),
            device: TUN_INTERFACE.into(),
            mtu_bytes: meshd_tun::MTU_BYTES,
            udp_gso: socket.segmentation,
            udp_gro: socket.receive,
            tun_offload: tun.checksum && tun.tcp4 && tun.tcp6,
            packets_dropped: by_threads + by_overlay,
        }
    }

    /// Index of the host's interface into the VDC.
    pub(crate) fn host_interface_index(&self) -> Option<u32> {
        let path = format!("/sys/class/net/{}/ifindex", self.network.host_interface());
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    pub(crate) fn host_addresses(&self) -> Vec<IpAddr> {
        self.config.lock().unwrap_or_else(std::sync::PoisonError::into_inner).host_addresses()
    }

    /// Leads the host's IPv4 routes into this VDC, or no longer. Blocks for some milliseconds.
    pub(crate) fn set_host_ipv4(&self, on: bool) -> Result<(), ApiError> {
        let mut config = self.config.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        config.host_ipv4 = on;
        tokio::task::block_in_place(|| self.network.update(&config)).map_err(|error| network_error(&error))
    }
}

/// Carries what the kernel and the tunnels report to the VDC's task.
#[derive(Debug)]
pub(crate) struct Bridge {
    plane: meshd_tun::DataPlane,
    watch: AddressWatch,
    overlay_events: mpsc::Receiver<Event>,
    events: mpsc::Sender<DataEvent>,
}

impl Bridge {
    pub(crate) async fn run(mut self) {
        loop {
            let event = tokio::select! {
                // cancel-safe: a queue keeps what was not taken.
                event = self.overlay_events.recv() => match event {
                    Some(Event::EndpointsWanted(node)) => DataEvent::EndpointsWanted(node),
                    Some(Event::PathChanged(_) | Event::TunnelUp(_) | Event::TunnelDown(_)) => DataEvent::PathChanged,
                    None => return, // the data plane has stopped
                },
                // cancel-safe: what was not told yet is told by the next call.
                changed = self.watch.changed() => match changed {
                    Ok(networks) => {
                        told(self.plane.set_local_networks(networks.clone()));
                        DataEvent::AddressesChanged(networks.into_iter().map(|(ip, _)| ip).collect())
                    }
                    Err(error) => {
                        tracing::error!(%error, "this host's addresses are no longer watched");
                        return self.only_tunnels().await;
                    }
                },
            };
            if self.events.send(event).await.is_err() {
                return; // the VDC's task has ended
            }
        }
    }

    async fn only_tunnels(mut self) {
        while let Some(event) = self.overlay_events.recv().await {
            let event = match event {
                Event::EndpointsWanted(node) => DataEvent::EndpointsWanted(node),
                Event::PathChanged(_) | Event::TunnelUp(_) | Event::TunnelDown(_) => DataEvent::PathChanged,
            };
            if self.events.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// A command that the overlay thread did not take is repeated by the next refresh or asked for again.
fn told(result: Result<(), meshd_tun::DataPlaneError>) -> bool {
    if let Err(error) = &result {
        tracing::warn!(%error, "the data plane did not take a command");
    }
    result.is_ok()
}

fn network_error(error: &meshd_tun::NetworkError) -> ApiError {
    let api = ApiError::new(ErrorCode::System, format!("the VDC's network was not set up: {error}"));
    let api = with_causes(api, std::error::Error::source(error));
    match error.hint() {
        Some(hint) => api.hint(hint),
        None => api,
    }
}

fn kind(tier: Tier) -> api::PathKind {
    match tier {
        Tier::Lan => api::PathKind::Lan,
        Tier::Host | Tier::Reflexive => api::PathKind::Direct,
        Tier::Relayed => api::PathKind::Relay,
    }
}

fn tunnel_info(tunnel: &TunnelView, now: Instant) -> TunnelInfo {
    let candidates = tunnel.candidates.iter().map(|candidate| CandidateInfo {
        endpoint: plain(candidate.address),
        kind: kind(candidate.tier),
        rtt: candidate.rtt,
        in_use: tunnel.path.is_some_and(|(path, _)| path == candidate.address),
        source: match candidate.source {
            Source::Asked => "asked",
            Source::Observed => "observed",
            Source::LastSeen => "last-seen",
        },
    });
    TunnelInfo {
        up: tunnel.state == TunnelState::Up,
        connecting: tunnel.state == TunnelState::Connecting && tunnel.reason.is_none(),
        path: tunnel.path.map(|(path, tier)| (kind(tier), plain(path))),
        rtt: tunnel.rtt,
        handshake_age: tunnel.noise.handshake_age,
        received_age: tunnel.noise.last_received.map(|at| now.saturating_duration_since(at)),
        bytes_sent: tunnel.noise.sent_bytes,
        bytes_received: tunnel.noise.received_bytes,
        reason: tunnel.reason.clone(),
        candidates: candidates.collect(),
    }
}

/// An IPv4 address as such, not as mapped into IPv6.
fn plain(path: PathAddress) -> SocketAddr {
    SocketAddr::new(path.remote.ip().to_canonical(), path.remote.port())
}

/// The IPv4 networks that this host has routes to, its default route left out.
pub(crate) fn ipv4_routes() -> Vec<Ipv4Block> {
    // proc(5): destination and mask in hexadecimal, host byte order, in columns 2 and 8.
    let text = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let block = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let hex = |index: usize| u32::from_str_radix(columns.get(index)?, 16).ok().map(u32::swap_bytes);
        let (network, mask) = (hex(1)?, hex(7)?);
        let length = u8::try_from(mask.count_ones()).ok().filter(|length| *length > 0)?;
        Ipv4Block::new(Ipv4Addr::from_bits(network & mask), length).ok()
    };
    text.lines().skip(1).filter_map(block).collect()
}
