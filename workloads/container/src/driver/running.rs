//! What can be done with a container that runs.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::{Driver, Launcher, Place, Slot, look_up};
use crate::copy::Tree;
use crate::error::AtStep as _;
use crate::process::{self, Process};
use crate::request::{Copy, ExecRequest, Exit, RuntimeError, Stats, StreamPoint, WorkloadId};
use crate::shim::Happenings;
use crate::wire::{self, Command, Event};
use crate::{exitfile, external, rootfs, serve, shim};

/// Between two looks for the record of an end.
const RECORD_STEP: Duration = Duration::from_millis(2);

impl Driver {
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
