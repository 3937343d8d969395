//! The calls that need unsafe code: fork, execve, the seccomp filter, dispositions of signals, the inherited channel.
#![expect(
    unsafe_code,
    reason = "fork, execve, prctl and signal have no safe form in our dependencies; each block says why"
)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::Pid;

/// Which side of a fork this is.
pub(crate) enum Fork {
    /// The caller, with the child's number.
    Parent(Pid),
    /// The child. It must end by [`exit_now`] or [`execve`].
    Child,
}

/// Forks this process.
///
/// # Errors
/// What fork(2) says.
///
/// # Panics
/// If this process has more than one thread: the child would inherit locks nobody holds any more.
pub(crate) fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task")?.take(2).count();
    assert_eq!(threads, 1, "the shim forks and therefore has one thread");
    fork_child()
}

/// Forks a process that is itself [`Fork::Child`] and has one thread for that reason. Its `/proc` may be the container's, in
/// which it does not exist, so nothing can be counted there.
///
/// # Errors
/// What fork(2) says.
pub(crate) fn fork_child() -> io::Result<Fork> {
    // SAFETY: the process has one thread (asserted by `fork`), so every lock and the heap are in a consistent state in the
    // child.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid => Pid::from_raw(pid).filter(|_| pid > 0).map(Fork::Parent).ok_or_else(io::Error::last_os_error),
    }
}

/// Ends the process at once: no destructors, no handlers of the parent's image.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any number and does not return.
    unsafe { libc::_exit(code) }
}

/// Replaces this process by a program; returns only when that failed.
pub(crate) fn execve(program: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<*const libc::c_char>>()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: all three point to NUL-terminated strings that outlive the call, both arrays end with a null pointer.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Confines this process to a compiled seccomp filter, for ever.
///
/// # Errors
/// What prctl(2) says: EINVAL for a filter the kernel's verifier refuses, EACCES without `no_new_privs`.
pub(crate) fn install_filter(filter: &[libc::sock_filter]) -> io::Result<()> {
    let len = libc::c_ushort::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` names `len` instructions that outlive the call; the kernel copies and verifies them, and writes nothing.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// SIGTERM and SIGHUP do not end the shim: a service manager that stops its unit must not take the container along.
pub(crate) fn ignore_terminate() {
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
        // SAFETY: SIG_IGN is a valid disposition and runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Undoes [`ignore_terminate`] and what Rust's runtime sets (SIGPIPE): ignored signals would survive execve.
pub(crate) fn default_signals() {
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGPIPE] {
        // SAFETY: SIG_DFL is a valid disposition and runs no code.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Takes a descriptor that the parent promised to leave open at this number, and hides it from every later execve.
///
/// # Errors
/// EBADF when nothing is open there.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer and changes nothing.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open (checked above); main calls this once, before anything else could own that number.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Sends a signal by number, real-time ones included, to the process behind a pidfd.
///
/// # Errors
/// What `pidfd_send_signal(2)` says: ESRCH once the process has been reaped, EINVAL for a number that is no signal.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, number: u8) -> io::Result<()> {
    let info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null `info` asks for the same as kill(2); nothing is written.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::c_int::from(number), info, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from `first` on: whatever our parent left open by accident is neither ours nor the container's.
///
/// # Errors
/// What `close_range(2)` says.
pub(crate) fn close_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: main calls this before this process has opened anything itself, so no owner exists for what is closed.
    close_range(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) })
}

/// Hides every descriptor but the three standard ones from the program that execve starts.
///
/// # Errors
/// What `close_range(2)` says.
pub(crate) fn hide_descriptors() -> io::Result<()> {
    // SAFETY: nothing is closed here; execve does it, when nothing of this image is left that could use them.
    close_range(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) })
}

fn close_range(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the pages of program text back that only starting up needed. They stay in the page cache, and what is called again
/// comes back from there by itself.
///
/// # Errors
/// `/proc/self/maps` cannot be read.
pub(crate) fn forget_text() -> io::Result<()> {
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (range, permissions, file) = (fields.next(), fields.next(), fields.nth(3));
        if permissions != Some("r-xp") || !file.is_some_and(|file| file.starts_with('/')) {
            continue;
        }
        let Some((start, end)) = range.and_then(|range| range.split_once('-')) else { continue };
        let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)) else { continue };
        let start: *mut libc::c_void = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: an unwritable mapping of a file has no contents of its own: the kernel maps the same pages of the file
        // again on the next access. Text is never relocated, so no page of it is private.
        unsafe { libc::madvise(start, end - start.addr(), libc::MADV_DONTNEED) };
    }
    Ok(())
}
