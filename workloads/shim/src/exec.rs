//! Runs one more program in a running container.
//!
//! The OCI library's own way never enters the container's user namespace: the program would have the host's ids. Here a
//! child joins the container's control groups and, in one call, every namespace in which its init differs from us; a
//! grandchild becomes the program, with the user, capabilities, limits and filter of the container.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use oci_spec::runtime::{Capability, PosixRlimitType, Process, Spec};
use rustix::process::{DumpableBehavior, Gid, Pid, Resource, Rlimit, Uid};
use rustix::pty::{OpenptFlags, openpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType};

use crate::cgroup::Groups;
use crate::executor::{Filter, c_strings, find_program, launch};
use crate::report::{self, Report};
use crate::sys::{self, Fork};

/// File type of a mounted devpts, `DEVPTS_SUPER_MAGIC`.
const DEVPTS: i64 = 0x1cd1;

/// The program and how it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub(crate) args: Vec<Vec<u8>>,
    /// Added to the container's own environment, or replacing its entries.
    pub(crate) env: Vec<(String, String)>,
    /// The container's own when absent.
    pub(crate) workdir: Option<String>,
    /// User, group and further groups; the container's own when absent.
    pub(crate) user: Option<User>,
    /// Rows and columns of a terminal.
    pub(crate) tty: Option<(u16, u16)>,
}

/// Resolved ids, as inside of the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// The container to run in.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    /// Of its init.
    pub(crate) pid: u32,
    pub(crate) pidfd: BorrowedFd<'a>,
    pub(crate) groups: &'a Groups,
    pub(crate) filter: &'a Filter,
    /// The container's `config.json`.
    pub(crate) config: &'a Path,
}

/// The program's ends of its streams; without them it gets a terminal.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Starts it. The answer comes over the report's socket: [`Report::Process`], perhaps [`Report::Terminal`], then the end once
/// the program runs, or a failure. The returned process only prepares and must be reaped.
///
/// # Errors
/// fork(2) failed.
pub(crate) fn spawn(target: &Target<'_>, program: &Program, pipes: Option<Pipes>, socket: OwnedFd) -> io::Result<Pid> {
    match sys::fork()? {
        Fork::Parent(pid) => Ok(pid),
        Fork::Child => {
            if let Err(error) = prepare(target, program, pipes, &socket) {
                // Nobody else can be told if this fails: the shim then sees an end without a process.
                let _ = report::send(&socket, &Report::Failed(error), None);
                sys::exit_now(1);
            }
            sys::exit_now(0)
        }
    }
}

/// A step's name before its error.
trait Step<T> {
    fn step(self, name: &str) -> Result<T, String>;
}

impl<T, E: std::fmt::Display> Step<T> for Result<T, E> {
    fn step(self, name: &str) -> Result<T, String> {
        self.map_err(|error| format!("{name}: {error}"))
    }
}

fn prepare(target: &Target<'_>, program: &Program, pipes: Option<Pipes>, socket: &OwnedFd) -> Result<(), String> {
    // The container's root must not trace this process or open its files once it is inside.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("not dumpable")?;
    let spec = Spec::load(target.config).step("config.json")?;
    let process = spec.process().as_ref().ok_or("config.json has no process")?;
    let namespaces = differing(target.pid).step("namespaces of the container")?;
    target.groups.join().step("control groups")?;
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string()).step("oom_score_adj")?;
    }
    limits(process).step("limits")?;
    rustix::thread::move_into_thread_name_spaces(target.pidfd, namespaces).step("setns")?;
    match sys::fork_child().step("fork")? {
        Fork::Parent(pid) => {
            let pid = u32::try_from(pid.as_raw_nonzero().get()).step("process number")?;
            report::send(socket, &Report::Process(pid), None).step("report")
        }
        Fork::Child => {
            if let Err(why) = become_program(process, target.filter, program, pipes, socket) {
                // As above.
                let _ = report::send(socket, &why, None);
                sys::exit_now(why.exit_code().unwrap_or(125));
            }
            sys::exit_now(125)
        }
    }
}

