//! The program is run here by a small interpreter of BPF: what the kernel would decide for a call and its arguments.

use super::*;

/// Linux's names of architectures (AUDIT_ARCH_*).
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
const I386: u32 = 0x4000_0003;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

fn denied(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap()
}

/// The verdict of `program` on a call.
fn judge(program: &[u8], architecture: u32, number: i64, arguments: [u64; 6]) -> u32 {
    let mut seen = Vec::new();
    seen.extend(u32::try_from(number).unwrap().to_ne_bytes());
    seen.extend(architecture.to_ne_bytes());
    seen.extend(0_u64.to_ne_bytes());
    arguments.iter().for_each(|argument| seen.extend(argument.to_ne_bytes()));
    let word = |at: u32| {
        let at = usize::try_from(at).unwrap();
        u32::from_ne_bytes(seen[at..at + 4].try_into().unwrap())
    };
    let instructions: Vec<sock_filter> = program
        .chunks(8)
        .map(|i| sock_filter {
            code: u16::from_ne_bytes([i[0], i[1]]),
            jt: i[2],
            jf: i[3],
            k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
        })
        .collect();
    let (mut at, mut accumulator) = (0_usize, 0_u32);
    loop {
        let i = &instructions[at];
        at += 1;
        let branch = |condition: bool| usize::from(if condition { i.jt } else { i.jf });
        match i.code {
            0x20 => accumulator = word(i.k),
            0x54 => accumulator &= i.k,
            0x05 => at += usize::try_from(i.k).unwrap(),
            0x15 => at += branch(accumulator == i.k),
            0x25 => at += branch(accumulator > i.k),
            0x35 => at += branch(accumulator >= i.k),
            0x06 => return i.k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

#[test]
fn everyday_calls_pass_and_the_kernels_inner_doors_do_not() {
    let program = program(&[]).unwrap();
    let verdict = |number| judge(&program, ARCH, number, [0; 6]);
    for number in [libc::SYS_execve, libc::SYS_read, libc::SYS_futex, libc::SYS_openat, libc::SYS_clone, 452] {
        assert_eq!(verdict(number), ALLOW, "{number}");
    }
    let doors = [
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_fsopen,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_mount_setattr,
        libc::SYS_setns,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_init_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_chroot,
        libc::SYS_open_by_handle_at,
        libc::SYS_swapon,
    ];
    for number in doors {
        assert_eq!(verdict(number), denied(libc::EPERM), "{number}");
    }
}

#[test]
fn callers_fall_back_from_what_cannot_be_judged() {
    let program = program(&[]).unwrap();
    for number in [libc::SYS_clone3, 467, 1_000, 0x4000_0000] {
        assert_eq!(judge(&program, ARCH, number, [0; 6]), denied(libc::ENOSYS), "{number}");
    }
}

#[test]
fn arguments_decide_where_a_call_has_two_sides() {
    let program = program(&[]).unwrap();
    let verdict = |number, first| judge(&program, ARCH, number, [first, 0, 0, 0, 0, 0]);
    let thread = 0x3d_0f00;
    assert_eq!(verdict(libc::SYS_clone, thread), ALLOW);
    for namespace in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWPID] {
        let namespace = u64::try_from(namespace).unwrap();
        assert_eq!(verdict(libc::SYS_clone, thread | namespace), denied(libc::EPERM));
        assert_eq!(verdict(libc::SYS_unshare, namespace), denied(libc::EPERM));
        // The kernel ignores the upper half of the argument, so it must not open the door.
        assert_eq!(verdict(libc::SYS_unshare, 1 << 40 | namespace), denied(libc::EPERM));
    }
    assert_eq!(verdict(libc::SYS_unshare, 0x200), ALLOW, "CLONE_FS");
    assert_eq!(verdict(libc::SYS_unshare, 0x80), denied(libc::EPERM), "CLONE_NEWTIME");
    for family in [1, 2, 10, 16] {
        assert_eq!(verdict(libc::SYS_socket, family), ALLOW, "{family}");
    }
    for family in [38, 40, 1 << 32 | 40] {
        assert_eq!(verdict(libc::SYS_socket, family), denied(libc::EPERM), "{family}");
    }
    assert_eq!(verdict(libc::SYS_personality, 0xffff_ffff), ALLOW);
    assert_eq!(verdict(libc::SYS_personality, 0x0004_0000), denied(libc::EPERM), "no address randomisation");
}

#[test]
fn a_foreign_architecture_ends_the_process() {
    let verdict = judge(&program(&[]).unwrap(), I386, 3, [0; 6]);
    assert_eq!(verdict, libc::SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn a_capability_brings_its_calls_and_no_others() {
    let admin = program(&["CAP_SYS_ADMIN"]).unwrap();
    let namespace = [u64::try_from(libc::CLONE_NEWNS).unwrap(), 0, 0, 0, 0, 0];
    assert_eq!(judge(&admin, ARCH, libc::SYS_unshare, namespace), ALLOW);
    assert_eq!(judge(&admin, ARCH, libc::SYS_mount, [0; 6]), ALLOW);
    assert_eq!(judge(&admin, ARCH, libc::SYS_bpf, [0; 6]), denied(libc::EPERM));
    assert_eq!(judge(&admin, ARCH, libc::SYS_chroot, [0; 6]), denied(libc::EPERM));
    assert_eq!(judge(&program(&["CAP_SYS_CHROOT"]).unwrap(), ARCH, libc::SYS_chroot, [0; 6]), ALLOW);
}

#[test]
fn the_oci_profile_lists_the_same_calls() {
    let profile = oci_profile(&["CAP_SYS_CHROOT"]);
    let text = profile.to_string();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    for part in ["\"execve\"", "\"chroot\"", "\"clone3\"", "SCMP_CMP_MASKED_EQ"] {
        assert!(text.contains(part), "{part}");
    }
    assert!(!text.contains("\"mount\"") && !text.contains("SYS_"));
}
