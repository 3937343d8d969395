//! A VDC's place in the kernel: namespace, TUN, host port, addresses, routes.
//!
//! ```text
//!   host namespace                      meshd-NAME namespace
//!   mesh-NAME  ::1/128, IPv4 host /32   host0  fe80::1, 169.254.1.1      lo     ::0/128 (infra plane)
//!      └──────────── veth, routed ─────────┘                             mesh0  TUN: VDC /48, IPv4 ranges
//!   VDC /48 via fe80::1                 ::1/128, IPv4 host /32 -> host0   own /96, own block: unreachable
//! ```
//! Every step is an `ensure`: it looks first and changes only what differs, so a restarted daemon adopts what it finds
//! and no flow notices. [`VdcNetwork::remove`] leaves nothing behind.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use futures::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use vdc::address::{HOST, INFRA};
use vdc::{Ipv4Block, Name, NodePrefix, VdcId};

use crate::netns::{self, Netns};
use crate::tun::{TUN_INTERFACE, Tun};

/// The usual MTU of everything inside a VDC in bytes: 1500 - 40 (IPv6) - 8 (UDP) - 32 (WireGuard).
pub const MTU_BYTES: u32 = 1420;

/// Least MTU in bytes: IPv6 demands it (RFC 8200 section 5).
pub const MTU_BYTES_MIN: u32 = 1280;

/// Headers of a TCP packet in bytes: IPv6 40, TCP 20, timestamps 12.
const TCP_HEADER_BYTES: u32 = 72;

/// The longest super-packet TCP may build, so that one read becomes one GSO send: with WireGuard's 32 bytes and the
/// headers repeated in front of each segment it must fit 65,507 bytes and 64 segments. 60,732 bytes at an MTU of 1420.
fn gso_bytes_max(mtu_bytes: u32) -> u32 {
    let mtu = mtu_bytes.max(MTU_BYTES_MIN);
    let segments = (65_507 / (mtu + 32)).clamp(1, 64);
    segments * (mtu - TCP_HEADER_BYTES) + TCP_HEADER_BYTES
}

/// Packets the TUN queues before it drops.
const TUN_QUEUE_PACKETS: u32 = 1000;

/// The host port's interface inside the VDC's namespace.
pub const HOST_PORT_INTERFACE: &str = "host0";

/// Gateways that every port of a VDC sees.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Hardware addresses of the host port, fixed so that neighbours can be permanent (locally administered, "mesh").
pub(crate) const HOST_SIDE_ADDRESS: [u8; 6] = [0x02, b'm', b'e', b's', b'h', 1];
pub(crate) const INSIDE_ADDRESS: [u8; 6] = [0x02, b'm', b'e', b's', b'h', 2];

/// Marks our routes, so that stale ones can be told from an administrator's. Any free value does.
pub(crate) const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(109);

/// Longest interface name (`IFNAMSIZ` - 1).
pub(crate) const INTERFACE_NAME_MAX: usize = 15;

/// What a VDC looks like on this node.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    pub vdc: VdcId,
    /// The VDC's name on this node.
    pub name: Name,
    /// This node's own prefix.
    pub prefix: NodePrefix,
    /// This node's own IPv4 block, if its site has one.
    pub ipv4: Option<Ipv4Block>,
    /// The IPv4 blocks of all sites.
    pub ipv4_ranges: Vec<Ipv4Block>,
    /// MTU of the TUN and of all ports in bytes, mostly [`MTU_BYTES`]; at least [`MTU_BYTES_MIN`].
    pub mtu_bytes: u32,
    /// Whether the host itself reaches the IPv4 ranges through this VDC (at most one VDC per host).
    pub host_ipv4: bool,
}

impl NetworkConfig {
    /// `meshd-NAME`.
    #[must_use]
    pub fn netns_name(&self) -> String {
        netns_name(&self.name)
    }

    /// `mesh-NAME`, shortened with digits of the VDC's id where NAME is longer than 10 characters.
    #[must_use]
    pub fn host_interface(&self) -> String {
        host_interface(&self.name, &self.vdc)
    }

    pub(crate) fn mtu(&self) -> u32 {
        self.mtu_bytes.max(MTU_BYTES_MIN)
    }

    /// The host's own addresses in the VDC.
    #[must_use]
    pub fn host_addresses(&self) -> Vec<IpAddr> {
        let v4 = self.ipv4.and_then(|block| block.address(HOST)).map(IpAddr::V4);
        std::iter::once(IpAddr::V6(self.prefix.address(HOST))).chain(v4).collect()
    }
}

