//! The registrar's decisions about joining and renewing, and the joiner's about what it was granted.
//!
//! Pure: a decision returns what must be made durable, in one transaction, *before* the answer is sent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use super::door::{
    Challenge, DOOR_RESPONSE_BYTES_MAX, DoorResponse, GRANT_BYTES_MAX, GRANT_RECORDS_MAX, NodeSecrets, Redeem, Refusal,
    RefusalCode, Renew,
};
use super::token::{Invite, InviteRegistrar, Pass};
use crate::codec::{self, DecodeError};
use crate::record::{Authority, Body, SigningKey};
use crate::roster::issue::{self, Admission};
use crate::roster::{Outcome, Roster, RosterError, Standing, View};
use crate::{Hash, InviteId, Key, Signed, SiteNumber, UnixTime, VdcId};

/// How far a registrar's clock may be behind the newest record before it refuses to issue.
const CLOCK_BEHIND_MAX: Duration = Duration::from_secs(300);
/// Most uses of one invite.
pub const INVITE_USES_MAX: u16 = 1000;
/// Longest stored invite state in bytes.
const STATE_BYTES_MAX: usize = 128 << 10;
/// What CBOR adds to a grant, and to each record in it.
const FRAME_BYTES: usize = 64;
const FRAME_BYTES_EACH: usize = 5;
/// Format version of a stored invite state.
const FORMAT: u32 = 1;

/// What `meshctl invite create` decides.
#[derive(Clone, Debug)]
pub struct InviteOptions {
    pub site: SiteNumber,
    /// At most [`INVITE_USES_MAX`].
    pub uses: u16,
    pub expires: UnixTime,
    pub founder: bool,
    pub ephemeral: bool,
}

/// What the owning registrar keeps of an invite: everything but the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InviteState {
    pub vdc: VdcId,
    pub id: InviteId,
    /// The registrar that owns the invite.
    pub registrar: Key,
    /// Public half of the invite's key.
    pub key: Key,
    pub site: SiteNumber,
    pub created: UnixTime,
    pub expires: UnixTime,
    pub uses_left: u16,
    pub founder: bool,
    pub ephemeral: bool,
    pub revoked: bool,
    /// Who joined by it, in the order of joining; with the first member record that it got, where an earlier release noted that.
    pub redeemed: Vec<(Key, Option<Hash>)>,
}

#[derive(Encode, Decode)]
struct Wire {
    #[n(0)]
    format: u32,
    #[n(1)]
    vdc: VdcId,
    #[n(2)]
    id: InviteId,
    #[n(3)]
    registrar: Key,
    #[n(4)]
    key: Key,
    #[n(5)]
    site: SiteNumber,
    #[n(6)]
    created: UnixTime,
    #[n(7)]
    expires: UnixTime,
    #[n(8)]
    uses_left: u16,
    #[n(9)]
    founder: bool,
    #[n(10)]
    ephemeral: bool,
    #[n(11)]
    revoked: bool,
    #[n(12)]
    redeemed: Vec<WireRedeemed>,
}

#[derive(Encode, Decode)]
struct WireRedeemed {
    #[n(0)]
    node: Key,
    /// Earlier releases noted the node's first member record.
    #[n(1)]
    member: Option<Hash>,
}

/// What follows from a redemption or renewal.
#[derive(Clone, Debug)]
pub struct Redemption {
    /// The invite afterwards.
    pub state: InviteState,
    /// New records, to be stored together with `state`; empty if the same node asked again.
    pub records: Vec<Signed>,
    /// The first of the issuer's numbers that `records` left free.
    pub number_next: u64,
}

