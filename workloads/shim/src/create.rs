//! Makes the container, in a child of the shim that ends as soon as the container exists.
//!
//! The OCI library forks from its caller, touches much memory and marks its caller as not dumpable; all of that happens in
//! the child. It makes the container a *sibling* of the child, so the shim is its parent, and the shim stays small.

use std::error::Error;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use rustix::process::Pid;
use rustix::thread::LinkNameSpaceType;

use crate::executor::{Filter, Launch};
use crate::report::{self, Report};
use crate::sys::{self, Fork};

/// The library's own directory, below the container's.
pub(crate) const LIBRARY: &str = "lc";

/// What creation needs to know.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The container's directory with `config.json`, absolute.
    pub(crate) directory: &'a Path,
    /// The container's name for the library.
    pub(crate) id: &'a str,
    /// The network namespace to be in. It belongs to the host's user namespace, so it cannot be joined from the container's.
    pub(crate) netns: Option<&'a Path>,
    /// The filter for the program.
    pub(crate) filter: Filter,
}

/// The streams of the container's program.
#[derive(Debug)]
pub(crate) enum Streams {
    /// Three descriptors.
    Pipes { stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd },
    /// A terminal, whose master arrives at this socket's path.
    Terminal { console: PathBuf },
}

/// Starts creation. The answer comes over the report's socket: [`Report::Process`], or a failure.
///
/// # Errors
/// fork(2) failed.
pub(crate) fn create(plan: &Plan<'_>, streams: Streams, socket: OwnedFd) -> io::Result<Pid> {
    match sys::fork()? {
        Fork::Parent(pid) => Ok(pid),
        Fork::Child => {
            let socket = Rc::new(socket);
            let (report, code) = match build(plan, streams, Rc::clone(&socket)) {
                Ok(pid) => (Report::Process(pid), 0),
                Err(text) => (Report::Failed(text), 1),
            };
            // The shim reads the end of the socket as a failure if this is lost.
            let _ = report::send(&*socket, &report, None);
            sys::exit_now(code)
        }
    }
}

fn build(plan: &Plan<'_>, streams: Streams, socket: Rc<OwnedFd>) -> Result<u32, String> {
    if let Some(netns) = plan.netns {
        let namespace = File::open(netns).map_err(|error| format!("network namespace: {error}"))?;
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| format!("network namespace: {error}"))?;
    }
    let builder = ContainerBuilder::new(plan.id.to_owned(), SyscallType::default())
        .with_executor(Launch::new(plan.filter.clone(), socket))
        .with_root_path(plan.directory.join(LIBRARY))
        .and_then(ContainerBuilder::validate_id)
        .map_err(|error| chain(&error))?;
    let builder = match streams {
        Streams::Pipes { stdin, stdout, stderr } => builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr),
        Streams::Terminal { console } => builder.with_console_socket(Some(console)),
    };
    let container = builder
        .as_init(plan.directory)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(|error| chain(&error))?;
    let pid = container.pid().ok_or("the library made no process")?;
    u32::try_from(pid.as_raw()).map_err(|error| error.to_string())
}

/// An error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Lets the created container's program run.
///
/// The library's process waits for a connection that says anything and ends. The path is relative, below the shim's working
/// directory: an absolute one may be longer than a socket's address can be.
///
/// # Errors
/// The process is not there any more.
pub(crate) fn start(id: &str) -> io::Result<()> {
    use io::Write;
    let path = Path::new(LIBRARY).join(id).join("notify.sock");
    std::os::unix::net::UnixStream::connect(path)?.write_all(b"start container")
}
