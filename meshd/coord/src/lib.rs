//! The driver of coordination groups: `vdc-coord`'s store, replicated by openraft.
mod client;
mod clock;
mod copy;
mod door;
pub mod env;
pub mod frames;
mod group;
mod incoming;
mod journal;
pub mod lines;
mod log;
mod network;
mod node;
mod state;
pub mod succession;
mod types;

pub use client::{Client, ClientError, Watch};
pub use copy::Copy;
pub use group::{Follower, Group, GroupError, GroupSettings, Timing};
pub use node::Node;
pub use vdc_coord::wire::{FRAME_BYTES_MAX, Standing, Trouble};
