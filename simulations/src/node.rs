//! One simulated node: the shipped roster and syncer, and what the daemon does around them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use vdc::roster::{Roster, Verifier};
use vdc::sync::{Merge, Records, Syncer};
use vdc::{Hash, Signed, UnixTime};

use crate::founding::{Identity, START};

/// A roster whose signature checks are shared by all nodes of the run: a record is verified once, not a thousand times.
#[derive(Debug)]
pub(crate) struct RecordsSim {
    pub(crate) roster: Roster,
    pub(crate) verifier: Rc<RefCell<Verifier>>,
}

impl Records for RecordsSim {
    fn version(&self) -> u64 {
        self.roster.version()
    }

    fn hashes_in(&self, first: Hash, last: Hash) -> impl Iterator<Item = Hash> {
        self.roster.hashes_within(first..=last).copied()
    }

    fn record(&self, hash: &Hash) -> Option<Arc<Signed>> {
        self.roster.get(hash).cloned()
    }

    fn contains(&self, hash: &Hash) -> bool {
        self.roster.contains(hash)
    }

    fn insert(&mut self, record: Arc<Signed>) -> Merge {
        self.roster.insert_with(&mut self.verifier.borrow_mut(), record).into()
    }
}

/// Why a link is wanted no more, or could not be made, is the world's business; this is what the node itself knows.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) identity: Identity,
    pub(crate) records: RecordsSim,
    pub(crate) syncer: Syncer,
    pub(crate) is_up: bool,
    /// How far its clock is ahead, in seconds.
    pub(crate) clock_ahead: i64,
    /// Peers and the number of the link to each.
    pub(crate) links: BTreeMap<usize, u64>,
    /// Peers that the topology asks for.
    pub(crate) wanted: BTreeSet<usize>,
    /// Peers being dialled, and how often that failed.
    pub(crate) dialling: BTreeMap<usize, u32>,
    /// Which nodes it lets in: reachable members, by index.
    pub(crate) members: Vec<bool>,
    /// When its timer is set, to tell the valid timer event from those it replaced.
    pub(crate) timer_us: Option<u64>,
    pub(crate) refresh_planned: bool,
    pub(crate) bytes_sent: u64,
    pub(crate) messages_sent: u64,
    pub(crate) links_max: usize,
    pub(crate) refused: u64,
}

impl Node {
    pub(crate) fn new(identity: Identity, records: RecordsSim, syncer: Syncer) -> Self {
        Self {
            identity,
            records,
            syncer,
            is_up: false,
            clock_ahead: 0,
            links: BTreeMap::new(),
            wanted: BTreeSet::new(),
            dialling: BTreeMap::new(),
            members: Vec::new(),
            timer_us: None,
            refresh_planned: false,
            bytes_sent: 0,
            messages_sent: 0,
            links_max: 0,
            refused: 0,
        }
    }

    /// What the node's own clock says.
    pub(crate) fn unix_time(&self, now_us: u64) -> UnixTime {
        UnixTime((START.0 + now_us / 1_000_000).saturating_add_signed(self.clock_ahead))
    }

    pub(crate) fn lets_in(&self, node: usize) -> bool {
        self.members.get(node).copied().unwrap_or(false)
    }

    pub(crate) fn set_member(&mut self, node: usize, is_member: bool) {
        if self.members.len() <= node {
            self.members.resize(node + 1, false);
        }
        self.members[node] = is_member;
    }
}
