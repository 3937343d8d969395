//! What an issuer should sign: drafts of every kind of record, made from a view.
//!
//! Pure: the caller supplies keys, numbers, random bytes and the time. Each function returns a [`Draft`] or says why the
//! issuer may not sign it and what to do instead. Nothing here grants a right: what is signed is judged by every roster.

mod founding;

pub use founding::{GroupFounding, founding};

use std::sync::Arc;
use std::time::Duration;

use minicbor::bytes::ByteVec;

use super::view::{
    MemberView, SERIAL_BLOCK, SERIAL_CONTACT, SERIAL_EXPOSURE, SERIAL_GRANT, SERIAL_MEMBER, SiteView, Standing, View,
};
use super::{Rank, Roster};
use crate::address::NodePrefix;
use crate::policy::Document;
use crate::record::{
    Authority, Block, BlockMatch, Body, Contact, ContactAddress, Delegation, Estate, Exposure, Genesis, Grant, Member,
    PLAIN_RECORD_BYTES_MAX, Policy, PortRange, Role, Site, Tombstone, WorkloadExposure,
};
use crate::{Hash, Ipv4Block, Key, Name, Office, Signed, SigningKey, SiteNumber, UnixTime, VdcId, WgKey, codec};

/// How long a member record lasts before it must be renewed.
pub const MEMBER_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long a delegation lasts.
pub const DELEGATION_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Prefix length of a site's IPv4 block: 256 nodes.
pub const SITE_IPV4_LENGTH: u8 = 20;
/// Prefix length of a node's IPv4 block: the host and 13 workloads.
pub const NODE_IPV4_LENGTH: u8 = 28;

/// What a record of one signature has around its body, at most: keys, office, number and signature are below 200 bytes.
const ENVELOPE_BYTES_MAX: usize = 256;

/// How [`IssueError::RankTooLow`] names an admin: only the owners close one.
pub const RANK_ADMIN: &str = "an admin";

/// A record's body and the office that it stands on, ready to be numbered and signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    pub under: Office,
    pub body: Body,
}

impl Draft {
    /// # Errors
    /// [`IssueError::TooLong`] if nobody could read the record.
    fn checked(under: Office, body: Body) -> Result<Self, IssueError> {
        body.check().map_err(IssueError::TooLong)?;
        Ok(Self { under, body })
    }

    /// Signs the draft as the issuer's record `number`; further owners cosign what stands on [`Office::root`].
    #[must_use]
    pub fn sign(self, vdc: &VdcId, key: &SigningKey, number: u64, cosigners: &[&SigningKey]) -> Signed {
        Signed::sign(vdc, key, self.under, number, self.body, cosigners)
    }
}

/// Why an issuer cannot sign something. Every text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    #[error(
        "this key is not an admin of the VDC; run the command on a node that is one (`meshctl node list` shows roles)"
    )]
    NotAdmin,
    #[error(
        "this node is not a registrar of site {site}; run the command on a registrar of it, or let an admin make one \
         (`meshctl site add`)"
    )]
    NotRegistrar { site: String },
    #[error("this node's delegation for site {site} ended at {ended}; an admin must renew it")]
    DelegationEnded { site: String, ended: UnixTime },
    #[error("this node is not a member of the VDC any more; join it again with a new invite")]
    NotMember,
    #[error("only operators, registrars and admins may block; an admin can `meshctl grant NODE --role operator`")]
    NotOperator,
    #[error("there is no site {0} in the VDC; `meshctl site list` shows all")]
    UnknownSite(String),
    #[error("there is no node {0} in the VDC; `meshctl node list` shows all")]
    UnknownNode(Key),
    #[error("this node is a member in site {site}; run `meshctl leave` on it before it joins another site")]
    MemberElsewhere { site: Name },
    #[error("node {0} was revoked; give it a new invite if it may come back")]
    Revoked(Name),
    #[error("there is a site {0} already; choose another name")]
    SiteExists(Name),
    #[error("a VDC has at most 65,535 sites")]
    TooManySites,
    #[error("every address that this node's key gives in site {0} is taken; make a new node key")]
    NoPrefix(Name),
    #[error("the highest serial of this subject is used up: somebody signed it to lock the subject; close that issuer")]
    SerialsUsedUp,
    #[error(
        "an issuer can be closed only by a higher rank, and {subject} is {rank}; use the owners' recovery key for an \
         admin"
    )]
    RankTooLow { subject: Key, rank: &'static str },
    #[error(
        "the issuer {0} signed more than 4,096 records that would remain; renew its members by another registrar first"
    )]
    EstateTooLarge(Key),
    #[error("that is more than one record may say: {0}")]
    TooLong(&'static str),
    #[error("no block record {0} is active; `meshctl blocks` shows all")]
    UnknownBlock(Hash),
    #[error(
        "the group of {home} was founded by {founder} on {created}; if its nodes are lost for good, \
         `meshctl coord recover` founds it anew"
    )]
    Founded {
        /// `the VDC`, or `site NAME`.
        home: String,
        /// The node's full name; its key if it is not known here.
        founder: String,
        created: UnixTime,
        /// What a founding that succeeds this one must name.
        serial: u64,
    },
    #[error("no group of {home} was ever founded; found its first instead of succeeding one")]
    NotFounded { home: String },
    #[error("node {node} is no member of {home}; choose one of its own nodes to make its group")]
    FounderElsewhere { node: String, home: String },
}

