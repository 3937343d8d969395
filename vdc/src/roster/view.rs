//! What a node may believe at one moment: the answer to every question that is asked of a roster.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::Roster;
use super::authority::Rank;
use super::foundings::FoundingView;
use super::judge::Judge;
use super::workloads::{self, NameHolder, WorkloadView};
use crate::address::NodePrefix;
use crate::policy::{ActiveBlock, Document, Kind, Model, Subject};
use crate::record::{
    Block, Body, Contact, ContactAddress, Delegation, Exposure, Home, PortRange, Role, WorkloadExposure,
};
use crate::{Hash, Ipv4Block, Key, Name, Office, Signed, SiteNumber, UnixTime, VdcId, WgKey};

/// Where a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Its renewal deadline lies ahead.
    Current,
    /// Past its deadline, still reachable, shown as degraded.
    Grace { until: UnixTime },
    /// Past its grace: not reachable until a registrar renews it.
    Expired,
    /// Ended by a tombstone.
    Revoked,
}

impl Standing {
    /// Whether other members talk to it.
    #[must_use]
    pub fn is_reachable(self) -> bool {
        matches!(self, Self::Current | Self::Grace { .. })
    }
}

/// Who said so: the records behind a [`MemberView`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRecords {
    pub member: Hash,
    pub grant: Option<Hash>,
    pub contact: Option<Hash>,
    pub exposure: Option<Hash>,
    /// The tombstone that ended it, if one did.
    pub tombstone: Option<Hash>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    pub node: Key,
    pub wg: WgKey,
    pub site: SiteNumber,
    pub site_name: Name,
    /// What the node is called here: the recorded name, or `name-XXXX` for the later of two nodes of one name.
    pub name: Name,
    /// What its member record says.
    pub recorded_name: Name,
    pub serial: u64,
    pub prefix: NodePrefix,
    pub ipv4: Option<Ipv4Block>,
    pub not_before: UnixTime,
    pub not_after: UnixTime,
    pub ephemeral: bool,
    pub standing: Standing,
    /// Ascending; always has [`Role::Host`].
    pub roles: Vec<Role>,
    pub labels: Vec<Name>,
    pub registrar: Key,
    /// The office on which the node's own records stand.
    pub under: Office,
    pub records: MemberRecords,
    /// Ascending by name; none of a member that is not reachable.
    pub workloads: Vec<WorkloadView>,
    pub(super) contact: Option<Arc<Signed>>,
    pub(super) exposure: Option<Arc<Signed>>,
}

impl MemberView {
    /// What the node says about where it can be dialled.
    #[must_use]
    pub fn contact(&self) -> Option<&Contact> {
        match &self.contact.as_ref()?.body {
            Body::Contact(contact) => Some(contact),
            _ => None,
        }
    }

    /// Where the node's control swarm can be dialled, in its order of preference.
    #[must_use]
    pub fn addresses(&self) -> &[ContactAddress] {
        self.contact().map_or(&[], |c| &c.addresses)
    }

    /// What the node says about the ports that may be reached on it.
    #[must_use]
    pub fn exposure(&self) -> Option<&Exposure> {
        match &self.exposure.as_ref()?.body {
            Body::Exposure(exposure) => Some(exposure),
            _ => None,
        }
    }

    /// The ports at which the node may be reached.
    #[must_use]
    pub fn ports(&self) -> &[PortRange] {
        self.exposure().map_or(&[], |e| &e.ports)
    }

    /// `NODE.SITE`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.name, self.site_name)
    }
}

/// A key that may admit, renew and end nodes of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrarView {
    pub key: Key,
    /// What its delegation stands on; its member records name it ([`Signed::under`]).
    pub under: Office,
    pub delegation: Delegation,
    pub record: Hash,
    /// Whether `now` lies before the delegation's end: past it, it cannot admit or renew any more.
    pub active: bool,
    /// Whether it was closed; what its estate names still counts.
    pub closed: bool,
}

/// A key that may sign sites, registrars, grants, policy and tombstones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminView {
    pub key: Key,
    pub under: Office,
    pub delegation: Delegation,
    pub record: Hash,
    pub active: bool,
    pub closed: bool,
}

