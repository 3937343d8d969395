//! A process that may have been replaced by another one of its number: told apart by the time it started.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal};

/// Name in a container's run directory under which its first process is noted.
pub(crate) const NAME: &str = "process";

/// A process as it was when it was noted down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Clock ticks after the host's start.
    started: u64,
}

impl Process {
    /// The process of this number as it is now; none, or one that only waits to be reaped, is no process.
    pub(crate) fn look(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parse(&stat).map(|started| Self { pid, started })
    }

    /// # Errors
    /// As the filesystem says.
    pub(crate) fn note(self, directory: &Path, name: &str) -> io::Result<()> {
        fs::write(directory.join(name), format!("{} {}\n", self.pid, self.started))
    }

    /// What [`Self::note`] left behind.
    pub(crate) fn noted(directory: &Path, name: &str) -> Option<Self> {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        let (pid, started) = text.trim_end().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, started: started.parse().ok()? })
    }

    /// A descriptor of the process, where it still is the one that was noted.
    pub(crate) fn open(self) -> Option<OwnedFd> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw)?;
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Looked at after it was opened: from here on the number can go to nobody else.
        (Self::look(self.pid) == Some(self)).then_some(process)
    }

    /// Sends a signal; false when the process is gone.
    ///
    /// # Errors
    /// A number that is no signal, or the kernel's refusal.
    pub(crate) fn signal(self, signal: u8) -> io::Result<bool> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let signal = Signal::from_named_raw(i32::from(signal)).ok_or_else(invalid)?;
        let Some(process) = self.open() else { return Ok(false) };
        match rustix::process::pidfd_send_signal(&process, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// The start time in `/proc/PID/stat`; the name before it may hold anything, also brackets and blanks.
fn parse(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    let started = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = Process::look(std::process::id()).unwrap();
        assert!(own.open().is_some());
        assert!(Process { started: own.started + 1, ..own }.open().is_none());
        let directory = tempfile::tempdir().unwrap();
        own.note(directory.path(), NAME).unwrap();
        assert_eq!(Process::noted(directory.path(), NAME), Some(own));
        assert!(own.signal(0).is_err() && own.signal(200).is_err());
    }

    #[test]
    fn the_name_cannot_mislead() {
        let fields = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 77 20";
        assert_eq!(parse(&format!("9 (a) b) S {fields}")), Some(77));
        assert_eq!(parse(&format!("9 (a) Z {fields}")), None);
        assert_eq!(parse("9 (a) S 1 2"), None);
        assert_eq!(parse(""), None);
    }
}
