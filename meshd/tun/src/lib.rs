//! (room under construction)
mod addresses;
mod metrics;
mod netlink;
mod netns;
mod offload;
mod socket;
mod sys;
mod tun;

pub use addresses::*;
pub use metrics::*;
pub use netlink::*;
pub use netns::*;
pub use socket::{SocketError, SocketOffloads};
pub use tun::*;
