//! The shim: a parent of one container that outlives this process. It is started here, and spoken to by one socket.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags};

use crate::error::{AtStep, StepError};
use crate::external::wait_for_end;
use crate::process::Process;
use crate::request::{Exit, ExitCause, Happening, HealthState, RuntimeError, StreamPoint};
use crate::sys;
use crate::wire::{self, Command, Config, Event, MESSAGE_BYTES_MAX};

/// How long a container may need until it runs.
const START_MAX: Duration = Duration::from_secs(30);
/// How long a shim may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Bytes of a shim's own words that are repeated.
const MESSAGE_WORDS_MAX: u64 = 4_096;
/// Name under which the shim's process is noted.
pub(crate) const NAME: &str = "shim";

/// One container to be run by a shim.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The program `meshd-shim`.
    pub(crate) program: &'a Path,
    /// The container's run directory, with `config.json`.
    pub(crate) directory: &'a Path,
    pub(crate) config: &'a Config,
}

/// A container that runs under a shim that is our child.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    shim: Child,
}

/// A shim that we started: reaped when it is dropped, or before.
#[derive(Debug)]
struct Child {
    pid: Pid,
    process: OwnedFd,
}

impl Child {
    fn kill(&self) {
        // It may have ended already.
        let _gone = rustix::process::pidfd_send_signal(&self.process, rustix::process::Signal::KILL);
    }

    fn reap(&self) {
        wait_for_end(&self.process, None);
        // Somebody else may have reaped it; it is gone either way.
        let _status = rustix::process::waitpid(Some(self.pid), rustix::process::WaitOptions::empty());
    }
}

/// Starts the shim and, by it, the container; returns when the container's program runs. Where the program is held for
/// somebody who attaches, `created` is told where its streams are before that.
///
/// # Errors
/// [`RuntimeError::Shim`] with what the shim said; it is gone then.
pub(crate) fn run(launch: &Launch<'_>, created: &mut dyn FnMut(StreamPoint)) -> Result<Running, RuntimeError> {
    let path = launch.directory.join("shim.cbor");
    fs::write(path, wire::encode(launch.config)).at("write the shim's configuration")?;
    let errors = fs::File::create(launch.directory.join("shim.err")).at("make a file for the shim's errors")?;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .at("make the shim's control socket")?;
    let pid = sys::spawn(launch.program, launch.directory, errors.as_fd(), theirs.as_fd()).at("start meshd-shim")?;
    drop(theirs);
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).at("watch the shim")?;
    let shim = Child { pid, process };
    if let Some(process) = Process::look(pid.as_raw_nonzero().get().unsigned_abs()) {
        process.note(launch.directory, NAME).at("note the shim's process")?;
    }
    match greet(&Control(ours), launch, created) {
        Ok(pid) => Ok(Running { pid, shim }),
        Err(error) => {
            shim.kill();
            shim.reap();
            Err(match error {
                // It ended without a word on the socket.
                RuntimeError::Host { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof => {
                    RuntimeError::Shim { message: last_words(launch.directory) }
                }
                error => error,
            })
        }
    }
}

/// `Created`, `Attach` where somebody is waited for, `Start`, `Started`.
fn greet(control: &Control, launch: &Launch<'_>, created: &mut dyn FnMut(StreamPoint)) -> Result<u32, RuntimeError> {
    let end = Instant::now() + START_MAX;
    let mut pid = None;
    loop {
        match control.receive(end)? {
            Event::Created { pid: first } => {
                pid = Some(first);
                if launch.config.hold_for_attach {
                    control.send(&Command::Attach)?;
                } else {
                    control.send(&Command::Start)?;
                }
            }
            Event::Attached { token } => {
                created(StreamPoint { socket: streams(launch.directory), token });
                control.send(&Command::Start)?;
            }
            Event::Started => {
                return pid.ok_or_else(|| RuntimeError::Shim { message: "no process was made".to_owned() });
            }
            // It ran and ended between two messages.
            Event::Exited(exit) if !exit.start_failed => {
                return pid.ok_or_else(|| RuntimeError::Shim { message: "no process was made".to_owned() });
            }
            Event::Failed { step, message, code } => return Err(RuntimeError::Failed { step, message, code }),
            Event::Refused { why: message } => return Err(RuntimeError::Shim { message }),
            _ => {}
        }
    }
}

