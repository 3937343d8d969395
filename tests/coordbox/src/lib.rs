//! One node of coordination groups as a process over plain TCP, and load for it. For tests and benches only: whoever reaches
//! its address is believed to be whom it says.
mod bench;
mod etcd;
mod load;
mod net;
mod serve;

pub use bench::{Bench, Part, bench};
pub use load::{Check, Kind, Load, check, load};
pub use net::{Peer, ask, found};
pub use serve::{Serve, serve};
