//! The twin: a whole store in memory, of which a test asks what it would ask a group.
//!
//! The same [`Machine`] as in a group does the work, so what holds here holds there. Time is an argument, and what waits in a
//! group is polled here. What takes a [`Store`] runs on both: the twin's answers are there at once.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Future, ready};

use crate::limits::PAGE_ROWS_MAX;
use crate::{
    Answer, ClientId, Command, Done, Entry, Event, LeaseId, Machine, MemoryRows, Page, Reader, Refusal, Request,
    Revision, Row, Summary, Transaction,
};

/// What anybody can ask a group for.
pub trait Store {
    type Error: std::error::Error + From<Refusal>;

    /// Does a transaction once.
    fn transact(&mut self, transaction: Transaction) -> impl Future<Output = Result<Done, Self::Error>> + Send;

    /// Takes a lease.
    fn grant(&mut self, ttl_ms: u64) -> impl Future<Output = Result<LeaseId, Self::Error>> + Send;

    /// Keeps a lease for another time to live.
    fn keep_alive(&mut self, lease: LeaseId) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Ends a lease. How many keys ended with it.
    fn revoke(&mut self, lease: LeaseId) -> impl Future<Output = Result<u64, Self::Error>> + Send;

    /// The row of a key, and of which revision that is.
    fn get(&mut self, key: &[u8]) -> impl Future<Output = Result<(Option<Row>, Revision), Self::Error>> + Send;

    /// A page of the rows from `from` up to before `to` (empty: the end), as they are or were after revision `at`.
    fn range(
        &mut self,
        from: &[u8],
        to: &[u8],
        rows_max: usize,
        at: Option<Revision>,
    ) -> impl Future<Output = Result<Page, Self::Error>> + Send;

    /// The next changes that a watch wants; none if there was none for a while.
    fn poll(&mut self, watch: &mut Watch) -> impl Future<Output = Result<Vec<Event>, Self::Error>> + Send;
}

/// Where somebody stands who follows the changes of a range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    first: Vec<u8>,
    end: Vec<u8>,
    next: Revision,
}

impl Watch {
    /// Follows the keys from `first` up to before `end` (empty: all further), from a revision on.
    #[must_use]
    pub fn new(first: &[u8], end: &[u8], from: Revision) -> Self {
        Self { first: first.to_vec(), end: end.to_vec(), next: from }
    }

    /// The first revision that it has not seen.
    #[must_use]
    pub fn next(&self) -> Revision {
        self.next
    }

    #[must_use]
    pub fn wants(&self, key: &[u8]) -> bool {
        key >= &self.first[..] && (self.end.is_empty() || key < &self.end[..])
    }

    /// Takes changes that a store gave for [`Self::next`], and the revision to go on from. Those that are wanted: what came
    /// before is not told again, whichever node of the group gave it.
    pub fn take(&mut self, mut events: Vec<Event>, next: Revision) -> Vec<Event> {
        events.retain(|event| event.revision >= self.next && self.wants(&event.key));
        self.next = self.next.max(next);
        events
    }
}

/// A store in memory. A clone is a copy that goes its own way.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    rows: MemoryRows,
    now_ms: u64,
    /// The next number of its own client, for what is asked by the plain calls.
    next: u64,
}

/// Its own client.
const OWN: ClientId = ClientId([0; 16]);

fn sure<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
    }
}

impl MemoryStore {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the group's time go on, which ends leases. Never back: an earlier time changes nothing.
    pub fn set_time_ms(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.apply(vec![]);
    }

    /// Does what a log entry with these requests would do, now.
    pub fn apply(&mut self, requests: Vec<Request>) -> Vec<Result<Answer, Refusal>> {
        let entry = Entry { stamp_ms: self.now_ms, requests };
        let mut machine = sure(Machine::new(&mut self.rows));
        sure(machine.apply(&entry))
    }

    /// Does one command, as a client that never asks twice.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was done.
    pub fn command(&mut self, command: Command) -> Result<Answer, Refusal> {
        loop {
            let number = self.next;
            self.next += 1;
            let command = if number == 0 { Command::Open } else { command.clone() };
            let answer = self.apply(vec![Request { client: OWN, number, command }]).pop();
            match answer.expect("each request is answered") {
                // The clients of `apply` may have pushed this one out; nothing of what it asked for is under way.
                Err(Refusal::UnknownClient) => self.next = 0,
                answer if number > 0 => return answer,
                _ => {}
            }
        }
    }

    /// Does a transaction.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was done.
    pub fn transact(&mut self, transaction: Transaction) -> Result<Done, Refusal> {
        match self.command(Command::Transact(transaction))? {
            Answer::Done(done) => Ok(done),
            other => unreachable!("a transaction was answered with {other:?}"),
        }
    }

    /// Takes a lease.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was done.
    pub fn grant(&mut self, ttl_ms: u64) -> Result<LeaseId, Refusal> {
        match self.command(Command::GrantLease { ttl_ms })? {
            Answer::Lease { lease, .. } => Ok(lease),
            other => unreachable!("a grant was answered with {other:?}"),
        }
    }

