//! The fallback: `crun` or `runc` from the host, over the same bundle.
//!
//! `run` in the foreground stays the container's parent and ends with its status, so it is this driver's child and
//! outlives it. What a fallback does not have is told: no kept output, no terminal, no exec, and the status of a container
//! that ends while no driver runs is lost.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::process::{Pid, PidfdFlags};

use crate::error::{AtStep, StepError};
use crate::request::{Exit, ExitCause, RuntimeError};
use crate::{rootfs, sys};

/// How long a runtime may need until the container runs.
const START_MAX: Duration = Duration::from_secs(30);
/// Between two looks for the file that says so.
const START_STEP: Duration = Duration::from_millis(2);
/// Bytes of the runtime's own words that are repeated.
const MESSAGE_BYTES_MAX: u64 = 4_096;

/// One container to be run.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Path,
    /// The container's run directory, with `config.json`.
    pub(crate) directory: &'a Path,
    pub(crate) id: &'a str,
    pub(crate) netns: &'a Path,
    /// The version 2 tree beside version 1 trees, which confuses these runtimes: they do not see it.
    pub(crate) hidden: Option<&'a Path>,
}

/// A container that runs, and the runtime that waits for it.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    child: Child,
    /// None where it was reaped before anybody could look.
    process: Option<OwnedFd>,
}

/// Starts the container and returns when its first process exists.
///
/// # Errors
/// What the runtime said, or that it said nothing in time; nothing of it runs then.
pub(crate) fn run(launch: &Launch<'_>) -> Result<Running, RuntimeError> {
    let mut child = spawn(launch)?;
    match wait_for_start(launch, &mut child) {
        Ok((pid, process)) => Ok(Running { pid, child, process }),
        Err(error) => {
            // It may have ended by itself; either way it is reaped here.
            let _ended = child.kill();
            let _status = child.wait();
            delete(launch.program, launch.directory, launch.id);
            Err(error)
        }
    }
}

/// The command with the options that come before its verb: its own state lies in the container's directory.
fn command(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.arg("--root").arg(directory.join("external")).arg("--log").arg(directory.join("external.log"));
    command
}

/// Starts the runtime from a thread that is in the network namespace and sees the mounts of this container only.
fn spawn(launch: &Launch<'_>) -> Result<Child, StepError> {
    let step = "enter the network namespace";
    let namespace = rustix::fs::open(launch.netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at(step)?;
    let mut command = command(launch.program, launch.directory);
    command.arg("run").arg("--bundle").arg(launch.directory);
    command.arg("--pid-file").arg(launch.directory.join("pid")).arg(launch.id);
    // A group of its own: a signal to the driver's group must not end containers.
    command.process_group(0);
    let spawned = thread::scope(|scope| {
        let spawned = scope.spawn(|| -> Result<Child, StepError> {
            let kind = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(kind)).at(step)?;
            own_mounts(launch).at("hide other containers' mounts")?;
            command.spawn().at("run the container runtime")
        });
        spawned.join()
    });
    let panicked = |_| StepError::new("run the container runtime", io::Error::other("the starting thread panicked"));
    spawned.map_err(panicked)?
}

/// The calling thread's own copy of the mounts, without other containers' roots: the runtime lives as long as its
/// container and would keep them busy.
fn own_mounts(launch: &Launch<'_>) -> io::Result<()> {
    sys::own_mount_namespace()?;
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    if let Some(hidden) = launch.hidden {
        rootfs::unmount(hidden)?;
    }
    let Some(all) = launch.directory.parent() else { return Ok(()) };
    let own = launch.directory.file_name();
    for other in fs::read_dir(all)?.filter_map(Result::ok).filter(|entry| Some(entry.file_name().as_ref()) != own) {
        rootfs::unmount_all(&other.path())?;
    }
    Ok(())
}