/// What founding a VDC needs.
#[derive(Debug)]
pub struct Founding<'a> {
    pub name: Name,
    pub site: Name,
    pub node_name: Name,
    /// The owner key that stays here; its seed is drawn by the caller.
    pub owner: &'a SigningKey,
    /// The owner key for the safe.
    pub recovery: Key,
    /// The first node's key: it becomes admin and the first site's registrar.
    pub node: &'a SigningKey,
    pub wg: WgKey,
    /// 32 random bytes.
    pub nonce: Hash,
    pub ipv4: Option<Ipv4Block>,
    pub now: UnixTime,
}

/// A new VDC.
#[derive(Debug)]
pub struct Founded {
    pub roster: Roster,
    /// In the order in which a roster accepts them.
    pub records: Vec<Signed>,
    pub owner_number_next: u64,
    pub node_number_next: u64,
}

/// Founds a VDC with 1-of-2 owners: genesis, the first node as admin and registrar, the first site, policy version 1, and
/// the first member.
#[must_use]
pub fn found(founding: Founding<'_>) -> Founded {
    let Founding { name, site, node_name, owner, recovery, node, wg, nonce, ipv4, now } = founding;
    let mut owners = vec![owner.public(), recovery];
    owners.sort_unstable();
    owners.dedup();
    let genesis = Genesis { name, owners, threshold: 1, created: now, nonce, ipv4 };
    let vdc = genesis.vdc_id();
    let (root, of_owners) = (Office::root(&vdc), Office::owners(&vdc));
    let of_admin = Office::of(&node.public(), &of_owners);
    let delegation = |authority| {
        let not_after = now.plus(DELEGATION_LIFETIME);
        Body::Delegation(Delegation { subject: node.public(), authority, serial: 1, not_before: now, not_after })
    };
    let number = free_site_number(&site, |_| true).expect("no number is taken yet");
    let site_ipv4 = ipv4.and_then(|range| range.sub_block(range.length().max(SITE_IPV4_LENGTH), 0));
    let member = Member {
        node: node.public(),
        wg,
        site: number,
        name: node_name,
        serial: 1,
        bump: 0,
        ipv4: site_ipv4.and_then(|block| block.sub_block(block.length().max(NODE_IPV4_LENGTH), 0)),
        not_before: now,
        not_after: now.plus(MEMBER_LIFETIME),
        ephemeral: false,
    };
    let site = Site { number, name: site, serial: 1, ipv4: site_ipv4, founder: number, created: now };
    let records = vec![
        Signed::sign(&vdc, owner, root, 1, Body::Genesis(genesis), &[]),
        Signed::sign(&vdc, owner, root, 2, delegation(Authority::Admin), &[]),
        Signed::sign(&vdc, node, of_owners, 1, delegation(Authority::Registrar(number)), &[]),
        Signed::sign(&vdc, node, of_owners, 2, Body::Site(site), &[]),
        Signed::sign(
            &vdc,
            node,
            of_owners,
            3,
            Body::Policy(Policy { version: 1, previous: None, document: Document::default() }),
            &[],
        ),
        Signed::sign(&vdc, node, of_admin, 4, Body::Member(member), &[]),
    ];
    let mut roster = Roster::new(records[0].clone()).expect("a genesis that was just signed by its owner");
    for record in &records[1..] {
        let outcome = roster.insert(record.clone());
        assert_eq!(outcome, super::Outcome::New, "the records of a new VDC justify each other");
    }
    Founded { roster, records, owner_number_next: 3, node_number_next: 5 }
}

