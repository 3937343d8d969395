//! The driver under faults, in virtual time: what clients saw is held against what the group's log says.
//!
//! `MESHD_SEEDS=FIRST..LAST` runs these seeds instead of the usual ones; a failure names its seed.

mod sim;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::AsyncRuntime as _;
use sim::lab::Lab;
use sim::runtime::{self, Seeded, SimRuntime, now_ns, run, spawn_for};
use vdc_coord::{Compare, Condition, Event, Op, Revision, Transaction};

const LIMIT: Duration = Duration::from_secs(4);
const KEYS: u64 = 5;
const CLIENTS: usize = 5;
/// How long faults happen.
const TURMOIL: Duration = Duration::from_secs(25);

#[derive(Clone, Debug)]
enum Outcome {
    Done {
        revision: Revision,
        read: Option<u64>,
        changed: bool,
    },
    /// Certainly not done.
    Not,
    Unknown,
}

#[derive(Clone, Debug)]
#[expect(dead_code, reason = "a failure prints all of it")]
struct Record {
    client: usize,
    key: Vec<u8>,
    /// What was put, if something was; no two are equal.
    put: Option<u64>,
    invoked_ns: u64,
    returned_ns: u64,
    outcome: Outcome,
}

#[derive(Clone, Debug)]
#[expect(dead_code, reason = "a failure prints all of it")]
struct Held {
    client: usize,
    from_ns: u64,
    to_ns: u64,
}

#[derive(Default)]
struct History {
    records: Vec<Record>,
    held: Vec<Held>,
    watched: Vec<(usize, Event)>,
}

type Shared = Arc<Mutex<History>>;

/// What is wrong with the build on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    /// Syncs do nothing.
    NoSync,
    /// One of ten reads is answered by any member from what it has.
    StaleReads,
}

fn value(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_be_bytes)
}

fn put(key: &[u8], number: u64) -> Op {
    Op::Put { key: key.to_vec().into(), value: number.to_be_bytes().to_vec().into(), lease: None }
}

/// Reads and writes a few keys.
async fn client(lab: Lab, number: usize, seed: u64, defect: Defect, history: Shared) {
    let mut seeded = Seeded::new(seed ^ (number as u64 + 1) << 32);
    let client = lab.client(number);
    let mut count = 0_u64;
    loop {
        let key = format!("key{}", seeded.below(KEYS)).into_bytes();
        let invoked_ns = now_ns();
        count += 1;
        let fresh = ((number as u64 + 1) << 32) | count;
        let (put_value, outcome) = match seeded.below(10) {
            0..5 => {
                let asked = if defect == Defect::StaleReads && seeded.chance(100) {
                    client.get_stale(&key, LIMIT).await
                } else {
                    client.get(&key, LIMIT).await
                };
                let outcome = match asked {
                    Ok((row, revision)) => {
                        Outcome::Done { revision, read: row.map(|row| value(&row.value)), changed: false }
                    }
                    Err(_) => Outcome::Not,
                };
                (None, outcome)
            }
            kind => {
                // Some change only what they read before, in the same transaction as a read.
                let compares = if kind < 8 {
                    vec![]
                } else {
                    let Ok((row, _)) = client.get(&key, LIMIT).await else { continue };
                    let modified = row.map_or(Revision(0), |row| row.modified);
                    vec![Compare { key: key.clone().into(), condition: Condition::Modified(modified) }]
                };
                let transaction = Transaction { compares, success: vec![put(&key, fresh)], failure: vec![] };
                let outcome = match client.transact(transaction, LIMIT).await {
                    Ok(done) => Outcome::Done { revision: done.revision, read: None, changed: done.succeeded },
                    Err(meshd_coord::ClientError::Unknown { .. }) => Outcome::Unknown,
                    Err(_) => Outcome::Not,
                };
                (Some(fresh), outcome)
            }
        };
        let record = Record { client: number, key, put: put_value, invoked_ns, returned_ns: now_ns(), outcome };
        history.lock().expect("unpoisoned").records.push(record);
        SimRuntime::sleep(Duration::from_millis(1 + seeded.below(40))).await;
    }
}

