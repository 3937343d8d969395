//! Whether what clients saw, what the group says and what its nodes hold is one story.

use std::collections::BTreeMap;
use std::fmt::Display;

use coordlab::{
    Call, Fate, History, Increment, LinearError, LinearOptions, Operation, Outcome, Tenure, Watched, check_against_log,
    check_applied, check_exclusion, check_linear, check_log, check_total, check_watch,
};
use vdc_coord::wire::{Ask, Frame, PayloadForm, Reply, decode_reply};
use vdc_coord::{Answer, ClientId, Command, Entry, Event, MemoryStore, Op, Page, Revision, Watch};

use super::coverage::Coverage;
use super::lab::{GROUP, Lab};
use super::net::{Told, key};
use super::runtime::SimRuntime;
use super::work::{COUNTER, Followed, number_of};
use openraft::AsyncRuntime as _;
use std::time::Duration;

/// How far the search for one order of a whole history goes. Beyond that the history is judged by the log alone.
const LINEAR: LinearOptions = LinearOptions { configurations_max: 60_000, operations_max: 20_000 };
/// A page of all rows: there are few.
const ROWS_MAX: usize = 1_000;

/// What came out.
type Verdict<T = ()> = Result<T, String>;

fn wrong(what: &str) -> impl FnOnce(&dyn Display) -> String {
    move |error| format!("{what}: {error}")
}

/// The twin after all that the group agreed on, and what it said meanwhile.
pub(crate) struct Replay {
    twin: MemoryStore,
    answers: BTreeMap<(ClientId, u64), Vec<Told>>,
    pub(crate) events: Vec<Event>,
}

impl Replay {
    /// Has the twin do what the group agreed on.
    pub(crate) fn of(agreed: &[PayloadForm]) -> Self {
        let mut replay = Self { twin: MemoryStore::new(), answers: BTreeMap::new(), events: vec![] };
        let mut watch = Watch::new(b"", b"", Revision(1));
        for payload in agreed {
            let PayloadForm::Entry(bytes) = payload else { continue };
            let entry: Entry = vdc::codec::decode("log entry", bytes, bytes.len()).expect("the driver wrote it");
            replay.twin.set_time_ms(entry.stamp_ms);
            let asked: Vec<_> = entry.requests.iter().map(|request| (request.client, request.number)).collect();
            for (asked, answer) in asked.into_iter().zip(replay.twin.apply(entry.requests)) {
                replay.answers.entry(asked).or_default().push(answer);
            }
            loop {
                // What one entry changes and compacts at once is not to be seen.
                let events = replay.twin.poll(&mut watch).unwrap_or_default();
                if events.is_empty() {
                    break;
                }
                replay.events.extend(events);
            }
        }
        replay
    }

    /// Every answer that a client was given is one of the twin's.
    pub(crate) fn check_answers(&self, told: &BTreeMap<(ClientId, u64), Vec<Told>>) -> Verdict {
        for (asked, answers) in told {
            let own = self.answers.get(asked).map_or(&[][..], Vec::as_slice);
            if let Some(answer) = answers.iter().find(|answer| !own.contains(answer)) {
                return Err(format!("{asked:?} was answered {answer:?}, by the twin {own:?}"));
            }
        }
        Ok(())
    }

    /// Each node holds what the twin holds after a revision.
    pub(crate) async fn check_nodes(&self, lab: &Lab, at: Revision) -> Verdict {
        let expected = self.twin.range(b"", b"", ROWS_MAX, Some(at)).map_err(|refusal| refusal.to_string())?;
        for number in 0..lab.count() {
            let page = rows_of(lab, number, at).await.ok_or_else(|| format!("node {number} does not come so far"))?;
            if page != expected {
                return Err(format!("node {number} holds {page:?}, and the twin {expected:?}"));
            }
        }
        Ok(())
    }
}

/// The rows that one node has after a revision, as soon as it is there.
async fn rows_of(lab: &Lab, number: usize, at: Revision) -> Option<Page> {
    for _ in 0..1_200 {
        if let Some(node) = lab.net.node(number) {
            let (from, to) = (vec![].into(), vec![].into());
            let ask = Ask::Range { from, to, rows_max: ROWS_MAX as u64, at: Some(at), stale: true };
            let answer = node.answer_frame(key(number), Frame { group: GROUP, ask }).await;
            if let Ok(Reply::Page(page)) = decode_reply(&answer) {
                return Some(page);
            }
        }
        SimRuntime::sleep(Duration::from_millis(50)).await;
    }
    None
}

/// The changes that the group still keeps, up to a revision.
pub(crate) async fn kept_events(lab: &Lab, upto: Revision) -> Vec<Event> {
    let client = lab.client(40);
    let mut from = Revision(1);
    loop {
        let mut watch = client.watch(b"", b"", from);
        let mut events: Vec<Event> = vec![];
        let refusal = loop {
            match watch.next().await {
                Ok(more) => events.extend(more),
                Err(refusal) => break refusal,
            }
            if events.last().is_some_and(|last| last.revision >= upto) {
                events.retain(|event| event.revision <= upto);
                return events;
            }
        };
        let vdc_coord::Refusal::Compacted { oldest } = refusal else { panic!("a watch was refused: {refusal}") };
        from = oldest;
    }
}

