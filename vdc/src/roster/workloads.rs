//! What is believed of the workloads that nodes name in their exposure records.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::view::{Clash, MemberView};
use crate::record::{Home, PortRange, WorkloadExposure};
use crate::{Key, Name, SiteNumber};

/// A workload of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadView {
    pub name: Name,
    pub v6: Ipv6Addr,
    /// None if it has none, or one that is not its node's to give.
    pub ipv4: Option<Ipv4Addr>,
    pub ports: Vec<PortRange>,
    /// Of those that it was given, the ones that its node's grant carries: a node cannot label itself.
    pub labels: Vec<Name>,
    /// Whether `WORKLOAD.SITE` means it. `WORKLOAD.NODE.SITE` always does.
    pub has_short_name: bool,
}

/// Who has a name in a site already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameHolder {
    /// The node itself is called so.
    Node { full_name: String },
    /// A workload of the node is.
    WorkloadOf { full_name: String },
}

/// Believes what `entries` says of `member`'s workloads, as far as the member's own records go.
fn believed(member: &MemberView, entries: &[WorkloadExposure]) -> (Vec<WorkloadView>, Vec<Clash>) {
    let mut clashes = vec![];
    let views = entries.iter().map(|entry| {
        let fits = |address: &Ipv4Addr| member.ipv4.is_some_and(|block| block.is_for_workloads(*address));
        let ipv4 = entry.ipv4.filter(fits);
        if let (None, Some(address)) = (ipv4, entry.ipv4) {
            clashes.push(Clash::WorkloadIpv4 { node: member.node, name: entry.name.clone(), address });
        }
        WorkloadView {
            name: entry.name.clone(),
            v6: member.prefix.address(entry.offset),
            ipv4,
            ports: entry.ports.clone(),
            labels: entry.labels.iter().filter(|label| member.labels.contains(label)).cloned().collect(),
            has_short_name: false,
        }
    });
    (views.collect(), clashes)
}

/// Says what the workloads of the reachable members are and who has each short name: a node before a workload, then the
/// workload of the node with the lowest key. `known` tells better than its record what one member's workloads are.
pub(super) fn settle(
    members: &mut BTreeMap<Key, MemberView>,
    known: Option<(&Key, &[WorkloadExposure])>,
) -> Vec<Clash> {
    let mut clashes = vec![];
    let reachable = || members.values().filter(|m| m.standing.is_reachable());
    let mut holders: BTreeMap<(SiteNumber, Name), Key> =
        reachable().map(|m| ((m.site, m.name.clone()), m.node)).collect();
    for member in members.values_mut() {
        let known = known.filter(|(node, _)| **node == member.node).map(|(_, entries)| entries);
        let entries = known.or_else(|| Some(&member.exposure()?.workloads)).unwrap_or_default();
        let entries = if member.standing.is_reachable() { entries } else { &[] };
        let (mut views, wrong) = believed(member, entries);
        clashes.extend(wrong);
        for view in &mut views {
            match holders.entry((member.site, view.name.clone())) {
                Entry::Vacant(entry) => {
                    entry.insert(member.node);
                    view.has_short_name = true;
                }
                Entry::Occupied(entry) => {
                    let (site, name, keeps, other) = (member.site, view.name.clone(), *entry.get(), member.node);
                    clashes.push(Clash::WorkloadName { site, name, keeps, other });
                }
            }
        }
        member.workloads = views;
    }
    clashes
}

/// Gives short names to those who have them by `claims`: by home, the node that took each name. Returns the names of the whole VDC.
pub(super) fn claimed(
    members: &mut BTreeMap<Key, MemberView>,
    clashes: &mut [Clash],
    claims: &BTreeMap<Home, BTreeMap<Name, Key>>,
) -> BTreeMap<Name, Key> {
    let has = |members: &BTreeMap<Key, MemberView>, node: &Key, name: &Name| {
        members.get(node).is_some_and(|member| member.workloads.iter().any(|workload| workload.name == *name))
    };
    for clash in clashes.iter_mut() {
        let Clash::WorkloadName { site, name, keeps, other } = clash else { continue };
        let Some(holder) = claims.get(&Home::Site(*site)).and_then(|names| names.get(name)) else { continue };
        let is_of_site = members.get(holder).is_some_and(|member| member.site == *site);
        // A node's own name is nobody else's.
        let is_a_nodes = members.values().any(|member| member.site == *site && member.name == *name);
        if holder == keeps || !is_of_site || is_a_nodes || !has(members, holder, name) {
            continue;
        }
        for node in [*keeps, *other, *holder] {
            let workloads = members.get_mut(&node).map_or(&mut [][..], |member| &mut member.workloads);
            for workload in workloads.iter_mut().filter(|workload| workload.name == *name) {
                workload.has_short_name = node == *holder;
            }
        }
        if other == holder {
            *other = *keeps;
        }
        *keeps = *holder;
    }
    let vdc = claims.get(&Home::Vdc).into_iter().flatten();
    vdc.filter(|(name, node)| has(members, node, name)).map(|(name, node)| (name.clone(), *node)).collect()
}

/// Who of a site, other than `asking`'s own workloads, has a name.
pub(super) fn holder(
    members: &BTreeMap<Key, MemberView>,
    asking: &Key,
    site: SiteNumber,
    name: &Name,
) -> Option<NameHolder> {
    let of_site = || members.values().filter(|m| m.site == site && m.standing.is_reachable());
    let node = of_site().find(|m| m.name == *name || m.recorded_name == *name);
    let node = node.map(|m| NameHolder::Node { full_name: m.full_name() });
    let has = |m: &&MemberView| m.node != *asking && m.workloads.iter().any(|w| w.name == *name);
    node.or_else(|| of_site().find(has).map(|m| NameHolder::WorkloadOf { full_name: m.full_name() }))
}
