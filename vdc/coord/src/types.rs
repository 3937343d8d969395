//! What is stored, asked for and answered. Wire form: canonical CBOR (see [`vdc::codec`]), of which a golden sample of each is in
//! the tests.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::limits::{DELETE_MAX, PAGE_ROWS_MAX, STEPS_MAX};

/// Elements of a list that is decoded at all.
const LIST_MAX: usize = 4 * STEPS_MAX;
const _: () = assert!(LIST_MAX >= PAGE_ROWS_MAX, "pages are lists too");
/// A page of changes is cut between revisions: what one deletes and puts comes on top.
const EVENT_LIST_MAX: usize = PAGE_ROWS_MAX + DELETE_MAX + STEPS_MAX;

/// Decodes a list that is no longer than what may be asked for, and then some, so that what is a little too long is refused by
/// name: small elements take far more memory than bytes.
pub(crate) fn short_list<'b, C, T: Decode<'b, C>>(
    d: &mut minicbor::Decoder<'b>,
    ctx: &mut C,
) -> Result<Vec<T>, minicbor::decode::Error> {
    list(d, ctx, LIST_MAX)
}

/// Decodes the changes of one answer: a page of them, and all those of the last revision.
pub(crate) fn list_of_events<'b, C>(
    d: &mut minicbor::Decoder<'b>,
    ctx: &mut C,
) -> Result<Vec<Event>, minicbor::decode::Error> {
    list(d, ctx, EVENT_LIST_MAX)
}

fn list<'b, C, T: Decode<'b, C>>(
    d: &mut minicbor::Decoder<'b>,
    ctx: &mut C,
    length_max: usize,
) -> Result<Vec<T>, minicbor::decode::Error> {
    let length = d.array()?.ok_or_else(|| minicbor::decode::Error::message("indefinite list"))?;
    if length > length_max as u64 {
        return Err(minicbor::decode::Error::message("list too long"));
    }
    (0..length).map(|_| d.decode_with(ctx)).collect()
}

/// A key: 1 to [`crate::limits::KEY_BYTES_MAX`] bytes, in the order of its bytes.
pub type KeyBytes = ByteVec;

/// The number of a change of the store: one for each transaction that changed something. 0 is the empty store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct Revision(#[n(0)] pub u64);

/// The revision at which a lease was granted. It only grows, so it is also the lease's fencing generation: whoever is asked
/// to do something under a lease refuses every generation below the highest that it has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct LeaseId(#[n(0)] pub u64);

/// Who asks, drawn at random for each start of a client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct ClientId(
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub [u8; 16],
);

impl std::fmt::Debug for ClientId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientId({:032x})", u128::from_be_bytes(self.0))
    }
}

/// What is stored at a key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Row {
    #[n(0)]
    pub value: ByteVec,
    /// When the key came to be.
    #[n(1)]
    pub created: Revision,
    /// When it was last put.
    #[n(2)]
    pub modified: Revision,
    /// How often it was put since it came to be; 1 at first.
    #[n(3)]
    pub version: u64,
    /// The lease with which it ends.
    #[n(4)]
    pub lease: Option<LeaseId>,
}

/// A lease that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Lease {
    #[n(0)]
    pub ttl_ms: u64,
    /// In the group's time.
    #[n(1)]
    pub ends_ms: u64,
}