impl InviteState {
    /// Makes an invite and what the registrar keeps of it. `id` and `seed` are fresh random bytes.
    ///
    /// # Errors
    /// [`issue::IssueError`] if the key is not a registrar that may admit in that site now, or, for a founder's invite, no admin.
    pub fn create(
        view: &View,
        registrar: &SigningKey,
        addresses: Vec<InviteRegistrar>,
        options: &InviteOptions,
        id: InviteId,
        seed: [u8; 32],
        now: UnixTime,
    ) -> Result<(Invite, Self), issue::IssueError> {
        let key = registrar.public();
        let site =
            view.sites.get(&options.site).ok_or_else(|| issue::IssueError::UnknownSite(options.site.0.to_string()))?;
        if !view.registrars_for(site.number).iter().any(|r| r.key == key) {
            return Err(issue::IssueError::NotRegistrar { site: site.name.to_string() });
        }
        if options.founder && !view.is_admin(&key) {
            return Err(issue::IssueError::NotAdmin);
        }
        let mut registrars: Vec<_> = addresses.iter().filter(|r| r.key == key).take(1).cloned().collect();
        if registrars.is_empty() {
            registrars.push(InviteRegistrar { key, addresses: Vec::new() });
        }
        registrars.extend(addresses.into_iter().filter(|r| r.key != key));
        registrars.truncate(Invite::REGISTRARS_MAX);
        for registrar in &mut registrars {
            registrar.addresses.truncate(InviteRegistrar::ADDRESSES_MAX);
        }
        let uses = options.uses.clamp(1, INVITE_USES_MAX);
        let invite = Invite {
            vdc: view.vdc,
            vdc_name: view.name.clone(),
            registrars,
            id,
            seed,
            expires: options.expires,
            uses,
            site: site.number,
            site_name: site.name.clone(),
            founder: options.founder,
            ephemeral: options.ephemeral,
            pass_signature: *Pass::sign(view.vdc, registrar, id, options.expires).signature,
        };
        let state = Self {
            vdc: view.vdc,
            id,
            registrar: key,
            key: invite.signing_key().public(),
            site: site.number,
            created: now,
            expires: options.expires,
            uses_left: uses,
            founder: options.founder,
            ephemeral: options.ephemeral,
            revoked: false,
            redeemed: Vec::new(),
        };
        Ok((invite, state))
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(&Wire {
            format: FORMAT,
            vdc: self.vdc,
            id: self.id,
            registrar: self.registrar,
            key: self.key,
            site: self.site,
            created: self.created,
            expires: self.expires,
            uses_left: self.uses_left,
            founder: self.founder,
            ephemeral: self.ephemeral,
            revoked: self.revoked,
            redeemed: self.redeemed.iter().map(|&(node, member)| WireRedeemed { node, member }).collect(),
        })
    }

