//! meshlab: networks of several sites from a few lines of Rust, on one Linux machine, for tests, demos and benches.
//!
//! A [`Lab`] has [`Site`]s: a router and a LAN each. A LAN has [`Host`]s: namespaces with their own network, mounts, host
//! name and processes, in which real programs run. The sites' routers meet only in a user-space WAN, whose [`Uplink`]s
//! delay, lose, reorder, throttle, refuse, cut and count packets, changeable at any moment and repeatable by a seed.
//!
//! It is not a simulator: time is real, and so are kernels and programs. Nor does it know what runs in it.
//!
//! Invariants:
//! - Nothing outlives the process that made the lab, however it ends, and nothing is visible outside: no names, no
//!   interfaces, no mounts. Several labs may exist at once.
//! - Sites share no link: multicast stays in a LAN, and every packet between sites crosses two uplinks.
//! - Everything started has an owner and an end: commands have a timeout, services die with their guard.
//!
//! Needs root, Linux 5.9 or later with TUN and overlay file systems, and Debian's iproute2 (nftables for routers with NAT).

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod error;
mod host;
mod lab;
mod link;
mod namespace;
mod process;
mod site;
mod sys;
mod wait;
mod wan;

pub use nix::sys::signal::Signal;

pub use crate::error::{Error, Result};
pub use crate::host::Host;
pub use crate::lab::{Lab, LabBuilder, NameServer};
pub use crate::link::{BitRate, Direction, DirectionCounters, Family, LinkCounters, LinkOptions, Prefixes};
pub use crate::process::{Command, Output, Service};
pub use crate::site::{Nat, PacketCount, Site, SiteOptions, Transport, Uplink};
pub use crate::wait::{Condition, require_tools, wait_until};
