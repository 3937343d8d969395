//! `meshd-shim DIRECTORY`: the parent of one container. It starts the container, keeps its streams and its log, runs further
//! programs in it, and tells how it ended. It outlives the daemon that started it, and has one thread.

mod cgroup;
mod client;
mod create;
mod exec;
mod executor;
mod exitfile;
mod health;
mod ports;
mod report;
mod ring;
mod session;
mod supervise;
mod sys;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use rustix::fs::{FlockOperation, Mode, flock};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, listen, send, socket_with};
use rustix::process::{PidfdFlags, pidfd_open, setsid, umask};

use crate::create::{Plan, Streams};
use crate::executor::Filter;
use crate::ring::Ring;
use crate::session::{Ends, Role, Session};
use crate::supervise::{Parts, Shim, pipes, say, token};
use workloads_wire::message::{self as wire, CONFIG_BYTES_MAX, Config, Event, Held};

/// Where the daemon leaves its end of the first control connection.
const DAEMON: i32 = 3;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// What a step of setting up was doing when it failed.
struct Refusal {
    step: &'static str,
    source: io::Error,
}

/// Names the step of an error.
trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Refusal>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, Refusal> {
        self.map_err(|source| Refusal { step, source: source.into() })
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(directory), None) = (args.next(), args.next()) else {
        say("usage: meshd-shim DIRECTORY (started by meshd, with a control socket as descriptor 3)");
        return ExitCode::from(2);
    };
    let daemon = match sys::inherited(DAEMON).and_then(|daemon| sys::close_from(4).map(|()| daemon)) {
        Ok(daemon) => daemon,
        Err(error) => {
            say(&format!("descriptor {DAEMON}, the daemon's control socket: {error}"));
            return ExitCode::from(2);
        }
    };
    // Kept until the end: the lock says that we live, the ports are the container's.
    let (lock, held, parts) = match set_up(directory, &daemon) {
        Ok((lock, held, parts)) => (lock, held, parts(daemon)),
        Err(Refusal { step, source }) => {
            say(&format!("{step}: {source}"));
            let message = format!("{step}: {source}");
            let event = Event::Failed { step: step.to_owned(), message, code: 125 };
            // A daemon that is gone finds the message in our standard error.
            let _ = send(&daemon, &wire::encode(&event), SendFlags::NOSIGNAL);
            return ExitCode::from(1);
        }
    };
    let code = match Shim::new(parts, Instant::now()).run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("poll: {error}"));
            ExitCode::from(1)
        }
    };
    drop((lock, held));
    code
}

/// All that comes before the loop; the container's creation has begun when it returns.
fn set_up(
    directory: OsString,
    daemon: &OwnedFd,
) -> Result<(File, Vec<OwnedFd>, impl FnOnce(OwnedFd) -> Parts + use<>), Refusal> {
    let directory = std::fs::canonicalize(PathBuf::from(directory)).step("directory")?;
    // Paths of sockets are relative: an absolute one may be longer than an address can be.
    std::env::set_current_dir(&directory).step("directory")?;
    umask(Mode::from_raw_mode(0o077));
    client::nonblocking(daemon).step("control socket")?;
    let lock = lock().step("lock")?;
    let config = read_config().step("shim.cbor")?;
    sys::ignore_terminate();
    // EPERM: whoever started us made us the leader of a group already, which keeps signals for its terminal away as well.
    let _ = setsid();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).step("subreaper")?;
    if let Some(group) = &config.shim_cgroup {
        cgroup::Groups::find(Path::new(group)).and_then(|groups| groups.join()).step("the shims' control group")?;
    }
    let control = listener("sock", SocketType::SEQPACKET).step("control socket")?;
    let streams = listener("streams", SocketType::STREAM).step("stream socket")?;
    let held = config.held.iter().map(hold_port).collect::<io::Result<Vec<_>>>().step("port")?;
    let filter = Filter::from_bytes(&config.filter).step("seccomp filter")?;
    let ring = config.log_directory.as_ref();
    let ring = ring.map(|log| Ring::open(Path::new(log), config.log_segment_bytes, config.log_segments));
    let ring = ring.transpose().step("log")?;

    let (ours, theirs) = report::pair().step("report")?;
    let (console, ends, given) = if config.tty {
        let console = listener("console", SocketType::STREAM).step("console")?;
        (Some(console), Ends::default(), Streams::Terminal { console: directory.join("console") })
    } else {
        let (ends, given) = pipes(config.stdin).step("pipes")?;
        (None, ends, Streams::Pipes { stdin: given.stdin, stdout: given.stdout, stderr: given.stderr })
    };
    let init = Session::new(Role::Init, token().step("token")?, ours, ends, Instant::now()).step("streams")?;
    let netns = config.netns.as_deref().map(Path::new);
    let plan = Plan { directory: &directory, id: &config.id, netns, filter: filter.clone() };
    // Sockets and log are ours alone; the container's groups and directories are not only for their owner.
    umask(Mode::from_raw_mode(0o022));
    let creator = create::create(&plan, given, theirs).step("fork")?;
    let creator = pidfd_open(creator, PidfdFlags::empty()).step("pidfd")?;
    let parts =
        move |daemon| Parts { config, directory, filter, ring, control, streams, console, daemon, init, creator };
    Ok((lock, held, parts))
}

/// Takes the lock that says that this container has a living shim.
fn lock() -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open("lock")?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

fn read_config() -> io::Result<Config> {
    let mut bytes = Vec::new();
    File::open("shim.cbor")?.take(u64::try_from(CONFIG_BYTES_MAX).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    wire::decode(&bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a configuration of this version"))
}

/// Holds a port; an error names it.
fn hold_port(held: &Held) -> io::Result<OwnedFd> {
    ports::hold(held).map_err(|error| {
        let protocol = if held.udp { "udp" } else { "tcp" };
        io::Error::new(error.kind(), format!("{}/{protocol}: {error}", held.port))
    })
}

/// Listens below the working directory. A socket left by a shim that was killed is replaced: we hold the lock.
fn listener(name: &str, kind: SocketType) -> io::Result<OwnedFd> {
    match std::fs::remove_file(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    bind(&socket, &SocketAddrUnix::new(name)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}
