//! Laws of the machine under random stories: it does what the naive model does, and its own tables agree with each other.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use proptest::prelude::*;
use vdc::codec;

use super::model::{Map, Model};
use super::{delete, delete_range, put, read, when};
use crate::limits::{EVENTS_MAX, WINDOW};
use crate::{
    Answer, ClientId, Command, Compare, Condition, Entry, Lease, LeaseId, Machine, MemoryRows, Op, Reader, Refusal,
    Request, Revision, Row, Rows as _, Summary, Table, Transaction, Watch,
};

const KEYS: [&str; 7] = ["a", "a\0", "ab", "b", "c/1", "c/2", "\u{ff}"];

fn key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&KEYS[..])
}

/// Numbers of revisions that are often there.
fn small() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..12_u64, 1 => Just(u64::MAX)]
}

/// Leases are named by the order in which they were granted; [`Story::entry`] puts their ids in.
fn lease() -> impl Strategy<Value = LeaseId> {
    (0..5_u64).prop_map(LeaseId)
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        Just(Condition::Absent),
        Just(Condition::Present),
        (0..4_u64).prop_map(Condition::Version),
        small().prop_map(|revision| Condition::Modified(Revision(revision))),
        (0..3_u8).prop_map(|value| Condition::Value(vec![value].into())),
        lease().prop_map(Condition::Lease),
        lease().prop_map(Condition::LeaseHeld),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (key(), 0..3_u8, prop::option::weighted(0.3, lease())).prop_map(|(key, value, lease)| put(key, &[value], lease)),
        2 => key().prop_map(delete),
        1 => (key(), key()).prop_map(|(from, to)| delete_range(from, to)),
        1 => key().prop_map(|from| delete_range(from, "")),
        2 => key().prop_map(read),
    ]
}

fn transaction() -> impl Strategy<Value = Transaction> {
    let compares = prop::collection::vec((key(), condition()).prop_map(|(key, condition)| when(key, condition)), 0..3);
    let ops = || prop::collection::vec(op(), 0..5);
    (compares, ops(), ops()).prop_map(|(compares, success, failure)| Transaction { compares, success, failure })
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        8 => transaction().prop_map(Command::Transact),
        2 => (500..9_000_u64).prop_map(|ttl_ms| Command::GrantLease { ttl_ms }),
        2 => lease().prop_map(|lease| Command::KeepAlive { lease }),
        1 => lease().prop_map(|lease| Command::Revoke { lease }),
        1 => small().prop_map(|before| Command::Compact { before: Revision(before) }),
    ]
}

/// Which number a request carries.
#[derive(Clone, Copy, Debug)]
enum Number {
    Next,
    /// One that was used, or skipped, so many before the highest.
    Back(u64),
    Leap(u64),
}

fn number() -> impl Strategy<Value = Number> {
    prop_oneof![
        12 => Just(Number::Next),
        3 => prop_oneof![0..4_u64, WINDOW - 2..WINDOW + 2].prop_map(Number::Back),
        1 => (1..WINDOW + 3).prop_map(Number::Leap),
    ]
}

type Step = (u64, Vec<(u8, Number, Command)>);

fn story() -> impl Strategy<Value = Vec<Step>> {
    let request = (0..3_u8, number(), command());
    prop::collection::vec((0..4_000_u64, prop::collection::vec(request, 0..4)), 1..25)
}

/// Machine and model side by side.
struct Story {
    rows: MemoryRows,
    model: Model,
    /// Applies the same entries after they were written down.
    other: MemoryRows,
    highest: [u64; 3],
    granted: Vec<LeaseId>,
    stamp_ms: u64,
}

impl Story {
    fn new() -> Self {
        let (rows, other) = (MemoryRows::default(), MemoryRows::default());
        let mut story = Self { rows, model: Model::new(), other, highest: [0; 3], granted: vec![], stamp_ms: 0 };
        // The third client never opens.
        let open = |client| Request { client: ClientId([client; 16]), number: 0, command: Command::Open };
        story.apply(&Entry { stamp_ms: 0, requests: vec![open(0), open(1)] });
        story
    }

