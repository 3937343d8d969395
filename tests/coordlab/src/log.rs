//! What clients were told, held against the changes that the group says there were. Linear in both, so it judges histories
//! that are too large for the search; but it believes the changes.

use std::collections::BTreeMap;

use vdc_coord::{Answer, Command, Done, Event, Op, Page, Revision, Row, Transaction};

use crate::history::{Call, History, Moment, Operation, Outcome};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error("acknowledged, but the changes do not have it: {0}")]
    Lost(Box<Operation>),
    #[error("not done, but the changes have it at revision {}: {operation}", at.0)]
    Done { at: Revision, operation: Box<Operation> },
    #[error("done at revision {}, and again at {}: {operation}", first.0, second.0)]
    Twice { first: Revision, second: Revision, operation: Box<Operation> },
    #[error("revision {} was given to two: {first}, and {second}", at.0)]
    SameRevision { at: Revision, first: Box<Operation>, second: Box<Operation> },
    #[error("what was read was not there, {expected:?} was: {operation}")]
    Read { expected: Vec<(Vec<u8>, Row)>, operation: Box<Operation> },
    #[error("revision {} was seen before it was asked, so this is stale: {operation}", seen.0)]
    Stale { seen: Revision, operation: Box<Operation> },
}

/// Checks a history against all changes of the store from its first on.
///
/// Which change an operation without an answer made is known by what it put: values that only one operation of the history puts
/// at that key. Others are not followed.
///
/// # Errors
/// [`LogError`] with the first operation that contradicts.
pub fn check_against_log(history: &History, events: &[Event]) -> Result<(), LogError> {
    let log = Log::new(events);
    let putters = putters(history);
    let mut own: BTreeMap<Revision, &Operation> = BTreeMap::new();
    for operation in &history.operations {
        log.read(operation)?;
        log.changed(operation, &mut own)?;
        log.traces(operation, &putters)?;
    }
    check_order(history)
}

/// Whoever begins after another has ended sees at least what that one saw, and what they change comes after it.
fn check_order(history: &History) -> Result<(), LogError> {
    let ends = history.operations.iter().filter_map(|operation| Some((operation.returned?, operation.revision()?)));
    let mut ends: Vec<(Moment, Revision)> = ends.collect();
    ends.sort();
    let mut seen = Revision(0);
    for (_, revision) in &mut ends {
        seen = seen.max(*revision);
        *revision = seen;
    }
    for operation in &history.operations {
        let Some(revision) = operation.revision() else { continue };
        let before = ends.partition_point(|(returned, _)| *returned < operation.invoked);
        let Some((_, seen)) = before.checked_sub(1).and_then(|last| ends.get(last)) else { continue };
        if revision < *seen || (revision == *seen && has_own(operation)) {
            return Err(LogError::Stale { seen: *seen, operation: Box::new(operation.clone()) });
        }
    }
    Ok(())
}

fn transaction(operation: &Operation) -> Option<&Transaction> {
    match &operation.call {
        Call::Command(Command::Transact(transaction)) => Some(transaction),
        Call::Get { .. } | Call::Range { .. } | Call::Command(_) => None,
    }
}

fn done(operation: &Operation) -> Option<(&[Op], &Done)> {
    let Outcome::Answer(Answer::Done(done)) = &operation.outcome else { return None };
    let transaction = transaction(operation)?;
    Some((if done.succeeded { &transaction.success } else { &transaction.failure }, done))
}

/// Whether an acknowledged operation made a revision of its own, as far as its answer says.
fn has_own(operation: &Operation) -> bool {
    match &operation.outcome {
        Outcome::Answer(Answer::Lease { .. }) => true,
        Outcome::Answer(Answer::Done(_)) => done(operation).is_some_and(|(ops, done)| done.deleted > 0 || stays(ops)),
        _ => false,
    }
}

/// Whether something is put that is not deleted again by the same operations.
fn stays(ops: &[Op]) -> bool {
    !last_puts(ops).is_empty()
}

/// What stands at each key after these, as far as they put it there.
fn last_puts(ops: &[Op]) -> BTreeMap<&[u8], &[u8]> {
    let mut puts: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    for op in ops {
        match op {
            Op::Put { key, value, .. } => drop(puts.insert(key, value)),
            Op::Delete { key } => drop(puts.remove(key.as_slice())),
            Op::DeleteRange { from, to } => {
                puts.retain(|key, _| !(*key >= from.as_slice() && (to.is_empty() || *key < to.as_slice())));
            }
            Op::Read { .. } => {}
        }
    }
    puts
}

type Puts<'a> = BTreeMap<(&'a [u8], &'a [u8]), usize>;