/// Takes a lock under a lease, again and again.
async fn locker(lab: Lab, number: usize, seed: u64, history: Shared) {
    let mut seeded = Seeded::new(seed ^ 0x10c4 ^ (number as u64) << 40);
    let client = lab.client(number);
    let ttl = Duration::from_millis(2_500);
    let counted = meshd_coord::Client::<sim::net::SimEnv>::counted(ttl);
    loop {
        SimRuntime::sleep(Duration::from_millis(50 + seeded.below(400))).await;
        // By the holder's own clock, from before it asked: the group counts from later on.
        let asked = <runtime::SimInstant as openraft::Instant>::now();
        let Ok(lease) = client.grant(ttl, LIMIT).await else { continue };
        let absent = Compare { key: b"lock".to_vec().into(), condition: Condition::Absent };
        let take = Op::Put { key: b"lock".to_vec().into(), value: b"held".to_vec().into(), lease: Some(lease) };
        let transaction = Transaction { compares: vec![absent], success: vec![take], failure: vec![] };
        let Ok(done) = client.transact(transaction, LIMIT).await else { continue };
        let left = (asked + counted) - <runtime::SimInstant as openraft::Instant>::now();
        if !done.succeeded || left.is_zero() {
            continue;
        }
        let from_ns = now_ns();
        SimRuntime::sleep(left.min(Duration::from_millis(seeded.below(2_000)))).await;
        let to_ns = now_ns();
        history.lock().expect("unpoisoned").held.push(Held { client: number, from_ns, to_ns });
        let mine = Compare { key: b"lock".to_vec().into(), condition: Condition::Lease(lease) };
        let free = Op::Delete { key: b"lock".to_vec().into() };
        let transaction = Transaction { compares: vec![mine], success: vec![free], failure: vec![] };
        let _freed = client.transact(transaction, LIMIT).await; // otherwise the lease ends
    }
}

async fn watcher(lab: Lab, number: usize, history: Shared) {
    let mut watch = lab.client(number).watch(b"", b"", Revision(1));
    while let Ok(events) = watch.next().await {
        let mut history = history.lock().expect("unpoisoned");
        history.watched.extend(events.into_iter().map(|event| (number, event)));
    }
}

/// What goes wrong, one thing after the other.
async fn turmoil(lab: &Lab, seeded: &mut Seeded, defect: Defect) {
    let end = now_ns() + u64::try_from(TURMOIL.as_nanos()).expect("short");
    let count = lab.count() as u64;
    let one = |seeded: &mut Seeded| usize::try_from(seeded.below(count)).expect("small");
    let mut leapt_ns = 0;
    for disk in &lab.disks {
        disk.set_lies(defect == Defect::NoSync);
    }
    while now_ns() < end {
        let node = one(seeded);
        match seeded.below(12) {
            0 | 1 => lab.crash(node),
            2 => lab.disks[node].die_after(seeded.below(40)),
            3 => {
                for number in 0..lab.count() {
                    if seeded.chance(if defect == Defect::NoSync { 900 } else { 400 }) {
                        lab.crash(number);
                    }
                }
            }
            4 => {
                let other = one(seeded);
                lab.net.cut(node, other);
                if seeded.chance(500) {
                    lab.net.cut(other, node);
                }
            }
            5 => {
                for number in 0..lab.count() {
                    lab.net.cut(node, number);
                    lab.net.cut(number, node);
                }
            }
            6 => lab.disks[node].stall(Duration::from_millis(seeded.below(3_000))),
            7 => lab.disks[node].set_room(lab.disks[node].used() + seeded.below(100_000)),
            // One leap in the life of a lease: each may end it half a second too early.
            8 if now_ns() > leapt_ns + 3_000_000_000 => {
                leapt_ns = now_ns();
                runtime::jump_clock(node, Duration::from_millis(seeded.below(20_000)));
            }
            8 => lab.disks[node].set_broken(true),
            9 => lab.net.set_noise(seeded.below(100), seeded.below(200)),
            10 => {
                lab.want(node, false);
            }
            _ => {
                let voters: Vec<_> = lab.keys().into_iter().filter(|_| seeded.chance(800)).collect();
                let leader = lab.leader().and_then(|leader| Some((leader, lab.net.node(leader)?)));
                if let Some((leader, node)) = leader.filter(|_| !voters.is_empty()) {
                    drop(spawn_for(leader, async move {
                        if let Some(group) = node.group(&sim::lab::GROUP) {
                            let _changed = group.set_voters(&voters).await;
                        }
                    }));
                }
            }
        }
        SimRuntime::sleep(Duration::from_millis(100 + seeded.below(1_200))).await;
        if seeded.chance(500) {
            lab.net.heal();
            lab.net.set_noise(0, 0);
            for (number, disk) in lab.disks.iter().enumerate() {
                disk.set_room(u64::MAX);
                disk.set_broken(false);
                lab.want(number, true);
            }
        }
    }
    lab.net.heal();
    lab.net.set_noise(0, 0);
    for (number, disk) in lab.disks.iter().enumerate() {
        disk.set_room(u64::MAX);
        disk.set_broken(false);
        disk.set_lies(false);
        lab.want(number, true);
    }
}