/// A new site, founded by another; its number comes from its name, its IPv4 block is the next free one.
///
/// # Errors
/// [`IssueError`] if `admin` is no admin, the name is taken, or there is no number left.
pub fn site(view: &View, admin: &Key, name: &Name, founder: SiteNumber, now: UnixTime) -> Result<Draft, IssueError> {
    let under = admin_office(view, admin)?;
    if view.sites.values().any(|s| s.name == *name || s.recorded_name == *name) {
        return Err(IssueError::SiteExists(name.clone()));
    }
    if !view.sites.contains_key(&founder) {
        return Err(IssueError::UnknownSite(founder.0.to_string()));
    }
    let number = free_site_number(name, |n| !view.sites.contains_key(&n)).ok_or(IssueError::TooManySites)?;
    let used: Vec<_> = view.sites.values().filter_map(|s| s.ipv4).collect();
    let ipv4 = view.ipv4.and_then(|range| free_block(range, SITE_IPV4_LENGTH, &used));
    let site = Site { number, name: name.clone(), serial: 1, ipv4, founder, created: now };
    Ok(Draft { under, body: Body::Site(site) })
}

/// Makes a key admin, or renews it as one: a renewed delegation keeps its beginning.
///
/// # Errors
/// [`IssueError::NotAdmin`] if `owner` is not an owner key.
pub fn admin(view: &View, owner: &Key, subject: Key, now: UnixTime) -> Result<Draft, IssueError> {
    if !view.owners.contains(owner) {
        return Err(IssueError::NotAdmin);
    }
    let held = view.admins.iter().filter(|a| a.key == subject).map(|a| &a.delegation);
    delegation(Office::root(&view.vdc), subject, Authority::Admin, held, now)
}

/// Takes an admin's right back: the next delegation of the same right, which ends before it began on every clock.
///
/// What the admin signed stays. Its own tools sign nothing more as admin from then on; an admin that is not trusted must
/// be closed instead ([`revocation`]), because an admin's records carry no date.
///
/// # Errors
/// [`IssueError::NotAdmin`] if `owner` is not an owner key.
pub fn withdrawal(view: &View, owner: &Key, subject: Key, now: UnixTime) -> Result<Draft, IssueError> {
    let mut draft = admin(view, owner, subject, now)?;
    if let Body::Delegation(delegation) = &mut draft.body {
        delegation.not_before = UnixTime(delegation.not_before.0.saturating_sub(1));
        delegation.not_after = delegation.not_before;
    }
    Ok(draft)
}

/// Makes a key a registrar of a site, or renews it as one: a renewed delegation keeps its beginning.
///
/// # Errors
/// [`IssueError`] if `admin` is no admin or there is no such site.
pub fn registrar(view: &View, admin: &Key, subject: Key, site: SiteNumber, now: UnixTime) -> Result<Draft, IssueError> {
    let under = admin_office(view, admin)?;
    let site = view.sites.get(&site).ok_or_else(|| IssueError::UnknownSite(site.0.to_string()))?;
    let held = site.registrars.iter().filter(|r| r.key == subject).map(|r| &r.delegation);
    delegation(under, subject, Authority::Registrar(site.number), held, now)
}

fn delegation<'a>(
    under: Office,
    subject: Key,
    authority: Authority,
    held: impl Iterator<Item = &'a Delegation> + Clone,
    now: UnixTime,
) -> Result<Draft, IssueError> {
    let serial = held.clone().map(|d| d.serial).max().unwrap_or(0);
    let serial = serial.checked_add(1).ok_or(IssueError::SerialsUsedUp)?;
    let not_before = held.map(|d| d.not_before).min().unwrap_or(now).min(now);
    let not_after = now.plus(DELEGATION_LIFETIME);
    let body = Body::Delegation(Delegation { subject, authority, serial, not_before, not_after });
    Ok(Draft { under, body })
}

