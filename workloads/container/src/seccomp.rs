//! The system calls that a container may make: data here, compiled to a BPF program, so that the shim parses nothing.
//!
//! A call that is not listed fails with `EPERM`; `clone3` and calls younger than this list with `ENOSYS`, so that a C
//! library falls back to the older call it knows. A foreign calling convention (32-bit programs) ends the process.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

/// Instructions that the kernel takes in one program (BPF_MAXINSNS).
pub(crate) const INSTRUCTIONS_MAX: usize = 4_096;
/// `CLONE_NEW*` as `clone` reads them: namespaces of mounts, cgroups, UTS, IPC, users, pids and networks.
const NAMESPACES: u64 = 0x7e02_0000;
/// `CLONE_NEWTIME`, which `unshare` reads; in `clone` the bit belongs to the exit signal.
const TIME_NAMESPACE: u64 = 0x80;
/// Execution domains that change nothing: Linux, Linux 32, each with uname 2.6, and the question for the current one.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Numbers above this one did not exist when this list was written (`removexattrat`, Linux 6.13).
const YOUNGEST: u32 = 466;
/// The bit of the x32 calling convention, which shares the 64-bit architecture's name.
const X32_BIT: u32 = 0x4000_0000;

/// The names and numbers of calls, by their constants.
macro_rules! calls {
    ($($call:ident)*) => { &[$((stringify!($call), libc::$call)),*] };
}

type Calls = &'static [(&'static str, i64)];

/// Allowed to everybody, on every architecture.
const COMMON: Calls = calls!(
    SYS_accept SYS_accept4 SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir SYS_clock_getres SYS_clock_gettime
    SYS_clock_nanosleep SYS_close SYS_close_range SYS_connect SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1
    SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat SYS_exit SYS_exit_group
    SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat
    SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_flistxattr SYS_flock SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs
    SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv SYS_get_robust_list SYS_getcpu SYS_getcwd SYS_getdents64
    SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer SYS_getpeername SYS_getpgid SYS_getpid SYS_getppid
    SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrusage SYS_getsid SYS_getsockname SYS_getsockopt
    SYS_gettid SYS_gettimeofday SYS_getuid SYS_getxattr SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch
    SYS_io_cancel SYS_io_destroy SYS_io_getevents SYS_io_setup SYS_io_submit SYS_ioctl SYS_ioprio_get SYS_ioprio_set
    SYS_kill SYS_landlock_add_rule SYS_landlock_create_ruleset SYS_landlock_restrict_self SYS_lgetxattr SYS_linkat
    SYS_listen SYS_listxattr SYS_llistxattr SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise SYS_membarrier
    SYS_memfd_create SYS_memfd_secret SYS_mincore SYS_mkdirat SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap
    SYS_mprotect SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend SYS_mq_unlink
    SYS_mremap SYS_mseal SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock SYS_munlockall SYS_munmap
    SYS_nanosleep SYS_newfstatat SYS_openat SYS_openat2 SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe2 SYS_pkey_alloc
    SYS_pkey_free SYS_pkey_mprotect SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2 SYS_prlimit64
    SYS_process_mrelease SYS_pselect6 SYS_ptrace SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead
    SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg SYS_recvmsg SYS_remap_file_pages SYS_removexattr SYS_renameat2
    SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigqueueinfo
    SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo SYS_sched_get_priority_max
    SYS_sched_get_priority_min SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_getscheduler
    SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam SYS_sched_setscheduler
    SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg
    SYS_sendto SYS_set_robust_list SYS_set_tid_address SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer
    SYS_setpgid SYS_setpriority SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_setsid SYS_setsockopt
    SYS_setuid SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown SYS_sigaltstack SYS_signalfd4
    SYS_socketpair SYS_splice SYS_statfs SYS_statx SYS_symlinkat SYS_sync SYS_sync_file_range SYS_syncfs SYS_sysinfo
    SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime
    SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times SYS_tkill SYS_truncate SYS_umask SYS_uname
    SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
);

/// Calls without a constant in the library yet; their numbers are the same on all architectures.
const YOUNG: Calls = &[
    ("SYS_cachestat", 451),
    ("SYS_fchmodat2", 452),
    ("SYS_futex_wake", 454),
    ("SYS_futex_wait", 455),
    ("SYS_futex_requeue", 456),
    ("SYS_setxattrat", 463),
    ("SYS_getxattrat", 464),
    ("SYS_listxattrat", 465),
    ("SYS_removexattrat", 466),
];

