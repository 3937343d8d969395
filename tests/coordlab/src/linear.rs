//! Whether one order of all operations explains every answer.
//!
//! The search is that of Wing and Gong with Lowe's memory of configurations already seen: an operation may come next if no
//! other that is still to be ordered returned before it was invoked, and if the reference could have answered it so. Operations
//! on keys that never meet are judged apart. Operations of unknown outcome may come at any time after they were invoked, or
//! never; a configuration is not looked at again if it was seen with fewer of them used up.
//!
//! Answers tell revisions, and what has the lowest is tried first, so a right history is ordered about as fast as it is read.
//! A wrong one takes longer, up to [`LinearOptions::configurations_max`].

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{Display, Formatter, Result as FmtResult};
use std::hash::BuildHasherDefault;

use vdc_coord::{Answer, Command, Refusal};

use crate::history::{Call, History, Moment, Operation, Outcome};
use crate::reference::{Reference, State, TooManyLeases, Touch, named_leases, touched};

/// How far a search goes.
#[derive(Clone, Copy, Debug)]
pub struct LinearOptions {
    /// Configurations that are remembered for each part of the history; a few hundred bytes each.
    pub configurations_max: usize,
    /// Operations of one part.
    pub operations_max: usize,
}

impl Default for LinearOptions {
    fn default() -> Self {
        Self { configurations_max: 300_000, operations_max: 50_000 }
    }
}

/// What a search that found an order had to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinearReport {
    /// Those that say something about the store.
    pub operations: usize,
    /// Of keys and leases that never meet.
    pub parts: usize,
    pub configurations: usize,
}

/// Why a history has no order.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinearError {
    #[error("no order explains the answers: {0}")]
    Wrong(Box<Stuck>),
    /// Neither right nor wrong.
    #[error(
        "too large to be judged: {operations} operations on {keys} keys that meet, {configurations} configurations"
    )]
    TooLarge { operations: usize, keys: usize, configurations: usize },
    /// Neither right nor wrong.
    #[error("too large to be judged: {leases} leases matter to one operation, {leases_max} may ({operation})")]
    TooManyLeases { leases: usize, leases_max: usize, operation: Box<Operation> },
}

/// How far the search came at best.
#[derive(Clone, Debug)]
pub struct Stuck {
    /// The part's keys.
    pub keys: Vec<Vec<u8>>,
    /// So many operations could be ordered, of so many whose outcome is known.
    pub ordered: usize,
    pub known: usize,
    /// The last that could.
    pub last: Vec<Operation>,
    /// One of these had to come next.
    pub unfit: Vec<Operation>,
    /// The store as it would have been, for people.
    pub store: Vec<String>,
}

/// Operations that a [`Stuck`] names of each kind.
const NAMED_MAX: usize = 6;

impl Display for Stuck {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        writeln!(f, "{} of {} can be ordered. The last:", self.ordered, self.known)?;
        for operation in &self.last {
            writeln!(f, "  {operation}")?;
        }
        writeln!(f, "then the store is:")?;
        for row in &self.store {
            writeln!(f, "  {row}")?;
        }
        writeln!(f, "and none of these fits:")?;
        self.unfit.iter().try_for_each(|operation| writeln!(f, "  {operation}"))
    }
}

/// Judges whether a history is linearizable. The store was empty when it began.
///
/// # Errors
/// [`LinearError::Wrong`] if it is not; the others if that cannot be said.
pub fn check_linear(history: &History, options: LinearOptions) -> Result<LinearReport, LinearError> {
    let telling: Vec<&Operation> = history.operations.iter().filter(|operation| is_telling(operation)).collect();
    let mut report = LinearReport { operations: telling.len(), ..LinearReport::default() };
    for Part { keys, operations } in parts(&telling) {
        report.parts += 1;
        let mut search = Search::new(operations, options);
        let found = search.run();
        report.configurations += search.configurations;
        match found {
            Ok(true) => {}
            Ok(false) => {
                return Err(LinearError::Wrong(Box::new(Stuck {
                    keys,
                    ..search.best.expect("the first is the best")
                })));
            }
            Err(Limit::Size) => {
                let (operations, configurations) = (search.known.len() + search.unknown.len(), search.configurations);
                return Err(LinearError::TooLarge { operations, keys: keys.len(), configurations });
            }
            Err(Limit::Leases(TooManyLeases { leases, leases_max }, operation)) => {
                return Err(LinearError::TooManyLeases { leases, leases_max, operation });
            }
        }
    }
    Ok(report)
}

/// Whether an operation says something about the store, or may change it.
fn is_telling(operation: &Operation) -> bool {
    match (&operation.call, &operation.outcome) {
        (_, Outcome::Failed) => false,
        (_, Outcome::Refused(refusal)) => matches!(refusal, Refusal::LeaseGone { .. }),
        (Call::Get { .. } | Call::Range { .. }, outcome) => *outcome != Outcome::Unknown,
        (Call::Command(Command::Open | Command::Compact { .. }), _) => false,
        (Call::Command(Command::GrantLease { .. } | Command::KeepAlive { .. }), outcome) => {
            *outcome != Outcome::Unknown
        }
        (Call::Command(Command::Revoke { .. }), _) => true,
        (Call::Command(Command::Transact(_)), outcome) => *outcome != Outcome::Unknown || operation.may_change(),
    }
}

