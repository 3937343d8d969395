//! What a node may believe, given what is stored and what time it is.
//!
//! Belief is evaluated from the top rank down ([`believed`]), then judged by time, site and serial ([`View::build`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Roster;
use super::authority::{Closing, EstateEntry, Powers, Rank};
use crate::address::NodePrefix;
use crate::policy::{ActiveBlock, Document, Model, Subject};
use crate::record::{
    Authority, Block, Body, Contact, ContactAddress, Delegation, Exposure, Grant, Member, Policy, PortRange, Role,
    Site, Tombstone,
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
    contact: Option<Arc<Signed>>,
    exposure: Option<Arc<Signed>>,
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
    /// Two policies of one version.
    Policy { version: u64, chosen: Hash, other: Hash },
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
    /// Ascending.
    pub clashes: Vec<Clash>,
    /// See [`View::newest_record_time`].
    newest: Option<UnixTime>,
    /// What serial a new statement about the subject needs, at least: the highest seen of it, believed or not.
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
        let subjects = self.reachable().map(|m| Subject {
            node: m.node,
            name: m.name.clone(),
            site: m.site_name.clone(),
            roles: m.roles.clone(),
            labels: m.labels.clone(),
            prefix: m.prefix,
            ipv4: m.ipv4,
            declared: m.ports().to_vec(),
            member_record: m.records.member,
            exposure_record: m.records.exposure,
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

    /// The registrars that may admit and renew in a site at this moment: its own, or its founder's while it never had
    /// one.
    #[must_use]
    pub fn registrars_for(&self, site: SiteNumber) -> Vec<&RegistrarView> {
        let Some(own) = self.sites.get(&site) else { return Vec::new() };
        let holder = if own.registrars.is_empty() { self.sites.get(&own.founder) } else { Some(own) };
        let registrars = holder.map_or(&[][..], |s| s.registrars.as_slice());
        registrars.iter().filter(|r| r.active && !r.closed).collect()
    }

    pub(super) fn build(roster: &Roster, now: UnixTime) -> Self {
        Builder::new(roster, now).build()
    }
}

/// One believed statement and the rank that it was made with.
#[derive(Clone, Copy)]
struct Believed<'a> {
    record: &'a Arc<Signed>,
    closing: Option<&'a Arc<Closing>>,
    rank: Rank,
}

/// What an office contributes: its slots, or what closings leave of it.
fn contributions<'a>(
    slots: &BTreeMap<(Office, Key), Vec<Believed<'a>>>,
    closings: &[&'a BTreeMap<Hash, EstateEntry>],
    issuer: &Key,
    under: Office,
    rank: Rank,
) -> Vec<Believed<'a>> {
    let Some((first, rest)) = closings.split_first() else {
        let found = slots.get(&(under, *issuer)).into_iter().flatten();
        return found.map(|b| Believed { rank, ..*b }).collect();
    };
    first
        .iter()
        .filter(|(hash, entry)| {
            entry.record.issuer == *issuer && entry.record.under == under && rest.iter().all(|r| r.contains_key(hash))
        })
        .map(|(_, entry)| Believed { record: &entry.record, closing: entry.closing.as_ref(), rank })
        .collect()
}

/// What is believed before time and site are judged.
struct Belief<'a> {
    statements: Vec<Believed<'a>>,
    /// Registrars that an admin closed.
    suspended: BTreeMap<Key, Vec<&'a BTreeMap<Hash, EstateEntry>>>,
}