    /// Keeps a lease for another time to live.
    ///
    /// # Errors
    /// [`Refusal::LeaseGone`].
    pub fn keep_alive(&mut self, lease: LeaseId) -> Result<(), Refusal> {
        self.command(Command::KeepAlive { lease }).map(|_| ())
    }

    /// Ends a lease. How many keys ended with it.
    ///
    /// # Errors
    /// [`Refusal::LeaseGone`].
    pub fn revoke(&mut self, lease: LeaseId) -> Result<u64, Refusal> {
        match self.command(Command::Revoke { lease })? {
            Answer::Revoked { deleted } => Ok(deleted),
            other => unreachable!("a revocation was answered with {other:?}"),
        }
    }

    /// Forgets changes before a revision. The first whose changes are kept.
    ///
    /// # Errors
    /// [`Refusal::Future`].
    pub fn compact(&mut self, before: Revision) -> Result<Revision, Refusal> {
        match self.command(Command::Compact { before })? {
            Answer::Compacted { oldest } => Ok(oldest),
            other => unreachable!("a compaction was answered with {other:?}"),
        }
    }

    #[must_use]
    pub fn reader(&self) -> Reader<'_, MemoryRows> {
        Reader(&self.rows)
    }

    #[must_use]
    pub fn summary(&self) -> Summary {
        sure(self.reader().summary())
    }

    /// The row of a key, and of which revision that is.
    ///
    /// # Errors
    /// [`Refusal::EmptyKey`] and [`Refusal::KeyTooLong`].
    pub fn get(&self, key: &[u8]) -> Result<(Option<Row>, Revision), Refusal> {
        sure(self.reader().get(key, None))
    }

    /// A page of the rows from `from` up to before `to` (empty: the end), as they are or were after revision `at`.
    ///
    /// # Errors
    /// [`Refusal::BadRange`], [`Refusal::KeyTooLong`], [`Refusal::Future`], [`Refusal::Compacted`].
    pub fn range(&self, from: &[u8], to: &[u8], rows_max: usize, at: Option<Revision>) -> Result<Page, Refusal> {
        sure(self.reader().range(from, to, rows_max, at))
    }

    /// All rows whose key begins with `prefix`, over all pages.
    #[must_use]
    pub fn prefix(&self, prefix: &[u8]) -> BTreeMap<Vec<u8>, Row> {
        let mut rows = BTreeMap::new();
        let mut from = prefix.to_vec();
        loop {
            let Ok(page) = self.range(&from, &[], PAGE_ROWS_MAX, None) else { return rows };
            let more = page.more;
            for (key, row) in page.rows {
                if !key.starts_with(prefix) {
                    return rows;
                }
                from = [&key, &b"\0"[..]].concat();
                rows.insert(key.to_vec(), row);
            }
            if !more {
                return rows;
            }
        }
    }

    /// The next changes that a watch wants; empty when it has seen all there is.
    ///
    /// # Errors
    /// [`Refusal::Compacted`] if the changes it wants are no longer kept: read the keys again, and watch from there.
    pub fn poll(&self, watch: &mut Watch) -> Result<Vec<Event>, Refusal> {
        loop {
            let (events, next) = sure(self.reader().events(watch.next(), PAGE_ROWS_MAX))?;
            let seen_all = events.is_empty();
            let wanted = watch.take(events, next);
            if seen_all || !wanted.is_empty() {
                return Ok(wanted);
            }
        }
    }
}

impl Store for MemoryStore {
    type Error = Refusal;

    fn transact(&mut self, transaction: Transaction) -> impl Future<Output = Result<Done, Refusal>> + Send {
        ready(Self::transact(self, transaction))
    }

    fn grant(&mut self, ttl_ms: u64) -> impl Future<Output = Result<LeaseId, Refusal>> + Send {
        ready(Self::grant(self, ttl_ms))
    }

    fn keep_alive(&mut self, lease: LeaseId) -> impl Future<Output = Result<(), Refusal>> + Send {
        ready(Self::keep_alive(self, lease))
    }

    fn revoke(&mut self, lease: LeaseId) -> impl Future<Output = Result<u64, Refusal>> + Send {
        ready(Self::revoke(self, lease))
    }

    fn get(&mut self, key: &[u8]) -> impl Future<Output = Result<(Option<Row>, Revision), Refusal>> + Send {
        ready(Self::get(self, key))
    }

    fn range(
        &mut self,
        from: &[u8],
        to: &[u8],
        rows_max: usize,
        at: Option<Revision>,
    ) -> impl Future<Output = Result<Page, Refusal>> + Send {
        ready(Self::range(self, from, to, rows_max, at))
    }

    fn poll(&mut self, watch: &mut Watch) -> impl Future<Output = Result<Vec<Event>, Refusal>> + Send {
        ready(Self::poll(self, watch))
    }
}
