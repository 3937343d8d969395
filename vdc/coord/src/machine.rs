//! The state machine: what each entry of the log does to the rows.
//!
//! **Time.** A group's time is a number of milliseconds that only entries move: to the entry's stamp, never back. A leader counts
//! on from where the group's time stood when it became leader, by its monotonic clock. No wall clock comes in, so none can
//! end a lease early; while there is no leader the group's time stands still, and leases live longer.
//!
//! **Exactly once.** A request carries its client and the client's own number. The answers to a client's last
//! [`WINDOW`] numbers are kept, and given again. A client that is not known is refused, unless it opens: what it asked for
//! before it was forgotten may have been done already.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use minicbor::{Decode, Encode};

use crate::limits::{
    ANSWER_BYTES_MAX, CLIENTS_MAX, DELETE_MAX, DISPLACED_BYTES_MAX, EVENT_BYTES_MAX, EVENTS_MAX, KEY_BYTES_MAX,
    LEASES_MAX, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX, WINDOW, check, check_key, check_value,
};
use crate::read::Reader;
use crate::rows::{RowsMut, Table};
use crate::{
    Answer, ClientId, Command, Compare, Condition, Done, Entry, Event, Lease, LeaseId, Op, Refusal, Request, Revision,
    Row, Transaction,
};

/// Where the [`Summary`] stands in [`Table::Meta`].
pub(crate) const SUMMARY: &[u8] = b"summary";
/// A client that asked nothing for so long may be forgotten.
const CLIENT_IDLE_MS: u64 = 3_600_000;
/// How exactly the last use of a client is known.
const CLIENT_USE_STEP_MS: u64 = 60_000;
/// Leases that end with one entry; the others end with the next.
const ENDS_MAX: usize = 100;

/// Where a store stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Summary {
    #[n(0)]
    pub revision: Revision,
    /// The group's time in milliseconds.
    #[n(1)]
    pub time_ms: u64,
    /// The first revision whose changes are kept.
    #[n(2)]
    pub oldest: Revision,
    /// Keys, and the bytes of them and their values.
    #[n(3)]
    pub keys: u64,
    #[n(4)]
    pub bytes: u64,
    /// Changes that are kept, and their bytes.
    #[n(5)]
    pub events: u64,
    #[n(6)]
    pub event_bytes: u64,
    #[n(7)]
    pub leases: u64,
    #[n(8)]
    pub clients: u64,
    /// Bytes of the answers that are kept for clients.
    #[n(9)]
    pub answer_bytes: u64,
}

/// What is known of a client.
#[derive(Clone, Copy, Debug, Encode, Decode)]
struct Client {
    /// Its highest number so far.
    #[n(0)]
    highest: u64,
    /// When it asked something last, to [`CLIENT_USE_STEP_MS`].
    #[n(1)]
    used_ms: u64,
}