/// How many operations put each value at each key.
fn putters(history: &History) -> Puts<'_> {
    let mut putters = Puts::new();
    for transaction in history.operations.iter().filter_map(transaction) {
        let mut own: Vec<(&[u8], &[u8])> = vec![];
        for op in transaction.success.iter().chain(&transaction.failure) {
            if let Op::Put { key, value, .. } = op {
                own.push((key, value));
            }
        }
        own.sort_unstable();
        own.dedup();
        for put in own {
            *putters.entry(put).or_default() += 1;
        }
    }
    putters
}

struct Log<'a> {
    /// Each key's changes in order.
    keys: BTreeMap<&'a [u8], Vec<&'a Event>>,
    /// When a value was put at a key.
    puts: BTreeMap<(&'a [u8], &'a [u8]), Vec<Revision>>,
}

impl<'a> Log<'a> {
    fn new(events: &'a [Event]) -> Self {
        let mut log = Self { keys: BTreeMap::new(), puts: BTreeMap::new() };
        for event in events {
            log.keys.entry(&event.key).or_default().push(event);
            if let Some(after) = &event.after {
                log.puts.entry((&event.key, &after.value)).or_default().push(event.revision);
            }
        }
        log
    }

    fn row(&self, key: &[u8], at: Revision) -> Option<&'a Row> {
        let changes = self.keys.get(key)?;
        let before = changes.partition_point(|event| event.revision <= at);
        changes.get(before.checked_sub(1)?)?.after.as_ref()
    }

    /// What was read stood there.
    fn read(&self, operation: &Operation) -> Result<(), LogError> {
        let expected: Vec<(Vec<u8>, Row)> = match (&operation.call, &operation.outcome) {
            (Call::Get { key }, Outcome::Row { row, revision }) => {
                let expected = self.row(key, *revision);
                if expected == row.as_ref() {
                    return Ok(());
                }
                expected.map(|row| (key.clone(), row.clone())).into_iter().collect()
            }
            (Call::Range { from, to }, Outcome::Page(page)) => {
                let rows = self.range(from, to, page);
                if rows.len() == page.rows.len()
                    && rows.iter().zip(&page.rows).all(|((key, row), told)| *key == *told.0 && *row == told.1)
                {
                    return Ok(());
                }
                rows
            }
            _ => return Ok(()),
        };
        Err(LogError::Read { expected, operation: Box::new(operation.clone()) })
    }

    fn range(&self, from: &[u8], to: &[u8], page: &Page) -> Vec<(Vec<u8>, Row)> {
        let within = self.keys.keys().filter(|key| **key >= from && (to.is_empty() || **key < to));
        let rows = within.filter_map(|key| Some((key.to_vec(), self.row(key, page.revision)?.clone())));
        // If there is more behind it, the page is the beginning.
        if page.more { rows.take(page.rows.len()).collect() } else { rows.collect() }
    }

    /// What was acknowledged is there, at a revision of its own.
    fn changed<'b>(
        &self,
        operation: &'b Operation,
        own: &mut BTreeMap<Revision, &'b Operation>,
    ) -> Result<(), LogError> {
        let Some((ops, done)) = done(operation) else { return Ok(()) };
        let at = done.revision;
        for (key, value) in last_puts(ops) {
            let there = self.puts.get(&(key, value)).is_some_and(|revisions| revisions.contains(&at));
            if !there {
                return Err(LogError::Lost(Box::new(operation.clone())));
            }
        }
        if done.deleted > 0 && !self.keys.values().flatten().any(|event| event.revision == at) {
            return Err(LogError::Lost(Box::new(operation.clone())));
        }
        if has_own(operation)
            && let Some(first) = own.insert(at, operation)
        {
            let (first, second) = (Box::new(first.clone()), Box::new(operation.clone()));
            return Err(LogError::SameRevision { at, first, second });
        }
        Ok(())
    }

    /// What only this operation puts is there once at most, and not if it failed.
    fn traces(&self, operation: &Operation, putters: &Puts<'_>) -> Result<(), LogError> {
        let Some(transaction) = transaction(operation) else { return Ok(()) };
        let taken = done(operation).map(|(ops, _)| ops);
        for op in transaction.success.iter().chain(&transaction.failure) {
            let Op::Put { key, value, .. } = op else { continue };
            let put = (key.as_slice(), value.as_slice());
            let may = may_be_done(operation, taken, put);
            let Some(revisions) = self.puts.get(&put).filter(|_| putters.get(&put) == Some(&1)) else { continue };
            let operation = || Box::new(operation.clone());
            if let [first, second, ..] = revisions[..] {
                return Err(LogError::Twice { first, second, operation: operation() });
            }
            if let [at] = revisions[..]
                && !may
            {
                return Err(LogError::Done { at, operation: operation() });
            }
        }
        Ok(())
    }
}

