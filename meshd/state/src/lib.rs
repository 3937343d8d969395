//! The state directory: keys, crash-safe files and one durable transaction per change.
//!
//! ```text
//! /var/lib/meshd/
//!   lock                       held by the running daemon
//!   vdcs/ALIAS/
//!     node.key  wg.key         32-byte seeds, "meshd key 1" text files, mode 0600
//!     owner.key                only where an owner key lives
//!     store                    tables: records, invites, meta
//!     coord/                   files of coordination groups
//! ```
//! Main types: [`StateDir`], [`VdcDir`], [`Store`]. They are driven by the daemon's one task per VDC; nothing here spawns
//! or waits for anything but the disk.

mod dir;
mod file;
mod key_file;
mod store;

pub use dir::{StateDir, VdcDir};
pub use file::write_durably;
pub use key_file::KeyKind;
pub use store::{Changes, Store};

use std::io;
use std::path::{Path, PathBuf};

/// Why the state directory could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("state directory {path} is in use by another meshd (lock file {path}/lock)")]
    InUse { path: PathBuf },
    #[error("no permission for {path}; run as root, or give the state directory to the user meshd runs as")]
    NoPermission {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is on a read-only file system; remount it read-write or set `state_dir` elsewhere")]
    ReadOnly {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no space left for {path}; free some space, nothing was changed")]
    Full {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not a key file of this release: {why}")]
    KeyFile { path: PathBuf, why: &'static str },
    #[error(
        "{path} is readable by others (mode {mode:o}); it may be known to somebody else. Fix with: chmod 600 {path}"
    )]
    KeyFileMode { path: PathBuf, mode: u32 },
    #[error("the store {path} is damaged or of another release")]
    Store {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    #[error(
        "the VDC {alias:?} exists already in {path}; leave it first (`meshctl leave --vdc {alias}`), or take another name (`join` does with --as NAME)"
    )]
    Exists { alias: String, path: PathBuf },
}

impl StateError {
    /// Sorts an I/O error into the kinds that have their own advice.
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NoPermission { path, source },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path, source },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, source },
            _ => Self::Io { action, path, source },
        }
    }
}

#[cfg(test)]
mod tests;