/// The calls of before that newer architectures left out.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: Calls = calls!(
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create SYS_epoll_wait
    SYS_eventfd SYS_fork SYS_futimesat SYS_getdents SYS_getpgrp SYS_getrlimit SYS_inotify_init SYS_lchown SYS_link
    SYS_lstat SYS_mkdir SYS_mknod SYS_modify_ldt SYS_open SYS_pause SYS_pipe SYS_poll SYS_readlink SYS_rename
    SYS_renameat SYS_rmdir SYS_select SYS_setrlimit SYS_signalfd SYS_stat SYS_symlink SYS_time SYS_unlink SYS_utime
    SYS_utimes SYS_vfork SYS_get_thread_area SYS_set_thread_area
);
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: Calls = &[("SYS_renameat", 38), ("SYS_sync_file_range", 84)];

/// Further calls that a capability is good for.
const BY_CAPABILITY: &[(&str, Calls)] = &[
    ("CAP_SYS_CHROOT", calls!(SYS_chroot)),
    ("CAP_DAC_READ_SEARCH", calls!(SYS_open_by_handle_at SYS_name_to_handle_at)),
    ("CAP_SYS_PTRACE", calls!(SYS_kcmp SYS_pidfd_getfd SYS_process_madvise SYS_process_vm_readv SYS_process_vm_writev)),
    ("CAP_SYS_NICE", calls!(SYS_get_mempolicy SYS_mbind SYS_set_mempolicy SYS_set_mempolicy_home_node)),
    ("CAP_SYS_TIME", calls!(SYS_adjtimex SYS_clock_adjtime SYS_clock_settime SYS_settimeofday)),
    ("CAP_SYS_PACCT", calls!(SYS_acct)),
    ("CAP_SYS_TTY_CONFIG", calls!(SYS_vhangup)),
    ("CAP_SYSLOG", calls!(SYS_syslog)),
    (
        "CAP_SYS_ADMIN",
        calls!(
            SYS_clone SYS_fanotify_init SYS_fanotify_mark SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick SYS_mount
            SYS_mount_setattr SYS_move_mount SYS_open_tree SYS_pivot_root SYS_quotactl SYS_setdomainname SYS_sethostname
            SYS_setns SYS_umount2 SYS_unshare
        ),
    ),
];

/// One call's argument by which it is judged; any of the rules lets the call pass.
struct Judged {
    name: &'static str,
    number: i64,
    rules: &'static [&'static [Condition]],
}

/// `argument & mask == value`, or its opposite.
struct Condition {
    argument: u8,
    mask: u64,
    value: u64,
    equal: bool,
}

const fn is(argument: u8, mask: u64, value: u64) -> Condition {
    Condition { argument, mask, value, equal: true }
}

const fn is_not(argument: u8, value: u64) -> Condition {
    Condition { argument, mask: u64::MAX, value, equal: false }
}

const JUDGED: &[Judged] = &[
    Judged { name: "SYS_clone", number: libc::SYS_clone, rules: &[&[is(0, NAMESPACES, 0)]] },
    Judged { name: "SYS_unshare", number: libc::SYS_unshare, rules: &[&[is(0, NAMESPACES | TIME_NAMESPACE, 0)]] },
    // Addresses of the kernel's cryptography and of hypervisors reach what no namespace fences in.
    Judged { name: "SYS_socket", number: libc::SYS_socket, rules: &[&[is_not(0, 38), is_not(0, 40)]] },
    Judged {
        name: "SYS_personality",
        number: libc::SYS_personality,
        rules: &[
            &[is(0, u64::MAX, PERSONALITIES[0])],
            &[is(0, u64::MAX, PERSONALITIES[1])],
            &[is(0, u64::MAX, PERSONALITIES[2])],
            &[is(0, u64::MAX, PERSONALITIES[3])],
            &[is(0, u64::MAX, PERSONALITIES[4])],
        ],
    },
];

/// What a container with these capabilities (`CAP_…`) may call without conditions.
fn allowed(capabilities: &[&str]) -> BTreeMap<&'static str, i64> {
    let mut allowed: BTreeMap<&'static str, i64> = BTreeMap::new();
    let by_capability = BY_CAPABILITY.iter().filter(|(name, _)| capabilities.contains(name)).map(|(_, calls)| *calls);
    for calls in [COMMON, YOUNG, ARCHITECTURE].into_iter().chain(by_capability) {
        allowed.extend(calls.iter().copied());
    }
    allowed
}