    /// # Errors
    /// [`DecodeError`] if the bytes are not one canonical state of a known format.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let wire: Wire = codec::decode("invite state", bytes, STATE_BYTES_MAX)?;
        if wire.format != FORMAT {
            return Err(DecodeError::Version { what: "invite state", version: wire.format, supported: FORMAT });
        }
        Ok(Self {
            vdc: wire.vdc,
            id: wire.id,
            registrar: wire.registrar,
            key: wire.key,
            site: wire.site,
            created: wire.created,
            expires: wire.expires,
            uses_left: wire.uses_left,
            founder: wire.founder,
            ephemeral: wire.ephemeral,
            revoked: wire.revoked,
            redeemed: wire.redeemed.into_iter().map(|r| (r.node, r.member)).collect(),
        })
    }

    /// Decides about one redemption: whether it is granted, and which records and state must then be durable.
    ///
    /// The same node key again gets the same membership again, whatever became of the invite since: the first answer may
    /// have been lost. `number` is the first of the registrar's numbers that is free.
    ///
    /// # Errors
    /// A [`Refusal`] for the joiner; nothing has changed then.
    pub fn redeem(
        &self,
        view: &View,
        registrar: &SigningKey,
        number: u64,
        request: &Redeem,
        challenge: Challenge,
        now: UnixTime,
    ) -> Result<Redemption, Refusal> {
        self.prove(view, &registrar.public(), request, challenge)?;
        let state = self.reserve(view, request, &registrar.public(), now)?;
        let records = self.admit(view, registrar, number, request, now)?;
        let number_next = number.saturating_add(records.len() as u64);
        Ok(Redemption { state: state.unwrap_or_else(|| self.clone()), records, number_next })
    }

    /// Whether a request proves that it was made for this invite, at this registrar.
    ///
    /// # Errors
    /// A [`Refusal`] for the joiner.
    pub fn prove(&self, view: &View, registrar: &Key, request: &Redeem, challenge: Challenge) -> Result<(), Refusal> {
        if request.vdc != self.vdc || view.vdc != self.vdc {
            return Err(wrong_vdc());
        }
        if request.invite != self.id {
            return Err(Refusal::new(RefusalCode::InviteUnknown, "this registrar knows no such invite", ASK_NEW));
        }
        if view.sites.contains_key(&self.site) && view.registrars_for(self.site).iter().all(|r| r.key != *registrar) {
            let hint = "dial a registrar that the invite names";
            return Err(Refusal::new(RefusalCode::WrongRegistrar, "this is no registrar of the invite's site", hint));
        }
        if !request.verify(challenge, registrar, &self.key) {
            let hint = "the token does not belong to this invite, or the link was tampered with; ask for a new one";
            return Err(Refusal::new(RefusalCode::BadProof, "the proof of the invite or of a new key is bad", hint));
        }
        Ok(())
    }

    /// The first half of [`Self::redeem`], where several registrars share the invite: whether a joiner that has proved to be meant
    /// ([`Self::prove`]) may have a use of it. What is returned must be agreed before [`Self::admit`]; none if the joiner has
    /// its use already.
    ///
    /// # Errors
    /// A [`Refusal`] for the joiner; nothing has changed then.
    pub fn reserve(
        &self,
        view: &View,
        request: &Redeem,
        registrar: &Key,
        now: UnixTime,
    ) -> Result<Option<Self>, Refusal> {
        if view.members.get(&request.node).is_some_and(|known| known.standing == Standing::Revoked) {
            return Err(revoked());
        }
        if self.has_joined(&request.node) {
            return Ok(None);
        }
        self.check_open(now)?;
        check_clock(view, now)?;
        // A use is not spent on what cannot be signed.
        issue::member(view, registrar, &self.admission(request, now)).map_err(cannot_issue)?;
        let mut state = self.clone();
        state.uses_left -= 1;
        state.redeemed.push((request.node, None));
        Ok(Some(state))
    }

    /// The second half of [`Self::redeem`]: the records that make the joiner a member, none if it is one.
    ///
    /// # Errors
    /// A [`Refusal`] for the joiner; nothing has changed then.
    pub fn admit(
        &self,
        view: &View,
        registrar: &SigningKey,
        number: u64,
        request: &Redeem,
        now: UnixTime,
    ) -> Result<Vec<Signed>, Refusal> {
        let own = registrar.public();
        if self.has_joined(&request.node) && view.members.get(&request.node).is_some_and(|known| known.wg == request.wg)
        {
            return Ok(vec![]);
        }
        check_clock(view, now)?;
        let draft = issue::member(view, &own, &self.admission(request, now)).map_err(cannot_issue)?;
        let mut records = vec![draft.sign(&self.vdc, registrar, number, &[])];
        let registrars = view.sites.get(&self.site).map_or(&[][..], |site| &site.registrars);
        if self.founder && !registrars.iter().any(|known| known.key == request.node) {
            let draft = issue::registrar(view, &own, request.node, self.site, now).map_err(cannot_issue)?;
            records.push(draft.sign(&self.vdc, registrar, number.saturating_add(1), &[]));
        }
        Ok(records)
    }

    fn has_joined(&self, node: &Key) -> bool {
        self.redeemed.iter().any(|(joined, _)| joined == node)
    }

    fn admission(&self, request: &Redeem, now: UnixTime) -> Admission {
        Admission {
            node: request.node,
            wg: request.wg,
            name: request.name.clone(),
            site: self.site,
            ephemeral: self.ephemeral,
            now,
        }
    }

    /// Whether somebody new could still join by it.
    ///
    /// # Errors
    /// A [`Refusal`] that says why not.
    pub fn check_open(&self, now: UnixTime) -> Result<(), Refusal> {
        if self.revoked {
            return Err(Refusal::new(RefusalCode::InviteRevoked, "the invite was revoked", ASK_NEW));
        }
        if self.uses_left == 0 {
            let hint =
                "if that was not you, tell the site's administrator; ask for a new one (`meshctl invite create`)";
            return Err(Refusal::new(RefusalCode::InviteUsed, "the invite was used already", hint));
        }
        if now > self.expires {
            let message = format!("the invite expired at {}, and it is {now} at the registrar", self.expires);
            return Err(Refusal::new(RefusalCode::InviteExpired, &message, ASK_NEW));
        }
        Ok(())
    }
}

