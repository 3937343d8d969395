//! The pure core of a virtual datacenter (VDC): what its records say, who may sign them, and what follows from them.
//!
//! Nothing here reads a clock, a file, a socket or a random number: time is an argument ([`UnixTime`]), keys are made
//! from seeds that the caller drew. The same code therefore runs in `meshd`, in the simulations and in the fuzz targets.
//!
//! Start at [`record`] (what is signed), then [`roster`] (how records merge and what a node may believe), then
//! [`invite`] (how a box becomes a member).
#![forbid(unsafe_code)]

pub mod address;
pub mod codec;
pub mod id;
pub mod invite;
pub mod links;
pub mod peer;
pub mod policy;
pub mod record;
pub mod roster;
pub mod sync;
pub mod time;

pub use address::{Ipv4Block, NodePrefix};
pub use id::{Hash, InviteId, Key, Name, NameError, Office, SiteNumber, VdcId, WgKey};
pub use record::{Body, Home, Role, Signed, SigningKey};
pub use time::UnixTime;
