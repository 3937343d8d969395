//! The judgement of believed statements by time, site and serial, and the settling of clashes between them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Roster;
use super::authority::Rank;
use super::belief::{Believed, believed};
use super::foundings;
use super::view::{
    AdminView, BlockView, Clash, MemberRecords, MemberView, PolicyView, RegistrarView, SERIAL_BLOCK, SERIAL_CONTACT,
    SERIAL_EXPOSURE, SERIAL_GRANT, SERIAL_MEMBER, SiteView, Standing, TombstoneView, View,
};
use crate::address::NodePrefix;
use crate::policy::Document;
use crate::record::{Authority, Block, Body, Delegation, Grant, Home, Member, Policy, Role, Site, Tombstone};
use crate::{Hash, Ipv4Block, Key, Name, Office, Signed, SiteNumber, UnixTime, WgKey};

/// One registrar's statement that a node belongs to a site.
#[derive(Clone, Copy)]
struct Claim<'a> {
    record: &'a Arc<Signed>,
    member: &'a Member,
    /// The tombstone that ends it.
    ended_by: Option<Hash>,
}

/// Which registrars may speak for which sites, and when.
pub(super) struct Admitting<'a> {
    sites: &'a BTreeMap<SiteNumber, SiteView>,
    by_office: BTreeMap<(Key, Office), Vec<&'a Delegation>>,
    grace: Duration,
}

impl<'a> Admitting<'a> {
    fn new(sites: &'a BTreeMap<SiteNumber, SiteView>, registrars: &'a [RegistrarView], grace: Duration) -> Self {
        let mut by_office: BTreeMap<(Key, Office), Vec<&Delegation>> = BTreeMap::new();
        for r in registrars {
            by_office.entry((r.key, r.under)).or_default().push(&r.delegation);
        }
        Self { sites, by_office, grace }
    }

    /// Whether the issuer of a record dated `at` was a registrar that may admit in `site`.
    ///
    /// A registrar's delegation covers what concerns its own site, dated no later than the delegation's end; and a site
    /// that its site founded, unless at that date the site had a registrar of its own: one that is not closed, whose
    /// delegation had not ended, and had begun more than one grace period before (a founder beyond a partition cannot
    /// know sooner). A record dated *before* its issuer's delegation began is believed: clocks differ, and the issuer
    /// dates its records itself.
    pub(super) fn covers(&self, record: &Signed, site: SiteNumber, at: UnixTime) -> bool {
        let Some(site) = self.sites.get(&site) else { return false };
        let held = self.by_office.get(&(record.issuer, record.under)).map_or(&[][..], Vec::as_slice);
        let covers = |number| held.iter().any(|d| d.authority == Authority::Registrar(number) && at <= d.not_after);
        let serves = |r: &RegistrarView| {
            !r.closed && r.delegation.not_before.plus(self.grace) < at && at <= r.delegation.not_after
        };
        covers(site.number) || (covers(site.founder) && !site.registrars.iter().any(serves))
    }
}

pub(super) struct Judge<'a> {
    roster: &'a Roster,
    now: UnixTime,
    statements: Vec<Believed<'a>>,
    suspended: BTreeSet<Key>,
    clashes: Vec<Clash>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(roster: &'a Roster, now: UnixTime) -> Self {
        let belief = believed(roster);
        let suspended = belief.suspended.keys().copied().collect();
        Self { roster, now, statements: belief.statements, suspended, clashes: Vec::new() }
    }

    pub(super) fn view(mut self) -> View {
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
        let admitting = Admitting::new(&sites, &registrars, grace);
        let claims = self.claims(&admitting, &sites, &registrars, &tombstones);
        let founded = foundings::settle(&self.statements, &admitting, |founder, home| {
            claims.get(founder).is_some_and(|claims| match home {
                Home::Vdc => true,
                Home::Site(site) => claims.iter().any(|c| c.member.site == site),
            })
        });
        self.clashes.extend(founded.clashes);
        let newest = newest(&claims);
        let serials = serials(&self.statements, &claims, &tombstones, &sites, &registrars);
        let mut members = self.members(claims, &sites, &admins, &tombstones, &registrars, grace);
        self.settle_names(&mut members);
        self.settle_addresses(&mut members, &sites);
        self.clashes.extend(super::workloads::settle(&mut members, None));
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
            names: BTreeMap::new(),
            foundings: founded.effective,
            founding_heads: founded.heads,
            newest,
            serials,
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
    fn claims(
        &self,
        admitting: &Admitting<'_>,
        sites: &BTreeMap<SiteNumber, SiteView>,
        registrars: &[RegistrarView],
        tombstones: &[TombstoneView],
    ) -> BTreeMap<Key, Vec<Claim<'a>>> {
        let mut claims: BTreeMap<Key, Vec<Claim<'a>>> = BTreeMap::new();
        for b in &self.statements {
            let Body::Member(member) = &b.record.body else { continue };
            if admitting.covers(b.record, member.site, member.not_before) {
                claims.entry(member.node).or_default().push(Claim { record: b.record, member, ended_by: None });
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
                workloads: vec![],
                contact: contact.cloned(),
                exposure: exposure.cloned(),
            };
            members.insert(node, view);
        }
        members
    }

    /// Of several claims: a live one before an ended one; then the site by which the node itself stands (its own newest
    /// record names that registrar's office; no registrar of another site can forge this); then the highest serial and
    /// hash.
    fn choose(&mut self, claims: &[Claim<'a>], stands_on: Option<Office>) -> Claim<'a> {
        let vdc = &self.roster.vdc;
        let home = claims.iter().find(|c| Some(c.record.office(vdc)) == stands_on).map(|c| c.member.site);
        let best = claims
            .iter()
            .max_by_key(|c| (c.ended_by.is_none(), Some(c.member.site) == home, c.member.serial, c.record.hash()))
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

/// The highest believed serial of each subject. What is not covered does not count: nobody can use up the serials of a
/// node that is not his to admit.
fn serials(
    statements: &[Believed<'_>],
    claims: &BTreeMap<Key, Vec<Claim<'_>>>,
    tombstones: &[TombstoneView],
    sites: &BTreeMap<SiteNumber, SiteView>,
    registrars: &[RegistrarView],
) -> BTreeMap<(u8, [u8; 32]), u64> {
    let mut serials: BTreeMap<(u8, [u8; 32]), u64> = BTreeMap::new();
    let mut raise = |kind: u8, subject: [u8; 32], serial: u64| {
        let held = serials.entry((kind, subject)).or_default();
        *held = serial.max(*held);
    };
    for b in statements {
        match &b.record.body {
            Body::Grant(g) => raise(SERIAL_GRANT, g.subject.0, g.serial),
            Body::Contact(c) => raise(SERIAL_CONTACT, c.node.0, c.serial),
            Body::Exposure(e) => raise(SERIAL_EXPOSURE, e.node.0, e.serial),
            Body::Block(b) => raise(SERIAL_BLOCK, b.id.0, b.serial),
            _ => {}
        }
    }
    for claim in claims.values().flatten() {
        raise(SERIAL_MEMBER, claim.member.node.0, claim.member.serial);
    }
    for t in tombstones.iter().filter(|t| t.floor < u64::MAX) {
        let claims = claims.get(&t.subject).map_or(&[][..], Vec::as_slice);
        if claims.iter().any(|c| covers_site(t, c.member.site, sites, registrars)) {
            raise(SERIAL_MEMBER, t.subject.0, t.floor);
            raise(SERIAL_GRANT, t.subject.0, t.floor);
        }
    }
    serials
}
