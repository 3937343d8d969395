//! The shim's life after it has set itself up: one loop, one thread, everything an event.
//!
//! ```text
//! Creating ── Process ──► Created ── Start ──► Running ── init ended, output drained ──► Exited ── Reap ──► gone
//!     └───────────────── Failed ◄──────┴──────────┘ (the program could not be executed)
//! ```

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use rustix::process::{WaitId, WaitIdOptions, WaitOptions, wait, waitid};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::cgroup::Groups;
use crate::client::Client;
use crate::create::{self, LIBRARY};
use crate::exec::{self, Pipes, Program, Target, User};
use crate::executor::Filter;
use crate::exitfile;
use crate::health::{Checks, Due, Health, Schedule};
use crate::report::{self, Report};
use crate::ring::Ring;
use crate::session::{Ended, Ends, Progress, Role, Session};
use crate::sys;
use workloads_wire::log::Stream;
use workloads_wire::message::{
    self as wire, Command, Config, Event, Exec, Exit, HealthState, MESSAGE_BYTES_MAX, Phase,
};

/// How long creation may take.
const CREATE_MAX: Duration = Duration::from_secs(30);

/// How long the program waits for the client that wants to miss nothing.
const HOLD_MAX: Duration = Duration::from_secs(5);

/// How long a connection to the streams may take to show its token.
const VISIT_MAX: Duration = Duration::from_secs(5);

/// How long after its start a container is no short run: the shim gives back what only the start needed.
const SETTLED: Duration = Duration::from_secs(1);

/// Control connections at once; one more is closed.
const CHANNELS_MAX: usize = 8;

/// Connections to the streams that have not shown a token yet; one more is closed.
const VISITORS_MAX: usize = 8;

/// Clients at one program; one more is closed.
const CLIENTS_MAX: usize = 8;

/// Programs at once beside the container's own; one more is refused.
const EXECS_MAX: usize = 32;

/// Bytes read at once from a program or a client.
const READ_BYTES: usize = 64 * 1024;

/// A control connection. The first is the daemon that started us.
#[derive(Debug)]
struct Channel {
    number: u64,
    socket: OwnedFd,
}

/// A connection to the streams, before its token.
#[derive(Debug)]
struct Visitor {
    socket: OwnedFd,
    token: Vec<u8>,
    until: Instant,
}

/// What became ready.
#[derive(Clone, Copy, Debug)]
enum Source {
    Control,
    Streams,
    Channel(u64),
    Visitor(usize),
    Report(usize),
    Process,
    Input(usize),
    Output(usize, usize),
    Client(usize, usize),
    Console,
}

/// What the loop does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Go,
    /// The process ends with this code.
    End(u8),
}

/// What the shim holds for its container.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) directory: PathBuf,
    pub(crate) filter: Filter,
    pub(crate) ring: Option<Ring>,
    pub(crate) control: OwnedFd,
    pub(crate) streams: OwnedFd,
    /// Where the terminal of the container arrives.
    pub(crate) console: Option<OwnedFd>,
    pub(crate) daemon: OwnedFd,
    /// The container's program, whose creation has begun.
    pub(crate) init: Session,
    /// The process that creates it, by pidfd.
    pub(crate) creator: OwnedFd,
}

/// The parent of one container.
#[derive(Debug)]
pub(crate) struct Shim {
    config: Config,
    directory: PathBuf,
    filter: Filter,
    ring: Option<Ring>,
    control: OwnedFd,
    streams: OwnedFd,
    console: Option<OwnedFd>,
    channels: Vec<Channel>,
    channel_numbers: u64,
    visitors: Vec<Visitor>,
    /// The first is the container's own program, for ever.
    sessions: Vec<Session>,
    groups: Groups,
    creator: OwnedFd,
    phase: Phase,
    create_by: Option<Instant>,
    start_by: Option<Instant>,
    kill_at: Option<Instant>,
    slim_at: Option<Instant>,
    started: Option<SystemTime>,
    checks: Option<Checks>,
    check_output: Vec<u8>,
    exit: Option<Exit>,
    /// The created process has been told to become its program.
    released: bool,
    /// The daemon has noted the exit: nothing is left to do but to hand out what clients have not read yet.
    reaped: bool,
    buffer: Vec<u8>,
}