/// All changes, as a member has them.
async fn all_events(lab: &Lab, upto: Revision) -> Vec<Event> {
    let mut watch = lab.client(40).watch(b"", b"", Revision(1));
    let mut events: Vec<Event> = vec![];
    while events.last().is_none_or(|last| last.revision < upto) {
        events.extend(watch.next().await.expect("they are kept"));
    }
    events
}

async fn scenario(seed: u64, defect: Defect) -> Result<String, String> {
    let mut seeded = Seeded::new(seed);
    let count = if seeded.chance(300) { 5 } else { 3 };
    let lab = Lab::start(seed, count).await;
    let history = Shared::default();
    for number in 0..CLIENTS {
        drop(spawn_for(sim::lab::CLIENTS + number, client(lab.clone(), number, seed, defect, Arc::clone(&history))));
    }
    for number in CLIENTS..CLIENTS + 3 {
        drop(spawn_for(sim::lab::CLIENTS + number, locker(lab.clone(), number, seed, Arc::clone(&history))));
    }
    for number in CLIENTS + 3..CLIENTS + 5 {
        drop(spawn_for(sim::lab::CLIENTS + number, watcher(lab.clone(), number, Arc::clone(&history))));
    }
    SimRuntime::sleep(Duration::from_secs(2)).await;
    turmoil(&lab, &mut seeded, defect).await;
    // Everybody is well again; work goes on for a while and then ends.
    SimRuntime::sleep(Duration::from_secs(8)).await;
    for number in 0..CLIENTS + 3 {
        runtime::kill(sim::lab::CLIENTS + number);
    }
    let last = Transaction { success: vec![put(b"last", 1)], ..Transaction::default() };
    let done = lab.client(41).transact(last, Duration::from_secs(60)).await;
    let upto = done.map_err(|error| format!("the group does not recover: {error}"))?.revision;
    let events = all_events(&lab, upto).await;
    // Watchers see the end as well.
    for _ in 0..600 {
        let seen = history.lock().expect("unpoisoned").watched.iter().filter(|(_, e)| e.revision == upto).count();
        if seen >= 2 {
            break;
        }
        SimRuntime::sleep(Duration::from_millis(100)).await;
    }
    let history = std::mem::take(&mut *history.lock().expect("unpoisoned"));
    check(&history, &events, upto)?;
    if let Some(panicked) = runtime::panics().first() {
        return Err(panicked.clone());
    }
    let done = history.records.iter().filter(|record| matches!(record.outcome, Outcome::Done { .. })).count();
    let (all, locks, pieces) = (history.records.len(), history.held.len(), lab.net.pieces());
    let events = events.len();
    Ok(format!(
        "{count} nodes, {done} of {all} operations, {events} changes, {locks} locks, {pieces} pieces of snapshots"
    ))
}

