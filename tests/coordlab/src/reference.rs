//! The store as a plain map: which states may follow an operation with this answer.
//!
//! It is written without the machine's code, so that it judges that too. What it cannot know it leaves open: the revision of
//! a change whose client was never told (bound as soon as somebody reads it), and when a lease ends.

use std::collections::{BTreeMap, BTreeSet};

use vdc_coord::{Answer, Command, Compare, Condition, Done, Op, Page, Refusal, Row, Transaction};

use crate::history::{Call, Operation, Outcome};

/// Leases that may end before one operation, each or not: their subsets are tried.
const ENDING_MAX: usize = 6;

/// More leases than that matter to one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyLeases {
    pub(crate) leases: usize,
    pub(crate) leases_max: usize,
}

/// A revision, or that of the operation of which nobody was told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stamp {
    Known(u64),
    Of(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Cell {
    value: Vec<u8>,
    created: Stamp,
    modified: Stamp,
    version: u64,
    lease: Option<u64>,
}

/// What the store may look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    rows: BTreeMap<Vec<u8>, Cell>,
    /// Its revision is this one or a higher one.
    revision: u64,
    /// Leases of which it is known whether they are held.
    leases: BTreeMap<u64, bool>,
}

/// What the search knows of a history as a whole.
#[derive(Debug, Default)]
pub(crate) struct Reference {
    /// Leases whose grants were acknowledged; others are taken to be held from the start.
    granted: BTreeSet<u64>,
}

fn within(key: &[u8], from: &[u8], to: &[u8]) -> bool {
    key >= from && (to.is_empty() || key < to)
}

impl Reference {
    pub(crate) fn new(operations: &[&Operation]) -> Self {
        let grants = operations.iter().filter_map(|operation| match (&operation.call, &operation.outcome) {
            (Call::Command(Command::GrantLease { .. }), Outcome::Answer(Answer::Lease { lease, .. })) => Some(lease.0),
            _ => None,
        });
        Self { granted: grants.collect() }
    }

    fn held(&self, state: &State, lease: u64) -> bool {
        state.leases.get(&lease).copied().unwrap_or(!self.granted.contains(&lease))
    }

    /// All states that may follow; none if the answer does not fit.
    pub(crate) fn step(&self, state: &State, index: usize, operation: &Operation) -> Result<Vec<State>, TooManyLeases> {
        let mut after = vec![];
        for before in self.after_ends(state, operation)? {
            for next in self.done(before, index, operation) {
                if !after.contains(&next) {
                    after.push(next);
                }
            }
        }
        Ok(after)
    }

    /// The state as it is, and with some of the leases ended that matter to the operation.
    fn after_ends(&self, state: &State, operation: &Operation) -> Result<Vec<State>, TooManyLeases> {
        let held = |lease: &u64| self.held(state, *lease);
        let ending: Vec<u64> = self.touched_leases(state, operation).into_iter().filter(held).collect();
        if ending.len() > ENDING_MAX {
            return Err(TooManyLeases { leases: ending.len(), leases_max: ENDING_MAX });
        }
        let mut states: Vec<State> = vec![state.clone()];
        for lease in ending {
            let ended: Vec<State> = states.iter().map(|state| state.clone().ended(lease).0).collect();
            states.extend(ended);
        }
        Ok(states)
    }

    fn touched_leases(&self, state: &State, operation: &Operation) -> BTreeSet<u64> {
        let mut leases = named_leases(&operation.call);
        let touches = touched(&operation.call);
        for (key, cell) in &state.rows {
            if let Some(lease) = cell.lease
                && touches.iter().any(|touch| touch.holds(key))
            {
                leases.insert(lease);
            }
        }
        leases
    }

    fn done(&self, mut state: State, index: usize, operation: &Operation) -> Vec<State> {
        match (&operation.call, &operation.outcome) {
            (_, Outcome::Failed) => vec![state],
            (Call::Get { .. } | Call::Range { .. }, Outcome::Unknown) => vec![state],
            (Call::Get { key }, Outcome::Row { row, revision }) => {
                let fits = state.seen(revision.0) && state.is(key, row.as_ref());
                fits.then_some(state).into_iter().collect()
            }
            (Call::Range { from, to }, Outcome::Page(page)) => {
                let fits = state.seen(page.revision.0) && state.is_page(from, to, page);
                fits.then_some(state).into_iter().collect()
            }
            (Call::Command(command), outcome) => self.command(state, index, command, outcome),
            _ => vec![],
        }
    }