/// Who asks to be admitted.
#[derive(Clone, Debug)]
pub struct Admission {
    pub node: Key,
    pub wg: WgKey,
    /// The name it would like; another of the site's nodes may have it already.
    pub name: Name,
    pub site: SiteNumber,
    pub ephemeral: bool,
    pub now: UnixTime,
}

/// Admits a node: derives its prefix, allots it a name and an IPv4 block. A node that is a member already keeps what it
/// has, apart from its WireGuard key.
///
/// # Errors
/// [`IssueError`] if `registrar` may not admit in that site now, the node was revoked, or nothing is left to give.
pub fn member(view: &View, registrar: &Key, admission: &Admission) -> Result<Draft, IssueError> {
    let Admission { node, wg, name, site, ephemeral, now } = admission;
    let site = view.sites.get(site).ok_or_else(|| IssueError::UnknownSite(site.0.to_string()))?;
    let known = view.members.get(node);
    if let Some(known) = known {
        if known.standing == Standing::Revoked && ended_for_good(view, node) {
            return Err(IssueError::Revoked(known.name.clone()));
        }
        if known.standing != Standing::Revoked {
            if known.site != site.number {
                return Err(IssueError::MemberElsewhere { site: known.site_name.clone() });
            }
            return renewal(view, registrar, node, Some(*wg), *now);
        }
    }
    let under = registrar_office(view, registrar, site, *now)?;
    let neighbours = || view.members.values().filter(|m| m.site == site.number && m.node != *node);
    let bump = free_bump(view, site, node)?;
    let taken = |name: &Name| {
        let live = |m: &&MemberView| m.standing != Standing::Revoked;
        neighbours().filter(live).any(|m| m.recorded_name == *name || m.name == *name)
    };
    let member = Member {
        node: *node,
        wg: *wg,
        site: site.number,
        name: free_name(name, taken),
        serial: serial(view, SERIAL_MEMBER, &node.0)?,
        bump,
        ipv4: free_node_block(view, site),
        not_before: *now,
        not_after: now.plus(MEMBER_LIFETIME),
        ephemeral: *ephemeral,
    };
    Ok(Draft { under, body: Body::Member(member) })
}

/// Renews a node: the next serial, the same name, prefix and IPv4 block as the view shows. What the view had to settle
/// between two nodes is thereby written down. Roles are not touched: they live in grants.
///
/// # Errors
/// [`IssueError`] if `registrar` may not renew in the node's site now, or the node is unknown or was revoked.
pub fn renewal(
    view: &View,
    registrar: &Key,
    node: &Key,
    wg: Option<WgKey>,
    now: UnixTime,
) -> Result<Draft, IssueError> {
    let known = view.members.get(node).ok_or(IssueError::UnknownNode(*node))?;
    if known.standing == Standing::Revoked {
        return Err(IssueError::Revoked(known.name.clone()));
    }
    let site = view.sites.get(&known.site).ok_or_else(|| IssueError::UnknownSite(known.site.0.to_string()))?;
    let under = registrar_office(view, registrar, site, now)?;
    let same = |bump: &u8| NodePrefix::derive(&view.vdc, site.number, node, *bump) == known.prefix;
    let bump = match (0..=u8::MAX).find(same) {
        Some(bump) => bump,
        None => free_bump(view, site, node)?,
    };
    let member = Member {
        node: *node,
        wg: wg.unwrap_or(known.wg),
        site: known.site,
        name: known.name.clone(),
        serial: serial(view, SERIAL_MEMBER, &node.0)?,
        bump,
        ipv4: known.ipv4.or_else(|| free_node_block(view, site)),
        not_before: now,
        not_after: now.plus(MEMBER_LIFETIME),
        ephemeral: known.ephemeral,
    };
    Ok(Draft { under, body: Body::Member(member) })
}

/// Sets a node's roles and labels.
///
/// # Errors
/// [`IssueError`] if `admin` is no admin or the node is not a member.
pub fn grant(
    view: &View,
    admin: &Key,
    subject: &Key,
    mut roles: Vec<Role>,
    mut labels: Vec<Name>,
) -> Result<Draft, IssueError> {
    let under = admin_office(view, admin)?;
    match view.members.get(subject) {
        None => return Err(IssueError::UnknownNode(*subject)),
        Some(m) if m.standing == Standing::Revoked => return Err(IssueError::Revoked(m.name.clone())),
        Some(_) => {}
    }
    // Host needs no grant, admin and owner are delegations.
    roles.retain(|r| *r == Role::Operator);
    roles.sort_unstable();
    roles.dedup();
    labels.sort_unstable();
    labels.dedup();
    let serial = serial(view, SERIAL_GRANT, &subject.0)?;
    Draft::checked(under, Body::Grant(Grant { subject: *subject, serial, roles, labels }))
}

