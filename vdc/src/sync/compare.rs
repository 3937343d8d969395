//! Comparing what two sides hold, range by range.

use std::collections::BTreeSet;

use super::{Content, Fingerprint, IDS_MAX, Prefix, RANGES_MAX, Range, Records};
use crate::Hash;

/// Ranges with at most this many records on both sides together are told apart by their hashes, not split further: 16
/// digests take as many bytes as 16 hashes.
const IDS_PER_RANGE: u32 = 32;

/// Number and fingerprint of the records held in a range.
pub(super) fn digest<R: Records>(records: &R, prefix: Prefix) -> (u32, Fingerprint) {
    Fingerprint::of(records.hashes_in(prefix.first(), prefix.last()))
}

/// What follows from the ranges that a peer sent.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// What to say in turn, ascending and within the limits of one message. Ranges that find no room are found different
    /// again by the next comparison, which then has fewer to tell apart.
    pub(super) ranges: Vec<Range>,
    /// Held here, not there.
    pub(super) have: Vec<Hash>,
    /// Held there, not here.
    pub(super) want: Vec<Hash>,
    /// Hashes read to find out: what the peer is charged for.
    pub(super) touched: usize,
    ids: usize,
}

impl Answer {
    /// The peer's digest of `prefix` counts `theirs` and differs from ours over `mine` records.
    pub(super) fn on_digest<R: Records>(&mut self, records: &R, prefix: Prefix, mine: u32, theirs: u32) {
        let held = || records.hashes_in(prefix.first(), prefix.last());
        self.touched += mine as usize;
        if theirs == 0 {
            self.have.extend(held());
        } else if mine == 0 || prefix.is_deepest() || mine.saturating_add(theirs) <= IDS_PER_RANGE {
            if self.ids + mine as usize <= IDS_MAX && self.ranges.len() < RANGES_MAX {
                self.ids += mine as usize;
                self.ranges.push(Range { prefix, content: Content::Ids(held().collect()) });
            }
        } else if self.ranges.len() + 16 <= RANGES_MAX {
            self.ranges.extend(prefix.children().map(|child| {
                let (count, fingerprint) = digest(records, child);
                Range { prefix: child, content: Content::Digest(count, fingerprint) }
            }));
        }
    }

    /// The peer holds exactly `theirs` (ascending) in `prefix`.
    pub(super) fn on_ids<R: Records>(&mut self, records: &R, prefix: Prefix, theirs: &[Hash]) {
        let mine: BTreeSet<Hash> = records.hashes_in(prefix.first(), prefix.last()).collect();
        self.touched += mine.len();
        self.have.extend(mine.iter().filter(|id| theirs.binary_search(id).is_err()));
        self.want.extend(theirs.iter().filter(|id| !mine.contains(id)));
    }

    /// Whether the peer will answer the ranges with ranges; to hashes it answers with offers and fetches alone.
    pub(super) fn goes_on(&self) -> bool {
        self.ranges.iter().any(|range| matches!(range.content, Content::Digest(..)))
    }
}
