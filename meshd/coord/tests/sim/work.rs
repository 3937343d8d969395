//! Clients of a group. What they ask is written down, and what they were told.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use coordlab::{Call, Outcome, Recorder, Seeded, Tenure};
use meshd_coord::{Client, ClientError};
use openraft::AsyncRuntime as _;
use vdc_coord::{
    Answer, Command, Compare, Condition, Done, Event, KeyBytes, LeaseId, Op, Page, Revision, Row, Transaction,
};

use super::lab::{CLIENTS, Lab};
use super::net::SimEnv;
use super::runtime::{self, SimInstant, SimRuntime, now_ns, spawn_for};

pub(crate) const LIMIT: Duration = Duration::from_secs(4);
const KEYS: u64 = 5;
const WRITERS: usize = 5;
const LOCKERS: usize = 3;
const JANITOR: usize = WRITERS + LOCKERS;
const WATCHERS: [usize; 3] = [JANITOR + 1, JANITOR + 2, JANITOR + 3];
/// The test itself, at the end.
const JUDGE: usize = JANITOR + 4;
/// A key that only counts up.
pub(crate) const COUNTER: &[u8] = b"counter";
/// What one watcher watches.
const SOME_KEYS: (&[u8], &[u8]) = (b"key1", b"key3");
/// Where a run ends: every watcher is told of it.
const LAST: &[u8] = b"key1 is the last";

/// What a watcher was told, from a revision on, of some keys.
#[derive(Clone, Debug)]
pub(crate) struct Followed {
    pub(crate) watcher: usize,
    pub(crate) keys: (&'static [u8], &'static [u8]),
    pub(crate) from: Revision,
    pub(crate) told: Vec<Event>,
    /// Until it was told that changes it wanted are no longer kept.
    pub(crate) is_over: bool,
}

/// All that clients saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Work {
    pub(crate) recorder: Recorder,
    pub(crate) tenures: Arc<Mutex<Vec<Tenure>>>,
    pub(crate) followed: Arc<Mutex<Vec<Followed>>>,
    /// Of this many reads in a thousand nobody asks whether they are stale: the deliberately broken build.
    stale_per_mille: u64,
}