/// Evaluates belief from the owners down: an office's contribution depends only on offices above it.
fn believed(roster: &Roster) -> Belief<'_> {
    let root = Office::root(&roster.vdc);
    let mut slots: BTreeMap<(Office, Key), Vec<Believed<'_>>> = BTreeMap::new();
    let mut statements = Vec::new();
    for (hash, record) in &roster.records {
        let closing = roster.closings.get(hash);
        if record.under != root {
            let slot = slots.entry((record.under, record.issuer)).or_default();
            slot.push(Believed { record, closing, rank: Rank::Node });
        } else if !matches!(record.body, Body::Genesis(_)) {
            statements.push(Believed { record, closing, rank: Rank::Owners });
        }
    }
    let mut suspended: BTreeMap<Key, Vec<&BTreeMap<Hash, EstateEntry>>> = BTreeMap::new();
    // Those to whom the rank above gave a right, by office: first whom the owners chose, then whom the admins chose, then
    // whom the registrars admitted.
    let mut rank_above = statements.clone();
    for rank in [Rank::Admin, Rank::Registrar, Rank::Node] {
        let mut offices: BTreeMap<(Office, Key), Powers> = BTreeMap::new();
        for given in &rank_above {
            let (subject, powers) = match &given.record.body {
                Body::Delegation(d) => (d.subject, Powers::of(&d.authority)),
                Body::Member(m) => (m.node, Powers { node: true, ..Powers::default() }),
                _ => continue,
            };
            let held = offices.entry((given.record.office(&roster.vdc), subject)).or_default();
            *held = held.union(powers);
        }
        // The owners may delegate registrars directly: those wait for their turn, after the admins' closings.
        let (now, later): (Vec<_>, Vec<_>) = offices.into_iter().partition(|(_, p)| p.rank() == Some(rank));
        let mut next: Vec<Believed<'_>> = rank_above
            .iter()
            .filter(|b| {
                let waits =
                    |subject: &Key| later.iter().any(|((o, k), _)| k == subject && *o == b.record.office(&roster.vdc));
                matches!(&b.record.body, Body::Delegation(d) if waits(&d.subject))
            })
            .copied()
            .collect();
        for ((under, key), powers) in now {
            let mut closings = Vec::new();
            closings.extend(roster.closed.get(&key).map(|c| &c.remaining));
            if rank > Rank::Admin {
                closings.extend(suspended.get(&key).into_iter().flatten().copied());
            }
            let said = contributions(&slots, &closings, &key, under, rank);
            next.extend(said.into_iter().filter(|b| powers.allow(&key, &b.record.body)));
        }
        for b in next.iter().filter(|b| b.rank == Rank::Admin) {
            if let (Body::Tombstone(t), Some(closing)) = (&b.record.body, b.closing) {
                suspended.entry(t.subject).or_default().push(&closing.records);
            }
        }
        statements.extend(next.iter().filter(|b| b.rank == rank));
        rank_above = next;
    }
    Belief { statements, suspended }
}

/// One registrar's statement that a node belongs to a site.
#[derive(Clone, Copy)]
struct Claim<'a> {
    record: &'a Arc<Signed>,
    member: &'a Member,
    /// By a registrar of the site itself, not of its founder.
    own: bool,
    /// The tombstone that ends it.
    ended_by: Option<Hash>,
}

struct Builder<'a> {
    roster: &'a Roster,
    now: UnixTime,
    statements: Vec<Believed<'a>>,
    suspended: BTreeSet<Key>,
    clashes: Vec<Clash>,
}

impl<'a> Builder<'a> {
    fn new(roster: &'a Roster, now: UnixTime) -> Self {
        let belief = believed(roster);
        let suspended = belief.suspended.keys().copied().collect();
        Self { roster, now, statements: belief.statements, suspended, clashes: Vec::new() }
    }

    fn build(mut self) -> View {
        let (admins, registrars) = self.officers();
        let mut sites = self.sites();
        for registrar in &registrars {
            if let Authority::Registrar(number) = registrar.delegation.authority
                && let Some(site) = sites.get_mut(&number)
            {
                site.registrars.push(registrar.clone());
            }
        }
        for site in sites.values_mut() {
            site.registrars.sort_by_key(|r| (!r.active, r.key, r.under));
        }
        let policy = self.policy();
        let grace = policy.as_ref().map_or_else(|| Document::default().grace(), |p| p.document.grace());
        let tombstones = self.tombstones();
        let claims = self.claims(&sites, &registrars, &tombstones, grace);
        let newest = newest(&claims);
        let mut members = self.members(claims, &sites, &admins, &tombstones, &registrars, grace);
        self.settle_names(&mut members);
        self.settle_addresses(&mut members, &sites);
        let blocks = self.blocks(&members);
        let genesis = self.roster.genesis();
        self.clashes.sort();
        View {
            vdc: self.roster.vdc,
            name: genesis.name.clone(),
            now: self.now,
            version: self.roster.version,
            owners: genesis.owners.clone(),
            threshold: genesis.threshold,
            ipv4: genesis.ipv4,
            admins,
            sites,
            members,
            policy,
            blocks,
            tombstones,
            newest,
            serials: serials(&self.statements),
            clashes: self.clashes,
        }
    }

