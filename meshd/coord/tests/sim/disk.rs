//! Disks that lose, tear, stall, fill up and lie.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use coordlab::mix;
use meshd_coord::env::Disk;
use openraft::AsyncRuntime as _;
use parking_lot::Mutex;
use redb::StorageBackend;

use super::coverage::Coverage;
use super::runtime::{self, NodeNumber, SimRuntime};

/// What is written whole or not at all.
const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct File {
    /// What is read now.
    content: Vec<u8>,
    /// What is there after a crash, but for sectors that were written since.
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

#[derive(Debug)]
struct State {
    node: NodeNumber,
    seed: u64,
    files: BTreeMap<String, Arc<Mutex<File>>>,
    /// Grows with each crash: handles from before do nothing any more.
    life: u64,
    bytes_max: u64,
    stalled_until_ns: u64,
    broken: bool,
    /// With which chance a sync of the log does nothing: the deliberately broken build.
    lies_per_mille: u64,
    coverage: Coverage,
    /// After so many writes and syncs the node is as good as dead.
    dies_after: Option<u64>,
}

/// The disk of one node. It outlives the node's tasks.
#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

impl Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    pub(crate) fn new(node: NodeNumber, seed: u64, coverage: Coverage) -> Self {
        Self(Arc::new(Mutex::new(State {
            node,
            seed: mix(seed ^ node as u64),
            files: BTreeMap::new(),
            life: 0,
            bytes_max: u64::MAX,
            stalled_until_ns: 0,
            broken: false,
            lies_per_mille: 0,
            coverage,
            dies_after: None,
        })))
    }

    fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.0.lock()
    }

    /// What was not synced is lost, kept or torn, sector by sector.
    pub(crate) fn crash(&self) {
        let mut state = self.state();
        state.life += 1;
        state.dies_after = None;
        let (seed, life) = (state.seed, state.life);
        let all_is_lost = mix(seed ^ life).is_multiple_of(3);
        for (name, file) in &state.files {
            let mut file = file.lock();
            let (mut kept, mut lost) = (0, 0);
            let name = name.bytes().fold(seed ^ life, |hash, byte| mix(hash ^ u64::from(byte)));
            let mut after = file.durable.clone();
            // Longer files may have become so, or not yet.
            if mix(name).is_multiple_of(2) {
                after.resize(file.content.len(), 0);
            }
            for sector in &file.dirty {
                let (from, to) = (sector * SECTOR, (sector + 1) * SECTOR);
                if all_is_lost || mix(name ^ *sector as u64).is_multiple_of(2) {
                    lost += 1;
                    continue;
                }
                kept += 1;
                let to = to.min(file.content.len()).min(after.len());
                if from < to {
                    after[from..to].copy_from_slice(&file.content[from..to]);
                }
            }
            file.content.clone_from(&after);
            file.durable = after;
            file.dirty.clear();
            match (kept, lost) {
                (0, 1..) => state.coverage.count("disk: unsynced writes lost in a crash"),
                (1.., 1..) => state.coverage.count("disk: unsynced writes torn in a crash"),
                _ => {}
            }
        }
    }

    pub(crate) fn set_room(&self, bytes_max: u64) {
        self.state().bytes_max = bytes_max;
    }

    pub(crate) fn used(&self) -> u64 {
        self.state().files.values().map(|file| file.lock().content.len() as u64).sum()
    }

    pub(crate) fn stall(&self, time: Duration) {
        self.state().stalled_until_ns = runtime::now_ns() + u64::try_from(time.as_nanos()).expect("short");
    }

    pub(crate) fn set_broken(&self, broken: bool) {
        self.state().broken = broken;
    }

    pub(crate) fn set_lies(&self, per_mille: u64) {
        self.state().lies_per_mille = per_mille;
    }

    /// The node dies in the middle of its writes, after so many.
    pub(crate) fn die_after(&self, writes: u64) {
        self.state().dies_after = Some(writes);
    }

    /// Whether [`Self::die_after`] has come.
    pub(crate) fn is_dying(&self) -> bool {
        self.state().dies_after == Some(0)
    }
}