/// The program for a container with these capabilities, as the kernel takes it: 8 bytes an instruction, in the byte
/// order of this machine.
///
/// # Errors
/// None is known for the tables of this file, which a test compiles; the compiler reports them all the same.
pub(crate) fn program(capabilities: &[&str]) -> Result<Vec<u8>, BackendError> {
    let free = allowed(capabilities);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = free.values().map(|number| (*number, Vec::new())).collect();
    for judged in JUDGED.iter().filter(|judged| !free.contains_key(judged.name)) {
        let alternatives: Result<Vec<SeccompRule>, BackendError> = judged.rules.iter().map(|all| rule(all)).collect();
        rules.insert(judged.number, alternatives?);
    }
    let denied = SeccompAction::Errno(errno(libc::EPERM));
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
    let compiled: BpfProgram = filter.try_into()?;
    let mut program = falls_back();
    program.extend(compiled);
    if program.len() > INSTRUCTIONS_MAX {
        return Err(BackendError::FilterTooLarge(program.len()));
    }
    Ok(program.iter().flat_map(|i| [&i.code.to_ne_bytes()[..], &[i.jt, i.jf], &i.k.to_ne_bytes()].concat()).collect())
}

fn rule(conditions: &[Condition]) -> Result<SeccompRule, BackendError> {
    let compiled: Result<Vec<SeccompCondition>, BackendError> = conditions
        .iter()
        .map(|condition| {
            let operator = match (condition.equal, condition.mask) {
                (true, u64::MAX) => SeccompCmpOp::Eq,
                (true, mask) => SeccompCmpOp::MaskedEq(mask),
                (false, _) => SeccompCmpOp::Ne,
            };
            // The kernel reads these arguments as 32 bits, so the upper half must not decide.
            SeccompCondition::new(condition.argument, SeccompCmpArgLen::Dword, operator, condition.value)
        })
        .collect();
    SeccompRule::new(compiled?)
}

/// What stands before the compiled list: `ENOSYS` where a caller has an older call to fall back to. It only ever denies,
/// so it may stand before the look at the architecture.
fn falls_back() -> BpfProgram {
    let jump = |code: u32, k: u32, jt: u8, jf: u8| instruction(libc::BPF_JMP | code | libc::BPF_K, jt, jf, k);
    let clone3 = u32::try_from(libc::SYS_clone3).expect("numbers of calls are small and positive");
    vec![
        // The number of the call is the first word of what the kernel shows.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        jump(libc::BPF_JGE, X32_BIT, 2, 0),
        jump(libc::BPF_JGT, YOUNGEST, 1, 0),
        jump(libc::BPF_JEQ, clone3, 0, 1),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno(libc::ENOSYS)),
    ]
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("codes of instructions are 16 bits"), jt, jf, k }
}

fn errno(number: i32) -> u32 {
    u32::try_from(number).expect("error numbers are positive")
}

/// The same list as the OCI specification writes it, for a runtime that brings its own compiler.
pub(crate) fn oci_profile(capabilities: &[&str]) -> serde_json::Value {
    let free = allowed(capabilities);
    let bare = |name: &str| name.trim_start_matches("SYS_").to_owned();
    let mut calls = vec![
        serde_json::json!({ "names": free.keys().map(|name| bare(name)).collect::<Vec<_>>(), "action": "SCMP_ACT_ALLOW" }),
        serde_json::json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS }),
    ];
    for judged in JUDGED.iter().filter(|judged| !free.contains_key(judged.name)) {
        for all in judged.rules {
            let arguments: Vec<serde_json::Value> = all
                .iter()
                .map(|c| match (c.equal, c.mask) {
                    (true, u64::MAX) => {
                        serde_json::json!({ "index": c.argument, "value": c.value, "op": "SCMP_CMP_EQ" })
                    }
                    (true, mask) => serde_json::json!({
                        "index": c.argument, "value": mask, "valueTwo": c.value, "op": "SCMP_CMP_MASKED_EQ"
                    }),
                    (false, _) => serde_json::json!({ "index": c.argument, "value": c.value, "op": "SCMP_CMP_NE" }),
                })
                .collect();
            calls.push(
                serde_json::json!({ "names": [bare(judged.name)], "action": "SCMP_ACT_ALLOW", "args": arguments }),
            );
        }
    }
    serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": libc::EPERM, "syscalls": calls })
}

#[cfg(test)]
mod tests;
