//! A workload's place in the kernel: a namespace of its own, joined to the VDC's by a routed veth.
//!
//! ```text
//!   meshd-w-ID namespace                        the VDC's namespace
//!   eth0  workload's IPv6 /128, IPv4 /32        w-XXXXXXXX  fe80::1
//!      └──────────────── veth, routed ────────────────┘
//!   default via fe80::1, 169.254.1.1            workload's /128, /32 -> w-XXXXXXXX
//! ```
//! There is no bridge: two workloads of a node meet in the VDC's forward chain, as any other two parties do. The routes
//! to single addresses are also the map from interface to source that the firewall checks senders against.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::Path;

use netlink_packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::netlink::{
    GATEWAY_V4, GATEWAY_V6, MTU_BYTES_MIN, NetworkError, ROUTE_PROTOCOL, Step, delete_link, ensure_addresses,
    ensure_neighbour, ensure_quiet, ensure_sysctl, ensure_up, existing_index, find_link, host_length, with_netlink,
};
use crate::netns::Netns;

/// What the names of all workload ports in a VDC's namespace begin with.
pub const WORKLOAD_INTERFACE_PREFIX: &str = "w-";

/// The port as its workload sees it.
const WORKLOAD_SIDE_INTERFACE: &str = "eth0";

/// What the names of workloads' namespaces begin with; 32 hexadecimal digits of the workload's id follow.
const NETNS_PREFIX: &str = "meshd-w-";

/// Hardware addresses of a port, fixed so that neighbours can be permanent (locally administered, "work").
const WORKLOAD_SIDE_ADDRESS: [u8; 6] = [0x02, b'w', b'o', b'r', b'k', 1];
const VDC_SIDE_ADDRESS: [u8; 6] = [0x02, b'w', b'o', b'r', b'k', 2];

/// A workload's port, as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPort {
    /// The workload's id.
    pub id: [u8; 16],
    /// The port's name in the VDC's namespace: `w-` and at most 13 characters, see [`WorkloadPort::interface_of`].
    pub interface: String,
    pub v6: Ipv6Addr,
    pub v4: Option<Ipv4Addr>,
    /// MTU in bytes, the VDC's.
    pub mtu_bytes: u32,
}

impl WorkloadPort {
    /// The usual interface name of workload `id`: `w-` and the first 8 hexadecimal digits.
    #[must_use]
    pub fn interface_of(id: &[u8; 16]) -> String {
        format!("{WORKLOAD_INTERFACE_PREFIX}{}", &hex(id)[..8])
    }

    fn addresses(&self) -> Vec<IpAddr> {
        std::iter::once(IpAddr::V6(self.v6)).chain(self.v4.map(IpAddr::V4)).collect()
    }
}

/// A workload's namespace with its port set up.
#[derive(Debug)]
pub struct WorkloadNetns {
    netns: Netns,
}

impl WorkloadNetns {
    /// What the namespace of workload `id` is pinned as.
    #[must_use]
    pub fn name_of(id: &[u8; 16]) -> String {
        format!("{NETNS_PREFIX}{}", hex(id))
    }

    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Where it is pinned, for the one who starts processes in it.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.netns.path()
    }
}

fn hex(id: &[u8; 16]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_name(name: &str) -> Option<[u8; 16]> {
    let digits = name.strip_prefix(NETNS_PREFIX)?;
    let is_id = digits.len() == 32 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_id.then(|| u128::from_str_radix(digits, 16).ok()).flatten().map(u128::to_be_bytes)
}

/// Makes or adopts the port and its namespace. `netns` is the VDC's namespace. Blocks for some milliseconds.
///
/// # Errors
/// [`NetworkError::NameTaken`] if the interface is another workload's; otherwise what the kernel says. What was made
/// before stays, is adopted by the next call and removed by [`remove_workload_port`].
pub fn ensure_workload_port(netns: &Netns, port: &WorkloadPort) -> Result<WorkloadNetns, NetworkError> {
    let name = WorkloadNetns::name_of(&port.id);
    let own = Netns::ensure(&name).map_err(|source| NetworkError::Namespace { name, source })?;
    let has_side =
        with_netlink(Some(&own), async |netlink| Ok(find_link(&netlink, WORKLOAD_SIDE_INTERFACE).await?.is_some()))?;
    with_netlink(Some(netns), async |netlink| ensure_vdc_side(&netlink, port, &own, has_side).await)?;
    with_netlink(Some(&own), async |netlink| ensure_workload_side(&netlink, port).await)?;
    Ok(WorkloadNetns { netns: own })
}

/// Takes the port of workload `id` and its namespace away. What is not there is success. Processes still in the
/// namespace keep it, without its port.
///
/// # Errors
/// [`NetworkError`]; calling again continues.
pub fn remove_workload_port(id: &[u8; 16]) -> Result<(), NetworkError> {
    let name = WorkloadNetns::name_of(id);
    let failed = |source| NetworkError::Namespace { name: name.clone(), source };
    if let Some(own) = Netns::open(&name).map_err(failed)? {
        // One end takes the other along, and the kernel answers when both are gone.
        with_netlink(Some(&own), async |netlink| match find_link(&netlink, WORKLOAD_SIDE_INTERFACE).await? {
            Some(link) => delete_link(&netlink, link.header.index, WORKLOAD_SIDE_INTERFACE).await,
            None => Ok(()),
        })?;
    }
    Netns::remove(&name).map_err(failed)
}

/// The workloads that have a namespace on this box, in no order: what a restarted daemon adopts or removes.
///
/// # Errors
/// If the directory of namespaces cannot be read.
pub fn list_workload_ports() -> Result<Vec<[u8; 16]>, NetworkError> {
    let anything = Netns::path_of("x");
    let Some(directory) = anything.parent() else { return Ok(vec![]) };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries?,
    };
    let mut found = vec![];
    for entry in entries {
        found.extend(entry?.file_name().to_str().and_then(parse_name));
    }
    Ok(found)
}