fn netns_name(name: &Name) -> String {
    format!("meshd-{name}")
}

fn host_interface(name: &Name, vdc: &VdcId) -> String {
    let plain = format!("mesh-{name}");
    if plain.len() <= INTERFACE_NAME_MAX {
        return plain;
    }
    let id = vdc.to_string();
    format!("mesh-{}-{}", &name.as_str()[..5], &id[..4])
}

/// Why the kernel's network is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("interface {interface} exists and is not this VDC's")]
    NameTaken { interface: String },
    #[error("the TUN of VDC {name} is held by another process")]
    TunBusy { name: Name },
    #[error("cannot open the TUN of VDC {name}")]
    Tun {
        name: Name,
        #[source]
        source: io::Error,
    },
    #[error("cannot make the network namespace {name}")]
    Namespace {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot set {key}")]
    Sysctl {
        key: String,
        #[source]
        source: io::Error,
    },
    #[error("netlink: {step}")]
    Netlink {
        step: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("interface {interface} is missing")]
    NoInterface { interface: String },
    #[error("cannot talk to the kernel")]
    Io(#[from] io::Error),
}

impl NetworkError {
    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NameTaken { interface } => {
                Some(format!("rename or delete it (`ip link delete {interface}`), or give the VDC another local name"))
            }
            Self::TunBusy { .. } => Some("another meshd runs with this VDC: stop it first".to_owned()),
            Self::Tun { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("load the kernel module: `modprobe tun`".to_owned())
            }
            Self::Tun { source, .. } | Self::Namespace { source, .. } | Self::Sysctl { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("run meshd as root".to_owned())
            }
            _ => None,
        }
    }
}

/// A VDC's network, set up.
#[derive(Debug)]
pub struct VdcNetwork {
    netns: Netns,
    host_interface: String,
}

impl VdcNetwork {
    /// Makes or adopts everything of the picture above and attaches to the TUN. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`NetworkError`]; what was made before stays and is adopted by the next call.
    pub fn ensure(config: &NetworkConfig) -> Result<(Self, Tun), NetworkError> {
        let name = config.netns_name();
        let netns = Netns::ensure(&name).map_err(|source| NetworkError::Namespace { name, source })?;
        let tun = netns.run(|| {
            Tun::open(TUN_INTERFACE, config.mtu()).map_err(|source| match source.raw_os_error() {
                Some(libc::EBUSY) => NetworkError::TunBusy { name: config.name.clone() },
                _ => NetworkError::Tun { name: config.name.clone(), source },
            })
        })?;
        let network = Self { netns, host_interface: config.host_interface() };
        network.update(config)?;
        Ok((network, tun))
    }

    /// Brings addresses and routes to a changed `config` (IPv4 blocks come and go). Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`NetworkError`]; calling again continues.
    pub fn update(&self, config: &NetworkConfig) -> Result<(), NetworkError> {
        let inside = Inside { config };
        let outside = Outside { config, interface: &self.host_interface, netns: &self.netns };
        with_netlink(Some(&self.netns), async |netlink| inside.ensure_base(&netlink).await)?;
        let port_inside = with_netlink(Some(&self.netns), async |netlink| {
            Ok(link_index(&netlink, HOST_PORT_INTERFACE).await?.is_some())
        })?;
        with_netlink(None, async |netlink| outside.ensure_port(&netlink, port_inside).await)?;
        with_netlink(Some(&self.netns), async |netlink| inside.ensure_port(&netlink).await)?;
        with_netlink(None, async |netlink| outside.ensure_routes(&netlink).await)
    }

    /// Takes everything away: host port, TUN, namespace. What is not there is success. The data path of this VDC must
    /// have stopped.
    ///
    /// # Errors
    /// [`NetworkError`]; calling again continues.
    pub fn remove(name: &Name, vdc: &VdcId) -> Result<(), NetworkError> {
        let interface = host_interface(name, vdc);
        with_netlink(None, async |netlink| match find_link(&netlink, &interface).await? {
            Some(link) if is_owned(&link, vdc) => delete_link(&netlink, link.header.index, &interface).await,
            _ => Ok(()),
        })?;
        let netns_name = netns_name(name);
        let failed = |source| NetworkError::Namespace { name: netns_name.clone(), source };
        if let Some(netns) = Netns::open(&netns_name).map_err(failed)? {
            with_netlink(Some(&netns), async |netlink| match link_index(&netlink, TUN_INTERFACE).await? {
                Some(index) => delete_link(&netlink, index, TUN_INTERFACE).await,
                None => Ok(()),
            })?;
        }
        Netns::remove(&netns_name).map_err(failed)
    }

    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The host port's name in the host's namespace.
    #[must_use]
    pub fn host_interface(&self) -> &str {
        &self.host_interface
    }

