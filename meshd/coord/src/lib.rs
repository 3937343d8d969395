//! The driver of coordination groups: `vdc-coord`'s store, replicated by openraft.
pub mod env;
mod log;
mod types;