const ASK_NEW: &str = "ask for a new one (`meshctl invite create`)";

/// Decides about a renewal: the member's next record, to be made durable before the answer is sent.
///
/// # Errors
/// A [`Refusal`] for the member; nothing has changed then.
pub fn renew(
    view: &View,
    registrar: &SigningKey,
    number: u64,
    request: &Renew,
    challenge: Challenge,
    now: UnixTime,
) -> Result<Signed, Refusal> {
    if request.vdc != view.vdc {
        return Err(wrong_vdc());
    }
    if !request.verify(challenge, &registrar.public()) {
        let hint = "restart meshd on this node; if it stays, its key files were damaged or copied";
        return Err(Refusal::new(RefusalCode::BadProof, "the proof of a key is bad", hint));
    }
    match view.members.get(&request.node) {
        None => {
            let hint = "join with an invite";
            return Err(Refusal::new(RefusalCode::NotMember, "this node is not a member here", hint));
        }
        Some(known) if known.standing == Standing::Revoked => return Err(revoked()),
        Some(_) => {}
    }
    check_clock(view, now)?;
    let draft =
        issue::renewal(view, &registrar.public(), &request.node, Some(request.wg), now).map_err(cannot_issue)?;
    Ok(draft.sign(&view.vdc, registrar, number, &[]))
}

fn wrong_vdc() -> Refusal {
    let hint = "dial a registrar of the VDC that the invite names";
    Refusal::new(RefusalCode::WrongVdc, "this registrar belongs to another VDC", hint)
}

