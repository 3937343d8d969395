//! The way of a VDC's workloads to the world outside: a second veth to the host, apart from the host's own port.
//!
//! ```text
//!   host namespace                                 the VDC's namespace
//!   x-NAME  169.254.1.2, own prefix ::2   <veth>   egress0  fe80::1, 169.254.1.1
//!   packets with the mark -> table MARK:           default via fe80::2, 169.254.1.2
//!     own /96, own block -> x-NAME
//! ```
//! The host's main table leads the VDC's addresses to the host port, where only the host itself may speak; so packets of
//! flows that came out here find back by a mark, which the firewall's host table sets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;

use futures::TryStreamExt;
use netlink_packet_route::link::{InfoData, InfoVeth};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use vdc::{Name, VdcId};

use crate::netlink::{
    GATEWAY_V4, GATEWAY_V6, HOST_SIDE_ADDRESS, INSIDE_ADDRESS, INTERFACE_NAME_MAX, NetworkConfig, NetworkError,
    ROUTE_PROTOCOL, Step, VdcNetwork, delete_link, ensure_addresses, ensure_neighbour, ensure_quiet, ensure_sysctl,
    ensure_up, existing_index, find_link, is_errno, is_owned, owner_mark, with_netlink,
};

/// The way out as the VDC's namespace sees it.
pub const EGRESS_INTERFACE: &str = "egress0";

/// Offset of the host's end inside the node's prefix. Workloads' offsets begin far above.
const HOST_END: u32 = 2;
/// The host's end, as the VDC's namespace sees it.
const HOST_END_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const HOST_END_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
/// Before the main table (32766), after the local one (0).
const RULE_PRIORITY: u32 = 109;

/// The way out, as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressConfig {
    /// What marks the VDC's flows on the host, and the number of their routing table: 256 or more, no other VDC's.
    pub mark: u32,
    /// The host's links to the world, which have to forward.
    pub links: Vec<String>,
}

/// The host's end of the way out of a VDC: `x-NAME`, shortened as the host port's name is.
#[must_use]
pub fn egress_interface(name: &Name, vdc: &VdcId) -> String {
    let plain = format!("x-{name}");
    if plain.len() <= INTERFACE_NAME_MAX {
        return plain;
    }
    format!("x-{}-{}", &name.as_str()[..8], &vdc.to_string()[..4])
}

/// Makes or adopts the way out. Called in the host's namespace, after `network` was ensured with `config`. The host then
/// forwards IPv6 (there is no switch for one link); links that took router advertisements go on taking them.
///
/// # Errors
/// [`NetworkError`]; what was made before stays and is adopted by the next call.
pub fn ensure_egress(network: &VdcNetwork, config: &NetworkConfig, egress: &EgressConfig) -> Result<(), NetworkError> {
    let interface = egress_interface(&config.name, &config.vdc);
    let exists_inside = with_netlink(Some(network.netns()), async |netlink| {
        Ok(find_link(&netlink, EGRESS_INTERFACE).await?.is_some())
    })?;
    with_netlink(None, async |netlink| ensure_pair(&netlink, network, config, &interface, exists_inside).await)?;
    with_netlink(Some(network.netns()), async |netlink| ensure_inside(&netlink, config).await)?;
    with_netlink(None, async |netlink| ensure_host(&netlink, config, egress, &interface).await)
}

/// Takes the way out away. Called in the host's namespace. What is not there is success.
///
/// # Errors
/// [`NetworkError`]; calling again continues.
pub fn remove_egress(name: &Name, vdc: &VdcId, mark: u32) -> Result<(), NetworkError> {
    let interface = egress_interface(name, vdc);
    with_netlink(None, async |netlink| {
        for version in [IpVersion::V4, IpVersion::V6] {
            for rule in rules(&netlink, version.clone(), mark).await? {
                netlink.rule().del(rule).execute().await.step(|| format!("remove the rule of mark {mark}"))?;
            }
        }
        match find_link(&netlink, &interface).await? {
            Some(link) if is_owned(&link, vdc) => delete_link(&netlink, link.header.index, &interface).await,
            _ => Ok(()),
        }
    })
}

async fn ensure_pair(
    netlink: &Handle,
    network: &VdcNetwork,
    config: &NetworkConfig,
    interface: &str,
    exists_inside: bool,
) -> Result<(), NetworkError> {
    if let Some(link) = find_link(netlink, interface).await? {
        if !is_owned(&link, &config.vdc) {
            return Err(NetworkError::NameTaken { interface: interface.to_owned() });
        }
        if exists_inside {
            return Ok(());
        }
        delete_link(netlink, link.header.index, interface).await?;
    }
    let inside = LinkMessageBuilder::<LinkUnspec>::new()
        .name(EGRESS_INTERFACE)
        .address(INSIDE_ADDRESS.to_vec())
        .mtu(config.mtu())
        .setns_by_fd(network.netns().as_fd().as_raw_fd())
        .build();
    let pair = LinkVeth::new(interface, EGRESS_INTERFACE)
        .address(HOST_SIDE_ADDRESS.to_vec())
        .mtu(config.mtu())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(inside)))
        .build();
    netlink.link().add(pair).execute().await.step(|| format!("add {interface}"))?;
    let index = existing_index(netlink, interface).await?;
    let message = LinkUnspec::new_with_index(index).alias(owner_mark(&config.vdc)).build();
    netlink.link().change(message).execute().await.step(|| format!("mark {interface}"))
}

