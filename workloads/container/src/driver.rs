//! The driver: from a request to a container that runs, and back to a host without a trace of it.

mod running;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::cgroup::Cgroups;
use crate::error::{AtStep as _, StepError};
use crate::idmap::{self, IdMaps};
use crate::process::{self, Process};
use crate::request::{Adopted, AdoptedState, Exit, ExitCause, HostFacts, RuntimeError, WorkloadId};
use crate::user::{self, ResolvedUser, find_user};
use crate::{caps, exitfile, external, rootfs, shim};

/// What the kernel's number of CAP_SYS_RESOURCE is.
const SYS_RESOURCE: u64 = 24;
/// Copies at a time, each with a thread.
const COPIES_MAX: usize = 16;
/// How long a killed container may need to end.
const END_MAX: Duration = Duration::from_secs(10);

/// Where things are kept, and what runs containers.
#[derive(Clone, Debug)]
pub struct DriverConfig {
    /// One directory per container that does not survive the host's restart, on a tmpfs.
    pub run_directory: PathBuf,
    /// One directory per container with what it wrote.
    pub state_directory: PathBuf,
    /// The control group above all containers', absolute below each tree's mount.
    pub cgroup_parent: String,
    /// The group of the shims themselves, likewise; without one they stay in the caller's.
    pub shim_cgroup: Option<String>,
    pub launcher: Launcher,
}

/// What runs containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// The program `meshd-shim`.
    Shim(PathBuf),
    /// `crun` or `runc`: without logs, terminals, attach and exec.
    External(PathBuf),
}

/// The containers of one host. Every call blocks; each ends in bounded time.
#[derive(Debug)]
pub struct Driver {
    config: DriverConfig,
    cgroups: Arc<Cgroups>,
    maps: IdMaps,
    facts: HostFacts,
    bounding: u64,
    /// Threads that wait for the containers started or adopted here.
    waiters: Mutex<BTreeMap<WorkloadId, thread::JoinHandle<()>>>,
    /// Containers that another thread starts at this moment: half made, and not to be cleaned.
    starting: Mutex<BTreeSet<WorkloadId>>,
    /// Copies that run.
    copies: Arc<AtomicUsize>,
}