/// The number in a value; the rest is there to fill disks.
pub(crate) fn number_of(value: &[u8]) -> u64 {
    value.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn put(key: &[u8], number: u64, padding: u64) -> Op {
    let mut value = number.to_be_bytes().to_vec();
    value.resize(value.len() + usize::try_from(padding).expect("short"), 0);
    Op::Put { key: bytes(key), value: value.into(), lease: None }
}

fn bytes(key: &[u8]) -> KeyBytes {
    key.to_vec().into()
}

fn modified(key: &[u8], row: Option<&Row>) -> Compare {
    let modified = row.map_or(Revision(0), |row| row.modified);
    Compare { key: bytes(key), condition: Condition::Modified(modified) }
}

/// A client whose questions are written down.
pub(crate) struct Asker {
    number: u64,
    client: Client<SimEnv>,
    work: Work,
}

impl Asker {
    async fn ask<T>(
        &self,
        call: Call,
        asked: impl Future<Output = Result<T, ClientError>>,
        told: fn(&T) -> Outcome,
    ) -> Option<T> {
        let ticket = self.work.recorder.begin(self.number, call, now_ns());
        let answer = asked.await;
        let outcome = match &answer {
            Ok(answer) => told(answer),
            Err(ClientError::Refused(refusal)) => Outcome::Refused(refusal.clone()),
            Err(ClientError::Unknown { .. }) => Outcome::Unknown,
            Err(ClientError::Unavailable { .. } | ClientError::Forbidden { .. }) => Outcome::Failed,
        };
        ticket.end(outcome, now_ns());
        answer.ok()
    }

    async fn get(&self, key: &[u8], stale: bool) -> Option<(Option<Row>, Revision)> {
        let told = |(row, revision): &(Option<Row>, Revision)| Outcome::Row { row: row.clone(), revision: *revision };
        let call = Call::Get { key: key.to_vec() };
        if stale {
            return self.ask(call, self.client.get_stale(key, LIMIT), told).await;
        }
        self.ask(call, self.client.get(key, LIMIT), told).await
    }

    async fn range(&self, from: &[u8], to: &[u8]) -> Option<Page> {
        let call = Call::Range { from: from.to_vec(), to: to.to_vec() };
        self.ask(call, self.client.range(from, to, 1_000, None, LIMIT), |page| Outcome::Page(page.clone())).await
    }

    async fn command(&self, command: Command) -> Option<Answer> {
        let call = Call::Command(command.clone());
        self.ask(call, self.client.command(command, LIMIT), |answer| Outcome::Answer(answer.clone())).await
    }

    pub(crate) async fn transact(&self, compares: Vec<Compare>, success: Vec<Op>) -> Option<Done> {
        let transaction = Transaction { compares, success, failure: vec![] };
        match self.command(Command::Transact(transaction)).await? {
            Answer::Done(done) => Some(done),
            other => panic!("a transaction was answered with {other:?}"),
        }
    }
}

impl Work {
    pub(crate) fn new(stale_per_mille: u64) -> Self {
        Self { stale_per_mille, ..Self::default() }
    }

    pub(crate) fn asker(&self, lab: &Lab, number: usize) -> Asker {
        Asker { number: number as u64, client: lab.client(number), work: self.clone() }
    }

    /// Has everybody begin.
    pub(crate) fn start(&self, lab: &Lab, seed: u64, compacts: bool) {
        let own = |number: usize| Seeded::new(seed ^ ((number as u64 + 1) << 32));
        for number in 0..WRITERS {
            drop(spawn_for(CLIENTS + number, write(self.asker(lab, number), own(number))));
        }
        for number in WRITERS..WRITERS + LOCKERS {
            drop(spawn_for(CLIENTS + number, lock(self.asker(lab, number), own(number))));
        }
        if compacts {
            drop(spawn_for(CLIENTS + JANITOR, compact(self.asker(lab, JANITOR), own(JANITOR))));
        }
        let all: (&[u8], &[u8]) = (b"", b"");
        for (number, keys, lazy) in
            [(WATCHERS[0], all, false), (WATCHERS[1], SOME_KEYS, false), (WATCHERS[2], all, true)]
        {
            drop(spawn_for(CLIENTS + number, watch(lab.clone(), self.clone(), number, keys, own(number), lazy)));
        }
    }

    /// Ends all but the watchers.
    pub(crate) fn stop(&self) {
        for number in 0..=JANITOR {
            runtime::kill(CLIENTS + number);
        }
    }

    /// Ends these as well.
    pub(crate) fn stop_watching(&self) {
        for number in WATCHERS {
            runtime::kill(CLIENTS + number);
        }
    }

    /// Puts a mark behind all that was acknowledged; every watcher is told of it.
    pub(crate) async fn end(&self, lab: &Lab, mark: u64) -> Result<Revision, String> {
        let asker = self.asker(lab, JUDGE);
        // Whether one of which nothing is known was done does not matter: it is another mark.
        for try_ in 0..20 {
            let value = ((asker.number + 1) << 32) | (mark * 100 + try_);
            if let Some(done) = asker.transact(vec![], vec![put(LAST, value, 0)]).await {
                return Ok(done.revision);
            }
        }
        Err("the group does not recover".into())
    }

    /// Whether every watcher was told of this change.
    pub(crate) fn all_were_told(&self, upto: Revision) -> bool {
        let followed = self.followed.lock().expect("unpoisoned");
        let last = |watcher| followed.iter().rev().find(|followed| followed.watcher == watcher);
        WATCHERS.into_iter().all(|watcher| {
            // Whoever was overtaken by a compaction read the rows, and goes on behind them.
            last(watcher).is_some_and(|last| {
                !last.is_over && (last.from > upto || last.told.last().is_some_and(|event| event.revision >= upto))
            })
        })
    }
}

/// Reads and writes a few keys, in all the ways that there are.
async fn write(asker: Asker, mut seeded: Seeded) {
    let mut count = 0_u64;
    loop {
        let key = |seeded: &mut Seeded| format!("key{}", seeded.below(KEYS)).into_bytes();
        let (one, other) = (key(&mut seeded), key(&mut seeded));
        // No two are equal in a run.
        count += 2;
        let fresh = ((asker.number + 1) << 32) | count;
        let padding = if seeded.chance(100) { seeded.below(4_000) } else { 0 };
        match seeded.below(100) {
            0..35 => {
                let stale = seeded.chance(asker.work.stale_per_mille);
                drop(asker.get(&one, stale).await);
            }
            35..42 => drop(asker.range(b"key", b"kez").await),
            42..62 => drop(asker.transact(vec![], vec![put(&one, fresh, padding)]).await),
            62..74 => {
                // Changes only what was read before.
                if let Some((row, _)) = asker.get(&one, false).await {
                    drop(asker.transact(vec![modified(&one, row.as_ref())], vec![put(&one, fresh, padding)]).await);
                }
            }
            74..84 => {
                let present = Compare { key: bytes(&other), condition: Condition::Present };
                let read = Op::Read { key: bytes(&other) };
                let mut ops = vec![read, put(&one, fresh, padding)];
                if other != one {
                    ops.push(put(&other, fresh + 1, 0));
                }
                drop(asker.transact(vec![present], ops).await);
            }
            84..88 => drop(asker.transact(vec![], vec![Op::Delete { key: bytes(&one) }]).await),
            88..90 => {
                let range = Op::DeleteRange { from: bytes(b"key3"), to: bytes(b"kez") };
                drop(asker.transact(vec![], vec![range]).await);
            }
            _ => {
                if let Some((row, _)) = asker.get(COUNTER, false).await {
                    let next = row.as_ref().map_or(0, |row| number_of(&row.value)) + 1;
                    drop(asker.transact(vec![modified(COUNTER, row.as_ref())], vec![put(COUNTER, next, 0)]).await);
                }
            }
        }
        SimRuntime::sleep(Duration::from_millis(1 + seeded.below(40))).await;
    }
}

/// Takes a lock under a lease, prolongs it or not, gives it back or not, again and again.
async fn lock(asker: Asker, mut seeded: Seeded) {
    let ttl = Duration::from_millis(2_500);
    let counted = Client::<SimEnv>::counted(ttl);
    let now = <SimInstant as openraft::Instant>::now;
    loop {
        SimRuntime::sleep(Duration::from_millis(50 + seeded.below(400))).await;
        // By the holder's own clock, from before it asked: the group counts from later on.
        let mut asked = now();
        let granted = asker.command(Command::GrantLease { ttl_ms: 2_500 }).await;
        let Some(Answer::Lease { lease, .. }) = granted else { continue };
        let absent = Compare { key: bytes(b"lock"), condition: Condition::Absent };
        let take = Op::Put { key: bytes(b"lock"), value: bytes(b"held"), lease: Some(lease) };
        let taken = asker.transact(vec![absent], vec![take]).await;
        let from_ns = now_ns();
        if !taken.is_some_and(|done| done.succeeded) || now() >= asked + counted {
            continue;
        }
        loop {
            let left = (asked + counted) - now();
            SimRuntime::sleep(left.min(Duration::from_millis(seeded.below(2_000)))).await;
            asker.hold(lease, from_ns);
            if seeded.chance(600) {
                break;
            }
            let again = now();
            let kept = asker.command(Command::KeepAlive { lease }).await;
            // What it counted on before it was prolonged may be over by now.
            if kept.is_none() || now() >= asked + counted {
                break;
            }
            asker.hold(lease, from_ns);
            asked = again;
        }
        match seeded.below(3) {
            0 => {
                let mine = Compare { key: bytes(b"lock"), condition: Condition::Lease(lease) };
                let _freed = asker.transact(vec![mine], vec![Op::Delete { key: bytes(b"lock") }]).await;
            }
            1 => {
                drop(asker.command(Command::Revoke { lease }).await);
                // Nobody prolongs what is gone.
                drop(asker.command(Command::KeepAlive { lease }).await);
            }
            _ => {} // the lease ends
        }
    }
}

impl Asker {
    fn hold(&self, generation: LeaseId, from_ns: u64) {
        let tenure = Tenure { thing: b"lock".to_vec(), holder: self.number, generation, from_ns, to_ns: now_ns() };
        self.work.tenures.lock().expect("unpoisoned").push(tenure);
    }
}

/// Has the group forget what is old, and sometimes what is not.
async fn compact(asker: Asker, mut seeded: Seeded) {
    loop {
        SimRuntime::sleep(Duration::from_millis(500 + seeded.below(4_000))).await;
        let Some((_, now)) = asker.get(COUNTER, false).await else { continue };
        let before = Revision(now.0.saturating_sub(seeded.below(150)));
        let _done = asker.command(Command::Compact { before }).await;
    }
}

/// Follows the changes. If some that it wants are no longer kept, it reads the rows and goes on from there.
async fn watch(
    lab: Lab,
    work: Work,
    watcher: usize,
    keys: (&'static [u8], &'static [u8]),
    mut seeded: Seeded,
    lazy: bool,
) {
    let asker = work.asker(&lab, watcher);
    let mut from = Revision(1);
    loop {
        let place = {
            let mut followed = work.followed.lock().expect("unpoisoned");
            followed.push(Followed { watcher, keys, from, told: vec![], is_over: false });
            followed.len() - 1
        };
        let mut watch = asker.client.watch(keys.0, keys.1, from);
        while let Ok(events) = watch.next().await {
            work.followed.lock().expect("unpoisoned")[place].told.extend(events);
            if lazy {
                SimRuntime::sleep(Duration::from_millis(seeded.below(4_000))).await;
            }
        }
        work.followed.lock().expect("unpoisoned")[place].is_over = true;
        from = loop {
            if let Some(page) = asker.range(keys.0, keys.1).await {
                break Revision(page.revision.0 + 1);
            }
        };
    }
}
