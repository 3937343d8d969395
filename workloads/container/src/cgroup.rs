//! Control groups of containers: what this host can limit, and the groups of one container in every hierarchy.
//!
//! The runtime makes the groups; here they are found, read, killed and taken away. Nothing here mounts a controller: a
//! binding outlives its mount and would be seen by everybody on the host.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::StepError;

/// How long the kernel may need to let go of a group whose processes ended (v1 says EBUSY for some milliseconds).
const RELEASE_MAX: Duration = Duration::from_secs(1);
/// Between two looks at a group that is still busy.
const RELEASE_STEP: Duration = Duration::from_millis(5);
/// Bytes of a control file that are read; a list of processes is read in whole up to this.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// How the host lays out its control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One tree for everything (version 2).
    Unified,
    /// Version 1 trees, with a version 2 tree beside them.
    Hybrid,
    /// Version 1 trees only.
    Legacy,
    /// None that could be found.
    Absent,
}

/// One mounted tree.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// Version 1 names its controllers by the mount; version 2 by a file, read when probed.
    controllers: BTreeSet<String>,
    unified: bool,
}

/// The trees of this host, and the group under which all containers' groups live.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    layout: Layout,
    hierarchies: Vec<Hierarchy>,
    usable: BTreeSet<String>,
    /// The version 2 tree of a hybrid layout.
    beside: Option<PathBuf>,
    /// Absolute below each tree's mount, as `/meshd/w`.
    parent: String,
}

/// What a container used up to now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu_ns: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) memory_bytes_max: u64,
    pub(crate) pids: u64,
    pub(crate) oom_kills: u64,
}