    fn lease(&self, order: LeaseId) -> LeaseId {
        let place = usize::try_from(order.0).unwrap_or_default();
        self.granted.iter().rev().nth(place).copied().unwrap_or(LeaseId(1_000_000))
    }

    fn resolve(&self, command: Command) -> Command {
        let op = |op: Op| match op {
            Op::Put { key, value, lease } => Op::Put { key, value, lease: lease.map(|lease| self.lease(lease)) },
            other => other,
        };
        let condition = |condition| match condition {
            Condition::Lease(lease) => Condition::Lease(self.lease(lease)),
            Condition::LeaseHeld(lease) => Condition::LeaseHeld(self.lease(lease)),
            other => other,
        };
        match command {
            Command::Transact(t) => Command::Transact(Transaction {
                compares: t.compares.into_iter().map(|c| Compare { condition: condition(c.condition), ..c }).collect(),
                success: t.success.into_iter().map(op).collect(),
                failure: t.failure.into_iter().map(op).collect(),
            }),
            Command::KeepAlive { lease } => Command::KeepAlive { lease: self.lease(lease) },
            Command::Revoke { lease } => Command::Revoke { lease: self.lease(lease) },
            other => other,
        }
    }

    fn entry(&mut self, (later_ms, requests): Step) -> Entry {
        self.stamp_ms += later_ms;
        let mut entry = Entry { stamp_ms: self.stamp_ms, requests: vec![] };
        for (client, number, command) in requests {
            let highest = &mut self.highest[usize::from(client)];
            let number = match number {
                Number::Next => *highest + 1,
                Number::Back(by) => highest.saturating_sub(by).max(1),
                Number::Leap(by) => *highest + by,
            };
            *highest = number.max(*highest);
            entry.requests.push(Request { client: ClientId([client; 16]), number, command: self.resolve(command) });
        }
        entry
    }

    fn apply(&mut self, entry: &Entry) -> Vec<Result<Answer, Refusal>> {
        let answers = Machine::new(&mut self.rows).and_then(|mut machine| machine.apply(entry)).expect("memory");
        assert_eq!(answers, self.model.apply(entry), "answers to {entry:?}");
        let read: Entry = codec::decode("entry", &codec::encode(entry), 4 << 20).expect("canonical");
        let again = Machine::new(&mut self.other).and_then(|mut machine| machine.apply(&read)).expect("memory");
        assert_eq!(answers, again);
        assert_eq!(self.rows, self.other, "the same entries give the same rows");
        for answer in answers.iter().flatten() {
            if let Answer::Lease { lease, .. } = answer
                && !self.granted.contains(lease)
            {
                let highest = self.granted.last().copied().unwrap_or(LeaseId(0));
                assert!(*lease > highest, "generation {lease:?} after {highest:?}");
                self.granted.push(*lease);
            }
        }
        answers
    }

    fn summary(&self) -> Summary {
        Reader(&self.rows).summary().expect("memory")
    }

    fn table(&self, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all = vec![];
        let mut visit = |key: &[u8], value: &[u8]| {
            all.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        };
        self.rows.scan(table, &[], &[], &mut visit).expect("memory");
        all
    }

