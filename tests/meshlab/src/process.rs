//! Programs on hosts: commands that end, and services that run until they are told to end.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::error::{Attempt, Error, Result};
use crate::host::Host;
use crate::lab::lock;
use crate::namespace::has_ended;
use crate::sys;
use crate::wait::wait_until;

/// How long a command may run unless it says otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A command for a host, built like [`std::process::Command`].
#[derive(Debug)]
pub struct Command {
    host: Host,
    command: std::process::Command,
    log_name: String,
    timeout: Duration,
    input: Vec<u8>,
}

/// What a command that ended left behind.
#[derive(Clone, Debug)]
pub struct Output {
    pub status: ExitStatus,
    /// Standard output; what is not UTF-8 is replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with 0.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.status.success()
    }
}

impl Command {
    pub(crate) fn new(host: Host, program: &Path) -> Self {
        let mut command = std::process::Command::new(program);
        // A group of its own, so that it is killed with its children and Ctrl-C reaches the lab alone.
        command.current_dir(host.dir()).process_group(0);
        let log_name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        Self { host, command, log_name, timeout: TIMEOUT, input: Vec::new() }
    }

    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(argument);
        self
    }

    pub fn args(&mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.command.args(arguments);
        self
    }

    pub fn env(&mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.command.env(key, value);
        self
    }

    pub fn env_remove(&mut self, key: impl AsRef<OsStr>) -> &mut Self {
        self.command.env_remove(key);
        self
    }

    pub fn current_dir(&mut self, dir: impl AsRef<Path>) -> &mut Self {
        self.command.current_dir(dir);
        self
    }

    /// What it reads from standard input; nothing by default.
    pub fn input(&mut self, input: impl Into<Vec<u8>>) -> &mut Self {
        self.input = input.into();
        self
    }

    /// How long [`Command::run`] and [`Command::ok`] let it run; a minute by default.
    pub fn timeout(&mut self, timeout: Duration) -> &mut Self {
        self.timeout = timeout;
        self
    }

    /// The log of [`Command::spawn`] is `NAME.log`; by default the program's name.
    pub fn log_name(&mut self, name: &str) -> &mut Self {
        name.clone_into(&mut self.log_name);
        self
    }

    /// Runs it to its end, whatever the status.
    ///
    /// # Errors
    /// If it cannot start, or [`Error::CommandLate`] after which it has been killed.
    pub fn run(&mut self) -> Result<Output> {
        let mut files = self.temporary_files().attempt(|| "make files for a command's output".to_owned())?;
        let child = self.start(&files)?;
        let status = child.wait(self.timeout);
        let read = |file: &mut File| -> io::Result<String> {
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let [stdout, stderr] = &mut files;
        let stdout = read(stdout).attempt(|| self.line())?;
        let stderr = read(stderr).attempt(|| self.line())?;
        match status {
            Some(status) => Ok(Output { status, stdout, stderr }),
            None => Err(Error::CommandLate {
                host: self.host.name().to_owned(),
                command: self.line(),
                timeout: self.timeout,
                output: stdout + &stderr,
            }),
        }
    }

    /// Runs it and returns its standard output.
    ///
    /// # Errors
    /// Those of [`Command::run`], and [`Error::CommandFailed`] for a status other than 0.
    pub fn ok(&mut self) -> Result<String> {
        let Output { status, stdout, stderr } = self.run()?;
        if status.success() {
            return Ok(stdout);
        }
        let (host, command) = (self.host.name().to_owned(), self.line());
        Err(Error::CommandFailed { host, command, status: status.to_string(), output: stdout + &stderr })
    }

    /// Starts it in the background. What it prints is appended to `NAME.log` in the host's directory.
    ///
    /// # Errors
    /// If it cannot start.
    pub fn spawn(&mut self) -> Result<Service> {
        let log = self.host.dir().join(format!("{}.log", self.log_name));
        let open = || -> io::Result<(File, File, u64)> {
            let file = OpenOptions::new().create(true).append(true).open(&log)?;
            let len = file.metadata()?.len();
            Ok((file.try_clone()?, file, len))
        };
        let (stdout, stderr, log_start) = open().attempt(|| format!("open {}", log.display()))?;
        let inner = self.start(&[stdout, stderr])?;
        self.host.shared().register(&inner);
        Ok(Service { inner, line: format!("{} on {}", self.line(), self.host.name()), log, log_start })
    }

    fn temporary_files(&self) -> io::Result<[File; 2]> {
        // Files instead of pipes: a grandchild that keeps one open keeps nobody waiting.
        let dir = &self.host.shared().dir;
        Ok([tempfile::tempfile_in(dir)?, tempfile::tempfile_in(dir)?])
    }

    fn start(&mut self, [stdout, stderr]: &[File; 2]) -> Result<Arc<ServiceInner>> {
        let mut start = || -> io::Result<ServiceInner> {
            let stdin = if self.input.is_empty() {
                Stdio::null()
            } else {
                let mut file = tempfile::tempfile_in(&self.host.shared().dir)?;
                file.write_all(&self.input)?;
                file.rewind()?;
                file.into()
            };
            self.command.stdin(stdin).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
            let command = &mut self.command;
            let spawn = || command.spawn();
            let mut child = self.host.namespace().enter_with_processes(&self.host.shared().init, spawn)?;
            match sys::pidfd_open(child.id()) {
                Ok(pidfd) => Ok(ServiceInner { pid: child.id(), pidfd, process: Mutex::new(Process::Held(child)) }),
                Err(e) => {
                    child.kill()?;
                    child.wait()?;
                    Err(e)
                }
            }
        };
        start().map(Arc::new).attempt(|| format!("start `{}` on {}", self.line(), self.host.name()))
    }

    /// The command as one line, for messages.
    fn line(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }
}

