//! What a coordination group agrees on: a small store of keys with versions, changed by transactions.
//!
//! A group's log carries [`Entry`]s; [`Machine`] applies them to [`Rows`], ordered maps that the driver keeps on disk and the
//! twin [`MemoryRows`] in memory. The same entries give the same rows, byte for byte, wherever they are applied. What may be
//! asked for is bounded by [`limits`]; what is refused is refused with a [`Refusal`] that names the thing, and leaves no trace
//! but the answer. Clocks do not come in: a group's time is a number that its entries carry (see [`machine`]).
#![forbid(unsafe_code)]

pub mod backup;
pub mod limits;
pub mod machine;
mod memory;
mod read;
pub mod rows;
mod types;
pub mod voting;
pub mod wire;

pub use machine::{Machine, Summary};
pub use memory::{MemoryStore, Store, Watch};
pub use read::{Outcome, Page, Reader};
pub use rows::{MemoryRows, Rows, RowsMut, Table};
pub use types::{
    Answer, ClientId, Command, Compare, Condition, Done, Entry, Event, KeyBytes, Lease, LeaseId, Op, Refusal, Request,
    Revision, Row, Transaction,
};

#[cfg(test)]
mod tests;