impl Running {
    /// Blocks until the shim ended. It stays until it is told to go, so one that ends by itself was lost.
    pub(crate) fn wait(self) {
        self.shim.reap();
    }
}

/// A connection to a shim.
#[derive(Debug)]
pub(crate) struct Control(OwnedFd);

impl Control {
    /// Connects to the shim of a container.
    ///
    /// # Errors
    /// There is none any more.
    pub(crate) fn connect(directory: &Path) -> Result<Self, StepError> {
        let step = "speak to a container's shim";
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let socket = socket.at(step)?;
        // By the directory's descriptor: a long path does not fit into a socket's address.
        let opened = fs::File::open(directory).at(step)?;
        let path = format!("/proc/self/fd/{}/sock", std::os::fd::AsRawFd::as_raw_fd(&opened));
        let address = rustix::net::SocketAddrUnix::new(path).at(step)?;
        rustix::net::connect(&socket, &address).at(step)?;
        Ok(Self(socket))
    }

    pub(crate) fn send(&self, command: &Command) -> Result<(), StepError> {
        let bytes = wire::encode(command);
        rustix::net::send(&self.0, &bytes, SendFlags::NOSIGNAL).at("speak to a container's shim").map(drop)
    }

    /// The next event, until `end`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the shim is gone.
    pub(crate) fn receive(&self, end: Instant) -> Result<Event, RuntimeError> {
        let step = "hear from a container's shim";
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).ok();
            match rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], left.as_ref()) {
                Ok(0) => return Err(RuntimeError::Timeout { what: "answer" }),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(StepError::new(step, error.into()).into()),
            }
        }
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let (length, _) = rustix::net::recv(&self.0, &mut bytes[..], RecvFlags::empty()).at(step)?;
        if length == 0 {
            return Err(StepError::new(step, io::ErrorKind::UnexpectedEof.into()).into());
        }
        let unknown = |_| RuntimeError::Shim { message: "the shim speaks another version".to_owned() };
        wire::decode(&bytes[..length.min(MESSAGE_BYTES_MAX)]).map_err(unknown)
    }

    /// Sends a command, and returns the first event that `answers` takes.
    ///
    /// # Errors
    /// [`RuntimeError::Refused`] with the shim's reason.
    pub(crate) fn ask<T>(&self, command: &Command, answers: impl Fn(&Event) -> Option<T>) -> Result<T, RuntimeError> {
        self.send(command)?;
        let end = Instant::now() + ANSWER_MAX;
        loop {
            let event = self.receive(end)?;
            if let Some(answer) = answers(&event) {
                return Ok(answer);
            }
            match event {
                Event::Refused { why } => return Err(RuntimeError::Refused { why }),
                Event::Failed { step, message, code } => return Err(RuntimeError::Failed { step, message, code }),
                _ => {}
            }
        }
    }
}

/// What a shim tells of its container, as it comes: for those who wait for many at once.
#[derive(Debug)]
pub struct Happenings(Control);

impl Happenings {
    /// Connects, and has the present state told first: nothing is missed.
    pub(crate) fn of(control: Control) -> Result<Self, StepError> {
        control.send(&Command::State)?;
        Ok(Self(control))
    }