/// The right to run one copy, given back on drop.
#[derive(Debug)]
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(copies: &Arc<AtomicUsize>) -> Option<Self> {
        let more = |running| (running < COPIES_MAX).then_some(running + 1);
        copies.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Self(Arc::clone(copies)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The two directories of one container.
struct Place {
    id: String,
    run: PathBuf,
    state: PathBuf,
}

impl Place {
    /// Where the end of a container that was started is recorded.
    fn records(&self) -> PathBuf {
        exit_directory(self, self.run.join("volatile").exists())
    }
}

impl Driver {
    /// Looks at the host and makes the directories. Containers of before are told by [`Self::adopt`].
    ///
    /// # Errors
    /// A directory that cannot be made.
    pub fn open(config: DriverConfig) -> Result<Self, RuntimeError> {
        for directory in [&config.run_directory, &config.state_directory] {
            fs::create_dir_all(directory).at("make the directories of containers")?;
        }
        rootfs::make_directory(&config.state_directory, 0o700)?;
        // Others may pass: a container's root goes through here from within its user namespace.
        rootfs::make_directory(&config.run_directory, 0o711)?;
        rootfs::ensure_private_mount(&config.run_directory)?;
        let cgroups = Cgroups::probe(&config.cgroup_parent)?;
        let status = fs::read_to_string("/proc/self/status").at("read /proc/self/status")?;
        let maps = IdMaps::default();
        let facts = HostFacts {
            cgroups: cgroups.layout(),
            controllers: cgroups.usable().iter().cloned().collect(),
            user_namespaces: idmap::user_namespaces_allowed(),
            id_maps: id_maps_work(&maps, &config.state_directory),
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            sys_resource: caps::effective_set(&status) >> SYS_RESOURCE & 1 == 1,
        };
        let bounding = caps::bounding(&status);
        let (waiters, starting) = (Mutex::new(BTreeMap::new()), Mutex::new(BTreeSet::new()));
        Ok(Self {
            config,
            cgroups: Arc::new(cgroups),
            maps,
            facts,
            bounding,
            waiters,
            starting,
            copies: Arc::default(),
        })
    }

    /// What this host can do for containers.
    pub fn facts(&self) -> &HostFacts {
        &self.facts
    }

    fn place(&self, id: WorkloadId) -> Place {
        let id = id.to_string();
        Place { run: self.config.run_directory.join(&id), state: self.config.state_directory.join(&id), id }
    }

    fn watch(&self, id: WorkloadId, body: impl FnOnce() + Send + 'static) -> Result<(), RuntimeError> {
        let name = format!("wait-{:.8}", id.to_string());
        let waiter = thread::Builder::new().name(name).spawn(body).at("start a thread")?;
        self.waiters.lock().insert(id, waiter);
        Ok(())
    }

    /// Everything under the run directory, after a restart of the caller: what runs is watched again, what ended without
    /// a record is recorded as lost, what was half made is removed, and so is what nobody knows.
    ///
    /// # Errors
    /// When the run directory cannot be read. What cannot be cleaned is logged and told again by the next call.
    pub fn adopt(&self) -> Result<Vec<Adopted>, RuntimeError> {
        let mut adopted = Vec::new();
        let mut known = BTreeSet::new();
        for entry in fs::read_dir(&self.config.run_directory).at("read the run directory")? {
            let entry = entry.at("read the run directory")?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<WorkloadId>().ok()) else {
                continue;
            };
            if self.starting.lock().contains(&id) {
                known.insert(id.to_string());
                continue;
            }
            match self.adopt_one(id) {
                Ok(Some(one)) => {
                    known.insert(id.to_string());
                    adopted.push(one);
                }
                Ok(None) => {}
                Err(error) => {
                    known.insert(id.to_string());
                    tracing::warn!(%id, %error, "a container of before could not be adopted");
                }
            }
        }
        for stray in self.cgroups.present().difference(&known).filter(|name| name.parse::<WorkloadId>().is_ok()) {
            if let Err(error) = self.cgroups.remove(stray) {
                tracing::warn!(group = %stray, %error, "a control group that nobody knows could not be removed");
            }
        }
        Ok(adopted)
    }

    fn adopt_one(&self, id: WorkloadId) -> Result<Option<Adopted>, RuntimeError> {
        let place = self.place(id);
        let generation = fs::read_to_string(place.run.join("generation")).ok().and_then(|text| text.parse().ok());
        let (generation, process) =
            match (generation, Process::noted(&place.run, process::NAME), exitfile::read(&place.records())) {
                (Some(generation), _, Some(exit)) => {
                    return Ok(Some(Adopted { id, generation, state: AdoptedState::Exited(exit) }));
                }
                (Some(generation), Some(process), None) => (generation, process),
                (generation, _, _) => {
                    // Half made. What a container of that name wrote before is kept.
                    self.remove(id, generation.is_none() || !place.run.join("volatile").exists())?;
                    return Ok(None);
                }
            };
        let sync = !place.run.join("volatile").exists();
        let records = place.records();
        let running = || Ok(Some(Adopted { id, generation, state: AdoptedState::Running { pid: process.pid } }));
        let watched = self.waiters.lock().contains_key(&id);
        if place.run.join("lock").exists() {
            if shim::lives(&place.run) {
                if let Some(descriptor) = Process::noted(&place.run, shim::NAME).and_then(Process::open)
                    && !watched
                {
                    let cgroups = Arc::clone(&self.cgroups);
                    self.watch(id, move || {
                        external::wait_for_end(&descriptor, None);
                        end_lost(&cgroups, &place.id, &records, sync);
                    })?;
                }
                return running();
            }
        } else if let Some(descriptor) = process.open() {
            if !watched {
                self.watch(id, move || {
                    external::wait_for_end(&descriptor, None);
                    record(&records, &lost(), sync);
                })?;
            }
            return running();
        }
        if self.waiters.lock().get(&id).is_some_and(|waiter| !waiter.is_finished()) {
            // It ended a moment ago, and its record is being written.
            let exit = self.wait(id, END_MAX)?.ok_or(RuntimeError::Timeout { what: "end" })?;
            return Ok(Some(Adopted { id, generation, state: AdoptedState::Exited(exit) }));
        }
        self.cgroups.remove(&place.id)?;
        let exit = lost();
        exitfile::write(&records, &exit, sync)?;
        Ok(Some(Adopted { id, generation, state: AdoptedState::Exited(exit) }))
    }

    /// Ends the container where it runs and takes away all that is left of it; with `keep_upper` what it wrote stays for
    /// the next start. Nothing there is no error.
    ///
    /// # Errors
    /// What could not be taken away; the call may be repeated.
    pub fn remove(&self, id: WorkloadId, keep_upper: bool) -> Result<(), RuntimeError> {
        let place = self.place(id);
        let noted = Process::noted(&place.run, process::NAME);
        if let Some(process) = noted {
            let _gone = process.signal(9).at("kill a container")?;
        }
        self.cgroups.remove(&place.id)?;
        if let Some(process) = noted.and_then(Process::open)
            && !external::wait_for_end(&process, Some(END_MAX))
        {
            return Err(RuntimeError::Timeout { what: "end" });
        }
        shim::end(&place.run)?;
        let waiter = self.waiters.lock().remove(&id);
        if let Some(waiter) = waiter {
            // It ends with the container. A panic there is in the log already.
            let _panicked = waiter.join();
        }
        if let Launcher::External(program) = &self.config.launcher {
            external::delete(program, &place.run, &place.id);
        }
        // A shim that was ended may have made a group again while it ended its container.
        self.cgroups.remove(&place.id)?;
        rootfs::unmount_all(&place.run).at("unmount a container's root")?;
        remove_tree(&place.run).at("remove a container's run directory")?;
        if !keep_upper {
            remove_tree(&place.state).at("remove what a container wrote")?;
        }
        Ok(())
    }
}

/// A container that is to be forgotten is recorded where the host's restart forgets it as well.
fn exit_directory(place: &Place, remove: bool) -> PathBuf {
    if remove { place.run.clone() } else { place.state.clone() }
}

/// A shim ended. It tells before it goes, so where there is no record it was lost, and its container ends with it.
fn end_lost(cgroups: &Cgroups, id: &str, records: &Path, sync: bool) {
    // A directory that is gone was removed on purpose.
    if !records.is_dir() || exitfile::read(records).is_some() {
        return;
    }
    if let Err(error) = cgroups.remove(id) {
        tracing::warn!(id, %error, "a container whose shim was lost could not be ended");
    }
    record(records, &lost(), sync);
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn lost() -> Exit {
    Exit { code: 255, signal: None, oom_killed: false, at: SystemTime::now(), cause: ExitCause::ShimLost }
}

fn record(directory: &Path, exit: &Exit, sync: bool) {
    if let Err(error) = exitfile::write(directory, exit, sync) {
        tracing::warn!(%error, "how a container ended could not be recorded");
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The user by the files of the mounted root, which are followed within it only.
fn look_up(root: &Path, user: &str) -> Result<ResolvedUser, RuntimeError> {
    let directory = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let directory = directory.at("open the root")?;
    let read = |path: &str| -> Result<Vec<u8>, StepError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = match rustix::fs::openat2(&directory, path, flags, Mode::empty(), inside) {
            Ok(file) => fs::File::from(file),
            // Images need not have them; one that is no file is as good as none.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(StepError::new("read the image's users", error.into())),
        };
        if !file.metadata().at("read the image's users")?.is_file() {
            return Ok(Vec::new());
        }
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, user::FILE_BYTES_MAX), &mut text)
            .at("read the image's users")?;
        Ok(text)
    };
    Ok(find_user(user, &read("etc/passwd")?, &read("etc/group")?)?)
}

/// Tries an id map on a clone of the directory that nobody sees.
fn id_maps_work(maps: &IdMaps, directory: &Path) -> bool {
    let probe = || -> io::Result<()> {
        let namespace = maps.namespace(1 << 30)?;
        rootfs::try_id_map(directory, namespace.as_fd())
    };
    probe().is_ok()
}