/// Says where the node itself can be dialled.
///
/// # Errors
/// [`IssueError::NotMember`] unless the node is a member that was not revoked.
pub fn contact(
    view: &View,
    node: &Key,
    addresses: Vec<ContactAddress>,
    door_port: Option<u16>,
) -> Result<Draft, IssueError> {
    let under = own_office(view, node)?;
    let serial = serial(view, SERIAL_CONTACT, &node.0)?;
    Draft::checked(under, Body::Contact(Contact { node: *node, serial, addresses, door_port }))
}

/// Says at which ports the node itself may be reached, and what its workloads are. Overlapping and adjacent ranges are
/// joined.
///
/// # Errors
/// [`IssueError::NotMember`] unless the node is a member that was not revoked; [`IssueError::TooLong`] if it is more than
/// a record may say.
pub fn exposure(
    view: &View,
    node: &Key,
    ports: Vec<PortRange>,
    mut workloads: Vec<WorkloadExposure>,
) -> Result<Draft, IssueError> {
    let under = own_office(view, node)?;
    let serial = serial(view, SERIAL_EXPOSURE, &node.0)?;
    let ports = joined_ranges(ports);
    workloads.sort_by(|a, b| a.name.cmp(&b.name));
    for workload in &mut workloads {
        workload.ports = joined_ranges(std::mem::take(&mut workload.ports));
        workload.labels.sort();
        workload.labels.dedup();
    }
    let body = Body::Exposure(Exposure { node: *node, serial, ports, workloads });
    if codec::encode(&body).len() > PLAIN_RECORD_BYTES_MAX - ENVELOPE_BYTES_MAX {
        return Err(IssueError::TooLong("the workloads' names, ports and labels are too many for one record"));
    }
    Draft::checked(under, body)
}

/// The node leaves by itself. It may come back with a new invite.
///
/// # Errors
/// [`IssueError::NotMember`] unless the node is a member that was not revoked.
pub fn leave(view: &View, node: &Key, now: UnixTime) -> Result<Draft, IssueError> {
    let under = own_office(view, node)?;
    // Grants count their own serials: the floor is above both, so that none revives when the node comes back.
    let last = |kind| view.serials.get(&(kind, node.0)).copied().unwrap_or(0);
    let floor = last(SERIAL_MEMBER).max(last(SERIAL_GRANT));
    let tombstone = Tombstone { subject: *node, floor, at: now, reason: "left".to_owned(), estate: None };
    Ok(Draft { under, body: Body::Tombstone(tombstone) })
}

/// Ends a node for good; if it was an issuer, closes it so that only `keep` remains of what it signed.
///
/// `keep` is ignored for a node that never was an issuer. Pass [`Roster::issued_by`], less what is distrusted; a record
/// that a forged one has displaced here can be taken from a replica or a backup. An owner's closing is final, an admin's
/// can be undone by the owners: where an owner key is at hand, sign with it.
///
/// # Errors
/// [`IssueError`] if the signer's rank is too low for the subject, or too many records would remain.
pub fn revocation(
    view: &View,
    signer: &Key,
    subject: &Key,
    reason: &str,
    now: UnixTime,
    keep: &[Arc<Signed>],
) -> Result<Draft, IssueError> {
    let is_admin = view.admins.iter().any(|a| a.key == *subject);
    let is_registrar = view.sites.values().flat_map(|s| &s.registrars).any(|r| r.key == *subject);
    let too_low = |rank| IssueError::RankTooLow { subject: *subject, rank };
    let under = match admin_office(view, signer) {
        Ok(office) if is_admin && office != Office::root(&view.vdc) => return Err(too_low(RANK_ADMIN)),
        Ok(office) => office,
        Err(_) if is_admin => return Err(too_low(RANK_ADMIN)),
        Err(_) if is_registrar => return Err(too_low("a registrar")),
        Err(_) => {
            let member = view.members.get(subject).ok_or(IssueError::UnknownNode(*subject))?;
            let site = view.sites.get(&member.site).ok_or(IssueError::UnknownNode(*subject))?;
            registrar_office(view, signer, site, now)?
        }
    };
    let estate = if is_admin || is_registrar { Some(estate_of(subject, keep)?) } else { None };
    let mut end = reason.len().min(200);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = reason[..end].to_owned();
    let tombstone = Tombstone { subject: *subject, floor: u64::MAX, at: now, reason, estate };
    Ok(Draft { under, body: Body::Tombstone(tombstone) })
}

