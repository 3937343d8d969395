//! The lab itself: its directory, its processes, its WAN.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use crate::error::{Attempt, Error, Result};
use crate::link::Prefixes;
use crate::namespace::Init;
use crate::process::ServiceInner;
use crate::site::{Site, SiteOptions};
use crate::wait::require_tools;
use crate::wan::Wan;
use crate::wan::network::NAME_SERVER;

const DIR_PREFIX: &str = "meshlab-";
const LOCK_FILE: &str = "lock";
/// Bytes from the end of each log that a failed test prints.
const LOG_TAIL_BYTES: u64 = 6 * 1024;

/// A network of sites. Everything in it ends when it is dropped.
#[derive(Debug)]
pub struct Lab {
    shared: Arc<Shared>,
}

/// How to build a [`Lab`].
#[derive(Clone, Debug)]
pub struct LabBuilder {
    seed: u64,
    keeps_dir: bool,
}

/// What the parts of a lab have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) init: Init,
    pub(crate) wan: Wan,
    pub(crate) dir: PathBuf,
    names: Mutex<BTreeSet<String>>,
    services: Mutex<Vec<Weak<ServiceInner>>>,
    next_number: Mutex<u8>,
    /// Removes the directory, unless it is kept. The lock tells other labs that it is in use.
    _dir_guard: (Option<TempDir>, Flock<File>),
}

impl Default for LabBuilder {
    fn default() -> Self {
        Self { seed: 1, keeps_dir: std::env::var_os("MESHLAB_KEEP").is_some() }
    }
}

impl LabBuilder {
    /// The seed of the WAN's dice. The default is 1.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Keeps [`Lab::dir`] with all logs; also the environment variable `MESHLAB_KEEP` does.
    #[must_use]
    pub const fn keep_dir(mut self) -> Self {
        self.keeps_dir = true;
        self
    }

    /// Builds a lab without sites.
    ///
    /// # Errors
    /// Without root, if the kernel lacks something, or without iproute2.
    pub fn build(self) -> Result<Lab> {
        require_tools(&["ip:iproute2"])?;
        sweep_dirs(&std::env::temp_dir());
        let dir =
            tempfile::Builder::new().prefix(DIR_PREFIX).tempdir().attempt(|| "make the lab's directory".into())?;
        let lock = lock_dir(dir.path()).attempt(|| format!("lock {}", dir.path().display()))?;
        let (path, dir) = if self.keeps_dir { (dir.keep(), None) } else { (dir.path().to_owned(), Some(dir)) };
        let init = Init::start().attempt(|| "make a PID and a mount namespace (needs root)".into())?;
        let wan = Wan::start(self.seed).attempt(|| "start the WAN".into())?;
        let shared = Shared {
            init,
            wan,
            dir: path,
            names: Mutex::default(),
            services: Mutex::default(),
            next_number: Mutex::new(1),
            _dir_guard: (dir, lock),
        };
        Ok(Lab { shared: Arc::new(shared) })
    }

    /// Builds a lab, runs `body` in it and takes it down. If that fails, the logs are printed.
    ///
    /// # Errors
    /// Those of [`LabBuilder::build`] and of `body`.
    pub fn run<T, E: From<Error>>(
        self,
        body: impl FnOnce(&Lab) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let lab = self.build()?;
        let result = body(&lab);
        if result.is_err() {
            lab.print_logs();
        }
        result
    }
}

impl Lab {
    #[must_use]
    pub fn builder() -> LabBuilder {
        LabBuilder::default()
    }

    /// Adds a site: a router named `NAME-router` and a LAN without hosts.
    ///
    /// # Errors
    /// If the name is taken or a device cannot be made.
    pub fn site(&self, name: &str, options: SiteOptions) -> Result<Site> {
        Site::create(&self.shared, name, options)
    }