    /// The host port's index in the host's namespace, as resolvers want it. Must be called there.
    ///
    /// # Errors
    /// [`NetworkError::NoInterface`] if somebody deleted it.
    pub fn host_interface_index(&self) -> Result<u32, NetworkError> {
        with_netlink(None, async |netlink| existing_index(&netlink, &self.host_interface).await)
    }
}

/// The IPv4 destinations that the caller's namespace has routes to, the default route and our own left out: a VDC's
/// range must not overlap them. Blocks for some milliseconds.
///
/// # Errors
/// [`NetworkError`].
pub fn ipv4_routes() -> Result<Vec<Ipv4Block>, NetworkError> {
    with_netlink(None, async |netlink| {
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Vec<RouteMessage> =
            netlink.route().get(filter).execute().try_collect().await.step(|| "list routes".to_owned())?;
        let mut blocks: Vec<Ipv4Block> = routes
            .iter()
            .filter(|route| route.header.protocol != ROUTE_PROTOCOL && route.header.kind == RouteType::Unicast)
            .filter_map(|route| {
                let network = route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(network)) => Some(*network),
                    _ => None,
                })?;
                Ipv4Block::new(network, route.header.destination_prefix_length).ok()
            })
            .filter(|block| block.length() > 0)
            .collect();
        blocks.sort_unstable();
        blocks.dedup();
        Ok(blocks)
    })
}

/// Runs netlink requests in a namespace (`None`: the caller's) on a thread of their own, and waits for them.
pub(crate) fn with_netlink<T: Send>(
    namespace: Option<&Netns>,
    work: impl AsyncFnOnce(Handle) -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    netns::on_own_thread(|| {
        if let Some(namespace) = namespace {
            crate::sys::enter_netns(namespace.as_fd())?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _messages) = rtnetlink::new_connection()?;
            tokio::select! {
                // cancel-safe: the connection is dropped with the runtime when the work is done.
                () = connection => Err(NetworkError::Io(io::Error::other("the netlink connection ended"))),
                // cancel-safe: finishes or is dropped with an error.
                result = work(handle) => result,
            }
        })
    })
}

pub(crate) trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, NetworkError>;
}

impl<T> Step<T> for Result<T, rtnetlink::Error> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, NetworkError> {
        self.map_err(|source| NetworkError::Netlink { step: step(), source })
    }
}

pub(crate) fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

/// Sets `net/KEY` of the calling thread's namespace.
pub(crate) fn ensure_sysctl(key: &str, value: &str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/net/{key}");
    let write = || {
        if fs::read_to_string(&path)?.trim() == value {
            return Ok(());
        }
        fs::write(&path, value)
    };
    write().map_err(|source| NetworkError::Sysctl { key: format!("net/{key}"), source })
}

/// No address of its own, no router advertisement, no redirect: the interface does only what we say.
pub(crate) fn ensure_quiet(interface: &str) -> Result<(), NetworkError> {
    for (key, value) in [("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_redirects", "0"), ("accept_dad", "0")] {
        ensure_sysctl(&format!("ipv6/conf/{interface}/{key}"), value)?;
    }
    for key in ["accept_redirects", "send_redirects"] {
        ensure_sysctl(&format!("ipv4/conf/{interface}/{key}"), "0")?;
    }
    Ok(())
}

pub(crate) async fn find_link(netlink: &Handle, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
    let mut links = Box::pin(netlink.link().get().match_name(name).execute());
    match links.try_next().await {
        Ok(link) => Ok(link),
        Err(error) if is_errno(&error, libc::ENODEV) => Ok(None),
        Err(source) => Err(NetworkError::Netlink { step: format!("look for {name}"), source }),
    }
}

pub(crate) async fn link_index(netlink: &Handle, name: &str) -> Result<Option<u32>, NetworkError> {
    Ok(find_link(netlink, name).await?.map(|link| link.header.index))
}

pub(crate) async fn existing_index(netlink: &Handle, name: &str) -> Result<u32, NetworkError> {
    link_index(netlink, name).await?.ok_or_else(|| NetworkError::NoInterface { interface: name.to_owned() })
}

