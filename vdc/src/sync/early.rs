//! Records that cannot be judged yet, and hashes that need not be asked for again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::{DECLINED_MAX, EARLY_BYTES_MAX, EARLY_PEER_BYTES_MAX};
use crate::{Hash, Key, Signed};

/// Records of issuers whose right is not known. Their signatures are unchecked, so each peer has its own small share.
#[derive(Debug, Default)]
pub(super) struct Early {
    records: BTreeMap<Hash, (Key, Arc<Signed>, usize)>,
    bytes: BTreeMap<Key, usize>,
}

impl Early {
    /// Whether there was room. What finds none is left to a later comparison.
    pub(super) fn insert(&mut self, from: Key, record: Arc<Signed>, bytes: usize) -> bool {
        let of_peer = self.bytes.get(&from).copied().unwrap_or(0);
        let of_all: usize = self.bytes.values().sum();
        let fits = of_peer + bytes <= EARLY_PEER_BYTES_MAX && of_all + bytes <= EARLY_BYTES_MAX;
        if fits && self.records.insert(record.hash(), (from, record, bytes)).is_none() {
            *self.bytes.entry(from).or_default() += bytes;
        }
        fits
    }

    pub(super) fn contains(&self, hash: &Hash) -> bool {
        self.records.contains_key(hash)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Takes everything out, in an order in which it can be applied.
    pub(super) fn take(&mut self) -> Vec<(Key, Arc<Signed>, usize)> {
        self.bytes.clear();
        let mut records: Vec<_> = std::mem::take(&mut self.records).into_values().collect();
        records.sort_by_key(|(_, record, _)| super::rank(record));
        records
    }

    /// Drops what a peer brought whose link is gone.
    pub(super) fn forget(&mut self, from: &Key) {
        if self.bytes.remove(from).is_some() {
            self.records.retain(|_, (source, ..)| source != from);
        }
    }
}

/// The latest hashes that turned out superseded: a peer that is behind keeps offering them.
#[derive(Debug, Default)]
pub(super) struct Declined {
    hashes: BTreeSet<Hash>,
    order: VecDeque<Hash>,
}

impl Declined {
    pub(super) fn insert(&mut self, hash: Hash) {
        if !self.hashes.insert(hash) {
            return;
        }
        self.order.push_back(hash);
        if self.order.len() > DECLINED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.hashes.remove(&oldest);
        }
    }

    pub(super) fn contains(&self, hash: &Hash) -> bool {
        self.hashes.contains(hash)
    }
}
