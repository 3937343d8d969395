//! What openraft is told of our types, and their forms on disk and on the wire.
//!
//! openraft's own types have no stable encoding that we would rely on; each is written here as canonical CBOR of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use openraft::alias::{LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use openraft::entry::RaftEntry as _;
use openraft::impls::{BoxedErrorSource, EmptyNode, InlineBatch, OneshotResponder, leader_id_adv};
use openraft::vote::RaftLeaderId;
use openraft::{AsyncRuntime, EntryPayload, LogId, Membership, OptionalSend, RaftTypeConfig, StoredMembership, Vote};
use vdc::Key;
use vdc::codec::DecodeError;
use vdc_coord::limits::{ENTRY_BYTES_MAX, REQUEST_BYTES_MAX};
use vdc_coord::wire::{EntryForm, MembershipForm, PayloadForm, Place, SnapshotForm, StoredMembershipForm, VoteForm};
use vdc_coord::{Answer, Entry, Refusal};

/// Longest entry of a log in bytes: requests are packed up to [`ENTRY_BYTES_MAX`], and one may be longer.
pub(crate) const LOGGED_BYTES_MAX: usize = ENTRY_BYTES_MAX + REQUEST_BYTES_MAX + 1_024;
/// Members of a group, voters and learners, in what is decoded.
const MEMBERS_MAX: usize = 256;

/// openraft's types for one runtime.
pub(crate) struct Types<R>(PhantomData<fn() -> R>);

impl<R> Clone for Types<R> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<R> Copy for Types<R> {}
impl<R> Default for Types<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}
impl<R> PartialEq for Types<R> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<R> Eq for Types<R> {}
impl<R> PartialOrd for Types<R> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<R> Ord for Types<R> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}
impl<R> fmt::Debug for Types<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}

pub(crate) type LeaderId = leader_id_adv::LeaderId<u64, Key>;

impl<R: AsyncRuntime> RaftTypeConfig for Types<R> {
    type D = Packed;
    type R = Answers;
    type NodeId = Key;
    type Node = EmptyNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote<LeaderId>;
    type Payload = EntryPayload<Packed, Key, EmptyNode>;
    type Entry = openraft::Entry<<LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = R;
    type Responder<T>
        = OneshotResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// An entry and its encoding, made once.
#[derive(Clone)]
pub(crate) struct Packed {
    pub(crate) entry: Arc<Entry>,
    pub(crate) bytes: Bytes,
}

impl Packed {
    pub(crate) fn new(entry: Entry) -> Self {
        let bytes = Bytes::from(vdc::codec::encode(&entry));
        Self { entry: Arc::new(entry), bytes }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let entry = vdc::codec::decode("log entry", bytes, LOGGED_BYTES_MAX)?;
        Ok(Self { entry: Arc::new(entry), bytes: Bytes::copy_from_slice(bytes) })
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} requests, {} bytes)", self.entry.requests.len(), self.bytes.len())
    }
}

impl fmt::Display for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What became of the requests of an entry, in their order; nothing for entries of openraft's own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers(pub(crate) Vec<Result<Answer, Refusal>>);

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answers", self.0.len())
    }
}

/// To and from openraft.
pub(crate) trait PlaceExt: Sized {
    fn of(id: &LogId<LeaderId>) -> Self;
    fn id(self) -> LogId<LeaderId>;
}

impl PlaceExt for Place {
    fn of(id: &LogId<LeaderId>) -> Self {
        Self { term: id.leader_id.term, leader: id.leader_id.node_id, index: id.index }
    }

    fn id(self) -> LogId<LeaderId> {
        LogId { leader_id: LeaderId { term: self.term, node_id: self.leader }, index: self.index }
    }
}

/// To and from openraft.
pub(crate) trait VoteExt: Sized {
    fn of(vote: &Vote<LeaderId>) -> Self;
    fn vote(self) -> Vote<LeaderId>;
}

impl VoteExt for VoteForm {
    fn of(vote: &Vote<LeaderId>) -> Self {
        Self { term: vote.leader_id.term, leader: vote.leader_id.node_id, committed: vote.committed }
    }

    fn vote(self) -> Vote<LeaderId> {
        Vote { leader_id: LeaderId { term: self.term, node_id: self.leader }, committed: self.committed }
    }
}