fn transaction(operation: &Operation) -> Option<&vdc_coord::Transaction> {
    match &operation.call {
        Call::Command(Command::Transact(transaction)) => Some(transaction),
        Call::Get { .. } | Call::Range { .. } | Call::Command(_) => None,
    }
}

fn fate(operation: &Operation) -> Fate {
    match &operation.outcome {
        Outcome::Answer(Answer::Done(done)) if done.succeeded => Fate::Done,
        Outcome::Unknown => Fate::Unknown,
        _ => Fate::Failed,
    }
}

/// What was put once and for all: each number at most once, and each that was acknowledged.
fn check_counts(history: &History, events: &[Event]) -> Verdict {
    let (mut puts, mut increments) = (vec![], vec![]);
    for operation in &history.operations {
        let (fate, changes) = (fate(operation), transaction(operation).map_or(&[][..], |t| &t.success));
        for op in changes {
            let Op::Put { key, value, .. } = op else { continue };
            let increment = Increment { token: number_of(value), by: 1, fate };
            match &key[..] {
                COUNTER => increments.push(increment),
                key if key.starts_with(b"key") => puts.push(increment),
                _ => {}
            }
        }
    }
    let after = |event: &Event| event.after.as_ref().map(|row| number_of(&row.value));
    let applied: Vec<u64> = events.iter().filter(|event| event.key.starts_with(b"key")).filter_map(after).collect();
    check_applied(&puts, &applied).map_err(|error| error.to_string())?;
    let total = events.iter().rev().find(|event| event.key[..] == *COUNTER).and_then(after).unwrap_or(0);
    check_total(&increments, total).map_err(|error| error.to_string())
}

/// Holds everything that clients saw against all changes, and against itself. Whether the search for one order was small enough.
pub(crate) fn check(
    history: &History,
    tenures: &[Tenure],
    followed: &[Followed],
    events: &[Event],
    upto: Revision,
) -> Verdict<bool> {
    check_log(events).map_err(|error| wrong("changes")(&error))?;
    check_against_log(history, events).map_err(|error| wrong("against the log")(&error))?;
    check_counts(history, events).map_err(|error| wrong("counts")(&error))?;
    check_exclusion(tenures).map_err(|error| wrong("leases")(&error))?;
    for Followed { watcher, keys: (first, end), from, told, is_over } in followed {
        // One that was overtaken by a compaction must have been told everything up to where it was told something.
        let upto = if *is_over { told.last().map_or(Revision(0), |event| event.revision) } else { upto };
        let watched = Watched { first: first.to_vec(), end: end.to_vec(), from: *from, upto };
        check_watch(events, told, &watched).map_err(|error| wrong(&format!("watcher {watcher}"))(&error))?;
    }
    match check_linear(history, LINEAR) {
        Ok(_) => Ok(true),
        Err(LinearError::TooLarge { .. } | LinearError::TooManyLeases { .. }) => Ok(false),
        Err(error @ LinearError::Wrong(_)) => Err(wrong("one order")(&error)),
    }
}

/// Counts what clients did and were told.
pub(crate) fn count(history: &History, coverage: &Coverage) {
    for operation in &history.operations {
        let kind = match &operation.call {
            Call::Get { .. } => "get",
            Call::Range { .. } => "range",
            Call::Command(Command::Transact(transaction)) => kind(transaction),
            Call::Command(Command::GrantLease { .. }) => "grant of a lease",
            Call::Command(Command::KeepAlive { .. }) => "prolonged lease",
            Call::Command(Command::Revoke { .. }) => "revocation",
            Call::Command(Command::Compact { .. }) => "compaction",
            Call::Command(Command::Open) => "opened",
        };
        coverage.count(&format!("asked: {kind}"));
        let outcome = match &operation.outcome {
            Outcome::Row { .. } | Outcome::Page(_) => "read",
            Outcome::Answer(Answer::Done(done)) if !done.succeeded => "a comparison did not hold",
            Outcome::Answer(_) => "done",
            Outcome::Refused(_) => "refused",
            Outcome::Failed => "not done",
            Outcome::Unknown => "not known",
        };
        coverage.count(&format!("told: {outcome}"));
    }
}

fn kind(transaction: &vdc_coord::Transaction) -> &'static str {
    match (&transaction.success[..], transaction.compares.len()) {
        ([Op::Delete { .. }], _) => "delete",
        ([Op::DeleteRange { .. }], _) => "delete of a range",
        ([Op::Put { lease: Some(_), .. }], _) => "put under a lease",
        ([Op::Put { .. }], 0) => "put",
        ([Op::Put { .. }], _) => "put if unchanged",
        _ => "changes of several keys",
    }
}