/// Operations on keys and leases of which no others are.
#[derive(Default)]
struct Part<'a> {
    keys: Vec<Vec<u8>>,
    operations: Vec<&'a Operation>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Key(Vec<u8>),
    Lease(u64),
}

fn parts<'a>(operations: &[&'a Operation]) -> Vec<Part<'a>> {
    let mut keys: BTreeSet<&[u8]> = BTreeSet::new();
    for operation in operations {
        keys.extend(touched(&operation.call).into_iter().filter_map(|touch| match touch {
            Touch::Key(key) => Some(key),
            Touch::Range(..) => None,
        }));
        if let Outcome::Page(page) = &operation.outcome {
            keys.extend(page.rows.iter().map(|(key, _)| key.as_slice()));
        }
    }
    // Each thing points to another of its part, the first of it to itself.
    let mut parents: BTreeMap<Thing, Thing> = BTreeMap::new();
    let mut firsts: Vec<Option<Thing>> = vec![];
    for operation in operations {
        let mut things: Vec<Thing> = named_leases(&operation.call).into_iter().map(Thing::Lease).collect();
        if let (Call::Command(Command::GrantLease { .. }), Outcome::Answer(Answer::Lease { lease, .. })) =
            (&operation.call, &operation.outcome)
        {
            things.push(Thing::Lease(lease.0));
        }
        for touch in touched(&operation.call) {
            match touch {
                Touch::Key(key) => things.push(Thing::Key(key.to_vec())),
                Touch::Range(from, _) => {
                    let within = keys.iter().filter(|key| touch.holds(key));
                    things.extend(within.map(|key| Thing::Key(key.to_vec())));
                    // An empty range is a thing as well: it must be seen as empty.
                    things.push(Thing::Key(from.to_vec()));
                }
            }
        }
        for pair in things.windows(2) {
            let (one, other) = (root(&parents, &pair[0]), root(&parents, &pair[1]));
            let (low, high) = if one < other { (one, other) } else { (other, one) };
            parents.insert(high, low);
        }
        firsts.push(things.into_iter().next());
    }
    let mut parts: BTreeMap<Option<Thing>, Part<'a>> = BTreeMap::new();
    for (operation, first) in operations.iter().zip(firsts) {
        let first = first.map(|first| root(&parents, &first));
        parts.entry(first).or_default().operations.push(operation);
    }
    for key in keys {
        let first = root(&parents, &Thing::Key(key.to_vec()));
        if let Some(part) = parts.get_mut(&Some(first)) {
            part.keys.push(key.to_vec());
        }
    }
    parts.into_values().collect()
}

fn root(parents: &BTreeMap<Thing, Thing>, thing: &Thing) -> Thing {
    let mut thing = thing;
    while let Some(parent) = parents.get(thing).filter(|parent| *parent != thing) {
        thing = parent;
    }
    thing.clone()
}

/// Which operations are ordered already.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Ordered {
    /// All known ones before this index, and these.
    below: usize,
    beyond: Vec<usize>,
}

/// An operation that may come next.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Known(usize),
    Unknown(usize),
}

struct Frame {
    ordered: Ordered,
    /// Operations of unknown outcome that were done, by index.
    used: Vec<usize>,
    state: State,
    /// The operation that led here.
    by: Option<Choice>,
    /// What is still to be tried, the next at the end; with the state that it leads to once that is known.
    todo: Vec<(Choice, Option<State>)>,
}

type Seen = HashMap<(Ordered, State), Vec<Vec<usize>>, BuildHasherDefault<DefaultHasher>>;

enum Limit {
    Size,
    Leases(TooManyLeases, Box<Operation>),
}

struct Search<'a> {
    reference: Reference,
    options: LinearOptions,
    /// By when they were invoked.
    known: Vec<&'a Operation>,
    unknown: Vec<&'a Operation>,
    configurations: usize,
    best: Option<Stuck>,
}

impl<'a> Search<'a> {
    fn new(mut operations: Vec<&'a Operation>, options: LinearOptions) -> Self {
        operations.sort_by_key(|operation| operation.invoked);
        let reference = Reference::new(&operations);
        let (unknown, known) = operations.into_iter().partition(|operation| operation.outcome == Outcome::Unknown);
        Self { reference, options, known, unknown, configurations: 0, best: None }
    }