/// Whether an operation's outcome allows that it put this.
fn may_be_done(operation: &Operation, taken: Option<&[Op]>, put: (&[u8], &[u8])) -> bool {
    match &operation.outcome {
        Outcome::Failed | Outcome::Refused(_) => false,
        Outcome::Unknown => true,
        _ => taken.is_some_and(|ops| last_puts(ops).get(put.0) == Some(&put.1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: &str, created: u64, modified: u64, version: u64) -> Row {
        let (created, modified) = (Revision(created), Revision(modified));
        Row { value: value.as_bytes().to_vec().into(), created, modified, version, lease: None }
    }

    fn event(revision: u64, key: &str, before: Option<Row>, after: Option<Row>) -> Event {
        Event { revision: Revision(revision), key: key.as_bytes().to_vec().into(), before, after }
    }

    fn put(ns: (u64, u64), key: &str, value: &str, outcome: Outcome) -> Operation {
        let (key, value) = (key.as_bytes().to_vec().into(), value.as_bytes().to_vec().into());
        let success = vec![Op::Put { key, value, lease: None }];
        let call = Call::Command(Command::Transact(Transaction { success, ..Transaction::default() }));
        operation(ns, call, outcome)
    }

    fn get(ns: (u64, u64), key: &str, row: Option<Row>, revision: u64) -> Operation {
        let outcome = Outcome::Row { row, revision: Revision(revision) };
        operation(ns, Call::Get { key: key.as_bytes().to_vec() }, outcome)
    }

    fn operation((from, to): (u64, u64), call: Call, outcome: Outcome) -> Operation {
        let moment = |ns| Moment { ns, order: 0 };
        Operation { client: 1, call, invoked: moment(from), returned: Some(moment(to)), outcome }
    }

    fn at(revision: u64) -> Outcome {
        let revision = Revision(revision);
        Outcome::Answer(Answer::Done(Done { succeeded: true, revision, reads: vec![], deleted: 0 }))
    }

    fn events() -> Vec<Event> {
        let (one, two) = (row("1", 1, 1, 1), row("2", 1, 2, 2));
        vec![event(1, "a", None, Some(one.clone())), event(2, "a", Some(one), Some(two))]
    }

    fn judge(operations: Vec<Operation>) -> Result<(), LogError> {
        check_against_log(&History { operations }, &events())
    }

    #[test]
    fn right_history_is_fine() {
        let operations = vec![
            put((0, 10), "a", "1", at(1)),
            get((5, 12), "a", None, 0),
            get((11, 20), "a", Some(row("1", 1, 1, 1)), 1),
            put((15, 90), "a", "2", Outcome::Unknown),
            put((15, 90), "a", "3", Outcome::Failed),
            get((30, 40), "a", Some(row("2", 1, 2, 2)), 2),
            get((30, 40), "b", None, 2),
        ];
        assert_eq!(judge(operations), Ok(()));
    }

    #[test]
    fn lost_write_is_caught() {
        let caught = judge(vec![put((0, 10), "a", "9", at(2))]);
        assert!(matches!(caught, Err(LogError::Lost(_))), "{caught:?}");
        let caught = judge(vec![put((0, 10), "a", "1", at(2))]);
        assert!(matches!(caught, Err(LogError::Lost(_))), "{caught:?}");
    }

    #[test]
    fn failure_that_was_done_is_caught() {
        let caught = judge(vec![put((0, 10), "a", "2", Outcome::Failed)]);
        assert!(matches!(caught, Err(LogError::Done { at: Revision(2), .. })), "{caught:?}");
    }

    #[test]
    fn double_apply_is_caught() {
        let mut events = events();
        events.push(event(5, "a", Some(row("2", 1, 2, 2)), Some(row("1", 1, 5, 3))));
        let history = History { operations: vec![put((0, 10), "a", "1", Outcome::Unknown)] };
        let caught = check_against_log(&history, &events);
        assert!(matches!(caught, Err(LogError::Twice { .. })), "{caught:?}");
    }

    #[test]
    fn shared_revision_is_caught() {
        let both = vec![event(1, "a", None, Some(row("1", 1, 1, 1))), event(1, "b", None, Some(row("1", 1, 1, 1)))];
        let operations = vec![put((0, 10), "a", "1", at(1)), put((0, 10), "b", "1", at(1))];
        let caught = check_against_log(&History { operations }, &both);
        assert!(matches!(caught, Err(LogError::SameRevision { .. })), "{caught:?}");
    }

    #[test]
    fn wrong_and_stale_reads_are_caught() {
        let caught = judge(vec![get((0, 10), "a", Some(row("1", 1, 1, 1)), 2)]);
        assert!(matches!(caught, Err(LogError::Read { .. })), "{caught:?}");
        let two = get((0, 10), "a", Some(row("2", 1, 2, 2)), 2);
        let caught = judge(vec![two, get((11, 20), "a", Some(row("1", 1, 1, 1)), 1)]);
        assert!(matches!(caught, Err(LogError::Stale { .. })), "{caught:?}");
    }
}
