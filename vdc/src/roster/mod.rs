//! The roster: every record of one VDC that a node keeps, and what follows from them.
//!
//! Two questions are kept apart, because they have different answers when a key was stolen:
//!
//! 1. **What is stored?** A join-semilattice, so that replicas which have seen the same records, in whatever order and
//!    however often, hold the same set. [`Roster::insert`] and [`Roster::merge`] are its join.
//! 2. **What is believed?** A pure function of what is stored and of the time: [`Roster::view`].
//!
//! # The lattice
//! Each record stands on an [`Office`]: the chain of rights from the owners down to its issuer. Per office there is one
//! *slot* for each `(kind, subject)`, which holds the record with the highest `(serial, hash)`; of closings and of
//! foundings each has a slot of its own. Slots only grow, and a record is admitted only if the slot that gives its issuer
//! the right is filled; so a stored set always carries its own justification, and a union of two such sets does too.
//!
//! One thing removes: a *closing* (tombstone with an estate) signed by the owners' threshold. From then on the subject's
//! contribution is **exactly** the estate embedded in the closing; with several closings, the intersection by hash. Since
//! nobody stands above the owners, this is final, which keeps the join associative: what was removed can never be
//! justified again, because a record names its office and a right given anew is another office.
//!
//! An admin may close registrars too. That closing may itself turn out to be a thief's and be voided by the owners, so
//! it only *suspends*: the view uses the estate alone, while the slots stay stored for the day of the correction.
//!
//! # Ranks
//! Owners > admins > registrars > nodes. Only a strictly higher rank can close an issuer, so belief is evaluated from
//! the top down and mutual tombstones cannot form a circle.

mod authority;
mod belief;
mod foundings;
mod judge;
mod merge;
mod recovery;
mod view;
mod workloads;

pub mod issue;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::record::{Body, Genesis};
use crate::{Hash, Key, Office, Signed, UnixTime, VdcId};

pub use authority::{Powers, Rank};
pub use foundings::FoundingView;
pub use merge::Verifier;
pub use view::{
    AdminView, BlockView, Clash, FindError, MemberRecords, MemberView, PolicyView, RegistrarView, SiteView, Standing,
    TombstoneView, View,
};
pub use workloads::{NameHolder, WorkloadView};

use authority::{Closed, Closing, OfficeState};

/// Most records that one office may hold: about 26 MB of a thief's records, far above any honest registrar.
pub const OFFICE_RECORDS_MAX: u32 = 1 << 16;
/// Most block records that one node may hold in its own name.
pub const NODE_BLOCKS_MAX: u32 = 1024;
/// Most closings of one subject by one office.
pub const CLOSINGS_MAX: usize = 16;
/// Most conflicts remembered; the oldest go first.
pub const CONFLICTS_MAX: usize = 256;

/// What became of a record offered to the roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Stored. Whether it is *believed* is the view's judgement.
    New,
    /// Already here, by itself or inside a closing's estate.
    Known,
    /// A newer record of the same office, kind and subject is here.
    Superseded,
    Refused(RefusedReason),
}

/// Why a record was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedReason {
    #[error("a signature on it is bad, or it belongs to another VDC")]
    Signature,
    /// May become acceptable when the record that gives the right arrives; senders therefore send in rank order.
    #[error("nothing here gives its issuer the office it names")]
    UnknownIssuer,
    #[error("its issuer's office does not include records of this kind")]
    NotAllowed,
    #[error("fewer owners signed it than the VDC's threshold asks for")]
    Threshold,
    #[error("its issuer was closed by the owners, and it is not in the estate")]
    Closed,
    #[error("it is beyond the limits of its kind: {0}")]
    Form(&'static str),
    #[error("its estate is malformed: {0}")]
    Estate(&'static str),
    #[error("its issuer's office already holds as many records as one may")]
    Full,
}

/// Why a roster cannot be made or merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    #[error("the first record is not a genesis record")]
    NotGenesis,
    #[error("the genesis record is not number 1 of one of its own owners")]
    NotByOwner,
    #[error("the signature of the genesis record is bad")]
    Signature,
    #[error("the records belong to VDC {theirs}, this is VDC {ours}")]
    OtherVdc { ours: VdcId, theirs: VdcId },
}