    /// Whether there is an order.
    fn run(&mut self) -> Result<bool, Limit> {
        if self.known.len() + self.unknown.len() > self.options.operations_max {
            return Err(Limit::Size);
        }
        let mut seen = Seen::default();
        let nothing = Ordered { below: 0, beyond: vec![] };
        let mut stack = vec![self.frame(nothing, vec![], State::default(), None)];
        self.note(&stack);
        while let Some(frame) = stack.last_mut() {
            if frame.ordered.below == self.known.len() {
                return Ok(true);
            }
            let Some((choice, state)) = frame.todo.pop() else {
                stack.pop();
                continue;
            };
            let Some(state) = state else {
                let (Choice::Known(index) | Choice::Unknown(index)) = choice;
                let (operation, index) = match choice {
                    Choice::Known(_) => (self.known[index], index),
                    Choice::Unknown(_) => (self.unknown[index], self.known.len() + index),
                };
                let after = self.reference.step(&frame.state, index, operation);
                let after = after.map_err(|leases| Limit::Leases(leases, Box::new(operation.clone())))?;
                frame.todo.extend(after.into_iter().rev().map(|state| (choice, Some(state))));
                continue;
            };
            let (mut ordered, mut used) = (frame.ordered.clone(), frame.used.clone());
            match choice {
                Choice::Known(index) => ordered.add(index),
                // Nothing changed, and it can still be done later.
                Choice::Unknown(_) if state == frame.state => continue,
                Choice::Unknown(index) => {
                    let place = used.partition_point(|other| *other < index);
                    used.insert(place, index);
                }
            }
            let before = seen.entry((ordered.clone(), state.clone())).or_default();
            if before.iter().any(|fewer| fewer.iter().all(|index| used.binary_search(index).is_ok())) {
                continue;
            }
            before.push(used.clone());
            self.configurations += 1;
            if self.configurations > self.options.configurations_max {
                return Err(Limit::Size);
            }
            stack.push(self.frame(ordered, used, state, Some(choice)));
            self.note(&stack);
        }
        Ok(false)
    }

    fn frame(&self, ordered: Ordered, used: Vec<usize>, state: State, by: Option<Choice>) -> Frame {
        let (mut known, until) = self.next_known(&ordered);
        // What is done last is tried first.
        known.sort_by_key(|index| std::cmp::Reverse(hint(self.known[*index])));
        let invoked = self.unknown.partition_point(|operation| operation.invoked <= until);
        let unknown = (0..invoked).rev().filter(|index| used.binary_search(index).is_err());
        let choices = unknown.map(Choice::Unknown).chain(known.into_iter().map(Choice::Known));
        let todo = choices.map(|choice| (choice, None)).collect();
        Frame { ordered, used, state, by, todo }
    }

    /// Known operations that may come next, and until when others must have been invoked to do so.
    fn next_known(&self, ordered: &Ordered) -> (Vec<usize>, Moment) {
        let mut until = Moment { ns: u64::MAX, order: u64::MAX };
        let mut next = vec![];
        for (index, operation) in self.known.iter().enumerate().skip(ordered.below) {
            if operation.invoked > until {
                break;
            }
            if ordered.beyond.binary_search(&index).is_err() {
                next.push(index);
                until = until.min(operation.returned.unwrap_or(until));
            }
        }
        (next, until)
    }

    /// Remembers how far the search came, if it came farther than before.
    fn note(&mut self, stack: &[Frame]) {
        let Some(frame) = stack.last() else { return };
        let ordered = frame.ordered.below + frame.ordered.beyond.len();
        if self.best.as_ref().is_some_and(|best| best.ordered >= ordered) {
            return;
        }
        let by = |choice: &Choice| match choice {
            Choice::Known(index) => self.known[*index].clone(),
            Choice::Unknown(index) => self.unknown[*index].clone(),
        };
        let first = stack.len().saturating_sub(NAMED_MAX);
        let last = stack[first..].iter().filter_map(|frame| frame.by.as_ref().map(by)).collect();
        let (next, _) = self.next_known(&frame.ordered);
        let unfit = next.into_iter().take(NAMED_MAX).map(|index| self.known[index].clone()).collect();
        let store = frame.state.words();
        self.best = Some(Stuck { keys: vec![], ordered, known: self.known.len(), last, unfit, store });
    }
}

impl Ordered {
    fn add(&mut self, index: usize) {
        let place = self.beyond.partition_point(|other| *other < index);
        self.beyond.insert(place, index);
        let done = self.beyond.iter().enumerate().take_while(|(more, index)| **index == self.below + more).count();
        self.beyond.drain(..done);
        self.below += done;
    }
}

/// What is lower is likelier to come first: the revision, and at a revision the change before those who saw it.
fn hint(operation: &Operation) -> (u64, bool, Moment) {
    let revision = operation.revision().map(|revision| revision.0);
    let otherwise = match operation.outcome {
        // Somebody held on to a lease; or it had ended, which is put off for as long as possible.
        Outcome::Answer(Answer::Lease { .. }) => 0,
        _ => u64::MAX,
    };
    (revision.unwrap_or(otherwise), !operation.may_change(), operation.invoked)
}

#[cfg(test)]
mod tests;
