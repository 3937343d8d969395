//! What the daemon and a container's shim say to each other, and what the shim leaves on disk. Bytes in, values out: no
//! socket, no file, no clock.
//!
//! - [`message`]: `shim.cbor`, commands, events and the exit record: one version byte, then CBOR
//! - [`frame`]: the streams of a program, as frames of a byte stream
//! - [`log`]: records of the log's segments, with checksums
//!
//! Everything decodes foreign bytes: a shim of another version, a disk that lost power. Nothing here panics on them.

#![forbid(unsafe_code)]

pub mod frame;
pub mod log;
pub mod message;