/// A started process, the leader of its own group. The group ends with it: children in the background are killed.
#[derive(Debug)]
pub(crate) struct ServiceInner {
    pid: u32,
    pidfd: OwnedFd,
    process: Mutex<Process>,
}

#[derive(Debug)]
enum Process {
    /// Running or a zombie: the process id is taken, and so is that of the group.
    Held(Child),
    Reaped(ExitStatus),
}

impl ServiceInner {
    /// The status if it ends in time; otherwise it still runs.
    fn wait(&self, timeout: Duration) -> Option<ExitStatus> {
        has_ended(&self.pidfd, timeout).then(|| self.kill()).flatten()
    }

    /// Kills what is left of the group and reaps the leader.
    pub(crate) fn kill(&self) -> Option<ExitStatus> {
        let mut process = lock(&self.process);
        match &mut *process {
            Process::Reaped(status) => Some(*status),
            Process::Held(child) => {
                let _ = killpg(self.pid(), Signal::SIGKILL);
                let status = child.wait().ok()?;
                *process = Process::Reaped(status);
                Some(status)
            }
        }
    }

    fn signal(&self, signal: Signal) -> nix::Result<()> {
        match &*lock(&self.process) {
            Process::Held(_) => kill(self.pid(), signal),
            Process::Reaped(_) => Err(nix::errno::Errno::ESRCH),
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.pid).expect("process ids fit an int"))
    }
}

impl Drop for ServiceInner {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A command in the background; killed with its children when dropped.
#[derive(Debug)]
pub struct Service {
    inner: Arc<ServiceInner>,
    line: String,
    log: PathBuf,
    /// Where in the log this run of it begins.
    log_start: u64,
}

impl Service {
    /// The process id outside of the lab.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.pid
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        !has_ended(&self.inner.pidfd, Duration::ZERO)
    }

    /// Sends a signal to the process, not to its children.
    ///
    /// # Errors
    /// If it has been waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.inner.signal(signal).attempt(|| format!("send {signal} to `{}`", self.line))
    }

    /// Kills it with its children (SIGKILL) and waits for its end.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill(&self) -> Result<ExitStatus> {
        self.inner
            .kill()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            .attempt(|| format!("kill `{}`", self.line))
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// If it does not end in time; then it still runs.
    pub fn stop(&self, timeout: Duration) -> Result<ExitStatus> {
        // One that has ended already is what was asked for.
        let _ = self.inner.signal(Signal::SIGTERM);
        self.wait(timeout)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end in time; then it still runs.
    pub fn wait(&self, timeout: Duration) -> Result<ExitStatus> {
        self.inner.wait(timeout).ok_or_else(|| Error::WaitedInVain {
            what: format!("the end of `{}`", self.line),
            timeout,
            last: "it runs".to_owned(),
        })
    }

    /// The log file, which earlier and later runs share.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What this run has printed; what is not UTF-8 is replaced.
    ///
    /// # Errors
    /// Those of reading a file.
    pub fn log(&self) -> Result<String> {
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            file.seek(SeekFrom::Start(self.log_start))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().attempt(|| format!("read {}", self.log.display()))
    }

    /// Waits until it has printed `text`.
    ///
    /// # Errors
    /// If it does not in time, or ends before, with the last line that it printed.
    pub fn wait_for_log(&self, timeout: Duration, text: &str) -> Result<()> {
        let start = Instant::now();
        let what = format!("{text:?} from `{}`", self.line);
        let look = || {
            // In this order: what it printed before its end is then in the log.
            let is_running = self.is_running();
            let log = self.log().map_err(|e| e.to_string())?;
            if log.contains(text) {
                return Ok(Ok(()));
            }
            let last = log.lines().last().unwrap_or("no output").to_owned();
            if is_running { Err(last) } else { Ok(Err(format!("it ended; {last}"))) }
        };
        wait_until(timeout, &what, look)?.map_err(|last| Error::WaitedInVain {
            what: what.clone(),
            timeout: start.elapsed(),
            last,
        })
    }
}