    fn officers(&self) -> (Vec<AdminView>, Vec<RegistrarView>) {
        let (mut admins, mut registrars) = (Vec::new(), Vec::new());
        for b in &self.statements {
            let Body::Delegation(delegation) = &b.record.body else { continue };
            let key = delegation.subject;
            let under = b.record.office(&self.roster.vdc);
            let active = self.now <= delegation.not_after;
            let (delegation, record) = (delegation.clone(), b.record.hash());
            let closed = self.roster.closed.contains_key(&key);
            match delegation.authority {
                Authority::Admin => admins.push(AdminView { key, under, delegation, record, active, closed }),
                Authority::Registrar(_) => {
                    let closed = closed || self.suspended.contains(&key);
                    registrars.push(RegistrarView { key, under, delegation, record, active, closed });
                }
            }
        }
        admins.sort_by_key(|a| (a.key, a.under));
        (admins, registrars)
    }

    fn sites(&mut self) -> BTreeMap<SiteNumber, SiteView> {
        let mut heads: BTreeMap<SiteNumber, (&Site, &Arc<Signed>)> = BTreeMap::new();
        for b in &self.statements {
            let Body::Site(site) = &b.record.body else { continue };
            let head = heads.entry(site.number).or_insert((site, b.record));
            if (head.0.serial, head.1.hash()) < (site.serial, b.record.hash()) {
                *head = (site, b.record);
            }
        }
        let range = self.roster.genesis().ipv4;
        let mut names: BTreeMap<&Name, SiteNumber> = BTreeMap::new();
        let mut sites: BTreeMap<SiteNumber, SiteView> = BTreeMap::new();
        for (number, (site, record)) in &heads {
            let name = match names.entry(&site.name) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(*number);
                    site.name.clone()
                }
                std::collections::btree_map::Entry::Occupied(entry) => {
                    let shown = suffixed(&site.name, &number.0.to_string());
                    let (name, keeps) = (site.name.clone(), *entry.get());
                    self.clashes.push(Clash::SiteName { name, keeps, other: *number, shown: shown.clone() });
                    shown
                }
            };
            let inside =
                |block: &Ipv4Block| range.is_some_and(|r| r.contains(block.network()) && r.length() <= block.length());
            let mut ipv4 = site.ipv4.filter(inside);
            let overlap = |s: &&SiteView| matches!((s.ipv4, ipv4), (Some(a), Some(b)) if a.overlaps(b));
            if let Some(other) = sites.values().find(overlap) {
                self.clashes.push(Clash::SiteIpv4 { keeps: other.number, other: *number });
                ipv4 = None;
            }
            let view = SiteView {
                number: *number,
                name,
                recorded_name: site.name.clone(),
                serial: site.serial,
                ipv4,
                founder: site.founder,
                created: site.created,
                record: record.hash(),
                registrars: Vec::new(),
            };
            sites.insert(*number, view);
        }
        sites
    }

    fn policy(&mut self) -> Option<PolicyView> {
        let mut head: Option<(&Policy, &Arc<Signed>)> = None;
        let policies = self.statements.iter().filter_map(|b| match &b.record.body {
            Body::Policy(policy) => Some((policy, b.record)),
            _ => None,
        });
        for (policy, record) in policies.clone() {
            if head.is_none_or(|(p, r)| (p.version, r.hash()) < (policy.version, record.hash())) {
                head = Some((policy, record));
            }
        }
        let (policy, record) = head?;
        let rivals: Vec<_> = policies
            .filter(|(p, _)| p.version == policy.version && *p != policy)
            .map(|(_, r)| Clash::Policy { version: policy.version, chosen: record.hash(), other: r.hash() })
            .collect();
        let forked = !rivals.is_empty();
        self.clashes.extend(rivals);
        Some(PolicyView {
            version: policy.version,
            document: policy.document.clone(),
            record: record.hash(),
            issuer: record.issuer,
            body: policy.body_hash(),
            forked,
        })
    }

    fn tombstones(&self) -> Vec<TombstoneView> {
        let mut tombstones: Vec<_> = self
            .statements
            .iter()
            .filter_map(|b| match &b.record.body {
                Body::Tombstone(Tombstone { subject, floor, at, reason, estate }) => Some(TombstoneView {
                    subject: *subject,
                    floor: *floor,
                    at: *at,
                    reason: reason.clone(),
                    closes: estate.is_some(),
                    record: b.record.hash(),
                    issuer: b.record.issuer,
                    rank: b.rank,
                }),
                _ => None,
            })
            .collect();
        tombstones.sort_by_key(|t| (t.subject, t.record));
        tombstones
    }

    /// Every covered claim by node.
    ///
    /// A registrar's delegation covers a member of its own site, dated no later than the delegation's end; and a member
    /// of a site that its site founded, while that site has no registrar of its own (and for one grace period after it
    /// got one, so that a founder who could not know yet does no harm). A record dated *before* its issuer's delegation
    /// began is believed: clocks differ, and the issuer dates its records itself.
    fn claims(
        &self,
        sites: &BTreeMap<SiteNumber, SiteView>,
        registrars: &[RegistrarView],
        tombstones: &[TombstoneView],
        grace: Duration,
    ) -> BTreeMap<Key, Vec<Claim<'a>>> {
        let mut by_office: BTreeMap<(Key, Office), Vec<&Delegation>> = BTreeMap::new();
        for r in registrars {
            by_office.entry((r.key, r.under)).or_default().push(&r.delegation);
        }
        let mut claims: BTreeMap<Key, Vec<Claim<'a>>> = BTreeMap::new();
        for b in &self.statements {
            let Body::Member(member) = &b.record.body else { continue };
            let Some(site) = sites.get(&member.site) else { continue };
            let held = by_office.get(&(b.record.issuer, b.record.under)).map_or(&[][..], Vec::as_slice);
            let covers = |number: SiteNumber| {
                held.iter().any(|d| d.authority == Authority::Registrar(number) && member.not_before <= d.not_after)
            };
            let own = covers(member.site);
            let handed_over = site.registrars.iter().map(|r| r.delegation.not_before.plus(grace)).min();
            if own || (covers(site.founder) && handed_over.is_none_or(|end| member.not_before <= end)) {
                claims.entry(member.node).or_default().push(Claim { record: b.record, member, own, ended_by: None });
            }
        }
        for t in tombstones {
            for claim in claims.get_mut(&t.subject).into_iter().flatten() {
                if claim.member.serial <= t.floor && covers_site(t, claim.member.site, sites, registrars) {
                    // Of several that end it, the one with the lowest hash is named.
                    claim.ended_by = Some(claim.ended_by.map_or(t.record, |hash| hash.min(t.record)));
                }
            }
        }
        claims
    }

    fn members(
        &mut self,
        claims: BTreeMap<Key, Vec<Claim<'a>>>,
        sites: &BTreeMap<SiteNumber, SiteView>,
        admins: &[AdminView],
        tombstones: &[TombstoneView],
        registrars: &[RegistrarView],
        grace: Duration,
    ) -> BTreeMap<Key, MemberView> {
        let (contacts, exposures, grants) = self.newest_of_subject();
        let mut floors: BTreeMap<Key, Vec<&TombstoneView>> = BTreeMap::new();
        for t in tombstones {
            floors.entry(t.subject).or_default().push(t);
        }
        let mut members = BTreeMap::new();
        for (node, claims) in claims {
            let (contact, exposure) = (contacts.get(&node).copied(), exposures.get(&node).copied());
            let stands_on = [contact, exposure].into_iter().flatten().max_by_key(|r| (own_serial(r), r.hash()));
            let chosen = self.choose(&claims, stands_on.map(|r| r.under));
            let (member, record) = (chosen.member, chosen.record);
            let Some(site) = sites.get(&member.site) else { continue };
            let standing = match chosen.ended_by {
                Some(_) => Standing::Revoked,
                None => standing(member, self.now, grace),
            };
            let ended = |serial: u64| {
                let floors = floors.get(&node).map_or(&[][..], Vec::as_slice);
                floors.iter().any(|t| serial <= t.floor && covers_site(t, member.site, sites, registrars))
            };
            let grant = grants.get(&node).filter(|(g, _)| standing != Standing::Revoked && !ended(g.serial));
            let mut roles = BTreeSet::from([Role::Host]);
            roles.extend(grant.iter().flat_map(|(g, _)| g.roles.iter().copied()));
            if admins.iter().any(|a| a.key == node && a.active && !a.closed) {
                roles.insert(Role::Admin);
            }
            if self.roster.genesis().owners.contains(&node) {
                roles.insert(Role::Owner);
            }
            let view = MemberView {
                node,
                wg: member.wg,
                site: member.site,
                site_name: site.name.clone(),
                name: member.name.clone(),
                recorded_name: member.name.clone(),
                serial: member.serial,
                prefix: NodePrefix::derive(&self.roster.vdc, member.site, &node, member.bump),
                ipv4: member.ipv4,
                not_before: member.not_before,
                not_after: member.not_after,
                ephemeral: member.ephemeral,
                standing,
                roles: roles.into_iter().collect(),
                labels: grant.map(|(g, _)| g.labels.clone()).unwrap_or_default(),
                registrar: record.issuer,
                under: record.office(&self.roster.vdc),
                records: MemberRecords {
                    member: record.hash(),
                    grant: grant.map(|(_, r)| r.hash()),
                    contact: contact.map(|r| r.hash()),
                    exposure: exposure.map(|r| r.hash()),
                    tombstone: chosen.ended_by,
                },
                contact: contact.cloned(),
                exposure: exposure.cloned(),
            };
            members.insert(node, view);
        }
        members
    }

    /// Of several claims: a live one before an ended one; then the site by which the node itself stands (its own newest
    /// record names that registrar's office; no registrar of another site can forge this); then the site's own registrar
    /// before its founder's; then the highest serial and hash.
    fn choose(&mut self, claims: &[Claim<'a>], stands_on: Option<Office>) -> Claim<'a> {
        let vdc = &self.roster.vdc;
        let home = claims.iter().find(|c| Some(c.record.office(vdc)) == stands_on).map(|c| c.member.site);
        let best = claims
            .iter()
            .max_by_key(|c| {
                (c.ended_by.is_none(), Some(c.member.site) == home, c.own, c.member.serial, c.record.hash())
            })
            .copied()
            .expect("a node is in the map only with a claim");
        let others: BTreeSet<_> = claims
            .iter()
            .filter(|c| c.ended_by.is_none() && best.ended_by.is_none() && c.member.site != best.member.site)
            .map(|c| c.member.site)
            .collect();
        let (node, chosen) = (best.member.node, best.member.site);
        self.clashes.extend(others.into_iter().map(|other| Clash::NodeSite { node, chosen, other }));
        best
    }

    /// The newest contact, exposure and grant of every node.
    #[expect(clippy::type_complexity, reason = "three maps that are taken apart at once")]
    fn newest_of_subject(
        &self,
    ) -> (BTreeMap<Key, &'a Arc<Signed>>, BTreeMap<Key, &'a Arc<Signed>>, BTreeMap<Key, (&'a Grant, &'a Arc<Signed>)>)
    {
        let (mut contacts, mut exposures, mut grants) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let newer = |held: &Arc<Signed>, record: &Arc<Signed>| {
            (own_serial(held), held.hash()) < (own_serial(record), record.hash())
        };
        for b in &self.statements {
            let record = b.record;
            match &record.body {
                Body::Contact(c) => {
                    let held = contacts.entry(c.node).or_insert(record);
                    if newer(held, record) {
                        *held = record;
                    }
                }
                Body::Exposure(e) => {
                    let held = exposures.entry(e.node).or_insert(record);
                    if newer(held, record) {
                        *held = record;
                    }
                }
                Body::Grant(g) => {
                    let held = grants.entry(g.subject).or_insert((g, record));
                    if newer(held.1, record) {
                        *held = (g, record);
                    }
                }
                _ => {}
            }
        }
        (contacts, exposures, grants)
    }

    /// In each site a name belongs to the reachable node with the lowest key; the others get a suffix from their key.
    fn settle_names(&mut self, members: &mut BTreeMap<Key, MemberView>) {
        let order = precedence(members);
        let mut holders: BTreeMap<(SiteNumber, Name), Key> = BTreeMap::new();
        let mut losers = Vec::new();
        for node in order {
            let m = &members[&node];
            match holders.entry((m.site, m.recorded_name.clone())) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(node);
                }
                std::collections::btree_map::Entry::Occupied(entry) => losers.push((node, *entry.get())),
            }
        }
        for (node, keeps) in losers {
            let m = &members[&node];
            let (site, name) = (m.site, m.recorded_name.clone());
            let digest = blake3::hash(&node.0).to_hex();
            let shown = (4..=32)
                .map(|digits| suffixed(&name, &digest[..digits]))
                .find(|shown| !holders.contains_key(&(site, shown.clone())))
                .unwrap_or_else(|| suffixed(&name, &digest[..33]));
            holders.insert((site, shown.clone()), node);
            if m.standing.is_reachable() && members[&keeps].standing.is_reachable() {
                self.clashes.push(Clash::NodeName { site, name, keeps, other: node, shown: shown.clone() });
            }
            if let Some(m) = members.get_mut(&node) {
                m.name = shown;
            }
        }
    }

    /// Prefixes, IPv4 blocks and WireGuard keys belong to the reachable node with the lowest key.
    fn settle_addresses(&mut self, members: &mut BTreeMap<Key, MemberView>, sites: &BTreeMap<SiteNumber, SiteView>) {
        let mut prefixes: BTreeMap<NodePrefix, Key> = BTreeMap::new();
        let mut blocks: BTreeMap<u32, (Ipv4Block, Key)> = BTreeMap::new();
        let mut wg: BTreeMap<WgKey, Key> = BTreeMap::new();
        for node in precedence(members) {
            let Some(m) = members.get_mut(&node) else { continue };
            let reachable = m.standing.is_reachable();
            if let Some(keeps) = prefixes.get(&m.prefix).copied() {
                let free = (0..=u8::MAX)
                    .map(|bump| NodePrefix::derive(&self.roster.vdc, m.site, &node, bump))
                    .find(|p| !prefixes.contains_key(p));
                m.prefix = free.unwrap_or(m.prefix);
                if reachable {
                    self.clashes.push(Clash::NodePrefix { site: m.site, keeps, other: node });
                }
            }
            prefixes.entry(m.prefix).or_insert(node);
            if let Some(block) = m.ipv4 {
                let inside = sites.get(&m.site).and_then(|s| s.ipv4).is_some_and(|site| {
                    site.contains(block.network()) && block.length() >= site.length() && block.length() <= 30
                });
                // Blocks are aligned, so an overlapping one starts at or before this one's last address.
                let last = block.network().to_bits() | (u32::MAX >> block.length());
                let neighbour = blocks.range(..=last).next_back().filter(|(_, (b, _))| b.overlaps(block));
                let keeps = neighbour.map(|(_, (_, key))| *key);
                if inside && keeps.is_none() {
                    blocks.insert(block.network().to_bits(), (block, node));
                } else {
                    m.ipv4 = None;
                    if reachable {
                        self.clashes.push(Clash::NodeIpv4 { block, keeps, other: node });
                    }
                }
            }
            match wg.get(&m.wg) {
                Some(keeps) if reachable => self.clashes.push(Clash::WgKey { keeps: *keeps, other: node }),
                _ => {
                    wg.insert(m.wg, node);
                }
            }
        }
    }

    /// Active blocks: placed by somebody who may, and not lifted by its author with a higher serial, nor by a higher
    /// rank.
    fn blocks(&self, members: &BTreeMap<Key, MemberView>) -> Vec<BlockView> {
        let may = |b: &Believed<'_>| {
            let operator = |m: &MemberView| m.standing.is_reachable() && m.roles.contains(&Role::Operator);
            b.rank < Rank::Node || members.get(&b.record.issuer).is_some_and(operator)
        };
        let mut by_id: BTreeMap<Hash, Vec<(&Block, Believed<'a>)>> = BTreeMap::new();
        for b in self.statements.iter().filter(|b| may(b)) {
            if let Body::Block(block) = &b.record.body {
                by_id.entry(block.id).or_default().push((block, *b));
            }
        }
        let lifts = |lift: &(&Block, Believed<'_>), (block, by): &(&Block, Believed<'_>)| {
            let entitled =
                lift.1.record.issuer == by.record.issuer || lift.1.rank < by.rank || lift.1.rank <= Rank::Admin;
            lift.0.lifted && lift.0.serial > block.serial && entitled
        };
        let mut blocks = Vec::new();
        for statements in by_id.values() {
            let standing = statements.iter().filter(|s| !s.0.lifted && !statements.iter().any(|l| lifts(l, s)));
            if let Some((block, by)) = standing.max_by_key(|(block, by)| (block.serial, by.record.hash())) {
                let (record, issuer) = (by.record.hash(), by.record.issuer);
                blocks.push(BlockView { block: (*block).clone(), record, issuer });
            }
        }
        blocks
    }
}