/// What must hold for a key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Compare {
    #[n(0)]
    pub key: KeyBytes,
    #[n(1)]
    pub condition: Condition,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Condition {
    #[n(0)]
    Absent,
    #[n(1)]
    Present,
    /// How often it was put since it came to be.
    #[n(2)]
    Version(#[n(0)] u64),
    /// Unchanged since: its row says so.
    #[n(3)]
    Modified(#[n(0)] Revision),
    #[n(4)]
    Value(#[n(0)] ByteVec),
    /// It is there and ends with this lease.
    #[n(5)]
    Lease(#[n(0)] LeaseId),
    /// The lease is held; the key does not matter.
    #[n(6)]
    LeaseHeld(#[n(0)] LeaseId),
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Op {
    #[n(0)]
    Put {
        #[n(0)]
        key: KeyBytes,
        #[n(1)]
        value: ByteVec,
        #[n(2)]
        lease: Option<LeaseId>,
    },
    #[n(1)]
    Delete {
        #[n(0)]
        key: KeyBytes,
    },
    /// From `from` up to before `to`; an empty `to` is the end of all keys.
    #[n(2)]
    DeleteRange {
        #[n(0)]
        from: ByteVec,
        #[n(1)]
        to: ByteVec,
    },
    #[n(3)]
    Read {
        #[n(0)]
        key: KeyBytes,
    },
}

/// If all comparisons hold, `success` is done, otherwise `failure`; all of it or nothing, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Transaction {
    #[n(0)]
    #[cbor(decode_with = "short_list")]
    pub compares: Vec<Compare>,
    #[n(1)]
    #[cbor(decode_with = "short_list")]
    pub success: Vec<Op>,
    #[n(2)]
    #[cbor(decode_with = "short_list")]
    pub failure: Vec<Op>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Command {
    /// A new client's first request.
    #[n(0)]
    Open,
    #[n(1)]
    Transact(#[n(0)] Transaction),
    #[n(2)]
    GrantLease {
        #[n(0)]
        ttl_ms: u64,
    },
    #[n(3)]
    KeepAlive {
        #[n(0)]
        lease: LeaseId,
    },
    /// Ends a lease and deletes its keys.
    #[n(4)]
    Revoke {
        #[n(0)]
        lease: LeaseId,
    },
    /// Forgets changes before this revision.
    #[n(5)]
    Compact {
        #[n(0)]
        before: Revision,
    },
}

/// A command that is done once, however often it arrives.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Request {
    #[n(0)]
    pub client: ClientId,
    /// The client's own consecutive numbers; [`Command::Open`] is 0.
    #[n(1)]
    pub number: u64,
    #[n(2)]
    pub command: Command,
}

/// What one entry of the log says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// The group's time in milliseconds, as the leader counts it.
    #[n(0)]
    pub stamp_ms: u64,
    #[n(1)]
    pub requests: Vec<Request>,
}

/// What a transaction did.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Done {
    /// Whether all comparisons held.
    #[n(0)]
    pub succeeded: bool,
    /// Of the store after it; its own if it changed something.
    #[n(1)]
    pub revision: Revision,
    /// What each `Read` found, in order.
    #[n(2)]
    #[cbor(decode_with = "short_list")]
    pub reads: Vec<Option<Row>>,
    /// Rows that were there and are not any more.
    #[n(3)]
    pub deleted: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum Answer {
    #[n(0)]
    Opened,
    #[n(1)]
    Done(#[n(0)] Done),
    /// A lease was granted, or lives on; `ttl_ms` counts from when the request was sent, as far as its holder may rely on it.
    #[n(2)]
    Lease {
        #[n(0)]
        lease: LeaseId,
        #[n(1)]
        ttl_ms: u64,
    },
    #[n(3)]
    Revoked {
        #[n(0)]
        deleted: u64,
    },
    #[n(4)]
    Compacted {
        #[n(0)]
        oldest: Revision,
    },
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[cbor(flat)]
pub enum Refusal {
    #[n(0)]
    #[error("a key must have at least one byte")]
    EmptyKey,
    #[n(1)]
    #[error("a key of {bytes} bytes is longer than the {bytes_max} allowed")]
    KeyTooLong {
        #[n(0)]
        bytes: u64,
        #[n(1)]
        bytes_max: u64,
    },
    #[n(2)]
    #[error("a value of {bytes} bytes is longer than the {bytes_max} allowed")]
    ValueTooLong {
        #[n(0)]
        bytes: u64,
        #[n(1)]
        bytes_max: u64,
    },
    #[n(3)]
    #[error("a transaction with {bytes} bytes of keys and values is longer than the {bytes_max} allowed")]
    TransactionTooLong {
        #[n(0)]
        bytes: u64,
        #[n(1)]
        bytes_max: u64,
    },
    #[n(4)]
    #[error("a transaction of {steps} comparisons and changes has more than the {steps_max} allowed")]
    TooManySteps {
        #[n(0)]
        steps: u64,
        #[n(1)]
        steps_max: u64,
    },
    #[n(5)]
    #[error("a range must begin before it ends")]
    BadRange,
    #[n(6)]
    #[error("a transaction that deletes more than {rows_max} rows must be done in parts")]
    TooManyRows {
        #[n(0)]
        rows_max: u64,
    },
    #[n(7)]
    #[error("changes before revision {} are no longer kept", oldest.0)]
    Compacted {
        #[n(0)]
        oldest: Revision,
    },
    #[n(8)]
    #[error("revision {} is not there yet, the store is at {}", asked.0, now.0)]
    Future {
        #[n(0)]
        asked: Revision,
        #[n(1)]
        now: Revision,
    },
    #[n(9)]
    #[error("lease {} has ended", lease.0)]
    LeaseGone {
        #[n(0)]
        lease: LeaseId,
    },
    #[n(10)]
    #[error("a lease of {ttl_ms} ms is not within {ttl_ms_min} to {ttl_ms_max} ms")]
    BadTtl {
        #[n(0)]
        ttl_ms: u64,
        #[n(1)]
        ttl_ms_min: u64,
        #[n(2)]
        ttl_ms_max: u64,
    },
    #[n(11)]
    #[error("there are {leases_max} leases already")]
    TooManyLeases {
        #[n(0)]
        leases_max: u64,
    },
    #[n(12)]
    #[error("the client was idle for long and is forgotten: it must open again")]
    UnknownClient,
    #[n(13)]
    #[error("request {number} is older than the answers that are kept: whether it was done is not known any more")]
    Forgotten {
        #[n(0)]
        number: u64,
    },
    #[n(14)]
    #[error("a transaction may delete or replace rows of {bytes_max} bytes together, and not {bytes}: do it in parts")]
    DisplacesTooMuch {
        #[n(0)]
        bytes: u64,
        #[n(1)]
        bytes_max: u64,
    },
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Event {
    #[n(0)]
    pub revision: Revision,
    #[n(1)]
    pub key: KeyBytes,
    #[n(2)]
    pub before: Option<Row>,
    /// None if it was deleted.
    #[n(3)]
    pub after: Option<Row>,
}
