//! One program that the shim started: its process, its streams and the clients at them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitStatus, pidfd_open};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::client::{Client, Gone, Said, nonblocking};
use crate::report::{self, Report};
use crate::sys;
use workloads_wire::frame::Kind;

/// How long streams may stay open after the program ended: a grandchild may hold them.
const DRAIN: Duration = Duration::from_secs(2);

/// How long a client may leave everything unread before it is cut off: it holds up the program.
const STUCK_MAX: Duration = Duration::from_secs(10);

/// How long output waits for the first client of an exec.
const ATTACH_MAX: Duration = Duration::from_secs(10);

/// How long an exec may take to become its program. A file system of the container may never answer.
const START_MAX: Duration = Duration::from_secs(30);

/// Bytes of a check's output that are kept.
const CAPTURE_BYTES_MAX: usize = 4_096;

/// What the program is to the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The container's own.
    Init,
    /// One more, for a client.
    Exec,
    /// A check of the container's health.
    Health,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// 128 + n for signal n.
    pub(crate) code: i32,
    pub(crate) signal: Option<u8>,
}

impl Ended {
    pub(crate) fn from_status(status: WaitStatus) -> Self {
        let signal = status.terminating_signal().and_then(|n| u8::try_from(n).ok());
        let code = signal.map_or_else(|| status.exit_status().unwrap_or(255), |n| 128 + i32::from(n));
        Self { code, signal }
    }
}

/// The running process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

/// What the shim must know after reading a report.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing new.
    None,
    /// The process exists.
    Created(u32),
    /// The program runs.
    Started,
    /// It never will.
    Failed(Report),
}

/// One program.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) role: Role,
    pub(crate) token: [u8; 16],
    /// Who asked for it, to be told once it runs.
    pub(crate) asked_by: Option<u64>,
    pub(crate) process: Option<Process>,
    report: Option<OwnedFd>,
    failure: Option<Report>,
    pub(crate) stdin: Option<OwnedFd>,
    stdin_pending: Vec<u8>,
    stdin_ends: bool,
    /// Standard output and error; a terminal is the first.
    outputs: [Option<OwnedFd>; 2],
    terminal: bool,
    pub(crate) clients: Vec<Client>,
    attach_by: Option<Instant>,
    start_by: Option<Instant>,
    pub(crate) ended: Option<Ended>,
    drain_until: Option<Instant>,
    pub(crate) capture: Vec<u8>,
    told_end: bool,
}

/// The shim's ends of a program's streams.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

impl Session {
    /// # Errors
    /// A descriptor cannot be set to not block.
    pub(crate) fn new(role: Role, token: [u8; 16], report: OwnedFd, ends: Ends, now: Instant) -> io::Result<Self> {
        for fd in [&ends.stdin, &ends.stdout, &ends.stderr].into_iter().flatten() {
            nonblocking(fd)?;
        }
        nonblocking(&report)?;
        Ok(Self {
            role,
            token,
            asked_by: None,
            process: None,
            report: Some(report),
            failure: None,
            stdin: ends.stdin,
            stdin_pending: Vec::new(),
            stdin_ends: false,
            outputs: [ends.stdout, ends.stderr],
            terminal: false,
            clients: Vec::new(),
            attach_by: (role == Role::Exec).then_some(now + ATTACH_MAX),
            start_by: (role != Role::Init).then_some(now + START_MAX),
            ended: None,
            drain_until: None,
            capture: Vec::new(),
            told_end: false,
        })
    }