/// One site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteView {
    pub number: SiteNumber,
    /// What the site is called here; `name-NUMBER` for the later of two sites of one name.
    pub name: Name,
    pub recorded_name: Name,
    pub serial: u64,
    /// None if it has none, or if a site of a lower number has an overlapping one.
    pub ipv4: Option<Ipv4Block>,
    pub founder: SiteNumber,
    pub created: UnixTime,
    pub record: Hash,
    /// The site's own registrars, ascending by key, active ones first.
    pub registrars: Vec<RegistrarView>,
}

impl SiteView {
    /// Its own registrars that may admit and renew at this moment.
    #[must_use]
    pub fn serving(&self) -> Vec<&RegistrarView> {
        self.registrars.iter().filter(|r| r.active && !r.closed).collect()
    }
}

/// The policy in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyView {
    pub version: u64,
    pub document: Document,
    pub record: Hash,
    pub issuer: Key,
    /// What the next version names as its previous one: the hash of this one's body.
    pub body: Hash,
    /// Whether two different policies of this version are known: admins changed it at once, and must sign a new one.
    pub forked: bool,
}

/// An active block record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockView {
    pub block: Block,
    pub record: Hash,
    pub issuer: Key,
}

/// A believed tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TombstoneView {
    pub subject: Key,
    pub floor: u64,
    pub at: UnixTime,
    pub reason: String,
    pub closes: bool,
    pub record: Hash,
    pub issuer: Key,
    pub rank: Rank,
}

/// Two believed statements that cannot both hold as written, and that the view settled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clash {
    /// Two nodes of one site claim one name; `shown` is what the second is called here.
    NodeName { site: SiteNumber, name: Name, keeps: Key, other: Key, shown: Name },
    /// Two nodes claim one /96; `other` got the next free one.
    NodePrefix { site: SiteNumber, keeps: Key, other: Key },
    /// Two nodes' IPv4 blocks overlap, or one lies outside its site's; `other` got none.
    NodeIpv4 { block: Ipv4Block, keeps: Option<Key>, other: Key },
    /// Registrars of two sites claim one node.
    NodeSite { node: Key, chosen: SiteNumber, other: SiteNumber },
    /// Two nodes claim one WireGuard key.
    WgKey { keeps: Key, other: Key },
    /// Two sites claim one name; `shown` is what the second is called here.
    SiteName { name: Name, keeps: SiteNumber, other: SiteNumber, shown: Name },
    /// Two sites' IPv4 blocks overlap; `other` has none.
    SiteIpv4 { keeps: SiteNumber, other: SiteNumber },
    /// A workload of `other` has a name in the site that is `keeps`'s own or its workload's; it has its long name only.
    WorkloadName { site: SiteNumber, name: Name, keeps: Key, other: Key },
    /// A workload's IPv4 address is not its node's to give; it has none.
    WorkloadIpv4 { node: Key, name: Name, address: Ipv4Addr },
    /// Two policies of one version.
    Policy { version: u64, chosen: Hash, other: Hash },
    /// Two nodes, or one twice, were told with one serial to make the group of a home; the group of `founder` counts.
    Founding { home: Home, serial: u64, group: Hash, founder: Key, other: Hash, other_founder: Key },
}

/// What a text that should name a node found instead of one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    #[error("no node is called {text:?}; `meshctl node list` shows all")]
    Unknown { text: String },
    #[error("{text:?} may mean {}; write NODE.SITE or a longer part of the key", matches.join(" or "))]
    Ambiguous { text: String, matches: Vec<String> },
}

/// Everything believed at one moment. Immutable: share it in an `Arc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub vdc: VdcId,
    pub name: Name,
    pub now: UnixTime,
    /// The [`Roster::version`] it was made from.
    pub version: u64,
    pub owners: Vec<Key>,
    pub threshold: u8,
    /// The range that sites' blocks are carved from.
    pub ipv4: Option<Ipv4Block>,
    pub admins: Vec<AdminView>,
    pub sites: BTreeMap<SiteNumber, SiteView>,
    /// All nodes, the expired and revoked included; see [`View::reachable`].
    pub members: BTreeMap<Key, MemberView>,
    pub policy: Option<PolicyView>,
    /// Active ones only.
    pub blocks: Vec<BlockView>,
    pub tombstones: Vec<TombstoneView>,
    /// The coordination groups that count, by what they serve.
    pub foundings: BTreeMap<Home, FoundingView>,
    /// Ascending.
    pub clashes: Vec<Clash>,
    /// Which node's workload a name of the whole VDC means; see [`View::set_names`].
    pub names: BTreeMap<Name, Key>,
    /// See [`View::founding_head`].
    pub(super) founding_heads: BTreeMap<Home, FoundingView>,
    /// See [`View::newest_record_time`].
    pub(super) newest: Option<UnixTime>,
    /// The highest believed serial by kind and subject; a new statement takes the next.
    pub(super) serials: BTreeMap<(u8, [u8; 32]), u64>,
}