/// A stored answer.
#[derive(Clone, Debug, Encode, Decode)]
#[cbor(flat)]
enum Kept {
    #[n(0)]
    Answer(#[n(0)] Answer),
    #[n(1)]
    Refusal(#[n(0)] Refusal),
}

/// Takes what this crate wrote itself: whoever keeps the rows notices damage by its own checksums, before it comes here.
pub(crate) fn damaged<T>(decoded: Result<T, minicbor::decode::Error>) -> T {
    decoded.expect("rows hold what the machine wrote")
}

fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    vdc::codec::encode(value)
}

pub(crate) fn revision_key(revision: Revision) -> [u8; 8] {
    revision.0.to_be_bytes()
}

pub(crate) fn id_key(lease: LeaseId) -> [u8; 8] {
    lease.0.to_be_bytes()
}

fn pair(first: u64, second: &[u8]) -> Vec<u8> {
    [&first.to_be_bytes(), second].concat()
}

/// The keys that begin with `prefix`, as a range.
fn below(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// What a transaction is about to do.
#[derive(Default)]
struct Changes {
    /// Keys with what stood there before the transaction and what stands there after it.
    keys: BTreeMap<Vec<u8>, (Option<Row>, Option<Row>)>,
    /// Bytes of these keys and of the rows that stood there.
    displaced_bytes: usize,
    reads: Vec<Option<Row>>,
    read_bytes: usize,
    deleted: u64,
}

impl Changes {
    /// Sets what stands at a key afterwards; `now` is what stands there, with what was done so far.
    fn set(&mut self, key: &[u8], now: Option<Row>, after: Option<Row>) {
        if let Some(change) = self.keys.get_mut(key) {
            change.1 = after;
            return;
        }
        self.displaced_bytes += now.as_ref().map_or(0, |row| key.len() + row.value.len());
        self.keys.insert(key.to_vec(), (now, after));
    }
}

/// Applies entries to rows.
#[derive(Debug)]
pub struct Machine<'a, R> {
    rows: &'a mut R,
    summary: Summary,
}

impl<'a, R: RowsMut> Machine<'a, R> {
    /// # Errors
    /// Those of the rows.
    pub fn new(rows: &'a mut R) -> Result<Self, R::Error> {
        let summary = Reader(&*rows).summary()?;
        Ok(Self { rows, summary })
    }

    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Does what an entry says. An answer for each of its requests.
    ///
    /// # Errors
    /// Those of the rows; they are then in no known state, and what was done must not be kept.
    pub fn apply(&mut self, entry: &Entry) -> Result<Vec<Result<Answer, Refusal>>, R::Error> {
        self.summary.time_ms = self.summary.time_ms.max(entry.stamp_ms);
        self.end_leases()?;
        let mut answers = Vec::with_capacity(entry.requests.len());
        for request in &entry.requests {
            answers.push(self.request(request)?);
        }
        self.drop_events()?;
        self.settle()?;
        Ok(answers)
    }

    /// Leaps to a revision that no lost entry can have reached, where a group goes on from rows that may not be the latest: a
    /// lease granted from now on has a generation above all that were ever told to anybody, and whoever watches is told to
    /// read again. Returns the store's revision then; one that is further already stays.
    ///
    /// # Errors
    /// Those of the rows; they are then in no known state, and what was done must not be kept.
    pub fn leap(&mut self, revision: Revision) -> Result<Revision, R::Error> {
        if revision > self.summary.revision {
            self.summary.revision = revision;
            self.compact(Revision(revision.0.saturating_add(1)))?;
            self.settle()?;
        }
        Ok(self.summary.revision)
    }

    /// Puts a row of a backup into a store that is being made, as of its revision; nobody is told of it. A key that is there
    /// already keeps its row. To be followed by [`Self::settle`].
    ///
    /// # Errors
    /// Those of the rows; they are then in no known state, and what was done must not be kept.
    pub fn fill(&mut self, key: &[u8], value: &[u8]) -> Result<Result<(), Refusal>, R::Error> {
        if let Err(refusal) = check_key(key).and_then(|()| check_value(value)) {
            return Ok(Err(refusal));
        }
        if Reader(&*self.rows).row(key)?.is_none() {
            let revision = self.summary.revision;
            let row =
                Row { value: value.to_vec().into(), created: revision, modified: revision, version: 1, lease: None };
            self.rows.put(Table::Rows, key, encode(&row))?;
            self.summary.keys += 1;
            self.summary.bytes += (key.len() + value.len()) as u64;
        }
        Ok(Ok(()))
    }

    /// Keeps where the store stands.
    ///
    /// # Errors
    /// Those of the rows; they are then in no known state, and what was done must not be kept.
    pub fn settle(&mut self) -> Result<(), R::Error> {
        self.rows.put(Table::Meta, SUMMARY, encode(&self.summary))
    }

