//! Kernel calls without a safe wrapper: the id map of a mount, and a user namespace that no process lives in.
#![expect(unsafe_code, reason = "this module is the crate's one boundary to raw system calls")]

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes of the holder's stack. It calls the kernel twice and nothing else.
const HOLDER_STACK_BYTES: usize = 16 * 1024;
/// Seconds after which the holder ends by itself, should its maker die between two steps.
const HOLDER_SECONDS: i64 = 20;

/// Gives the detached mount `mount` the id map of the user namespace `userns`.
///
/// # Errors
/// `EINVAL` when the filesystem or the kernel knows no idmapped mounts.
pub(crate) fn set_id_map(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>) -> io::Result<()> {
    let userns = u64::try_from(userns.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd: userns };
    // SAFETY: the path is a NUL-terminated literal, and the kernel reads exactly the given size of `attributes`, which
    // outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the calling thread a working directory of its own, so that it may change it.
///
/// # Errors
/// As `unshare`.
pub(crate) fn own_working_directory() -> io::Result<()> {
    // SAFETY: what is unshared is the working directory, root and mask of this thread, not its table of descriptors.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }.map_err(Into::into)
}

/// Moves the calling thread into a copy of its mount namespace.
///
/// # Errors
/// As `unshare`.
pub(crate) fn own_mount_namespace() -> io::Result<()> {
    // SAFETY: as above; no descriptor changes its owner.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.map_err(Into::into)
}

/// Moves the calling thread into a new network namespace.
///
/// # Errors
/// As `unshare`.
#[cfg(test)]
pub(crate) fn own_network_namespace() -> io::Result<()> {
    // SAFETY: as above; no descriptor changes its owner.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.map_err(Into::into)
}

/// Number of the descriptor that a shim finds its control socket at.
const CONTROL: libc::c_int = 3;

/// Starts `program` with one argument and no environment: nothing on its input and output, `errors` as its standard
/// error, `control` as descriptor 3, and no signal blocked or ignored. No page of this process is copied for it.
///
/// # Errors
/// As `posix_spawn`.
pub(crate) fn spawn(
    program: &Path,
    argument: &Path,
    errors: BorrowedFd<'_>,
    control: BorrowedFd<'_>,
) -> io::Result<rustix::process::Pid> {
    let program = CString::new(program.as_os_str().as_bytes())?;
    let argument = CString::new(argument.as_os_str().as_bytes())?;
    let words = [program.as_ptr().cast_mut(), argument.as_ptr().cast_mut(), std::ptr::null_mut()];
    let environment = [std::ptr::null_mut()];
    let mut actions = std::mem::MaybeUninit::<libc::posix_spawn_file_actions_t>::uninit();
    let mut attributes = std::mem::MaybeUninit::<libc::posix_spawnattr_t>::uninit();
    let (mut none, mut pipe) =
        (std::mem::MaybeUninit::<libc::sigset_t>::uninit(), std::mem::MaybeUninit::<libc::sigset_t>::uninit());
    let mut pid = 0;
    let check = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) };
    let flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
    // SAFETY: actions, attributes and sets are initialised by the calls before their use and destroyed once; all strings
    // and arrays end with NUL and outlive the call; the descriptors are open for as long as they are borrowed, and
    // duplicating one onto its own number clears its close-on-exec flag in the child alone.
    let spawned = unsafe {
        check(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
        check(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
        let (actions, attributes) = (actions.as_mut_ptr(), attributes.as_mut_ptr());
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigemptyset(pipe.as_mut_ptr());
        libc::sigaddset(pipe.as_mut_ptr(), libc::SIGPIPE);
        let null = c"/dev/null".as_ptr();
        let spawned = check(libc::posix_spawn_file_actions_adddup2(actions, errors.as_raw_fd(), 2))
            .and_then(|()| check(libc::posix_spawn_file_actions_adddup2(actions, control.as_raw_fd(), CONTROL)))
            .and_then(|()| check(libc::posix_spawn_file_actions_addopen(actions, 0, null, libc::O_RDONLY, 0)))
            .and_then(|()| check(libc::posix_spawn_file_actions_addopen(actions, 1, null, libc::O_WRONLY, 0)))
            .and_then(|()| check(libc::posix_spawnattr_setsigmask(attributes, none.as_ptr())))
            .and_then(|()| check(libc::posix_spawnattr_setsigdefault(attributes, pipe.as_ptr())))
            .and_then(|()| {
                check(libc::posix_spawnattr_setflags(attributes, libc::c_short::try_from(flags).unwrap_or(0)))
            })
            .and_then(|()| {
                let (words, environment) = (words.as_ptr(), environment.as_ptr());
                check(libc::posix_spawn(&raw mut pid, program.as_ptr(), actions, attributes, words, environment))
            });
        libc::posix_spawn_file_actions_destroy(actions);
        libc::posix_spawnattr_destroy(attributes);
        spawned
    };
    spawned?;
    rustix::process::Pid::from_raw(pid).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A new user namespace whose ids 0 to `count` - 1 are `base` and up outside.
///
/// A user namespace is born with a process. This one shares the memory of the caller (so that a large daemon copies no
/// page tables), sleeps until the namespace is mapped and opened, and is then killed and reaped.
///
/// # Errors
/// Where user namespaces are switched off, at their limit, or the ids are not the caller's to give.
pub(crate) fn user_namespace(base: u32, count: u32) -> io::Result<OwnedFd> {
    let holder = Holder::start()?;
    let map = format!("0 {base} {count}\n");
    fs::write(format!("/proc/{}/uid_map", holder.pid), &map)?;
    fs::write(format!("/proc/{}/gid_map", holder.pid), &map)?;
    Ok(fs::File::open(format!("/proc/{}/ns/user", holder.pid))?.into())
}

/// The process that a user namespace is born with; killed and reaped on drop, before its stack is freed.
struct Holder {
    pid: libc::pid_t,
    _stack: Vec<u128>,
}

impl Holder {
    fn start() -> io::Result<Self> {
        let mut stack = vec![0_u128; HOLDER_STACK_BYTES / size_of::<u128>()];
        let mut signals = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises `signals` and pthread_sigmask `before`; both live to the end of this block.
        // The stack is 16-aligned, is passed by its end (it grows down) and is kept by the Holder until the process was
        // reaped. The process runs `hold` only, which touches no memory but its stack: no allocator, no errno (its
        // calls cannot fail: all signals are blocked, and the mask is inherited), no thread-local variable.
        let pid = unsafe {
            libc::sigfillset(signals.as_mut_ptr());
            let masked = libc::pthread_sigmask(libc::SIG_SETMASK, signals.as_ptr(), before.as_mut_ptr());
            if masked != 0 {
                return Err(io::Error::from_raw_os_error(masked));
            }
            let end = stack.as_mut_ptr().add(stack.len());
            let pid = libc::clone(hold, end.cast(), libc::CLONE_VM | libc::CLONE_NEWUSER, std::ptr::null_mut());
            let error = io::Error::last_os_error();
            libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
            if pid < 0 {
                return Err(error);
            }
            pid
        };
        Ok(Self { pid, _stack: stack })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: `pid` is a child of ours that nobody else waits for (it sends no signal on exit), so the number cannot
        // have been given to another process.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            while libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WALL) < 0
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
    }
}

extern "C" fn hold(_argument: *mut libc::c_void) -> libc::c_int {
    let wait = libc::timespec { tv_sec: HOLDER_SECONDS, tv_nsec: 0 };
    // SAFETY: both calls take plain numbers and one pointer to `wait`, which outlives them.
    unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        libc::syscall(libc::SYS_nanosleep, &raw const wait, 0_usize);
        libc::syscall(libc::SYS_exit_group, 0);
    }
    0
}