impl Shim {
    pub(crate) fn new(parts: Parts, now: Instant) -> Self {
        let Parts { config, directory, filter, ring, control, streams, console, daemon, init, creator } = parts;
        Self {
            config,
            directory,
            filter,
            ring,
            control,
            streams,
            console,
            channels: vec![Channel { number: 0, socket: daemon }],
            channel_numbers: 1,
            visitors: Vec::new(),
            sessions: vec![init],
            groups: Groups::default(),
            creator,
            phase: Phase::Creating,
            create_by: Some(now + CREATE_MAX),
            start_by: None,
            kill_at: None,
            slim_at: None,
            started: None,
            checks: None,
            check_output: Vec::new(),
            exit: None,
            released: false,
            reaped: false,
            buffer: vec![0; READ_BYTES],
        }
    }

    /// Runs until the container is over and the daemon has noted it. Returns the process's exit code.
    ///
    /// # Errors
    /// poll(2) failed: nothing can be supervised any more.
    pub(crate) fn run(mut self) -> io::Result<u8> {
        loop {
            let ready = self.wait()?;
            let now = Instant::now();
            for (source, flags) in ready {
                if let Next::End(code) = self.handle(source, flags, now) {
                    return Ok(code);
                }
            }
            self.reap(now);
            if let Next::End(code) = self.settle(now) {
                return Ok(code);
            }
        }
    }