    fn request(&mut self, request: &Request) -> Result<Result<Answer, Refusal>, R::Error> {
        let known = self.rows.get(Table::Clients, &request.client.0)?;
        let known: Option<Client> = known.map(|bytes| damaged(minicbor::decode(&bytes)));
        let Some(mut client) = known else {
            if request.number == 0 && request.command == Command::Open {
                self.forget_clients()?;
                let client = Client { highest: 0, used_ms: self.summary.time_ms };
                self.rows.put(Table::Clients, &request.client.0, encode(&client))?;
                self.rows.put(Table::ClientUses, &pair(client.used_ms, &request.client.0), vec![])?;
                self.summary.clients += 1;
                return Ok(Ok(Answer::Opened));
            }
            return Ok(Err(Refusal::UnknownClient));
        };
        if request.number == 0 {
            return Ok(if request.command == Command::Open { Ok(Answer::Opened) } else { Err(Refusal::UnknownClient) });
        }
        if client.highest.saturating_sub(request.number) >= WINDOW {
            return Ok(Err(Refusal::Forgotten { number: request.number }));
        }
        let place = [&request.client.0[..], &request.number.to_be_bytes()].concat();
        if let Some(bytes) = self.rows.get(Table::Answers, &place)? {
            return Ok(match damaged(minicbor::decode(&bytes)) {
                Kept::Answer(answer) => Ok(answer),
                Kept::Refusal(refusal) => Err(refusal),
            });
        }
        let answer = match check(&request.command) {
            Ok(()) => self.command(&request.command)?,
            Err(refusal) => Err(refusal),
        };
        let kept = match &answer {
            Ok(answer) => Kept::Answer(answer.clone()),
            Err(refusal) => Kept::Refusal(refusal.clone()),
        };
        let kept = encode(&kept);
        self.summary.answer_bytes += kept.len() as u64;
        self.rows.put(Table::Answers, &place, kept)?;
        self.used(&request.client, &mut client, request.number)?;
        self.bound_answers(&request.client)?;
        Ok(answer)
    }

    /// Notes that a client asked, and lets go of the answers that it can no longer ask for.
    fn used(&mut self, id: &ClientId, client: &mut Client, number: u64) -> Result<(), R::Error> {
        let before = *client;
        if number > client.highest {
            let first = client.highest.saturating_sub(WINDOW - 1);
            let first_kept = number.saturating_sub(WINDOW - 1);
            // Numbers may leap; of those leapt over there is no answer.
            for gone in first..first_kept.min(client.highest.saturating_add(1)) {
                self.drop_answer(&[&id.0[..], &gone.to_be_bytes()].concat())?;
            }
            client.highest = number;
        }
        if self.summary.time_ms.saturating_sub(client.used_ms) >= CLIENT_USE_STEP_MS {
            self.rows.delete(Table::ClientUses, &pair(client.used_ms, &id.0))?;
            client.used_ms = self.summary.time_ms;
            self.rows.put(Table::ClientUses, &pair(client.used_ms, &id.0), vec![])?;
        }
        if before.highest != client.highest || before.used_ms != client.used_ms {
            self.rows.put(Table::Clients, &id.0, encode(client))?;
        }
        Ok(())
    }

    fn drop_answer(&mut self, place: &[u8]) -> Result<(), R::Error> {
        if let Some(answer) = self.rows.get(Table::Answers, place)? {
            self.summary.answer_bytes -= answer.len() as u64;
            self.rows.delete(Table::Answers, place)?;
        }
        Ok(())
    }

    /// Makes room for a new client: the two that were idle longest go, if they were idle for long or there are too many.
    fn forget_clients(&mut self) -> Result<(), R::Error> {
        for use_key in self.idlest()? {
            let used_ms = use_key.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
            let idle_ms = self.summary.time_ms.saturating_sub(used_ms);
            if idle_ms < CLIENT_IDLE_MS && self.summary.clients < CLIENTS_MAX {
                break;
            }
            self.forget(&use_key)?;
        }
        Ok(())
    }

    /// Keeps all answers together within [`ANSWER_BYTES_MAX`]: clients that were idle longest go, but not the one that asks.
    fn bound_answers(&mut self, asking: &ClientId) -> Result<(), R::Error> {
        while self.summary.answer_bytes > ANSWER_BYTES_MAX {
            let idlest = self.idlest()?;
            let Some(use_key) = idlest.iter().find(|key| !key.ends_with(&asking.0)) else { break };
            self.forget(use_key)?;
        }
        Ok(())
    }