/// Whether a tombstone speaks for nodes of a site: an owner's and an admin's for all, a registrar's for its own site and
/// those that it founded, a node's for itself. Its time does not matter: ending is always heard.
fn covers_site(
    t: &TombstoneView,
    site: SiteNumber,
    sites: &BTreeMap<SiteNumber, SiteView>,
    registrars: &[RegistrarView],
) -> bool {
    let founder = sites.get(&site).map(|s| s.founder);
    let holds = |r: &RegistrarView| {
        r.key == t.issuer
            && matches!(r.delegation.authority, Authority::Registrar(s) if s == site || Some(s) == founder)
    };
    t.rank <= Rank::Admin || t.issuer == t.subject || registrars.iter().any(holds)
}

/// Reachable nodes first, then by key: the order in which names and addresses are given.
fn precedence(members: &BTreeMap<Key, MemberView>) -> Vec<Key> {
    let (reachable, others): (Vec<&MemberView>, Vec<_>) = members.values().partition(|m| m.standing.is_reachable());
    reachable.into_iter().chain(others).map(|m| m.node).collect()
}

fn standing(member: &Member, now: UnixTime, grace: Duration) -> Standing {
    let until = member.not_after.plus(grace);
    if now <= member.not_after {
        Standing::Current
    } else if member.ephemeral || now > until {
        Standing::Expired
    } else {
        Standing::Grace { until }
    }
}

