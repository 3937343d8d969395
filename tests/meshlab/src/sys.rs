//! The kernel calls that neither the standard library nor nix offers safely, and the only unsafe code of this crate.
#![expect(unsafe_code, reason = "this module is the crate's one boundary to raw system calls")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;

use libc::{c_int, c_uint};
use nix::fcntl::OFlag;
use nix::unistd::{Pid, pipe2};

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Creates the TUN interface `name` in the calling thread's network namespace.
///
/// It does not block, carries a virtio header before each packet, and takes and gives super-packets. It vanishes with
/// the descriptor.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`, `ENOENT` if the kernel has no TUN.
pub(crate) fn tun_create(name: &str) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    // SAFETY: `ifreq` is plain old data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives on this stack frame.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    // UDP segmentation needs Linux 6.2; without it the kernel cuts datagrams itself.
    offload(&file, tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6).or_else(|_| offload(&file, tcp))?;
    Ok(file)
}

fn offload(tun: &File, features: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(features)) }).map(drop)
}

/// Asks the scheduler to prefer the calling thread, a little: the WAN should keep its delays on a busy machine, but not
/// starve the programs that have to read what it delivers.
///
/// # Errors
/// `EACCES` without `CAP_SYS_NICE`.
pub(crate) fn raise_priority() -> io::Result<()> {
    // SAFETY: no pointers; on Linux, 0 means the calling thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -5) }).map(drop)
}

/// A descriptor that becomes readable when the process ends.
///
/// # Errors
/// `ESRCH` if there is no such process.
pub(crate) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Forks the first process of the calling thread's new PID namespace, which must have been unshared before.
///
/// It gets a mount namespace with its own `/proc`, then does nothing but inherit orphans until the returned lifeline is
/// closed, by will or because this process died in whatever way. With it, the kernel kills everything in the namespace.
///
/// # Errors
/// Those of `fork`, `unshare` and `mount`.
pub(crate) fn fork_init() -> io::Result<(Pid, OwnedFd)> {
    let (lifeline_end, lifeline) = pipe2(OFlag::O_CLOEXEC)?;
    let (ready, ready_end) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the child calls nothing but async-signal-safe system calls before it exits, because other threads of this
    // process may have held locks at the moment of the fork.
    match check(unsafe { libc::fork() })? {
        0 => run_init(lifeline_end.as_raw_fd(), ready_end.as_raw_fd()),
        pid => {
            drop(ready_end);
            let mut error = [0; 4];
            // Nothing written means that it died before it could say why.
            let error = match File::from(ready).read_exact(&mut error) {
                Ok(()) => c_int::from_ne_bytes(error),
                Err(_) => libc::ECHILD,
            };
            let pid = Pid::from_raw(pid);
            if error != 0 {
                drop(lifeline);
                nix::sys::wait::waitpid(pid, None)?;
                return Err(io::Error::from_raw_os_error(error));
            }
            Ok((pid, lifeline))
        }
    }
}

/// The life of the first process: see [`fork_init`].
fn run_init(lifeline_end: RawFd, ready_end: RawFd) -> ! {
    // SAFETY: plain system calls on descriptors of this process and on literal strings; the buffers live on this stack
    // frame. Nothing here allocates, locks or unwinds.
    unsafe {
        let mut error: c_int = 0;
        let mut note = |result: c_int| {
            if result < 0 && error == 0 {
                error = *libc::__errno_location();
            }
        };
        note(libc::dup2(lifeline_end, 0));
        note(libc::dup2(ready_end, 1));
        libc::syscall(libc::SYS_close_range, 2, c_uint::MAX, 0);
        // Away from the terminal: Ctrl-C is for the lab to handle.
        libc::setsid();
        note(libc::unshare(libc::CLONE_NEWNS));
        let (root, proc) = (c"/".as_ptr(), c"/proc".as_ptr());
        note(libc::mount(ptr::null(), root, ptr::null(), libc::MS_REC | libc::MS_PRIVATE, ptr::null()));
        note(libc::mount(c"proc".as_ptr(), proc, c"proc".as_ptr(), 0, ptr::null()));
        // Orphans are reaped by the kernel.
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::write(1, (&raw const error).cast(), size_of::<c_int>());
        libc::close(1);
        if error == 0 {
            let mut byte = [0_u8];
            while libc::read(0, byte.as_mut_ptr().cast(), 1) < 0 && *libc::__errno_location() == libc::EINTR {}
        }
        libc::_exit(0)
    }
}