    fn command(&self, mut state: State, index: usize, command: &Command, outcome: &Outcome) -> Vec<State> {
        match (command, outcome) {
            (Command::Transact(transaction), _) => self.transact(&state, index, transaction, outcome),
            // A lease that nobody was told of is used by nobody.
            (Command::GrantLease { .. }, Outcome::Unknown) => vec![state],
            (Command::GrantLease { .. }, Outcome::Answer(Answer::Lease { lease, .. })) => {
                let fresh = lease.0 > state.revision && !state.leases.contains_key(&lease.0);
                state.revision = state.revision.max(lease.0);
                state.leases.insert(lease.0, true);
                fresh.then_some(state).into_iter().collect()
            }
            (Command::KeepAlive { .. }, Outcome::Unknown) => vec![state],
            (Command::KeepAlive { lease }, Outcome::Answer(Answer::Lease { lease: kept, .. })) => {
                let held = kept == lease && self.held(&state, lease.0);
                held.then_some(state).into_iter().collect()
            }
            (Command::Revoke { lease }, Outcome::Answer(Answer::Revoked { deleted })) => {
                let held = self.held(&state, lease.0);
                let (mut state, ended) = state.ended(lease.0);
                state.revision += u64::from(ended > 0);
                (held && ended == *deleted).then_some(state).into_iter().collect()
            }
            // If it was over before, nothing happened, which is left to the others.
            (Command::Revoke { lease }, Outcome::Unknown) => vec![state.ended(lease.0).0],
            (
                Command::KeepAlive { lease } | Command::Revoke { lease },
                Outcome::Refused(Refusal::LeaseGone { lease: gone }),
            ) => {
                let fits = lease == gone && !self.held(&state, lease.0);
                fits.then_some(state).into_iter().collect()
            }
            (Command::Open, Outcome::Answer(Answer::Opened) | Outcome::Unknown)
            | (Command::Compact { .. }, Outcome::Answer(Answer::Compacted { .. }) | Outcome::Unknown)
            | (_, Outcome::Refused(_)) => vec![state],
            _ => vec![],
        }
    }

    fn transact(&self, state: &State, index: usize, transaction: &Transaction, outcome: &Outcome) -> Vec<State> {
        let (known, revision) = match outcome {
            Outcome::Answer(Answer::Done(done)) => (Some(done), Stamp::Known(done.revision.0)),
            Outcome::Unknown | Outcome::Refused(Refusal::LeaseGone { .. }) => (None, Stamp::Of(index)),
            Outcome::Refused(_) => return vec![state.clone()],
            _ => return vec![],
        };
        let mut after = vec![];
        for (succeeded, state) in self.compare(state, &transaction.compares) {
            if known.is_some_and(|done| done.succeeded != succeeded) {
                continue;
            }
            let ops = if succeeded { &transaction.success } else { &transaction.failure };
            let mut tried = Trial::of(self, &state, ops, revision);
            // What leaves nothing behind has no revision of its own; what it read of itself shows the one it would have had.
            if let (Ok(trial), Stamp::Known(now)) = (&tried, revision)
                && !trial.changed()
            {
                tried = Trial::of(self, &state, ops, Stamp::Known(now + 1));
            }
            match (tried, outcome) {
                (Ok(trial), Outcome::Answer(Answer::Done(done))) => after.extend(trial.answered(done)),
                (Ok(trial), Outcome::Unknown) => after.push(trial.unanswered()),
                (Err(_), Outcome::Unknown) => after.push(state),
                (Err(gone), Outcome::Refused(Refusal::LeaseGone { lease })) if gone == lease.0 => after.push(state),
                _ => {}
            }
        }
        after
    }

