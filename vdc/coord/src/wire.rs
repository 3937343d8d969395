//! What the nodes of a group say to each other, and clients to them, and what they keep on disk of Raft's. One frame asks, one
//! answers; all of it is canonical CBOR (see [`vdc::codec`]).

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use vdc::codec::{self, DecodeError};
use vdc::{Hash, Key};

use crate::{Answer, Event, Page, Refusal, Request, Revision, Row, Summary};

/// Where in a log: term, leader, index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Place {
    #[n(0)]
    pub term: u64,
    #[n(1)]
    pub leader: Key,
    #[n(2)]
    pub index: u64,
}

/// A node's vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VoteForm {
    #[n(0)]
    pub term: u64,
    #[n(1)]
    pub leader: Key,
    #[n(2)]
    pub committed: bool,
}

/// Who belongs to a group: one or, during a change, two sets of voters, and all members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct MembershipForm {
    #[n(0)]
    #[cbor(decode_with = "crate::types::short_list")]
    pub voters: Vec<Vec<Key>>,
    #[n(1)]
    pub members: Vec<Key>,
}

/// A membership with its place in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct StoredMembershipForm {
    #[n(0)]
    pub place: Option<Place>,
    #[n(1)]
    pub membership: MembershipForm,
}

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EntryForm {
    #[n(0)]
    pub place: Place,
    #[n(1)]
    pub payload: PayloadForm,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum PayloadForm {
    #[n(0)]
    Blank,
    #[n(1)]
    Entry(#[n(0)] ByteVec),
    #[n(2)]
    Membership(#[n(0)] MembershipForm),
}

/// What a snapshot says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct SnapshotForm {
    #[n(0)]
    pub place: Option<Place>,
    #[n(1)]
    pub membership: StoredMembershipForm,
}

/// Longest frame in bytes: entries of one message, or a piece of a snapshot, or a page, and one value beyond.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// A question to a group.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Frame {
    /// The group's founding record.
    #[n(0)]
    pub group: Hash,
    #[n(1)]
    pub ask: Ask,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Ask {
    /// Entries for the log behind `before`; none is a heartbeat.
    #[n(0)]
    Append {
        #[n(0)]
        vote: VoteForm,
        #[n(1)]
        before: Option<Place>,
        #[n(2)]
        entries: Vec<EntryForm>,
        #[n(3)]
        committed: Option<Place>,
    },
    #[n(1)]
    Vote(#[n(0)] Ballot),
    /// Whether a vote would be given, which binds nobody.
    #[n(2)]
    PreVote(#[n(0)] Ballot),
    /// Lead, if you have all of it.
    #[n(3)]
    Transfer {
        #[n(0)]
        from: VoteForm,
        #[n(1)]
        to: Key,
        #[n(2)]
        last: Option<Place>,
    },
    /// A snapshot begins, or goes on after the line was cut.
    #[n(4)]
    SnapshotBegin {
        #[n(0)]
        vote: VoteForm,
        #[n(1)]
        form: SnapshotForm,
    },
    #[n(5)]
    SnapshotRows {
        #[n(0)]
        form: SnapshotForm,
        /// Behind which row these come.
        #[n(1)]
        behind: Option<Cursor>,
        #[n(2)]
        rows: Vec<SnapshotRow>,
    },
    #[n(6)]
    SnapshotEnd {
        #[n(0)]
        vote: VoteForm,
        #[n(1)]
        form: SnapshotForm,
        #[n(2)]
        rows: u64,
        /// BLAKE3 over all rows in order.
        #[n(3)]
        hash: Hash,
    },
    /// Changes, asked for by clients.
    #[n(7)]
    Requests(#[n(0)] Vec<Request>),
    /// How far the store must be for a linearizable read now.
    #[n(8)]
    ReadIndex,
    #[n(9)]
    Get {
        #[n(0)]
        key: ByteVec,
        #[n(1)]
        stale: bool,
    },
    #[n(10)]
    Range {
        #[n(0)]
        from: ByteVec,
        #[n(1)]
        to: ByteVec,
        #[n(2)]
        rows_max: u64,
        #[n(3)]
        at: Option<Revision>,
        #[n(4)]
        stale: bool,
    },
    /// Changes of keys from `first` up to before `end` (empty: all further), from a revision on; waits for the first, so long.
    #[n(11)]
    Events {
        #[n(0)]
        from: Revision,
        #[n(1)]
        wait_ms: u64,
        #[n(2)]
        first: ByteVec,
        #[n(3)]
        end: ByteVec,
    },
    #[n(12)]
    Status,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Ballot {
    #[n(0)]
    pub vote: VoteForm,
    #[n(1)]
    pub last: Option<Place>,
    /// The leader itself wants this one to lead.
    #[n(2)]
    pub transfer: bool,
}

/// A row of a snapshot's by table and key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Cursor {
    #[n(0)]
    pub table: u8,
    #[n(1)]
    pub key: ByteVec,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SnapshotRow {
    #[n(0)]
    pub at: Cursor,
    #[n(1)]
    pub value: ByteVec,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Reply {
    #[n(0)]
    Append(#[n(0)] Appended),
    #[n(1)]
    Vote {
        #[n(0)]
        vote: VoteForm,
        #[n(1)]
        granted: bool,
        #[n(2)]
        last: Option<Place>,
    },
    /// The last row that arrived; none if the first is wanted.
    #[n(2)]
    Snapshot {
        #[n(0)]
        have: Option<Cursor>,
    },
    #[n(3)]
    Installed(#[n(0)] VoteForm),
    #[n(4)]
    Done,
    #[n(5)]
    Answers(#[n(0)] Vec<Result<Answer, Refusal>>),
    #[n(6)]
    ReadIndex(#[n(0)] Option<Place>),
    #[n(7)]
    Row {
        #[n(0)]
        row: Option<Row>,
        #[n(1)]
        revision: Revision,
    },
    #[n(8)]
    Page(#[n(0)] Page),
    #[n(9)]
    Events {
        #[n(0)]
        #[cbor(decode_with = "crate::types::list_of_events")]
        events: Vec<Event>,
        #[n(1)]
        next: Revision,
    },
    #[n(10)]
    Status(#[n(0)] Standing),
    #[n(11)]
    Refused(#[n(0)] Refusal),
    #[n(12)]
    Trouble(#[n(0)] Trouble),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Appended {
    #[n(0)]
    All,
    #[n(1)]
    Upto(#[n(0)] Option<Place>),
    #[n(2)]
    Conflict,
    #[n(3)]
    HigherVote(#[n(0)] VoteForm),
}

/// Why a node did not answer what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[cbor(flat)]
pub enum Trouble {
    /// It has no such group, or another one by that name.
    #[n(0)]
    #[error("the node does not serve group {group}")]
    UnknownGroup {
        #[n(0)]
        group: Hash,
    },
    /// Ask the leader.
    #[n(1)]
    #[error("the node does not lead the group")]
    NotLeader {
        #[n(0)]
        leader: Option<Key>,
    },
    /// There is no majority, or the disk is broken; what was asked for was not done.
    #[n(2)]
    #[error("the group cannot do it now: {why}")]
    Unavailable {
        #[n(0)]
        why: String,
    },
    /// It was proposed, and what became of it is not known.
    #[n(3)]
    #[error("what became of the request is not known: {why}")]
    Unknown {
        #[n(0)]
        why: String,
    },
    /// Too much waits already; nothing was done.
    #[n(4)]
    #[error("the leader is busy")]
    Busy,
    #[n(5)]
    #[error("the frame is not understood: {why}")]
    Malformed {
        #[n(0)]
        why: String,
    },
    /// It is not for the node that asks; nothing was done.
    #[n(6)]
    #[error("the node may not do this: {why}")]
    Forbidden {
        #[n(0)]
        why: String,
    },
}

/// Where a node stands in a group.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Standing {
    #[n(0)]
    pub leader: Option<Key>,
    #[n(1)]
    pub term: u64,
    #[n(2)]
    pub voters: Vec<Key>,
    #[n(3)]
    pub learners: Vec<Key>,
    /// Index of the last entry in the node's log, and of the last that it applied.
    #[n(4)]
    pub last_index: u64,
    #[n(5)]
    pub applied_index: u64,
    #[n(6)]
    pub summary: Summary,
    /// Term of the last entry in the node's log.
    #[n(7)]
    pub last_term: u64,
}

/// # Errors
/// [`DecodeError`] for anything but one canonical frame.
pub fn decode_frame(bytes: &[u8]) -> Result<Frame, DecodeError> {
    codec::decode("coordination frame", bytes, FRAME_BYTES_MAX)
}

/// # Errors
/// [`DecodeError`] for anything but one canonical answer.
pub fn decode_reply(bytes: &[u8]) -> Result<Reply, DecodeError> {
    codec::decode("coordination answer", bytes, FRAME_BYTES_MAX)
}
