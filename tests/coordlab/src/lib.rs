//! coordlab: what a coordination group is judged by. For tests only.
//!
//! A test has clients work on a group while things fail, and writes down with a [`Recorder`] what each client asked, when, and
//! what it was told. Afterwards the history is judged:
//!
//! - [`check_linear`] searches for an order of all operations that respects real time and that a plain reference of the store
//!   could have answered in the same way. It takes nothing from the group but its answers.
//! - [`check_against_log`] holds the answers against the changes that the group says there were; linear in their number.
//! - [`check_log`] and [`check_watch`]: the changes follow from each other, and a watcher was told each of them once, in order.
//! - [`check_exclusion`]: no two held a thing at a time, as they themselves count, and generations grew.
//! - [`check_applied`] and [`check_total`]: what was acknowledged was done once, what failed was not done.
//!
//! It is no simulator: it has no clock, runtime, disk or network. Whoever runs the group has things fail and tells the time.
//!
//! Invariants:
//! - The same history gives the same verdict anywhere.
//! - A verdict against a history is never a guess: a search that gets too large is [`LinearError::TooLarge`].

#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod counting;
mod events;
mod exclusion;
mod history;
mod linear;
mod log;
mod reference;
mod seeded;

pub use crate::counting::{CountError, Fate, Increment, check_applied, check_total};
pub use crate::events::{EventsError, Watched, check_log, check_watch};
pub use crate::exclusion::{ExclusionError, Tenure, check_exclusion};
pub use crate::history::{Call, History, Moment, Operation, Outcome, Recorder, Ticket};
pub use crate::linear::{LinearError, LinearOptions, LinearReport, Stuck, check_linear};
pub use crate::log::{LogError, check_against_log};
pub use crate::seeded::{Seeded, mix};