    /// Whether all comparisons hold; both ways where that depends on a revision that nobody was told.
    fn compare(&self, state: &State, compares: &[Compare]) -> Vec<(bool, State)> {
        let mut results = vec![];
        let mut state = state.clone();
        for Compare { key, condition } in compares {
            let cell = state.rows.get(key.as_slice());
            let holds = match condition {
                Condition::Absent => cell.is_none(),
                Condition::Present => cell.is_some(),
                Condition::Version(version) => cell.map_or(0, |cell| cell.version) == *version,
                Condition::Value(value) => cell.is_some_and(|cell| cell.value == **value),
                Condition::Lease(lease) => cell.is_some_and(|cell| cell.lease == Some(lease.0)),
                Condition::LeaseHeld(lease) => self.held(&state, lease.0),
                Condition::Modified(revision) => match cell.map(|cell| cell.modified) {
                    None => revision.0 == 0,
                    Some(Stamp::Known(modified)) => modified == revision.0,
                    Some(Stamp::Of(index)) => {
                        results.push((false, state.clone()));
                        state.bind(index, revision.0);
                        state.revision = state.revision.max(revision.0);
                        revision.0 > 0
                    }
                },
            };
            if !holds {
                results.push((false, state));
                return results;
            }
        }
        results.insert(0, (true, state));
        results
    }
}

impl State {
    /// Takes a lease and its rows away. How many there were. When that was is not said: leases end by themselves at any time
    /// before it is noticed, so the revision of the store says nothing about it.
    fn ended(mut self, lease: u64) -> (Self, u64) {
        let before = self.rows.len();
        self.rows.retain(|_, cell| cell.lease != Some(lease));
        let gone = (before - self.rows.len()) as u64;
        self.leases.insert(lease, false);
        (self, gone)
    }

    /// Somebody saw the store at this revision.
    fn seen(&mut self, revision: u64) -> bool {
        let fits = revision >= self.revision;
        self.revision = self.revision.max(revision);
        fits
    }

    /// The operation's revision is known now.
    fn bind(&mut self, index: usize, revision: u64) {
        for cell in self.rows.values_mut() {
            for stamp in [&mut cell.created, &mut cell.modified] {
                if *stamp == Stamp::Of(index) {
                    *stamp = Stamp::Known(revision);
                }
            }
        }
    }

    fn is_stamp(&mut self, stamp: Stamp, revision: u64) -> bool {
        match stamp {
            Stamp::Known(known) => known == revision,
            Stamp::Of(index) => {
                self.bind(index, revision);
                revision <= self.revision
            }
        }
    }

    /// Whether this row stands there, as far as is known.
    fn is(&mut self, key: &[u8], row: Option<&Row>) -> bool {
        let Some(cell) = self.rows.get(key).cloned() else { return row.is_none() };
        row.is_some_and(|row| self.is_row(&cell, row))
    }

    fn is_row(&mut self, cell: &Cell, row: &Row) -> bool {
        cell.value == *row.value
            && cell.version == row.version
            && cell.lease == row.lease.map(|lease| lease.0)
            && row.created <= row.modified
            && self.is_stamp(cell.created, row.created.0)
            && {
                // The first may just have been bound by the second.
                let modified = if cell.modified == cell.created { row.created.0 } else { row.modified.0 };
                modified == row.modified.0 && self.is_stamp(cell.modified, row.modified.0)
            }
    }

    fn is_page(&mut self, from: &[u8], to: &[u8], page: &Page) -> bool {
        let keys: Vec<Vec<u8>> = self.rows.keys().filter(|key| within(key, from, to)).cloned().collect();
        let whole = keys.len() == page.rows.len();
        let enough = if page.more { keys.len() > page.rows.len() } else { whole };
        enough && keys.iter().zip(&page.rows).all(|(key, (found, row))| *key == **found && self.is(key, Some(row)))
    }

    /// The rows, for people.
    pub(crate) fn words(&self) -> Vec<String> {
        let row = |(key, cell): (&Vec<u8>, &Cell)| {
            let Cell { value, modified, version, .. } = cell;
            let (key, value) = (String::from_utf8_lossy(key), value.escape_ascii());
            format!("{key} = {value} (version {version}, {modified:?})")
        };
        self.rows.iter().map(row).chain([format!("revision {} or later", self.revision)]).collect()
    }
}

/// A transaction's changes.
struct Trial {
    state: State,
    /// What stood there before, for each key that was touched.
    before: BTreeMap<Vec<u8>, Option<Cell>>,
    reads: Vec<Option<Cell>>,
    deleted: u64,
}

