//! The driver: from a request to a container that runs, and back to a host without a trace of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::bundle::{self, Bind, Plan};
use crate::cgroup::{Cgroups, Layout};
use crate::copy::Tree;
use crate::error::{AtStep, StepError};
use crate::external::{self, Launch};
use crate::idmap::{self, IdMaps};
use crate::process::{self, Process};
use crate::request::{
    Adopted, AdoptedState, Copy, Degraded, ExecRequest, Exit, ExitCause, HealthCheck, HeldPort, HostFacts,
    RuntimeError, StartRequest, Started, Stats, StreamPoint, WorkloadId,
};
use crate::shim::Happenings;
use crate::user::{self, ResolvedUser, find_user};
use crate::wire::{self, Command, Event};
use crate::{caps, exitfile, limits, rootfs, seccomp, seed, serve, shim, workdir};

/// What the kernel's number of CAP_SYS_RESOURCE is.
const SYS_RESOURCE: u64 = 24;
/// Words of a program, and variables of its environment.
const WORDS_MAX: usize = 4_096;
/// Bytes of all of them; the kernel's own limit is of this size.
const WORDS_BYTES_MAX: usize = 1 << 20;
/// Copies at a time, each with a thread.
const COPIES_MAX: usize = 16;
/// Volumes of one container.
const VOLUMES_MAX: usize = 64;
/// How long a killed container may need to end.
const END_MAX: Duration = Duration::from_secs(10);
/// Between two looks for the record of an end.
const RECORD_STEP: Duration = Duration::from_millis(2);

