//! The OCI bundle: what one container is, in the words that any runtime reads.
//!
//! Pure: everything that depends on the host or on the image was looked up before. No network namespace is named: whoever
//! starts the runtime is in it already, because it belongs to the host's user namespace and cannot be joined from within
//! the container's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::idmap::RANGE_IDS;

/// The version of the specification that is written.
const OCI_VERSION: &str = "1.0.2";
/// Shared memory of a container, in KiB.
const SHARED_MEMORY_KIB: u32 = 65_536;
/// Where programs are looked for when nobody says so.
const PATH_DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What of the kernel's own files a container does not see; those the host has not are left out.
pub(crate) const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What it sees and cannot write.
pub(crate) const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A directory or file of the host that the container sees at `target`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

/// Everything that the bundle says.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) args: &'a [String],
    pub(crate) env: &'a [(String, String)],
    pub(crate) workdir: &'a str,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: &'a [u32],
    pub(crate) tty: bool,
    pub(crate) hostname: &'a str,
    pub(crate) capabilities: &'a BTreeSet<&'static str>,
    pub(crate) no_new_privs: bool,
    pub(crate) read_only: bool,
    pub(crate) privileged: bool,
    /// First id of the user namespace's range, where there is one.
    pub(crate) uid_base: Option<u32>,
    pub(crate) cgroup_path: &'a str,
    pub(crate) cgroup_namespace: bool,
    pub(crate) cgroup_mount: bool,
    pub(crate) resources: &'a Value,
    pub(crate) rlimits: &'a Value,
    /// Written only where the own value is lower: lowering needs a privilege.
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) root: &'a Path,
    /// The mounted sysfs of the container's network namespace.
    pub(crate) sysfs: &'a Path,
    /// Names, resolver and volumes, in the order in which they are mounted.
    pub(crate) binds: &'a [Bind],
    /// For a runtime that compiles it; the shim brings a program of its own.
    pub(crate) seccomp: Option<&'a Value>,
    /// Those of [`MASKED`] and [`READ_ONLY`] that this host has.
    pub(crate) masked: &'a [&'a str],
    pub(crate) read_only_paths: &'a [&'a str],
}

/// The text of `config.json`.
pub(crate) fn config(plan: &Plan<'_>) -> Value {
    let mut linux = json!({
        "namespaces": namespaces(plan),
        "cgroupsPath": plan.cgroup_path,
        "resources": plan.resources,
        "maskedPaths": if plan.privileged { &[] } else { plan.masked },
        "readonlyPaths": if plan.privileged { &[] } else { plan.read_only_paths },
    });
    if let Some(base) = plan.uid_base {
        let map = json!([{ "containerID": 0, "hostID": base, "size": RANGE_IDS }]);
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
    }
    if let Some(seccomp) = plan.seccomp {
        linux["seccomp"] = seccomp.clone();
    }
    json!({
        "ociVersion": OCI_VERSION,
        "hostname": plan.hostname,
        "root": { "path": plan.root, "readonly": plan.read_only },
        "process": process(plan),
        "mounts": mounts(plan),
        "linux": linux,
    })
}