pub(crate) async fn delete_link(netlink: &Handle, index: u32, name: &str) -> Result<(), NetworkError> {
    match netlink.link().del(index).execute().await {
        Err(error) if is_errno(&error, libc::ENODEV) => Ok(()),
        result => result.step(|| format!("delete {name}")),
    }
}

/// Whether a host port is this VDC's: it says so, or it was left between being made and being marked.
pub(crate) fn is_owned(link: &LinkMessage, vdc: &VdcId) -> bool {
    let alias = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    });
    match alias {
        Some(alias) => alias == owner_mark(vdc),
        None => link.attributes.contains(&LinkAttribute::Address(HOST_SIDE_ADDRESS.to_vec())),
    }
}

/// The interface alias that says whose a host port is.
pub(crate) const OWNER_MARK: &str = "meshd VDC ";

pub(crate) fn owner_mark(vdc: &VdcId) -> String {
    format!("{OWNER_MARK}{vdc}")
}

/// Sets MTU and super-packet size and brings the interface up.
pub(crate) async fn ensure_up(
    netlink: &Handle,
    name: &str,
    mtu_bytes: u32,
    queue: Option<u32>,
) -> Result<u32, NetworkError> {
    let index = existing_index(netlink, name).await?;
    let mut message = LinkUnspec::new_with_index(index)
        .mtu(mtu_bytes)
        .append_extra_attribute(LinkAttribute::GsoMaxSize(gso_bytes_max(mtu_bytes)))
        .up();
    if let Some(queue) = queue {
        message = message.txqueuelen(queue);
    }
    netlink.link().change(message.build()).execute().await.step(|| format!("bring {name} up"))?;
    Ok(index)
}

/// Prefix length of a route to one address.
pub(crate) fn host_length(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Gives the interface exactly these addresses (each as a host route's), without duplicate address detection.
pub(crate) async fn ensure_addresses(netlink: &Handle, index: u32, wanted: &[IpAddr]) -> Result<(), NetworkError> {
    let present: Vec<_> = netlink
        .address()
        .get()
        .set_link_index_filter(index)
        .execute()
        .try_collect()
        .await
        .step(|| format!("list addresses of interface {index}"))?;
    for message in present {
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) | AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        let Some(address) = address else { continue };
        if !wanted.contains(&address) && !address.is_loopback() {
            netlink.address().del(message).execute().await.step(|| format!("remove address {address}"))?;
        }
    }
    for address in wanted {
        let mut request = netlink.address().add(index, *address, host_length(address)).replace();
        let message = request.message_mut();
        message.header.flags |= AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Permanent));
        request.execute().await.step(|| format!("add address {address}"))?;
    }
    Ok(())
}

pub(crate) async fn ensure_neighbour(
    netlink: &Handle,
    index: u32,
    address: IpAddr,
    hardware: [u8; 6],
) -> Result<(), NetworkError> {
    netlink
        .neighbours()
        .add(index, address)
        .link_layer_address(&hardware)
        .state(NeighbourState::Permanent)
        .replace()
        .execute()
        .await
        .step(|| format!("set neighbour {address}"))
}

/// One route of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    destination: IpAddr,
    length: u8,
    /// `None`: unreachable.
    interface: Option<u32>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
}

impl Route {
    fn direct(destination: IpAddr, length: u8, interface: u32) -> Self {
        Self { destination, length, interface: Some(interface), gateway: None, source: None }
    }

    fn unreachable(destination: IpAddr, length: u8) -> Self {
        Self { destination, length, interface: None, gateway: None, source: None }
    }

    fn message(&self) -> RouteMessage {
        let kind = if self.interface.is_some() { RouteType::Unicast } else { RouteType::Unreachable };
        match self.destination {
            IpAddr::V4(destination) => {
                let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(destination, self.length)
                    .protocol(ROUTE_PROTOCOL)
                    .kind(kind);
                if let Some(index) = self.interface {
                    builder = builder.output_interface(index);
                }
                if let Some(IpAddr::V4(gateway)) = self.gateway {
                    builder = builder.gateway(gateway).onlink();
                }
                if let Some(IpAddr::V4(source)) = self.source {
                    builder = builder.pref_source(source);
                }
                builder.build()
            }
            IpAddr::V6(destination) => {
                let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(destination, self.length)
                    .protocol(ROUTE_PROTOCOL)
                    .kind(kind);
                if let Some(index) = self.interface {
                    builder = builder.output_interface(index);
                }
                if let Some(IpAddr::V6(gateway)) = self.gateway {
                    builder = builder.gateway(gateway).onlink();
                }
                if let Some(IpAddr::V6(source)) = self.source {
                    builder = builder.pref_source(source);
                }
                builder.build()
            }
        }
    }