    /// A datagram socket to wait with: readable when [`Self::next`] has something to tell.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn socket(&self) -> io::Result<std::os::unix::net::UnixDatagram> {
        let socket = std::os::unix::net::UnixDatagram::from(self.0.0.try_clone()?);
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// What was told next; nothing when nothing more was told up to now.
    ///
    /// # Errors
    /// The shim is gone, or speaks another version.
    pub fn next(&self) -> Result<Option<Happening>, RuntimeError> {
        let step = "hear from a container's shim";
        let health = |health: wire::HealthState| match health {
            wire::HealthState::Starting => HealthState::Starting,
            wire::HealthState::Healthy => HealthState::Healthy,
            wire::HealthState::Unhealthy => HealthState::Unhealthy,
        };
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        loop {
            let length = match rustix::net::recv(&self.0.0, &mut bytes[..], RecvFlags::DONTWAIT) {
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                received => received.at(step)?.0,
            };
            if length == 0 {
                return Err(StepError::new(step, io::ErrorKind::UnexpectedEof.into()).into());
            }
            let unknown = |_| RuntimeError::Shim { message: "the shim speaks another version".to_owned() };
            match wire::decode(&bytes[..length.min(MESSAGE_BYTES_MAX)]).map_err(unknown)? {
                Event::Exited(exit) | Event::State { exit: Some(exit), .. } => {
                    return Ok(Some(Happening::Ended(exit_of(&exit))));
                }
                Event::Health { state, output } => {
                    let output = String::from_utf8_lossy(&output).into_owned();
                    return Ok(Some(Happening::Health { state: health(state), output }));
                }
                Event::State { health: Some(state), .. } => {
                    return Ok(Some(Happening::Health { state: health(state), output: String::new() }));
                }
                _ => {}
            }
        }
    }
}

/// The shim of a container, where it lives. Its lock is not tried: who tries a lock holds it for a moment, and a shim that
/// starts in that moment would give up.
fn shim_of(directory: &Path) -> Option<Process> {
    if let Some(noted) = Process::noted(directory, NAME) {
        return Some(noted);
    }
    // Its starter was lost before it could note it down.
    let control = Control::connect(directory).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&control.0).ok()?;
    Process::look(peer.pid.as_raw_nonzero().get().unsigned_abs())
}

/// Whether the container has a shim that lives.
pub(crate) fn lives(directory: &Path) -> bool {
    shim_of(directory).and_then(Process::open).is_some()
}

/// Ends the shim of a container that has ended, or that was killed before.
///
/// # Errors
/// It did not end in time.
pub(crate) fn end(directory: &Path) -> Result<(), RuntimeError> {
    let Some(shim) = shim_of(directory) else { return Ok(()) };
    let Some(process) = shim.open() else { return Ok(()) };
    shim.signal(9).at("end a container's shim")?;
    if wait_for_end(&process, Some(ANSWER_MAX)) { Ok(()) } else { Err(RuntimeError::Timeout { what: "let go" }) }
}

/// Lets the shim of a container that has ended go, once those who are attached have heard everything.
///
/// # Errors
/// It did not go within `limit`.
pub(crate) fn reap(directory: &Path, limit: Duration) -> Result<(), RuntimeError> {
    let Some(process) = shim_of(directory).and_then(Process::open) else { return Ok(()) };
    Control::connect(directory)?.send(&Command::Reap)?;
    if wait_for_end(&process, Some(limit)) { Ok(()) } else { Err(RuntimeError::Timeout { what: "let go" }) }
}

/// How a shim's record tells the end.
pub(crate) fn exit_of(exit: &wire::Exit) -> Exit {
    let at = std::time::UNIX_EPOCH.checked_add(Duration::from_millis(exit.at_ms)).unwrap_or(std::time::UNIX_EPOCH);
    let cause = if exit.start_failed { ExitCause::StartFailed } else { ExitCause::Process };
    Exit { code: exit.code, signal: exit.signal, oom_killed: exit.oom_killed, at, cause }
}

/// The stream socket of a container's shim.
pub(crate) fn streams(directory: &Path) -> PathBuf {
    directory.join("streams")
}

/// What the shim wrote to its standard error, in one line.
fn last_words(directory: &Path) -> String {
    let mut words = Vec::new();
    if let Ok(file) = fs::File::open(directory.join("shim.err")) {
        let _read = file.take(MESSAGE_WORDS_MAX).read_to_end(&mut words);
    }
    let words = String::from_utf8_lossy(&words);
    let words: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if words.is_empty() { "the shim ended without a word".to_owned() } else { words.join("; ") }
}