fn estate_of(subject: &Key, keep: &[Arc<Signed>]) -> Result<Estate, IssueError> {
    let mut keep: Vec<_> = keep.iter().filter(|r| r.issuer == *subject).collect();
    keep.sort_unstable_by_key(|r| r.hash());
    keep.dedup_by_key(|r| r.hash());
    let last = keep.iter().map(|r| r.number).max().unwrap_or(0);
    let records: Vec<_> = keep.iter().map(|r| ByteVec::from(r.encode())).collect();
    let bytes: usize = records.iter().map(|r| r.len() + 5).sum();
    if records.len() > Estate::RECORDS_MAX || bytes > crate::record::RECORD_BYTES_MAX - 1024 {
        return Err(IssueError::EstateTooLarge(*subject));
    }
    Ok(Estate { last, records })
}

/// Denies what `matches` describes, at once and everywhere; `id` is 32 random bytes.
///
/// # Errors
/// [`IssueError::NotOperator`] unless the issuer is an admin, a registrar or an operator.
pub fn block(view: &View, issuer: &Key, id: Hash, matches: BlockMatch, reason: &str) -> Result<Draft, IssueError> {
    let under = operator_office(view, issuer)?;
    let mut end = reason.len().min(200);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let block = Block { id, serial: 1, matches, lifted: false, reason: reason[..end].to_owned() };
    Draft::checked(under, Body::Block(block))
}

/// Lifts a block. Its author may, and every admin.
///
/// # Errors
/// [`IssueError`] if there is no such block or the issuer may not block.
pub fn lift(view: &View, issuer: &Key, id: &Hash) -> Result<Draft, IssueError> {
    let under = operator_office(view, issuer)?;
    let held = view.blocks.iter().find(|b| b.block.id == *id).ok_or(IssueError::UnknownBlock(*id))?;
    let serial = serial(view, SERIAL_BLOCK, &id.0)?;
    let block = Block { lifted: true, serial, ..held.block.clone() };
    Ok(Draft { under, body: Body::Block(block) })
}

/// The next version of the policy.
///
/// # Errors
/// [`IssueError`] if `admin` is no admin.
pub fn policy(view: &View, admin: &Key, document: Document) -> Result<Draft, IssueError> {
    let under = admin_office(view, admin)?;
    let (version, previous) = match &view.policy {
        Some(head) => (head.version.checked_add(1).ok_or(IssueError::SerialsUsedUp)?, Some(head.body)),
        None => (1, None),
    };
    Draft::checked(under, Body::Policy(Policy { version, previous, document }))
}

/// The office in which a key may sign what admins sign: its own as an admin, or the owners' if it is an owner key.
fn admin_office(view: &View, key: &Key) -> Result<Office, IssueError> {
    if view.owners.contains(key) {
        return Ok(Office::root(&view.vdc));
    }
    let admin = view.admins.iter().find(|a| a.key == *key && a.active && !a.closed);
    admin.map(|a| a.under).ok_or(IssueError::NotAdmin)
}

/// The office in which a key may admit and renew in a site at this moment.
fn registrar_office(view: &View, key: &Key, site: &SiteView, now: UnixTime) -> Result<Office, IssueError> {
    let founder = if site.serving().is_empty() { view.sites.get(&site.founder) } else { None };
    let registrars = founder.into_iter().flat_map(|s| &s.registrars).chain(&site.registrars);
    let best = registrars.filter(|r| r.key == *key && !r.closed).max_by_key(|r| r.delegation.not_after);
    match best {
        Some(r) if now <= r.delegation.not_after => Ok(r.under),
        Some(r) => Err(IssueError::DelegationEnded { site: site.name.to_string(), ended: r.delegation.not_after }),
        None => Err(IssueError::NotRegistrar { site: site.name.to_string() }),
    }
}