    fn wait(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut sources = vec![Source::Control, Source::Streams];
        let mut fds = vec![PollFd::new(&self.control, PollFlags::IN), PollFd::new(&self.streams, PollFlags::IN)];
        let mut add = |source, fd, flags| {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        if let Some(console) = &self.console {
            add(Source::Console, console.as_fd(), PollFlags::IN);
        }
        for channel in &self.channels {
            add(Source::Channel(channel.number), channel.socket.as_fd(), PollFlags::IN);
        }
        for (v, visitor) in self.visitors.iter().enumerate() {
            add(Source::Visitor(v), visitor.socket.as_fd(), PollFlags::IN);
        }
        for (s, session) in self.sessions.iter().enumerate() {
            if let Some(report) = session.report() {
                add(Source::Report(s), report, PollFlags::IN);
            }
            if let (Some(process), None) = (&session.process, session.ended) {
                add(Source::Process, process.pidfd.as_fd(), PollFlags::IN);
            }
            if let Some(input) = session.waiting_input() {
                add(Source::Input(s), input, PollFlags::OUT);
            }
            for o in 0..2 {
                if let Some(output) = session.readable_output(o) {
                    add(Source::Output(s, o), output, PollFlags::IN);
                }
            }
            for (c, client) in session.clients.iter().enumerate() {
                let mut flags = if session.takes_input() { PollFlags::IN } else { PollFlags::empty() };
                flags.set(PollFlags::OUT, client.has_output());
                add(Source::Client(s, c), client.socket(), flags);
            }
        }
        let timeout = self.deadline().map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let ready = sources.into_iter().zip(&fds).map(|(source, fd)| (source, fd.revents()));
        Ok(ready.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn deadline(&self) -> Option<Instant> {
        let visitors = self.visitors.iter().map(|visitor| visitor.until);
        let sessions = self.sessions.iter().filter_map(Session::deadline);
        let checks = self.checks.as_ref().and_then(Checks::poll_timeout);
        visitors
            .chain(sessions)
            .chain(checks)
            .chain(self.create_by)
            .chain(self.start_by)
            .chain(self.kill_at)
            .chain(self.slim_at)
            .min()
    }

    fn handle(&mut self, source: Source, flags: PollFlags, now: Instant) -> Next {
        let readable = flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
        match source {
            Source::Control => self.accept_channel(),
            Source::Streams => self.accept_visitor(now),
            Source::Console => self.accept_console(),
            Source::Channel(number) => return self.read_channel(number, now),
            Source::Visitor(v) => self.read_visitor(v),
            Source::Report(s) => return self.read_report(s, now),
            Source::Process => {} // reaped after all events of this round
            Source::Input(s) => {
                self.sessions[s].write_input();
                for c in (0..self.sessions[s].clients.len()).rev() {
                    self.sessions[s].serve_client(c, false, &mut self.buffer, now);
                }
            }
            Source::Output(s, o) => self.read_output(s, o, now),
            Source::Client(s, c) => {
                // An earlier event of this round may have removed a client; the rest comes up again in the next round.
                if c < self.sessions[s].clients.len() {
                    self.sessions[s].serve_client(c, readable, &mut self.buffer, now);
                }
            }
        }
        Next::Go
    }

    fn accept_channel(&mut self) {
        let Ok(socket) = accept_with(&self.control, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else { return };
        if self.channels.len() < CHANNELS_MAX {
            self.channels.push(Channel { number: self.channel_numbers, socket });
            self.channel_numbers += 1;
        }
    }

    fn accept_visitor(&mut self, now: Instant) {
        let Ok(socket) = accept_with(&self.streams, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else { return };
        if self.visitors.len() < VISITORS_MAX {
            self.visitors.push(Visitor { socket, token: Vec::new(), until: now + VISIT_MAX });
        }
    }

    /// The library connects to send the terminal's master. It has already checked that it is one.
    fn accept_console(&mut self) {
        let Some(console) = &self.console else { return };
        let Ok(socket) = accept_with(console, SocketFlags::CLOEXEC) else { return };
        self.console = None;
        let master = receive_master(&socket).and_then(|master| self.sessions[0].set_terminal(master));
        if let Err(error) = master {
            self.sessions[0].fail(Report::Failed(format!("terminal: {error}")));
        }
    }

    fn read_visitor(&mut self, v: usize) {
        let Some(visitor) = self.visitors.get_mut(v) else { return };
        let mut bytes = [0; 16];
        let wanted = 16 - visitor.token.len();
        match rustix::io::read(&visitor.socket, &mut bytes[..wanted]) {
            Ok(0) => visitor.until = Instant::now(),
            Ok(count) => visitor.token.extend_from_slice(&bytes[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => visitor.until = Instant::now(),
        }
    }

    /// Hands visitors who have shown a token to their program; closes those whose token is none or whose time is over.
    fn seat_visitors(&mut self, now: Instant) {
        let mut waiting = Vec::new();
        for visitor in std::mem::take(&mut self.visitors) {
            if visitor.token.len() < 16 {
                if visitor.until > now {
                    waiting.push(visitor);
                }
                continue;
            }
            let session = self.sessions.iter_mut().find(|session| session.token.as_slice() == visitor.token);
            if let Some(session) =
                session.filter(|session| session.clients.len() < CLIENTS_MAX && session.takes_clients())
            {
                session.attach(Client::new(visitor.socket));
            }
        }
        self.visitors = waiting;
    }

    fn read_output(&mut self, s: usize, o: usize, now: Instant) {
        let session = &mut self.sessions[s];
        let Some(bytes) = session.read_output(o, &mut self.buffer, now) else { return };
        if let (Role::Init, Some(ring)) = (session.role, &mut self.ring) {
            let stream = if o == 0 { Stream::Stdout } else { Stream::Stderr };
            if let Err(error) = ring.append(stream, bytes, unix_ns()) {
                say(&format!("log: {error}"));
            }
        }
    }

    fn read_report(&mut self, s: usize, now: Instant) -> Next {
        let progress = match self.sessions[s].handle_report() {
            Ok(progress) => progress,
            Err(error) => {
                self.sessions[s].fail(Report::Failed(error.to_string()));
                Progress::None
            }
        };
        match (self.sessions[s].role, progress) {
            (_, Progress::None) | (Role::Exec | Role::Health, Progress::Created(_)) => {}
            (Role::Init, Progress::Created(pid)) => self.on_created(pid),
            (Role::Init, Progress::Started) if self.released => self.on_started(now),
            // The end of its socket is then the end of the process.
            (Role::Init, Progress::Started) => {
                return self.on_failed(&Report::Failed("it ended before the start".to_owned()));
            }
            (Role::Init, Progress::Failed(why)) => return self.on_failed(&why),
            (Role::Exec, Progress::Started) => {
                let session = &self.sessions[s];
                if let (Some(asker), Some(process)) = (session.asked_by, &session.process) {
                    let event = Event::ExecStarted { pid: process.pid, token: session.token };
                    self.tell(asker, &event);
                }
            }
            (Role::Exec, Progress::Failed(why)) => {
                if let Some(asker) = self.sessions[s].asked_by {
                    self.tell(asker, &failed("exec", &why));
                }
                self.sessions[s].abandon();
            }
            (Role::Health, Progress::Started) => {}
            (Role::Health, Progress::Failed(why)) => {
                self.check_output = why.to_string().into_bytes();
                self.check_output.truncate(4_096);
                self.sessions[s].abandon();
            }
        }
        Next::Go
    }

    fn on_created(&mut self, pid: u32) {
        self.create_by = None;
        self.phase = Phase::Created;
        match Groups::find(Path::new(&self.config.cgroup)) {
            Ok(groups) => self.groups = groups,
            Err(error) => say(&format!("control groups: {error}")),
        }
        if let Err(error) = exitfile::write(Path::new("pid"), pid.to_string().as_bytes(), false) {
            say(&format!("pid file: {error}"));
        }
        self.tell_all(&Event::Created { pid });
    }

    fn on_started(&mut self, now: Instant) {
        self.phase = Phase::Running;
        self.started = Some(SystemTime::now());
        self.slim_at = Some(now + SETTLED);
        if let Some(health) = &self.config.health {
            let schedule = Schedule {
                interval: Duration::from_millis(health.interval_ms.max(100)),
                timeout: Duration::from_millis(health.timeout_ms.max(100)),
                retries: health.retries,
                start_period: Duration::from_millis(health.start_period_ms),
            };
            self.checks = Some(Checks::new(schedule, now));
        }
        self.tell_all(&Event::Started);
    }

    /// The container's program never ran: says so, cleans up and ends.
    fn on_failed(&mut self, why: &Report) -> Next {
        let step = if self.phase == Phase::Creating { "create" } else { "start" };
        let code = why.exit_code().unwrap_or(125);
        if let Ok(groups) = Groups::find(Path::new(&self.config.cgroup)) {
            self.groups = groups;
        }
        self.clean_up();
        self.note_exit(Exit {
            code,
            signal: None,
            oom_killed: false,
            at_ms: unix_ms(SystemTime::now()),
            start_failed: true,
        });
        self.tell_all(&failed(step, why));
        Next::End(1)
    }

    fn read_channel(&mut self, number: u64, now: Instant) -> Next {
        let Some(at) = self.channels.iter().position(|channel| channel.number == number) else { return Next::Go };
        let buffer = &mut self.buffer[..MESSAGE_BYTES_MAX];
        let command = match recv(&self.channels[at].socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((count, _)) if count > 0 => wire::decode::<Command>(&buffer[..count]).ok(),
            Err(Errno::AGAIN | Errno::INTR) => return Next::Go,
            Ok(_) | Err(_) => None,
        };
        let Some(command) = command else {
            // Hung up, or not speaking our protocol. The daemon is gone before it said Start: nobody wants this container.
            self.channels.remove(at);
            if number == 0 && matches!(self.phase, Phase::Creating | Phase::Created) {
                return self.on_failed(&Report::Failed("the daemon went away before the start".to_owned()));
            }
            return Next::Go;
        };
        self.on_command(number, command, now)
    }

    fn on_command(&mut self, number: u64, command: Command, now: Instant) -> Next {
        match command {
            Command::State => {
                let state = self.state();
                self.tell(number, &state);
            }
            Command::Start if self.phase == Phase::Created => {
                let hold = if self.config.hold_for_attach { HOLD_MAX } else { Duration::ZERO };
                self.start_by.get_or_insert(now + hold);
            }
            // Said again by a daemon that did not hear the answer.
            Command::Start if self.phase == Phase::Running => self.tell(number, &Event::Started),
            Command::Stop { signal, grace_ms } if matches!(self.phase, Phase::Created | Phase::Running) => {
                let end = now + Duration::from_millis(grace_ms.min(86_400_000));
                self.kill_at = Some(self.kill_at.map_or(end, |at| at.min(end)));
                self.signal_init(number, signal);
            }
            Command::Signal { signal } if matches!(self.phase, Phase::Created | Phase::Running) => {
                self.signal_init(number, signal);
            }
            Command::Exec(exec) if self.phase == Phase::Running => self.on_exec(number, exec, now),
            Command::Attach if matches!(self.phase, Phase::Created | Phase::Running) => {
                let token = self.sessions[0].token;
                self.tell(number, &Event::Attached { token });
            }
            Command::Resize { rows, columns } => self.sessions[0].resize(rows, columns),
            Command::Reap if self.phase == Phase::Exited => self.reaped = true,
            Command::Stop { .. } | Command::Signal { .. } if self.phase == Phase::Exited => {
                let state = self.state();
                self.tell(number, &state);
            }
            Command::Start
            | Command::Stop { .. }
            | Command::Signal { .. }
            | Command::Exec(_)
            | Command::Attach
            | Command::Reap => {
                let why = format!("the container is in phase {:?}", self.phase);
                self.tell(number, &Event::Refused { why });
            }
        }
        Next::Go
    }

    fn signal_init(&mut self, number: u64, signal: u8) {
        let Some(process) = &self.sessions[0].process else { return };
        match sys::signal(process.pidfd.as_fd(), signal) {
            // ESRCH: it ended just now, which is what a signal asks for.
            Ok(()) | Err(_) if self.sessions[0].ended.is_some() => {}
            Ok(()) => {}
            Err(error) => {
                let why = format!("signal {signal}: {error}");
                self.tell(number, &Event::Refused { why });
            }
        }
    }

    fn on_exec(&mut self, number: u64, exec: Exec, now: Instant) {
        let stdin = exec.stdin;
        let program = Program {
            args: exec.args.into_iter().map(Vec::from).collect(),
            env: exec.env,
            workdir: exec.workdir,
            user: exec.user.map(|(uid, gid, groups)| User { uid, gid, groups }),
            tty: exec.tty,
        };
        let started = if self.sessions.len() > EXECS_MAX {
            Err(io::Error::other(format!("{EXECS_MAX} programs run already")))
        } else {
            self.spawn(Role::Exec, &program, stdin, now)
        };
        match started {
            Ok(mut session) => {
                session.asked_by = Some(number);
                self.sessions.push(session);
            }
            Err(error) => self.tell(number, &failed("exec", &Report::Failed(error.to_string()))),
        }
    }

    fn spawn(&self, role: Role, program: &Program, stdin: bool, now: Instant) -> io::Result<Session> {
        let process = self.sessions[0].process.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let target = Target {
            pid: process.pid,
            pidfd: process.pidfd.as_fd(),
            groups: &self.groups,
            filter: &self.filter,
            config: &self.directory.join("config.json"),
        };
        let (ours, theirs) = report::pair()?;
        let (ends, pipes) = if program.tty.is_some() {
            (Ends::default(), None)
        } else {
            let (ends, pipes) = pipes(stdin)?;
            (ends, Some(pipes))
        };
        let session = Session::new(role, token()?, ours, ends, now)?;
        exec::spawn(&target, program, pipes, theirs)?;
        Ok(session)
    }

    /// Takes the status of every child that ended.
    fn reap(&mut self, now: Instant) {
        loop {
            let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if !matches!(waitid(WaitId::All, peek), Ok(Some(_))) {
                return;
            }
            // A process is ours to reap only after its report was sent: read it first, to know whose process it is.
            for s in 0..self.sessions.len() {
                if self.sessions[s].is_starting() && self.sessions[s].role != Role::Init {
                    let _ = self.read_report(s, now);
                }
            }
            let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) else { return };
            let pid = u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0);
            let session =
                self.sessions.iter_mut().find(|s| s.process.as_ref().is_some_and(|process| process.pid == pid));
            if let Some(session) = session {
                session.handle_exit(Ended::from_status(status), now);
            }
        }
    }

    /// Does what time or the events of this round have made due.
    fn settle(&mut self, now: Instant) -> Next {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        self.seat_visitors(now);
        if due(self.create_by) {
            self.create_by = None;
            return self.on_failed(&Report::Failed(format!("not created within {} s", CREATE_MAX.as_secs())));
        }
        let attached = !self.sessions[0].clients.is_empty();
        if self.phase == Phase::Created && self.start_by.is_some() && (attached || due(self.start_by)) {
            self.start_by = None;
            self.released = true;
            if let Err(error) = create::start(&self.config.id) {
                return self.on_failed(&Report::Failed(error.to_string()));
            }
        }
        if due(self.kill_at) {
            self.kill_at = None;
            self.kill();
        }
        if due(self.slim_at) {
            self.slim_at = None;
            if let Err(error) = sys::forget_text() {
                say(&format!("text stays in memory: {error}"));
            }
        }
        self.check_health(now);
        for s in (0..self.sessions.len()).rev() {
            let over = self.sessions[s].settle(now);
            match self.sessions[s].role {
                Role::Init if over && self.phase != Phase::Exited => self.on_exit(now),
                Role::Health if over => {
                    let session = self.sessions.remove(s);
                    self.on_checked(session, now);
                }
                Role::Exec if over && self.sessions[s].clients.is_empty() => {
                    self.sessions.remove(s);
                }
                Role::Init | Role::Health | Role::Exec => {}
            }
        }
        // A client that reads nothing is cut off after its time, so this comes.
        let heard = self.sessions.iter().all(|session| session.clients.is_empty());
        if self.reaped && heard { Next::End(0) } else { Next::Go }
    }

    fn kill(&self) {
        // ESRCH: creation is over, as it is nearly always.
        let _ = sys::signal(self.creator.as_fd(), 9);
        if let Some(process) = &self.sessions[0].process {
            // ESRCH: it has ended. The death of a PID namespace's first process takes all others along.
            let _ = sys::signal(process.pidfd.as_fd(), 9);
        }
        self.groups.kill();
    }

    fn check_health(&mut self, now: Instant) {
        let Some(checks) = self.checks.as_mut().filter(|_| self.phase == Phase::Running) else { return };
        match (checks.poll(now), &self.config.health) {
            (Some(Due::Check), Some(health)) => {
                let args = health.args.iter().map(|arg| arg.to_vec()).collect();
                match self.spawn(Role::Health, &Program { args, ..Program::default() }, false, now) {
                    Ok(session) => self.sessions.push(session),
                    Err(error) => {
                        self.check_output = error.to_string().into_bytes();
                        self.on_check_result(false, now);
                    }
                }
            }
            (Some(Due::Cancel), _) => {
                for session in self.sessions.iter_mut().filter(|session| session.role == Role::Health) {
                    if let Some(process) = &session.process {
                        // ESRCH: it ended at the same moment; late is late.
                        let _ = sys::signal(process.pidfd.as_fd(), 9);
                    }
                }
            }
            (Some(Due::Check), None) | (None, _) => {}
        }
    }

    fn on_checked(&mut self, session: Session, now: Instant) {
        if !session.capture.is_empty() {
            self.check_output = session.capture;
        }
        self.on_check_result(session.ended.is_some_and(|ended| ended.code == 0), now);
    }

    fn on_check_result(&mut self, passed: bool, now: Instant) {
        let changed = self.checks.as_mut().and_then(|checks| checks.handle_result(passed, now));
        if let Some(health) = changed {
            let output = self.check_output.clone();
            self.tell_all(&Event::Health { state: state_of(health), output });
        }
    }

    /// The container's program is over and its output read.
    fn on_exit(&mut self, now: Instant) {
        let Some(ended) = self.sessions[0].ended else { return };
        self.phase = Phase::Exited;
        self.checks = None;
        self.kill_at = None;
        let oom_killed = self.groups.oom_kills() > 0;
        let at_ms = unix_ms(SystemTime::now());
        self.note_exit(Exit { code: ended.code, signal: ended.signal, oom_killed, at_ms, start_failed: false });
        if let Some(exit) = self.exit.clone() {
            self.tell_all(&Event::Exited(exit));
        }
        // Waiting clients first: cleaning up takes milliseconds.
        for s in 0..self.sessions.len() {
            self.sessions[s].settle(now);
        }
        self.clean_up();
    }

    fn note_exit(&mut self, exit: Exit) {
        let path = Path::new(&self.config.exit_file);
        if let Err(error) = exitfile::write(path, &wire::encode(&exit), self.config.durable) {
            say(&format!("exit file {}: {error}", path.display()));
        }
        self.exit = Some(exit);
    }

    /// Kills what is left and removes the control groups and the library's directory.
    fn clean_up(&self) {
        self.kill();
        if let Err(error) = self.groups.remove() {
            say(&format!("control groups stay: {error}"));
        }
        let library = Path::new(LIBRARY).join(&self.config.id);
        match fs::remove_dir_all(&library) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => say(&format!("{}: {error}", library.display())),
            Ok(()) | Err(_) => {}
        }
    }

    fn state(&self) -> Event {
        Event::State {
            phase: self.phase,
            pid: self.sessions[0].process.as_ref().map(|process| process.pid),
            generation: self.config.generation,
            started_ms: self.started.map(unix_ms),
            health: self.checks.as_ref().map(|checks| state_of(checks.health())),
            exit: self.exit.clone(),
        }
    }

    fn tell(&mut self, number: u64, event: &Event) {
        let bytes = wire::encode(event);
        self.channels.retain(|channel| channel.number != number || said(channel, &bytes));
    }

    fn tell_all(&mut self, event: &Event) {
        let bytes = wire::encode(event);
        self.channels.retain(|channel| said(channel, &bytes));
    }
}

/// Sends one message. A peer that reads so little that its buffer is full is not waited for.
fn said(channel: &Channel, bytes: &[u8]) -> bool {
    send(&channel.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok()
}

fn failed(step: &str, why: &Report) -> Event {
    Event::Failed { step: step.to_owned(), message: why.to_string(), code: why.exit_code().unwrap_or(125) }
}

fn state_of(health: Health) -> HealthState {
    match health {
        Health::Starting => HealthState::Starting,
        Health::Healthy => HealthState::Healthy,
        Health::Unhealthy => HealthState::Unhealthy,
    }
}

/// The shim's ends and the program's ends of three pipes; without `stdin` its input is empty.
///
/// # Errors
/// No descriptors are left.
pub(crate) fn pipes(stdin: bool) -> io::Result<(Ends, Pipes)> {
    let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // Programs open /dev/stderr anew, often as another user, and the pipe is the host root's. Only who may look into
        // a process that has it can reach it.
        rustix::fs::fchmod(&write, rustix::fs::Mode::from_raw_mode(0o666))?;
        Ok((read, write))
    };
    let (out_read, out_write) = pipe()?;
    let (err_read, err_write) = pipe()?;
    let (input, program) = if stdin {
        let (read, write) = pipe()?;
        (Some(write), read)
    } else {
        (None, fs::File::open("/dev/null")?.into())
    };
    let ends = Ends { stdin: input, stdout: Some(out_read), stderr: Some(err_read) };
    Ok((ends, Pipes { stdin: program, stdout: out_write, stderr: err_write }))
}

/// Sixteen bytes nobody can guess.
///
/// # Errors
/// The kernel has no randomness.
pub(crate) fn token() -> io::Result<[u8; 16]> {
    let mut token = [0; 16];
    match getrandom(&mut token, GetRandomFlags::empty())? {
        16 => Ok(token),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The terminal's master, which the library sends with its path.
fn receive_master(socket: &OwnedFd) -> io::Result<OwnedFd> {
    report::receive_descriptor(socket)?.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A line for the file that the daemon keeps of our standard error.
#[expect(
    clippy::print_stderr,
    reason = "the shim's standard error is a file that the daemon shows; there is no subscriber"
)]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn unix_ms(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