/// The interface alias that says whose a port is.
fn owner_mark(id: &[u8; 16]) -> String {
    format!("meshd workload {}", hex(id))
}

/// Whether a port is this workload's: it says so, or it was left between being made and being marked.
fn is_owned(link: &LinkMessage, id: &[u8; 16]) -> bool {
    let alias = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfAlias(alias) => Some(alias.as_str()),
        _ => None,
    });
    match alias {
        Some(alias) => alias == owner_mark(id),
        None => link.attributes.contains(&LinkAttribute::Address(VDC_SIDE_ADDRESS.to_vec())),
    }
}

async fn ensure_vdc_side(
    netlink: &Handle,
    port: &WorkloadPort,
    own: &Netns,
    exists_inside: bool,
) -> Result<(), NetworkError> {
    let mtu = port.mtu_bytes.max(MTU_BYTES_MIN);
    let mut link = find_link(netlink, &port.interface).await?;
    if let Some(found) = &link {
        if !is_owned(found, &port.id) {
            return Err(NetworkError::NameTaken { interface: port.interface.clone() });
        }
        if !exists_inside {
            delete_link(netlink, found.header.index, &port.interface).await?;
            link = None;
        }
    }
    if link.is_none() {
        let inside = LinkMessageBuilder::<LinkUnspec>::new()
            .name(WORKLOAD_SIDE_INTERFACE)
            .address(WORKLOAD_SIDE_ADDRESS.to_vec())
            .mtu(mtu)
            .setns_by_fd(own.as_fd().as_raw_fd())
            .build();
        let pair = LinkVeth::new(&port.interface, WORKLOAD_SIDE_INTERFACE)
            .address(VDC_SIDE_ADDRESS.to_vec())
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(inside)))
            .build();
        netlink.link().add(pair).execute().await.step(|| format!("add {}", port.interface))?;
        let index = existing_index(netlink, &port.interface).await?;
        let message = LinkUnspec::new_with_index(index).alias(owner_mark(&port.id)).build();
        netlink.link().change(message).execute().await.step(|| format!("mark {}", port.interface))?;
    }
    ensure_quiet(&port.interface)?;
    let index = ensure_up(netlink, &port.interface, mtu, None).await?;
    ensure_addresses(netlink, index, &[IpAddr::V6(GATEWAY_V6)]).await?;
    for address in port.addresses() {
        ensure_neighbour(netlink, index, address, WORKLOAD_SIDE_ADDRESS).await?;
        let message = match address {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, host_length(&address))
                .protocol(ROUTE_PROTOCOL)
                .output_interface(index)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6, host_length(&address))
                .protocol(ROUTE_PROTOCOL)
                .output_interface(index)
                .build(),
        };
        netlink.route().add(message).replace().execute().await.step(|| format!("set the route to {address}"))?;
    }
    Ok(())
}

async fn ensure_workload_side(netlink: &Handle, port: &WorkloadPort) -> Result<(), NetworkError> {
    let loopback = existing_index(netlink, "lo").await?;
    let up = LinkUnspec::new_with_index(loopback).up().build();
    netlink.link().change(up).execute().await.step(|| "bring lo up".to_owned())?;
    // A workload has no rights over its namespace; these make ports below 1024 and ping work without them.
    ensure_sysctl("ipv4/ip_unprivileged_port_start", "0")?;
    ensure_sysctl("ipv4/ping_group_range", "0\t2147483647")?;
    ensure_quiet(WORKLOAD_SIDE_INTERFACE)?;
    let index = ensure_up(netlink, WORKLOAD_SIDE_INTERFACE, port.mtu_bytes.max(MTU_BYTES_MIN), None).await?;
    ensure_addresses(netlink, index, &port.addresses()).await?;
    ensure_neighbour(netlink, index, IpAddr::V6(GATEWAY_V6), VDC_SIDE_ADDRESS).await?;
    let route = RouteMessageBuilder::<Ipv6Addr>::new()
        .protocol(ROUTE_PROTOCOL)
        .output_interface(index)
        .gateway(GATEWAY_V6)
        .onlink()
        .pref_source(port.v6)
        .build();
    netlink.route().add(route).replace().execute().await.step(|| "set the IPv6 default route".to_owned())?;
    if let Some(v4) = port.v4 {
        ensure_neighbour(netlink, index, IpAddr::V4(GATEWAY_V4), VDC_SIDE_ADDRESS).await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .protocol(ROUTE_PROTOCOL)
            .output_interface(index)
            .gateway(GATEWAY_V4)
            .onlink()
            .pref_source(v4)
            .build();
        netlink.route().add(route).replace().execute().await.step(|| "set the IPv4 default route".to_owned())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_workload_and_nothing_else_does() {
        let id = [0xab; 16];
        assert_eq!(parse_name(&WorkloadNetns::name_of(&id)), Some(id));
        assert_eq!(WorkloadPort::interface_of(&id), "w-abababab");
        for other in ["meshd-acme", "meshd-w-ab", "meshd-w-abababababababababababababababAB", "x", ""] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }
}