/// The office in which a node speaks for itself.
fn own_office(view: &View, node: &Key) -> Result<Office, IssueError> {
    let member = view.members.get(node).filter(|m| m.standing != Standing::Revoked);
    member.map(|m| m.under).ok_or(IssueError::NotMember)
}

fn operator_office(view: &View, key: &Key) -> Result<Office, IssueError> {
    if let Ok(office) = admin_office(view, key) {
        return Ok(office);
    }
    let registrars = view.sites.values().flat_map(|s| &s.registrars);
    if let Some(registrar) = registrars.clone().find(|r| r.key == *key && r.active && !r.closed) {
        return Ok(registrar.under);
    }
    if view.is_operator(key) { own_office(view, key) } else { Err(IssueError::NotOperator) }
}

/// The serial of the next statement about a subject.
fn serial(view: &View, kind: u8, subject: &[u8; 32]) -> Result<u64, IssueError> {
    let last = view.serials.get(&(kind, *subject)).copied().unwrap_or(0);
    last.checked_add(1).ok_or(IssueError::SerialsUsedUp)
}

fn ended_for_good(view: &View, node: &Key) -> bool {
    view.tombstones.iter().any(|t| t.subject == *node && t.floor == u64::MAX && t.rank < Rank::Node)
}

/// A number from the site's name, or the next free one.
fn free_site_number(name: &Name, is_free: impl Fn(SiteNumber) -> bool) -> Option<SiteNumber> {
    let digest = blake3::hash(name.as_str().as_bytes());
    let start = u16::from_be_bytes([digest.as_bytes()[0], digest.as_bytes()[1]]);
    (0..=u16::MAX).map(|step| SiteNumber(start.wrapping_add(step))).find(|n| n.0 != 0 && is_free(*n))
}

fn free_bump(view: &View, site: &SiteView, node: &Key) -> Result<u8, IssueError> {
    let taken = |prefix: NodePrefix| view.members.values().any(|m| m.prefix == prefix && m.node != *node);
    (0..=u8::MAX)
        .find(|bump| !taken(NodePrefix::derive(&view.vdc, site.number, node, *bump)))
        .ok_or_else(|| IssueError::NoPrefix(site.name.clone()))
}

/// The next free sub-block of the site's IPv4 block; none once it is full, the node then has IPv6 only.
fn free_node_block(view: &View, site: &SiteView) -> Option<Ipv4Block> {
    let live = |m: &&MemberView| m.site == site.number && m.standing != Standing::Revoked;
    let used: Vec<_> = view.members.values().filter(live).filter_map(|m| m.ipv4).collect();
    free_block(site.ipv4?, NODE_IPV4_LENGTH, &used)
}

/// The first sub-block of `range` that overlaps none of `used`.
fn free_block(range: Ipv4Block, length: u8, used: &[Ipv4Block]) -> Option<Ipv4Block> {
    let mut used = used.to_vec();
    used.sort_unstable();
    let length = length.max(range.length());
    (0..1u32 << (length - range.length()).min(24)).map_while(|index| range.sub_block(length, index)).find(|block| {
        let last = block.network().to_bits() | u32::MAX.checked_shr(u32::from(length)).unwrap_or(0);
        // Blocks are aligned: only the last one that begins at or before this one's end can overlap it.
        let end = used.partition_point(|u| u.network().to_bits() <= last);
        !used[..end].last().is_some_and(|u| u.overlaps(*block))
    })
}

/// The name asked for, or `NAME-N` with the lowest free N from 2.
fn free_name(asked: &Name, taken: impl Fn(&Name) -> bool) -> Name {
    if !taken(asked) {
        return asked.clone();
    }
    (2u32..)
        .map(|n| super::judge::suffixed(asked, &n.to_string()))
        .find(|name| !taken(name))
        .expect("finitely many nodes")
}

/// Ascending and disjoint.
fn joined_ranges(mut ports: Vec<PortRange>) -> Vec<PortRange> {
    ports.retain(|p| p.first <= p.last);
    ports.sort_unstable();
    let mut joined: Vec<PortRange> = Vec::new();
    for range in ports {
        match joined.last_mut() {
            Some(last) if last.protocol == range.protocol && range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    joined
}