/// To and from openraft.
pub(crate) trait MembershipExt: Sized {
    fn of(membership: &Membership<Key, EmptyNode>) -> Self;
    fn membership(&self) -> Result<Membership<Key, EmptyNode>, DecodeError>;
}

impl MembershipExt for MembershipForm {
    fn of(membership: &Membership<Key, EmptyNode>) -> Self {
        let voters = membership.get_joint_config().iter().map(|set| set.iter().copied().collect()).collect();
        Self { voters, members: membership.nodes().map(|(key, _)| *key).collect() }
    }

    fn membership(&self) -> Result<Membership<Key, EmptyNode>, DecodeError> {
        let invalid = |why| DecodeError::Invalid { what: "membership", why };
        if self.members.len() > MEMBERS_MAX || self.voters.len() > 2 {
            return Err(invalid("it is too large"));
        }
        let voters: Vec<BTreeSet<Key>> = self.voters.iter().map(|set| set.iter().copied().collect()).collect();
        let members: BTreeMap<Key, EmptyNode> = self.members.iter().map(|key| (*key, EmptyNode {})).collect();
        Membership::new(voters, members).map_err(|_| invalid("its voters are not among its members"))
    }
}

/// To and from openraft.
pub(crate) trait StoredExt: Sized {
    fn stored<R: AsyncRuntime>(&self) -> Result<StoredMembershipOf<Types<R>>, DecodeError>;
}

impl StoredExt for StoredMembershipForm {
    fn stored<R: AsyncRuntime>(&self) -> Result<StoredMembershipOf<Types<R>>, DecodeError> {
        // A group that has none yet has no voters, which openraft takes for this one case only.
        if self.place.is_none() && self.membership.voters.is_empty() {
            return Ok(StoredMembership::default());
        }
        Ok(StoredMembership::new(self.place.map(Place::id), self.membership.membership()?))
    }
}

/// An entry as openraft has it.
pub(crate) type Logged<R> = <Types<R> as RaftTypeConfig>::Entry;

/// To and from openraft.
pub(crate) trait EntryExt: Sized {
    fn of<R: AsyncRuntime>(entry: &Logged<R>) -> Self;
    fn entry<R: AsyncRuntime>(&self) -> Result<Logged<R>, DecodeError>;
}

impl EntryExt for EntryForm {
    fn of<R: AsyncRuntime>(entry: &Logged<R>) -> Self {
        let payload = match &entry.payload {
            EntryPayload::Blank => PayloadForm::Blank,
            EntryPayload::Normal(packed) => PayloadForm::Entry(packed.bytes.to_vec().into()),
            EntryPayload::Membership(membership) => PayloadForm::Membership(MembershipForm::of(membership)),
        };
        Self { place: Place::of(&entry.log_id()), payload }
    }

    fn entry<R: AsyncRuntime>(&self) -> Result<Logged<R>, DecodeError> {
        let payload = match &self.payload {
            PayloadForm::Blank => EntryPayload::Blank,
            PayloadForm::Entry(bytes) => EntryPayload::Normal(Packed::decode(bytes)?),
            PayloadForm::Membership(form) => EntryPayload::Membership(form.membership()?),
        };
        Ok(openraft::Entry { log_id: self.place.id(), payload })
    }
}

/// To and from openraft.
pub(crate) trait SnapshotExt: Sized {
    fn meta<R: AsyncRuntime>(&self) -> Result<SnapshotMetaOf<Types<R>>, DecodeError>;
}

impl SnapshotExt for SnapshotForm {
    fn meta<R: AsyncRuntime>(&self) -> Result<SnapshotMetaOf<Types<R>>, DecodeError> {
        Ok(openraft::storage::SnapshotMeta {
            last_log_id: self.place.map(Place::id),
            last_membership: self.membership.stored::<R>()?,
        })
    }
}

/// Shorthands for what openraft calls these types.
pub(crate) type Id<R> = LogIdOf<Types<R>>;
pub(crate) type VoteType<R> = VoteOf<Types<R>>;

/// A frame or an answer, to be sent.
pub(crate) fn encode<T: minicbor::Encode<()>>(value: &T) -> Bytes {
    vdc::codec::encode(value).into()
}
