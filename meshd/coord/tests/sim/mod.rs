//! A simulated world for the driver: seeded, in virtual time, with faulty disks and lines.

pub mod disk;
pub mod lab;
pub mod net;
pub mod runtime;
