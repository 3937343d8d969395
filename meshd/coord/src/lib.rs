//! The driver of coordination groups: `vdc-coord`'s store, replicated by openraft.
mod client;
pub mod env;
mod group;
mod incoming;
mod log;
mod message;
mod network;
mod node;
mod state;
mod types;

pub use client::{Client, ClientError, Watch};
pub use group::{Group, GroupError, GroupSettings, Timing};
pub use message::{FRAME_BYTES_MAX, Standing, Trouble};
pub use node::Node;
