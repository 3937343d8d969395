//! What the driver stands on: clock, tasks, disk and network. The daemon gives it the real ones, simulations a seeded model.

use std::fmt::Debug;
use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use openraft::AsyncRuntime;
pub use openraft_rt_tokio::TokioRuntime;
use redb::StorageBackend;
use vdc::Key;

/// A place for the driver to run.
pub trait Env: Clone + Debug + Send + Sync + 'static {
    /// Tasks, clock and randomness.
    type Runtime: AsyncRuntime;
    /// Files.
    type Disk: Disk;
    /// The way to other nodes.
    type Transport: Transport;

    fn disk(&self) -> &Self::Disk;
    fn transport(&self) -> &Self::Transport;
    /// 16 bytes that nobody else draws.
    fn random(&self) -> [u8; 16];
}

/// Files by name, below a directory of the driver's own.
pub trait Disk: Clone + Debug + Send + Sync + 'static {
    /// Opens a file, made if missing.
    ///
    /// # Errors
    /// Those of the file system; another process may hold it.
    fn open(&self, file: &str) -> io::Result<Box<dyn StorageBackend>>;

    /// # Errors
    /// Those of the file system.
    fn exists(&self, file: &str) -> io::Result<bool>;

    /// Durable on return; a file that is not there is no error.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&self, file: &str) -> io::Result<()>;

    /// Atomic, and durable on return.
    ///
    /// # Errors
    /// Those of the file system.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Does work that waits for the disk without holding up other tasks.
    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T> + Send;
}

/// Does work on a file of the engine's. It panics where a file is damaged in ways that its checksums do not tell; here that is
/// an error like another.
pub(crate) fn sound<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::InvalidData, "the file is damaged")))
}

/// [`sound`] work, off the tasks' threads.
pub(crate) async fn guarded<T: Send + 'static>(
    disk: &impl Disk,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    disk.run(|| sound(work)).await
}

/// What must not wait behind what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Votes and heartbeats.
    Control,
    /// Requests and questions of clients.
    Client,
    /// Log entries.
    Bulk,
    /// Pieces of snapshots.
    Snapshot,
}

/// Why a message had no answer. Whether it arrived is not known, unless it says so.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// It was not sent.
    #[error("{node} cannot be reached: {why}")]
    Unreachable { node: Key, why: String },
    /// It may have arrived.
    #[error("no answer from {node}: {why}")]
    Broken { node: Key, why: String },
}

/// Carries frames between nodes. What arrives at the other end is given to [`crate::Node::answer`] there.
pub trait Transport: Clone + Debug + Send + Sync + 'static {
    /// Sends `frame` and waits for the answer, `limit` long.
    fn ask(
        &self,
        to: Key,
        class: Class,
        frame: Bytes,
        limit: Duration,
    ) -> impl Future<Output = Result<Bytes, TransportError>> + Send;
}

/// Files of a directory, on the runtime of the caller.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// # Errors
    /// If the directory cannot be made.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self { path: path.to_owned() })
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.path)?.sync_all()
    }
}

/// A file in which several read while one writes or waits for the disk.
#[derive(Debug)]
struct OpenFile(fs::File);

impl StorageBackend for OpenFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

impl Disk for Directory {
    fn open(&self, file: &str) -> io::Result<Box<dyn StorageBackend>> {
        let path = self.path.join(file);
        let mut options = fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let new = !path.exists();
        let opened = options.read(true).write(true).create(true).truncate(false).open(&path)?;
        if new {
            self.sync()?;
        }
        Ok(Box::new(OpenFile(opened)))
    }

    fn exists(&self, file: &str) -> io::Result<bool> {
        self.path.join(file).try_exists()
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync(),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))?;
        self.sync()
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        if tokio::runtime::Handle::current().runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread {
            return tokio::task::block_in_place(work);
        }
        match tokio::task::spawn_blocking(work).await {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}
