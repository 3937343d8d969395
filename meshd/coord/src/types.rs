//! What openraft is told of our types, and their forms on disk and on the wire.
//!
//! openraft's own types have no stable encoding that we would rely on; each is written here as canonical CBOR of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use openraft::alias::{LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use openraft::entry::RaftEntry as _;
use openraft::impls::{BoxedErrorSource, EmptyNode, InlineBatch, OneshotResponder, leader_id_adv};
use openraft::vote::RaftLeaderId;
use openraft::{AsyncRuntime, EntryPayload, LogId, Membership, OptionalSend, RaftTypeConfig, StoredMembership, Vote};
use vdc::Key;
use vdc::codec::DecodeError;
use vdc_coord::limits::{ENTRY_BYTES_MAX, REQUEST_BYTES_MAX};
use vdc_coord::{Answer, Entry, Refusal};

/// Longest entry of a log in bytes: requests are packed up to [`ENTRY_BYTES_MAX`], and one may be longer.
pub(crate) const LOGGED_BYTES_MAX: usize = ENTRY_BYTES_MAX + REQUEST_BYTES_MAX + 1_024;
/// Members of a group, voters and learners, in what is decoded.
const MEMBERS_MAX: usize = 256;

/// openraft's types for one runtime.
pub struct Types<R>(PhantomData<fn() -> R>);

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
pub struct Packed {
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
pub struct Answers(pub(crate) Vec<Result<Answer, Refusal>>);

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answers", self.0.len())
    }
}

/// Where in a log: term, leader, index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(crate) struct Place {
    #[n(0)]
    pub(crate) term: u64,
    #[n(1)]
    pub(crate) leader: Key,
    #[n(2)]
    pub(crate) index: u64,
}

impl Place {
    pub(crate) fn of(id: &LogId<LeaderId>) -> Self {
        Self { term: id.leader_id.term, leader: id.leader_id.node_id, index: id.index }
    }

    pub(crate) fn id(self) -> LogId<LeaderId> {
        LogId { leader_id: LeaderId { term: self.term, node_id: self.leader }, index: self.index }
    }
}

/// A node's vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct VoteForm {
    #[n(0)]
    pub(crate) term: u64,
    #[n(1)]
    pub(crate) leader: Key,
    #[n(2)]
    pub(crate) committed: bool,
}

impl VoteForm {
    pub(crate) fn of(vote: &Vote<LeaderId>) -> Self {
        Self { term: vote.leader_id.term, leader: vote.leader_id.node_id, committed: vote.committed }
    }

    pub(crate) fn vote(self) -> Vote<LeaderId> {
        Vote { leader_id: LeaderId { term: self.term, node_id: self.leader }, committed: self.committed }
    }
}

/// Who belongs to a group: one or, during a change, two sets of voters, and all members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct MembershipForm {
    #[n(0)]
    pub(crate) voters: Vec<Vec<Key>>,
    #[n(1)]
    pub(crate) members: Vec<Key>,
}

impl MembershipForm {
    pub(crate) fn of(membership: &Membership<Key, EmptyNode>) -> Self {
        let voters = membership.get_joint_config().iter().map(|set| set.iter().copied().collect()).collect();
        Self { voters, members: membership.nodes().map(|(key, _)| *key).collect() }
    }

    pub(crate) fn membership(&self) -> Result<Membership<Key, EmptyNode>, DecodeError> {
        let invalid = |why| DecodeError::Invalid { what: "membership", why };
        if self.members.len() > MEMBERS_MAX || self.voters.len() > 2 {
            return Err(invalid("it is too large"));
        }
        let voters: Vec<BTreeSet<Key>> = self.voters.iter().map(|set| set.iter().copied().collect()).collect();
        let members: BTreeMap<Key, EmptyNode> = self.members.iter().map(|key| (*key, EmptyNode {})).collect();
        Membership::new(voters, members).map_err(|_| invalid("its voters are not among its members"))
    }
}

/// A membership with its place in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredMembershipForm {
    #[n(0)]
    pub(crate) place: Option<Place>,
    #[n(1)]
    pub(crate) membership: MembershipForm,
}

impl StoredMembershipForm {
    pub(crate) fn of<R: AsyncRuntime>(stored: &StoredMembershipOf<Types<R>>) -> Self {
        let place = stored.log_id().as_ref().map(Place::of);
        Self { place, membership: MembershipForm::of(stored.membership()) }
    }

    pub(crate) fn stored<R: AsyncRuntime>(&self) -> Result<StoredMembershipOf<Types<R>>, DecodeError> {
        // A group that has none yet has no voters, which openraft takes for this one case only.
        if self.place.is_none() && self.membership.voters.is_empty() {
            return Ok(StoredMembership::default());
        }
        Ok(StoredMembership::new(self.place.map(Place::id), self.membership.membership()?))
    }
}

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct EntryForm {
    #[n(0)]
    pub(crate) place: Place,
    #[n(1)]
    pub(crate) payload: PayloadForm,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub(crate) enum PayloadForm {
    #[n(0)]
    Blank,
    #[n(1)]
    Entry(#[n(0)] ByteVec),
    #[n(2)]
    Membership(#[n(0)] MembershipForm),
}

/// An entry as openraft has it.
pub(crate) type Logged<R> = <Types<R> as RaftTypeConfig>::Entry;

impl EntryForm {
    pub(crate) fn of<R: AsyncRuntime>(entry: &Logged<R>) -> Self {
        let payload = match &entry.payload {
            EntryPayload::Blank => PayloadForm::Blank,
            EntryPayload::Normal(packed) => PayloadForm::Entry(packed.bytes.to_vec().into()),
            EntryPayload::Membership(membership) => PayloadForm::Membership(MembershipForm::of(membership)),
        };
        Self { place: Place::of(&entry.log_id()), payload }
    }

    pub(crate) fn entry<R: AsyncRuntime>(&self) -> Result<Logged<R>, DecodeError> {
        let payload = match &self.payload {
            PayloadForm::Blank => EntryPayload::Blank,
            PayloadForm::Entry(bytes) => EntryPayload::Normal(Packed::decode(bytes)?),
            PayloadForm::Membership(form) => EntryPayload::Membership(form.membership()?),
        };
        Ok(openraft::Entry { log_id: self.place.id(), payload })
    }
}

/// What a snapshot says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SnapshotForm {
    #[n(0)]
    pub(crate) place: Option<Place>,
    #[n(1)]
    pub(crate) membership: StoredMembershipForm,
}

impl SnapshotForm {
    pub(crate) fn meta<R: AsyncRuntime>(&self) -> Result<SnapshotMetaOf<Types<R>>, DecodeError> {
        Ok(openraft::storage::SnapshotMeta {
            last_log_id: self.place.map(Place::id),
            last_membership: self.membership.stored::<R>()?,
        })
    }
}

/// Shorthands for what openraft calls these types.
pub(crate) type Id<R> = LogIdOf<Types<R>>;
pub(crate) type VoteType<R> = VoteOf<Types<R>>;