    /// The keys in [`Table::ClientUses`] of the two clients that were idle longest.
    fn idlest(&self) -> Result<Vec<Vec<u8>>, R::Error> {
        let mut idlest = vec![];
        self.rows.scan(Table::ClientUses, &[], &[], &mut |key, _| {
            idlest.push(key.to_vec());
            if idlest.len() < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(idlest)
    }

    fn forget(&mut self, use_key: &[u8]) -> Result<(), R::Error> {
        let id = use_key.get(8..).unwrap_or_default();
        let mut answers = vec![];
        self.rows.scan(Table::Answers, id, &below(id), &mut |key, _| {
            answers.push(key.to_vec());
            ControlFlow::Continue(())
        })?;
        for answer in answers {
            self.drop_answer(&answer)?;
        }
        self.rows.delete(Table::Clients, id)?;
        self.rows.delete(Table::ClientUses, use_key)?;
        self.summary.clients -= 1;
        Ok(())
    }

    fn command(&mut self, command: &Command) -> Result<Result<Answer, Refusal>, R::Error> {
        match command {
            Command::Open => Ok(Ok(Answer::Opened)),
            Command::Transact(transaction) => Ok(self.transact(transaction)?.map(Answer::Done)),
            Command::GrantLease { ttl_ms } => self.grant(*ttl_ms),
            Command::KeepAlive { lease } => self.keep_alive(*lease),
            Command::Revoke { lease } => {
                if Reader(&*self.rows).lease(*lease)?.is_none() {
                    return Ok(Err(Refusal::LeaseGone { lease: *lease }));
                }
                Ok(Ok(Answer::Revoked { deleted: self.end_lease(*lease)? }))
            }
            Command::Compact { before } => {
                if before.0 > self.summary.revision.0 + 1 {
                    return Ok(Err(Refusal::Future { asked: *before, now: self.summary.revision }));
                }
                self.compact(*before)?;
                Ok(Ok(Answer::Compacted { oldest: self.summary.oldest }))
            }
        }
    }

    fn grant(&mut self, ttl_ms: u64) -> Result<Result<Answer, Refusal>, R::Error> {
        if self.summary.leases >= LEASES_MAX {
            return Ok(Err(Refusal::TooManyLeases { leases_max: LEASES_MAX }));
        }
        self.summary.revision.0 += 1;
        let lease = LeaseId(self.summary.revision.0);
        self.summary.leases += 1;
        self.put_lease(lease, Lease { ttl_ms, ends_ms: self.summary.time_ms.saturating_add(ttl_ms) })?;
        Ok(Ok(Answer::Lease { lease, ttl_ms }))
    }

    fn keep_alive(&mut self, lease: LeaseId) -> Result<Result<Answer, Refusal>, R::Error> {
        let Some(held) = Reader(&*self.rows).lease(lease)? else {
            return Ok(Err(Refusal::LeaseGone { lease }));
        };
        self.rows.delete(Table::LeaseEnds, &pair(held.ends_ms, &id_key(lease)))?;
        self.put_lease(lease, Lease { ends_ms: self.summary.time_ms.saturating_add(held.ttl_ms), ..held })?;
        Ok(Ok(Answer::Lease { lease, ttl_ms: held.ttl_ms }))
    }

    fn put_lease(&mut self, lease: LeaseId, held: Lease) -> Result<(), R::Error> {
        self.rows.put(Table::LeaseEnds, &pair(held.ends_ms, &id_key(lease)), vec![])?;
        self.rows.put(Table::Leases, &id_key(lease), encode(&held))
    }

    /// Ends the leases whose time is over.
    fn end_leases(&mut self) -> Result<(), R::Error> {
        let mut ended = vec![];
        let end = pair(self.summary.time_ms.saturating_add(1), &[]);
        self.rows.scan(Table::LeaseEnds, &[], &end, &mut |key, _| {
            if let Some(id) = key.last_chunk() {
                ended.push(LeaseId(u64::from_be_bytes(*id)));
            }
            if ended.len() < ENDS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        for lease in ended {
            self.end_lease(lease)?;
        }
        Ok(())
    }

    /// Takes a lease and its keys away: at one revision, or at several if there are more than one revision may displace. How
    /// many keys there were.
    fn end_lease(&mut self, lease: LeaseId) -> Result<u64, R::Error> {
        let Some(held) = Reader(&*self.rows).lease(lease)? else { return Ok(0) };
        let prefix = id_key(lease);
        self.rows.delete(Table::LeaseEnds, &pair(held.ends_ms, &prefix))?;
        self.rows.delete(Table::Leases, &prefix)?;
        self.summary.leases -= 1;
        let mut deleted = 0;
        loop {
            let mut keys = vec![];
            self.rows.scan(Table::LeaseKeys, &prefix, &below(&prefix), &mut |key, _| {
                keys.push(key.get(8..).unwrap_or_default().to_vec());
                if keys.len() < DELETE_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if keys.is_empty() {
                return Ok(deleted);
            }
            let mut changes = Changes::default();
            for key in keys {
                let before = Reader(&*self.rows).row(&key)?;
                changes.set(&key, before, None);
                if changes.displaced_bytes > DISPLACED_BYTES_MAX - VALUE_BYTES_MAX - KEY_BYTES_MAX {
                    break;
                }
            }
            deleted += changes.keys.len() as u64;
            self.commit(changes)?;
        }
    }

    fn transact(&mut self, transaction: &Transaction) -> Result<Result<Done, Refusal>, R::Error> {
        let mut succeeded = true;
        for compare in &transaction.compares {
            succeeded = succeeded && self.holds(compare)?;
        }
        let ops = if succeeded { &transaction.success } else { &transaction.failure };
        let mut changes = Changes::default();
        for op in ops {
            if let Err(refusal) = self.prepare(op, &mut changes)? {
                return Ok(Err(refusal));
            }
        }
        let (reads, deleted) = (std::mem::take(&mut changes.reads), changes.deleted);
        self.commit(changes)?;
        Ok(Ok(Done { succeeded, revision: self.summary.revision, reads, deleted }))
    }

    fn holds(&self, compare: &Compare) -> Result<bool, R::Error> {
        let reader = Reader(&*self.rows);
        if let Condition::LeaseHeld(lease) = compare.condition {
            return Ok(reader.lease(lease)?.is_some());
        }
        let row = reader.row(&compare.key)?;
        Ok(match &compare.condition {
            Condition::Absent => row.is_none(),
            Condition::Present => row.is_some(),
            Condition::Version(version) => row.map_or(0, |row| row.version) == *version,
            Condition::Modified(revision) => row.map_or(Revision(0), |row| row.modified) == *revision,
            Condition::Value(value) => row.is_some_and(|row| row.value == *value),
            Condition::Lease(lease) => row.is_some_and(|row| row.lease == Some(*lease)),
            Condition::LeaseHeld(_) => false,
        })
    }

    /// Works out what an operation does, seeing what those before it in the same transaction did.
    fn prepare(&self, op: &Op, changes: &mut Changes) -> Result<Result<(), Refusal>, R::Error> {
        let reader = Reader(&*self.rows);
        let current = |changes: &Changes, key: &[u8]| match changes.keys.get(key) {
            Some((_, after)) => Ok(after.clone()),
            None => reader.row(key),
        };
        match op {
            Op::Read { key } => {
                let row = current(changes, key)?;
                changes.read_bytes += row.as_ref().map_or(0, |row| row.value.len());
                changes.reads.push(row);
                if changes.read_bytes > TRANSACTION_BYTES_MAX {
                    let (bytes, bytes_max) = (changes.read_bytes as u64, TRANSACTION_BYTES_MAX as u64);
                    return Ok(Err(Refusal::TransactionTooLong { bytes, bytes_max }));
                }
            }
            Op::Put { key, value, lease } => {
                if let Some(lease) = lease
                    && reader.lease(*lease)?.is_none()
                {
                    return Ok(Err(Refusal::LeaseGone { lease: *lease }));
                }
                let now = current(changes, key)?;
                let revision = Revision(self.summary.revision.0 + 1);
                let after = Row {
                    value: value.clone(),
                    created: now.as_ref().map_or(revision, |row| row.created),
                    modified: revision,
                    version: now.as_ref().map_or(1, |row| row.version + 1),
                    lease: *lease,
                };
                changes.set(key, now, Some(after));
            }
            Op::Delete { key } => {
                if let Some(now) = current(changes, key)? {
                    changes.set(key, Some(now), None);
                    changes.deleted += 1;
                }
            }
            Op::DeleteRange { from, to } => {
                let mut found = vec![];
                let mut bytes = 0;
                self.rows.scan(Table::Rows, from, to, &mut |key, value| {
                    bytes += key.len() + value.len();
                    found.push((key.to_vec(), damaged::<Row>(minicbor::decode(value))));
                    // What is too much is refused below; it need not all be looked at.
                    let goes_on = found.len() <= DELETE_MAX && bytes <= 2 * DISPLACED_BYTES_MAX;
                    if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })?;
                if found.len() > DELETE_MAX {
                    return Ok(Err(Refusal::TooManyRows { rows_max: DELETE_MAX as u64 }));
                }
                let within = |key: &[u8]| key >= &from[..] && (to.is_empty() || key < &to[..]);
                for (_, (_, after)) in changes.keys.iter_mut().filter(|(key, _)| within(key)) {
                    changes.deleted += u64::from(after.take().is_some());
                }
                for (key, row) in found {
                    if !changes.keys.contains_key(&key) {
                        changes.set(&key, Some(row), None);
                        changes.deleted += 1;
                    }
                }
            }
        }
        if changes.deleted > DELETE_MAX as u64 {
            return Ok(Err(Refusal::TooManyRows { rows_max: DELETE_MAX as u64 }));
        }
        if changes.displaced_bytes > DISPLACED_BYTES_MAX {
            let (bytes, bytes_max) = (changes.displaced_bytes as u64, DISPLACED_BYTES_MAX as u64);
            return Ok(Err(Refusal::DisplacesTooMuch { bytes, bytes_max }));
        }
        Ok(Ok(()))
    }

    /// Makes prepared changes real, at one new revision if there are any.
    fn commit(&mut self, changes: Changes) -> Result<(), R::Error> {
        let mut keys = changes.keys;
        // Put and deleted again within one transaction: nothing happened.
        keys.retain(|_, (before, after)| before.is_some() || after.is_some());
        if keys.is_empty() {
            return Ok(());
        }
        self.summary.revision.0 += 1;
        let revision = self.summary.revision;
        for (key, (before, after)) in keys {
            if let Some(before) = &before {
                self.summary.keys -= 1;
                self.summary.bytes -= (key.len() + before.value.len()) as u64;
                if let Some(lease) = before.lease {
                    self.rows.delete(Table::LeaseKeys, &pair(lease.0, &key))?;
                }
            }
            match &after {
                Some(after) => {
                    self.summary.keys += 1;
                    self.summary.bytes += (key.len() + after.value.len()) as u64;
                    if let Some(lease) = after.lease {
                        self.rows.put(Table::LeaseKeys, &pair(lease.0, &key), vec![])?;
                    }
                    self.rows.put(Table::Rows, &key, encode(after))?;
                }
                None => self.rows.delete(Table::Rows, &key)?,
            }
            let place = pair(revision.0, &key);
            let event = encode(&Event { revision, key: key.into(), before, after });
            self.summary.events += 1;
            self.summary.event_bytes += event.len() as u64;
            self.rows.put(Table::Events, &place, event)?;
        }
        if self.summary.oldest == Revision(0) {
            self.summary.oldest = Revision(1);
        }
        Ok(())
    }

    /// Lets go of the oldest changes where there are too many.
    fn drop_events(&mut self) -> Result<(), R::Error> {
        let (mut events, mut bytes) = (self.summary.events, self.summary.event_bytes);
        if events <= EVENTS_MAX && bytes <= EVENT_BYTES_MAX {
            return Ok(());
        }
        let mut before = self.summary.oldest;
        self.rows.scan(Table::Events, &[], &[], &mut |place, value| {
            let revision = place.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
            if events <= EVENTS_MAX && bytes <= EVENT_BYTES_MAX && revision != before.0.saturating_sub(1) {
                return ControlFlow::Break(());
            }
            // All of a revision goes, or nothing of it.
            before = Revision(revision + 1);
            events = events.saturating_sub(1);
            bytes = bytes.saturating_sub(value.len() as u64);
            ControlFlow::Continue(())
        })?;
        self.compact(before)
    }

    /// Forgets all changes before a revision.
    fn compact(&mut self, before: Revision) -> Result<(), R::Error> {
        if before <= self.summary.oldest {
            return Ok(());
        }
        let mut gone = vec![];
        self.rows.scan(Table::Events, &[], &revision_key(before), &mut |place, value| {
            gone.push((place.to_vec(), value.len() as u64));
            ControlFlow::Continue(())
        })?;
        for (place, bytes) in gone {
            self.rows.delete(Table::Events, &place)?;
            self.summary.events -= 1;
            self.summary.event_bytes -= bytes;
        }
        self.summary.oldest = before;
        Ok(())
    }
}