fn process(plan: &Plan<'_>) -> Value {
    let mut env: Vec<String> = plan.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if plan.env.iter().all(|(name, _)| name != "PATH") {
        env.insert(0, PATH_DEFAULT.to_owned());
    }
    if plan.tty && plan.env.iter().all(|(name, _)| name != "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    // Neither inheritable nor ambient: a program that changes its user gives its capabilities up.
    let mut process = json!({
        "terminal": plan.tty,
        "user": { "uid": plan.uid, "gid": plan.gid, "additionalGids": plan.groups },
        "args": plan.args,
        "env": env,
        "cwd": plan.workdir,
        "capabilities": {
            "bounding": plan.capabilities,
            "effective": plan.capabilities,
            "permitted": plan.capabilities,
            "inheritable": [],
            "ambient": [],
        },
        "noNewPrivileges": plan.no_new_privs,
        "rlimits": plan.rlimits,
    });
    if let Some(adjustment) = plan.oom_score_adj {
        process["oomScoreAdj"] = json!(adjustment);
    }
    process
}

fn namespaces(plan: &Plan<'_>) -> Vec<Value> {
    let mut kinds = vec!["pid", "ipc", "uts", "mount"];
    if plan.cgroup_namespace {
        kinds.push("cgroup");
    }
    if plan.uid_base.is_some() {
        kinds.push("user");
    }
    kinds.into_iter().map(|kind| json!({ "type": kind })).collect()
}

fn mounts(plan: &Plan<'_>) -> Vec<Value> {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let shared_memory = format!("size={SHARED_MEMORY_KIB}k");
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &shared_memory]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        json!({
            "destination": "/sys", "type": "bind", "source": plan.sysfs,
            "options": ["rbind", "ro", "nosuid", "nodev", "noexec"],
        }),
    ];
    if plan.cgroup_mount {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev", "relatime"]));
    }
    mounts.extend(plan.binds.iter().map(|bind| {
        let mode = if bind.read_only { "ro" } else { "rw" };
        json!({
            "destination": bind.target, "type": "bind", "source": bind.source,
            "options": ["rbind", "rprivate", "nosuid", "nodev", mode],
        })
    }));
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Plan<'_>)) -> Value {
        let (resources, rlimits) = (json!({ "pids": { "limit": 7 } }), json!([]));
        let capabilities = BTreeSet::from(["CAP_KILL"]);
        let args = ["/bin/true".to_owned()];
        let env = [("A".to_owned(), "b c".to_owned())];
        let mut plan = Plan {
            args: &args,
            env: &env,
            workdir: "/srv",
            uid: 10,
            gid: 20,
            groups: &[30],
            tty: false,
            hostname: "web",
            capabilities: &capabilities,
            no_new_privs: true,
            read_only: false,
            privileged: false,
            uid_base: Some(1 << 30),
            cgroup_path: "/meshd/w/x",
            cgroup_namespace: true,
            cgroup_mount: true,
            resources: &resources,
            rlimits: &rlimits,
            oom_score_adj: None,
            root: Path::new("/run/w/x/root"),
            sysfs: Path::new("/run/w/x/sys"),
            binds: &[],
            seccomp: None,
            masked: MASKED,
            read_only_paths: READ_ONLY,
        };
        change(&mut plan);
        config(&plan)
    }

    fn kinds(config: &Value) -> Vec<&str> {
        config["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].as_str().unwrap()).collect()
    }

    #[test]
    fn the_process_is_as_asked() {
        let config = check(|_| {});
        let process = &config["process"];
        assert_eq!(process["args"], json!(["/bin/true"]));
        assert_eq!(process["env"], json!([PATH_DEFAULT, "A=b c"]));
        assert_eq!(process["user"], json!({ "uid": 10, "gid": 20, "additionalGids": [30] }));
        assert_eq!(process["cwd"], "/srv");
        assert_eq!(process["capabilities"]["bounding"], json!(["CAP_KILL"]));
        assert_eq!(process["capabilities"]["ambient"], json!([]));
        assert_eq!(process["noNewPrivileges"], true);
        assert!(process.get("oomScoreAdj").is_none());
    }

    #[test]
    fn namespaces_never_include_the_network() {
        assert_eq!(kinds(&check(|_| {})), ["pid", "ipc", "uts", "mount", "cgroup", "user"]);
        let host = check(|plan| {
            plan.uid_base = None;
            plan.cgroup_namespace = false;
        });
        assert_eq!(kinds(&host), ["pid", "ipc", "uts", "mount"]);
        assert!(host["linux"].get("uidMappings").is_none());
    }

    #[test]
    fn the_range_is_mapped_from_zero() {
        let map = json!([{ "containerID": 0, "hostID": 1 << 30, "size": 65_536 }]);
        assert_eq!(check(|_| {})["linux"]["uidMappings"], map);
        assert_eq!(check(|_| {})["linux"]["gidMappings"], map);
    }

    #[test]
    fn a_path_and_a_terminal_are_given_only_where_missing() {
        let own = [("PATH".to_owned(), "/bin".to_owned()), ("TERM".to_owned(), "vt100".to_owned())];
        let config = check(|plan| plan.tty = true);
        assert_eq!(config["process"]["env"], json!([PATH_DEFAULT, "A=b c", "TERM=xterm"]));
        let (resources, rlimits, capabilities) = (json!({}), json!([]), BTreeSet::new());
        let config = process(&Plan {
            args: &[],
            env: &own,
            workdir: "/",
            uid: 0,
            gid: 0,
            groups: &[],
            tty: true,
            hostname: "",
            capabilities: &capabilities,
            no_new_privs: true,
            read_only: false,
            privileged: false,
            uid_base: None,
            cgroup_path: "/x",
            cgroup_namespace: false,
            cgroup_mount: false,
            resources: &resources,
            rlimits: &rlimits,
            oom_score_adj: Some(0),
            root: Path::new("/r"),
            sysfs: Path::new("/s"),
            binds: &[],
            seccomp: None,
            masked: &[],
            read_only_paths: &[],
        });
        assert_eq!(config["env"], json!(["PATH=/bin", "TERM=vt100"]));
        assert_eq!(config["oomScoreAdj"], 0);
    }

    #[test]
    fn privileged_unmasks_and_volumes_come_last() {
        let binds = [Bind { source: "/run/w/x/v/0".into(), target: "/data".to_owned(), read_only: true }];
        let (resources, rlimits, capabilities) = (json!({}), json!([]), BTreeSet::new());
        let config = config(&Plan {
            args: &[],
            env: &[],
            workdir: "/",
            uid: 0,
            gid: 0,
            groups: &[],
            tty: false,
            hostname: "",
            capabilities: &capabilities,
            no_new_privs: true,
            read_only: true,
            privileged: true,
            uid_base: None,
            cgroup_path: "/x",
            cgroup_namespace: false,
            cgroup_mount: false,
            resources: &resources,
            rlimits: &rlimits,
            oom_score_adj: None,
            root: Path::new("/r"),
            sysfs: Path::new("/s"),
            binds: &binds,
            seccomp: None,
            masked: MASKED,
            read_only_paths: READ_ONLY,
        });
        assert_eq!(config["linux"]["maskedPaths"], json!([]));
        assert_eq!(config["root"], json!({ "path": "/r", "readonly": true }));
        let mounts = config["mounts"].as_array().unwrap();
        assert!(mounts.iter().all(|mount| mount["destination"] != "/sys/fs/cgroup"));
        let last = mounts.last().unwrap();
        assert_eq!(last["destination"], "/data");
        assert_eq!(last["options"], json!(["rbind", "rprivate", "nosuid", "nodev", "ro"]));
    }
}
