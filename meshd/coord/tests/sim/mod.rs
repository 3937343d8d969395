//! A simulated world for the driver: seeded, in virtual time, with faulty disks and lines.

pub(crate) mod coverage;
pub(crate) mod disk;
pub(crate) mod lab;
pub(crate) mod net;
pub(crate) mod runtime;
pub(crate) mod turmoil;
pub(crate) mod verdict;
pub(crate) mod work;