impl Cgroups {
    /// Looks at this host, and tries each controller by a group that it makes and removes.
    ///
    /// # Errors
    /// Only when `/proc` cannot be read. A controller that does not work is left out.
    pub(crate) fn probe(parent: &str) -> Result<Self, StepError> {
        let read = |path: &str| fs::read_to_string(path).map_err(|error| StepError::new("read /proc/self", error));
        let mut found = Self::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?, parent);
        found.usable = found.try_controllers();
        Ok(found)
    }

    /// The trees by the two files of `/proc/self`.
    fn parse(mountinfo: &str, own_groups: &str, parent: &str) -> Self {
        let own: BTreeSet<&str> = own_groups.lines().filter_map(|line| line.split(':').nth(1)).collect();
        let listed: BTreeSet<&str> = own.iter().flat_map(|names| names.split(',')).collect();
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let Some(mount) = before.split(' ').nth(4).map(unescape) else { continue };
            let mut after = after.split(' ');
            let (kind, options) = (after.next(), after.nth(1).unwrap_or_default());
            let unified = match kind {
                Some("cgroup") => false,
                Some("cgroup2") => true,
                _ => continue,
            };
            // A tree that is mounted twice, or bound into a container's root, counts once: by its first mount.
            let controllers: BTreeSet<String> = options
                .split(',')
                .filter(|option| !unified && !option.starts_with("name=") && listed.contains(option))
                .map(str::to_owned)
                .collect();
            if hierarchies
                .iter()
                .all(|known| known.unified != unified || (!unified && known.controllers != controllers))
                && (unified || !controllers.is_empty())
            {
                hierarchies.push(Hierarchy { mount, controllers, unified });
            }
        }
        let (v1, v2) = (hierarchies.iter().any(|h| !h.unified), hierarchies.iter().any(|h| h.unified));
        let layout = match (v1, v2) {
            (false, true) => Layout::Unified,
            (true, true) => Layout::Hybrid,
            (true, false) => Layout::Legacy,
            (false, false) => Layout::Absent,
        };
        let beside = hierarchies.iter().find(|h| h.unified && layout == Layout::Hybrid).map(|h| h.mount.clone());
        // The runtime makes groups in the version 1 trees alone where there are any.
        hierarchies.retain(|hierarchy| hierarchy.unified == (layout == Layout::Unified));
        Self { layout, hierarchies, usable: BTreeSet::new(), beside, parent: parent.to_owned() }
    }

    fn try_controllers(&self) -> BTreeSet<String> {
        let mut usable = BTreeSet::new();
        for hierarchy in &self.hierarchies {
            let group = below(&hierarchy.mount, &self.parent).join(format!("probe-{}", std::process::id()));
            let controllers = if hierarchy.unified {
                enable_unified(&hierarchy.mount, &group)
            } else {
                hierarchy.controllers.clone()
            };
            if fs::create_dir_all(&group).is_err() {
                continue;
            }
            let probes = [
                ("memory", ["memory.max", "memory.limit_in_bytes"]),
                ("swap", ["memory.swap.max", "memory.memsw.limit_in_bytes"]),
                ("cpu", ["cpu.max", "cpu.cfs_quota_us"]),
                ("cpuacct", ["cpu.stat", "cpuacct.usage"]),
                ("pids", ["pids.max", "pids.max"]),
                ("io", ["io.weight", "blkio.weight"]),
                ("devices", ["devices.deny", "devices.deny"]),
                ("freezer", ["cgroup.freeze", "freezer.state"]),
            ];
            for (name, files) in probes {
                let owner = match (name, hierarchy.unified) {
                    ("swap", _) => "memory",
                    ("io", false) => "blkio",
                    ("cpuacct", true) => "cpu",
                    (name, _) => name,
                };
                let listed = controllers.contains(owner) || (hierarchy.unified && name == "freezer");
                if listed && files.iter().any(|file| fs::symlink_metadata(group.join(file)).is_ok()) {
                    usable.insert(name.to_owned());
                }
            }
            if let Err(error) = remove_group(&group) {
                tracing::warn!(%error, "a group made for a probe could not be taken away");
            }
        }
        usable
    }

    /// How the host lays out its groups.
    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// What can be limited here: `memory`, `swap`, `cpu`, `pids`, `io`; further `cpuacct`, `devices`, `freezer`.
    pub(crate) fn usable(&self) -> &BTreeSet<String> {
        &self.usable
    }

    /// The version 2 tree that stands beside version 1 trees and limits nothing.
    pub(crate) fn hidden(&self) -> Option<&Path> {
        self.beside.as_deref()
    }

    /// The path that the bundle names: always absolute, since a relative one sends some runtimes to systemd.
    pub(crate) fn bundle_path(&self, id: &str) -> String {
        format!("{}/{id}", self.parent)
    }

    fn groups(&self, id: &str) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|h| below(&h.mount, &self.parent).join(id)).filter(|group| group.is_dir()).collect()
    }

    /// The groups of the controller, in whichever tree it is.
    fn group_of(&self, controller: &str, id: &str) -> Option<PathBuf> {
        let owner = |h: &&Hierarchy| h.unified || h.controllers.contains(controller);
        self.hierarchies.iter().find(owner).map(|h| below(&h.mount, &self.parent).join(id))
    }

    /// Every container that has a group somewhere, by its name.
    pub(crate) fn present(&self) -> BTreeSet<String> {
        let parents = self.hierarchies.iter().map(|hierarchy| below(&hierarchy.mount, &self.parent));
        parents
            .filter_map(|parent| fs::read_dir(parent).ok())
            .flat_map(|entries| entries.filter_map(Result::ok))
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    /// Ends every process of the container and takes its groups away; none there is no error.
    ///
    /// # Errors
    /// A group that was still busy at the end of its time.
    pub(crate) fn remove(&self, id: &str) -> Result<(), StepError> {
        let groups = self.groups(id);
        if groups.is_empty() {
            return Ok(());
        }
        self.kill(id, &groups);
        let end = Instant::now() + RELEASE_MAX;
        let mut failed = None;
        for group in groups {
            while let Err(error) = remove_group(&group) {
                if Instant::now() >= end {
                    failed = Some(StepError::new("remove a control group", error));
                    break;
                }
                kill_listed(&group);
                thread::sleep(RELEASE_STEP);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// By the kernel's own switch where there is one; else held still, so that a fork bomb cannot outrun it.
    fn kill(&self, id: &str, groups: &[PathBuf]) {
        if let [group] = groups
            && fs::write(group.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        let freezer = self.group_of("freezer", id).map(|group| group.join("freezer.state"));
        let hold = |state: &str| freezer.as_ref().is_some_and(|path| fs::write(path, state).is_ok());
        let held = hold("FROZEN");
        groups.iter().for_each(|group| kill_listed(group));
        if held {
            hold("THAWED");
        }
    }

    /// What the container used up to now; a controller that is not there counts 0.
    pub(crate) fn usage(&self, id: &str) -> Usage {
        let read = |controller: &str, file: &str| {
            self.group_of(controller, id).and_then(|group| read_file(&group.join(file)).ok()).unwrap_or_default()
        };
        let number = |text: String| text.trim().parse().unwrap_or(0);
        if self.layout == Layout::Unified {
            return Usage {
                cpu_ns: keyed(&read("cpu", "cpu.stat"), "usage_usec").saturating_mul(1_000),
                memory_bytes: number(read("memory", "memory.current")),
                memory_bytes_max: number(read("memory", "memory.peak")),
                pids: number(read("pids", "pids.current")),
                oom_kills: keyed(&read("memory", "memory.events"), "oom_kill"),
            };
        }
        Usage {
            cpu_ns: number(read("cpuacct", "cpuacct.usage")),
            memory_bytes: number(read("memory", "memory.usage_in_bytes")),
            memory_bytes_max: number(read("memory", "memory.max_usage_in_bytes")),
            pids: number(read("pids", "pids.current")),
            oom_kills: keyed(&read("memory", "memory.oom_control"), "oom_kill"),
        }
    }
}

/// Lets the children of every group between the root of the tree and `group` use what the tree has, and names it.
fn enable_unified(mount: &Path, group: &Path) -> BTreeSet<String> {
    let parent = group.parent().unwrap_or(mount);
    let steps: Vec<&Path> = parent.ancestors().take_while(|step| step.starts_with(mount)).collect();
    let mut controllers = BTreeSet::new();
    for step in steps.into_iter().rev() {
        if fs::create_dir_all(step).is_err() {
            return BTreeSet::new();
        }
        let offered = read_file(&step.join("cgroup.controllers")).unwrap_or_default();
        for controller in offered.split_whitespace() {
            // One by one: a controller that refuses must not keep the others back.
            let _refused = fs::write(step.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        let enabled = read_file(&step.join("cgroup.subtree_control")).unwrap_or_default();
        controllers = enabled.split_whitespace().map(str::to_owned).collect();
    }
    controllers
}

/// `mount` and the absolute `path` below it.
fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// Sends SIGKILL to what the group and the groups in it list.
fn kill_listed(group: &Path) {
    let listed = read_file(&group.join("cgroup.procs")).unwrap_or_default();
    for pid in listed.lines().filter_map(|line| line.trim().parse().ok()).filter_map(rustix::process::Pid::from_raw) {
        // It may be gone already.
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    for inner in inner_groups(group) {
        kill_listed(&inner);
    }
}

/// Takes a group away with the groups that its own processes made in it, innermost first.
fn remove_group(group: &Path) -> io::Result<()> {
    for inner in inner_groups(group) {
        remove_group(&inner)?;
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn inner_groups(group: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(group) else { return Vec::new() };
    let groups = entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    groups.map(|entry| entry.path()).collect()
}

fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(fs::File::open(path)?, FILE_BYTES_MAX), &mut text)?;
    Ok(text)
}

/// The number behind `key` in lines of `key number`.
fn keyed(text: &str, key: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

/// A path as `mountinfo` writes it: blanks and backslashes in octal.
fn unescape(path: &str) -> PathBuf {
    let mut plain = path.to_owned();
    for (octal, letter) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(octal, letter);
    }
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
        20 1 0:5 / /sys/fs/cgroup rw shared:1 - tmpfs cgroup rw\n\
        21 20 0:6 / /sys/fs/cgroup/cpu,cpuacct rw shared:2 - cgroup cgroup rw,cpu,cpuacct\n\
        22 20 0:7 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n\
        23 20 0:8 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
        24 20 0:9 / /sys/fs/cgroup/unified rw - cgroup2 cgroup rw\n\
        25 20 0:7 / /elsewhere rw - cgroup cgroup rw,memory\n\
        26 20 0:10 / /sys/fs/cgroup/hugetlb rw - cgroup cgroup rw,hugetlb\n";
    const OWN: &str = "3:name=systemd:/\n2:memory:/x\n1:cpu,cpuacct:/\n0::/\n";

    #[test]
    fn trees_are_read_from_the_mounts() {
        let found = Cgroups::parse(HYBRID, OWN, "/meshd/w");
        assert_eq!(found.layout, Layout::Hybrid);
        let mounts: Vec<&Path> = found.hierarchies.iter().map(|h| h.mount.as_path()).collect();
        assert_eq!(mounts, [Path::new("/sys/fs/cgroup/cpu,cpuacct"), Path::new("/sys/fs/cgroup/my memory")]);
        assert_eq!(found.group_of("cpuacct", "w1").unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct/meshd/w/w1"));
        assert_eq!(found.bundle_path("w1"), "/meshd/w/w1");
    }

    #[test]
    fn layouts_are_told_apart() {
        let v1 = "21 20 0:6 / /c/memory rw - cgroup cgroup rw,memory\n";
        let v2 = "24 20 0:9 / /c/unified rw - cgroup2 cgroup rw\n";
        for (mounts, expected) in [
            (v1.to_owned(), Layout::Legacy),
            (v2.to_owned(), Layout::Unified),
            (format!("{v1}{v2}"), Layout::Hybrid),
            (String::new(), Layout::Absent),
            ("garbage\n - \n".to_owned(), Layout::Absent),
        ] {
            assert_eq!(Cgroups::parse(&mounts, OWN, "/p").layout, expected, "{mounts}");
        }
    }

    #[test]
    fn keyed_files_are_read_by_whole_keys() {
        let events = "low 0\noom 7\noom_kill 3\noom_kill_disable 1\n";
        assert_eq!(keyed(events, "oom_kill"), 3);
        assert_eq!(keyed(events, "oom"), 7);
        assert_eq!(keyed(events, "max"), 0);
        assert_eq!(keyed("oom_kill many\n", "oom_kill"), 0);
    }

    #[test]
    fn a_group_is_read_killed_and_removed_with_its_inner_groups() {
        let parent = format!("/meshd-test-{}", std::process::id());
        let cgroups = Cgroups::probe(&parent).unwrap();
        assert_ne!(cgroups.layout, Layout::Absent, "this test needs control groups");
        for hierarchy in &cgroups.hierarchies {
            fs::create_dir_all(below(&hierarchy.mount, &parent).join("w1/inner")).unwrap();
        }
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        for group in cgroups.groups("w1") {
            if fs::write(group.join("inner/cgroup.procs"), child.id().to_string()).is_err() {
                // A cpuset takes processes once it has processors, which the runtime copies down.
                assert!(group.to_string_lossy().contains("cpuset"), "{}", group.display());
            }
        }
        assert_eq!(cgroups.present(), BTreeSet::from(["w1".to_owned()]));
        if cgroups.usable.contains("pids") {
            assert_eq!(cgroups.usage("w1").pids, 1);
        }
        let reaped = thread::spawn(move || child.wait().unwrap());
        cgroups.remove("w1").unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&reaped.join().unwrap()), Some(libc::SIGKILL));
        cgroups.remove("w1").unwrap();
        assert_eq!(cgroups.present(), BTreeSet::new());
        for hierarchy in &cgroups.hierarchies {
            fs::remove_dir(below(&hierarchy.mount, &parent)).unwrap();
        }
    }
}
