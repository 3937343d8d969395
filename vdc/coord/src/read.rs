//! Reading a store: keys, ranges as they are or were, changes, leases.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use minicbor::{Decode, Encode};

use crate::limits::{PAGE_BYTES_MAX, PAGE_ROWS_MAX, check_key, check_range};
use crate::machine::{SUMMARY, Summary, damaged, id_key, revision_key};
use crate::rows::{Rows, Table};
use crate::{Event, Lease, LeaseId, Refusal, Revision, Row};

/// What is answered or refused, unless the rows cannot be read.
pub type Outcome<T, E> = Result<Result<T, Refusal>, E>;

/// Part of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Page {
    #[n(0)]
    #[cbor(decode_with = "crate::types::short_list")]
    pub rows: Vec<(minicbor::bytes::ByteVec, Row)>,
    /// Of which the range is; to be asked for in the next page, so that both fit together.
    #[n(1)]
    pub revision: Revision,
    /// Whether there is more behind the last row.
    #[n(2)]
    pub more: bool,
}

/// Reads one consistent state of a store.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a, R>(pub &'a R);

impl<R: Rows> Reader<'_, R> {
    /// Where the store stands.
    ///
    /// # Errors
    /// Those of the rows.
    pub fn summary(&self) -> Result<Summary, R::Error> {
        let bytes = self.0.get(Table::Meta, SUMMARY)?;
        Ok(bytes.map(|bytes| damaged(minicbor::decode(&bytes))).unwrap_or_default())
    }

    /// # Errors
    /// Those of the rows.
    pub fn row(&self, key: &[u8]) -> Result<Option<Row>, R::Error> {
        Ok(self.0.get(Table::Rows, key)?.map(|bytes| damaged(minicbor::decode(&bytes))))
    }

    /// # Errors
    /// Those of the rows.
    pub fn lease(&self, lease: LeaseId) -> Result<Option<Lease>, R::Error> {
        Ok(self.0.get(Table::Leases, &id_key(lease))?.map(|bytes| damaged(minicbor::decode(&bytes))))
    }

    /// When the next lease ends, in the group's time.
    ///
    /// # Errors
    /// Those of the rows.
    pub fn next_end_ms(&self) -> Result<Option<u64>, R::Error> {
        let mut end = None;
        self.0.scan(Table::LeaseEnds, &[], &[], &mut |key, _| {
            end = key.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
            ControlFlow::Break(())
        })?;
        Ok(end)
    }

    /// One key, as it is, or as it was after revision `at`.
    ///
    /// # Errors
    /// Those of the rows.
    pub fn get(&self, key: &[u8], at: Option<Revision>) -> Outcome<(Option<Row>, Revision), R::Error> {
        if let Err(refusal) = check_key(key) {
            return Ok(Err(refusal));
        }
        let after = [key, b"\0"].concat();
        Ok(self.range(key, &after, 1, at)?.map(|mut page| (page.rows.pop().map(|(_, row)| row), page.revision)))
    }

    /// The rows from `from` up to before `to` (an empty `to` is the end), at most `rows_max` of them, as they are, or as they
    /// were after revision `at`. The next page begins behind the last key of this one: that key and a zero byte.
    ///
    /// # Errors
    /// Those of the rows.
    pub fn range(&self, from: &[u8], to: &[u8], rows_max: usize, at: Option<Revision>) -> Outcome<Page, R::Error> {
        if let Err(refusal) = check_range(from, to) {
            return Ok(Err(refusal));
        }
        let summary = self.summary()?;
        let at = at.unwrap_or(summary.revision);
        if at > summary.revision {
            return Ok(Err(Refusal::Future { asked: at, now: summary.revision }));
        }
        // What was after `at` can be said as long as every change since is kept.
        if at.0 + 1 < summary.oldest.0 {
            return Ok(Err(Refusal::Compacted { oldest: summary.oldest }));
        }
        let mut changed = self.changed_since(from, to, at)?;
        let rows_max = rows_max.clamp(1, PAGE_ROWS_MAX);
        let mut page = Page { revision: at, ..Page::default() };
        let mut bytes = 0;
        let mut add = |page: &mut Page, key: &[u8], row: Row| {
            bytes += key.len() + row.value.len();
            if page.rows.len() == rows_max || (bytes > PAGE_BYTES_MAX && !page.rows.is_empty()) {
                page.more = true;
                return ControlFlow::Break(());
            }
            page.rows.push((key.to_vec().into(), row));
            ControlFlow::Continue(())
        };
        let mut ended = ControlFlow::Continue(());
        self.0.scan(Table::Rows, from, to, &mut |key, value| {
            // Rows that were there then and are not now stand between those that are.
            while let Some(gone) = changed.first_entry().filter(|gone| gone.key().as_slice() < key) {
                let (key, row) = gone.remove_entry();
                if let Some(row) = row {
                    ended = add(&mut page, &key, row);
                    if ended.is_break() {
                        return ended;
                    }
                }
            }
            let row = match changed.remove(key) {
                Some(before) => before,
                None => Some(damaged(minicbor::decode(value))),
            };
            if let Some(row) = row {
                ended = add(&mut page, key, row);
            }
            ended
        })?;
        for (key, row) in changed {
            if ended.is_break() {
                break;
            }
            if let Some(row) = row {
                ended = add(&mut page, &key, row);
            }
        }
        Ok(Ok(page))
    }

    /// What the keys of a range that changed after `at` were then.
    fn changed_since(&self, from: &[u8], to: &[u8], at: Revision) -> Result<BTreeMap<Vec<u8>, Option<Row>>, R::Error> {
        let mut changed = BTreeMap::new();
        self.0.scan(Table::Events, &revision_key(Revision(at.0 + 1)), &[], &mut |place, value| {
            let key = place.get(8..).unwrap_or_default();
            if key >= from && (to.is_empty() || key < to) && !changed.contains_key(key) {
                let event: Event = damaged(minicbor::decode(value));
                changed.insert(key.to_vec(), event.before);
            }
            ControlFlow::Continue(())
        })?;
        Ok(changed)
    }

    /// The changes from revision `from` on, in order; at most `events_max` (no more than [`PAGE_ROWS_MAX`]) and [`PAGE_BYTES_MAX`], but all of a revision. And
    /// the revision to go on from.
    ///
    /// # Errors
    /// Those of the rows.
    pub fn events(&self, from: Revision, events_max: usize) -> Outcome<(Vec<Event>, Revision), R::Error> {
        let summary = self.summary()?;
        // Revision 0 is the empty store: nothing changed there.
        let from = from.max(Revision(1));
        if from < summary.oldest {
            return Ok(Err(Refusal::Compacted { oldest: summary.oldest }));
        }
        let events_max = events_max.clamp(1, PAGE_ROWS_MAX);
        let mut events: Vec<Event> = vec![];
        let mut bytes = 0;
        let mut cut = false;
        self.0.scan(Table::Events, &revision_key(from), &[], &mut |_, value| {
            let event: Event = damaged(minicbor::decode(value));
            let full = events.len() >= events_max || bytes > PAGE_BYTES_MAX;
            if full && events.last().is_some_and(|last| last.revision != event.revision) {
                cut = true;
                return ControlFlow::Break(());
            }
            bytes += value.len();
            events.push(event);
            ControlFlow::Continue(())
        })?;
        let next = match events.last() {
            Some(last) if cut => Revision(last.revision.0 + 1),
            _ => Revision(summary.revision.0 + 1).max(from),
        };
        Ok(Ok((events, next)))
    }
}