    /// Whether a route of the kernel's is this one, as far as its place in the table goes.
    fn has_place_of(&self, message: &RouteMessage) -> bool {
        message.header.destination_prefix_length == self.length
            && message.attributes.iter().any(|attribute| match (attribute, self.destination) {
                (RouteAttribute::Destination(RouteAddress::Inet(found)), IpAddr::V4(wanted)) => *found == wanted,
                (RouteAttribute::Destination(RouteAddress::Inet6(found)), IpAddr::V6(wanted)) => *found == wanted,
                _ => false,
            })
    }
}

/// Sets these routes, and removes other routes of ours that leave by `interfaces` or go nowhere.
async fn ensure_routes(netlink: &Handle, wanted: &[Route], interfaces: &[u32]) -> Result<(), NetworkError> {
    for route in wanted {
        netlink
            .route()
            .add(route.message())
            .replace()
            .execute()
            .await
            .step(|| format!("set route {}/{}", route.destination, route.length))?;
    }
    for filter in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
        let present: Vec<RouteMessage> =
            netlink.route().get(filter).execute().try_collect().await.step(|| "list routes".to_owned())?;
        for message in present {
            let ours = message.header.protocol == ROUTE_PROTOCOL
                && message.attributes.iter().all(|attribute| match attribute {
                    RouteAttribute::Oif(index) => {
                        interfaces.contains(index) || message.header.kind == RouteType::Unreachable
                    }
                    _ => true,
                });
            if ours && !wanted.iter().any(|route| route.has_place_of(&message)) {
                match netlink.route().del(message).execute().await {
                    Err(error) if is_errno(&error, libc::ESRCH) => {}
                    result => result.step(|| "remove a stale route".to_owned())?,
                }
            }
        }
    }
    Ok(())
}

/// The VDC's own namespace.
struct Inside<'a> {
    config: &'a NetworkConfig,
}

impl Inside<'_> {
    /// Everything that does not need the host port: settings, loopback, TUN.
    async fn ensure_base(&self, netlink: &Handle) -> Result<(), NetworkError> {
        for (key, value) in [
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv6/conf/default/accept_redirects", "0"),
            ("ipv6/conf/all/accept_redirects", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/addr_gen_mode", "1"),
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/accept_redirects", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            // Strict: an IPv4 source must be where its route points.
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/default/rp_filter", "1"),
        ] {
            ensure_sysctl(key, value)?;
        }
        let loopback = existing_index(netlink, "lo").await?;
        let up = LinkUnspec::new_with_index(loopback).up().build();
        netlink.link().change(up).execute().await.step(|| "bring lo up".to_owned())?;
        ensure_addresses(netlink, loopback, &[IpAddr::V6(self.config.prefix.address(INFRA))]).await?;
        ensure_quiet(TUN_INTERFACE)?;
        ensure_up(netlink, TUN_INTERFACE, self.config.mtu(), Some(TUN_QUEUE_PACKETS)).await?;
        Ok(())
    }

    async fn ensure_port(&self, netlink: &Handle) -> Result<(), NetworkError> {
        ensure_quiet(HOST_PORT_INTERFACE)?;
        let port = ensure_up(netlink, HOST_PORT_INTERFACE, self.config.mtu(), None).await?;
        let tun = existing_index(netlink, TUN_INTERFACE).await?;
        ensure_addresses(netlink, port, &[IpAddr::V6(GATEWAY_V6), IpAddr::V4(GATEWAY_V4)]).await?;
        let mut routes = vec![
            Route::direct(IpAddr::V6(vdc::address::vdc_prefix(&self.config.vdc)), 48, tun),
            Route::unreachable(IpAddr::V6(self.config.prefix.address(0)), 96),
        ];
        for range in &self.config.ipv4_ranges {
            routes.push(Route::direct(IpAddr::V4(range.network()), range.length(), tun));
        }
        if let Some(own) = self.config.ipv4 {
            // The TUN must not get packets for our own unused addresses: they would come straight back.
            routes.push(Route::unreachable(IpAddr::V4(own.network()), own.length()));
        }
        for address in self.config.host_addresses() {
            ensure_neighbour(netlink, port, address, HOST_SIDE_ADDRESS).await?;
            routes.push(Route::direct(address, host_length(&address), port));
        }
        ensure_routes(netlink, &routes, &[tun, port]).await
    }
}