impl Trial {
    /// The error is the lease that is not held.
    fn of(reference: &Reference, state: &State, ops: &[Op], revision: Stamp) -> Result<Self, u64> {
        let mut trial = Self { state: state.clone(), before: BTreeMap::new(), reads: vec![], deleted: 0 };
        for op in ops {
            match op {
                Op::Read { key } => trial.reads.push(trial.state.rows.get(key.as_slice()).cloned()),
                Op::Put { key, value, lease } => {
                    if let Some(lease) = lease
                        && !reference.held(state, lease.0)
                    {
                        return Err(lease.0);
                    }
                    let now = trial.state.rows.get(key.as_slice()).cloned();
                    let cell = Cell {
                        value: value.to_vec(),
                        created: now.as_ref().map_or(revision, |now| now.created),
                        modified: revision,
                        version: now.as_ref().map_or(0, |now| now.version) + 1,
                        lease: lease.map(|lease| lease.0),
                    };
                    trial.before.entry(key.to_vec()).or_insert(now);
                    trial.state.rows.insert(key.to_vec(), cell);
                }
                Op::Delete { key } => trial.delete(key),
                Op::DeleteRange { from, to } => {
                    let keys: Vec<Vec<u8>> =
                        trial.state.rows.keys().filter(|key| within(key, from, to)).cloned().collect();
                    for key in keys {
                        trial.delete(&key);
                    }
                }
            }
        }
        Ok(trial)
    }

    fn delete(&mut self, key: &[u8]) {
        if let Some(cell) = self.state.rows.remove(key) {
            self.before.entry(key.to_vec()).or_insert(Some(cell));
            self.deleted += 1;
        }
    }

    fn changed(&self) -> bool {
        self.before.iter().any(|(key, before)| before.is_some() || self.state.rows.contains_key(key))
    }

    fn answered(mut self, done: &Done) -> Option<State> {
        let revision = done.revision.0;
        let new = !self.changed() || revision > self.state.revision;
        let reads = std::mem::take(&mut self.reads);
        let fits = new
            && self.state.seen(revision)
            && self.deleted == done.deleted
            && reads.len() == done.reads.len()
            && reads.iter().zip(&done.reads).all(|(cell, row)| match (cell, row) {
                (None, None) => true,
                (Some(cell), Some(row)) => self.state.is_row(cell, row),
                _ => false,
            });
        fits.then_some(self.state)
    }

    fn unanswered(mut self) -> State {
        self.state.revision += u64::from(self.changed());
        self.state
    }
}

/// Keys that an operation looks at or changes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Touch<'a> {
    Key(&'a [u8]),
    Range(&'a [u8], &'a [u8]),
}

impl Touch<'_> {
    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        match self {
            Self::Key(own) => *own == key,
            Self::Range(from, to) => within(key, from, to),
        }
    }
}

pub(crate) fn touched(call: &Call) -> Vec<Touch<'_>> {
    match call {
        Call::Get { key } => vec![Touch::Key(key)],
        Call::Range { from, to } => vec![Touch::Range(from, to)],
        Call::Command(Command::Transact(transaction)) => {
            let compared = transaction.compares.iter().filter_map(|compare| {
                (!matches!(compare.condition, Condition::LeaseHeld(_))).then_some(Touch::Key(&compare.key))
            });
            let ops = transaction.success.iter().chain(&transaction.failure).map(|op| match op {
                Op::Put { key, .. } | Op::Delete { key } | Op::Read { key } => Touch::Key(key),
                Op::DeleteRange { from, to } => Touch::Range(from, to),
            });
            compared.chain(ops).collect()
        }
        Call::Command(_) => vec![],
    }
}

pub(crate) fn named_leases(call: &Call) -> BTreeSet<u64> {
    match call {
        Call::Command(Command::KeepAlive { lease } | Command::Revoke { lease }) => BTreeSet::from([lease.0]),
        Call::Command(Command::Transact(transaction)) => {
            let compared = transaction.compares.iter().filter_map(|compare| match compare.condition {
                Condition::Lease(lease) | Condition::LeaseHeld(lease) => Some(lease.0),
                _ => None,
            });
            let put = transaction.success.iter().chain(&transaction.failure).filter_map(|op| match op {
                Op::Put { lease, .. } => lease.map(|lease| lease.0),
                _ => None,
            });
            compared.chain(put).collect()
        }
        _ => BTreeSet::new(),
    }
}