    pub(crate) fn report(&self) -> Option<BorrowedFd<'_>> {
        self.report.as_ref().map(AsFd::as_fd)
    }

    /// The output `index`, if it may be read now: every client has room, and an exec's first client is there.
    pub(crate) fn readable_output(&self, index: usize) -> Option<BorrowedFd<'_>> {
        let output = self.outputs[index].as_ref()?;
        (self.attach_by.is_none() && self.clients.iter().all(Client::has_room)).then(|| output.as_fd())
    }

    /// The input, if something waits for it.
    pub(crate) fn waiting_input(&self) -> Option<BorrowedFd<'_>> {
        (!self.stdin_pending.is_empty()).then(|| self.stdin.as_ref().map(AsFd::as_fd)).flatten()
    }

    /// Whether clients may say more.
    pub(crate) fn takes_input(&self) -> bool {
        self.stdin_pending.is_empty()
    }

    /// The terminal that was opened for the container's init.
    ///
    /// # Errors
    /// It cannot be set to not block, or not be duplicated.
    pub(crate) fn set_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        nonblocking(&master)?;
        self.stdin = Some(master.try_clone()?);
        self.outputs = [Some(master), None];
        self.terminal = true;
        Ok(())
    }

    /// Reads one report.
    ///
    /// # Errors
    /// The process has no pidfd, the terminal cannot be used.
    pub(crate) fn handle_report(&mut self) -> io::Result<Progress> {
        let Some(socket) = &self.report else { return Ok(Progress::None) };
        let received = match report::receive(socket) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::None),
            Err(error) => Some((Report::Failed(format!("report: {error}")), None)),
        };
        match received {
            Some((Report::Process(pid), _)) => {
                let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
                self.process = Some(Process { pid, pidfd: pidfd_open(raw, PidfdFlags::empty())? });
                Ok(Progress::Created(pid))
            }
            Some((Report::Terminal, Some(master))) => {
                self.set_terminal(master)?;
                Ok(Progress::None)
            }
            Some((Report::Terminal, None)) => Ok(Progress::None),
            // The first failure is the cause; what follows is its echo.
            Some((failure, _)) => {
                self.failure.get_or_insert(failure);
                Ok(Progress::None)
            }
            None => {
                self.report = None;
                self.start_by = None;
                Ok(match (self.failure.clone(), &self.process) {
                    (Some(failure), _) => Progress::Failed(failure),
                    (None, Some(_)) => Progress::Started,
                    (None, None) => {
                        Progress::Failed(Report::Failed("the starting process ended without a word".to_owned()))
                    }
                })
            }
        }
    }

    /// Notes why the program will not run; the first cause stays.
    pub(crate) fn fail(&mut self, why: Report) {
        self.failure.get_or_insert(why);
    }

    /// The program will not run: nothing more is expected of it.
    pub(crate) fn abandon(&mut self) {
        let code = self.failure.as_ref().and_then(Report::exit_code).unwrap_or(125);
        self.ended.get_or_insert(Ended { code, signal: None });
        self.outputs = [None, None];
        self.stdin = None;
        self.attach_by = None;
    }

    /// Whether a client can still hear something.
    pub(crate) fn takes_clients(&self) -> bool {
        !self.told_end
    }

    /// Whether the program's start has not been decided yet.
    pub(crate) fn is_starting(&self) -> bool {
        self.report.is_some()
    }

    /// Notes the end of the process.
    pub(crate) fn handle_exit(&mut self, ended: Ended, now: Instant) {
        self.ended.get_or_insert(ended);
        self.drain_until.get_or_insert(now + DRAIN);
        self.stdin = None;
        self.stdin_pending = Vec::new();
    }

    /// Reads an output once into `buffer`; hands it to the clients. Returns what was read.
    pub(crate) fn read_output<'a>(&mut self, index: usize, buffer: &'a mut [u8], now: Instant) -> Option<&'a [u8]> {
        let output = self.outputs[index].as_ref()?;
        let count = match rustix::io::read(output, &mut *buffer) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return None,
            Err(_) => 0, // EIO: the last process has closed the terminal
        };
        if count == 0 {
            self.outputs[index] = None;
            return None;
        }
        let bytes = &buffer[..count];
        let kind = if index == 0 { Kind::Stdout } else { Kind::Stderr };
        self.clients.retain_mut(|client| client.push(kind, bytes, now).is_ok());
        if self.role == Role::Health {
            let room = CAPTURE_BYTES_MAX - self.capture.len();
            self.capture.extend_from_slice(&bytes[..count.min(room)]);
        }
        Some(bytes)
    }

    /// Adds a client.
    pub(crate) fn attach(&mut self, client: Client) {
        self.attach_by = None;
        self.clients.push(client);
    }

    /// Serves one client: its input, its output. A client that is gone leaves.
    pub(crate) fn serve_client(&mut self, index: usize, readable: bool, buffer: &mut [u8], now: Instant) {
        let mut result = self.clients[index].flush(now);
        if readable && result.is_ok() {
            result = self.clients[index].read(buffer);
        }
        while result.is_ok() && self.takes_input() {
            match self.clients[index].next() {
                Ok(Some(said)) => self.handle_said(said),
                Ok(None) => break,
                Err(gone) => result = Err(gone),
            }
        }
        if result == Err(Gone) {
            self.clients[index].finished = true;
            self.drop_client(index);
        }
    }

    fn drop_client(&mut self, index: usize) {
        self.clients.remove(index);
        // The caller of an exec is its only one: without it the input ends, and a terminal hangs up.
        if self.role == Role::Exec && self.clients.is_empty() {
            self.stdin_ends = true;
            self.stdin_pending = Vec::new();
            self.stdin = None;
            if self.terminal {
                self.outputs = [None, None];
            }
        }
    }

    fn handle_said(&mut self, said: Said) {
        match said {
            Said::Stdin(bytes) if self.stdin.is_some() && !self.stdin_ends => {
                self.stdin_pending = bytes;
                self.write_input();
            }
            // A program that closed its input, or never had one, loses what is sent: as with a pipe nobody reads.
            Said::Stdin(_) => {}
            Said::StdinEof if self.terminal => {}
            Said::StdinEof => {
                self.stdin_ends = true;
                self.write_input();
            }
            Said::Resize { rows, columns } => self.resize(rows, columns),
            Said::Signal(number) => {
                if let Some(process) = self.process.as_ref().filter(|_| self.ended.is_none()) {
                    // ESRCH: it just ended. EINVAL: no such signal, and nothing to be done about it.
                    let _ = sys::signal(process.pidfd.as_fd(), number);
                }
            }
        }
    }

    /// Sets the terminal's size; without a terminal there is nothing to set.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        if let (true, Some(master)) = (self.terminal, &self.outputs[0]) {
            // A terminal that hung up has no size.
            let _ = tcsetwinsize(master, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 });
        }
    }

    /// Writes what waits for the program's input.
    pub(crate) fn write_input(&mut self) {
        while let (Some(stdin), false) = (&self.stdin, self.stdin_pending.is_empty()) {
            match rustix::io::write(stdin, &self.stdin_pending) {
                Ok(count) => {
                    self.stdin_pending.drain(..count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.stdin = None;
                    self.stdin_pending = Vec::new();
                }
            }
        }
        self.stdin_pending = Vec::new();
        if self.stdin_ends {
            self.stdin = None;
        }
    }

    /// Ends what waited too long, and tells the clients of the program's end once its output is with them. Returns whether
    /// the program is over in every respect but its clients.
    pub(crate) fn settle(&mut self, now: Instant) -> bool {
        if self.attach_by.is_some_and(|by| by <= now) {
            self.attach_by = None;
        }
        if self.start_by.is_some_and(|by| by <= now) {
            self.start_by = None;
            self.fail(Report::Failed(format!("the program did not start within {} s", START_MAX.as_secs())));
            if let Some(process) = &self.process {
                // ESRCH: it ended at the same moment.
                let _ = sys::signal(process.pidfd.as_fd(), 9);
            }
        }
        let stuck = |client: &Client| client.stuck_since.is_some_and(|since| since + STUCK_MAX <= now);
        if self.role == Role::Init {
            self.clients.retain(|client| !stuck(client));
        }
        if self.drain_until.is_some_and(|until| until <= now) {
            self.outputs = [None, None];
        }
        let Some(ended) = self.ended else { return false };
        if self.is_starting() || self.outputs.iter().any(Option::is_some) {
            return false;
        }
        if !self.told_end {
            self.told_end = true;
            for client in &mut self.clients {
                // A client that is gone is noticed below.
                let _ = client.push(Kind::Exit, &ended.code.to_be_bytes(), now);
                client.finished = true;
            }
        }
        self.clients.retain(|client| (!client.finished || client.has_output()) && !stuck(client));
        true
    }

    /// When [`Self::settle`] has something to do without any event.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let stuck = self.clients.iter().filter_map(|client| client.stuck_since).map(|since| since + STUCK_MAX);
        let drain = self.drain_until.filter(|_| self.outputs.iter().any(Option::is_some));
        stuck.chain(self.attach_by).chain(self.start_by).chain(drain).min()
    }
}
