//! The capabilities that a container's program starts with.

use std::collections::BTreeSet;

/// What every container may do unless told otherwise: enough for a package manager and a server on a low port. Raw
/// sockets, device nodes and the audit log are left out.
pub(crate) const DEFAULT: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Every capability of Linux 6.18, by its number.
pub const ALL: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The set that results, within what the host itself holds (`bounding`, bit n for capability n): a container in a user
/// namespace of its own has no more over the host than none at all, yet the bounding set binds it all the same.
///
/// Dropping wins over adding. Without a user namespace nobody makes device nodes, however privileged: version 2 groups
/// have no device rules here that would fence them in.
pub(crate) fn effective(
    privileged: bool,
    user_namespace: bool,
    add: &[&str],
    drop: &[&str],
    bounding: u64,
) -> BTreeSet<&'static str> {
    let start = if privileged { ALL } else { DEFAULT };
    let held = |name: &&'static str| {
        let number = ALL.iter().position(|known| known == name);
        number.is_some_and(|number| bounding >> number & 1 == 1)
    };
    let wanted = ALL.iter().copied().filter(|name| start.contains(name) || add.contains(name));
    wanted
        .filter(|name| !drop.contains(name))
        .filter(|name| user_namespace || *name != "CAP_MKNOD")
        .filter(held)
        .collect()
}

/// The bounding set as `/proc/self/status` tells it; nothing readable is no capability at all.
pub(crate) fn bounding(status: &str) -> u64 {
    set(status, "CapBnd:")
}

/// The effective set, likewise.
pub(crate) fn effective_set(status: &str) -> u64 {
    set(status, "CapEff:")
}

fn set(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_within_what_exists() {
        assert_eq!(effective(false, true, &[], &[], u64::MAX), DEFAULT.iter().copied().collect());
        assert_eq!(effective(true, true, &[], &[], u64::MAX).len(), ALL.len());
    }

    #[test]
    fn dropping_wins_over_adding() {
        let set = effective(false, true, &["CAP_NET_RAW", "CAP_KILL"], &["CAP_KILL", "CAP_CHOWN"], u64::MAX);
        assert!(set.contains("CAP_NET_RAW") && !set.contains("CAP_KILL") && !set.contains("CAP_CHOWN"));
    }

    #[test]
    fn nothing_beyond_the_hosts_bounding_set_is_given() {
        let without_resource = !(1 << 24);
        assert!(!effective(true, true, &[], &[], without_resource).contains("CAP_SYS_RESOURCE"));
        assert!(effective(true, true, &[], &[], 0).is_empty());
    }

    #[test]
    fn the_hosts_ids_never_come_with_device_nodes() {
        assert!(!effective(true, false, &["CAP_MKNOD"], &[], u64::MAX).contains("CAP_MKNOD"));
        assert!(effective(true, true, &[], &[], u64::MAX).contains("CAP_MKNOD"));
    }

    #[test]
    fn the_bounding_set_is_read_from_the_status() {
        let status = "CapEff:\t1000000\nCapBnd:\t000001fffeffffff\n";
        assert_eq!((bounding(status), effective_set(status)), (0x1ff_feff_ffff, 1 << 24));
        assert_eq!(bounding("CapBnd:\tnonsense\n"), 0);
        assert_eq!(bounding(""), 0);
    }
}
