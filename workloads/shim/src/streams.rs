//! One client of a stream socket: frames in, frames out, both bounded.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use workloads_wire::frame::{Frame, Decoder};

/// Bytes waiting for one client. Beyond this nothing more is read from the program: back-pressure reaches it.
pub(crate) const OUTPUT_BYTES_MAX: usize = 64 * 1024;