/// Bytes of one segment of a container's log, and how many are kept.
const LOG_SEGMENT_BYTES: u64 = 8 << 20;
const LOG_SEGMENTS: u32 = 4;

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

    /// Starts a container and returns when its first process exists.
    ///
    /// # Errors
    /// [`RuntimeError::Refused`] for what cannot be run here or is running already. Nothing is left of a failed start but
    /// what an earlier start of the same container wrote.
    pub fn start(&self, request: &StartRequest) -> Result<Started, RuntimeError> {
        self.start_attached(request, &mut |_| {})
    }

    /// Like [`Self::start`]; with [`StartRequest::hold_for_attach`] `created` is told where the program's streams are while
    /// it waits for somebody to come there.
    ///
    /// # Errors
    /// Those of [`Self::start`].
    pub fn start_attached(
        &self,
        request: &StartRequest,
        created: &mut dyn FnMut(StreamPoint),
    ) -> Result<Started, RuntimeError> {
        let args = self.check(request)?;
        if !self.starting.lock().insert(request.id) {
            return Err(RuntimeError::Refused { why: format!("container {} is being started", request.id) });
        }
        let started = self.start_checked(request, &args, created);
        self.starting.lock().remove(&request.id);
        started
    }

    fn start_checked(
        &self,
        request: &StartRequest,
        args: &[String],
        created: &mut dyn FnMut(StreamPoint),
    ) -> Result<Started, RuntimeError> {
        let place = self.place(request.id);
        let known = place.state.exists();
        match fs::create_dir(&place.run) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(RuntimeError::Refused { why: format!("container {} is here already", place.id) });
            }
            made => made.at("make the run directory of a container")?,
        }
        self.bring_up(request, &place, args, created).inspect_err(|_| {
            if let Err(error) = self.remove(request.id, known) {
                tracing::warn!(id = place.id, %error, "what a failed start left could not be removed");
            }
        })
    }

    /// What can be told before anything is made. Returns the program's words as text.
    fn check(&self, request: &StartRequest) -> Result<Vec<String>, RuntimeError> {
        let refuse = |why: &str| Err(RuntimeError::Refused { why: why.to_owned() });
        if request.security.user_namespace && !(self.facts.user_namespaces && self.facts.id_maps) {
            return refuse("this host cannot map the ids of an image into a user namespace");
        }
        let external = matches!(self.config.launcher, Launcher::External(_));
        if external && (request.tty || request.stdin || request.hold_for_attach) {
            return refuse("an external runtime gives containers no terminal and no input");
        }
        if external && (request.health.is_some() || !request.held_ports.is_empty()) {
            return refuse("an external runtime checks no health and holds no ports");
        }
        let args: Result<Vec<String>, _> = request.args.iter().cloned().map(String::from_utf8).collect();
        let Ok(args) = args else { return refuse("a bundle takes no arguments that are not UTF-8") };
        if args.first().is_none_or(String::is_empty) {
            return refuse("the image names no program, and none was given");
        }
        let environment = request.env.iter().flat_map(|(name, value)| [name, value]);
        let words: Vec<&String> = args.iter().chain(environment).collect();
        if words.len() > WORDS_MAX || words.iter().map(|word| word.len() + 1).sum::<usize>() > WORDS_BYTES_MAX {
            return refuse("the program's arguments and environment are too long");
        }
        if words.iter().any(|word| word.contains('\0')) || request.env.iter().any(|(name, _)| name.contains('=')) {
            return refuse("an argument or variable holds a NUL byte, or a variable's name an equals sign");
        }
        let targets = request.volumes.iter().map(|volume| volume.target.as_str());
        if !targets.chain([request.workdir.as_str()]).all(is_plain_absolute) {
            return refuse("volumes and the working directory need absolute paths without . and ..");
        }
        if request.volumes.len() > VOLUMES_MAX {
            return refuse("there are too many volumes");
        }
        let security = &request.security;
        let names = security.add_capabilities.iter().chain(&security.drop_capabilities);
        if let Some(unknown) = names.into_iter().find(|name| !caps::ALL.contains(&name.as_str())) {
            return refuse(&format!("there is no capability {unknown}"));
        }
        Ok(args)
    }

    fn bring_up(
        &self,
        request: &StartRequest,
        place: &Place,
        args: &[String],
        created: &mut dyn FnMut(StreamPoint),
    ) -> Result<Started, RuntimeError> {
        let id_map = if request.security.user_namespace {
            Some(self.maps.namespace(request.uid_base).at("make the user namespace")?)
        } else {
            None
        };
        let base = id_map.as_ref().map(|_| request.uid_base);
        // The container's root passes by its group; what lies here is the host's. It may also open the directory: the library
        // that mounts does so to learn whether the kernel has openat2, and walks every path by hand where it may not.
        rootfs::make_directory(&place.run, 0o750)?;
        chown(&place.run, Some(0), Some(base.unwrap_or(0))).at("give the run directory its group")?;
        fs::write(place.run.join("generation"), request.generation.to_string()).at("note the generation")?;
        if request.remove {
            fs::write(place.run.join("volatile"), "").at("note that nothing is kept")?;
        }
        rootfs::make_directory(&place.state, 0o700)?;
        let root = rootfs::mount_root(&rootfs::Root {
            directory: &place.run,
            layer_directory: &request.root.directory,
            layers: &request.root.layers,
            root_layer: request.root.root_layer.as_deref(),
            state: &place.state,
            id_map: id_map.as_ref().zip(base).map(|(namespace, base)| (namespace.as_fd(), base)),
            volatile: request.remove,
        })?;
        for volume in request.volumes.iter().filter(|volume| volume.seed) {
            seed::fill(&root, &volume.target, &volume.source, base.unwrap_or(0)).at("fill a volume")?;
        }
        workdir::make(&root, &request.workdir, base.unwrap_or(0)).at("make the working directory")?;
        let sysfs = place.run.join("sys");
        rootfs::mount_sysfs(&request.netns, &sysfs)?;
        let user = look_up(&root, &request.user)?;
        let mut degraded = Vec::new();
        let binds = self.binds(request, place, id_map.as_deref(), &mut degraded)?;
        let filter = self.write_bundle(request, place, args, &user, base, &root, &sysfs, &binds, &mut degraded)?;
        let records = exit_directory(place, request.remove);
        remove_file(&records.join(exitfile::NAME)).at("forget an end of before")?;
        let pid = match &self.config.launcher {
            Launcher::Shim(program) => self.run_shim(request, place, program, filter, records, created)?,
            Launcher::External(program) => {
                degraded.push(Degraded { what: "logs", why: "an external runtime keeps no output".to_owned() });
                self.run_external(request, place, program, records)?
            }
        };
        Ok(Started { pid, degraded })
    }

    fn run_shim(
        &self,
        request: &StartRequest,
        place: &Place,
        program: &Path,
        filter: Vec<u8>,
        records: PathBuf,
        created: &mut dyn FnMut(StreamPoint),
    ) -> Result<u32, RuntimeError> {
        let text = |path: &Path| -> Result<String, RuntimeError> {
            let refused = || RuntimeError::Refused { why: format!("{} is no UTF-8 path", path.display()) };
            path.to_str().map(str::to_owned).ok_or_else(refused)
        };
        let log = place.state.join("log");
        rootfs::make_directory(&log, 0o700)?;
        let config = wire::Config {
            id: place.id.clone(),
            generation: request.generation,
            netns: Some(text(&request.netns)?),
            filter,
            tty: request.tty,
            stdin: request.stdin,
            hold_for_attach: request.hold_for_attach,
            cgroup: self.cgroups.bundle_path(&place.id),
            shim_cgroup: self.config.shim_cgroup.clone(),
            log_directory: Some(text(&log)?),
            log_segment_bytes: LOG_SEGMENT_BYTES,
            log_segments: LOG_SEGMENTS,
            exit_file: text(&records.join(exitfile::NAME))?,
            durable: !request.remove,
            held: request.held_ports.iter().map(held).collect(),
            health: request.health.as_ref().map(health),
        };
        let running = shim::run(&shim::Launch { program, directory: &place.run, config: &config }, created)?;
        let pid = running.pid;
        note(&place.run, pid)?;
        let (cgroups, id, sync) = (Arc::clone(&self.cgroups), place.id.clone(), !request.remove);
        self.watch(request.id, move || {
            running.wait();
            end_lost(&cgroups, &id, &records, sync);
        })?;
        Ok(pid)
    }

    fn run_external(
        &self,
        request: &StartRequest,
        place: &Place,
        program: &Path,
        records: PathBuf,
    ) -> Result<u32, RuntimeError> {
        let (netns, hidden) = (&request.netns, self.cgroups.hidden());
        let running = external::run(&Launch { program, directory: &place.run, id: &place.id, netns, hidden })?;
        let pid = running.pid;
        note(&place.run, pid)?;
        let (cgroups, id, sync) = (Arc::clone(&self.cgroups), place.id.clone(), !request.remove);
        self.watch(request.id, move || {
            let exit = running.wait(|| cgroups.usage(&id).oom_kills);
            record(&records, &exit, sync);
        })?;
        Ok(pid)
    }

    fn watch(&self, id: WorkloadId, body: impl FnOnce() + Send + 'static) -> Result<(), RuntimeError> {
        let name = format!("wait-{:.8}", id.to_string());
        let waiter = thread::Builder::new().name(name).spawn(body).at("start a thread")?;
        self.waiters.lock().insert(id, waiter);
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "what was looked up for one bundle, in one place")]
    fn write_bundle(
        &self,
        request: &StartRequest,
        place: &Place,
        args: &[String],
        user: &ResolvedUser,
        base: Option<u32>,
        root: &Path,
        sysfs: &Path,
        binds: &[Bind],
        degraded: &mut Vec<Degraded>,
    ) -> Result<Vec<u8>, RuntimeError> {
        let security = &request.security;
        let add: Vec<&str> = security.add_capabilities.iter().map(String::as_str).collect();
        let drop: Vec<&str> = security.drop_capabilities.iter().map(String::as_str).collect();
        let capabilities = caps::effective(security.privileged, security.user_namespace, &add, &drop, self.bounding);
        let (resources, missing) = limits::resources(&request.limits, self.cgroups.usable());
        degraded.extend(missing);
        if base.is_none() && !self.cgroups.usable().contains("devices") {
            degraded.push(Degraded { what: "device rules", why: "this host has no controller for devices".to_owned() });
        }
        let wanted = security.seccomp && !security.privileged;
        // The kernel takes a filter from the unprivileged only together with the promise to gain no privileges.
        let filtered = wanted && security.no_new_privs;
        if wanted && !filtered {
            let why = "a program that may gain privileges cannot be filtered".to_owned();
            degraded.push(Degraded { what: "seccomp", why });
        }
        let held: Vec<&str> = capabilities.iter().copied().collect();
        let external = matches!(self.config.launcher, Launcher::External(_));
        let profile = (filtered && external).then(|| seccomp::oci_profile(&held));
        let filter = if filtered { seccomp::program(&held).map_err(io::Error::other) } else { Ok(Vec::new()) };
        let filter = filter.at("compile the list of system calls")?;
        let mut env = request.env.clone();
        if env.iter().all(|(name, _)| name != "HOME") {
            env.push(("HOME".to_owned(), user.home.clone()));
        }
        let here = |path: &&&str| Path::new(path).exists();
        let masked: Vec<&str> = bundle::MASKED.iter().filter(here).copied().collect();
        let read_only: Vec<&str> = bundle::READ_ONLY.iter().filter(here).copied().collect();
        let score =
            fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse::<i32>().ok());
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let config = bundle::config(&Plan {
            args,
            env: &env,
            workdir: &request.workdir,
            uid: user.uid,
            gid: user.gid,
            groups: &user.groups,
            tty: request.tty,
            hostname: &request.hostname,
            capabilities: &capabilities,
            no_new_privs: security.no_new_privs,
            read_only: security.read_only,
            privileged: security.privileged,
            uid_base: base,
            cgroup_path: &self.cgroups.bundle_path(&place.id),
            cgroup_namespace: Path::new("/proc/self/ns/cgroup").exists(),
            cgroup_mount: self.cgroups.layout() != Layout::Absent,
            resources: &resources,
            rlimits: &limits::rlimits(files),
            // A daemon that the host protects must not pass its protection on.
            oom_score_adj: score.filter(|score| *score < 0).map(|_| 0),
            root,
            sysfs,
            binds,
            seccomp: profile.as_ref(),
            masked: &masked,
            read_only_paths: &read_only,
        });
        fs::write(place.run.join("config.json"), config.to_string()).at("write the bundle")?;
        Ok(filter)
    }

    /// Names and resolver, then the volumes, each mounted in the run directory first: the container's root could neither
    /// reach nor map them where they are.
    fn binds(
        &self,
        request: &StartRequest,
        place: &Place,
        userns: Option<&OwnedFd>,
        degraded: &mut Vec<Degraded>,
    ) -> Result<Vec<Bind>, RuntimeError> {
        let mut binds = Vec::new();
        let hostname = format!("{}\n", request.hostname);
        for (name, text) in [("resolv.conf", &request.resolv_conf), ("hosts", &request.hosts), ("hostname", &hostname)]
        {
            let source = place.run.join(name);
            fs::write(&source, text).at("write the names for a container")?;
            rootfs::set_mode(&source, 0o644)?;
            // Read-only: the file lies in the host's memory, which the container must not fill.
            binds.push(Bind { source, target: format!("/etc/{name}"), read_only: true });
        }
        if request.volumes.is_empty() {
            return Ok(binds);
        }
        let all = place.run.join(rootfs::VOLUMES);
        rootfs::make_directory(&all, 0o711)?;
        for (number, volume) in request.volumes.iter().enumerate() {
            let target = all.join(number.to_string());
            let source = fs::metadata(&volume.source).at("look at a volume")?;
            if source.is_dir() {
                rootfs::make_directory(&target, 0o755)?;
            } else {
                fs::write(&target, "").at("make a file to mount a volume on")?;
            }
            if let Err(error) = rootfs::attach_clone(&volume.source, &target, userns.map(AsFd::as_fd), false) {
                // A filesystem without id maps: the container sees the owners as nobody.
                if userns.is_none() || error.source.raw_os_error() != Some(libc::EINVAL) {
                    return Err(error.into());
                }
                rootfs::attach_clone(&volume.source, &target, None, false)?;
                let why = format!("the filesystem of {} cannot map ids", volume.source.display());
                degraded.push(Degraded { what: "owners in a volume", why });
            }
            binds.push(Bind { source: target, target: volume.target.clone(), read_only: volume.read_only });
        }
        Ok(binds)
    }

    /// Sends a signal to the container's first process.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] where none runs.
    pub fn signal(&self, id: WorkloadId, signal: u8) -> Result<(), RuntimeError> {
        let process = Process::noted(&self.place(id).run, process::NAME).ok_or(RuntimeError::NotFound { id })?;
        let sent = process.signal(signal).at("send a signal")?;
        if sent { Ok(()) } else { Err(RuntimeError::NotFound { id }) }
    }

    /// Ends the container: `signal`, and SIGKILL to all of it after `grace`. Its end is told as any other; the shim keeps
    /// the promise even if the caller goes away.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] where none runs.
    pub fn stop(&self, id: WorkloadId, signal: u8, grace: Duration) -> Result<(), RuntimeError> {
        if matches!(self.config.launcher, Launcher::External(_)) {
            self.signal(id, signal)?;
            if self.wait(id, grace)?.is_none() {
                self.signal(id, 9)?;
            }
            return Ok(());
        }
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let control = self.control(id, &self.place(id))?;
        Ok(control.send(&Command::Stop { signal, grace_ms })?)
    }

    /// What happens to a container from now on, and what happened last.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] where it has no shim that lives: [`Self::wait`] tells its end.
    pub fn happenings(&self, id: WorkloadId) -> Result<Happenings, RuntimeError> {
        Ok(Happenings::of(self.control(id, &self.place(id))?)?)
    }

    /// Lets what keeps an ended container go, once those who are attached have heard everything; [`Self::remove`] cuts them
    /// off.
    ///
    /// # Errors
    /// It did not go within `limit`, or the container still runs.
    pub fn reap(&self, id: WorkloadId, limit: Duration) -> Result<(), RuntimeError> {
        match &self.config.launcher {
            Launcher::Shim(_) => shim::reap(&self.place(id).run, limit),
            Launcher::External(_) => Ok(()),
        }
    }

    /// Where what belongs to a container alone is kept, beside what it wrote.
    #[must_use]
    pub fn own_directory(&self, id: WorkloadId) -> PathBuf {
        self.place(id).state
    }

    /// Where the segments of a container's log are.
    #[must_use]
    pub fn log_directory(&self, id: WorkloadId) -> PathBuf {
        self.place(id).state.join("log")
    }

    /// How the container ended, waiting at most `limit` for it; nothing while it still runs.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`].
    pub fn wait(&self, id: WorkloadId, limit: Duration) -> Result<Option<Exit>, RuntimeError> {
        let place = self.place(id);
        if !place.run.is_dir() {
            return Err(RuntimeError::NotFound { id });
        }
        let end = Instant::now() + limit;
        if let Some(process) = Process::noted(&place.run, process::NAME).and_then(Process::open)
            && !external::wait_for_end(&process, Some(limit))
        {
            return Ok(None);
        }
        loop {
            if let Some(exit) = exitfile::read(&place.records()) {
                return Ok(Some(exit));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            thread::sleep(RECORD_STEP);
        }
    }

    /// Runs one more program in the container; its streams are behind the answer.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] where none runs, [`RuntimeError::Refused`] with the shim's reason.
    pub fn exec(&self, id: WorkloadId, request: &ExecRequest) -> Result<StreamPoint, RuntimeError> {
        let place = self.place(id);
        let control = self.control(id, &place)?;
        let user = match &request.user {
            Some(user) => {
                let user = look_up(&place.run.join("root"), user)?;
                Some((user.uid, user.gid, user.groups))
            }
            None => None,
        };
        let command = Command::Exec(wire::Exec {
            args: request.args.iter().cloned().map(Into::into).collect(),
            env: request.env.clone(),
            workdir: request.workdir.clone(),
            user,
            tty: request.tty,
            stdin: request.stdin,
        });
        let token = control.ask(&command, |event| match event {
            Event::ExecStarted { token, .. } => Some(*token),
            _ => None,
        })?;
        Ok(StreamPoint { socket: shim::streams(&place.run), token })
    }

    /// The streams of the container's own program.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub fn attach(&self, id: WorkloadId) -> Result<StreamPoint, RuntimeError> {
        let place = self.place(id);
        let token = self.control(id, &place)?.ask(&Command::Attach, |event| match event {
            Event::Attached { token } => Some(*token),
            _ => None,
        })?;
        Ok(StreamPoint { socket: shim::streams(&place.run), token })
    }

    /// Copies a file or directory out of the container or a tar stream into it, running or not; the stream is behind the
    /// answer for ten seconds.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], [`RuntimeError::Refused`] when too many copies run.
    pub fn copy(&self, id: WorkloadId, direction: Copy, path: &Path) -> Result<StreamPoint, RuntimeError> {
        let place = self.place(id);
        let run = match fs::metadata(&place.run) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(RuntimeError::NotFound { id }),
            run => run.at("look at a container's run directory")?,
        };
        // What runs is seen with its volumes. The descriptor is opened before the process is looked at once more.
        let process = Process::noted(&place.run, process::NAME);
        let alive = process.and_then(|process| {
            let tree = Tree::open(Path::new(&format!("/proc/{}/root", process.pid)), run.gid()).ok()?;
            process.open().map(|_| tree)
        });
        let tree = match alive {
            Some(tree) => tree,
            None => Tree::open(&place.run.join("root"), run.gid()).at("open a container's root")?,
        };
        let (mut name, mut token) = ([0; 4], [0; 16]);
        let none = rustix::rand::GetRandomFlags::empty();
        rustix::rand::getrandom(&mut name, none).at("draw a name")?;
        rustix::rand::getrandom(&mut token, none).at("draw a token")?;
        let socket = place.run.join(format!("copy-{:08x}", u32::from_ne_bytes(name)));
        let slot =
            Slot::take(&self.copies).ok_or_else(|| RuntimeError::Refused { why: "too many copies run".into() })?;
        let listener = UnixListener::bind(&socket).at("make the socket of a copy")?;
        rootfs::set_mode(&socket, 0o600)?;
        let job = serve::Job { tree, direction, path: path.to_path_buf(), token };
        let point = StreamPoint { socket: socket.clone(), token };
        let body = move || {
            serve::serve(&listener, &socket, &job);
            drop(slot);
        };
        thread::Builder::new().name("copy".to_owned()).spawn(body).at("start a thread")?;
        Ok(point)
    }

    fn control(&self, id: WorkloadId, place: &Place) -> Result<shim::Control, RuntimeError> {
        if matches!(self.config.launcher, Launcher::External(_)) {
            return Err(RuntimeError::Refused { why: "an external runtime has no streams".to_owned() });
        }
        if !shim::lives(&place.run) {
            return Err(RuntimeError::NotFound { id });
        }
        Ok(shim::Control::connect(&place.run)?)
    }

    /// What the container used up to now.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`].
    pub fn stats(&self, id: WorkloadId) -> Result<Stats, RuntimeError> {
        let place = self.place(id);
        if !place.run.is_dir() {
            return Err(RuntimeError::NotFound { id });
        }
        let usage = self.cgroups.usage(&place.id);
        let (received_bytes, sent_bytes) = traffic(&place.run.join("sys/class/net"));
        Ok(Stats {
            cpu_ns: usage.cpu_ns,
            memory_bytes: usage.memory_bytes,
            memory_bytes_max: usage.memory_bytes_max,
            pids: usage.pids,
            oom_kills: usage.oom_kills,
            received_bytes,
            sent_bytes,
        })
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

fn held(port: &HeldPort) -> wire::Held {
    wire::Held { address: port.address.map(|address| address.to_string()), port: port.port, udp: port.udp }
}

fn health(check: &HealthCheck) -> wire::HealthCheck {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    wire::HealthCheck {
        args: check.args.iter().cloned().map(Into::into).collect(),
        interval_ms: millis(check.interval),
        timeout_ms: millis(check.timeout),
        retries: check.retries,
        start_period_ms: millis(check.start_period),
    }
}

/// A container that is to be forgotten is recorded where the host's restart forgets it as well.
fn exit_directory(place: &Place, remove: bool) -> PathBuf {
    if remove { place.run.clone() } else { place.state.clone() }
}

/// Notes the container's first process; one that ended already is not looked for.
fn note(directory: &Path, pid: u32) -> Result<(), StepError> {
    Process::look(pid)
        .map_or(Ok(()), |process| process.note(directory, process::NAME).at("note the container's process"))
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

/// Absolute, and every component a name.
fn is_plain_absolute(path: &str) -> bool {
    let mut components = Path::new(path).components();
    let absolute = components.next() == Some(std::path::Component::RootDir);
    absolute && !path.contains('\0') && components.all(|c| matches!(c, std::path::Component::Normal(_)))
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

/// Bytes received and sent over all links but the loopback, by a sysfs.
fn traffic(links: &Path) -> (u64, u64) {
    let Ok(entries) = fs::read_dir(links) else { return (0, 0) };
    let names = entries.filter_map(Result::ok).filter(|link| link.file_name() != "lo");
    let count = |link: &Path, name: &str| -> u64 {
        let text = fs::read_to_string(link.join("statistics").join(name)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    names.map(|link| link.path()).fold((0, 0), |(received, sent), link| {
        (received.saturating_add(count(&link, "rx_bytes")), sent.saturating_add(count(&link, "tx_bytes")))
    })
}

/// Tries an id map on a clone of the directory that nobody sees.
fn id_maps_work(maps: &IdMaps, directory: &Path) -> bool {
    let probe = || -> io::Result<()> {
        let namespace = maps.namespace(1 << 30)?;
        rootfs::try_id_map(directory, namespace.as_fd())
    };
    probe().is_ok()
}