fn wait_for_start(launch: &Launch<'_>, child: &mut Child) -> Result<(u32, Option<OwnedFd>), RuntimeError> {
    let path = launch.directory.join("pid");
    let end = Instant::now() + START_MAX;
    loop {
        let ended = child.try_wait().at("wait for the container runtime")?;
        let written = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<i32>().ok());
        if let Some(pid) = written.and_then(Pid::from_raw) {
            let number = pid.as_raw_nonzero().get().unsigned_abs();
            return match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
                Ok(process) => Ok((number, Some(process))),
                // A program that ended at once: the runtime's own status tells the rest.
                Err(rustix::io::Errno::SRCH) => Ok((number, None)),
                Err(error) => Err(StepError::new("watch the container's process", error.into()).into()),
            };
        }
        if ended.is_some() {
            return Err(RuntimeError::Shim { message: last_words(launch.directory) });
        }
        if Instant::now() >= end {
            return Err(RuntimeError::Timeout { what: "start" });
        }
        thread::sleep(START_STEP);
    }
}

/// What the runtime wrote to its log, in one line.
fn last_words(directory: &Path) -> String {
    let mut words = Vec::new();
    if let Ok(file) = fs::File::open(directory.join("external.log")) {
        let _read = file.take(MESSAGE_BYTES_MAX).read_to_end(&mut words);
    }
    let words = String::from_utf8_lossy(&words);
    let words: Vec<&str> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if words.is_empty() { "the container runtime ended without a word".to_owned() } else { words.join("; ") }
}

impl Running {
    /// Waits for the end. `ooms` counts the kernel's kills in the container's groups; it is asked before the runtime has
    /// reaped the process, since it takes the groups away then.
    pub(crate) fn wait(mut self, ooms: impl Fn() -> u64) -> Exit {
        if let Some(process) = &self.process {
            wait_for_end(process, None);
        }
        let ooms = ooms();
        let status = self.child.wait();
        exit_of(status.ok(), ooms)
    }
}

/// Blocks until the process of `process` ended; false when `limit` passed first.
pub(crate) fn wait_for_end(process: &OwnedFd, limit: Option<Duration>) -> bool {
    let end = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| rustix::event::Timespec::try_from(left).ok());
        match rustix::event::poll(&mut [PollFd::new(process, PollFlags::IN)], left.as_ref()) {
            Ok(0) => return false,
            Err(rustix::io::Errno::INTR) => {}
            // The only other error is a lack of memory; the process may as well have ended.
            Ok(_) | Err(_) => return true,
        }
    }
}

/// The runtime ends with the container's status, and with 128 + n for signal n.
fn exit_of(status: Option<ExitStatus>, ooms: u64) -> Exit {
    let at = SystemTime::now();
    let Some(code) = status.and_then(|status| status.code()) else {
        let killed = status.and_then(|status| status.signal()).map_or(255, |signal| 128 + signal);
        return Exit { code: killed, signal: None, oom_killed: ooms > 0, at, cause: ExitCause::ShimLost };
    };
    let signal = u8::try_from(code).ok().and_then(|code| code.checked_sub(128)).filter(|n| (1..=64).contains(n));
    Exit { code, signal, oom_killed: ooms > 0 && signal == Some(9), at, cause: ExitCause::Process }
}

/// Lets the runtime forget the container. It may know nothing of it, which is as good.
pub(crate) fn delete(program: &Path, directory: &Path, id: &str) {
    if !directory.join("external").exists() {
        return;
    }
    let status = command(program, directory).arg("delete").arg("--force").arg(id).status();
    if let Err(error) = status {
        tracing::warn!(%error, "the container runtime could not be asked to delete a container");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_told_as_the_program_had_them() {
        let check = |raw, ooms| {
            let exit = exit_of(Some(ExitStatus::from_raw(raw)), ooms);
            (exit.code, exit.signal, exit.oom_killed, exit.cause)
        };
        assert_eq!(check(0, 0), (0, None, false, ExitCause::Process));
        assert_eq!(check(7 << 8, 1), (7, None, false, ExitCause::Process));
        assert_eq!(check(137 << 8, 1), (137, Some(9), true, ExitCause::Process));
        assert_eq!(check(143 << 8, 0), (143, Some(15), false, ExitCause::Process));
        assert_eq!(check(255 << 8, 0), (255, None, false, ExitCause::Process));
        assert_eq!(check(9, 0), (137, None, false, ExitCause::ShimLost), "the runtime itself was killed");
        assert_eq!(exit_of(None, 0).cause, ExitCause::ShimLost);
    }
}
