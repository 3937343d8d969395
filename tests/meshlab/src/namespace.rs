//! Namespaces: of the lab (processes, mounts) and of each of its machines (network, mounts, host name).
//!
//! They have no names and no files: they live as long as a descriptor or a process refers to them, so a lab that is
//! killed leaves none behind. The lab's own process never enters any; threads made for one purpose do.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use nix::fcntl::{OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, sethostname};

use crate::sys;

/// Directories of which each machine has its own version over the real one: what it writes there, only it sees.
const PRIVATE_DIRS: [&str; 3] = ["/etc", "/var/lib", "/var/log"];

/// How long the kernel may take to kill the lab's processes.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The lab's PID namespace and its first process, without which nothing in it lives.
#[derive(Debug)]
pub(crate) struct Init {
    pid: Pid,
    pid_namespace: OwnedFd,
    /// The mount namespace that those of the machines are copied from.
    mounts: OwnedFd,
    /// Closing it ends the process.
    lifeline: Mutex<Option<OwnedFd>>,
}

impl Init {
    pub(crate) fn start() -> io::Result<Self> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWPID)?;
            let (pid, lifeline) = sys::fork_init()?;
            let pid_namespace = File::open("/proc/thread-self/ns/pid_for_children")?.into();
            let mounts = File::open(format!("/proc/{pid}/ns/mnt"))?.into();
            Ok(Self { pid, pid_namespace, mounts, lifeline: Mutex::new(Some(lifeline)) })
        })
    }

    /// Kills every process of the lab. What this process started itself it must have reaped before, or the kernel waits.
    pub(crate) fn kill(&self) {
        let lifeline = self.lifeline.lock().ok().and_then(|mut l| l.take());
        if lifeline.is_none() {
            return;
        }
        let _ = kill(self.pid, Signal::SIGKILL);
        let pid = u32::try_from(self.pid.as_raw()).expect("process ids are positive");
        if sys::pidfd_open(pid).is_ok_and(|pidfd| has_ended(&pidfd, KILL_TIMEOUT)) {
            let _ = waitpid(self.pid, None);
        }
    }

    pub(crate) fn pid_namespace(&self) -> &OwnedFd {
        &self.pid_namespace
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for the process behind a pidfd.
pub(crate) fn has_ended(pidfd: &OwnedFd, timeout: Duration) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    matches!(poll(&mut fds, timeout), Ok(n) if n > 0)
}

/// The namespaces of one machine.
#[derive(Debug)]
pub(crate) struct Namespace {
    network: OwnedFd,
    mounts: OwnedFd,
    uts: OwnedFd,
}

impl Namespace {
    /// Makes the namespaces of a machine with its own `/run`, `/sys`, [`PRIVATE_DIRS`] and these files in `/etc`.
    pub(crate) fn create(init: &Init, hostname: &str, etc: &[(&str, String)]) -> io::Result<Self> {
        on_thread(|| {
            // This thread is invisible in the lab's /proc, so the way to its own namespaces is kept from before.
            let own = File::open("/proc/thread-self/ns")?;
            let open = |kind: &str| {
                openat(&own, kind, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(io::Error::from)
            };
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS)?;
            sethostname(hostname)?;
            setns(&init.mounts, CloneFlags::CLONE_NEWNS)?;
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount_private_dirs()?;
            for (name, contents) in etc {
                let path = format!("/etc/{name}");
                // It may be a link into what this machine does not see.
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => fs::write(&path, contents)?,
                }
            }
            Ok(Self { network: open("net")?, mounts: open("mnt")?, uts: open("uts")? })
        })
    }

    /// Runs `body` on a fresh thread in the network namespace only: files are the real machine's.
    pub(crate) fn enter_network<T: Send>(&self, body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_thread(|| {
            setns(&self.network, CloneFlags::CLONE_NEWNET)?;
            body()
        })
    }

    /// Runs `body` on a fresh thread inside the machine.
    pub(crate) fn enter<T: Send>(&self, body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_thread(|| {
            setns(&self.network, CloneFlags::CLONE_NEWNET)?;
            setns(&self.uts, CloneFlags::CLONE_NEWUTS)?;
            unshare(CloneFlags::CLONE_FS)?;
            setns(&self.mounts, CloneFlags::CLONE_NEWNS)?;
            body()
        })
    }

    /// Like [`Namespace::enter`], for a `body` that starts processes: they belong to the lab. It cannot start threads.
    pub(crate) fn enter_with_processes<T: Send>(
        &self,
        init: &Init,
        body: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        self.enter(|| {
            setns(init.pid_namespace(), CloneFlags::CLONE_NEWPID)?;
            body()
        })
    }

    /// A path to the network namespace, for other processes while this one lives.
    pub(crate) fn network_path(&self) -> String {
        descriptor_path(&self.network)
    }

    /// The `nsenter` call that enters the machine from a shell on the real one.
    pub(crate) fn nsenter(&self, init: &Init) -> String {
        format!(
            "nsenter --net={} --uts={} --mount={} --pid={}",
            descriptor_path(&self.network),
            descriptor_path(&self.uts),
            descriptor_path(&self.mounts),
            descriptor_path(init.pid_namespace()),
        )
    }
}

fn descriptor_path(fd: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
}

fn mount_private_dirs() -> io::Result<()> {
    const NO_DATA: Option<&str> = None;
    let mount_new = |kind: &str, target: &str, data: Option<&str>| {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), data)
            .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("mount {kind} on {target}: {e}")))
    };
    mount_new("tmpfs", "/run", Some("mode=755"))?;
    // sysfs shows the interfaces of whoever mounts it; the control groups below it stay those of the machine.
    let (cgroup, kept) = ("/sys/fs/cgroup", "/run/cgroup");
    let has_cgroup = Path::new(cgroup).exists();
    if has_cgroup {
        fs::create_dir(kept)?;
        mount(Some(cgroup), kept, NO_DATA, MsFlags::MS_BIND | MsFlags::MS_REC, NO_DATA)?;
    }
    mount_new("sysfs", "/sys", None)?;
    if has_cgroup {
        mount(Some(kept), cgroup, NO_DATA, MsFlags::MS_MOVE, NO_DATA)?;
        fs::remove_dir(kept)?;
    }

    // The changes live in memory, on a file system that no path leads to afterwards.
    let changes = "/run/changes";
    fs::create_dir(changes)?;
    mount_new("tmpfs", changes, Some("mode=700"))?;
    for (index, dir) in PRIVATE_DIRS.iter().enumerate() {
        let (upper, work) = (format!("{changes}/{index}"), format!("{changes}/{index}.work"));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        mount_new("overlay", dir, Some(&format!("lowerdir={dir},upperdir={upper},workdir={work}")))?;
    }
    nix::mount::umount2(changes, nix::mount::MntFlags::MNT_DETACH)?;
    fs::remove_dir(changes)?;
    fs::create_dir_all("/run/lock")
}

/// Runs `body` on a thread of its own, which may be left in any state, and hands on its panic.
fn on_thread<T: Send>(body: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| match thread::Builder::new().name("lab".to_owned()).spawn_scoped(scope, body)?.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