/// Holds what clients saw against the changes that the group says there were.
fn check(history: &History, events: &[Event], upto: Revision) -> Result<(), String> {
    let mut by_value: BTreeMap<u64, Revision> = BTreeMap::new();
    let mut by_key: BTreeMap<&[u8], Vec<(Revision, Option<u64>)>> = BTreeMap::new();
    for pair in events.windows(2) {
        if pair[0].revision > pair[1].revision {
            return Err(format!("changes are out of order: {:?}, {:?}", pair[0], pair[1]));
        }
    }
    for event in events {
        let after = event.after.as_ref().map(|row| value(&row.value));
        by_key.entry(&event.key).or_default().push((event.revision, after));
        let counted = event.key.starts_with(b"key");
        if let Some(after) = after.filter(|_| counted)
            && let Some(before) = by_value.insert(after, event.revision)
        {
            return Err(format!("{after:#x} was put at {before:?} and again at {:?}", event.revision));
        }
    }
    let mut order: Vec<&Record> = history.records.iter().collect();
    for record in &order {
        let found = record.put.and_then(|put| by_value.get(&put));
        match &record.outcome {
            Outcome::Done { revision, changed: true, .. } if found != Some(revision) => {
                return Err(format!("acknowledged, but {found:?} says the log: {record:?}"));
            }
            Outcome::Done { changed: false, .. } | Outcome::Not if found.is_some() => {
                return Err(format!("not done, but {found:?} says the log: {record:?}"));
            }
            Outcome::Done { revision, read, changed: false } if record.put.is_none() => {
                let changes = by_key.get(record.key.as_slice()).map_or(&[][..], Vec::as_slice);
                let expected = changes.iter().rev().find(|(at, _)| at <= revision).and_then(|(_, value)| *value);
                if *read != expected {
                    return Err(format!("read what was not there, {expected:?} was: {record:?}"));
                }
            }
            _ => {}
        }
    }
    // Real time: whoever begins after another ended sees at least what that one saw, and changes come later than it.
    order.retain(|record| matches!(record.outcome, Outcome::Done { .. }));
    let mut ends: Vec<(u64, Revision)> = order.iter().map(|record| (record.returned_ns, seen(record))).collect();
    ends.sort();
    for (index, end) in ends.clone().iter().enumerate().skip(1) {
        ends[index].1 = end.1.max(ends[index - 1].1);
    }
    for record in &order {
        let before = ends.partition_point(|(returned, _)| *returned < record.invoked_ns);
        let Some((_, floor)) = before.checked_sub(1).map(|last| ends[last]) else { continue };
        let changed = matches!(record.outcome, Outcome::Done { changed: true, .. });
        if seen(record) < floor || (changed && seen(record) == floor) {
            return Err(format!("{floor:?} was seen before, so this is stale: {record:?}"));
        }
    }
    let mut held: Vec<&Held> = history.held.iter().collect();
    held.sort_by_key(|held| held.from_ns);
    for pair in held.windows(2) {
        if pair[1].from_ns < pair[0].to_ns {
            return Err(format!("two held the lock: {:?}, {:?}", pair[0], pair[1]));
        }
    }
    let watchers: BTreeSet<usize> = history.watched.iter().map(|(watcher, _)| *watcher).collect();
    for watcher in watchers {
        let seen = history.watched.iter().filter(|(of, _)| *of == watcher).map(|(_, event)| event);
        let expected = events.iter().filter(|event| event.revision <= upto);
        let mut both = seen.zip(expected.clone());
        if let Some((seen, expected)) = both.find(|(seen, expected)| seen != expected) {
            return Err(format!("watcher {watcher} was told {seen:?} in place of {expected:?}"));
        }
        let count = history.watched.iter().filter(|(of, _)| *of == watcher).count();
        if count < expected.count() {
            return Err(format!("watcher {watcher} was told {count} changes only"));
        }
    }
    Ok(())
}

fn seen(record: &Record) -> Revision {
    match record.outcome {
        Outcome::Done { revision, .. } => revision,
        Outcome::Not | Outcome::Unknown => Revision(0),
    }
}

fn seeds(usual: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("MESHD_SEEDS") else { return usual };
    let (first, last) = text.split_once("..").expect("MESHD_SEEDS=FIRST..LAST");
    first.parse().expect("a number")..last.parse().expect("a number")
}

#[test]
fn clients_see_one_history_whatever_fails() {
    for seed in seeds(0..10) {
        let (result, trace) = run(seed, scenario(seed, Defect::None));
        match result {
            Ok(said) => println!("seed {seed}: {said}, trace {trace:016x}"),
            Err(why) => panic!("seed {seed}: {why}"),
        }
    }
}

/// How many of some seeds notice a defect.
fn noticed(defect: Defect, seeds: std::ops::Range<u64>) -> Vec<String> {
    seeds.filter_map(|seed| run(seed, scenario(seed, defect)).0.err()).collect()
}

#[test]
fn build_that_skips_syncs_is_caught() {
    let noticed = noticed(Defect::NoSync, 0..4);
    println!("{noticed:#?}");
    assert!(!noticed.is_empty(), "acknowledged changes were lost, and nobody noticed");
}

#[test]
fn build_that_serves_stale_reads_is_caught() {
    let noticed = noticed(Defect::StaleReads, 0..4);
    println!("{noticed:#?}");
    assert!(noticed.iter().any(|why| why.contains("stale")), "reads were stale, and nobody noticed: {noticed:?}");
}

#[test]
fn seed_says_all() {
    let once = || run(7, scenario(7, Defect::None)).1;
    assert_eq!(once(), once(), "two runs of one seed differ");
}