/// The host's namespace.
struct Outside<'a> {
    config: &'a NetworkConfig,
    interface: &'a str,
    netns: &'a Netns,
}

impl Outside<'_> {
    /// Makes the veth pair, with its other end straight in the VDC's namespace.
    async fn ensure_port(&self, netlink: &Handle, exists_inside: bool) -> Result<(), NetworkError> {
        if let Some(link) = find_link(netlink, self.interface).await? {
            if !is_owned(&link, &self.config.vdc) {
                return Err(NetworkError::NameTaken { interface: self.interface.to_owned() });
            }
            if exists_inside {
                return Ok(());
            }
            delete_link(netlink, link.header.index, self.interface).await?;
        }
        let inside = LinkMessageBuilder::<LinkUnspec>::new()
            .name(HOST_PORT_INTERFACE)
            .address(INSIDE_ADDRESS.to_vec())
            .mtu(self.config.mtu())
            .setns_by_fd(self.netns.as_fd().as_raw_fd())
            .build();
        let pair = LinkVeth::new(self.interface, HOST_PORT_INTERFACE)
            .address(HOST_SIDE_ADDRESS.to_vec())
            .mtu(self.config.mtu())
            .set_info_data(InfoData::Veth(InfoVeth::Peer(inside)))
            .build();
        netlink.link().add(pair).execute().await.step(|| format!("add {}", self.interface))?;
        let index = existing_index(netlink, self.interface).await?;
        let message = LinkUnspec::new_with_index(index).alias(owner_mark(&self.config.vdc)).build();
        netlink.link().change(message).execute().await.step(|| format!("mark {}", self.interface))
    }

    async fn ensure_routes(&self, netlink: &Handle) -> Result<(), NetworkError> {
        ensure_quiet(self.interface)?;
        let index = ensure_up(netlink, self.interface, self.config.mtu(), None).await?;
        let addresses = self.config.host_addresses();
        ensure_addresses(netlink, index, &addresses).await?;
        ensure_neighbour(netlink, index, IpAddr::V6(GATEWAY_V6), INSIDE_ADDRESS).await?;
        ensure_neighbour(netlink, index, IpAddr::V4(GATEWAY_V4), INSIDE_ADDRESS).await?;
        let mut routes = vec![Route {
            destination: IpAddr::V6(vdc::address::vdc_prefix(&self.config.vdc)),
            length: 48,
            interface: Some(index),
            gateway: Some(IpAddr::V6(GATEWAY_V6)),
            source: addresses.iter().copied().find(IpAddr::is_ipv6),
        }];
        let source = addresses.iter().copied().find(IpAddr::is_ipv4);
        if self.config.host_ipv4 && source.is_some() {
            routes.extend(self.config.ipv4_ranges.iter().map(|range| Route {
                destination: IpAddr::V4(range.network()),
                length: range.length(),
                interface: Some(index),
                gateway: Some(IpAddr::V4(GATEWAY_V4)),
                source,
            }));
        }
        ensure_routes(netlink, &routes, &[index]).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_super_packet_fits_one_send() {
        for mtu in [MTU_BYTES_MIN, 1372, MTU_BYTES, 1500, 8920, 9000] {
            // Without options a segment carries 12 bytes more: the fewest headers per byte are the worst case here.
            for header in [TCP_HEADER_BYTES, TCP_HEADER_BYTES - 12, 40] {
                let payload = gso_bytes_max(mtu) - header;
                let segments = payload.div_ceil(mtu - header);
                assert!(segments <= 64 && payload + segments * (header + 32) <= 65_507, "{mtu} {header} {segments}");
            }
        }
        assert_eq!(gso_bytes_max(MTU_BYTES), 60_732);
    }

    #[test]
    fn host_interface_names_fit_and_differ() {
        let vdc = VdcId([0xab; 32]);
        let name = |text| Name::new(text).expect("a name");
        assert_eq!(host_interface(&name("acme"), &vdc), "mesh-acme");
        assert_eq!(host_interface(&name("ten-chars1"), &vdc), "mesh-ten-chars1");
        let long = host_interface(&name("eleven-char"), &vdc);
        assert_eq!(long, "mesh-eleve-abab");
        assert_ne!(long, host_interface(&name("eleven-chas"), &VdcId([0xac; 32])));
    }
}