impl State {
    /// Whether something may still be done by who opened in that life.
    fn check(&mut self, life: u64, write: bool) -> io::Result<()> {
        if self.life != life || self.dies_after == Some(0) {
            return Err(io::Error::other("the node is dead"));
        }
        if self.broken {
            self.coverage.count("disk: input/output error");
            return Err(io::Error::other("input/output error"));
        }
        if write && let Some(left) = &mut self.dies_after {
            *left -= 1;
        }
        Ok(())
    }
}

impl State {
    /// Whether a file may be so long.
    fn check_room(&self, used: u64, file: &File, len: usize) -> io::Result<()> {
        let grown = len.saturating_sub(file.content.len()) as u64;
        if grown > 0 && used + grown > self.bytes_max {
            self.coverage.count("disk: full");
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Backend {
    disk: SimDisk,
    file: Arc<Mutex<File>>,
    is_log: bool,
    life: u64,
}

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        self.disk.state().check(self.life, false)?;
        Ok(self.file.lock().content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.disk.state().check(self.life, false)?;
        let file = self.file.lock();
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let found = file.content.get(from..from + out.len());
        out.copy_from_slice(found.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        let used = self.disk.used();
        let mut state = self.disk.state();
        state.check(self.life, true)?;
        let mut file = self.file.lock();
        let len = usize::try_from(len).map_err(io::Error::other)?;
        state.check_room(used, &file, len)?;
        file.content.resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut state = self.disk.state();
        state.check(self.life, true)?;
        if self.is_log && runtime::random() % 1_000 < state.lies_per_mille {
            return Ok(());
        }
        let mut file = self.file.lock();
        let File { content, durable, dirty } = &mut *file;
        durable.resize(content.len(), 0);
        for sector in std::mem::take(dirty) {
            let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(content.len()));
            if from < to {
                durable[from..to].copy_from_slice(&content[from..to]);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let used = self.disk.used();
        let mut state = self.disk.state();
        state.check(self.life, true)?;
        let mut file = self.file.lock();
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let to = from + data.len();
        state.check_room(used, &file, to)?;
        if to > file.content.len() {
            file.content.resize(to, 0);
        }
        file.content[from..to].copy_from_slice(data);
        file.dirty.extend(from / SECTOR..to.div_ceil(SECTOR));
        Ok(())
    }
}

impl Disk for SimDisk {
    fn open(&self, file: &str) -> io::Result<Box<dyn StorageBackend>> {
        let mut state = self.state();
        let life = state.life;
        state.check(life, false)?;
        let is_log = file.ends_with(".log");
        let file = Arc::clone(state.files.entry(file.to_owned()).or_default());
        Ok(Box::new(Backend { disk: self.clone(), file, is_log, life }))
    }

    fn exists(&self, file: &str) -> io::Result<bool> {
        Ok(self.state().files.contains_key(file))
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        let mut state = self.state();
        let life = state.life;
        state.check(life, true)?;
        state.files.remove(file);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        let life = state.life;
        state.check(life, true)?;
        let file = state.files.remove(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        state.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T> + Send {
        let disk = self.clone();
        async move {
            let (wait, node) = {
                let state = disk.state();
                let stalled = state.stalled_until_ns.saturating_sub(runtime::now_ns());
                if stalled > 0 {
                    state.coverage.count("disk: work stalled");
                }
                let usual = 50_000 + runtime::random() % 1_500_000;
                (Duration::from_nanos(stalled + usual), state.node)
            };
            SimRuntime::sleep(wait).await;
            let value = work();
            if disk.is_dying() {
                // Nothing of the node goes on from here; the test finds it and buries it.
                runtime::note(node as u64);
                std::future::pending::<()>().await;
            }
            value
        }
    }
}