/// Two records of one office, kind, subject and serial: an issuer that lost its state, or two that share a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    pub issuer: Key,
    /// The one with the higher hash.
    pub kept: Hash,
    pub dropped: Hash,
}

/// Two stored records with one number of one issuer: evidence that its key is used in two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Equivocation {
    pub issuer: Key,
    pub number: u64,
    pub first: Hash,
    pub second: Hash,
}

/// How many records a merge brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeReport {
    pub new: usize,
    pub known: usize,
    pub superseded: usize,
    pub refused: usize,
}

/// All records of one VDC. See the module's documentation.
#[derive(Clone, Debug)]
pub struct Roster {
    vdc: VdcId,
    genesis: Arc<Signed>,
    /// Everything stored, the genesis record included, by hash.
    records: BTreeMap<Hash, Arc<Signed>>,
    /// The winner of each slot, by [`merge::slot`].
    slots: BTreeMap<[u8; 16], Arc<Signed>>,
    /// Offices of owners, admins and registrars. A node's office needs no entry: its member slot is its evidence.
    offices: BTreeMap<Office, OfficeState>,
    /// How many blocks each node's office holds.
    node_blocks: BTreeMap<Office, u32>,
    /// Parsed estates of the stored closings, by the tombstone's hash.
    closings: BTreeMap<Hash, Arc<Closing>>,
    /// Issuers closed by the owners.
    closed: BTreeMap<Key, Closed>,
    conflicts: std::collections::VecDeque<Conflict>,
    verifier: Verifier,
    version: u64,
}

impl Roster {
    /// A roster that holds only the VDC's genesis record.
    ///
    /// # Errors
    /// [`RosterError`] unless `genesis` is a genesis record, number 1, signed by one of the owners that it names.
    pub fn new(genesis: Signed) -> Result<Self, RosterError> {
        let vdc = genesis_vdc(&genesis)?;
        if !genesis.verify(&vdc) {
            return Err(RosterError::Signature);
        }
        let genesis = Arc::new(genesis);
        let owners = OfficeState::owners(&vdc);
        Ok(Self {
            vdc,
            records: BTreeMap::from([(genesis.hash(), Arc::clone(&genesis))]),
            genesis,
            slots: BTreeMap::new(),
            offices: BTreeMap::from([(Office::owners(&vdc), owners)]),
            node_blocks: BTreeMap::new(),
            closings: BTreeMap::new(),
            closed: BTreeMap::new(),
            conflicts: std::collections::VecDeque::new(),
            verifier: Verifier::default(),
            version: 1,
        })
    }

    #[must_use]
    pub fn vdc_id(&self) -> &VdcId {
        &self.vdc
    }

    /// The genesis record.
    #[must_use]
    pub fn genesis_record(&self) -> &Arc<Signed> {
        &self.genesis
    }

    /// What the genesis record says.
    #[must_use]
    pub fn genesis(&self) -> &Genesis {
        match &self.genesis.body {
            Body::Genesis(genesis) => genesis,
            _ => unreachable!("checked when the roster was made, and only replaced by its like"),
        }
    }

    /// Rises with every change of what is stored.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many records are stored.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Never: a roster holds at least its genesis record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether a record is stored, or remains in the estate of an issuer that the owners closed.
    #[must_use]
    pub fn contains(&self, hash: &Hash) -> bool {
        self.records.contains_key(hash) || self.closed.values().any(|c| c.remaining.contains_key(hash))
    }

    /// A stored record.
    #[must_use]
    pub fn get(&self, hash: &Hash) -> Option<&Arc<Signed>> {
        self.records.get(hash)
    }