/// `NAME-SUFFIX`, with the name cut so that the whole stays a name.
pub(super) fn suffixed(name: &Name, suffix: &str) -> Name {
    let room = Name::LENGTH_MAX.saturating_sub(suffix.len() + 1);
    let stem = name.as_str().get(..room).unwrap_or(name.as_str()).trim_end_matches('-');
    Name::new(&format!("{stem}-{suffix}")).expect("a name cut at its end, a hyphen and letters or digits")
}

fn newest(claims: &BTreeMap<Key, Vec<Claim<'_>>>) -> Option<UnixTime> {
    let mut newest: BTreeMap<Key, UnixTime> = BTreeMap::new();
    for claim in claims.values().flatten() {
        let time = newest.entry(claim.record.issuer).or_default();
        *time = claim.member.not_before.max(*time);
    }
    let mut times: Vec<_> = newest.into_values().collect();
    times.sort_unstable_by(|a, b| b.cmp(a));
    times.get(1).or(times.first()).copied()
}

/// The serial by which statements about one subject are ordered.
fn own_serial(record: &Signed) -> u64 {
    super::merge::serial(&record.body)
}

fn serials(statements: &[Believed<'_>]) -> BTreeMap<(u8, [u8; 32]), u64> {
    let mut serials: BTreeMap<(u8, [u8; 32]), u64> = BTreeMap::new();
    let mut raise = |kind: u8, subject: [u8; 32], serial: u64| {
        let held = serials.entry((kind, subject)).or_default();
        *held = serial.max(*held);
    };
    for b in statements {
        let kind = super::kind_order(&b.record.body);
        match &b.record.body {
            Body::Tombstone(t) if t.floor < u64::MAX => {
                raise(SERIAL_MEMBER, t.subject.0, t.floor);
                raise(SERIAL_GRANT, t.subject.0, t.floor);
            }
            Body::Member(m) => raise(kind, m.node.0, m.serial),
            Body::Grant(g) => raise(kind, g.subject.0, g.serial),
            Body::Contact(c) => raise(kind, c.node.0, c.serial),
            Body::Exposure(e) => raise(kind, e.node.0, e.serial),
            Body::Block(b) => raise(kind, b.id.0, b.serial),
            _ => {}
        }
    }
    serials
}

/// Keys of [`View::serials`]: the kinds' places in the sending order.
pub(super) const SERIAL_MEMBER: u8 = 5;
pub(super) const SERIAL_GRANT: u8 = 6;
pub(super) const SERIAL_BLOCK: u8 = 7;
pub(super) const SERIAL_CONTACT: u8 = 8;
pub(super) const SERIAL_EXPOSURE: u8 = 9;