fn revoked() -> Refusal {
    let hint = "run `meshctl leave` here, then join with a new invite";
    Refusal::new(RefusalCode::Revoked, "this node was revoked", hint)
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
fn cannot_issue(error: issue::IssueError) -> Refusal {
    let message = format!("the registrar cannot sign this: {error}");
    Refusal::new(RefusalCode::CannotIssue, &message, "tell the site's administrator")
}

/// A registrar whose clock is behind would sign records that are born old.
fn check_clock(view: &View, now: UnixTime) -> Result<(), Refusal> {
    match view.newest_record_time() {
        Some(newest) if now.plus(CLOCK_BEHIND_MAX) < newest => {
            let message = format!("the registrar's clock says {now}, but records of {newest} exist");
            Err(Refusal::new(RefusalCode::Clock, &message, "set the registrar's clock (NTP)"))
        }
        _ => Ok(()),
    }
}

/// The registrar's answer to a redemption: first what proves the node's membership, then as much of the roster as fits;
/// the rest comes by record sync.
#[must_use]
pub fn grant(roster: &Roster, node: &Key) -> DoorResponse {
    let records = roster.records();
    let proof = proof_of(roster, &records, node);
    let (first, rest): (Vec<_>, Vec<_>) = records.iter().partition(|r| proof.contains(&r.hash()));
    let mut granted = Granted::default();
    granted.fill(first, DOOR_RESPONSE_BYTES_MAX - FRAME_BYTES);
    granted.fill(rest, GRANT_BYTES_MAX);
    DoorResponse::Granted(granted.records)
}

/// The registrar's answer to a renewal: what proves the membership. A member has the rest, or gets it by record sync.
#[must_use]
pub fn prove(roster: &Roster, node: &Key) -> DoorResponse {
    let mut records = roster.records();
    let proof = proof_of(roster, &records, node);
    records.retain(|r| proof.contains(&r.hash()));
    let mut granted = Granted::default();
    granted.fill(records.iter().collect(), DOOR_RESPONSE_BYTES_MAX - FRAME_BYTES);
    DoorResponse::Granted(granted.records)
}

/// Encoded records and their size.
#[derive(Default)]
struct Granted {
    records: Vec<ByteVec>,
    bytes: usize,
}

impl Granted {
    /// Adds, in order, every record that still fits.
    fn fill(&mut self, records: Vec<&Arc<Signed>>, bytes_max: usize) {
        for record in records {
            let encoded = record.encode();
            let bytes = self.bytes + encoded.len() + FRAME_BYTES_EACH;
            if bytes <= bytes_max && self.records.len() < GRANT_RECORDS_MAX {
                self.bytes = bytes;
                self.records.push(ByteVec::from(encoded));
            }
        }
    }
}

/// The records without which the node's membership cannot be believed: its own, the rights above it, and what remains of
/// those who gave them, should they have been closed since. With all sites and delegations, which are few.
pub(super) fn proof_of(roster: &Roster, records: &[Arc<Signed>], node: &Key) -> BTreeSet<Hash> {
    let mut vouchers = roster.vouchers(node);
    // Sites and policies stand on admins, whoever admitted the node.
    vouchers.extend(records.iter().filter_map(|r| match &r.body {
        Body::Delegation(d) if d.authority == Authority::Admin => Some(d.subject),
        _ => None,
    }));
    let needed = |record: &&Arc<Signed>| match &record.body {
        Body::Genesis(_) | Body::Delegation(_) | Body::Site(_) | Body::Policy(_) => true,
        Body::Member(m) => m.node == *node,
        Body::Tombstone(t) => t.estate.is_some() && vouchers.contains(&t.subject),
        Body::Grant(_) | Body::Contact(_) | Body::Exposure(_) | Body::Block(_) | Body::Founding(_) => false,
    };
    records.iter().filter(needed).map(|r| r.hash()).collect()
}

/// Why a joiner does not believe what it was granted.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("the registrar's answer holds a record that does not decode")]
    Record(#[source] DecodeError),
    #[error("the registrar's answer does not begin with a genesis record")]
    Genesis(#[source] RosterError),
    #[error("the registrar's answer is of VDC {found}, the invite is for {expected}; ask for a new invite")]
    OtherVdc { expected: VdcId, found: VdcId },
    #[error("the registrar's answer does not make this node a member; ask the site's administrator to look at its log")]
    NotMember,
    #[error("the registrar's answer names another WireGuard key than this node's; ask for a new invite")]
    OtherKey,
    #[error("this node was revoked in the VDC; ask for a new invite")]
    Revoked,
}

/// A membership that was checked up to the genesis hash.
#[derive(Debug)]
pub struct Joined {
    pub roster: Roster,
    /// This node's name, address and site, at the later of this box's and the registrar's time.
    pub view: View,
    /// How far this box's clock is behind the registrar's; zero if it is not.
    pub clock_behind: Duration,
    /// Records in the answer that were not accepted: zero from an honest registrar.
    pub refused: usize,
}

impl Joined {
    /// Checks a grant against the VDC id that the token pinned, and that this node's own record holds its own keys.
    ///
    /// # Errors
    /// [`JoinError`]; the joiner then believes nothing of the answer.
    pub fn verify(vdc: &VdcId, secrets: &NodeSecrets, granted: &[ByteVec], now: UnixTime) -> Result<Self, JoinError> {
        let mut records = granted.iter().map(|bytes| Signed::decode(bytes).map_err(JoinError::Record));
        let genesis = records.next().ok_or(JoinError::NotMember)??;
        let mut roster = Roster::new(genesis).map_err(JoinError::Genesis)?;
        if roster.vdc_id() != vdc {
            return Err(JoinError::OtherVdc { expected: *vdc, found: *roster.vdc_id() });
        }
        let mut refused = 0;
        for record in records {
            refused += usize::from(matches!(roster.insert(record?), Outcome::Refused(_)));
        }
        let node = secrets.node.public();
        let view = roster.view(now);
        let own = view.members.get(&node).ok_or(JoinError::NotMember)?;
        if own.standing == Standing::Revoked {
            return Err(JoinError::Revoked);
        }
        if own.wg != secrets.wg_public() {
            return Err(JoinError::OtherKey);
        }
        let clock_behind = own.not_before.since(now);
        Ok(Self { roster, view, clock_behind, refused })
    }
}

impl Invite {
    /// Whether a door's answer to [`super::Hello`] can be for this invite: any registrar that the token names.
    #[must_use]
    pub fn names(&self, registrar: &Key) -> bool {
        self.registrars.iter().any(|r| r.key == *registrar)
    }
}