/// The namespaces in which a process differs from this one. Entering the own user namespace again would be refused.
fn differing(pid: u32) -> io::Result<ThreadNameSpaceType> {
    let mut kinds = ThreadNameSpaceType::empty();
    for (name, kind) in [
        ("user", ThreadNameSpaceType::USER),
        ("mnt", ThreadNameSpaceType::MOUNT),
        ("pid", ThreadNameSpaceType::PROCESS_ID),
        ("net", ThreadNameSpaceType::NETWORK),
        ("uts", ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
        ("ipc", ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
        ("cgroup", ThreadNameSpaceType::CONTROL_GROUP),
    ] {
        if fs::read_link(format!("/proc/{pid}/ns/{name}"))? != fs::read_link(format!("/proc/self/ns/{name}"))? {
            kinds |= kind;
        }
    }
    Ok(kinds)
}

fn limits(process: &Process) -> io::Result<()> {
    for limit in process.rlimits().iter().flatten() {
        let Some(resource) = resource(limit.typ()) else { continue };
        let value = |n: u64| (n != u64::MAX).then_some(n);
        rustix::process::setrlimit(resource, Rlimit { current: value(limit.soft()), maximum: value(limit.hard()) })?;
    }
    Ok(())
}

fn resource(kind: PosixRlimitType) -> Option<Resource> {
    Some(match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    })
}

fn become_program(
    process: &Process,
    filter: &Filter,
    program: &Program,
    pipes: Option<Pipes>,
    socket: &OwnedFd,
) -> Result<(), Report> {
    let failed = Report::Failed;
    rustix::process::setsid().step("setsid").map_err(failed)?;
    match (pipes, program.tty) {
        (Some(pipes), _) => attach(&pipes.stdin, &pipes.stdout, &pipes.stderr).step("streams").map_err(failed)?,
        (None, size) => terminal(size, socket).step("terminal").map_err(failed)?,
    }
    let user = program.user.clone().unwrap_or_else(|| User {
        uid: process.user().uid(),
        gid: process.user().gid(),
        groups: process.user().additional_gids().clone().unwrap_or_default(),
    });
    become_user(process, &user).step("user").map_err(failed)?;
    let workdir = program.workdir.as_deref().map_or(process.cwd().as_path(), Path::new);
    rustix::process::chdir(workdir)
        .map_err(|error| failed(format!("working directory {}: {error}", workdir.display())))?;

    let env = environment(process, program, user.uid);
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH="));
    let file = find_program(program.args.first().map(Vec::as_slice).unwrap_or_default(), path)?;
    let file = CString::new(file.as_os_str().as_bytes()).step("program").map_err(failed)?;
    let args = c_strings(program.args.iter().cloned()).step("arguments").map_err(failed)?;
    let env = c_strings(env).step("environment").map_err(failed)?;
    launch(filter, socket, &file, &args, &env)
}

/// The container's environment, with the program's own entries over it and a HOME if there is none.
fn environment(process: &Process, program: &Program, uid: u32) -> Vec<String> {
    let mut env: Vec<String> = process.env().clone().unwrap_or_default();
    for (name, value) in &program.env {
        env.retain(|entry| entry.split_once('=').is_none_or(|(known, _)| known != name));
        env.push(format!("{name}={value}"));
    }
    // The container's HOME is its own user's.
    if program.user.is_some() && !program.env.iter().any(|(name, _)| name == "HOME") {
        env.retain(|entry| !entry.starts_with("HOME="));
    }
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", home(uid)));
    }
    env
}

/// The home directory that the container's `/etc/passwd` names for a user, else `/`.
fn home(uid: u32) -> String {
    use io::Read;
    let mut text = String::new();
    // A container without the file, or with bytes that are no text, has no homes.
    let _ = fs::File::open("/etc/passwd").and_then(|file| file.take(1 << 20).read_to_string(&mut text));
    let field = |line: &str| {
        let fields: Vec<_> = line.split(':').collect();
        (fields.len() >= 6 && fields[2].parse() == Ok(uid)).then(|| fields[5].to_owned())
    };
    text.lines().find_map(field).filter(|home| home.starts_with('/')).unwrap_or_else(|| "/".to_owned())
}

fn attach(stdin: impl AsFd, stdout: impl AsFd, stderr: impl AsFd) -> io::Result<()> {
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    Ok(rustix::stdio::dup2_stderr(stderr)?)
}

/// Opens a terminal of the container's own devpts, takes it and sends its master to the shim.
fn terminal(size: Option<(u16, u16)>, socket: &OwnedFd) -> io::Result<()> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    // The container may have put anything in that place; the shim must never read from what is no terminal.
    let refuse = || io::Error::new(io::ErrorKind::InvalidData, "the container's /dev/ptmx is no terminal");
    let (status, filesystem) = (rustix::fs::fstat(&master)?, rustix::fs::fstatfs(&master)?);
    let device = (rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev));
    if device != (5, 2) || filesystem.f_type != DEVPTS {
        return Err(refuse());
    }
    rustix::pty::unlockpt(&master)?;
    let slave =
        rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    if let Some((rows, columns)) = size {
        tcsetwinsize(&slave, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?;
    }
    rustix::process::ioctl_tiocsctty(&slave)?;
    attach(&slave, &slave, &slave)?;
    report::send(socket, &Report::Terminal, Some(master.as_fd()))
}

/// The bit set of a list of capabilities; a name this kernel does not know is left out.
fn set(capabilities: Option<&std::collections::HashSet<Capability>>) -> CapabilitySet {
    let bits = capabilities.into_iter().flatten().filter_map(|c| number(*c)).fold(0, |bits, n| bits | 1 << n);
    CapabilitySet::from_bits_retain(bits)
}

fn number(capability: Capability) -> Option<u32> {
    Some(match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    })
}

/// Groups, ids, capabilities, `no_new_privs`, in the order that keeps each step allowed.
fn become_user(process: &Process, user: &User) -> io::Result<()> {
    let capabilities = process.capabilities().as_ref();
    let bounding = set(capabilities.and_then(|c| c.bounding().as_ref()));
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::capability_is_in_bounding_set(one) {
            Ok(true) if !bounding.contains(one) => rustix::thread::remove_capability_from_bounding_set(one)?,
            Ok(_) => {}
            Err(_) => break, // the kernel's last capability is behind us
        }
    }
    rustix::thread::set_keep_capabilities(true)?;
    let groups: Vec<_> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // A user who is not the container's root has the capabilities of its files only.
    let own = |list: Option<&std::collections::HashSet<Capability>>| {
        if uid.is_root() { set(list) } else { CapabilitySet::empty() }
    };
    rustix::thread::clear_ambient_capability_set()?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: own(capabilities.and_then(|c| c.effective().as_ref())),
            permitted: own(capabilities.and_then(|c| c.permitted().as_ref())),
            inheritable: own(capabilities.and_then(|c| c.inheritable().as_ref())),
        },
    )?;
    rustix::thread::set_keep_capabilities(false)?;
    if process.no_new_privileges().unwrap_or(false) {
        rustix::thread::set_no_new_privs(true)?;
    }
    Ok(())
}