    /// The tables say what the model says, and nothing else.
    fn check_tables(&self) {
        let (summary, model) = (self.summary(), &self.model);
        let stored: Map = self.table(Table::Rows).into_iter().map(|(key, row)| (key, decoded(&row))).collect();
        assert_eq!(stored, *model.now());
        let leases: Vec<(u64, Lease)> =
            self.table(Table::Leases).iter().map(|(id, lease)| (number_at(id), decoded(lease))).collect();
        assert_eq!(leases, model.leases.iter().map(|(id, lease)| (*id, *lease)).collect::<Vec<_>>());
        let ends: BTreeSet<_> = self.table(Table::LeaseEnds).into_iter().map(|(place, _)| place).collect();
        let of_lease = |(id, lease): &(u64, Lease)| [lease.ends_ms.to_be_bytes(), id.to_be_bytes()].concat();
        assert_eq!(ends, leases.iter().map(of_lease).collect());
        let held: BTreeSet<_> = self.table(Table::LeaseKeys).into_iter().map(|(place, _)| place).collect();
        let of_row = |(key, row): (&Vec<u8>, &Row)| row.lease.map(|lease| [&lease.0.to_be_bytes(), &key[..]].concat());
        assert_eq!(held, stored.iter().filter_map(of_row).collect());
        for row in stored.values() {
            assert!(row.lease.is_none_or(|lease| model.leases.contains_key(&lease.0)), "a key outlives its lease");
        }
        let events = self.table(Table::Events);
        let answers = self.table(Table::Answers);
        let lengths = |rows: &[(Vec<u8>, Vec<u8>)]| rows.iter().map(|(_, value)| value.len() as u64).sum::<u64>();
        let expected = Summary {
            revision: Revision(model.revision),
            time_ms: model.time_ms,
            oldest: Revision(model.oldest),
            keys: stored.len() as u64,
            bytes: stored.iter().map(|(key, row)| (key.len() + row.value.len()) as u64).sum(),
            events: events.len() as u64,
            event_bytes: lengths(&events),
            leases: leases.len() as u64,
            clients: self.table(Table::Clients).len() as u64,
            answer_bytes: lengths(&answers),
        };
        assert_eq!(summary, expected);
        assert!(summary.events <= EVENTS_MAX);
        assert_eq!(summary.clients, self.table(Table::ClientUses).len() as u64);
        assert!(answers.len() as u64 <= summary.clients * WINDOW);
    }

    /// What was is told as it was, in pages of any size, or refused.
    fn check_past(&self, pages_of: usize, from: &str, to: &str) {
        let (reader, model) = (Reader(&self.rows), &self.model);
        for at in 0..=model.revision + 1 {
            let whole = reader.range(from.as_bytes(), to.as_bytes(), 1_000, Some(Revision(at))).expect("memory");
            if at > model.revision {
                assert_eq!(whole, Err(Refusal::Future { asked: Revision(at), now: Revision(model.revision) }));
                continue;
            }
            if at + 1 < model.oldest {
                assert_eq!(whole, Err(Refusal::Compacted { oldest: Revision(model.oldest) }));
                continue;
            }
            let within = |key: &Vec<u8>| key[..] >= *from.as_bytes() && (to.is_empty() || key[..] < *to.as_bytes());
            let expected: Vec<_> = model.at(at).iter().filter(|(key, _)| within(key)).collect();
            let whole = whole.expect("it is kept");
            assert!(!whole.more && whole.revision == Revision(at));
            assert!(
                whole.rows.iter().map(|(key, row)| (&**key, row)).eq(expected.iter().copied()),
                "at {at}: {whole:?}"
            );
            let (mut paged, mut next) = (vec![], from.as_bytes().to_vec());
            loop {
                let page = reader.range(&next, to.as_bytes(), pages_of, Some(Revision(at))).expect("memory");
                let page = page.expect("it is kept");
                assert!(page.rows.len() <= pages_of);
                let Some((last, _)) = page.rows.last() else { break };
                next = [&last[..], b"\0"].concat();
                paged.extend(page.rows.clone());
                if !page.more || (!to.is_empty() && next.as_slice() >= to.as_bytes()) {
                    break;
                }
            }
            assert_eq!(paged, whole.rows);
            for key in KEYS {
                let one = reader.get(key.as_bytes(), Some(Revision(at))).expect("memory").expect("it is kept");
                assert_eq!(one, (model.at(at).get(key.as_bytes()).cloned(), Revision(at)));
            }
        }
    }

