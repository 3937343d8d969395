//! From a request to a container that runs.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{Driver, Launcher, Place, end_lost, exit_directory, look_up, record, remove_file};
use crate::bundle::{self, Bind, Plan};
use crate::cgroup::Layout;
use crate::error::{AtStep as _, StepError};
use crate::external::{self, Launch};
use crate::process::{self, Process};
use crate::request::{Degraded, HealthCheck, HeldPort, RuntimeError, StartRequest, Started, StreamPoint};
use crate::user::ResolvedUser;
use crate::{caps, exitfile, limits, rootfs, seccomp, seed, shim, wire, workdir};

/// Words of a program, and variables of its environment.
const WORDS_MAX: usize = 4_096;
/// Bytes of all of them; the kernel's own limit is of this size.
const WORDS_BYTES_MAX: usize = 1 << 20;
/// Volumes of one container.
const VOLUMES_MAX: usize = 64;
/// Bytes of one segment of a container's log, and how many are kept.
const LOG_SEGMENT_BYTES: u64 = 8 << 20;
const LOG_SEGMENTS: u32 = 4;

impl Driver {
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

/// Notes the container's first process; one that ended already is not looked for.
fn note(directory: &Path, pid: u32) -> Result<(), StepError> {
    Process::look(pid)
        .map_or(Ok(()), |process| process.note(directory, process::NAME).at("note the container's process"))
}

/// Absolute, and every component a name.
fn is_plain_absolute(path: &str) -> bool {
    let mut components = Path::new(path).components();
    let absolute = components.next() == Some(std::path::Component::RootDir);
    absolute && !path.contains('\0') && components.all(|c| matches!(c, std::path::Component::Normal(_)))
}