impl View {
    /// Members that others talk to.
    pub fn reachable(&self) -> impl Iterator<Item = &MemberView> + '_ {
        self.members.values().filter(|m| m.standing.is_reachable())
    }

    /// The member whose /96 holds an address.
    #[must_use]
    pub fn member_by_wg(&self, wg: &WgKey) -> Option<&MemberView> {
        self.members.values().find(|m| m.wg == *wg && m.standing.is_reachable())
    }

    #[must_use]
    pub fn site_by_name(&self, name: &str) -> Option<&SiteView> {
        self.sites.values().find(|s| s.name.as_str() == name)
    }

    /// Finds a node by `NODE`, `NODE.SITE` or at least 4 hexadecimal digits of its key. Reachable nodes come first; the
    /// others are looked at only when none of them fits.
    ///
    /// # Errors
    /// [`FindError`] if none or several fit.
    pub fn find(&self, text: &str) -> Result<&MemberView, FindError> {
        let fits = |m: &&MemberView| {
            let key = || m.node.to_string();
            m.name.as_str() == text
                || m.full_name() == text
                || (text.len() >= 4 && text.bytes().all(|b| b.is_ascii_hexdigit()) && key().starts_with(text))
        };
        let (reachable, others): (Vec<_>, Vec<_>) =
            self.members.values().filter(fits).partition(|m| m.standing.is_reachable());
        let found = if reachable.is_empty() { others } else { reachable };
        // A whole name beats a part of a key that happens to read like it.
        let named: Vec<_> =
            found.iter().copied().filter(|m| m.name.as_str() == text || m.full_name() == text).collect();
        let found = if named.is_empty() { found } else { named };
        match found.as_slice() {
            [one] => Ok(one),
            [] => Err(FindError::Unknown { text: text.chars().take(80).collect() }),
            many => {
                let matches = many.iter().take(8).map(|m| format!("{} ({})", m.full_name(), m.node.short())).collect();
                Err(FindError::Ambiguous { text: text.to_owned(), matches })
            }
        }
    }

    /// The second newest of the registrars' newest member records, or the only one: a floor for a clock that went back.
    ///
    /// The second, so that one stolen registrar cannot push every clock of the VDC ahead.
    #[must_use]
    pub fn newest_record_time(&self) -> Option<UnixTime> {
        self.newest
    }

    /// How long members stay reachable past their deadline.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.policy.as_ref().map_or_else(|| Document::default().grace(), |p| p.document.grace())
    }

    /// What the policy evaluator and the firewall work on. None while no policy is known: nothing is allowed then.
    #[must_use]
    pub fn model(&self) -> Option<Model> {
        let policy = self.policy.as_ref()?;
        let subjects = self.reachable().flat_map(|m| {
            let host = Subject {
                node: m.node,
                kind: Kind::Host,
                name: m.name.clone(),
                site: m.site_name.clone(),
                roles: m.roles.clone(),
                labels: m.labels.clone(),
                prefix: m.prefix,
                ipv4: m.ipv4,
                declared: m.ports().to_vec(),
                member_record: m.records.member,
                exposure_record: m.records.exposure,
            };
            let workload = |w: &WorkloadView| {
                host.workload(Some(w.name.clone()), (w.v6, w.ipv4), w.labels.clone(), w.ports.clone())
            };
            let workloads: Vec<Subject> = m.workloads.iter().map(workload).collect();
            std::iter::once(host).chain(workloads)
        });
        let blocks = self.blocks.iter().map(|b| ActiveBlock {
            matches: b.block.matches.clone(),
            record: b.record,
            issuer: b.issuer,
            reason: b.block.reason.clone(),
        });
        Some(Model {
            document: policy.document.clone(),
            policy_record: policy.record,
            policy_version: policy.version,
            subjects: subjects.collect(),
            blocks: blocks.collect(),
        })
    }

    /// Takes what a node says of its own workloads for truer than the record that it signed last: the node itself looks
    /// at its view so, because it says so sooner than it signs.
    pub fn set_workloads(&mut self, node: &Key, workloads: &[WorkloadExposure]) {
        self.clashes.retain(|c| !matches!(c, Clash::WorkloadName { .. } | Clash::WorkloadIpv4 { .. }));
        self.clashes.extend(workloads::settle(&mut self.members, Some((node, workloads))));
        self.clashes.sort();
    }

    /// Takes what coordination groups say of short names for truer than the order of keys, as far as the nodes that they name
    /// have a workload of that name.
    pub fn set_names(&mut self, claims: &BTreeMap<Home, BTreeMap<Name, Key>>) {
        self.names = workloads::claimed(&mut self.members, &mut self.clashes, claims);
        self.clashes.sort();
    }

    /// Who has a name in a site: a node, or a workload of another node than `asking`.
    #[must_use]
    pub fn name_holder(&self, asking: &Key, site: SiteNumber, name: &Name) -> Option<NameHolder> {
        workloads::holder(&self.members, asking, site, name)
    }

    /// The workload that a name of the whole VDC means.
    #[must_use]
    pub fn named(&self, name: &Name) -> Option<(&MemberView, &WorkloadView)> {
        let member = self.members.get(self.names.get(name)?)?;
        Some((member, member.workloads.iter().find(|workload| workload.name == *name)?))
    }

    /// Finds a workload by `WORKLOAD`, `WORKLOAD.SITE` or `WORKLOAD.NODE.SITE`.
    #[must_use]
    pub fn find_workload(&self, text: &str) -> Option<(&MemberView, &WorkloadView)> {
        let Some((name, place)) = text.split_once('.') else { return self.named(&Name::new(text).ok()?) };
        let of = |m: &MemberView, w: &WorkloadView| {
            w.name.as_str() == name && (place == m.full_name() || (w.has_short_name && place == m.site_name.as_str()))
        };
        self.reachable().find_map(|m| m.workloads.iter().find(|w| of(m, w)).map(|w| (m, w)))
    }

    /// Whether the key may sign block records and use remote verbs: an admin, a registrar or an operator.
    #[must_use]
    pub fn is_operator(&self, key: &Key) -> bool {
        let registrar = |s: &SiteView| s.registrars.iter().any(|r| r.key == *key && r.active && !r.closed);
        self.is_admin(key)
            || self.sites.values().any(registrar)
            || self.members.get(key).is_some_and(|m| m.standing.is_reachable() && m.roles.contains(&Role::Operator))
    }

    /// Whether the key holds an admin delegation that is neither past its end nor closed.
    #[must_use]
    pub fn is_admin(&self, key: &Key) -> bool {
        self.admins.iter().any(|a| a.key == *key && a.active && !a.closed)
    }

    /// The registrars that may admit and renew in a site at this moment: its own, or its founder's while it has none.
    #[must_use]
    pub fn registrars_for(&self, site: SiteNumber) -> Vec<&RegistrarView> {
        let Some(own) = self.sites.get(&site) else { return Vec::new() };
        let registrars = own.serving();
        if registrars.is_empty() {
            self.sites.get(&own.founder).map_or(registrars, SiteView::serving)
        } else {
            registrars
        }
    }

    /// The same view, to be compared with one of a roster that took other steps.
    #[cfg(test)]
    pub(crate) fn with_version(self, version: u64) -> Self {
        Self { version, ..self }
    }

    pub(super) fn build(roster: &Roster, now: UnixTime) -> Self {
        Judge::new(roster, now).view()
    }
}

/// Kinds in [`View::serials`].
pub(super) const SERIAL_MEMBER: u8 = 5;
pub(super) const SERIAL_GRANT: u8 = 6;
pub(super) const SERIAL_BLOCK: u8 = 7;
pub(super) const SERIAL_CONTACT: u8 = 8;
pub(super) const SERIAL_EXPOSURE: u8 = 9;
