//! What clients asked, when, and what they were told.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::sync::{Arc, Mutex, MutexGuard};

use vdc_coord::{Answer, Command, Op, Page, Refusal, Revision, Row};

/// Operations that one history may have.
const OPERATIONS_MAX: usize = 1_000_000;

/// When something happened, in nanoseconds of one clock for all clients. Of two moments of the same nanosecond the `order`
/// says which came first; where nobody knows it is the same, and neither came first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub ns: u64,
    pub order: u64,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// The row of a key, linearizable.
    Get {
        key: Vec<u8>,
    },
    /// A page from `from` up to before `to` (an empty `to` is the end of all keys), linearizable.
    Range {
        from: Vec<u8>,
        to: Vec<u8>,
    },
    Command(Command),
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Row {
        row: Option<Row>,
        revision: Revision,
    },
    Page(Page),
    Answer(Answer),
    /// The store refused it, and nothing was done.
    Refused(Refusal),
    /// Certainly not done, and nothing is known.
    Failed,
    /// Done, not done, or still to be done.
    Unknown,
}

/// A question of one client, and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub client: u64,
    pub call: Call,
    pub invoked: Moment,
    /// None if the client never heard again.
    pub returned: Option<Moment>,
    pub outcome: Outcome,
}

impl Operation {
    /// The revision of the store that the answer tells of.
    #[must_use]
    pub fn revision(&self) -> Option<Revision> {
        match &self.outcome {
            Outcome::Row { revision, .. } => Some(*revision),
            Outcome::Page(page) => Some(page.revision),
            Outcome::Answer(Answer::Done(done)) => Some(done.revision),
            Outcome::Answer(Answer::Lease { lease, .. }) => {
                matches!(self.call, Call::Command(Command::GrantLease { .. })).then_some(Revision(lease.0))
            }
            Outcome::Answer(Answer::Opened | Answer::Revoked { .. } | Answer::Compacted { .. })
            | Outcome::Refused(_)
            | Outcome::Failed
            | Outcome::Unknown => None,
        }
    }

    /// Whether it may change something.
    #[must_use]
    pub fn may_change(&self) -> bool {
        match &self.call {
            Call::Get { .. } | Call::Range { .. } => false,
            Call::Command(Command::Transact(transaction)) => {
                let mut ops = transaction.success.iter().chain(&transaction.failure);
                ops.any(|op| !matches!(op, Op::Read { .. }))
            }
            Call::Command(_) => true,
        }
    }
}

impl Display for Operation {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let Self { client, call, invoked, returned, outcome } = self;
        write!(f, "client {client}, {} ns to ", invoked.ns)?;
        match returned {
            Some(returned) => write!(f, "{} ns", returned.ns)?,
            None => write!(f, "ever")?,
        }
        write!(f, ": {call:?} -> {outcome:?}")
    }
}

/// All operations of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub operations: Vec<Operation>,
}

#[derive(Debug, Default)]
struct State {
    history: History,
    order: u64,
}

impl State {
    fn moment(&mut self, ns: u64) -> Moment {
        self.order += 1;
        Moment { ns, order: self.order }
    }
}

/// Writes a history down. Cheap to clone: each client has one.
#[derive(Clone, Debug, Default)]
pub struct Recorder(Arc<Mutex<State>>);

/// An operation under way. If it is dropped, the operation's outcome stays unknown.
#[derive(Debug)]
#[must_use = "its outcome is unknown until it is told"]
pub struct Ticket {
    recorder: Recorder,
    index: usize,
}

impl Recorder {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing in here panics")
    }

    /// A client asks.
    ///
    /// # Panics
    /// Beyond a million operations.
    pub fn begin(&self, client: u64, call: Call, now_ns: u64) -> Ticket {
        let mut state = self.state();
        let index = state.history.operations.len();
        assert!(index < OPERATIONS_MAX, "a history of more than {OPERATIONS_MAX} operations is never judged");
        let invoked = state.moment(now_ns);
        state.history.operations.push(Operation { client, call, invoked, returned: None, outcome: Outcome::Unknown });
        Ticket { recorder: self.clone(), index }
    }

    /// What was written down since the beginning or the last time this was asked. Operations that are under way are as if
    /// their clients never heard again.
    #[must_use]
    pub fn take(&self) -> History {
        std::mem::take(&mut self.state().history)
    }
}

impl Ticket {
    /// The client is told.
    pub fn end(self, outcome: Outcome, now_ns: u64) {
        let mut state = self.recorder.state();
        let moment = state.moment(now_ns);
        // Taken away in the meantime: then nobody asks any more.
        if let Some(operation) = state.history.operations.get_mut(self.index) {
            operation.outcome = outcome;
            operation.returned = Some(moment);
        }
    }
}