    /// The hashes of all stored records, ascending. Equal rosters have equal hashes.
    pub fn hashes(&self) -> impl DoubleEndedIterator<Item = &Hash> + ExactSizeIterator + '_ {
        self.records.keys()
    }

    /// The hashes of stored records within `range`, ascending; for sync by ranges.
    pub fn hashes_within<R: std::ops::RangeBounds<Hash>>(
        &self,
        range: R,
    ) -> impl DoubleEndedIterator<Item = &Hash> + '_ {
        self.records.range(range).map(|(hash, _)| hash)
    }

    /// All stored records in an order in which an empty roster of the same VDC accepts every one of them.
    #[must_use]
    pub fn records(&self) -> Vec<Arc<Signed>> {
        let mut records: Vec<_> = self.records.values().cloned().collect();
        self.sort_for_sending(&mut records);
        records
    }

    /// Sorts stored records so that what gives a right comes before what needs it.
    pub fn sort_for_sending(&self, records: &mut [Arc<Signed>]) {
        records.sort_by_cached_key(|r| (self.depth(r), kind_order(&r.body), r.hash()));
    }

    /// Equal-serial conflicts seen here since the roster was made; newest last, at most [`CONFLICTS_MAX`].
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflict> + '_ {
        self.conflicts.iter()
    }

    /// Pairs of stored records by which an issuer used one number twice. Ascending; looks at every record.
    #[must_use]
    pub fn equivocations(&self) -> Vec<Equivocation> {
        let mut numbers: BTreeMap<(Key, u64), &Arc<Signed>> = BTreeMap::new();
        let mut found = Vec::new();
        for record in self.records.values() {
            match numbers.entry((record.issuer, record.number)) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(record);
                }
                std::collections::btree_map::Entry::Occupied(entry) => {
                    // Owners' statements may differ in who cosigned; that is no second statement.
                    if entry.get().body != record.body || entry.get().under != record.under {
                        let (first, second) = (entry.get().hash(), record.hash());
                        found.push(Equivocation { issuer: record.issuer, number: record.number, first, second });
                    }
                }
            }
        }
        found
    }

    /// What an issuer signed, as far as it is stored or remains of it: from which the estate of its closing is chosen.
    #[must_use]
    pub fn issued_by(&self, issuer: &Key) -> Vec<Arc<Signed>> {
        let stored = self.records.values().filter(|r| r.issuer == *issuer && r.under != Office::root(&self.vdc));
        let remaining = self.closed.get(issuer).into_iter().flat_map(|c| c.remaining.values()).map(|e| &e.record);
        stored.chain(remaining).cloned().collect()
    }

    /// The number after the highest that is stored of `issuer`; 1 if there is none. For an issuer that kept no count.
    #[must_use]
    pub fn next_number(&self, issuer: &Key) -> u64 {
        let numbers = self.records.values().filter(|r| r.issuer == *issuer).map(|r| r.number);
        numbers.max().unwrap_or(0).saturating_add(1)
    }

    /// What a node may believe at `now`. Costs one pass over all records; callers keep it until [`Roster::version`] or
    /// the minute changes.
    #[must_use]
    pub fn view(&self, now: UnixTime) -> View {
        View::build(self, now)
    }

    /// Bytes on the heap that this roster accounts for, records included though they may be shared with others.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        // A B-tree node holds up to 11 entries and is 11/16 full after random insertion: sizes × 16/11.
        fn tree<K, V>(map: &BTreeMap<K, V>) -> usize {
            map.len() * (size_of::<K>() + size_of::<V>()) * 16 / 11
        }
        let records: usize = self.records.values().map(|r| r.heap_bytes()).sum();
        let closings: usize = self.closings.values().map(|c| c.heap_bytes()).sum();
        let closed: usize = self.closed.values().map(|c| tree(&c.remaining)).sum();
        let index = tree(&self.records) + tree(&self.slots) + tree(&self.offices) + tree(&self.node_blocks);
        records + closings + closed + index + self.verifier.heap_bytes()
    }
}

/// The id of the VDC that a genesis record founds.
fn genesis_vdc(record: &Signed) -> Result<VdcId, RosterError> {
    let Body::Genesis(genesis) = &record.body else { return Err(RosterError::NotGenesis) };
    let vdc = genesis.vdc_id();
    let in_form = record.number == 1 && record.under == Office::root(&vdc) && record.cosignatures.is_empty();
    if in_form && genesis.owners.contains(&record.issuer) { Ok(vdc) } else { Err(RosterError::NotByOwner) }
}

/// Within one rank: what gives or ends rights first, what merely informs last.
fn kind_order(body: &Body) -> u8 {
    match body {
        Body::Genesis(_) => 0,
        Body::Tombstone(_) => 1,
        Body::Delegation(_) => 2,
        Body::Site(_) => 3,
        Body::Policy(_) => 4,
        Body::Member(_) => 5,
        Body::Grant(_) => 6,
        Body::Block(_) => 7,
        Body::Contact(_) => 8,
        Body::Exposure(_) => 9,
        Body::Founding(_) => 10,
    }
}