async fn ensure_inside(netlink: &Handle, config: &NetworkConfig) -> Result<(), NetworkError> {
    ensure_quiet(EGRESS_INTERFACE)?;
    let index = ensure_up(netlink, EGRESS_INTERFACE, config.mtu(), None).await?;
    ensure_addresses(netlink, index, &[IpAddr::V6(GATEWAY_V6)]).await?;
    let host_end = config.prefix.address(HOST_END);
    for address in [IpAddr::V6(HOST_END_V6), IpAddr::V4(HOST_END_V4), IpAddr::V6(host_end)] {
        ensure_neighbour(netlink, index, address, HOST_SIDE_ADDRESS).await?;
    }
    let six = || RouteMessageBuilder::<Ipv6Addr>::new().protocol(ROUTE_PROTOCOL).output_interface(index);
    let four = RouteMessageBuilder::<Ipv4Addr>::new().protocol(ROUTE_PROTOCOL).output_interface(index);
    for route in [
        six().destination_prefix(host_end, 128).build(),
        six().gateway(HOST_END_V6).onlink().build(),
        four.gateway(HOST_END_V4).onlink().build(),
    ] {
        netlink.route().add(route).replace().execute().await.step(|| "set the route to the world".to_owned())?;
    }
    Ok(())
}

async fn ensure_host(
    netlink: &Handle,
    config: &NetworkConfig,
    egress: &EgressConfig,
    interface: &str,
) -> Result<(), NetworkError> {
    for link in egress.links.iter().map(String::as_str).chain([interface]) {
        ensure_sysctl(&format!("ipv4/conf/{link}/forwarding"), "1")?;
    }
    for link in &egress.links {
        keep_router_advertisements(link)?;
    }
    ensure_sysctl("ipv6/conf/all/forwarding", "1")?;
    ensure_quiet(interface)?;
    // The route back to a workload's address depends on a mark, which the reverse path check does not see.
    ensure_sysctl(&format!("ipv4/conf/{interface}/rp_filter"), "2")?;
    // A published port is reached at 127.0.0.1 as well.
    ensure_sysctl(&format!("ipv4/conf/{interface}/route_localnet"), "1")?;
    let index = ensure_up(netlink, interface, config.mtu(), None).await?;
    let own = [IpAddr::V6(config.prefix.address(HOST_END)), IpAddr::V4(HOST_END_V4)];
    ensure_addresses(netlink, index, &own).await?;
    for gateway in [IpAddr::V6(GATEWAY_V6), IpAddr::V4(GATEWAY_V4)] {
        ensure_neighbour(netlink, index, gateway, INSIDE_ADDRESS).await?;
    }
    let mut routes = vec![
        RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(config.prefix.address(0), 96)
            .table_id(egress.mark)
            .protocol(ROUTE_PROTOCOL)
            .output_interface(index)
            .gateway(GATEWAY_V6)
            .onlink()
            .build(),
    ];
    routes.extend(config.ipv4.map(|block| {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(block.network(), block.length())
            .table_id(egress.mark)
            .protocol(ROUTE_PROTOCOL)
            .output_interface(index)
            .gateway(GATEWAY_V4)
            .onlink()
            .build()
    }));
    for route in routes {
        netlink.route().add(route).replace().execute().await.step(|| format!("set a route by {interface}"))?;
    }
    for version in [IpVersion::V4, IpVersion::V6] {
        if rules(netlink, version.clone(), egress.mark).await?.is_empty() {
            let request = netlink.rule().add().fw_mark(egress.mark).table_id(egress.mark).priority(RULE_PRIORITY);
            let request = request.action(RuleAction::ToTable);
            let added = match version {
                IpVersion::V4 => request.v4().execute().await,
                IpVersion::V6 => request.v6().execute().await,
            };
            match added {
                Err(error) if is_errno(&error, libc::EEXIST) => {}
                added => added.step(|| format!("add the rule of mark {}", egress.mark))?,
            }
        }
    }
    Ok(())
}

/// A host that forwards takes no router advertisements unless told to.
fn keep_router_advertisements(link: &str) -> Result<(), NetworkError> {
    let key = format!("ipv6/conf/{link}/accept_ra");
    let failed = |source| NetworkError::Sysctl { key: format!("net/{key}"), source };
    if std::fs::read_to_string(format!("/proc/sys/net/{key}")).map_err(failed)?.trim() == "1" {
        ensure_sysctl(&key, "2")?;
    }
    Ok(())
}

async fn rules(netlink: &Handle, version: IpVersion, mark: u32) -> Result<Vec<RuleMessage>, NetworkError> {
    let all: Vec<RuleMessage> =
        netlink.rule().get(version).execute().try_collect().await.step(|| "list routing rules".to_owned())?;
    let ours = |rule: &RuleMessage| rule.attributes.contains(&RuleAttribute::FwMark(mark));
    Ok(all.into_iter().filter(ours).collect())
}