    /// From any kept revision on, changes lead through every state to the present one.
    fn check_changes(&self, batch: usize) {
        let (reader, model) = (Reader(&self.rows), &self.model);
        for from in 0..=model.revision + 1 {
            let mut watch = Watch::new(b"", b"", Revision(from));
            let mut rows = model.at(from.saturating_sub(1)).clone();
            loop {
                let (events, next) = match reader.events(watch.next(), batch).expect("memory") {
                    Ok(events) => events,
                    Err(refusal) => {
                        assert_eq!(refusal, Refusal::Compacted { oldest: Revision(model.oldest) });
                        assert!(from.max(1) < model.oldest);
                        break;
                    }
                };
                let none = events.is_empty();
                let events = watch.take(events, next);
                assert!(none == events.is_empty(), "what was told is told again");
                for event in &events {
                    assert_eq!(rows.get(&event.key[..]), event.before.as_ref(), "{event:?}");
                    match &event.after {
                        Some(after) => rows.insert(event.key.to_vec(), after.clone()),
                        None => rows.remove(&event.key[..]),
                    };
                }
                if let Some(last) = events.last() {
                    assert_eq!(rows, *model.at(last.revision.0), "all of a revision comes together");
                }
                if none {
                    assert!(rows == *model.now() && next > Revision(model.revision));
                    break;
                }
            }
        }
    }
}

fn decoded<T: for<'b> minicbor::Decode<'b, ()>>(bytes: &[u8]) -> T {
    minicbor::decode(bytes).expect("the machine wrote it")
}

fn number_at(key: &[u8]) -> u64 {
    u64::from_be_bytes(key.try_into().expect("8 bytes"))
}

proptest! {
    #[test]
    fn machine_does_what_the_model_does(
        steps in story(), pages_of in 1..4_usize, from in key(), to in key(), batch in 1..5_usize,
    ) {
        let mut story = Story::new();
        for step in steps {
            let entry = story.entry(step);
            story.apply(&entry);
            story.check_tables();
        }
        story.check_past(pages_of, "", "");
        if from < to {
            story.check_past(pages_of, from, to);
        }
        story.check_changes(batch);
    }

    /// An entry that comes twice, as after a retry, changes nothing the second time but time, whatever came between.
    #[test]
    fn requests_are_done_once(steps in story(), again in prop::collection::vec(any::<prop::sample::Index>(), 1..6)) {
        let mut story = Story::new();
        let mut done = vec![];
        for (later_ms, requests) in steps {
            let requests = requests.into_iter().map(|(client, _, command)| (client, Number::Next, command)).collect();
            let entry = story.entry((later_ms.min(10), requests));
            let answers = story.apply(&entry);
            done.extend(entry.requests.into_iter().zip(answers));
        }
        let (before, summary) = (story.table(Table::Rows), story.summary());
        for index in again {
            if done.is_empty() {
                break;
            }
            let (request, answer) = index.get(&done).clone();
            let told_again = story.apply(&Entry { stamp_ms: 0, requests: vec![request.clone()] });
            let highest = story.highest[usize::from(request.client.0[0])];
            if request.number + WINDOW > highest || answer == Err(Refusal::UnknownClient) {
                prop_assert_eq!(told_again, vec![answer]);
            } else {
                prop_assert_eq!(told_again, vec![Err(Refusal::Forgotten { number: request.number })]);
            }
        }
        prop_assert_eq!(story.table(Table::Rows), before);
        prop_assert_eq!(story.summary(), summary);
    }

    /// What somebody sends is one encoding or none, whatever it is.
    #[test]
    fn entries_have_one_encoding(steps in story(), cut in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let mut story = Story::new();
        for step in steps {
            let bytes = codec::encode(&story.entry(step));
            prop_assert_eq!(codec::encode(&codec::decode::<Entry>("entry", &bytes, bytes.len()).expect("it is")), &bytes[..]);
            prop_assert!(codec::decode::<Entry>("entry", &bytes, bytes.len() - 1).is_err(), "longer than allowed");
            let place = cut.index(bytes.len());
            prop_assert!(codec::decode::<Entry>("entry", &bytes[..place], 4 << 20).is_err(), "cut off");
            prop_assert!(codec::decode::<Entry>("entry", &[&bytes[..], &[0]].concat(), 4 << 20).is_err(), "trailing");
            let mut flipped = bytes.clone();
            flipped[place] ^= flip;
            if let Ok(other) = codec::decode::<Entry>("entry", &flipped, 4 << 20) {
                prop_assert_eq!(codec::encode(&other), flipped);
            }
        }
    }
}