    /// Takes public space that no site has, for [`Site::renumber`].
    ///
    /// # Errors
    /// [`Error::OutOf`] after 255.
    pub fn free_prefixes(&self) -> Result<Prefixes> {
        self.shared.free_prefixes()
    }

    /// The WAN's name server, which hosts ask by default.
    #[must_use]
    pub fn name_server(&self) -> NameServer {
        NameServer { shared: Arc::clone(&self.shared) }
    }

    /// The lab's directory, visible in hosts under the same path; gone with the lab.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Prints the last lines of every log to standard error.
    #[expect(clippy::print_stderr, reason = "it is what a failed test shows")]
    pub fn print_logs(&self) {
        for path in logs(&self.shared.dir) {
            match tail(&path) {
                Ok(text) => eprintln!("=== {}\n{text}", path.display()),
                Err(e) => eprintln!("=== {}: {e}", path.display()),
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        self.shared.end();
    }
}

impl Shared {
    pub(crate) fn reserve_name(&self, name: &str) -> Result<()> {
        let is_valid = (1..=32).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if is_valid && lock(&self.names).insert(name.to_owned()) {
            Ok(())
        } else {
            Err(Error::Name { name: name.to_owned() })
        }
    }

    pub(crate) fn free_prefixes(&self) -> Result<Prefixes> {
        let mut next = lock(&self.next_number);
        let number = *next;
        *next = number.checked_add(1).ok_or(Error::OutOf("prefixes"))?;
        Ok(Prefixes::numbered(number))
    }

    pub(crate) fn register(&self, service: &Arc<ServiceInner>) {
        let mut services = lock(&self.services);
        services.retain(|s| s.strong_count() > 0);
        services.push(Arc::downgrade(service));
    }

    /// Kills everything in the lab, whoever still holds a handle.
    fn end(&self) {
        for service in lock(&self.services).drain(..) {
            if let Some(service) = service.upgrade() {
                service.kill();
            }
        }
        self.init.kill();
    }
}

/// The name server of the WAN: A and AAAA over UDP from a table.
#[derive(Clone, Debug)]
pub struct NameServer {
    shared: Arc<Shared>,
}

impl NameServer {
    /// Its addresses.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        name_server_addresses()
    }

    /// Answers questions for `name` with these addresses, the first 16 of either family.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        self.shared.wan.network().zone.set(name, addresses.to_vec());
    }

    /// Answers that there is no such name.
    pub fn remove(&self, name: &str) {
        self.shared.wan.network().zone.remove(name);
    }

    /// Whether questions are left without any answer.
    pub fn set_silent(&self, is_silent: bool) {
        self.shared.wan.network().zone.is_silent = is_silent;
    }

    /// Questions asked so far.
    #[must_use]
    pub fn queries(&self) -> u64 {
        self.shared.wan.network().zone.queries
    }
}

pub(crate) fn name_server_addresses() -> [IpAddr; 2] {
    [Prefixes::WAN.v4_host(NAME_SERVER).into(), Prefixes::WAN.v6_host(NAME_SERVER).into()]
}

/// Locks that guard plain tables stay usable after a panic elsewhere, or a failed test could not even clean up.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Marks a directory as in use. The file appears under its name only once it is locked.
fn lock_dir(dir: &Path) -> io::Result<Flock<File>> {
    let new = dir.join("lock.new");
    let lock = Flock::lock(File::create(&new)?, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e)?;
    fs::rename(new, dir.join(LOCK_FILE))?;
    Ok(lock)
}

/// Removes the directories of labs whose process was killed before it could. What cannot be removed stays.
fn sweep_dirs(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(DIR_PREFIX) {
            continue;
        }
        // A kept directory has no lock file: whoever kept it removes it.
        let Ok(file) = File::open(path.join(LOCK_FILE)) else { continue };
        if Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok() {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn logs(dir: &Path) -> Vec<PathBuf> {
    let mut logs: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|host| fs::read_dir(host.path()).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .collect();
    logs.sort();
    logs
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
